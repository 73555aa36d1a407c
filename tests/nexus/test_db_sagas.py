"""Sagas over a database: what the engine's tests show with its model in memory holds here too; and leases."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import pytest
import trio
from db_rig import EPOCH, open_database
from hypothesis import given, settings
from hypothesis import strategies as st
from saga_rig import CrashAt, Params, World, nexus, recipe
from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from nexus.db import Database
from nexus.db.sagas import Leases, SagaStore, database_clock
from nexus.db.schema.sagas import StoredEventKind, StoredSagaState
from nexus.saga import Dag, Executor, Fenced, MemoryStore, Point, SagaRecord, SagaState, SagaStuck, Store
from nexus.saga.events import Event, Kind

SAGA = recipe()
LABELS = Dag.of(SAGA).labels
FALLIBLE = ["FIRST", "A1", "A2", "B", "inner/ONE", "inner/LEFT", "inner/RIGHT", "LOOK", "LAST"]
EFFECTS = set(FALLIBLE)


async def start_it(executor: Executor) -> Any:
    return await executor.start(SAGA, Params(), "saga")


async def recover(executor: Executor) -> Any:
    return await executor.recover()


async def take_over(executor: Executor) -> Any:
    return await executor.take_over("nexus-1")


def record(name: str = "saga", executor: str = "nexus-1") -> SagaRecord:
    return SagaRecord(name, "outer", {"start": 1}, ("FIRST", "LAST"), SagaState.RUNNING, executor)


# -- the store's contract, which the model in memory keeps as well ----------------------------------------------------


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    if request.param == "memory":
        yield MemoryStore()
        return
    in_memory = request.param == "sqlite"
    url = "sqlite://" if in_memory else request.getfixturevalue("postgres_url")
    with open_database(url, inline=in_memory) as database:
        yield SagaStore(database)


async def test_what_is_written_is_read(store: Store) -> None:
    await store.create(record())
    await store.create(SagaRecord("saga", "another", {}, (), SagaState.DONE, "nexus-2"))
    events = [
        Event("FIRST", Kind.STARTED),
        Event("FIRST", Kind.SUCCEEDED, {"ids": ["a", "\u0000é"], "none": None}),
        Event("LAST", Kind.FAILED, {"message": "no", "kind": "refused"}),
    ]
    for event in events:
        await store.append("saga", 0, event, SagaState.UNWINDING)
    found, log = await store.load("saga")
    assert found == SagaRecord("saga", "outer", {"start": 1}, ("FIRST", "LAST"), SagaState.UNWINDING, "nexus-1", 0)
    assert list(log) == events
    with pytest.raises(KeyError):
        await store.load("nobody")
    with pytest.raises(KeyError):
        await store.append("nobody", 0, events[0], SagaState.RUNNING)


async def test_who_has_lost_a_saga_cannot_write(store: Store) -> None:
    await store.create(record())
    taken = await store.adopt(record(), "nexus-2")
    assert taken is not None and (taken.executor_id, taken.fence) == ("nexus-2", 1)
    assert await store.adopt(record(), "nexus-3") is None
    for write in (
        lambda: store.append("saga", 0, Event("FIRST", Kind.STARTED), SagaState.RUNNING),
        lambda: store.set_state("saga", 0, SagaState.DONE),
    ):
        with pytest.raises(Fenced, match="gone over to nexus-2"):
            await write()
    found, log = await store.load("saga")
    assert found.state is SagaState.RUNNING and not log
    await store.append("saga", 1, Event("FIRST", Kind.STARTED), SagaState.RUNNING)


async def test_what_an_action_does_for_a_saga_that_it_has_lost_changes_no_row(database: Database) -> None:
    store, noted = SagaStore(database), record("noted")
    await store.create(record())
    given = store.world_of(record(), database)
    await SagaStore(given).create(noted)
    await store.adopt(record(), "nexus-2")
    with pytest.raises(Fenced, match="gone over"):
        await SagaStore(given).create(record("too-late"))
    assert {each.id for each in await store.unfinished("nexus-1")} == {"noted"}
    assert store.world_of(record(), "a world without transactions") == "a world without transactions"


async def test_only_what_goes_on_is_unfinished(store: Store) -> None:
    for state in SagaState:
        await store.create(record(state.value))
        await store.set_state(state.value, 0, state)
    await store.create(record("others", "nexus-2"))
    assert {each.id for each in await store.unfinished("nexus-1")} == {"running", "unwinding"}


# -- the engine over it -----------------------------------------------------------------------------------------------


async def count_points(failing: str | None) -> int:
    hooks, world = CrashAt(-1), World()
    world.fails = {failing} if failing else set()
    await nexus(MemoryStore(), world, start_it, hooks=hooks)
    return -1 - hooks.left


async def crash_and_recover(store: Store, world: World, at: int, name: str) -> tuple[SagaRecord, Sequence[Event]]:
    hooks = CrashAt(at)
    await nexus(store, world, start_it, hooks=hooks)
    assert hooks.where is not None, "it died"
    await nexus(store, world, take_over if name == "nexus-2" else recover, name=name)
    return await store.load("saga")


@pytest.mark.parametrize(("failing", "name"), [(None, "nexus-1"), ("inner/RIGHT", "nexus-2")])
async def test_death_at_every_point_is_recovered_from(failing: str | None, name: str) -> None:
    """On SQLite in memory, where each death has a database of its own in no time."""
    for at in range(await count_points(failing)):
        world = World()
        world.fails = {failing} if failing else set()
        with open_database("sqlite://", inline=True) as database:
            found, log = await crash_and_recover(SagaStore(database), world, at, name)
        assert found.state is (SagaState.UNWOUND if failing else SagaState.DONE)
        assert world.effects - {"LOOK"} == (set() if failing else EFFECTS - {"LOOK"})
        assert max(world.acted.values()) <= 2
        for label in LABELS:
            assert sum(event.label == label and event.kind in (Kind.SUCCEEDED, Kind.FAILED) for event in log) <= 1


async def test_death_is_recovered_from_by_another_nexus_with_its_own_connections(several: Any) -> None:
    """The same over files and PostgreSQL, where the two share nothing but the database; every fifth point."""
    first, second = SagaStore(several()), SagaStore(several())
    failing = "inner/RIGHT"
    for at in range(0, await count_points(failing), 5):
        world, saga_id = World(), f"saga-{at}"
        world.fails = {failing}

        async def start(executor: Executor) -> Any:
            return await executor.start(SAGA, Params(), saga_id)  # noqa: B023 - awaited

        await nexus(first, world, start, hooks=CrashAt(at))
        await nexus(second, world, take_over, name="nexus-2")
        found, _ = await first.load(saga_id)
        assert found.state is SagaState.UNWOUND and world.effects <= {"LOOK"}


@settings(max_examples=30)
@given(deaths=st.lists(st.integers(0, 40), max_size=6), failing=st.sampled_from([None, *FALLIBLE]))
def test_any_number_of_deaths_ends_in_one_of_the_two_states(deaths: list[int], failing: str | None) -> None:
    async def main() -> None:
        world = World()
        world.fails = {failing} if failing else set()
        with open_database("sqlite://", inline=True) as database:
            store = SagaStore(database)
            for number, at in enumerate(deaths):
                await nexus(store, world, start_it if number == 0 else recover, hooks=CrashAt(at))
            await nexus(store, world, recover if deaths else start_it)
            found, _ = await store.load("saga")
        assert found.state is (SagaState.UNWOUND if failing else SagaState.DONE)
        assert world.effects - {"LOOK"} == (set() if failing else EFFECTS - {"LOOK"})

    trio.run(main)


async def test_a_nexus_that_lost_its_saga_gets_no_further_than_the_node_it_is_in(database: Database) -> None:
    store, world = SagaStore(database), World()
    taken, in_hand = trio.Event(), trio.Event()

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
    assert (await store.load("saga"))[0].state is SagaState.DONE
    assert world.acted["FIRST"] == 2 and world.acted["A1"] == 1


async def test_a_failed_undo_is_stuck_until_somebody_resumes_it(database: Database, expect_log: Any) -> None:
    store, world = SagaStore(database), World()
    world.fails, world.undo_fails = {"LAST"}, {"A2"}

    async def run_it(executor: Executor) -> Any:
        return await executor.wait(await executor.start(SAGA, Params(), "saga"))

    with expect_log("saga stuck"), pytest.RaisesGroup(SagaStuck):
        await nexus(store, world, run_it)
    assert await nexus(store, world, recover) == [], "it waits for a person"
    world.undo_fails = set()

    async def resume(executor: Executor) -> None:
        await executor.resume("saga")

    await nexus(store, world, resume, name="nexus-2")
    assert (await store.load("saga"))[0].state is SagaState.UNWOUND


async def test_branches_that_record_at_the_same_time_lose_no_event(several: Any) -> None:
    store = SagaStore(several())
    await store.create(record())
    async with trio.open_nursery() as nursery:
        for number in range(8):
            nursery.start_soon(store.append, "saga", 0, Event(f"N{number}", Kind.STARTED), SagaState.RUNNING)
    _, log = await store.load("saga")
    assert sorted(event.label for event in log) == [f"N{number}" for number in range(8)]


def test_the_schema_knows_every_state_and_kind_of_the_engine() -> None:
    assert {each.value for each in StoredSagaState} == {each.value for each in SagaState}
    assert {each.value for each in StoredEventKind} == {each.value for each in Kind}


async def test_pages_of_sagas(database: Database) -> None:
    store = SagaStore(database)
    for number in range(7):
        await store.create(record(f"saga-{number}"))
    await store.set_state("saga-3", 0, SagaState.STUCK)
    first = await store.page(limit=4)
    rest = await store.page(limit=4, after=first[-1])
    assert [each.id for each in (*first, *rest)] == [f"saga-{number}" for number in range(7)]
    assert [each.id for each in await store.page(limit=4, state=SagaState.STUCK)] == ["saga-3"]


# -- leases -----------------------------------------------------------------------------------------------------------


class Watch:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = EPOCH

    def __call__(self, connection: Connection) -> Any:
        return self.now

    def pass_by(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


async def test_a_nexus_is_dead_when_its_lease_ran_out_and_it_owes_something(database: Database) -> None:
    watch = Watch()
    leases, store = Leases(database, 10, watch), SagaStore(database, watch)
    await leases.register("nexus-1")
    await leases.register("nexus-2")
    await store.create(record())
    assert await leases.dead_instances() == ()
    watch.pass_by(9)
    assert await leases.heartbeat("nexus-2")
    watch.pass_by(2)
    assert await leases.dead_instances() == ("nexus-1",)
    assert not await leases.heartbeat("nexus-1"), "it finds out"
    (taken,) = [await store.adopt(each, "nexus-2") for each in await store.unfinished("nexus-1")]
    assert taken is not None and await leases.dead_instances() == ()
    await leases.register("nexus-1")
    assert await leases.heartbeat("nexus-1")


async def test_who_retires_leaves_its_sagas_to_others_at_once(database: Database) -> None:
    watch = Watch()
    leases, store = Leases(database, 10, watch), SagaStore(database, watch)
    await leases.register("nexus-1")
    await store.create(record())
    assert [each.id for each in await leases.instances()] == ["nexus-1"]
    await leases.retire("nexus-1")
    assert await leases.dead_instances() == ("nexus-1",) and await leases.instances() == ()
    await store.set_state("saga", 0, SagaState.DONE)
    assert await leases.dead_instances() == (), "nothing is left to take over"


async def test_the_databases_own_clock_is_now(database: Database) -> None:
    before = await database.transact(database_clock)
    assert before <= await database.transact(database_clock)
    leases = Leases(database, 60)
    started = await leases.register("nexus-1")
    assert started.time_expires - started.time_started == timedelta(seconds=60)
    assert await leases.heartbeat("nexus-1")


async def test_the_database_refuses_a_state_that_is_none(database: Database) -> None:
    def body(connection: Connection) -> None:
        connection.exec_driver_sql(
            "INSERT INTO saga (id, name, params, labels, state, executor_id, fence, event_count, time_created,"
            " time_modified) VALUES ('s', 'n', '{}', '[]', 'asleep', 'n', 0, 0, '2026-01-01T00:00:00.000000Z',"
            " '2026-01-01T00:00:00.000000Z')"
        )

    with pytest.raises(IntegrityError, match="saga_state_is_known"):
        await database.transact(body)
