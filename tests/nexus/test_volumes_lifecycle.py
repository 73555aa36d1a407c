"""Volumes made, copied, handed out and deleted in every order: nothing goes too early, nothing stays.

The names are those of the real project's tests (nexus.md §9.3, §9.5).
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from sqlalchemy import select, update
from volumes_rig import Disk, Rack, Snapshot, targets

from crucible_emu.volume.vcr import FileRequest, RegionRequest, VolumeRequest
from nexus.db import Conflict, Database, NotFound, schema
from nexus.volumes import deletion, freed, regions, resolution, rows, walks
from nexus.volumes.checkout import CopyAndModify, ReadOnlyCopy, volume_checkout, volume_checkout_randomize_ids
from nexus.volumes.freed import CrucibleResources
from nexus.volumes.recorded import Address, MalformedVolume
from nexus.volumes.refusals import BrokenInvariant, ResourceGone
from nexus.volumes.resolution import ReadOnlyRegion, RegionSnapshot
from nexus.volumes.rows import Deletion


@pytest.fixture
def rack(database: Database) -> Rack:
    rack = Rack(database)
    for _ in range(4):
        rack.add_sled()
    return rack


def usages(rack: Rack, volume_id: str) -> list[resolution.Resource]:
    return rack.run(resolution.resources_used_by, volume_id)


def users(rack: Rack, resource: resolution.Resource) -> list[str]:
    return rack.run(resolution.volumes_using, resource)


# -- deletion order ---------------------------------------------------------------------------------------------------


def test_cte_returns_regions(rack: Rack) -> None:
    disk = rack.disk()
    found = rack.run(deletion.soft_delete_volume, disk.volume_id, rack.now())
    assert sorted(found.regions) == sorted(disk.regions)
    assert found.region_snapshots == ()
    again = rack.run(deletion.soft_delete_volume, disk.volume_id, rack.now())
    assert again == found, "a rerun is told the same"
    assert len(rack.run(freed.regions_to_delete, found)) == 3
    rack.finish_delete(disk.volume_id, again)
    assert rack.run(freed.regions_to_delete, found) == [], "what is gone is skipped"
    rack.assert_nothing_left()


def test_snapshot_then_delete_disk(rack: Rack) -> None:
    disk = rack.disk()
    snapshot = rack.snapshot(disk)
    assert rack.delete(disk.volume_id).empty
    assert rack.count(schema.region) == 3, "the snapshot keeps them"
    assert rack.exists(disk.volume_id) is Deletion.SOFT_DELETED
    assert len(rack.delete(snapshot.volume_id).region_snapshots) == 3
    rack.assert_nothing_left()


def test_delete_snapshot_then_disk(rack: Rack) -> None:
    disk = rack.disk()
    snapshot = rack.snapshot(disk)
    assert len(rack.delete(snapshot.volume_id).region_snapshots) == 3
    assert rack.count(schema.region) == 3, "the disk is not deleted"
    assert len(rack.delete(disk.volume_id).regions) == 3
    rack.assert_nothing_left()


def test_multiple_snapshots(rack: Rack) -> None:
    disk = rack.disk()
    snapshots = [rack.snapshot(disk) for _ in range(4)]
    rack.delete(disk.volume_id)
    for each in snapshots:
        assert rack.count(schema.region) == 3
        rack.delete(each.volume_id)
    rack.assert_nothing_left()


@pytest.mark.parametrize("order", [1, 2])
def test_multiple_disks_multiple_snapshots_order(rack: Rack, order: int) -> None:
    first, second = rack.disk(), rack.disk()
    of_first, of_second = rack.snapshot(first), rack.snapshot(second)
    ids = [first.volume_id, of_second.volume_id, second.volume_id, of_first.volume_id]
    for each in ids if order == 1 else [ids[1], ids[3], ids[0], ids[2]]:
        assert rack.count(schema.region) > 0
        rack.delete(each)
    rack.assert_nothing_left()


def three_layers(rack: Rack) -> tuple[list[Disk], list[Snapshot]]:
    disks = [rack.disk()]
    snapshots = [rack.snapshot(disks[0])]
    for _ in range(2):
        disks.append(rack.disk(snapshots[-1].volume_id))
        snapshots.append(rack.snapshot(disks[-1]))
    return disks, snapshots


@pytest.mark.parametrize("order", ["all_disks_first", "all_snapshots_first", *map(str, range(4))])
def test_multiple_layers_of_snapshots_delete(rack: Rack, order: str) -> None:
    disks, snapshots = three_layers(rack)
    assert [len(usages(rack, each.volume_id)) for each in snapshots] == [3, 6, 9], "each holds all layers below it"
    ids = [each.volume_id for each in (*disks, *snapshots)]
    if order == "all_snapshots_first":
        ids = [*ids[3:], *ids[:3]]
    elif order.isdigit():
        Random(int(order)).shuffle(ids)
    for each in ids:
        rack.delete(each)
    rack.assert_nothing_left()


def test_create_image_from_snapshot(rack: Rack) -> None:
    disk = rack.disk()
    snapshot = rack.snapshot(disk)
    image = rack.image(snapshot)
    rack.delete(disk.volume_id)
    rack.delete(snapshot.volume_id)
    assert rack.count(schema.region_snapshot) == 3, "the image holds them"
    assert all(users(rack, member.resource) == [image] for member in snapshot.members)
    rack.delete(image)
    rack.assert_nothing_left()


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=lambda order: "".join(map(str, order)))
def test_delete_image_order(rack: Rack, order: tuple[int, ...]) -> None:
    disk = rack.disk()
    snapshot = rack.snapshot(disk)
    ids = [disk.volume_id, snapshot.volume_id, rack.image(snapshot)]
    for number in order:
        assert rack.count(schema.region) == 3
        rack.delete(ids[number])
    rack.assert_nothing_left()


def test_multiple_deletes_not_sent(rack: Rack) -> None:
    """The race: three volumes of one resource are soft-deleted before any resource is destroyed."""
    disk = rack.disk()
    snapshot = rack.snapshot(disk)
    copies = [snapshot.volume_id, rack.image(snapshot), rack.disk(snapshot.volume_id).volume_id]
    found = [rack.run(deletion.soft_delete_volume, each, rack.now()) for each in copies]
    named = [each for resources in found for each in resources.region_snapshots]
    assert sorted(named) == sorted(member.resource for member in snapshot.members), "each once, of all three"
    for volume_id, resources in zip(copies, found, strict=True):
        rack.finish_delete(volume_id, resources)
    rack.delete(disk.volume_id)
    rack.assert_nothing_left()


def test_volume_hard_delete_idempotent(rack: Rack) -> None:
    volume_id = rack.create(rack.volume())
    rack.run(deletion.volume_hard_delete, volume_id)
    rack.run(deletion.volume_hard_delete, volume_id)
    assert rack.exists(volume_id) is Deletion.HARD_DELETED


def test_a_volume_that_counts_on_something_is_not_hard_deleted(rack: Rack) -> None:
    """W30: an undo that did would leave the row of its reference for ever."""
    snapshot = rack.snapshot(rack.disk())
    with pytest.raises(BrokenInvariant, match="cannot be hard-deleted"):
        rack.run(deletion.volume_hard_delete, snapshot.volume_id)


def test_no_find_deleted_region_for_no_volume(rack: Rack) -> None:
    volume_id = rack.id()
    rack.allocate(volume_id)
    assert rack.run(deletion.find_deleted_volume_regions) == deletion.FreedRegions((), ())


def test_an_owner_stays_while_one_of_its_regions_does(rack: Rack) -> None:
    """R17: of three regions of a soft-deleted volume one has no snapshot; the volume is not hard-deleted with it."""
    disk = rack.disk()
    kept = [rack.run_snapshot(each, rack.id()) for each in disk.regions[:2]]
    volume_id = rack.create(rack.volume(rack.region_set([each.address for each in kept], read_only=True)))
    resources = rack.run(deletion.soft_delete_volume, disk.volume_id, rack.now())
    assert resources.regions == (disk.regions[2],)
    found = rack.run(deletion.find_deleted_volume_regions)
    assert ([each.region_id for each in found.regions], found.volumes) == ([disk.regions[2]], ())
    rack.finish_delete(disk.volume_id, resources)
    assert rack.exists(disk.volume_id) is Deletion.SOFT_DELETED
    rack.delete(volume_id)
    rack.assert_nothing_left()


def test_a_region_stays_while_the_row_of_its_snapshot_does(rack: Rack) -> None:
    """R15: also of one that is being deleted."""
    disk = rack.disk()
    snapshot = rack.snapshot(disk)
    rack.run(deletion.soft_delete_volume, snapshot.volume_id, rack.now())
    assert rack.run(deletion.soft_delete_volume, disk.volume_id, rack.now()).empty
    assert rack.run(deletion.find_deleted_volume_regions).regions == ()


def test_a_missing_volume_frees_nothing(rack: Rack) -> None:
    assert rack.run(deletion.soft_delete_volume, rack.id(), rack.now()) == CrucibleResources()


def test_a_target_whose_resource_and_usage_are_gone_does_not_keep_a_volume(rack: Rack) -> None:
    """W13: the real one could never delete this volume again."""
    snapshot = rack.snapshot(rack.disk())
    lost = snapshot.members[0].resource
    rack.database.after_body = None

    def lose(connection: Any) -> None:
        resolution.drop_usage(connection, snapshot.volume_id, lost)
        resolution.flag_deleting(connection, lost)

    rack.run(lose)
    assert len(rack.run(deletion.soft_delete_volume, snapshot.volume_id, rack.now()).region_snapshots) == 2


def test_a_reference_that_no_target_explains_keeps_a_volume(rack: Rack) -> None:
    snapshot = rack.snapshot(rack.disk())
    rack.database.after_body = None
    rack.run(resolution.flag_deleting, snapshot.members[0].resource)
    with pytest.raises(BrokenInvariant, match="with a reference to the region snapshot"):
        rack.run(deletion.soft_delete_volume, snapshot.volume_id, rack.now())
    assert rack.exists(snapshot.volume_id) is Deletion.LIVE, "nothing was done"


def test_a_disk_whose_region_is_unknown_is_not_deleted_silently(rack: Rack) -> None:
    disk = rack.disk()
    rack.database.after_body = None
    rack.set(schema.region, disk.regions[0], port=None)
    with pytest.raises(BrokenInvariant, match="where no read/write region is"):
        rack.run(deletion.soft_delete_volume, disk.volume_id, rack.now())


# -- creation ---------------------------------------------------------------------------------------------------------


def test_a_volume_is_made_once(rack: Rack) -> None:
    snapshot = rack.snapshot(rack.disk())
    request = rack.request(snapshot.volume_id)
    before = rack.count(schema.volume_resource_usage)
    rack.create(request, snapshot.volume_id)
    assert rack.count(schema.volume_resource_usage) == before


def test_a_rerun_keeps_what_others_did_meanwhile(rack: Rack) -> None:
    disk = rack.disk()
    made = rack.request(disk.volume_id)
    rack.run(volume_checkout, disk.volume_id, CopyAndModify(), rack.now())
    changed = rack.request(disk.volume_id)
    assert rack.run(rows.volume_create, disk.volume_id, made, rack.now()).request == changed != made


def test_a_dead_or_different_volume_is_not_taken_for_ones_own(rack: Rack) -> None:
    """W50."""
    disk, other = rack.disk(), rack.disk()
    with pytest.raises(Conflict, match="other content"):
        rack.create(rack.request(other.volume_id), disk.volume_id)
    request = rack.request(disk.volume_id)
    rack.run(deletion.soft_delete_volume, disk.volume_id, rack.now())
    with pytest.raises(Conflict, match="is deleted"):
        rack.create(request, disk.volume_id)
    with pytest.raises(Conflict, match="is deleted"):
        rack.run(volume_checkout, disk.volume_id, CopyAndModify(), rack.now())


def test_a_volume_that_names_a_target_twice_is_refused(rack: Rack) -> None:
    snapshot = rack.snapshot(rack.disk())
    address = snapshot.members[0].address
    twice = rack.volume(rack.region_set([address], read_only=True), parent=rack.region_set([address], read_only=True))
    with pytest.raises(Conflict, match="twice"):
        rack.create(twice)


def test_a_bare_region_is_not_recorded(rack: Rack) -> None:
    with pytest.raises(MalformedVolume, match="bare region"):
        rack.create(rack.region_set([], read_only=True))


# -- checkout ---------------------------------------------------------------------------------------------------------


def generations(rack: Rack, volume_id: str) -> list[int | None]:
    request = rack.request(volume_id)
    assert isinstance(request, VolumeRequest)
    return [part.gen if isinstance(part, RegionRequest) else None for part in request.sub_volumes]


def test_volume_checkout(rack: Rack) -> None:
    disk = rack.disk()
    for wanted in (1, 2):
        found = rack.run(volume_checkout, disk.volume_id, CopyAndModify(), rack.now())
        assert isinstance(found.request, VolumeRequest)
        assert [part.gen for part in walks.checked_out(found.request).sub_volumes] == [wanted + 1]  # type: ignore[union-attr]
        assert [part.gen for part in found.request.sub_volumes] == [wanted]  # type: ignore[union-attr]
        assert generations(rack, disk.volume_id) == [wanted + 1]


def file_part(rack: Rack) -> FileRequest:
    return FileRequest(type="file", id=rack.new_uuid(), block_size=512, path="image.raw")


def test_volume_checkout_updates_nothing(rack: Rack) -> None:
    volume_id = rack.create(rack.volume(file_part(rack)))
    before = rack.request(volume_id)
    assert rack.run(volume_checkout, volume_id, CopyAndModify(), rack.now()).request == before
    assert rack.request(volume_id) == before


@pytest.mark.parametrize("layout", ["RR", "FRF", "RFR"])
def test_volume_checkout_updates_multiple_gen(rack: Rack, layout: str) -> None:
    """Also ``…_sparse_multiple_gen`` and ``…_sparse_mid_multiple_gen``."""
    volume_id = rack.id()
    parts: list[Any] = []
    for number, kind in enumerate(layout, 1):
        regions = [rack.address_of(each.region_id) for each in rack.allocate(volume_id, 1)] if kind == "R" else []
        parts.append(rack.region_set(regions, gen=number) if kind == "R" else file_part(rack))
    rack.create(rack.volume(*parts), volume_id)
    rack.run(volume_checkout, volume_id, CopyAndModify(), rack.now())
    wanted = [number + 1 if kind == "R" else None for number, kind in enumerate(layout, 1)]
    assert generations(rack, volume_id) == wanted


def test_volume_checkout_randomize_ids_only_read_only(rack: Rack) -> None:
    disk = rack.disk()
    for reason, error in ((ReadOnlyCopy(), Conflict), (CopyAndModify(), MalformedVolume)):
        with pytest.raises(error):
            rack.run(volume_checkout_randomize_ids, disk.volume_id, rack.id(), reason, rack.now(), rack.new_uuid)
    assert generations(rack, disk.volume_id) == [1], "a refused checkout hands nothing out"


def test_read_only_disk_different_vcr(rack: Rack) -> None:
    snapshot = rack.snapshot(rack.disk())
    copies = [rack.request(rack.image(snapshot)) for _ in range(2)]
    ids = [part.opts.id for each in copies for part in each.sub_volumes]  # type: ignore[union-attr]
    assert len({*ids, *(each.id for each in copies)}) == 4  # type: ignore[union-attr]
    assert len({tuple(targets(each)) for each in copies}) == 1


def test_a_copy_is_made_once_under_its_id(rack: Rack) -> None:
    """R43."""
    snapshot = rack.snapshot(rack.disk())
    image = rack.image(snapshot)
    made = rack.request(image)
    args = (snapshot.volume_id, image, ReadOnlyCopy(), rack.now(), rack.new_uuid)
    assert rack.run(volume_checkout_randomize_ids, *args).request == made
    assert len(users(rack, snapshot.members[0].resource)) == 2


def test_a_missing_volume_cannot_be_checked_out(rack: Rack) -> None:
    with pytest.raises(NotFound, match="there is no volume"):
        rack.run(volume_checkout, rack.id(), CopyAndModify(), rack.now())


# -- addresses that are used again, zombies, counts -------------------------------------------------------------------


def test_keep_your_targets_straight(rack: Rack) -> None:
    """Two generations of region snapshots with one address: the first is being deleted and has a row still."""
    disk = rack.disk()
    first = rack.snapshot(disk)
    assert len(rack.run(deletion.soft_delete_volume, first.volume_id, rack.now()).region_snapshots) == 3
    rack.give_port(first.members[0].address)
    second = rack.snapshot(disk)
    assert second.members[0].address == first.members[0].address, "the agent used the port again"
    assert users(rack, second.members[0].resource) == [second.volume_id]
    found = rack.run(deletion.soft_delete_volume, second.volume_id, rack.now())
    assert sorted(found.region_snapshots) == sorted(each.resource for each in second.members)


def test_port_of_a_freed_region_is_used_again_before_its_row_goes(rack: Rack) -> None:
    """Agents give the ports of destroyed regions away at once; rows go in the transaction after that."""
    old = rack.disk()
    rack.run(deletion.soft_delete_volume, old.volume_id, rack.now())
    addresses = [rack.address_of(each) for each in old.regions]
    for address in addresses:
        rack.give_port(address)
    new = [rack.disk() for _ in range(4)]
    again = {rack.address_of(each): disk for disk in new for each in disk.regions}
    assert set(addresses) & set(again), "some disk has the ports of the old one"
    for disk in new:
        assert sorted(rack.run(deletion.soft_delete_volume, disk.volume_id, rack.now()).regions) == sorted(disk.regions)


def test_port_of_a_region_whose_making_is_undone_is_used_again_before_its_row_goes(rack: Rack) -> None:
    """Its volume was never made; another's deletion must not take it for the region that has the port now."""
    undone = [each.region_id for each in rack.allocate(rack.id())]
    addresses = [rack.address_of(each) for each in undone]
    for address in addresses:
        rack.give_port(address)
    new = [rack.disk() for _ in range(4)]
    assert set(addresses) & {rack.address_of(each) for disk in new for each in disk.regions}
    for disk in new:
        assert sorted(rack.run(deletion.soft_delete_volume, disk.volume_id, rack.now()).regions) == sorted(disk.regions)


