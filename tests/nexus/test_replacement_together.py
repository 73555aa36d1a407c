"""Replacements of regions and of read-only targets on one rack, while users delete (nexus.md §9.2, rows 6, 15 to 19).

All seven background tasks run, in the order of §9.1, until nothing that is lost is without a successor.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trio
from disks_rig import create, read
from frozen_rig import frozen_bytes, ledger, take
from nexus_rig import Plant, plant
from read_only_rig import asks, request, require_three_good_copies, there
from region_replacement_rig import (
    PATTERN,
    expect_breaking,
    filled,
    lose,
    own_regions,
    requests,
    require_whole,
)
from users_rig import HasVolume, MadeSnapshot, delete_disk, delete_snapshot, finish_deletions, make_disk

from nexus.api.replacement_documents import LostCopy
from nexus.api.replacement_views import to_do
from nexus.db import Database, schema
from nexus.objects.sources import FromSnapshot
from nexus.placement import AllocatedRegion, regions_of
from nexus.replacement.waits import open_requests
from nexus.saga import Executor, MemoryStore, SagaFailed
from nexus.sagas import ALL_SAGAS
from nexus.sagas.disk_create import DISK_CREATE_READ_ONLY
from nexus.tasks.read_only_region_replacement_start import ReadOnlyRegionReplacementStart
from nexus.tasks.region_replacement import RegionReplacementDetector
from nexus.tasks.region_replacement_driver import RegionReplacementDriver
from nexus.tasks.region_snapshot_replacement_finish import RegionSnapshotReplacementFinish
from nexus.tasks.region_snapshot_replacement_garbage_collection import RegionSnapshotReplacementGarbageCollection
from nexus.tasks.region_snapshot_replacement_start import RegionSnapshotReplacementStart
from nexus.tasks.region_snapshot_replacement_step import RegionSnapshotReplacementStep
from nexus.volumes import Deletion, ReadOnlyRegion, RegionSnapshot, find_deleted_volume_regions, volume_state

PATIENCE_S = 60
STEPS_MAX = 20


@pytest.fixture(autouse=True)
def copies_break(expect_log: Any) -> None:
    expect_breaking(expect_log)


class Everything:
    """A Nexus with all tasks of replacements, which are activated by hand."""

    def __init__(self, rack: Plant, executor: Executor) -> None:
        self.rack, self.executor = rack, executor
        world = rack.world
        self.detect = RegionReplacementDetector(world, executor)
        self.drive = RegionReplacementDriver(world, executor)
        self.start = RegionSnapshotReplacementStart(world, executor)
        self.collect = RegionSnapshotReplacementGarbageCollection(world, executor)
        self.step = RegionSnapshotReplacementStep(world, executor)
        self.finish = RegionSnapshotReplacementFinish(world, executor)
        self.start_regions = ReadOnlyRegionReplacementStart(world)

    async def does(self, task: Any) -> Any:
        """One activation, in which nothing goes wrong, and the sagas that it started."""
        status = await task.activate()
        assert status["errors"] == []
        while self.executor.in_hand:
            with suppress(SagaFailed):
                await self.executor.wait(self.executor.in_hand[0])
        return status

    async def wait_for_all_replacements(self) -> None:
        """Until nothing is on a disk that is lost, and no request is open; it does not look at what was done."""
        tasks = (self.detect, self.drive, self.start, self.collect, self.step, self.finish, self.start_regions)
        with trio.move_on_after(PATIENCE_S):
            while True:
                for task in tasks:
                    await self.does(task)
                if not lost(self.rack) and not self.rack.run(open_requests):
                    return
        pytest.fail(f"lost: {lost(self.rack)}; open: {self.rack.run(open_requests)}")


def lost(rack: Plant) -> list[LostCopy]:
    return list(rack.run(to_do).copies)


@asynccontextmanager
async def rack_of(directory: Path, database: Database, sleds: int = 4) -> AsyncIterator[tuple[Plant, Everything]]:
    """In the end nothing is left of what a test made."""
    async with plant(directory, database, sleds=sleds) as rack, trio.open_nursery() as nursery:
        executor = Executor(nursery, MemoryStore(), ALL_SAGAS, rack.world, "nexus", new_id=rack.id)
        yield rack, Everything(rack, executor)
        await finish_deletions(rack)
        await rack.require_empty()
        assert rack.pantry.ledger.volumes == []


async def disk_and_snapshot(rack: Plant) -> tuple[HasVolume, MadeSnapshot]:
    disk = await create(rack)
    await filled(rack, disk)
    return disk, await take(rack, disk)


def read_only_regions(rack: Plant, snapshot: HasVolume) -> list[AllocatedRegion]:
    return [each for each in rack.run(regions_of, snapshot.volume_id) if each.read_only]


def snapshots_of(disk_regions: list[AllocatedRegion], snapshot: MadeSnapshot) -> list[RegionSnapshot]:
    return [RegionSnapshot(each.dataset_id, each.region_id, snapshot.id) for each in disk_regions]


async def test_racing_replacements_for_soft_deleted_disk_volume(tmp_path: Path, in_memory: Database) -> None:
    """A disk and its snapshot have a copy each on the lost disk. The disk's region is replaced, then the disk is
    deleted, which its snapshot does not allow to go; both replacements come to their end, and the snapshot's takes what
    is left along (the one that the discussion began with)."""
    async with rack_of(tmp_path, in_memory) as (rack, nexus):
        disk, snapshot = await disk_and_snapshot(rack)
        old, *_ = disk_regions = own_regions(rack, disk.volume_id)
        (target, *_) = snapshots_of(disk_regions, snapshot)
        await lose(rack, old)
        kinds = sorted(each.kind for each in lost(rack))
        assert kinds in (["region", "region_snapshot"], ["region", "region", "region_snapshot"])

        assert 1 <= len((await nexus.does(nexus.detect))["requests_created_ok"]) <= 2
        mine = [each for each in requests(rack) if each.volume_id == disk.volume_id]
        assert [each.state.value for each in mine] == ["running"]
        new_region_id = mine[0].new_region_id
        created = (await nexus.does(nexus.start))["requests_created_ok"]
        (snapshot_request_id,) = [each.split()[-1] for each in created]
        found = request(rack, snapshot_request_id)
        assert (found.state.value, found.old) == ("replacement_done", target)
        assert not rack.run(find_deleted_volume_regions).regions

        await delete_disk(rack, disk)
        assert rack.run(volume_state, disk.volume_id) is Deletion.SOFT_DELETED
        await nexus.does(nexus.collect)
        assert rack.count(schema.region_snapshot, schema.region_snapshot.c.region_id == old.region_id) == 0
        assert rack.run(volume_state, disk.volume_id) is Deletion.SOFT_DELETED, "two other region snapshots are there"
        assert rack.count(schema.region, schema.region.c.id == old.region_id) == 1
        assert rack.count(schema.region, schema.region.c.id == new_region_id) == 0

        assert (await nexus.does(nexus.drive))["drive_invoked_ok"]
        (mine_now,) = [each for each in requests(rack) if each.id == mine[0].id]
        assert mine_now.state.value in ("replacement_done", "completing", "complete")
        for _ in range(STEPS_MAX):
            status = await nexus.does(nexus.step)
            if not any(status.values()):
                break
        else:
            pytest.fail("there is always one more step")
        await nexus.does(nexus.finish)
        assert request(rack, snapshot_request_id).state.value == "complete"

        await nexus.wait_for_all_replacements()
        assert await frozen_bytes(rack, snapshot.volume_id) == PATTERN
        await delete_snapshot(rack, snapshot)
        await nexus.wait_for_all_replacements()
        assert rack.run(volume_state, disk.volume_id) is Deletion.HARD_DELETED


async def test_replacement_sanity(tmp_path: Path, in_memory: Database) -> None:
    async with rack_of(tmp_path, in_memory) as (rack, nexus):
        disk, snapshot = await disk_and_snapshot(rack)
        copy = await make_disk(rack, snapshot, name="copy")
        await lose(rack, own_regions(rack, disk.volume_id)[0])
        await nexus.wait_for_all_replacements()
        await require_whole(rack, disk)
        await require_three_good_copies(rack, snapshot)
        await require_whole(rack, copy)
        await delete_disk(rack, disk)
        await delete_snapshot(rack, snapshot)
        await delete_disk(rack, copy)


@pytest.mark.parametrize("two_at_once", [False, True], ids=["one at a time", "two before anything runs"])
async def test_region_replacement_triple_sanity(tmp_path: Path, in_memory: Database, two_at_once: bool) -> None:
    """All three of the first copies are lost in the end, of the disk and of its snapshot."""
    async with rack_of(tmp_path, in_memory, sleds=6) as (rack, nexus):
        disk, snapshot = await disk_and_snapshot(rack)
        first = own_regions(rack, disk.volume_id)
        assert len(first) == 3 and read_only_regions(rack, snapshot) == []
        for number, region in enumerate(first):
            await lose(rack, region)
            if number > 0 or not two_at_once:
                await nexus.wait_for_all_replacements()
        await require_whole(rack, disk)
        await require_three_good_copies(rack, snapshot)
        assert len(read_only_regions(rack, snapshot)) == 3
        after = own_regions(rack, disk.volume_id)
        assert not {each.dataset_id for each in first} & {each.dataset_id for each in after}
        assert not {each.region_id for each in first} & {each.region_id for each in after}
        await delete_disk(rack, disk)
        await delete_snapshot(rack, snapshot)


async def test_read_only_replacement_sanity(tmp_path: Path, in_memory: Database) -> None:
    """A disk that is written and one that is only read, from one snapshot; its three copies are replaced, and then one
    of the clones is lost."""
    async with rack_of(tmp_path, in_memory, sleds=6) as (rack, nexus):
        disk, snapshot = await disk_and_snapshot(rack)
        copy = await make_disk(rack, snapshot, name="copy")
        frozen = await create(rack, DISK_CREATE_READ_ONLY, FromSnapshot(snapshot_id=snapshot.id), name="frozen")
        for target in snapshots_of(own_regions(rack, disk.volume_id), snapshot):
            asks(rack, target)
            await nexus.wait_for_all_replacements()
        clones = read_only_regions(rack, snapshot)
        assert len(clones) == 3
        assert {each.resource for each in there(rack, snapshot)} == {ReadOnlyRegion(each.region_id) for each in clones}
        await lose(rack, clones[0])
        await nexus.wait_for_all_replacements()
        assert clones[0].region_id not in {each.region_id for each in read_only_regions(rack, snapshot)}
        assert ReadOnlyRegion(clones[0].region_id) not in {each.resource for each in there(rack, snapshot)}
        await require_three_good_copies(rack, snapshot)
        assert ledger(rack, snapshot.id)
        assert await read(rack, copy) == await read(rack, frozen) == PATTERN
        assert await frozen_bytes(rack, frozen.volume_id) == PATTERN
        for each in (disk, copy, frozen):
            await delete_disk(rack, each)
        await delete_snapshot(rack, snapshot)
