"""The sagas that only take away: garbage-collect, step garbage-collect, finish (§9.6, §9.7).

On requests written by hand, whose volumes name nothing: what deleting a volume destroys has tests of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from nexus_rig import Plant, plant
from read_only_rig import State, StepState, nexus_of, request, step
from saga_scaffold import (
    AFTER_EFFECTS,
    Fresh,
    Trial,
    action_failure_can_unwind_idempotently,
    actions_succeed_idempotently,
    death_at_every_point,
)
from users_rig import make_disk, run

from nexus.db import Database, schema
from nexus.replacement.read_only import require_nothing_left
from nexus.saga import MemoryStore, Saga, SagaFailed
from nexus.sagas import region_snapshot_replacement_finish as finish
from nexus.sagas import region_snapshot_replacement_garbage_collect as collect
from nexus.sagas import region_snapshot_replacement_step_garbage_collect as step_collect
from nexus.sagas.region_snapshot_replacement_finish import REGION_SNAPSHOT_REPLACEMENT_FINISH
from nexus.sagas.region_snapshot_replacement_garbage_collect import REGION_SNAPSHOT_REPLACEMENT_GARBAGE_COLLECT
from nexus.sagas.region_snapshot_replacement_step_garbage_collect import (
    REGION_SNAPSHOT_REPLACEMENT_STEP_GARBAGE_COLLECT,
)
from nexus.volumes import Deletion, recorded, volume_create, volume_state


def blank_volume(rack: Plant) -> str:
    volume_id = rack.id()
    rack.run(volume_create, volume_id, recorded.snapshot_stash(UUID(volume_id)), rack.now())
    return volume_id


def fake_request(rack: Plant, state: State, **changed: Any) -> str:
    """A request whose target is gone, with volumes that name nothing, and the lock of a volume that is not there."""
    request_id = rack.id()
    values = {
        "id": request_id,
        "request_time": rack.now(),
        "replacement_type": "read_only_region",
        "old_region_id": rack.id(),
        "old_snapshot_volume_id": blank_volume(rack),
        "new_region_id": rack.id(),
        "new_region_volume_id": blank_volume(rack),
        "replacement_state": state,
    }
    rack.add(schema.region_snapshot_replacement, **(values | changed))
    rack.run(rack.world.locks.volume_repair_insert, rack.id(), request_id, rack.now())
    return request_id


def fake_step(rack: Plant, request_id: str, state: StepState) -> str:
    step_id = rack.id()
    stash_id = None if state is StepState.REQUESTED else blank_volume(rack)
    if state is StepState.REQUESTED:
        volume_id = rack.id()
        rack.run(rack.world.locks.volume_repair_insert, volume_id, step_id, rack.now())
    values = {"volume_id": rack.id(), "old_snapshot_volume_id": stash_id, "replacement_state": state}
    rack.add(
        schema.region_snapshot_replacement_step, id=step_id, request_id=request_id, request_time=rack.now(), **values
    )
    return step_id


def is_gone(rack: Plant, volume_id: str | None) -> bool:
    return rack.run(volume_state, str(volume_id)) is Deletion.HARD_DELETED


def outside(label: str) -> bool:
    """The nodes of volume-delete have tests of their own."""
    return "/" not in label or label.endswith("/DECREASE_COUNT")


# -- the request's stash ----------------------------------------------------------------------------------------------


async def test_region_snapshot_replacement_garbage_collect_saga(tmp_path: Path, database: Database) -> None:
    """The stash is gone, and the request runs; every way there is a way."""
    async with plant(tmp_path, database) as rack:

        async def fresh() -> Trial:
            request_id = fake_request(rack, State.REPLACEMENT_DONE)
            stash_id = request(rack, request_id).old_snapshot_volume_id

            async def finished() -> None:
                row = request(rack, request_id)
                assert (row.state, row.operating_saga_id) == (State.RUNNING, None) and is_gone(rack, stash_id)

            async def clean() -> None:
                row = request(rack, request_id)
                assert (row.state, row.operating_saga_id) == (State.REPLACEMENT_DONE, None)

            params = collect.Params(request_id=request_id)
            return Trial(rack.world, MemoryStore(), params, finished, clean)

        await every_way(REGION_SNAPSHOT_REPLACEMENT_GARBAGE_COLLECT, fresh)


# -- a step's stash ---------------------------------------------------------------------------------------------------


async def test_region_snapshot_replacement_step_garbage_collect_saga(tmp_path: Path, in_memory: Database) -> None:
    """The stash is gone, and the step's word for that is *volume deleted*."""
    async with plant(tmp_path, in_memory) as rack:
        request_id = fake_request(rack, State.RUNNING)

        async def fresh() -> Trial:
            step_id = fake_step(rack, request_id, StepState.COMPLETE)

            async def finished() -> None:
                assert step(rack, step_id).state is StepState.VOLUME_DELETED
                assert is_gone(rack, step(rack, step_id).old_snapshot_volume_id)

            async def clean() -> None:
                assert step(rack, step_id).state is StepState.COMPLETE

            params = step_collect.Params(step_id=step_id)
            return Trial(rack.world, MemoryStore(), params, finished, clean)

        await every_way(REGION_SNAPSHOT_REPLACEMENT_STEP_GARBAGE_COLLECT, fresh)
        trial = await fresh()
        saga = REGION_SNAPSHOT_REPLACEMENT_STEP_GARBAGE_COLLECT
        await run(rack, saga, trial.params)
        await run(rack, saga, trial.params)
        await trial.finished()


