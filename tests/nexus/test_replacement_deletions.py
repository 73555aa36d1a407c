"""Read-only targets are replaced while users delete what refers to them (nexus.md §9.2 rows 7-14, 18 and 20).

Each test ends with nothing left: no row, no lock, and nothing at any agent.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from disks_rig import read
from nexus_rig import Plant, plant
from read_only_rig import (
    HOLDS,
    Nexus,
    Scene,
    State,
    StepState,
    address_of,
    asks,
    finish_test,
    nexus_of,
    request,
    require_three_good_copies,
    scene,
    step,
    steps,
    to_replacement_done,
    to_running,
    users,
    wait_for_all_replacements,
)
from users_rig import delete_image, make_image, run

from nexus.db import Database, schema
from nexus.replacement.affected import step_make
from nexus.replacement.step import InsertStepResult
from nexus.sagas import remove_read_only_parent
from nexus.sagas.remove_read_only_parent import REMOVE_READ_ONLY_PARENT
from nexus.volumes import Deletion, ReadOnlyRegion, volume_state


@asynccontextmanager
async def begun(directory: Path, database: Database) -> AsyncIterator[tuple[Scene, Nexus, str]]:
    """A disk, its snapshot, a disk from that, and a request for the first region snapshot."""
    async with plant(directory, database) as rack:
        found = await scene(rack)
        async with nexus_of(rack) as nexus:
            request_id = asks(rack, found.targets[0])
            assert request(rack, request_id).state is State.REQUESTED
            assert users(rack, found.targets[0]) == sorted([found.snapshot.volume_id, found.copy.volume_id])
            yield found, nexus, request_id


async def manual_step(found: Scene, request_id: str) -> str:
    """A step for the disk that was made of the snapshot."""
    rack = found.rack
    made = rack.run(step_make, rack.world.locks, request(rack, request_id), found.copy.volume_id, rack.now())
    assert made is not None and made[1] is InsertStepResult.INSERTED
    return str(made[0])


async def remove_parent(rack: Plant, volume_id: str) -> None:
    params = remove_read_only_parent.Params(volume_id=volume_id, temporary_id=rack.id())
    await run(rack, REMOVE_READ_ONLY_PARENT, params)


async def test_region_snapshot_is_replaced_everywhere(tmp_path: Path, database: Database) -> None:
    """Nobody deletes anything: three good copies of the snapshot, and whoever reads it reads the same."""
    async with begun(tmp_path, database) as (found, nexus, request_id):
        rack = found.rack
        await to_running(rack, nexus, request_id)
        await finish_test(rack, nexus, request_id)
        await require_three_good_copies(rack, found.snapshot)
        assert await read(rack, found.copy) == HOLDS
        await found.delete_copy()
        await found.delete_snapshot()
        await found.delete_disk()
        await rack.require_empty()


async def test_delete_volume_region_snapshot_replacement_state_requested(tmp_path: Path, in_memory: Database) -> None:
    """The start saga runs although the snapshot's volume is gone: its copy needs the successor all the same."""
    async with begun(tmp_path, in_memory) as (found, nexus, request_id):
        rack = found.rack
        await found.delete_snapshot()
        assert rack.run(volume_state, found.snapshot.volume_id) is Deletion.HARD_DELETED
        await finish_test(rack, nexus, request_id)
        assert len(users(rack, ReadOnlyRegion(request(rack, request_id).new_region_id or ""))) == 1
        assert await read(rack, found.copy) == HOLDS
        await found.delete_disk()
        await found.delete_copy()
        await rack.require_empty()


async def test_delete_volume_region_snapshot_replacement_state_requested_2(tmp_path: Path, in_memory: Database) -> None:
    async with begun(tmp_path, in_memory) as (found, nexus, request_id):
        rack = found.rack
        await found.delete_snapshot()
        await found.delete_disk()
        await finish_test(rack, nexus, request_id)
        assert await read(rack, found.copy) == HOLDS
        await found.delete_copy()
        await rack.require_empty()


async def test_delete_volume_region_snapshot_replacement_state_requested_3(tmp_path: Path, in_memory: Database) -> None:
    """Nothing is left to replace: the request is complete without a saga."""
    async with begun(tmp_path, in_memory) as (found, nexus, request_id):
        rack = found.rack
        await found.delete_snapshot()
        await found.delete_disk()
        await found.delete_copy()
        status = await nexus.does(nexus.start)
        assert (len(status["requests_completed_ok"]), status["start_invoked_ok"]) == (1, [])
        assert request(rack, request_id).state is State.COMPLETE
        await finish_test(rack, nexus, request_id)
        await rack.require_empty()


