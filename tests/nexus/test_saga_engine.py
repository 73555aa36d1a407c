"""The saga engine: forward, unwinding, crashes at every point, hand-over, fences, stuck undos, and no secrets."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from saga_rig import CrashAt, Params, World, nexus, recipe, step

from nexus.saga import (
    Dag,
    Executor,
    Fenced,
    Interrupted,
    MemoryStore,
    Node,
    Parallel,
    Point,
    Saga,
    SagaFailed,
    SagaState,
    SagaStuck,
)
from nexus.saga.events import Event, Kind, SecretInLog, refuse_secrets
from nexus.saga.execution import TRANSITIONS, Execution, ImpossibleEvent, NodeState
from nexus.saga.store import SagaRecord

SAGA = recipe()
LABELS = Dag.of(SAGA).labels
FALLIBLE = ["FIRST", "A1", "A2", "B", "inner/ONE", "inner/LEFT", "inner/RIGHT", "LOOK", "LAST"]
EFFECTS = set(FALLIBLE)


async def run_it(executor: Executor) -> Any:
    return await executor.run(SAGA, Params())


async def start_it(executor: Executor) -> Any:
    return await executor.start(SAGA, Params(), "saga")


async def recover(executor: Executor) -> Any:
    return await executor.recover()


async def take_over(executor: Executor) -> Any:
    return await executor.take_over("nexus-1")


# -- the graph --------------------------------------------------------------------------------------------------------


def test_labels_of_a_sub_saga_carry_its_name_and_depend_on_the_recipe_alone() -> None:
    wanted = [
        *("FIRST", "A1", "A2", "B", "HOLD"),
        *("INNER(params)", "INNER/ONE", "INNER/LEFT", "INNER/RIGHT", "INNER(end)"),
        *("LOOK", "LAST"),
    ]
    assert wanted == LABELS
    assert Dag.of(recipe()).labels == LABELS
    dag = Dag.of(SAGA)
    assert set(dag.vertices["HOLD"].after) == {"A2", "B"}
    assert dag.ancestors("INNER/LEFT") == {*LABELS[:7]} - {"INNER/LEFT"}


def test_two_nodes_of_a_saga_cannot_have_one_name() -> None:
    with pytest.raises(ValueError, match="called A"):
        Saga("twice", Params, step("A"), Parallel(step("A"), step("B")))


# -- forward ----------------------------------------------------------------------------------------------------------


async def test_a_saga_runs_in_order_and_hands_on_what_its_nodes_recorded() -> None:
    store, world = MemoryStore(), World()
    outputs = await nexus(store, world, run_it)
    assert world.effects == EFFECTS
    order = world.order
    assert order[0] == "FIRST" and order[-1] == "LAST"
    assert order.index("A1") < order.index("A2") < order.index("inner/ONE") < order.index("inner/LEFT")
    assert outputs["A2"] == {"made": "A2", "sum": 1 + 2}, "it saw FIRST and A1"
    assert outputs["INNER/ONE"]["sum"] == 2, "a sub-saga has parameters of its own and sees its own nodes"
    (record,) = store.records.values()
    assert record.state is SagaState.DONE


async def test_branches_run_beside_each_other() -> None:
    arrived = {"A": trio.Event(), "B": trio.Event()}

    def meeting(name: str, other: str) -> Node:
        async def act(_: Any) -> None:
            arrived[name].set()
            await arrived[other].wait()

        return Node(name, act)

    saga = Saga("meeting", Params, Parallel(meeting("A", "B"), meeting("B", "A")))

    async def use(executor: Executor) -> Any:
        return await executor.run(saga, Params())

    assert set(await nexus(MemoryStore(), World(), use, saga=saga)) == {"A", "B"}


# -- unwinding --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("failing", FALLIBLE)
async def test_a_failure_anywhere_leaves_nothing_that_can_be_undone(failing: str) -> None:
    store, world = MemoryStore(), World()
    world.fails = {failing}
    with pytest.RaisesGroup(pytest.RaisesExc(SagaFailed, match="cannot be done")) as caught:
        await nexus(store, world, run_it)
    failed = caught.value.exceptions[0]
    assert isinstance(failed, SagaFailed)
    assert (failed.label, failed.kind) == (failing.replace("inner/", "INNER/"), "refused")
    assert world.effects <= {"LOOK"}, "only what has no undo is left"
    assert failing not in world.undone, "its own undo is not run"
    undone = [each.removeprefix("-") for each in world.order if each.startswith("-")]
    done = [each for each in world.order if not each.startswith("-") and each != "LOOK"]
    assert sorted(each for each in undone if each != "HOLD") == sorted(done)
    for first, second in (("FIRST", "A1"), ("A1", "A2"), ("A2", "HOLD"), ("inner/ONE", "inner/LEFT")):
        if first in undone and second in undone:
            assert undone.index(second) < undone.index(first), "in reverse order"
    (record,) = store.records.values()
    assert record.state is SagaState.UNWOUND


async def test_an_unexpected_error_unwinds_and_its_words_are_not_written_down(expect_log: Any) -> None:
    async def leak(_: Any) -> None:
        raise RuntimeError("the key is hunter2")

    saga = Saga("leak", Params, step("FIRST"), Node("LEAK", leak))

    async def use(executor: Executor) -> Any:
        return await executor.run(saga, Params())

    store, world = MemoryStore(), World()
    with expect_log("saga node failed unexpectedly"), pytest.RaisesGroup(SagaFailed):
        await nexus(store, world, use, saga=saga)
    assert not world.effects
    assert "hunter2" not in str(store.logs)


async def test_a_node_about_to_start_does_not_once_another_branch_has_failed() -> None:
    """The race: A2 was decided upon, and before its row is written B fails. A1 must not be undone under A2."""
    store, world = MemoryStore(), World()
    world.fails = {"B"}
    about_to_start, failed = trio.Event(), trio.Event()

    async def hooks(point: Point, saga_id: str, label: str) -> None:
        match point, label:
            case Point.BEFORE_NODE, "A2":
                about_to_start.set()
                await failed.wait()
            case Point.AFTER_EFFECT, "B":
                await about_to_start.wait()
            case Point.AFTER_RECORD, "B":
                failed.set()

    with pytest.RaisesGroup(SagaFailed):
        await nexus(store, world, run_it, hooks=hooks)
    assert "A2" not in world.acted and world.order[-2:] == ["-A1", "-FIRST"]


class SlowStore(MemoryStore):
    """Lets others run before and after each event is written, as a database does."""

    async def append(self, saga_id: str, fence: int, event: Event, state: SagaState) -> None:
        await trio.lowlevel.checkpoint()
        await super().append(saga_id, fence, event, state)
        await trio.lowlevel.checkpoint()


async def test_branches_that_end_while_a_row_is_written_forget_nothing() -> None:
    store, world = SlowStore(), World()
    outputs = await nexus(store, world, run_it)
    assert world.effects == EFFECTS and set(outputs) == set(LABELS)
    (saga_id,) = store.records
    assert Execution.replayed(Dag.of(SAGA), store.logs[saga_id]).state is SagaState.DONE


# -- crashes ----------------------------------------------------------------------------------------------------------


async def count_points(failing: str | None) -> int:
    hooks = CrashAt(-1)
    world = World()
    world.fails = {failing} if failing else set()
    await nexus(MemoryStore(), world, start_it, hooks=hooks)
    return -1 - hooks.left


@pytest.mark.parametrize("who", ["the same Nexus", "another Nexus"])
@pytest.mark.parametrize("failing", [None, "inner/RIGHT", "LAST"])
async def test_death_at_every_point_is_recovered_from(failing: str | None, who: str) -> None:
    points = await count_points(failing)
    assert points > 30
    for at in range(points):
        store, world = MemoryStore(), World()
        world.fails = {failing} if failing else set()
        hooks = CrashAt(at)
        await nexus(store, world, start_it, hooks=hooks)
        assert hooks.where is not None, "it died"
        if who == "the same Nexus":
            found = await nexus(store, world, recover)
        else:
            found = await nexus(store, world, take_over, name="nexus-2")
            assert store.records["saga"].executor_id == ("nexus-2" if found else "nexus-1")
        wanted = SagaState.UNWOUND if failing else SagaState.DONE
        assert store.records["saga"].state is wanted, hooks.where
        left = world.effects - {"LOOK"}
        assert left == (EFFECTS - {"LOOK"} if failing is None else set()), hooks.where
        again = max(world.acted.values())
        assert again <= 2, "a node runs again only where it was not known to have ended"
        log = store.logs["saga"]
        for label in LABELS:
            ends = [event for event in log if event.label == label and event.kind in (Kind.SUCCEEDED, Kind.FAILED)]
            assert len(ends) <= 1


@given(deaths=st.lists(st.integers(0, 40), max_size=6), failing=st.sampled_from([None, *FALLIBLE]))
def test_any_number_of_deaths_ends_in_one_of_the_two_states(deaths: list[int], failing: str | None) -> None:
    async def main() -> None:
        store, world = MemoryStore(), World()
        world.fails = {failing} if failing else set()
        use = start_it
        for number, at in enumerate(deaths):
            await nexus(store, world, use if number == 0 else recover, hooks=CrashAt(at))
        await nexus(store, world, recover if deaths else start_it)
        assert store.records["saga"].state is (SagaState.UNWOUND if failing else SagaState.DONE)
        assert world.effects - {"LOOK"} == (set() if failing else EFFECTS - {"LOOK"})

    trio.run(main)


# -- two that want one saga -------------------------------------------------------------------------------------------


async def test_a_nexus_that_lost_its_saga_gets_no_further_than_the_node_it_is_in() -> None:
    """The race: the other takes the saga over while an action of the first is under way."""
    store, world = MemoryStore(), World()
    taken = trio.Event()
    in_hand = trio.Event()

    async def first_hooks(point: Point, saga_id: str, label: str) -> None:
        if (point, label) == (Point.AFTER_EFFECT, "FIRST"):
            in_hand.set()
            await taken.wait()

    async def second() -> None:
        await in_hand.wait()
        assert await nexus(store, world, take_over, name="nexus-2") == ["saga"]
        taken.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(second)
        await nexus(store, world, start_it, hooks=first_hooks)
    assert store.records["saga"].state is SagaState.DONE
    assert world.acted["FIRST"] == 2 and world.acted["A1"] == 1


async def test_only_one_of_two_takes_a_saga_over() -> None:
    store, world = MemoryStore(), World()
    await nexus(store, world, start_it, hooks=CrashAt(7))
    record = store.records["saga"]
    assert await store.adopt(record, "nexus-2") is not None
    assert await store.adopt(record, "nexus-3") is None
    with pytest.raises(Fenced):
        await store.append("saga", record.fence, Event("FIRST", Kind.STARTED), SagaState.RUNNING)


async def test_a_saga_of_another_recipe_is_left_alone_and_said_so(expect_log: Any) -> None:
    store, world = MemoryStore(), World()
    await store.create(SagaRecord("saga", "outer", {"start": 1}, ("OLD",), SagaState.RUNNING, "nexus-1"))
    with expect_log("saga cannot be gone on with"):
        await nexus(store, world, recover)
    assert store.records["saga"].state is SagaState.STUCK and not world.effects


# -- stuck ------------------------------------------------------------------------------------------------------------


async def test_a_failed_undo_is_stuck_until_somebody_resumes_it(expect_log: Any) -> None:
    store, world = MemoryStore(), World()
    world.fails, world.undo_fails = {"LAST"}, {"A2"}
    with expect_log("saga stuck"), pytest.RaisesGroup(SagaStuck):
        await nexus(store, world, run_it)
    (saga_id,) = store.records
    assert store.records[saga_id].state is SagaState.STUCK
    assert world.effects >= {"FIRST", "A1", "A2"}, "what comes after it in unwinding was not touched"
    assert await nexus(store, world, recover) == [], "it waits for a person"
    world.undo_fails = set()

    async def resume(executor: Executor) -> None:
        await executor.resume(saga_id)

    await nexus(store, world, resume, name="nexus-2")
    assert store.records[saga_id].state is SagaState.UNWOUND
    assert world.effects <= {"LOOK"}


# -- the core ---------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.sampled_from([*LABELS, "NOBODY"]), st.sampled_from(list(Kind))), max_size=40))
def test_any_log_is_a_state_or_impossible(events: list[tuple[str, Kind]]) -> None:
    execution = Execution(Dag.of(SAGA))
    for label, kind in events:
        before = dict(execution.states)
        try:
            execution.apply(Event(label, kind, {"message": "m", "kind": "k"}))
        except ImpossibleEvent:
            assert execution.states == before
        else:
            assert (before[label], kind) in TRANSITIONS
        assert isinstance(execution.state, SagaState)
        assert not (set(execution.next_actions()) & set(execution.next_undos()))


def test_what_is_undone_beside_each_other_is_so_in_the_order_of_the_recipe() -> None:
    """In every process alike, or what was explored could not be run again."""
    names = ("DELTA", "ALPHA", "CHARLIE", "BRAVO", "FOXTROT", "ECHO")
    execution = Execution(Dag.of(Saga("wide", Params, Parallel(*map(step, names)), step("LAST"))))
    for label in (*names, "LAST"):
        execution.apply(Event(label, Kind.STARTED))
        if label != "LAST":
            execution.apply(Event(label, Kind.SUCCEEDED))
    execution.apply(Event("LAST", Kind.FAILED, {"message": "m", "kind": "k"}))
    assert execution.next_undos() == list(names)


def test_every_state_of_a_node_can_be_reached_and_every_event_is_used() -> None:
    assert set(TRANSITIONS.values()) | {NodeState.WAITING} == set(NodeState)
    assert {kind for _, kind in TRANSITIONS} == set(Kind)


@pytest.mark.parametrize(
    "output",
    [
        {"key": "x"},
        {"opts": [{"cert": None, "key_pem": "x"}]},
        {"data": '{"type": "region", "opts": {"key": "abc"}}'},
        ["-----BEGIN PRIVATE KEY-----"],
        {"api_token": "x"},
        {"volume_construction_request": "x"},
    ],
)
def test_a_secret_is_refused_and_not_quoted(output: Any) -> None:
    with pytest.raises(SecretInLog) as caught:
        refuse_secrets(output, "NODE")
    assert "x" not in str(caught.value).replace("NODE", "").split() and "abc" not in str(caught.value)
    refuse_secrets({"key": None, "id": "7", "keys": 3}, "NODE")


async def test_an_output_with_a_secret_fails_its_node(expect_log: Any) -> None:
    async def tell(_: Any) -> Any:
        return {"opts": {"key": "hunter2"}}

    saga = Saga("tell", Params, step("FIRST"), Node("TELL", tell))

    async def use(executor: Executor) -> Any:
        return await executor.run(saga, Params())

    store, world = MemoryStore(), World()
    with expect_log("saga node failed unexpectedly"), pytest.RaisesGroup(SagaFailed):
        await nexus(store, world, use, saga=saga)
    assert "hunter2" not in str(store.logs) and not world.effects


async def test_saga_that_is_just_being_written_down_is_not_run_twice() -> None:
    """Who looks for sagas that nobody runs finds its row before its run has begun."""
    written, go_on = trio.Event(), trio.Event()

    class Slow(MemoryStore):
        async def create(self, record: SagaRecord) -> None:
            await super().create(record)
            written.set()
            await go_on.wait()

    store, world = Slow(), World()

    async def use(executor: Executor) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(executor.start, SAGA, Params())
            await written.wait()
            assert await executor.recover() == []
            go_on.set()

    await nexus(store, world, use)
    assert store.records["saga-0"].state is SagaState.DONE
    assert set(world.acted.values()) == {1}


@pytest.mark.parametrize("failing", [None, "LAST"])
async def test_interruption_is_neither_success_nor_failure(failing: str | None, expect_log: Any) -> None:
    """A node of which nobody knows whether it was done runs again; so does such an undo, and nothing is stuck."""
    interrupted: list[str] = []

    async def perform(work: Any, vertex: Any, context: Any) -> Any:
        result = await work(context)
        if vertex.label == "FIRST" and (work is vertex.undo or failing is None) and not interrupted:
            interrupted.append(vertex.label)
            raise Interrupted("the database was lost")
        return result

    async def use(executor: Executor) -> None:
        with expect_log("saga let go"), pytest.raises(Fenced):
            await run_it(executor)
        assert store.records["saga-0"].state is (SagaState.RUNNING if failing is None else SagaState.UNWINDING)
        assert await executor.recover() == ["saga-0"]

    store, world = MemoryStore(), World()
    world.fails = {failing} if failing else set()
    await nexus(store, world, use, perform=perform)
    assert interrupted
    (record,) = store.records.values()
    assert record.state is (SagaState.DONE if failing is None else SagaState.UNWOUND)
    assert world.effects - {"LOOK"} == (EFFECTS - {"LOOK"} if failing is None else set())
