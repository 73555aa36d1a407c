"""Races of read-only replacement, each named after what happens when (nexus.md §11.4), and what the original gets
wrong (§10.2): there the test does it the original's way as well, and shows what comes of it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from disks_rig import read, standing
from frozen_rig import refused
from nexus_rig import Plant, plant
from read_only_rig import (
    HOLDS,
    Before,
    BeforeRecord,
    Does,
    InPlaceOf,
    Scene,
    State,
    StepState,
    asks,
    finish_test,
    nexus_of,
    request,
    require_three_good_copies,
    scene,
    step,
    steps,
    to_running,
    users,
    wait_for_all_replacements,
)
from sqlalchemy import delete, select
from test_replacement_deletions import remove_parent
from test_saga_snapshot_replacement_start import SAGA as START
from test_saga_snapshot_replacement_start import targets_now
from test_saga_snapshot_replacement_step import SAGA as STEP
from test_saga_snapshot_replacement_step import at_a_step, nothing_left
from users_rig import run

from nexus.db import Database, schema
from nexus.replacement import snapshot_copies
from nexus.replacement.affected import affected_volumes, step_make
from nexus.replacement.clone_source import choose
from nexus.replacement.read_only import target_present
from nexus.replacement.step import InsertStepResult
from nexus.saga import ActionFailed, Context, SagaFailed
from nexus.saga.executor import SagaStuck
from nexus.sagas import region_snapshot_replacement_start as start_saga
from nexus.sagas import target_swap
from nexus.sagas.region_snapshot_replacement_start import Params as StartParams
from nexus.sagas.region_snapshot_replacement_step import Params as StepParams
from nexus.services import World
from nexus.tasks.region_snapshot_replacement_start import lost_region_snapshots

_STEP = schema.region_snapshot_replacement_step


# -- while the clone is made ------------------------------------------------------------------------------------------


async def test_snapshot_deleted_while_its_replacement_is_allocating(tmp_path: Path, in_memory: Database) -> None:
    """The clone is made for the copies that remain; the saga ends well, and nothing was swapped."""
    async with plant(tmp_path, in_memory) as rack:
        found = await scene(rack)
        request_id = asks(rack, found.targets[0])

        async def deletes(_: Context[Any]) -> None:
            await found.delete_snapshot()
            await found.delete_disk()

        outputs = await run(
            rack, START, StartParams(request_id=request_id), perform=Before("VERIFY_NEW_REGION", deletes)
        )
        assert outputs["REPLACE_SNAPSHOT_IN_VOLUME"].startswith("ExistingVolume")
        async with nexus_of(rack) as nexus:
            await finish_test(rack, nexus, request_id)
        assert await read(rack, found.copy) == HOLDS
        await found.delete_copy()
        await rack.require_empty()


async def test_everything_deleted_while_its_replacement_is_allocating(tmp_path: Path, in_memory: Database) -> None:
    """There is nothing left to replace: the saga unwinds, and the next activation of the task finds that."""
    async with plant(tmp_path, in_memory) as rack:
        found = await scene(rack)
        request_id = asks(rack, found.targets[0])
        with refused("gone"):
            perform = Before("CREATE_REPLACE_PARAMS", deletes_everything(found))
            await run(rack, START, StartParams(request_id=request_id), perform=perform)
        async with nexus_of(rack) as nexus:
            assert len((await nexus.does(nexus.start))["requests_completed_ok"]) == 1
        await rack.require_empty()


@pytest.mark.parametrize("label", ["REPLACE_SNAPSHOT_IN_VOLUME", "UPDATE_REQUEST_RECORD"])
async def test_everything_deleted_around_the_swap(tmp_path: Path, in_memory: Database, label: str) -> None:
    """Just before it, there is nothing to be swapped; just after it, the stash holds the last reference. The request
    goes on either way, and what nobody needs goes with it."""
    async with plant(tmp_path, in_memory) as rack:
        found = await scene(rack)
        request_id = asks(rack, found.targets[0])
        await run(rack, START, StartParams(request_id=request_id), perform=Before(label, deletes_everything(found)))
        assert request(rack, request_id).state is State.REPLACEMENT_DONE
        async with nexus_of(rack) as nexus:
            await finish_test(rack, nexus, request_id)
        await rack.require_empty()


async def test_everything_deleted_between_the_swap_and_its_undoing(tmp_path: Path, in_memory: Database) -> None:
    """W30, W31 of the start saga: stash and holder are undone with what they count on."""
    async with plant(tmp_path, in_memory) as rack:
        found = await scene(rack)
        request_id = asks(rack, found.targets[0])
        with refused("injected"):
            perform = InPlaceOf("UPDATE_REQUEST_RECORD", deletes_everything(found))
            await run(rack, START, StartParams(request_id=request_id), perform=perform)
        async with nexus_of(rack) as nexus:
            assert len((await nexus.does(nexus.start))["requests_completed_ok"]) == 1
        await rack.require_empty()


def deletes_everything(found: Scene) -> Does:
    async def deletes(_: Context[Any]) -> None:
        await found.delete_snapshot()
        await found.delete_copy()
        await found.delete_disk()

    return deletes


async def test_snapshot_deleted_between_its_swap_and_the_record_of_that(tmp_path: Path, in_memory: Database) -> None:
    """R22: the node runs again and finds the volume deleted. To fail would leave the stash's reference to nobody."""
    async with plant(tmp_path, in_memory) as rack:
        found = await scene(rack)
        request_id = asks(rack, found.targets[0])

        async def deletes(_: Context[Any]) -> None:
            await found.delete_snapshot()

        perform = BeforeRecord("REPLACE_SNAPSHOT_IN_VOLUME", deletes)
        await run(rack, START, StartParams(request_id=request_id), perform=perform)
        stash_id = request(rack, request_id).old_snapshot_volume_id
        assert stash_id in users(rack, found.targets[0])
        async with nexus_of(rack) as nexus:
            await finish_test(rack, nexus, request_id)
        await found.delete_copy()
        await found.delete_disk()
        await rack.require_empty()


