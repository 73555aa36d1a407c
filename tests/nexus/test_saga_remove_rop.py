"""volume-remove-read-only-parent: a volume lets go of what it was copied from (nexus.md §3.10, §9.3)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from uuid import UUID

import pytest
from nexus_rig import Plant, plant
from saga_scaffold import (
    AFTER_EFFECTS,
    Repeat,
    action_failure_can_unwind,
    action_failure_can_unwind_idempotently,
    actions_succeed_idempotently,
    death_at_every_point,
)
from users_rig import HasVolume, delete_disk, delete_snapshot, make_disk, make_snapshot, run, trials

from crucible_emu.volume.vcr import FileRequest, VolumeRequest
from nexus.db import Database, schema
from nexus.saga import SagaFailed
from nexus.sagas import volume_delete
from nexus.sagas.remove_read_only_parent import REMOVE_READ_ONLY_PARENT, Params
from nexus.sagas.volume_delete import VOLUME_DELETE
from nexus.volumes import Deletion, soft_delete_volume, volume_create, volume_get, volume_state, volumes_using
from nexus.volumes.resolution import resources_used_by


async def remove(rack: Plant, volume_id: str) -> bool:
    """Whether there was a parent."""
    params = Params(volume_id=volume_id, temporary_id=rack.id())
    moved = (await run(rack, REMOVE_READ_ONLY_PARENT, params))["REMOVE_ROP"]
    assert rack.run(volume_state, params.temporary_id) is Deletion.HARD_DELETED
    return bool(moved)


def parent(rack: Plant, has: HasVolume) -> object:
    request = rack.run(volume_get, has.volume_id).request
    assert isinstance(request, VolumeRequest)
    return request.read_only_parent


async def test_volume_remove_rop_saga(tmp_path: Path, database: Database) -> None:
    """Also ``…_twice`` and ``…_no_volume``; what only the parent kept is destroyed."""
    async with plant(tmp_path, database) as rack:
        disk = await make_disk(rack)
        snapshot = await make_snapshot(rack, disk)
        over = await make_disk(rack, snapshot)
        await delete_snapshot(rack, snapshot)
        await delete_disk(rack, disk)
        assert rack.count(schema.region) == 6
        assert await remove(rack, over.volume_id)
        assert (rack.count(schema.region), rack.count(schema.region_snapshot)) == (3, 0)
        assert parent(rack, over) is None
        assert not await remove(rack, over.volume_id)
        assert not await remove(rack, rack.id())
        await delete_disk(rack, over)
        await rack.require_empty()


async def test_volume_remove_rop_saga_deleted_volume(tmp_path: Path, in_memory: Database) -> None:
    """It keeps its parent in its document."""
    async with plant(tmp_path, in_memory) as rack:
        disk = await make_disk(rack)
        snapshot = await make_snapshot(rack, disk)
        over = await make_disk(rack, snapshot)
        rack.set(schema.disk, over.id, disk_state="faulted")
        rack.run(soft_delete_volume, over.volume_id, rack.now())
        assert not await remove(rack, over.volume_id)
        assert parent(rack, over) is not None
        for each in (over, disk):
            await delete_disk(rack, each)
        await delete_snapshot(rack, snapshot)
        await rack.require_empty()


async def test_volume_remove_rop_respects_accounting_no_modify_others(tmp_path: Path, in_memory: Database) -> None:
    """Also ``…_respects_accounting``: the snapshot's references stay, and those of another copy."""
    async with plant(tmp_path, in_memory) as rack:
        disk = await make_disk(rack)
        snapshot = await make_snapshot(rack, disk)
        one, other = await make_disk(rack, snapshot), await make_disk(rack, snapshot)
        shared = rack.run(resources_used_by, snapshot.volume_id)
        assert await remove(rack, one.volume_id)
        assert rack.run(resources_used_by, one.volume_id) == []
        for each in shared:
            assert sorted(rack.run(volumes_using, each)) == sorted([snapshot.volume_id, other.volume_id])
        for has in (one, other, disk):
            await delete_disk(rack, has)
        await delete_snapshot(rack, snapshot)
        await rack.require_empty()


