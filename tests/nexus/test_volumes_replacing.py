"""The two replacements, the removal of a parent, the search, and the lock: forward, again, backwards, and too late.

The names are those of the real project's tests (nexus.md §9.3, §9.5).
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv6Address, IPv6Network
from typing import Any
from uuid import UUID

import pytest
from volumes_rig import Disk, Rack, Snapshot, stash

from crucible_emu.volume.vcr import VolumeRequest
from nexus.db import Conflict, Database, NotFound, schema
from nexus.volumes import deletion, recorded, resolution, rows, search, walks
from nexus.volumes.checkout import CopyAndModify, volume_checkout
from nexus.volumes.parents import volume_remove_rop
from nexus.volumes.recorded import Address
from nexus.volumes.refusals import BrokenInvariant, ResourceGone, TargetNotFound
from nexus.volumes.repair_lock import LOCK_CONFLICT, LockHeld, LockResult, TryLocks, held_by, holder
from nexus.volumes.replacing import (
    ReadOnlyTarget,
    VolumeRegion,
    VolumeReplaceResult,
    volume_replace_region,
    volume_replace_snapshot,
)

DONE, ALREADY = VolumeReplaceResult.DONE, VolumeReplaceResult.ALREADY_HAPPENED


@pytest.fixture
def rack(database: Database) -> Rack:
    rack = Rack(database)
    for _ in range(5):
        rack.add_sled()
    return rack


def users(rack: Rack, target: ReadOnlyTarget) -> list[str]:
    return rack.run(resolution.volumes_using, target.resource)


def swap(rack: Rack, volume_id: str, old: ReadOnlyTarget, new: ReadOnlyTarget, stash_id: str) -> VolumeReplaceResult:
    return rack.run(volume_replace_snapshot, volume_id, old, new, stash_id, rack.now())


# -- read/write -------------------------------------------------------------------------------------------------------


class Replacement:
    """A disk with a fourth region, and the stash that will own the old one."""

    def __init__(self, rack: Rack) -> None:
        self.rack = rack
        self.disk = rack.disk()
        self.volume_id = self.disk.volume_id
        self.stash_id = rack.id()
        (new,) = rack.allocate(self.volume_id, 1)
        self.old = rack.region(self.volume_id, self.disk.regions[0])
        self.new = VolumeRegion(self.stash_id, new.region_id, rack.address_of(new.region_id))

    def forward(self) -> VolumeReplaceResult:
        return self.rack.run(volume_replace_region, self.old, self.new, self.rack.now())

    def backward(self) -> VolumeReplaceResult:
        """Region and address exchanged, volumes kept: the stash does not exist yet."""
        existing = replace(self.old, region_id=self.new.region_id, address=self.new.address)
        replacement = replace(self.new, region_id=self.old.region_id, address=self.old.address)
        return self.rack.run(volume_replace_region, existing, replacement, self.rack.now())

    def owners(self) -> tuple[str | None, str | None]:
        return tuple(self.rack.run(search.region_owner, each.region_id) for each in (self.old, self.new))  # type: ignore[return-value]


def test_volume_replace_region(rack: Rack) -> None:
    swapped = Replacement(rack)
    before = rack.request(swapped.volume_id)
    assert isinstance(before, VolumeRequest)
    assert swapped.forward() is DONE
    assert swapped.owners() == (swapped.stash_id, swapped.volume_id)
    after = rack.request(swapped.volume_id)
    assert after == walks.replace_region(before, swapped.old.address, swapped.new.address)
    assert after.sub_volumes[0].gen == 2  # type: ignore[union-attr]
    assert swapped.forward() is ALREADY
    assert rack.request(swapped.volume_id) == after
    assert swapped.backward() is DONE
    assert swapped.owners() == (swapped.volume_id, swapped.stash_id)
    back = rack.request(swapped.volume_id)
    assert back.sub_volumes[0].gen == 3  # type: ignore[union-attr]
    assert walks.read_write_targets(back) == walks.read_write_targets(before)
    assert swapped.backward() is ALREADY


def test_a_replaced_region_is_destroyed_with_its_stash(rack: Rack) -> None:
    swapped = Replacement(rack)
    swapped.forward()
    rack.create(recorded.read_write_stash(UUID(swapped.stash_id), swapped.old.address), swapped.stash_id)
    assert rack.findings() == []
    assert rack.delete(swapped.stash_id).regions == (swapped.old.region_id,)
    rack.delete(swapped.volume_id)
    rack.assert_nothing_left()


def test_a_replaced_region_with_snapshots_goes_with_the_last_of_them(rack: Rack) -> None:
    """R47: the stash stays soft-deleted meanwhile."""
    swapped = Replacement(rack)
    snapshot = rack.snapshot(swapped.disk)
    swapped.forward()
    rack.create(recorded.read_write_stash(UUID(swapped.stash_id), swapped.old.address), swapped.stash_id)
    assert rack.delete(swapped.stash_id).empty
    rack.delete(swapped.volume_id)
    assert rack.exists(swapped.stash_id) is rows.Deletion.SOFT_DELETED
    rack.delete(snapshot.volume_id)
    rack.assert_nothing_left()


def test_replacing_a_region_of_a_deleted_volume(rack: Rack) -> None:
    swapped = Replacement(rack)
    rack.run(deletion.soft_delete_volume, swapped.volume_id, rack.now())
    assert swapped.forward() is VolumeReplaceResult.EXISTING_VOLUME_SOFT_DELETED
    rack.run(deletion.volume_hard_delete, swapped.volume_id)
    assert swapped.forward() is VolumeReplaceResult.EXISTING_VOLUME_HARD_DELETED


def test_a_region_swap_is_refused_when_both_or_neither_are_there(rack: Rack) -> None:
    swapped = Replacement(rack)
    other = rack.region(swapped.volume_id, swapped.disk.regions[1])
    stranger = replace(swapped.old, address=Address.of("fd00::dead", 1))
    with pytest.raises(Conflict, match="names both"):
        rack.run(volume_replace_region, swapped.old, other, rack.now())
    with pytest.raises(TargetNotFound, match="names neither"):
        rack.run(volume_replace_region, stranger, swapped.new, rack.now())
    with pytest.raises(BrokenInvariant, match="no read/write region"):
        rack.run(volume_replace_region, swapped.old, replace(swapped.new, region_id=rack.id()), rack.now())
    assert swapped.owners() == (swapped.volume_id, swapped.volume_id), "what was refused changed nothing"


# -- read-only --------------------------------------------------------------------------------------------------------


def snapshot_and_clone(rack: Rack) -> tuple[Disk, Snapshot, ReadOnlyTarget, str]:
    """A disk, its snapshot, a clone of the first member, and the holder that keeps the clone (R5)."""
    disk = rack.disk()
    snapshot = rack.snapshot(disk)
    clone = rack.read_only_region(snapshot.volume_id, snapshot.id)
    holder_id = rack.id()
    rack.create(recorded.kept_target(UUID(holder_id), clone.address), holder_id)
    return disk, snapshot, clone, holder_id


def test_volume_replace_snapshot(rack: Rack) -> None:
    disk, snapshot, clone, holder_id = snapshot_and_clone(rack)
    user = rack.disk(snapshot.volume_id)
    old, stash_id = snapshot.members[0], stash(rack)
    before = rack.request(user.volume_id)
    assert isinstance(before, VolumeRequest)
    assert swap(rack, user.volume_id, old, clone, stash_id) is DONE
    after = rack.request(user.volume_id)
    assert isinstance(after, VolumeRequest)
    assert after.sub_volumes == before.sub_volumes, "nobody is a writer anew"
    assert after == walks.replace_read_only_target(before, old.address, clone.address)[0]
    assert walks.read_only_targets(rack.request(stash_id)) == [old.address]
    assert users(rack, old) == sorted([snapshot.volume_id, stash_id])
    assert users(rack, clone) == sorted([holder_id, user.volume_id])
    assert swap(rack, user.volume_id, old, clone, stash_id) is ALREADY
    assert swap(rack, user.volume_id, clone, old, stash_id) is DONE
    assert rack.request(user.volume_id) == before
    assert walks.read_only_targets(rack.request(stash_id)) == [clone.address]
    assert users(rack, old) == sorted([snapshot.volume_id, user.volume_id])
    assert users(rack, clone) == sorted([holder_id, stash_id])
    assert swap(rack, user.volume_id, clone, old, stash_id) is ALREADY
    for each in (user.volume_id, disk.volume_id, stash_id, holder_id, snapshot.volume_id):
        rack.delete(each)
    rack.assert_nothing_left()


def test_volume_replace_snapshot_respects_accounting(rack: Rack) -> None:
    _, snapshot, clone, holder_id = snapshot_and_clone(rack)
    old, stash_id = snapshot.members[0], stash(rack)
    swap(rack, snapshot.volume_id, old, clone, stash_id)
    assert (users(rack, old), users(rack, clone)) == ([stash_id], sorted([holder_id, snapshot.volume_id]))
    swap(rack, snapshot.volume_id, clone, old, stash_id)
    assert (users(rack, old), users(rack, clone)) == ([snapshot.volume_id], sorted([holder_id, stash_id]))


def test_read_only_region_reference_counting(rack: Rack) -> None:
    """A whole replacement (§6.2), then snapshot, disk and copy are deleted: the clone goes with the last of them."""
    disk, snapshot, clone, holder_id = snapshot_and_clone(rack)
    copy = rack.disk(snapshot.volume_id)
    old = snapshot.members[0]
    for volume_id in (snapshot.volume_id, copy.volume_id):
        stash_id = stash(rack)
        assert swap(rack, volume_id, old, clone, stash_id) is DONE
        rack.delete(stash_id)
    assert rack.run(resolution.read_only_target_to_resource, old.address) is None, "nobody used it any more"
    rack.delete(holder_id)
    assert users(rack, clone) == sorted([snapshot.volume_id, copy.volume_id])
    for volume_id in (snapshot.volume_id, disk.volume_id):
        rack.delete(volume_id)
        assert rack.run(resolution.read_only_target_to_resource, clone.address) == clone.resource
    rack.delete(copy.volume_id)
    rack.assert_nothing_left()


def test_read_only_region_reference_counting_layers(rack: Rack) -> None:
    disk, snapshot, clone, holder_id = snapshot_and_clone(rack)
    copy = rack.disk(snapshot.volume_id)
    for volume_id in (snapshot.volume_id, copy.volume_id):
        stash_id = stash(rack)
        swap(rack, volume_id, snapshot.members[0], clone, stash_id)
        rack.delete(stash_id)
    rack.delete(holder_id)
    layer = rack.snapshot(copy)
    left = {snapshot.volume_id, copy.volume_id, layer.volume_id}
    assert users(rack, clone) == sorted(left)
    rack.delete(disk.volume_id)
    for volume_id in sorted(left):
        rack.delete(volume_id)
        left.discard(volume_id)
        assert users(rack, clone) == sorted(left)
    rack.assert_nothing_left()


@pytest.mark.parametrize("replaced", [1, 2, 3])
def test_double_layer_with_read_only_region_delete(rack: Rack, replaced: int) -> None:
    """Also ``test_double_layer_snapshot_with_read_only_region_delete_2``: a copy is made after two replacements."""
    disk = rack.disk()
    snapshot = rack.snapshot(disk)
    copies = [rack.disk(snapshot.volume_id)]
    holders = []
    for number in range(replaced):
        clone = rack.read_only_region(snapshot.volume_id, snapshot.id)
        holders.append(rack.create(recorded.kept_target(rack.new_uuid(), clone.address)))
        if number == 1:
            copies.append(rack.disk(snapshot.volume_id))
        for volume_id in [snapshot.volume_id, *(each.volume_id for each in copies)]:
            resource = snapshot.members[number].resource
            if volume_id not in rack.run(resolution.volumes_using, resource):
                continue
            stash_id = stash(rack)
            assert swap(rack, volume_id, snapshot.members[number], clone, stash_id) is DONE
            rack.delete(stash_id)
    for volume_id in (*holders, disk.volume_id, *(each.volume_id for each in copies), snapshot.volume_id):
        assert rack.count(schema.region) > 0
        rack.delete(volume_id)
    rack.assert_nothing_left()


def test_replacing_a_target_of_a_deleted_volume(rack: Rack) -> None:
    _, snapshot, clone, _ = snapshot_and_clone(rack)
    stash_id = stash(rack)
    rack.run(deletion.soft_delete_volume, snapshot.volume_id, rack.now())
    result = swap(rack, snapshot.volume_id, snapshot.members[0], clone, stash_id)
    assert result is VolumeReplaceResult.EXISTING_VOLUME_SOFT_DELETED
    assert walks.read_only_targets(rack.request(stash_id)) == [], "and the stash holds nothing"
    assert swap(rack, rack.id(), *snapshot.members[:2], stash_id) is VolumeReplaceResult.EXISTING_VOLUME_HARD_DELETED


def test_a_target_swap_is_refused_when_both_or_neither_are_there(rack: Rack) -> None:
    _, snapshot, clone, _ = snapshot_and_clone(rack)
    stash_id = stash(rack)
    with pytest.raises(Conflict, match="names both"):
        swap(rack, snapshot.volume_id, snapshot.members[0], snapshot.members[1], stash_id)
    with pytest.raises(TargetNotFound, match="names neither"):
        swap(rack, rack.disk().volume_id, snapshot.members[0], clone, stash_id)


def test_a_parent_that_was_removed_between_swap_and_undo(rack: Rack) -> None:
    """W32: the undo learns that the target is gone, and by which refusal."""
    _, snapshot, clone, _ = snapshot_and_clone(rack)
    user, stash_id, temporary = rack.disk(snapshot.volume_id), stash(rack), rack.id()
    swap(rack, user.volume_id, snapshot.members[0], clone, stash_id)
    rack.create(recorded.blank(UUID(temporary)), temporary)
    assert rack.run(volume_remove_rop, user.volume_id, temporary, rack.now())
    with pytest.raises(TargetNotFound):
        swap(rack, user.volume_id, clone, snapshot.members[0], stash_id)


def test_a_port_that_was_given_away_is_not_taken_for_the_target(rack: Rack) -> None:
    """W55: the race in which an unrelated snapshot gets the port of the target before the swap."""
    disk, snapshot, clone, _ = snapshot_and_clone(rack)
    old, stash_id = snapshot.members[0], stash(rack)
    rack.delete(snapshot.volume_id)
    stranger = rack.snapshot(disk)
    assert stranger.members[0].address == old.address
    before = rack.request(stranger.volume_id)
    with pytest.raises(Conflict, match="the port was given away"):
        swap(rack, stranger.volume_id, old, clone, stash_id)
    assert rack.request(stranger.volume_id) == before


def test_a_dead_replacement_is_refused(rack: Rack) -> None:
    _, snapshot, clone, holder_id = snapshot_and_clone(rack)
    stash_id = stash(rack)
    rack.delete(holder_id)
    with pytest.raises(ResourceGone):
        swap(rack, snapshot.volume_id, snapshot.members[0], clone, stash_id)


def test_what_is_no_stash_is_not_used_as_one(rack: Rack) -> None:
    _, snapshot, clone, _ = snapshot_and_clone(rack)
    other = rack.snapshot(rack.disk())
    with pytest.raises(BrokenInvariant, match="no stash for this"):
        swap(rack, snapshot.volume_id, snapshot.members[0], clone, other.volume_id)
    with pytest.raises(NotFound):
        swap(rack, snapshot.volume_id, snapshot.members[0], clone, rack.id())


# -- removal of the parent --------------------------------------------------------------------------------------------


def blank(rack: Rack) -> str:
    volume_id = rack.id()
    return rack.create(recorded.blank(UUID(volume_id)), volume_id)


def test_volume_remove_read_only_parent_base(rack: Rack) -> None:
    snapshot = rack.snapshot(rack.disk())
    user, temporary = rack.disk(snapshot.volume_id), blank(rack)
    before = rack.request(user.volume_id)
    assert isinstance(before, VolumeRequest)
    assert rack.run(volume_remove_rop, user.volume_id, temporary, rack.now()) is True
    moved = rack.request(temporary)
    assert isinstance(moved, VolumeRequest)
    assert (moved.sub_volumes, moved.read_only_parent) == ((), before.read_only_parent)
    assert rack.run(volume_remove_rop, user.volume_id, temporary, rack.now()) is False
    assert rack.request(temporary) == moved
    rack.delete(temporary)
    assert len(rack.run(resolution.resources_used_by, snapshot.volume_id)) == 3


@pytest.mark.parametrize("which", ["no_parent", "volume_not_volume", "bad_volume", "volume_deleted"])
def test_volume_remove_read_only_parent(rack: Rack, which: str) -> None:
    snapshot = rack.snapshot(rack.disk())
    user = rack.disk(snapshot.volume_id).volume_id
    before: Any = rack.request(user)
    if which == "no_parent":
        user = snapshot.volume_id
    elif which == "volume_not_volume":
        user = rack.id()
        rack.create(recorded.FileRequest(type="file", id=UUID(user), block_size=512, path="image.raw"), user)
    elif which == "bad_volume":
        user = rack.id()
    else:
        rack.run(deletion.soft_delete_volume, user, rack.now())
    temporary = blank(rack)
    assert rack.run(volume_remove_rop, user, temporary, rack.now()) is False
    assert walks.read_only_targets(rack.request(temporary)) == []
    if which == "volume_deleted":
        assert rack.request(user) == before, "it keeps its parent"


def test_volume_remove_rop_respects_accounting(rack: Rack) -> None:
    """Also ``…_no_modify_others``."""
    snapshot = rack.snapshot(rack.disk())
    user, other, temporary = rack.disk(snapshot.volume_id), rack.disk(snapshot.volume_id), blank(rack)
    member = snapshot.members[0]
    assert users(rack, member) == sorted([snapshot.volume_id, user.volume_id, other.volume_id])
    rack.run(volume_remove_rop, user.volume_id, temporary, rack.now())
    assert users(rack, member) == sorted([snapshot.volume_id, temporary, other.volume_id])


def test_a_parent_is_not_put_where_something_is(rack: Rack) -> None:
    snapshot = rack.snapshot(rack.disk())
    user = rack.disk(snapshot.volume_id)
    with pytest.raises(BrokenInvariant, match="cannot take a parent over"):
        rack.run(volume_remove_rop, user.volume_id, rack.image(snapshot), rack.now())


# -- search -----------------------------------------------------------------------------------------------------------


def test_find_volumes_referencing_socket_addr(rack: Rack) -> None:
    disk = rack.disk()
    snapshot = rack.snapshot(disk)
    address = rack.address_of(disk.regions[0])
    assert rack.run(search.find_volumes_referencing_socket_addr, address) == [disk.volume_id]
    for near in (address.port * 10 % 65536, address.port // 10, address.port + 9):
        assert rack.run(search.find_volumes_referencing_socket_addr, Address(address.ip, near)) == []
    read = snapshot.members[0].address
    assert rack.run(search.find_volumes_referencing_socket_addr, read) == [snapshot.volume_id]
    at = rack.run(search.find_volumes_referencing_ipv6_addr, IPv6Address(address.ip))
    assert at == sorted([disk.volume_id, snapshot.volume_id])
    assert rack.run(search.find_volumes_referencing_ipv6_net, IPv6Network("fd00::/16")) == at
    assert rack.run(search.find_volumes_referencing_ipv6_net, IPv6Network("fe80::/16")) == []


def test_a_soft_deleted_volume_is_in_the_scan_and_not_among_the_users(
    rack: Rack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "PAGE_ROWS", 2)
    disk = rack.disk()
    snapshot = rack.snapshot(disk)
    image = rack.image(snapshot)
    member = snapshot.members[0]
    rack.run(deletion.soft_delete_volume, snapshot.volume_id, rack.now())
    found = rack.run(search.find_volumes_referencing_socket_addr, member.address)
    assert found == sorted([snapshot.volume_id, image])
    assert users(rack, member) == [image]
    references = search.volume_references_read_only_target
    assert rack.run(references, snapshot.volume_id, member.address) is True
    assert rack.run(references, disk.volume_id, member.address) is False
    assert rack.run(references, rack.id(), member.address) is None
    assert rack.run(search.region_owner, rack.id()) is None


# -- the lock ---------------------------------------------------------------------------------------------------------


def test_volume_lock_conflict_error_returned(rack: Rack) -> None:
    locks, volume_id, first = TryLocks(), rack.disk().volume_id, rack.id()
    assert rack.run(locks.volume_repair_insert, volume_id, first, rack.now()) is LockResult.TAKEN
    refused = rack.run(locks.volume_repair_insert, volume_id, rack.id(), rack.now())
    assert refused is LockResult.HELD_BY_ANOTHER
    with pytest.raises(LockHeld) as caught:
        refused.require()
    assert isinstance(caught.value, Conflict)
    assert str(caught.value) == LOCK_CONFLICT == "volume repair lock"
    assert [each.repair_id for each in rack.run(held_by, first)] == [first]


def test_volume_lock_should_pass_without_volume(rack: Rack) -> None:
    locks, volume_id, repair_id = TryLocks(), rack.id(), rack.id()
    rack.run(locks.volume_repair_insert, volume_id, repair_id, rack.now()).require()
    found = rack.run(holder, volume_id)
    assert found is not None and found.repair_id == repair_id


def test_volume_lock_relock_allowed(rack: Rack) -> None:
    locks, volume_id, repair_id = TryLocks(), rack.disk().volume_id, rack.id()
    rack.run(locks.volume_repair_insert, volume_id, repair_id, rack.now()).require()
    again = rack.run(locks.volume_repair_insert, volume_id, repair_id, rack.now())
    assert again is LockResult.HAD_IT
    again.require()


def test_a_lock_is_given_back_by_its_holder_alone(rack: Rack) -> None:
    locks, volume_id, repair_id = TryLocks(), rack.id(), rack.id()
    rack.run(locks.volume_repair_insert, volume_id, repair_id, rack.now())
    rack.run(locks.volume_repair_delete, volume_id, rack.id())
    assert rack.run(holder, volume_id) is not None
    for _ in range(2):
        rack.run(locks.volume_repair_delete, volume_id, repair_id)
        assert rack.run(holder, volume_id) is None


def test_a_deleted_volume_is_not_handed_out_while_it_is_replaced(rack: Rack) -> None:
    swapped = Replacement(rack)
    handed = rack.run(volume_checkout, swapped.volume_id, CopyAndModify(), rack.now())
    rack.handed_out.note(swapped.volume_id, handed.request)
    swapped.forward()
    swapped.backward()
    assert rack.run(rack.handed_out.check) == []