async def test_source_lost_between_the_clone_and_the_record_of_that(
    tmp_path: Path, in_memory: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R37: the node runs again with the source that was written down. To choose anew would ask the agent for another
    region under the same id, which it refuses for good."""
    async with plant(tmp_path, in_memory) as rack:
        found = await scene(rack)
        request_id = asks(rack, found.targets[0])
        before = await standing(rack)

        async def expunges(context: Context[Any]) -> None:
            rack.expunge(context.outputs["GET_CLONE_SOURCE"]["dataset_id"])

        perform = BeforeRecord("NEW_REGION_ENSURE", expunges)
        with monkeypatch.context() as patch:
            patch.setattr(start_saga, "_source", _chosen_anew)
            with refused("refused"):
                await run(rack, START, StartParams(request_id=request_id), perform=perform)
        assert await standing(rack) == before
        lost = [each for each in found.targets if not _in_service(rack, each.dataset_id)]
        for each in lost:
            rack.set(schema.physical_disk, rack.disk_of[each.dataset_id], disk_policy="in_service")
        await run(rack, START, StartParams(request_id=request_id), perform=perform)
        assert request(rack, request_id).state is State.REPLACEMENT_DONE


def _in_service(rack: Plant, dataset_id: str) -> bool:
    disk = schema.physical_disk
    row = rack.run(lambda c: c.execute(select(disk).where(disk.c.id == rack.disk_of[dataset_id])).one())
    return bool(row.disk_policy == "in_service")


def _chosen_anew(connection: Any, saga: Context[Any]) -> Any:
    """What a start saga would do that does not write its choice down."""
    lost = start_saga._lost(connection, saga.params.request_id)
    copies = snapshot_copies.copies_of(connection, lost.snapshot)
    chosen = choose(copies, lost.resource, (), saga.saga_id)
    assert chosen is not None
    return chosen


async def test_another_region_changes_while_a_clone_is_undone(tmp_path: Path, in_memory: Database) -> None:
    """W35: the clone is undone by its id. The original compares the rows of the volume's regions before and after; one
    row that changed meanwhile, and it finds two new ones, undoes neither, and asks for the wrong one ever after."""
    async with plant(tmp_path, in_memory) as rack:
        found = await scene(rack)
        async with nexus_of(rack) as nexus:
            asks(rack, found.targets[0])
            await wait_for_all_replacements(rack, nexus)
        request_id = asks(rack, found.targets[1])
        rows: list[set[Any]] = [_region_rows(rack, found)]
        before = await standing(rack)

        async def changes(_: Context[Any]) -> None:
            (sibling,) = rows[0]
            rack.set(schema.region, sibling.id, time_modified=rack.now())
            rows.append(_region_rows(rack, found))

        with refused("injected"):
            perform = InPlaceOf("NEW_REGION_ENSURE", changes)
            await run(rack, START, StartParams(request_id=request_id), perform=perform)
        assert len(rows[1] - rows[0]) == 2, "what the original would have to choose from"
        assert {each.id for each in _region_rows(rack, found)} == {each.id for each in rows[0]}
        assert await standing(rack) == before


def _region_rows(rack: Plant, found: Scene) -> set[Any]:
    region = schema.region
    query = select(region).where(region.c.volume_id == found.snapshot.volume_id)
    return set(rack.run(lambda c: c.execute(query).all()))


# -- while a step is undone -------------------------------------------------------------------------------------------


async def only_the_row(world: World, stash_id: str) -> None:
    """How the original undoes a stash: its row goes, and nothing else."""
    volume = schema.volume
    await world.database.transact(lambda c: c.execute(delete(volume).where(volume.c.id == stash_id)) and None)


@pytest.mark.parametrize("originally", [False, True])
async def test_stash_of_an_undone_step_lets_go_of_the_successor(
    tmp_path: Path, in_memory: Database, monkeypatch: pytest.MonkeyPatch, originally: bool
) -> None:
    """W30: after the swap back the stash counts on the successor. Did only its row go, the successor would count a
    user too many for ever, and never be freed."""
    async with at_a_step(tmp_path, in_memory) as (found, nexus, step_id):
        rack = found.rack
        in_memory.after_body = None
        if originally:
            monkeypatch.setattr(target_swap, "undo_volume", only_the_row)
        with refused("injected"):
            await run(rack, STEP, StepParams(step_id=step_id), perform=InPlaceOf("NOTIFY_UPSTAIRS", _nothing))
        if originally:
            (finding,) = rack.findings()
            assert "the volume is not there" in finding
            return
        assert rack.findings() == [] and step(rack, step_id).state is StepState.REQUESTED
        await finish_test(rack, nexus, step(rack, step_id).request_id)
        await nothing_left(found)


@pytest.mark.parametrize("originally", [False, True])
async def test_volume_deleted_between_the_swap_and_its_undoing(
    tmp_path: Path, in_memory: Database, monkeypatch: pytest.MonkeyPatch, originally: bool
) -> None:
    """W31: nothing can be swapped back, and the stash has the last reference to the old target."""
    async with at_a_step(tmp_path, in_memory) as (found, nexus, step_id):
        rack, old = found.rack, found.targets[0]
        in_memory.after_body = None
        if originally:
            monkeypatch.setattr(target_swap, "undo_volume", only_the_row)

        async def deletes(_: Context[Any]) -> None:
            await found.delete_copy()

        with refused("injected"):
            await run(rack, STEP, StepParams(step_id=step_id), perform=InPlaceOf("NOTIFY_UPSTAIRS", deletes))
        assert rack.run(target_present, old) is originally, "destroyed with the stash, or never"
        if not originally:
            await finish_test(rack, nexus, step(rack, step_id).request_id)
            await found.delete_snapshot()
            await found.delete_disk()
            await rack.require_empty()


@pytest.mark.parametrize("originally", [False, True])
async def test_parent_removed_between_the_swap_and_its_undoing(
    tmp_path: Path,
    in_memory: Database,
    monkeypatch: pytest.MonkeyPatch,
    expect_log: Callable[..., Any],
    originally: bool,
) -> None:
    """W32: there is nothing to put back, and that is no error. The original's saga is stuck with the volume's lock."""
    async with at_a_step(tmp_path, in_memory) as (found, nexus, step_id):
        rack = found.rack
        if originally:
            monkeypatch.setattr(target_swap, "NOTHING_TO_PUT_BACK", ())
            expect_log("saga node failed unexpectedly")
            expect_log("saga stuck")

        async def removes(_: Context[Any]) -> None:
            await remove_parent(rack, found.copy.volume_id)

        failure = await _failure_of(
            run(rack, STEP, StepParams(step_id=step_id), perform=InPlaceOf("NOTIFY_UPSTAIRS", removes))
        )
        if originally:
            assert isinstance(failure, SagaStuck) and step(rack, step_id).state is StepState.RUNNING
            return
        assert isinstance(failure, SagaFailed) and step(rack, step_id).state is StepState.REQUESTED
        await finish_test(rack, nexus, step(rack, step_id).request_id)
        await nothing_left(found)


async def _nothing(_: Context[Any]) -> None:
    """Nothing else happens."""


async def _failure_of(running: Any) -> BaseException:
    try:
        await running
    except BaseExceptionGroup as group:
        (only,) = group.exceptions
        return only
    except (SagaFailed, SagaStuck) as error:
        return error
    raise AssertionError("it went well")


# -- while a step runs ------------------------------------------------------------------------------------------------


async def test_volume_deleted_between_its_swap_and_the_record_of_that(tmp_path: Path, in_memory: Database) -> None:
    """R21, R22: the node runs again, finds the volume deleted, nobody is told, and the stash frees the old target."""
    async with at_a_step(tmp_path, in_memory) as (found, nexus, step_id):
        rack = found.rack

        async def deletes(_: Context[Any]) -> None:
            await found.delete_copy()

        perform = BeforeRecord("REPLACE_SNAPSHOT_IN_VOLUME", deletes)
        outputs = await run(rack, STEP, StepParams(step_id=step_id), perform=perform)
        assert outputs["REPLACE_SNAPSHOT_IN_VOLUME"].startswith("ExistingVolume")
        assert outputs["NOTIFY_UPSTAIRS"] == "nothing"
        assert users(rack, found.targets[0]) == [step(rack, step_id).old_snapshot_volume_id]
        await finish_test(rack, nexus, step(rack, step_id).request_id)
        await found.delete_snapshot()
        await found.delete_disk()
        await rack.require_empty()


async def test_step_cleaned_up_between_its_end_and_the_record_of_that(tmp_path: Path, in_memory: Database) -> None:
    """The step is another's business by then: the node that runs again finds that it let go of it, and no more. To take
    that for a failure would undo a swap of which the old target is destroyed."""
    async with at_a_step(tmp_path, in_memory) as (found, nexus, step_id):
        rack = found.rack

        async def goes_on(_: Context[Any]) -> None:
            await finish_test(rack, nexus, step(rack, step_id).request_id)

        await run(rack, STEP, StepParams(step_id=step_id), perform=BeforeRecord("UPDATE_STEP_RECORD", goes_on))
        assert step(rack, step_id).state is StepState.VOLUME_DELETED
        assert await read(rack, found.copy) == HOLDS and rack.findings() == []


async def test_request_goes_on_between_its_replacement_and_the_record_of_that(
    tmp_path: Path, in_memory: Database
) -> None:
    """The same of the start saga, whose clone everybody reads from by then."""
    async with plant(tmp_path, in_memory) as rack:
        found = await scene(rack)
        request_id = asks(rack, found.targets[0])
        async with nexus_of(rack) as nexus:

            async def goes_on(_: Context[Any]) -> None:
                await finish_test(rack, nexus, request_id)

            perform = BeforeRecord("UPDATE_REQUEST_RECORD", goes_on)
            await run(rack, START, StartParams(request_id=request_id), perform=perform)
        assert request(rack, request_id).state is State.COMPLETE
        await require_three_good_copies(rack, found.snapshot)


async def test_volume_deleted_before_a_step_swaps_it(tmp_path: Path, in_memory: Database) -> None:
    """The step ends with a stash that names nothing."""
    async with at_a_step(tmp_path, in_memory) as (found, nexus, step_id):
        rack = found.rack

        async def deletes(_: Context[Any]) -> None:
            await found.delete_copy()

        await run(rack, STEP, StepParams(step_id=step_id), perform=Before("REPLACE_SNAPSHOT_IN_VOLUME", deletes))
        assert step(rack, step_id).state is StepState.COMPLETE and not rack.run(target_present, found.targets[0])
        await finish_test(rack, nexus, step(rack, step_id).request_id)


async def test_volume_deleted_before_a_step_is_made_for_it(tmp_path: Path, in_memory: Database) -> None:
    """R19: between the look and the step. R9: nor is one made for a request that does not run."""
    async with plant(tmp_path, in_memory) as rack:
        found = await scene(rack)
        async with nexus_of(rack) as nexus:
            request_id = asks(rack, found.targets[0])
            asked_for = request(rack, request_id)
            made = (rack.world.locks, asked_for, found.copy.volume_id, rack.now())
            assert rack.run(step_make, *made) is None
            await to_running(rack, nexus, request_id)
            assert rack.run(affected_volumes, asked_for) == [found.copy.volume_id]
            await found.delete_copy()
            assert rack.run(step_make, *made) is None and steps(rack) == []
            await finish_test(rack, nexus, request_id)


@pytest.mark.parametrize("originally", [False, True])
async def test_step_task_while_a_stash_names_the_target(tmp_path: Path, in_memory: Database, originally: bool) -> None:
    """W45: the stash of a step that runs is known to be one before it names anything. Originally that is written down
    when the step is complete, and the task makes a step for the stash."""
    async with at_a_step(tmp_path, in_memory) as (found, nexus, step_id):
        rack = found.rack
        result: list[Any] = []

        async def task_runs(context: Context[Any]) -> None:
            stash_id = context.outputs["SET_SAGA_ID"]["stash_id"]
            assert users(rack, found.targets[0]) == [stash_id]
            if originally:
                rack.set(_STEP, step_id, old_snapshot_volume_id=None)
            asked_for = request(rack, step(rack, step_id).request_id)
            result.append(rack.run(step_make, rack.world.locks, asked_for, stash_id, rack.now())[1])
            if originally:
                raise ActionFailed("seen enough", "injected")

        perform = Before("NOTIFY_UPSTAIRS", task_runs)
        if originally:
            with refused("injected"):
                await run(rack, STEP, StepParams(step_id=step_id), perform=perform)
            assert result == [InsertStepResult.INSERTED]
            return
        await run(rack, STEP, StepParams(step_id=step_id), perform=perform)
        assert result == [InsertStepResult.ALREADY_HANDLED]
        await finish_test(rack, nexus, step(rack, step_id).request_id)
        assert len(steps(rack)) == 1


# -- two at once ------------------------------------------------------------------------------------------------------


async def test_two_copies_lost_at_once_are_replaced_one_after_the_other(tmp_path: Path, in_memory: Database) -> None:
    """R3: had both requests gone ahead at once, either would have placed 'one more', and both had the same."""
    async with plant(tmp_path, in_memory, sleds=6, checked=False) as rack:
        found = await scene(rack)
        for target in found.targets[:2]:
            rack.expunge(target.dataset_id)
        async with nexus_of(rack) as nexus:
            first = await nexus.does(nexus.start)
            assert (len(first["requests_created_ok"]), len(first["start_invoked_ok"])) == (1, 1)
            while rack.run(lost_region_snapshots):
                await wait_for_all_replacements(rack, nexus)
                await nexus.does(nexus.start)
            await wait_for_all_replacements(rack, nexus)
        assert len(set(targets_now(found))) == 3 and rack.findings() == []
        assert rack.count(schema.region_snapshot_replacement) == 2


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
async def test_two_nexus_work_on_one_request(tmp_path: Path, database: Database) -> None:
    """R1: each task of both at the same moment. All but one of their sagas end at their first node."""
    async with plant(tmp_path, database, checked=False) as rack:
        found = await scene(rack)
        request_id = asks(rack, found.targets[0])
        async with nexus_of(rack) as one, nexus_of(rack) as other:
            while request(rack, request_id).state is not State.COMPLETE:
                for first, second in zip(one.tasks, other.tasks, strict=True):
                    async with trio.open_nursery() as both:
                        both.start_soon(one.does, first)
                        both.start_soon(other.does, second)
        assert len(steps(rack)) == 1 and rack.count(schema.volume_repair) == 0
        await require_three_good_copies(rack, found.snapshot)
        await nothing_left(found)