def read_only_pair(rack: Rack) -> tuple[Address, ReadOnlyRegion]:
    target = rack.read_only_region(rack.id(), rack.id())
    assert isinstance(target.resource, ReadOnlyRegion)
    return target.address, target.resource


@pytest.mark.parametrize("where", ["sub-volume", "parent"])
@pytest.mark.parametrize("volumes", [1, 2])
def test_read_only_region_reference_usage_sanity(rack: Rack, where: str, volumes: int) -> None:
    """Also ``…_rop``, ``…_multi`` and ``…_rop_multi``."""
    address, resource = read_only_pair(rack)
    made = []
    for _ in range(volumes):
        part = rack.volume(rack.region_set([address], read_only=True))
        made.append(rack.create(part if where == "sub-volume" else rack.volume(parent=part)))
    assert users(rack, resource) == sorted(made)
    for number, volume_id in enumerate(made, 1):
        found = rack.run(deletion.soft_delete_volume, volume_id, rack.now())
        assert found.regions == ((resource.region_id,) if number == volumes else ()), "freed with the last reference"
        assert rack.run(deletion.find_deleted_volume_regions).regions == (), "and never found any other way"
    assert users(rack, resource) == []


def test_no_zombie_region_snapshots(rack: Rack) -> None:
    disk = rack.disk()
    snapshot = rack.snapshot(disk)
    copy = rack.volume(parent=rack.request(snapshot.volume_id))
    user = rack.create(copy)
    assert rack.run(deletion.soft_delete_volume, snapshot.volume_id, rack.now()).empty
    assert len(rack.run(deletion.soft_delete_volume, user, rack.now()).region_snapshots) == 3
    with pytest.raises(ResourceGone, match="could not match read-only resource"):
        rack.create(copy)
    assert rack.findings(at_rest=False) == []