# -- the end ----------------------------------------------------------------------------------------------------------


async def test_region_snapshot_replacement_finish_saga(tmp_path: Path, database: Database) -> None:
    """The holder is gone, the request is complete, and its lock is given back."""
    async with plant(tmp_path, database) as rack:

        async def fresh() -> Trial:
            locks = rack.count(schema.volume_repair)
            request_id = fake_request(rack, State.RUNNING)
            holder_id = request(rack, request_id).new_region_volume_id

            async def finished() -> None:
                row = request(rack, request_id)
                assert (row.state, row.operating_saga_id) == (State.COMPLETE, None) and is_gone(rack, holder_id)
                assert rack.count(schema.volume_repair) == locks

            async def clean() -> None:
                row = request(rack, request_id)
                assert (row.state, row.operating_saga_id) == (State.RUNNING, None)
                assert rack.count(schema.volume_repair) == locks + 1

            return Trial(rack.world, MemoryStore(), finish.Params(request_id=request_id), finished, clean)

        await every_way(REGION_SNAPSHOT_REPLACEMENT_FINISH, fresh)


async def test_finish_needs_both_conditions(tmp_path: Path, in_memory: Database) -> None:
    """R24: neither the missing target nor the missing steps alone is enough, whoever starts the saga."""
    async with plant(tmp_path, in_memory, checked=False) as rack:
        await make_disk(rack)
        region_id = rack.run(lambda c: c.execute(schema.region.select()).first()).id
        with_target = fake_request(rack, State.RUNNING, old_region_id=region_id)
        with pytest.raises(SagaFailed, match="is still there"):
            await run(rack, REGION_SNAPSHOT_REPLACEMENT_FINISH, finish.Params(request_id=with_target))
        with_step = fake_request(rack, State.RUNNING)
        fake_step(rack, with_step, StepState.COMPLETE)
        with pytest.raises(SagaFailed, match="1 steps are not at their end"):
            await run(rack, REGION_SNAPSHOT_REPLACEMENT_FINISH, finish.Params(request_id=with_step))
        assert {request(rack, each).state for each in (with_target, with_step)} == {State.RUNNING}


async def test_done_region_snapshot_replacement_causes_finish(tmp_path: Path, in_memory: Database) -> None:
    """With two steps before their end nothing is finished, with one neither."""
    async with plant(tmp_path, in_memory) as rack, nexus_of(rack) as nexus:
        request_id = fake_request(rack, State.RUNNING)
        steps = [fake_step(rack, request_id, StepState.COMPLETE) for _ in range(2)]
        saga = REGION_SNAPSHOT_REPLACEMENT_STEP_GARBAGE_COLLECT
        for step_id in steps:
            assert (await nexus.does(nexus.finish))["finish_invoked_ok"] == []
            await run(rack, saga, step_collect.Params(step_id=step_id))
        (invoked,) = (await nexus.does(nexus.finish))["finish_invoked_ok"]
        assert invoked.endswith(request_id) and request(rack, request_id).state is State.COMPLETE
        rack.run(require_nothing_left, request_id)


async def test_done_region_snapshot_replacement_causes_garbage_collection(tmp_path: Path, in_memory: Database) -> None:
    async with plant(tmp_path, in_memory) as rack, nexus_of(rack) as nexus:
        request_id = fake_request(rack, State.REPLACEMENT_DONE)
        (requested,) = (await nexus.does(nexus.collect))["garbage_collect_requested"]
        assert requested.endswith(request_id) and request(rack, request_id).state is State.RUNNING


async def test_region_snapshot_replacement_step_task_gc(tmp_path: Path, in_memory: Database) -> None:
    """Complete steps, and no others, are cleaned up."""
    async with plant(tmp_path, in_memory) as rack, nexus_of(rack) as nexus:
        request_id = fake_request(rack, State.RUNNING)
        complete = fake_step(rack, request_id, StepState.COMPLETE)
        status = await nexus.does(nexus.step)
        assert [each.split()[-1] for each in status["step_garbage_collect_invoked_ok"]] == [complete]
        assert step(rack, complete).state is StepState.VOLUME_DELETED
        assert not any((await nexus.does(nexus.step)).values())


async def every_way(saga: Saga, fresh: Fresh) -> None:
    """The scaffold of §9.1, and deaths after every effect."""
    await actions_succeed_idempotently(saga, fresh)
    await action_failure_can_unwind_idempotently(saga, fresh, only=outside)
    await death_at_every_point(saga, fresh, only=outside, points=AFTER_EFFECTS)
