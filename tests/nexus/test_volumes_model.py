"""Any sequence of what users and replacements do to volumes, cut between any two transactions.

Sagas are taken apart: a deletion may have marked a volume and not destroyed anything yet, a disk may hold the copy of a
snapshot that it has not recorded yet, a target may have been swapped and be on its way back. After every transaction
the invariants hold (the hook of the rig); in the end everything is deleted, and nothing is left. An example is some
hundred transactions, so there are an eighth of the usual number; ``HYPOTHESIS_PROFILE=long`` draws 625.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import UUID

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from volumes_rig import Disk, Rack, Snapshot, stash

from crucible_emu.volume.vcr import VolumeConstructionRequest
from nexus.db import Database, schema
from nexus.placement import regions_hard_delete
from nexus.volumes import deletion, recorded, resolution, search, walks
from nexus.volumes.checkout import CopyAndModify, ReadOnlyCopy, volume_checkout
from nexus.volumes.freed import CrucibleResources
from nexus.volumes.parents import volume_remove_rop
from nexus.volumes.refusals import ResourceGone, TargetNotFound
from nexus.volumes.replacing import (
    ReadOnlyTarget,
    VolumeRegion,
    VolumeReplaceResult,
    volume_replace_region,
    volume_replace_snapshot,
)
from nexus.volumes.rows import Deletion

T = TypeVar("T")
PICK = st.integers(0, 2**16)
DISKS_MAX, SNAPSHOTS_MAX = 4, 4
DONE = {VolumeReplaceResult.DONE, VolumeReplaceResult.ALREADY_HAPPENED}


@dataclass
class Swap:
    """A read-only target that is being replaced in one volume."""

    volume_id: str
    old: ReadOnlyTarget
    new: ReadOnlyTarget
    stash_id: str


@dataclass
class RegionSwap:
    """A read/write region that is being replaced; the volume is locked meanwhile."""

    disk: Disk
    number: int
    old: VolumeRegion
    new: VolumeRegion


class Volumes(RuleBasedStateMachine):
    """Users, and two families of replacements."""

    @initialize()
    def build(self) -> None:
        self.database = Database.open("sqlite://", inline=True)
        self.rack = Rack(self.database)
        for _ in range(5):
            self.rack.add_sled()
        self.disks: list[Disk] = []
        self.snapshots: list[Snapshot] = []
        self.others: list[str] = []
        self.deleting: list[tuple[str, CrucibleResources]] = []
        self.copied: list[VolumeConstructionRequest] = []
        self.clones: list[tuple[ReadOnlyTarget, ReadOnlyTarget]] = []
        self.swaps: list[Swap] = []
        self.region_swaps: list[RegionSwap] = []

    def run(self, body: Callable[..., T], *args: Any) -> T:
        return self.rack.run(body, *args, self.rack.now())

    def live(self, volume_id: str) -> bool:
        return self.rack.exists(volume_id) is Deletion.LIVE

    # -- users --------------------------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.disks) < DISKS_MAX)
    @rule()
    def blank_disk(self) -> None:
        self.disks.append(self.rack.disk())

    @precondition(lambda self: self.disks and len(self.snapshots) < SNAPSHOTS_MAX)
    @rule(pick=PICK)
    def take_snapshot(self, pick: int) -> None:
        disk = self.disks[pick % len(self.disks)]
        if not any(each.disk is disk for each in self.region_swaps):
            self.snapshots.append(self.rack.snapshot(disk))

    @precondition(lambda self: self.snapshots)
    @rule(pick=PICK)
    def make_image(self, pick: int) -> None:
        self.others.append(self.rack.image(self.snapshots[pick % len(self.snapshots)]))

    @precondition(lambda self: self.snapshots and len(self.disks) + len(self.copied) < DISKS_MAX)
    @rule(pick=PICK)
    def begin_disk_from_snapshot(self, pick: int) -> None:
        source = self.snapshots[pick % len(self.snapshots)].volume_id
        self.copied.append(self.run(volume_checkout, source, ReadOnlyCopy()).request)

    @precondition(lambda self: self.copied)
    @rule(pick=PICK)
    def end_disk_from_snapshot(self, pick: int) -> None:
        """R26: what was copied may be dead by now; then the disk fails, and its regions go."""
        parent = walks.randomized_ids(self.copied.pop(pick % len(self.copied)), self.rack.new_uuid)
        volume_id = self.rack.id()
        regions = [each.region_id for each in self.rack.allocate(volume_id)]
        part = self.rack.region_set([self.rack.address_of(each) for each in regions])
        try:
            self.rack.create(self.rack.volume(part, parent=parent), volume_id)
        except ResourceGone:
            self.destroy(regions)
        else:
            self.disks.append(Disk(volume_id, regions))

    @precondition(lambda self: self.disks)
    @rule(pick=PICK)
    def hand_out(self, pick: int) -> None:
        volume_id = self.disks[pick % len(self.disks)].volume_id
        self.rack.handed_out.note(volume_id, self.run(volume_checkout, volume_id, CopyAndModify()).request)

    @precondition(lambda self: self.disks)
    @rule(pick=PICK)
    def remove_parent(self, pick: int) -> None:
        temporary = self.rack.id()
        self.rack.create(recorded.blank(UUID(temporary)), temporary)
        self.run(volume_remove_rop, self.disks[pick % len(self.disks)].volume_id, temporary)
        self.mark(temporary)

    @precondition(lambda self: self.disks)
    @rule(pick=PICK)
    def delete_disk(self, pick: int) -> None:
        self.mark(self.disks.pop(pick % len(self.disks)).volume_id)

    @precondition(lambda self: self.snapshots)
    @rule(pick=PICK)
    def delete_snapshot(self, pick: int) -> None:
        self.mark(self.snapshots.pop(pick % len(self.snapshots)).volume_id)

    @precondition(lambda self: self.others)
    @rule(pick=PICK)
    def delete_image(self, pick: int) -> None:
        self.mark(self.others.pop(pick % len(self.others)))

    def mark(self, volume_id: str) -> None:
        """The first transaction of a deletion, twice; the rest comes when it comes."""
        found = self.run(deletion.soft_delete_volume, volume_id)
        assert self.run(deletion.soft_delete_volume, volume_id) == found
        self.deleting.append((volume_id, found))

    @precondition(lambda self: self.deleting)
    @rule(pick=PICK)
    def go_on_deleting(self, pick: int) -> None:
        self.rack.finish_delete(*self.deleting.pop(pick % len(self.deleting)))

    def destroy(self, region_ids: list[str]) -> None:
        """The undo of an allocation: those of the regions that are there still."""
        for each in region_ids:
            if self.rack.run(search.region_owner, each) is not None:
                self.rack.give_port(self.rack.address_of(each))
                self.run(regions_hard_delete, [each])

    # -- read-only targets --------------------------------------------------------------------------------------------

    @precondition(lambda self: self.snapshots and len(self.clones) < 2)
    @rule(pick=PICK, member=st.integers(0, 2))
    def clone_target(self, pick: int, member: int) -> None:
        snapshot = self.snapshots[pick % len(self.snapshots)]
        old = snapshot.members[member]
        if len(self.rack.run(resolution.volumes_using, old.resource)) and old not in [each for each, _ in self.clones]:
            new = self.rack.read_only_region(snapshot.volume_id, snapshot.id)
            self.clones.append((old, new))
            self.others.append(self.rack.create(recorded.kept_target(self.rack.new_uuid(), new.address)))

    @precondition(lambda self: self.clones)
    @rule(pick=PICK)
    def swap_target(self, pick: int) -> None:
        old, new = self.clones[pick % len(self.clones)]
        busy = {each.volume_id for each in self.swaps} | {each.stash_id for each in self.swaps}
        users = [each for each in self.rack.run(resolution.volumes_using, old.resource) if each not in busy]
        if not users or self.rack.run(resolution.read_only_target_to_resource, new.address) != new.resource:
            return
        swap = Swap(users[pick % len(users)], old, new, stash(self.rack))
        for wanted in (VolumeReplaceResult.DONE, VolumeReplaceResult.ALREADY_HAPPENED):
            assert self.replace(swap, old, new) is wanted
        self.swaps.append(swap)

    def replace(self, swap: Swap, old: ReadOnlyTarget, new: ReadOnlyTarget) -> VolumeReplaceResult:
        return self.run(volume_replace_snapshot, swap.volume_id, old, new, swap.stash_id)

    @precondition(lambda self: self.swaps)
    @rule(pick=PICK)
    def keep_swap(self, pick: int) -> None:
        self.mark(self.swaps.pop(pick % len(self.swaps)).stash_id)

    @precondition(lambda self: self.swaps)
    @rule(pick=PICK)
    def undo_swap(self, pick: int) -> None:
        """W30, W31, W32: whatever became of the volume, the stash is released, not just dropped."""
        swap = self.swaps.pop(pick % len(self.swaps))
        try:
            done = self.replace(swap, swap.new, swap.old) in DONE
            assert done == self.live(swap.volume_id)
        except TargetNotFound:
            assert self.live(swap.volume_id), "its parent was removed"
        self.mark(swap.stash_id)

    # -- read/write regions -------------------------------------------------------------------------------------------

    @precondition(lambda self: self.disks and len(self.region_swaps) < 2)
    @rule(pick=PICK, number=st.integers(0, 2))
    def swap_region(self, pick: int, number: int) -> None:
        disk = self.disks[pick % len(self.disks)]
        if any(each.disk is disk for each in self.region_swaps):
            return
        (made,) = self.rack.allocate(disk.volume_id, 1)
        new = VolumeRegion(self.rack.id(), made.region_id, self.rack.address_of(made.region_id))
        old = self.rack.region(disk.volume_id, disk.regions[number])
        assert self.run(volume_replace_region, old, new) is VolumeReplaceResult.DONE
        assert self.run(volume_replace_region, old, new) is VolumeReplaceResult.ALREADY_HAPPENED
        disk.regions[number] = new.region_id
        self.region_swaps.append(RegionSwap(disk, number, old, new))

    @precondition(lambda self: self.region_swaps)
    @rule(pick=PICK)
    def keep_region_swap(self, pick: int) -> None:
        self.stash_region(self.region_swaps.pop(pick % len(self.region_swaps)))

    def stash_region(self, swap: RegionSwap) -> None:
        stash_id = swap.new.volume_id
        self.rack.create(recorded.read_write_stash(UUID(stash_id), swap.old.address), stash_id)
        self.mark(stash_id)

    @precondition(lambda self: self.region_swaps)
    @rule(pick=PICK)
    def undo_region_swap(self, pick: int) -> None:
        """W33: of a volume that was deleted meanwhile the swap stands, and the stash has to be made."""
        swap = self.region_swaps.pop(pick % len(self.region_swaps))
        there = VolumeRegion(swap.disk.volume_id, swap.new.region_id, swap.new.address)
        back = VolumeRegion(swap.new.volume_id, swap.old.region_id, swap.old.address)
        if self.run(volume_replace_region, there, back) in DONE:
            swap.disk.regions[swap.number] = swap.old.region_id
            self.destroy([swap.new.region_id])
        else:
            assert self.rack.run(search.region_owner, swap.old.region_id) == swap.new.volume_id
            self.stash_region(swap)

    # -- the end ------------------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        while self.swaps:
            self.keep_swap(0)
        while self.region_swaps:
            self.keep_region_swap(0)
        while self.deleting:
            self.go_on_deleting(0)
        assert self.rack.findings() == [], "at rest everything holds"
        for volume_id in [
            *(each.volume_id for each in self.disks),
            *(each.volume_id for each in self.snapshots),
            *self.others,
        ]:
            self.rack.delete(volume_id)
        self.rack.assert_nothing_left()
        assert self.rack.count(schema.crucible_dataset) == 5
        self.database.close()


TestVolumes = Volumes.TestCase
TestVolumes.settings = settings(max_examples=settings.default.max_examples // 12, stateful_step_count=30)