def test_no_zombie_read_only_regions(rack: Rack) -> None:
    address, resource = read_only_pair(rack)
    request = rack.volume(rack.region_set([address], read_only=True))
    first, second = rack.create(request), rack.create(rack.volume(parent=request))
    assert rack.run(deletion.soft_delete_volume, first, rack.now()).empty
    assert rack.run(deletion.soft_delete_volume, second, rack.now()).regions == (resource.region_id,)
    with pytest.raises(ResourceGone):
        rack.create(rack.volume(parent=request))


def test_no_zombie_read_write_regions(rack: Rack) -> None:
    """W49: a read/write region cannot be named by a second volume, while its owner lives or when it is gone."""
    disk = rack.disk()
    stolen = rack.volume(rack.region_set([rack.address_of(each) for each in disk.regions]))
    with pytest.raises(Exception, match=f"which volume {disk.volume_id} owns"):
        rack.create(stolen)
    rack.delete(disk.volume_id)
    with pytest.raises(Exception, match="where 0 read/write regions are"):
        rack.create(stolen)


def test_volume_create_wont_use_deleted_region_snapshots(rack: Rack) -> None:
    """R26: a disk is made from a copy of a snapshot that is deleted before the disk's volume is recorded."""
    disk = rack.disk()
    snapshot = rack.snapshot(disk)
    copied = rack.run(volume_checkout, snapshot.volume_id, ReadOnlyCopy(), rack.now()).request
    rack.delete(snapshot.volume_id)
    with pytest.raises(ResourceGone):
        rack.create(rack.volume(parent=walks.randomized_ids(copied, rack.new_uuid)))
    rack.delete(disk.volume_id)
    rack.assert_nothing_left()


