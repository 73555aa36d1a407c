"""Everything that was on a lost disk, by all seven tasks (nexus.md §9.2 rows 6, 15, 16, 19)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio
from disks_rig import create, read
from frozen_rig import frozen_bytes, ledger, take, written
from nexus_rig import Plant, plant
from read_only_rig import (
    HOLDS,
    SOMETHING,
    Nexus,
    State,
    asks,
    copies,
    nexus_of,
    request,
    require_three_good_copies,
    scene,
    there,
    wait_for_all_replacements,
)
from region_replacement_rig import digests, own_regions, requests, states
from users_rig import HasVolume, delete_disk, delete_snapshot, finish_deletions, make_disk

from nexus.db import Database, schema
from nexus.objects.sources import Blank, FromSnapshot
from nexus.replacement.read_only import read_only_replacement_get, read_only_replacements_in
from nexus.sagas.disk_create import DISK_CREATE, DISK_CREATE_READ_ONLY
from nexus.tasks.read_only_region_replacement_start import lost_read_only_regions
from nexus.tasks.region_replacement import RegionReplacementDetector
from nexus.tasks.region_replacement_driver import RegionReplacementDriver
from nexus.tasks.region_snapshot_replacement_start import lost_region_snapshots
from nexus.volumes import Deletion, find_deleted_volume_regions, volume_state

PATIENCE_S = 60
_REGION, _DATASET, _POOL, _DISK = schema.region, schema.crucible_dataset, schema.zpool, schema.physical_disk


class All:
    """A Nexus with the tasks of every replacement."""

    def __init__(self, rack: Plant, nexus: Nexus) -> None:
        self.rack, self.nexus = rack, nexus
        self.detector = RegionReplacementDetector(rack.world, nexus.executor)
        self.driver = RegionReplacementDriver(rack.world, nexus.executor)

    async def wait_for_all_replacements(self) -> None:
        """Until nothing is on a disk that is lost, and every request is complete."""
        nexus = self.nexus
        read_only = (nexus.start, nexus.collect, nexus.step, nexus.finish, nexus.regions_start)
        with trio.fail_after(PATIENCE_S):
            while True:
                for task in (self.detector, self.driver, *read_only):
                    await nexus.does(task)
                if self.nothing_is_lost() and self.all_complete():
                    return
                await trio.sleep(0.02)

    def nothing_is_lost(self) -> bool:
        on_it = _REGION.select().join(_DATASET, _DATASET.c.id == _REGION.c.dataset_id)
        lost = (
            on_it.join(_POOL, _POOL.c.id == _DATASET.c.pool_id)
            .join(_DISK, _DISK.c.id == _POOL.c.physical_disk_id)
            .where(_DISK.c.disk_policy == "expunged")
        )
        snapshots = self.rack.run(lost_region_snapshots) + self.rack.run(lost_read_only_regions)
        return not snapshots and self.rack.run(lambda c: c.execute(lost).first()) is None

    def all_complete(self) -> bool:
        open_ones = self.rack.run(read_only_replacements_in, tuple(set(State) - {State.COMPLETE}))
        return not open_ones and set(states(self.rack)) <= {"complete"}


@asynccontextmanager
async def all_tasks(rack: Plant) -> AsyncIterator[All]:
    async with nexus_of(rack) as nexus:
        yield All(rack, nexus)


def lose(rack: Plant, dataset_id: str) -> None:
    """The disk is gone for good; what its agent still has is nobody's business."""
    rack.expunge(dataset_id)
    del rack.agents[dataset_id]


def regions(rack: Plant, *region_ids: str | None) -> int:
    return rack.count(_REGION, _REGION.c.id.in_(region_ids))


