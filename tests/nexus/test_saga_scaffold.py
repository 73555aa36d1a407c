"""The scaffold finds what it is there to find: each function passes a good saga and fails one with that one defect."""

from __future__ import annotations

from typing import Any

import pytest
from saga_rig import Params, World, recipe, step
from saga_scaffold import (
    Fresh,
    Trial,
    action_failure_can_unwind,
    action_failure_can_unwind_idempotently,
    actions_succeed_idempotently,
    death_at_every_point,
)

from nexus.saga import ActionFailed, Context, MemoryStore, Node, Saga

GOOD = recipe()
UNDOABLE = {"FIRST", "A1", "A2", "B", "inner/ONE", "inner/LEFT", "inner/RIGHT", "LAST"}


def trials(*wanted: str) -> Fresh:
    """Worlds in which a finished saga has had the effects ``wanted``, and an undone one none that can be undone."""

    async def fresh() -> Trial:
        world = World()

        async def finished() -> None:
            assert world.effects - {"LOOK"} == set(wanted)

        async def clean() -> None:
            assert not world.effects - {"LOOK"}

        return Trial(world, MemoryStore(), Params(), finished, clean)

    return fresh


def saga_with(defective: Node) -> Saga:
    return Saga("defective", Params, step("FIRST"), defective, step("LAST"))


async def test_a_good_saga_passes_everything() -> None:
    fresh = trials(*UNDOABLE)
    await actions_succeed_idempotently(GOOD, fresh)
    await action_failure_can_unwind(GOOD, fresh)
    await action_failure_can_unwind_idempotently(GOOD, fresh)
    assert await death_at_every_point(GOOD, fresh, stride=1) == 3 * 12
    assert await death_at_every_point(GOOD, fresh, fail_at="LAST", stride=1) > 3 * 12


async def test_an_action_that_cannot_be_repeated_is_found() -> None:
    async def act(saga: Context[Params]) -> Any:
        if "ONCE" in saga.world.effects:
            raise ActionFailed("it is there already")
        saga.world.effects.add("ONCE")

    async def undo(saga: Context[Params]) -> None:
        saga.world.effects.discard("ONCE")

    saga, fresh = saga_with(Node("ONCE", act, undo)), trials("FIRST", "ONCE", "LAST")
    with pytest.raises(AssertionError, match="failed at ONCE"):
        await actions_succeed_idempotently(saga, fresh)
    with pytest.raises(AssertionError, match="ONCE"):
        await death_at_every_point(saga, fresh, stride=1)
    await action_failure_can_unwind(saga, fresh)


async def test_an_undo_that_cannot_be_repeated_is_found(expect_log: Any) -> None:
    async def act(saga: Context[Params]) -> Any:
        saga.world.effects.add("X")

    async def undo(saga: Context[Params]) -> None:
        saga.world.effects.remove("X")

    saga, fresh = saga_with(Node("X", act, undo)), trials("FIRST", "X", "LAST")
    await action_failure_can_unwind(saga, fresh)
    with expect_log("saga stuck"), expect_log("saga node failed unexpectedly"), pytest.RaisesGroup(Exception):
        await action_failure_can_unwind_idempotently(saga, fresh)


async def test_an_effect_without_an_undo_is_found() -> None:
    async def act(saga: Context[Params]) -> Any:
        saga.world.effects.add("LEFT BEHIND")

    saga, fresh = saga_with(Node("LEAK", act)), trials("FIRST", "LEFT BEHIND", "LAST")
    await actions_succeed_idempotently(saga, fresh)
    with pytest.raises(AssertionError):
        await action_failure_can_unwind(saga, fresh)