def test_the_row_of_a_used_region_snapshot_is_not_removed(rack: Rack) -> None:
    snapshot = rack.snapshot(rack.disk())
    resource = snapshot.members[0].resource
    assert isinstance(resource, RegionSnapshot)
    with pytest.raises(BrokenInvariant, match="still used"):
        rack.run(deletion.region_snapshot_remove, resource)


def test_a_resource_is_marked_once(rack: Rack) -> None:
    """R14."""
    address, resource = read_only_pair(rack)
    volume_id = rack.create(rack.volume(rack.region_set([address], read_only=True)))
    rack.run(deletion.soft_delete_volume, volume_id, rack.now())
    with pytest.raises(BrokenInvariant, match="0 rows"):
        rack.run(resolution.flag_deleting, resource)
    with pytest.raises(BrokenInvariant, match="has 0 usage rows"):
        rack.run(resolution.drop_usage, volume_id, resource)


def test_a_region_without_port_listens_nowhere(rack: Rack) -> None:
    address, resource = read_only_pair(rack)
    rack.set(schema.region, resource.region_id, port=None)
    assert rack.run(resolution.read_only_target_to_resource, address) is None


# -- what is kept about freed resources -------------------------------------------------------------------------------

OLD_TEXT = """
{ "V1": { "datasets_and_regions": [], "datasets_and_snapshots": [ [
  { "identity": { "id": "844ee8d5-7641-4b04-bca8-7521e258028a", "time_created": "2023-12-19T21:38:34.000000Z",
      "time_modified": "2023-12-19T21:38:34.000000Z" },
    "time_deleted": null, "rcgen": 1, "pool_id": "81a98506-4a97-4d92-8de5-c21f6fc71649",
    "ip": "fd00:1122:3344:101::1", "port": 32345, "kind": "Crucible", "size_used": 10737418240 },
  { "dataset_id": "b69edd77-1b3e-4f11-978c-194a0a0137d0", "region_id": "8d668bf9-68cc-4387-8bc0-b4de7ef9744f",
    "snapshot_id": "f548332c-6026-4eff-8c1c-ba202cd5c834", "snapshot_addr": "[fd00:1122:3344:101::2]:19001",
    "volume_references": 0 } ] ] } }
"""