async def test_delete_volume_region_snapshot_replacement_state_replacement_done(
    tmp_path: Path, in_memory: Database
) -> None:
    """R5: only the holder volume counts on the successor when the snapshot goes, and the copy still needs it."""
    async with begun(tmp_path, in_memory) as (found, nexus, request_id):
        rack = found.rack
        await to_replacement_done(rack, nexus, request_id)
        successor = ReadOnlyRegion(request(rack, request_id).new_region_id or "")
        assert len(users(rack, successor)) == 2
        await found.delete_snapshot()
        await found.delete_disk()
        assert users(rack, successor) == [request(rack, request_id).new_region_volume_id]
        await finish_test(rack, nexus, request_id)
        assert await read(rack, found.copy) == HOLDS
        await found.delete_copy()
        await rack.require_empty()


async def test_delete_volume_region_snapshot_replacement_state_running(tmp_path: Path, in_memory: Database) -> None:
    async with begun(tmp_path, in_memory) as (found, nexus, request_id):
        rack = found.rack
        await to_running(rack, nexus, request_id)
        await found.delete_snapshot()
        await found.delete_disk()
        await finish_test(rack, nexus, request_id)
        assert await read(rack, found.copy) == HOLDS
        await found.delete_copy()
        await rack.require_empty()


async def test_delete_volume_region_snapshot_replacement_step(tmp_path: Path, in_memory: Database) -> None:
    """R20: a step whose volume is deleted before anybody began with it is given up, and with it the volume's lock."""
    async with begun(tmp_path, in_memory) as (found, nexus, request_id):
        rack = found.rack
        await to_running(rack, nexus, request_id)
        step_id = await manual_step(found, request_id)
        await found.delete_copy()
        status = await nexus.does(nexus.step)
        assert [each.split()[-1] for each in status["step_set_volume_deleted_ok"]] == [step_id]
        assert step(rack, step_id).state is StepState.VOLUME_DELETED
        await finish_test(rack, nexus, request_id)
        assert len(steps(rack)) == 1
        await found.delete_disk()
        await found.delete_snapshot()
        await rack.require_empty()


async def test_region_snapshot_replacement_step_after_rop_remove(tmp_path: Path, in_memory: Database) -> None:
    """R23: a step whose volume has let go of its parent is given up."""
    async with begun(tmp_path, in_memory) as (found, nexus, request_id):
        rack = found.rack
        await to_running(rack, nexus, request_id)
        step_id = await manual_step(found, request_id)
        await remove_parent(rack, found.copy.volume_id)
        await finish_test(rack, nexus, request_id)
        assert step(rack, step_id).state is StepState.VOLUME_DELETED
        assert step(rack, step_id).old_snapshot_volume_id is None
        await found.delete_copy()
        await found.delete_disk()
        await found.delete_snapshot()
        await rack.require_empty()


async def test_region_snapshot_replacement_step_after_rop_remove_target_gone(
    tmp_path: Path, in_memory: Database
) -> None:
    """The parent that is removed was the last to name the target."""
    async with begun(tmp_path, in_memory) as (found, nexus, request_id):
        rack = found.rack
        await to_running(rack, nexus, request_id)
        step_id = await manual_step(found, request_id)
        await found.delete_disk()
        await found.delete_snapshot()
        await remove_parent(rack, found.copy.volume_id)
        assert address_of(rack, found.targets[0]) is None
        await finish_test(rack, nexus, request_id)
        assert step(rack, step_id).state is StepState.VOLUME_DELETED
        await found.delete_copy()
        await rack.require_empty()


async def test_replacement_sanity_twice(tmp_path: Path, in_memory: Database) -> None:
    await replaced_twice(tmp_path, in_memory, snapshot_deleted=False)


async def test_replacement_sanity_twice_after_snapshot_delete(tmp_path: Path, in_memory: Database) -> None:
    """The snapshot's volume has no row: the lock, the places and the request are found without it (R4, R40)."""
    await replaced_twice(tmp_path, in_memory, snapshot_deleted=True)


async def replaced_twice(directory: Path, database: Database, *, snapshot_deleted: bool) -> None:
    """All three region snapshots, and then the three regions that came in their place."""
    async with plant(directory, database, checked=False) as rack:
        found = await scene(rack)
        if snapshot_deleted:
            image = await make_image(rack, found.snapshot)
            await found.delete_snapshot()
            assert rack.run(volume_state, found.snapshot.volume_id) is Deletion.HARD_DELETED
        async with nexus_of(rack) as nexus:
            regions = []
            for target in found.targets:
                request_id = asks(rack, target)
                await wait_for_all_replacements(rack, nexus)
                regions.append(ReadOnlyRegion(request(rack, request_id).new_region_id or ""))
            await require_three_good_copies(rack, found.snapshot)
            for region in regions:
                asks(rack, region)
                await wait_for_all_replacements(rack, nexus)
        await require_three_good_copies(rack, found.snapshot)
        read_only = schema.region.c.read_only & (schema.region.c.volume_id == found.snapshot.volume_id)
        assert rack.count(schema.region, read_only) == 3
        assert await read(rack, found.copy) == HOLDS
        if snapshot_deleted:
            await delete_image(rack, image)
        else:
            await found.delete_snapshot()
        await found.delete_copy()
        await found.delete_disk()
        await rack.require_empty()
