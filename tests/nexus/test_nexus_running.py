"""One Nexus, and several in front of one database: leases, recovery, taking over, clean stops and deaths."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import trio
from saga_rig import Params

from nexus.db import Database
from nexus.running import Conduct, Nexus, Settings, nexus_over, running_nexus
from nexus.running.nexus import world_of
from nexus.saga import ActionFailed, Context, Node, Saga, SagaFailed, SagaState
from nexus.saga.hooks import Crash, Point
from nexus.services import Connections, World
from nexus.volumes import FairLocks

# Those that live have leases that no stall of a busy machine outlasts; those that die have short ones.
LIVING = Conduct(periods_s={"saga_recovery": 0.05}, stop_grace_s=0.2)
DYING = Conduct(lease_s=0.5)
PATIENCE_S = 20


class Effects:
    """What the nodes of :func:`two_steps` did, by whichever Nexus; and a gate before the second."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.gate = trio.Event()
        self.at_gate = trio.Event()
        self.saga = self._recipe()

    def conduct(self, conduct: Conduct) -> Conduct:
        """A Nexus that knows the saga."""
        return replace(conduct, sagas=[self.saga])

    def _recipe(self) -> Saga:
        async def first(saga: Context[Params]) -> Any:
            self.done.append("FIRST")

        async def undo_first(saga: Context[Params]) -> None:
            self.done.append("-FIRST")

        async def second(saga: Context[Params]) -> Any:
            self.at_gate.set()
            await self.gate.wait()
            if saga.params.start == 0:
                raise ActionFailed("zero is refused", "refused")
            self.done.append("SECOND")

        return Saga("two-steps", Params, Node("FIRST", first, undo_first), Node("SECOND", second))


@pytest.fixture
def effects() -> Effects:
    return Effects()


@pytest.fixture
def short_leases(expect_log: Any) -> None:
    """A Nexus that is to die may stall before that."""
    expect_log("lease ran out", at_least=0)


@contextmanager
def world_on(database: Database) -> Iterator[World]:
    """A world with a database and nothing else: no saga here asks for more."""
    settings = Settings("unused")
    yield world_of(settings, database, Connections())


async def until(holds: Callable[[], Any]) -> None:
    with trio.fail_after(PATIENCE_S):
        while True:
            found = holds()
            if found if not hasattr(found, "__await__") else await found:
                return
            await trio.sleep(0.01)


async def dies(database: Database, effects: Effects, conduct: Conduct) -> str:
    """A Nexus that is killed while a saga of it is at the gate; the saga."""
    found = ""
    with world_on(database) as world, trio.CancelScope() as life:
        async with nexus_over(world, effects.conduct(conduct)) as nexus:
            found = await nexus.executor.start(effects.saga, Params())
            await effects.at_gate.wait()
            life.cancel()
            await trio.sleep_forever()
    return found


async def test_nexus_runs_from_settings_alone_and_leaves_no_lease(database_url: str, effects: Effects) -> None:
    effects.gate.set()
    async with running_nexus(Settings(database_url, conduct=effects.conduct(Conduct()))) as nexus:
        assert isinstance(nexus.world.locks, FairLocks)
        await nexus.executor.run(effects.saga, Params())
        assert [each.id for each in await nexus.leases.instances()] == [nexus.id]
        assert "saga_recovery" in nexus.tasks.names
    assert effects.done == ["FIRST", "SECOND"]
    async with running_nexus(Settings(database_url)) as another:
        assert [each.id for each in await another.leases.instances()] == [another.id]


@pytest.mark.usefixtures("short_leases")
async def test_sagas_of_a_dead_nexus_are_taken_over_by_one_of_the_living(
    several: Callable[[], Database], effects: Effects
) -> None:
    """Two live beside each other when a third dies."""
    with world_on(several()) as first, world_on(several()) as second:
        async with (
            nexus_over(first, effects.conduct(LIVING)) as one,
            nexus_over(second, effects.conduct(LIVING)) as two,
        ):
            saga_id = await dies(several(), effects, DYING)
            assert not {saga_id} & {*one.executor.in_hand, *two.executor.in_hand}, "its lease has not run out"
            await until(lambda: saga_id in [*one.executor.in_hand, *two.executor.in_hand])
            effects.gate.set()
            await until(lambda: _is(one, saga_id, SagaState.DONE))
            await until(lambda: _are_alone(one, {one.id, two.id}))
    assert effects.done == ["FIRST", "SECOND"], "what was recorded was not done again"