def test_deserialize_old_crucible_resources(rack: Rack) -> None:
    volume_id = rack.create(rack.volume())
    values = {"time_deleted": rack.now(), "resources_to_clean_up": OLD_TEXT}
    rack.run(lambda c: c.execute(update(schema.volume).values(**values)) and None)
    found = rack.run(deletion.soft_delete_volume, volume_id, rack.now())
    (snapshot,) = rack.run(freed.snapshots_to_delete, found)
    assert snapshot.dataset == freed.Dataset("844ee8d5-7641-4b04-bca8-7521e258028a", "fd00:1122:3344:101::1", 32345)
    assert snapshot.snapshot.region_id == "8d668bf9-68cc-4387-8bc0-b4de7ef9744f"
    assert rack.run(freed.regions_to_delete, found) == []


def test_resources_of_the_second_version_look_their_dataset_up(rack: Rack) -> None:
    dataset = rack.run(lambda c: c.execute(select(schema.crucible_dataset.c.id)).scalars().first())
    row = '{"dataset_id": "%s", "region_id": "r", "snapshot_id": "s", "snapshot_addr": "[::1]:1", "deleting": true}'
    text = '{"V2": {"datasets_and_regions": [[{"id": "d", "ip": "::1", "port": 1}, {"id": "r"}]], '
    text += f'"snapshots_to_delete": [{row}]}}}}'
    found = freed.parse(text % dataset)
    assert [each.dataset.id for each in rack.run(freed.snapshots_to_delete, found)] == [dataset]
    assert rack.run(freed.regions_to_delete, found) == [freed.FreedRegion(freed.Dataset("d", "::1", 1), "r")]
    with pytest.raises(BrokenInvariant, match="dataset of the region snapshot"):
        rack.run(freed.snapshots_to_delete, freed.parse(text % "nobody"))


