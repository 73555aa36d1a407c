"""snapshot-delete: two volumes at once, and nothing to undo (nexus.md §3.14)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from nexus_rig import Plant, plant
from saga_scaffold import AFTER_EFFECTS, action_failure_can_unwind, actions_succeed_idempotently, death_at_every_point
from users_rig import (
    SIZE_BYTES,
    HasVolume,
    delete_disk,
    delete_snapshot,
    finish_deletions,
    make_disk,
    make_snapshot,
    run,
    trials,
)

from nexus.db import Database, schema
from nexus.objects.provisioning import provisioned_bytes
from nexus.objects.snapshots import snapshot_get
from nexus.saga import ActionFailed, SagaFailed
from nexus.sagas.snapshot_delete import SNAPSHOT_DELETE, Params
from nexus.volumes import Deletion, volume_state

SAGA_OF_ITS_OWN = "DELETE_DESTINATION_VOLUME/"
Prepare = Callable[[], Awaitable[tuple[Params, Callable[[], Awaitable[None]]]]]


def outside(label: str) -> bool:
    """The nodes of volume-delete have tests of their own; here it matters that there are two of them."""
    return label == "DELETE_SNAPSHOT_RECORD" or label.endswith("/DECREASE_COUNT")


def one_of(rack: Plant, disk: HasVolume, *, done: bool) -> Prepare:
    """Trials with a snapshot of ``disk`` each, which is gone afterwards; or it is half gone, and the task that resumes
    deletions (W24) does the rest."""

    async def prepare() -> tuple[Params, Callable[[], Awaitable[None]]]:
        snapshot = await make_snapshot(rack, disk)

        async def end() -> None:
            if not done and not rack.run(snapshot_get, snapshot.id).deleted:
                await delete_snapshot(rack, snapshot)
            if not done:
                await finish_deletions(rack)
            assert rack.run(provisioned_bytes, rack.project_id) == SIZE_BYTES
            for volume_id in (snapshot.volume_id, snapshot.destination_volume_id):
                assert rack.run(volume_state, volume_id) is Deletion.HARD_DELETED
            assert rack.count(schema.region) == 3 and rack.findings() == []

        return Params(snapshot_id=snapshot.id), end

    return prepare


async def test_snapshot_delete_scaffold(tmp_path: Path, in_memory: Database) -> None:
    async with plant(tmp_path, in_memory) as rack:
        disk = await make_disk(rack)
        gone, half = (trials(rack, one_of(rack, disk, done=each), empty=False) for each in (True, False))
        await actions_succeed_idempotently(SNAPSHOT_DELETE, gone)
        await action_failure_can_unwind(SNAPSHOT_DELETE, half, only=outside)
        assert await death_at_every_point(SNAPSHOT_DELETE, gone, only=outside, points=AFTER_EFFECTS) == 3
        await delete_disk(rack, disk)
        await rack.require_empty()


async def test_failure_of_one_volume_leaves_the_other_to_be_found(tmp_path: Path, database: Database) -> None:
    """When a branch fails the other may not have begun: both volumes are soft-deleted by then, and found (W24)."""
    async with plant(tmp_path, database) as rack:
        disk = await make_disk(rack)
        snapshot = await make_snapshot(rack, disk)

        async def perform(work: object, vertex: object, context: object) -> object:
            if str(getattr(vertex, "label", "")).startswith(SAGA_OF_ITS_OWN):
                raise ActionFailed("injected", "injected")
            assert callable(work)
            return await work(context)

        with pytest.raises(SagaFailed):
            await run(rack, SNAPSHOT_DELETE, Params(snapshot_id=snapshot.id), perform=perform)
        assert rack.run(volume_state, snapshot.destination_volume_id) is Deletion.SOFT_DELETED
        await finish_deletions(rack)
        await delete_disk(rack, disk)
        await rack.require_empty()


async def test_snapshot_that_is_being_made_is_not_deleted(tmp_path: Path, in_memory: Database) -> None:
    async with plant(tmp_path, in_memory) as rack:
        disk = await make_disk(rack)
        snapshot = await make_snapshot(rack, disk)
        rack.set(schema.snapshot, snapshot.id, state="creating")
        with pytest.raises(SagaFailed, match="is creating") as caught:
            await delete_snapshot(rack, snapshot)
        assert caught.value.kind == "conflict"
        assert rack.run(volume_state, snapshot.volume_id) is Deletion.LIVE
        with pytest.raises(SagaFailed) as caught:
            await delete_snapshot(rack, HasVolume(rack.id(), rack.id()))
        assert caught.value.kind == "not_found"
