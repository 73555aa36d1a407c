"""Tasks that look after storage (nexus.md §4.8-4.10): ports, phantom disks, decommissioned disks, deletions."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trio
from nexus_rig import Plant, plant
from users_rig import HasVolume, delete_disk, delete_snapshot, make_disk, make_snapshot, refusing, regions

from nexus.db import Database, schema
from nexus.db.sagas import SagaStore
from nexus.objects.disks import disk_get
from nexus.objects.provisioning import charge_disk
from nexus.placement import regions_hard_delete, regions_of
from nexus.saga import Executor, SagaFailed, SagaState
from nexus.sagas import ALL_SAGAS
from nexus.tasks.decommissioned_disk_cleaner import DecommissionedDiskCleaner
from nexus.tasks.lookup_region_port import LookupRegionPort
from nexus.tasks.phantom_disks import PhantomDisks
from nexus.tasks.resume_volume_deletion import ResumeVolumeDeletion
from nexus.volumes import deletion

PATIENCE_S = 20
NAME = "nexus-under-test"


@asynccontextmanager
async def executor(rack: Plant, name: str = NAME) -> AsyncIterator[Executor]:
    """A Nexus that runs sagas, over the rack's database."""
    async with trio.open_nursery() as nursery:
        yield Executor(nursery, SagaStore(rack.database), ALL_SAGAS, rack.world, name, new_id=rack.id)


async def ended(nexus: Executor) -> None:
    """All its sagas have come to their end."""
    with trio.fail_after(PATIENCE_S):
        while nexus.in_hand:
            with suppress(SagaFailed):
                await nexus.wait(nexus.in_hand[0])


# -- lookup_region_port -----------------------------------------------------------------------------------------------


async def test_region_ports_are_asked_for_and_written_down(tmp_path: Path, database: Database) -> None:
    async with plant(tmp_path, database) as rack:
        disk = await make_disk(rack)
        known = {each.region_id: each.port for each in rack.run(regions_of, disk.volume_id)}
        database.after_body = None
        for region_id in known:
            rack.set(schema.region, region_id, port=None)
        first, *others = rack.run(regions_of, disk.volume_id)
        rack.silence(first.dataset_id)
        task = LookupRegionPort(rack.world)
        status = await task.activate()
        assert len(status["found_port_ok"]) == 2
        (error,) = status["errors"]
        assert f"dataset {first.dataset_id}: its agent does not answer" in error
        found = {each.region_id: each.port for each in rack.run(regions_of, disk.volume_id)}
        assert {each: found[each] for each in known if each != first.region_id} == {
            each.region_id: known[each.region_id] for each in others
        }
        rack.expunge(first.dataset_id)
        assert await task.activate() == {"found_port_ok": [], "errors": []}, "nobody is there to be asked"


async def test_region_that_its_agent_does_not_know_is_an_error(tmp_path: Path, sqlite: Database) -> None:
    async with plant(tmp_path, sqlite) as rack:
        (region, *_) = await regions(rack, rack.id())
        sqlite.after_body = None
        rack.set(schema.region, region.region_id, port=None)
        await rack.agents[region.dataset_id].delete_region(region.region_id)
        (error,) = (await LookupRegionPort(rack.world).activate())["errors"]
        assert f"region {region.region_id} is " in error


# -- phantom_disks ----------------------------------------------------------------------------------------------------


async def test_phantom_disk_rename(tmp_path: Path, database: Database) -> None:
    """A disk deleted by half comes back under another name; its own may be another disk's by then."""
    async with plant(tmp_path, database) as rack:
        disk = await make_disk(rack, name="disk")
        await delete_disk(rack, disk)
        task = PhantomDisks(rack.world)
        assert await task.activate() == {"phantom_disk_deleted_ok": 0, "phantom_disk_deleted_err": 0, "errors": []}
        # As an older Nexus left it: paid for, and in nobody's hands.
        size_bytes = rack.run(disk_get, disk.id).size_bytes
        rack.run(charge_disk, disk.id, rack.project_id, size_bytes, rack.now())
        rack.set(schema.disk, disk.id, operating_saga_id=None)
        other = await make_disk(rack, name="disk")
        assert (await task.activate())["phantom_disk_deleted_ok"] == 1
        found = rack.run(disk_get, disk.id)
        assert (found.name, str(found.state), found.deleted) == (f"deleted-{disk.id}", "faulted", False)
        assert (await task.activate())["phantom_disk_deleted_ok"] == 0
        for each in (disk, other):
            await delete_disk(rack, each)
        await rack.require_empty()


async def test_disk_whose_volume_is_there_or_whose_saga_goes_on_is_no_phantom(tmp_path: Path, sqlite: Database) -> None:
    async with plant(tmp_path, sqlite) as rack:
        disk = await make_disk(rack)
        gone = {"disk_state": "destroyed", "time_deleted": rack.now()}
        rack.set(schema.disk, disk.id, **gone)
        assert (await PhantomDisks(rack.world).activate())["phantom_disk_deleted_ok"] == 0
        rack.run(deletion.soft_delete_volume, disk.volume_id, rack.now())
        rack.set(schema.disk, disk.id, operating_saga_id=rack.id())
        assert (await PhantomDisks(rack.world).activate())["phantom_disk_deleted_ok"] == 0
        rack.set(schema.disk, disk.id, operating_saga_id=None)
        assert (await PhantomDisks(rack.world).activate())["phantom_disk_deleted_ok"] == 1


# -- decommissioned_disk_cleaner --------------------------------------------------------------------------------------

NOTHING = {
    "decommissioned": [],
    "found": 0,
    "not_ready_to_be_deleted": 0,
    "deleted": 0,
    "error_count": 0,
    "error": None,
}