def test_resources_of_the_third_version() -> None:
    resources = CrucibleResources(("r",), (RegionSnapshot("d", "r", "s"),))
    assert freed.parse(freed.write(resources)) == resources
    assert freed.parse('{"V3": {"regions": null, "region_snapshots": null}}') == CrucibleResources()
    assert freed.parse(None).empty
    for damage in ("", "{}", '{"V4": {}}', '{"V1": {}}', "[]"):
        with pytest.raises(BrokenInvariant):
            freed.parse(damage)


# -- what agents said -------------------------------------------------------------------------------------------------


def test_region_snapshot_create_idempotent(rack: Rack) -> None:
    """And nothing else under its ids or at its address."""
    snapshot = rack.snapshot(rack.disk())
    first, second = snapshot.members[:2]
    assert isinstance(first.resource, RegionSnapshot) and isinstance(second.resource, RegionSnapshot)
    create = regions.region_snapshot_create
    before = rack.count(schema.region_snapshot)
    rack.run(create, first.resource, first.address)
    assert rack.count(schema.region_snapshot) == before
    with pytest.raises(Conflict, match="is known at"):
        rack.run(create, first.resource, second.address)
    with pytest.raises(Conflict, match="in use at"):
        rack.run(create, replace(second.resource, snapshot_id=rack.id()), first.address)
    with pytest.raises(NotFound):
        rack.run(create, replace(first.resource, region_id=rack.id()), first.address)
    rack.run(deletion.soft_delete_volume, snapshot.volume_id, rack.now())
    with pytest.raises(Conflict, match="being deleted"):
        rack.run(create, first.resource, first.address)


def test_a_read_only_region_gets_no_snapshot(rack: Rack) -> None:
    clone = rack.allocate(rack.id(), 1, snapshot_id=rack.id())[0]
    found = RegionSnapshot(clone.dataset_id, clone.region_id, rack.id())
    with pytest.raises(Conflict, match="cannot have a snapshot"):
        rack.run(regions.region_snapshot_create, found, Address.of(clone.ip, 1))


def test_the_port_of_a_region_is_recorded_once(rack: Rack) -> None:
    (region_id, *_) = rack.disk().regions
    port = rack.address_of(region_id).port
    rack.run(regions.region_record_port, region_id, port, rack.now())
    with pytest.raises(Conflict, match=f"listens on port {port}"):
        rack.run(regions.region_record_port, region_id, port + 1, rack.now())
    with pytest.raises(NotFound):
        rack.run(regions.region_record_port, rack.id(), port, rack.now())