async def test_volume_remove_rop_saga_volume_not_volume(tmp_path: Path, in_memory: Database) -> None:
    """A file is no volume, and has no parent."""
    async with plant(tmp_path, in_memory, sleds=1) as rack:
        volume_id = rack.id()
        request = FileRequest(type="file", id=UUID(volume_id), block_size=512, path="/image")
        rack.run(volume_create, volume_id, request, rack.now())
        assert not await remove(rack, volume_id)
        await run(rack, VOLUME_DELETE, volume_delete.Params(volume_id=volume_id))
        await rack.require_empty()


def outside(label: str) -> bool:
    """The nodes of volume-delete have tests of their own."""
    return "/" not in label or label == LAST


async def test_remove_rop_scaffold(tmp_path: Path, in_memory: Database) -> None:
    """Undone or not: the parent is the volume's still, or gone, and its snapshot knows its users."""
    async with plant(tmp_path, in_memory) as rack:
        disk = await make_disk(rack)
        snapshot = await make_snapshot(rack, disk)

        async def prepare() -> tuple[Params, Callable[[], Awaitable[None]]]:
            over = await make_disk(rack, snapshot)

            async def end() -> None:
                users = 1 if parent(rack, over) is None else 2
                assert rack.count(schema.volume_resource_usage) == 3 * users
                await delete_disk(rack, over)
                assert rack.count(schema.volume_resource_usage) == 3
                assert rack.count(schema.volume) == 3 and rack.findings() == []

            return Params(volume_id=over.volume_id, temporary_id=rack.id()), end

        fresh = trials(rack, prepare, empty=False)
        await actions_succeed_idempotently(REMOVE_READ_ONLY_PARENT, fresh)
        await action_failure_can_unwind(REMOVE_READ_ONLY_PARENT, fresh, only=lambda label: label == "REMOVE_ROP")
        await action_failure_can_unwind_idempotently(REMOVE_READ_ONLY_PARENT, fresh, only=outside)
        assert await death_at_every_point(REMOVE_READ_ONLY_PARENT, fresh, only=outside, points=AFTER_EFFECTS) == 5
        assert (
            await death_at_every_point(REMOVE_READ_ONLY_PARENT, fresh, fail_at=LAST, only=first, points=AFTER_EFFECTS)
            == 2
        )
        await delete_disk(rack, disk)
        await delete_snapshot(rack, snapshot)
        await rack.require_empty()


async def test_parent_that_was_the_last_user_is_destroyed_by_the_undo(tmp_path: Path, in_memory: Database) -> None:
    """The deletion of what took the parent over fails half-way: the undo finishes it, for the list of what is to be
    destroyed is nowhere else (W31, W39)."""
    async with plant(tmp_path, in_memory) as rack:
        disk = await make_disk(rack)
        snapshot = await make_snapshot(rack, disk)
        over = await make_disk(rack, snapshot)
        await delete_snapshot(rack, snapshot)
        await delete_disk(rack, disk)
        params = Params(volume_id=over.volume_id, temporary_id=rack.id())
        failing = Repeat(undos=2, fail_at="DELETE_TEMP_VOLUME/DELETE_SNAPSHOTS")
        with pytest.raises(SagaFailed):
            await run(rack, REMOVE_READ_ONLY_PARENT, params, perform=failing)
        assert (rack.count(schema.region), rack.count(schema.region_snapshot)) == (3, 0)
        await delete_disk(rack, over)
        await rack.require_empty()


LAST = "DELETE_TEMP_VOLUME/HARD_DELETE_VOLUME_RECORD"


def first(label: str) -> bool:
    """The node that has an undo."""
    return label == "CREATE_TEMP_VOLUME"