async def test_disk_cleanup_ignores_active_disks(tmp_path: Path, database: Database) -> None:
    async with plant(tmp_path, database) as rack:
        assert await DecommissionedDiskCleaner(rack.world).activate() == NOTHING


async def test_disk_cleanup_does_not_clean_disks_with_regions(tmp_path: Path, database: Database) -> None:
    """Nor such with a region's snapshot; and when they have gone it does."""
    async with plant(tmp_path, database) as rack:
        (region, *_) = await regions(rack, rack.id())
        disk_id = rack.disk_of[region.dataset_id]
        rack.set(schema.physical_disk, disk_id, disk_policy="expunged", disk_state="decommissioned")
        task = DecommissionedDiskCleaner(rack.world)
        assert await task.activate() == NOTHING | {"found": 1, "not_ready_to_be_deleted": 1}
        snapshot = {"dataset_id": region.dataset_id, "region_id": region.region_id, "snapshot_id": rack.id()}
        rack.add(schema.region_snapshot, **snapshot, snapshot_addr="[::1]:1", deleting=True)
        rack.run(regions_hard_delete, [region.region_id], rack.now())
        assert await task.activate() == NOTHING | {"found": 1, "not_ready_to_be_deleted": 1}
        rack.run(lambda c: c.execute(schema.region_snapshot.delete()) and None)
        assert await task.activate() == NOTHING | {"found": 1, "deleted": 1}
        assert await task.activate() == NOTHING
        assert rack.count(schema.crucible_dataset, schema.crucible_dataset.c.time_deleted.is_not(None)) == 1


async def test_disk_cleanup_deletes_disks_with_no_regions(tmp_path: Path, database: Database) -> None:
    """An expunged disk with nothing on it is decommissioned first; one with something is not."""
    async with plant(tmp_path, database) as rack:
        made = await regions(rack, rack.id())
        used = {each.dataset_id for each in made}
        (empty,) = rack.disk_of.keys() - used
        rack.expunge(empty)
        rack.expunge(made[0].dataset_id)
        status = await DecommissionedDiskCleaner(rack.world).activate()
        assert status == NOTHING | {"decommissioned": [rack.disk_of[empty]], "found": 1, "deleted": 1}
        gone = schema.crucible_dataset.c.time_deleted.is_not(None)
        assert rack.count(schema.crucible_dataset, gone, schema.crucible_dataset.c.id == empty) == 1


# -- resume_volume_deletion (W24) -------------------------------------------------------------------------------------


async def test_volume_that_a_refusing_agent_left_soft_deleted_is_deleted_in_the_end(
    tmp_path: Path, database: Database
) -> None:
    async with plant(tmp_path, database) as rack:
        disk = await make_disk(rack)
        refuser = rack.run(regions_of, disk.volume_id)[0].dataset_id
        with refusing(rack, refuser):
            async with executor(rack) as nexus:
                task = ResumeVolumeDeletion(rack.world, nexus)
                rack.set(schema.disk, disk.id, disk_state="faulted")
                rack.run(deletion.soft_delete_volume, disk.volume_id, rack.now())
                assert (await task.activate())["started"] == [disk.volume_id]
            assert rack.count(schema.volume) == 1, "the refusal was for good: the saga has ended"
            async with executor(rack) as nexus:
                # A failure that lasts is tried again at growing intervals.
                task = ResumeVolumeDeletion(rack.world, nexus)
                started = []
                for _ in range(12):
                    started.append(len((await task.activate())["started"]))
                    await ended(nexus)
                assert started == [1, 1, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0]
        async with executor(rack) as nexus:
            assert (await ResumeVolumeDeletion(rack.world, nexus).activate())["started"] == [disk.volume_id]
        await delete_disk(rack, disk)
        await rack.require_empty()


async def test_volumes_that_wait_for_snapshots_or_that_a_saga_deletes_are_left_alone(
    tmp_path: Path, sqlite: Database
) -> None:
    async with plant(tmp_path, sqlite) as rack:
        disk = await make_disk(rack)
        snapshot = await make_snapshot(rack, disk)
        await delete_disk(rack, disk)
        assert rack.count(schema.volume, schema.volume.c.id == disk.volume_id) == 1
        async with executor(rack) as nexus:
            task = ResumeVolumeDeletion(rack.world, nexus)
            assert (await task.activate())["started"] == []
            other = await _deleted_by_a_saga_under_way(rack)
            assert (await task.activate())["started"] == [], "somebody else is at it"
            rack.run(lambda c: c.execute(schema.saga.update().values(state="unwound")) and None)
            assert (await task.activate())["started"] == [other.volume_id]
        rack.set(schema.disk, other.id, disk_state="faulted")
        await delete_disk(rack, other)
        await delete_snapshot(rack, snapshot)
        await rack.require_empty()


async def _deleted_by_a_saga_under_way(rack: Plant) -> HasVolume:
    """A disk with a soft-deleted volume, of which a saga of another Nexus speaks."""
    disk = await make_disk(rack)
    rack.set(schema.disk, disk.id, disk_state="faulted")
    rack.run(deletion.soft_delete_volume, disk.volume_id, rack.now())
    rack.add(
        schema.saga,
        name="volume-delete",
        params=f'{{"volume_id": "{disk.volume_id}"}}',
        labels="[]",
        state=SagaState.RUNNING.value,
        executor_id="another",
        fence=0,
        event_count=0,
    )
    return disk


@pytest.fixture
def sqlite() -> Any:
    with Database.open("sqlite://", inline=True) as opened:
        yield opened