async def test_racing_replacements_for_soft_deleted_disk_volume(tmp_path: Path, in_memory: Database) -> None:
    """The disk is deleted in the middle of the replacement of its region, and of that region's snapshot: its volume
    stays as long as it owns a region, and goes with the last (R17)."""
    async with plant(tmp_path, in_memory, sleds=5) as rack, all_tasks(rack) as everything:
        nexus = everything.nexus
        disk = await make_disk(rack, name="disk")
        await written(rack, disk, 0, SOMETHING)
        snapshot = await take(rack, disk)
        old = own_regions(rack, disk.volume_id)[0]
        lose(rack, old.dataset_id)
        (lost,) = rack.run(lost_region_snapshots)
        assert lost.region_id == old.region_id
        status = await nexus.does(everything.detector)
        assert 1 <= len(status["requests_created_ok"]) <= 2, "the second of the snapshot's empty volume"
        (row,) = [each for each in requests(rack) if each.old_region_id == old.region_id]
        assert row.state.value == "running"
        (request_id,) = [each.split()[-1] for each in (await nexus.does(nexus.start))["requests_created_ok"]]
        assert (request(rack, request_id).state, request(rack, request_id).old) == (State.REPLACEMENT_DONE, lost)
        assert rack.run(find_deleted_volume_regions).regions == ()

        await delete_disk(rack, disk)
        assert rack.run(volume_state, disk.volume_id) is Deletion.SOFT_DELETED
        await nexus.does(nexus.collect)
        assert [each.resource for each in there(rack, snapshot)].count(lost) == 0
        assert rack.run(volume_state, disk.volume_id) is Deletion.SOFT_DELETED, "two regions are below snapshots"
        assert (regions(rack, old.region_id), regions(rack, row.new_region_id)) == (1, 0)

        assert (await nexus.does(everything.driver))["drive_invoked_ok"]
        await everything.wait_for_all_replacements()
        assert rack.run(read_only_replacement_get, request_id).state is State.COMPLETE
        assert await frozen_bytes(rack, snapshot.volume_id) == HOLDS
        await delete_snapshot(rack, snapshot)
        await finish_deletions(rack)
        assert rack.run(volume_state, disk.volume_id) is Deletion.HARD_DELETED
        await rack.require_empty()


async def test_replacement_sanity(tmp_path: Path, in_memory: Database) -> None:
    """Disk, snapshot, a disk from that; one physical disk is lost, and then every byte is there three times again."""
    async with plant(tmp_path, in_memory, sleds=5, checked=False) as rack, all_tasks(rack) as everything:
        found = await scene(rack)
        lose(rack, found.targets[0].dataset_id)
        await everything.wait_for_all_replacements()
        await require_three_good_copies(rack, found.snapshot)
        for disk in (found.disk, found.copy):
            assert await read(rack, disk) == HOLDS and await digests(rack, disk.volume_id) == []
        await found.delete_copy()
        await found.delete_snapshot()
        await found.delete_disk()
        await rack.require_empty()


async def test_region_replacement_triple_sanity(tmp_path: Path, in_memory: Database) -> None:
    """The disks of all three regions, one after the other: three new regions of the disk, three of the snapshot."""
    async with plant(tmp_path, in_memory, sleds=6, checked=False) as rack, all_tasks(rack) as everything:
        disk = await create(rack, DISK_CREATE, Blank())
        await written(rack, disk, 0, SOMETHING)
        snapshot = await take(rack, disk)
        before = own_regions(rack, disk.volume_id)
        read_only = (_REGION.c.volume_id == snapshot.volume_id, _REGION.c.read_only)
        assert rack.count(_REGION, *read_only) == 0
        for region in before:
            lose(rack, region.dataset_id)
            await everything.wait_for_all_replacements()
        after = own_regions(rack, disk.volume_id)
        assert len(after) == 3 and not {each.region_id for each in after} & {each.region_id for each in before}
        assert rack.count(_REGION, *read_only) == 3
        await require_three_good_copies(rack, snapshot)
        assert await read(rack, disk) == HOLDS and await digests(rack, disk.volume_id) == []
        await delete_disk(rack, disk)
        await delete_snapshot(rack, snapshot)
        await rack.require_empty()


async def test_read_only_replacement_sanity(tmp_path: Path, in_memory: Database) -> None:
    """A read-only disk has the targets in its sub-volumes, a disk over the snapshot in its parent: both are mended, by
    requests for the region snapshots, and when a clone's disk is lost."""
    async with plant(tmp_path, in_memory, sleds=5, checked=False) as rack, all_tasks(rack) as everything:
        found = await scene(rack)
        source = FromSnapshot(snapshot_id=found.snapshot.id)
        read_only = await create(rack, DISK_CREATE_READ_ONLY, source, name="read-only")
        for target in found.targets:
            asks(rack, target)
            await wait_for_all_replacements(rack, everything.nexus)
        clone = there(rack, found.snapshot)[0]
        lose(rack, clone.dataset.id)
        await everything.wait_for_all_replacements()
        assert clone.name not in await copies(rack, found.snapshot)
        await require_three_good_copies(rack, found.snapshot)
        assert ledger(rack, found.snapshot.id)
        assert await frozen_bytes(rack, read_only.volume_id) == HOLDS == await read(rack, found.copy)
        await everything_deleted(rack, found, read_only)


async def everything_deleted(rack: Plant, found: Any, *disks: HasVolume) -> None:
    for disk in disks:
        await delete_disk(rack, disk)
    await found.delete_copy()
    await found.delete_snapshot()
    await found.delete_disk()
    await rack.require_empty()