async def test_nexus_that_starts_goes_on_with_what_the_last_one_left(
    several: Callable[[], Database], effects: Effects
) -> None:
    conduct = Conduct(nexus_id="11111111-1111-4111-8111-111111111111", stop_grace_s=0.2)
    saga_id = await dies(several(), effects, conduct)
    effects.gate.set()
    with world_on(several()) as world:
        async with nexus_over(world, effects.conduct(conduct)) as nexus:
            await until(lambda: _is(nexus, saga_id, SagaState.DONE))


async def test_clean_stop_leaves_what_has_not_ended_to_others_at_once(
    several: Callable[[], Database], effects: Effects
) -> None:
    """However long its lease would have been."""
    long = Conduct(lease_s=1000, stop_grace_s=0.05)
    with world_on(several()) as world:
        async with nexus_over(world, effects.conduct(long)) as nexus:
            saga_id = await nexus.executor.start(effects.saga, Params(start=0))
            await effects.at_gate.wait()
    effects.gate.set()
    with world_on(several()) as world:
        async with nexus_over(world, effects.conduct(long)) as another:
            await until(lambda: _is(another, saga_id, SagaState.UNWOUND))
            with pytest.raises(SagaFailed, match="zero is refused"):
                await another.executor.wait(saga_id)
    assert effects.done == ["FIRST", "-FIRST"]


async def test_nexus_whose_lease_ran_out_registers_anew_and_keeps_what_nobody_took(
    several: Callable[[], Database], effects: Effects, expect_log: Any
) -> None:
    expect_log("lease ran out")
    with world_on(several()) as world:
        async with nexus_over(world, effects.conduct(Conduct(lease_s=1))) as nexus:
            saga_id = await nexus.executor.start(effects.saga, Params())
            await effects.at_gate.wait()
            await nexus.leases.retire(nexus.id)
            await until(nexus.leases.instances)
            effects.gate.set()
            await until(lambda: _is(nexus, saga_id, SagaState.DONE))


@pytest.mark.usefixtures("short_leases")
@pytest.mark.parametrize("point", list(Point)[:3])
async def test_death_at_a_point_of_a_node(several: Callable[[], Database], effects: Effects, point: Point) -> None:
    """As by SIGKILL: nothing is recorded any more. Another goes on, and every node was done at least once."""
    effects.gate.set()

    async def die(at: Point, saga_id: str, label: str) -> None:
        if (at, label) == (point, "SECOND"):
            raise Crash

    found: list[str] = []

    async def victim(world: World) -> None:
        async with nexus_over(world, effects.conduct(Conduct(lease_s=0.1, hooks=die))) as nexus:
            found.append(await nexus.executor.start(effects.saga, Params()))
            await trio.sleep_forever()

    with world_on(several()) as world:
        try:
            await victim(world)
        except* Crash:
            pass
        async with nexus_over(world, effects.conduct(LIVING)) as nexus:
            await until(lambda: _is(nexus, found[0], SagaState.DONE))
    assert effects.done[0] == "FIRST" and effects.done.count("FIRST") == 1 and "SECOND" in effects.done


async def _is(nexus: Nexus, saga_id: str, state: SagaState) -> bool:
    record, _ = await nexus.store.load(saga_id)
    return record.state is state


async def _are_alone(nexus: Nexus, expected: set[str]) -> bool:
    return {each.id for each in await nexus.leases.instances()} == expected


def test_settings_show_no_secret() -> None:
    shown = repr(Settings("postgresql://nexus:hunter2@db/nexus", service_token="swordfish"))
    assert "hunter2" not in shown and "swordfish" not in shown
