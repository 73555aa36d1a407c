"""disk-delete: a disk goes, or comes back as a faulted one that can be deleted again (nexus.md §3.12)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
from nexus_rig import Plant, plant
from saga_scaffold import (
    AFTER_EFFECTS,
    SAGA_ID,
    Trial,
    action_failure_can_unwind,
    action_failure_can_unwind_idempotently,
    actions_succeed_idempotently,
    death_at_every_point,
    execute,
)
from users_rig import (
    SIZE_BYTES,
    HasVolume,
    delete_disk,
    delete_snapshot,
    disk_delete_params,
    make_disk,
    make_snapshot,
    nothing,
    reconnect,
    refusing,
    region_rows,
    trials,
)

from nexus.db import Database, schema
from nexus.objects.disks import Disk, disk_get
from nexus.objects.provisioning import provisioned_bytes
from nexus.placement import regions_of
from nexus.saga import Executor, MemoryStore, Point, SagaFailed, SagaState
from nexus.saga.hooks import Crash
from nexus.sagas.disk_delete import DISK_DELETE, Params
from nexus.volumes import Deletion, volume_state

LAST = "DELETE_VOLUME/HARD_DELETE_VOLUME_RECORD"


def found(rack: Plant, disk: HasVolume) -> Disk:
    row: Disk | None = rack.run(disk_get, disk.id)
    assert row is not None
    return row


def outside(label: str) -> bool:
    """The nodes of volume-delete have tests of their own."""
    return "/" not in label or label == LAST


async def deleted(rack: Plant) -> tuple[Params, Callable[[], Awaitable[None]]]:
    """A trial after which the disk must be gone."""
    disk = await make_disk(rack)

    async def end() -> None:
        assert found(rack, disk).deleted

    return disk_delete_params(rack, disk), end


async def faulted(rack: Plant) -> tuple[Params, Callable[[], Awaitable[None]]]:
    """A trial after which the disk must be there, charged for, and deletable."""
    disk = await make_disk(rack)

    async def end() -> None:
        there = found(rack, disk)
        assert not there.deleted and there.operating_saga_id is None
        if there.state != "detached":
            assert (there.state, there.name) == ("faulted", f"deleted-{disk.id}")
        assert rack.run(provisioned_bytes, rack.project_id) == SIZE_BYTES
        assert rack.findings() == []
        await delete_disk(rack, disk)

    return disk_delete_params(rack, disk), end


async def test_disk_delete_basic(tmp_path: Path, database: Database) -> None:
    async with plant(tmp_path, database) as rack:
        disk = await make_disk(rack, name="data")
        await delete_disk(rack, disk)
        assert (found(rack, disk).state, rack.run(volume_state, disk.volume_id)) == ("destroyed", Deletion.HARD_DELETED)
        again = await make_disk(rack, name="data")
        await delete_disk(rack, again)
        await rack.require_empty()


async def test_actions_succeed_idempotently(tmp_path: Path, in_memory: Database) -> None:
    async with plant(tmp_path, in_memory) as rack:
        await actions_succeed_idempotently(DISK_DELETE, trials(rack, lambda: deleted(rack)))


async def test_action_failure_can_unwind(tmp_path: Path, in_memory: Database) -> None:
    async with plant(tmp_path, in_memory) as rack:
        await action_failure_can_unwind(DISK_DELETE, trials(rack, lambda: faulted(rack)), only=outside)


async def test_action_failure_can_unwind_idempotently(tmp_path: Path, in_memory: Database) -> None:
    async with plant(tmp_path, in_memory) as rack:
        await action_failure_can_unwind_idempotently(DISK_DELETE, trials(rack, lambda: faulted(rack)), only=outside)


async def test_death_at_every_point(tmp_path: Path, in_memory: Database) -> None:
    async with plant(tmp_path, in_memory) as rack:
        assert await death_at_every_point(DISK_DELETE, trials(rack, lambda: deleted(rack)), points=AFTER_EFFECTS) >= 10


async def test_death_at_every_point_of_unwinding(tmp_path: Path, in_memory: Database) -> None:
    async with plant(tmp_path, in_memory) as rack:
        fresh = trials(rack, lambda: faulted(rack))
        assert await death_at_every_point(DISK_DELETE, fresh, fail_at=LAST, only=outside, points=AFTER_EFFECTS) >= 5


async def test_disk_that_was_deleted_again_stays_deleted(tmp_path: Path, in_memory: Database) -> None:
    """Between the effect of an undo and its record the user deletes the faulted disk: done again, the undo must not
    bring the disk back, nor charge for it."""
    async with plant(tmp_path, in_memory) as rack:
        disk = await make_disk(rack)
        trial = Trial(rack.world, MemoryStore(), disk_delete_params(rack, disk), nothing, nothing)

        async def begin(executor: Executor) -> None:
            await executor.start(DISK_DELETE, trial.params)

        async def finish(executor: Executor) -> None:
            await executor.take_over("nexus-1")

        async def die(point: Point, saga_id: str, label: str) -> None:
            if (point, label) == (Point.AFTER_UNDO_EFFECT, "DELETE_DISK_RECORD"):
                await delete_disk(rack, disk)
                raise Crash

        with refusing(rack, dataset(rack, disk)):

            async def stop_refusing(point: Point, saga_id: str, label: str) -> None:
                if label == "SPACE_ACCOUNT" and point is Point.BEFORE_UNDO:
                    reconnect(rack, dataset(rack, disk))
                await die(point, saga_id, label)

            await execute(DISK_DELETE, trial, begin, hooks=stop_refusing)
        await execute(DISK_DELETE, trial, finish, executor_id="nexus-2")
        assert (await trial.store.load(SAGA_ID))[0].state is SagaState.UNWOUND
        assert found(rack, disk).deleted
        await rack.require_empty()


def dataset(rack: Plant, disk: HasVolume) -> str:
    region = rack.run(regions_of, disk.volume_id)[0]
    return str(region.dataset_id)


async def test_disk_virtual_provisioning_collection_failed_delete(tmp_path: Path, database: Database) -> None:
    """An agent refuses: the disk is faulted, and charged for until it is deleted once more."""
    async with plant(tmp_path, database) as rack:
        disk = await make_disk(rack, name="data")
        with refusing(rack, dataset(rack, disk)), pytest.raises(SagaFailed, match="not today") as caught:
            await delete_disk(rack, disk)
        assert caught.value.kind == "refused"
        assert (found(rack, disk).state, found(rack, disk).name) == ("faulted", f"deleted-{disk.id}")
        assert rack.run(provisioned_bytes, rack.project_id) == SIZE_BYTES
        assert rack.run(volume_state, disk.volume_id) is Deletion.SOFT_DELETED
        await delete_disk(rack, disk)
        assert rack.run(provisioned_bytes, rack.project_id) == 0
        await rack.require_empty()


async def test_no_halt_disk_delete_one_region_on_expunged_agent(tmp_path: Path, database: Database) -> None:
    """One agent does not answer any more; that its disk is declared lost ends the wait. Its snapshots are given up
    with it."""
    async with plant(tmp_path, database) as rack:
        disk = await make_disk(rack)
        snapshot = await make_snapshot(rack, disk)
        lost = dataset(rack, disk)
        await delete_disk(rack, disk)
        rack.silence(lost)
        ended = trio.Event()

        async def delete() -> None:
            await delete_snapshot(rack, snapshot)
            ended.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(delete)
            with trio.move_on_after(0.3):
                await ended.wait()
            assert not ended.is_set(), "a silent agent is not gone"
            rack.expunge(lost)
            with trio.fail_after(30):
                await ended.wait()
        left = [rack.count(table) for table in (schema.volume, schema.region, schema.region_snapshot)]
        assert left == [0, 0, 0]
        assert {each.split(":")[0] for each in await rack.held()} == {f"dataset {lost}"}, "what is lost is not asked"


async def test_disk_in_use_is_not_deleted(tmp_path: Path, in_memory: Database) -> None:
    async with plant(tmp_path, in_memory, sleds=3) as rack:
        disk = await make_disk(rack)
        for state in ("creating", "import_ready", "finalizing", "maintenance", "attached"):
            instance_id = rack.id() if state == "attached" else None
            rack.set(schema.disk, disk.id, disk_state=state, attach_instance_id=instance_id)
            with pytest.raises(SagaFailed, match=f"cannot be deleted: it is {state}") as caught:
                await delete_disk(rack, disk)
            assert caught.value.kind == "invalid_request"
            assert (found(rack, disk).state, region_rows(rack, disk.volume_id)) == (state, 3)
            assert rack.run(provisioned_bytes, rack.project_id) == SIZE_BYTES


async def test_disk_is_deleted_once(tmp_path: Path, in_memory: Database) -> None:
    """Of two deletions at once one is refused; it unwinds without touching what the other does."""
    async with plant(tmp_path, in_memory) as rack:
        disk = await make_disk(rack)
        refused = []

        async def delete() -> None:
            try:
                await delete_disk(rack, disk)
            except SagaFailed as failure:
                refused.append(failure.kind)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(delete)
            nursery.start_soon(delete)
        assert refused == ["invalid_request"]
        await rack.require_empty()
