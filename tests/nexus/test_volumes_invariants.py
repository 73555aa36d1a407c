"""Every law is broken by hand once, and says so in a sentence with the ids; what is sound says nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import delete, insert, select, update
from volumes_rig import Disk, Rack, Snapshot

from crucible_emu.volume.vcr import VolumeConstructionRequest
from nexus.db import Database, schema
from nexus.volumes import deletion, invariants, recorded, resolution, walks
from nexus.volumes.checkout import CopyAndModify, volume_checkout
from nexus.volumes.recorded import Address
from nexus.volumes.repair_lock import TryLocks
from nexus.volumes.resolution import ReadOnlyRegion


class Home:
    """A sound little rack: a disk, its snapshot, and a clone that a volume keeps."""

    def __init__(self, database: Database) -> None:
        self.rack = Rack(database)
        for _ in range(4):
            self.rack.add_sled()
        self.disk: Disk = self.rack.disk()
        self.snapshot: Snapshot = self.rack.snapshot(self.disk)
        self.clone = self.rack.read_only_region(self.snapshot.volume_id, self.snapshot.id)
        self.keeper = self.rack.create(recorded.kept_target(self.rack.new_uuid(), self.clone.address))
        assert self.rack.findings() == []
        database.after_body = None

    def document(self, volume_id: str, change: Callable[[Any], VolumeConstructionRequest]) -> None:
        text = recorded.write(change(self.rack.request(volume_id)))
        self.rack.set(schema.volume, volume_id, data=text)


@pytest.fixture
def home() -> Any:
    """Pure functions over rows: one database tells as much as two."""
    with Database.open("sqlite://", inline=True) as database:
        yield Home(database)


def expect(home: Home, name: str, *parts: str, at_rest: bool = False) -> None:
    """Some finding of the law ``name`` has all ``parts`` in it."""
    findings = home.rack.run(lambda c: invariants.check(c, at_rest=at_rest))
    mine = [each for each in findings if each.invariant == name]
    assert any(all(part in each.sentence for part in parts) for each in mine), list(map(str, findings))
    for each in mine:
        assert each.ids and all(identity in each.sentence for identity in each.ids)


def test_a_document_that_cannot_be_read_is_found(home: Home) -> None:
    home.rack.set(schema.volume, home.keeper, data="{}")
    expect(home, "readable", home.keeper, "cannot be read")


def test_a_bare_region_is_found(home: Home) -> None:
    home.document(home.keeper, lambda request: request.sub_volumes[0])
    expect(home, "readable", home.keeper, "bare region")


def test_i1_a_target_without_usage_row(home: Home) -> None:
    home.rack.run(resolution.drop_usage, home.keeper, home.clone.resource)
    expect(home, "I1", home.keeper, "has 0 usage rows")


def test_i1_a_usage_row_without_target(home: Home) -> None:
    home.rack.run(resolution.insert_usage, home.disk.volume_id, home.clone.resource)
    expect(home, "I1", home.disk.volume_id, "does not name it")


def test_i1_a_usage_row_of_a_volume_that_is_gone(home: Home) -> None:
    """W30: what an undo that hard-deletes too early leaves."""
    volume = schema.volume
    home.rack.run(lambda c: c.execute(delete(volume).where(volume.c.id == home.keeper)) and None)
    expect(home, "I1", home.keeper, "is not there")


def test_i1_a_usage_row_of_a_deleted_volume(home: Home) -> None:
    home.rack.set(schema.volume, home.keeper, time_deleted=home.rack.now())
    expect(home, "I1", home.keeper, "is deleted")


def test_i2_a_resource_that_nobody_uses(home: Home) -> None:
    home.rack.run(resolution.drop_usage, home.keeper, home.clone.resource)
    assert isinstance(home.clone.resource, ReadOnlyRegion)
    expect(home, "I2", home.clone.resource.region_id, "used by nobody", at_rest=True)
    home.rack.run_snapshot(home.disk.regions[0], home.rack.id())
    expect(home, "I2", "region snapshot", "used by nobody", at_rest=True)
    assert not [each for each in home.rack.findings(at_rest=False) if each.startswith("I2")], "it may be on its way"


def test_i3_a_resource_that_is_going_is_used(home: Home) -> None:
    for target in (home.clone, home.snapshot.members[0]):
        home.rack.run(resolution.flag_deleting, target.resource)
        expect(home, "I3", str(target.resource), "being deleted")


def test_i3_a_resource_that_is_gone_is_used(home: Home) -> None:
    table = schema.region_snapshot
    home.rack.run(lambda c: c.execute(delete(table)) and None)
    expect(home, "I3", home.snapshot.volume_id, "which is not there")


def test_i4_a_region_that_is_not_there(home: Home) -> None:
    home.rack.set(schema.region, home.disk.regions[0], port=None)
    expect(home, "I4", home.disk.volume_id, "where 0 read/write regions are")


def test_a_read_target_that_is_not_there(home: Home) -> None:
    home.rack.run(resolution.flag_deleting, home.clone.resource)
    expect(home, "read targets resolve", home.keeper, "where 0 read-only resources are")


def test_i5_a_region_that_another_owns(home: Home) -> None:
    home.rack.set(schema.region, home.disk.regions[0], volume_id=home.keeper)
    expect(home, "I5", home.disk.volume_id, home.disk.regions[0], f"which volume {home.keeper} owns")
    expect(home, "I5", f"belongs to volume {home.keeper}", "does not name", at_rest=True)


def test_i5_a_region_whose_owner_is_gone(home: Home) -> None:
    """R16: nothing would ever find it."""
    nobody = home.rack.id()
    home.rack.allocate(nobody, 1)
    expect(home, "I5", f"belongs to volume {nobody}, which is not there", at_rest=True)


def test_i6_one_target_twice_in_a_set(home: Home) -> None:
    def twice(request: Any) -> VolumeConstructionRequest:
        part = request.sub_volumes[0]
        opts = part.opts.model_copy(update={"target": (part.opts.target[0], *part.opts.target[:2])})
        return request.model_copy(update={"sub_volumes": (part.model_copy(update={"opts": opts}),)})

    home.rack.run(deletion.soft_delete_volume, home.disk.volume_id, home.rack.now())
    home.document(home.disk.volume_id, twice)
    expect(home, "I6", home.disk.volume_id, "2 times in one region set")


def test_i7_a_snapshot_of_a_read_only_region(home: Home) -> None:
    assert isinstance(home.clone.resource, ReadOnlyRegion)
    region_id = home.clone.resource.region_id
    region = schema.region
    dataset_id = home.rack.run(
        lambda c: c.execute(select(region.c.dataset_id).where(region.c.id == region_id)).scalar_one()
    )
    ids = {"dataset_id": dataset_id, "region_id": region_id, "snapshot_id": home.rack.id()}
    home.rack.add(schema.region_snapshot, snapshot_addr="[fd00::1]:1", deleting=False, **ids)
    expect(home, "I7", home.clone.resource.region_id, "has a region snapshot")


def test_i8_a_lock_that_outlived_its_holder(home: Home) -> None:
    rack = home.rack
    request = rack.add(
        schema.region_replacement,
        request_time=rack.now(),
        old_region_id=home.disk.regions[0],
        volume_id=home.disk.volume_id,
        replacement_state="requested",
    )
    rack.run(TryLocks().volume_repair_insert, home.disk.volume_id, request, rack.now())
    assert rack.findings() == []
    rack.set(schema.region_replacement, request, replacement_state="complete")
    expect(home, "I8", home.disk.volume_id, request, "has ended")


def test_i8_a_lock_of_nobody(home: Home) -> None:
    nobody = home.rack.id()
    home.rack.run(TryLocks().volume_repair_insert, home.disk.volume_id, nobody, home.rack.now())
    expect(home, "I8", nobody, "which nobody knows", at_rest=True)
    assert home.rack.findings(at_rest=False) == [], "it may be a saga that makes a snapshot"


def test_i9_a_target_named_twice(home: Home) -> None:
    home.document(home.keeper, lambda request: request.model_copy(update={"read_only_parent": request}))
    expect(home, "I9", home.keeper, str(home.clone.address), "2 times")


def test_i10_a_dataset_that_reserves_too_much(home: Home) -> None:
    dataset = schema.crucible_dataset
    dataset_id = home.rack.run(lambda c: c.execute(select(dataset.c.id)).scalars().first())
    home.rack.set(dataset, dataset_id, size_used=1)
    expect(home, "I10", dataset_id, "has 1 bytes reserved")


def test_i11_a_generation_that_was_handed_out_already(home: Home) -> None:
    rack = home.rack
    handed = rack.run(volume_checkout, home.disk.volume_id, CopyAndModify(), rack.now())
    rack.handed_out.note(home.disk.volume_id, handed.request)
    assert rack.run(rack.handed_out.check) == []
    home.document(home.disk.volume_id, lambda _: handed.request)
    (finding,) = rack.run(rack.handed_out.check)
    assert finding.invariant == "I11" and home.disk.volume_id in finding.sentence


@pytest.mark.parametrize("gone", [False, True])
def test_w4_a_deleted_volume_with_a_disk_in_use(home: Home, gone: bool) -> None:
    disk_id = home.rack.user_disk(home.disk.volume_id)
    assert home.rack.findings() == []
    home.rack.run(deletion.soft_delete_volume, home.disk.volume_id, home.rack.now())
    if gone:
        home.rack.run(deletion.volume_hard_delete, home.disk.volume_id)
    expect(home, "W4", disk_id, "is detached", "gone" if gone else "deleted")
    instance = home.rack.id()
    home.rack.set(schema.disk, disk_id, disk_state="attached", attach_instance_id=instance)
    expect(home, "W4", disk_id, "is attached")
    for state in ("creating", "faulted"):
        home.rack.set(schema.disk, disk_id, disk_state=state, attach_instance_id=None)
        assert not [each for each in home.rack.findings(at_rest=False) if each.startswith("W4")]


def test_the_hook_undoes_a_transaction_that_breaks_a_law(home: Home) -> None:
    home.rack.database.after_body = invariants.require
    with pytest.raises(invariants.InvariantViolation, match="I1: volume") as caught:
        home.rack.run(resolution.drop_usage, home.keeper, home.clone.resource)
    assert [each.invariant for each in caught.value.findings] == ["I1"]
    assert home.rack.findings() == []


def test_no_finding_shows_a_key(home: Home) -> None:
    wrong = home.rack.region_set([Address.of("fd00::1", 1)])
    home.document(home.disk.volume_id, lambda request: request.model_copy(update={"sub_volumes": (wrong,)}))
    home.rack.set(schema.volume, home.keeper, data=recorded.write(wrong)[:-5])
    text = str(home.rack.findings())
    assert home.disk.volume_id in text and "tCw7zw0h" not in text


def test_every_law_has_its_own_test() -> None:
    names = {each.name for each in invariants.INVARIANTS} - {"readable", "read targets resolve"}
    tested = {name.split("_")[1].upper() for name in globals() if name.startswith(("test_i", "test_w"))}
    assert names | {"I11"} == tested


def test_a_walk_of_the_home_is_not_vacuous(home: Home) -> None:
    assert len(walks.read_only_targets(home.rack.request(home.snapshot.volume_id))) == 3
    usage = schema.volume_resource_usage
    assert home.rack.count(usage) == 4
    home.rack.run(lambda c: c.execute(update(usage).values(volume_id=home.rack.id())) and None)
    assert len([each for each in home.rack.findings() if each.startswith("I1")]) == 8
    with pytest.raises(Exception, match="UNIQUE"):
        home.rack.run(lambda c: c.execute(insert(usage).from_select(usage.c.keys(), select(usage))) and None)
