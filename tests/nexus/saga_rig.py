"""A world in which every effect can be counted, recipes of any shape for it, and Nexus processes that die."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import trio
from pydantic import BaseModel

from nexus.saga import ActionFailed, Context, Executor, Node, Parallel, Point, Saga, Store, SubSaga
from nexus.saga.executor import perform_once
from nexus.saga.hooks import Crash, Hooks, no_hooks


class Params(BaseModel):
    start: int = 1


class World:
    """What actions have done and undos have undone, by the label that they were told to use."""

    def __init__(self) -> None:
        self.effects: set[str] = set()
        self.acted: Counter[str] = Counter()
        self.undone: Counter[str] = Counter()
        self.order: list[str] = []
        self.fails: set[str] = set()
        self.undo_fails: set[str] = set()


def step(name: str, where: str = "") -> Node:
    """A node with an effect and an undo that are safe to repeat."""
    key = f"{where}{name}"

    async def act(saga: Context[Params]) -> Any:
        await trio.lowlevel.checkpoint()
        if key in saga.world.fails:
            raise ActionFailed(f"{key} cannot be done", "refused")
        saga.world.effects.add(key)
        saga.world.acted[key] += 1
        saga.world.order.append(key)
        return {"made": key, "sum": saga.params.start + len(saga.outputs)}

    async def undo(saga: Context[Params]) -> None:
        await trio.lowlevel.checkpoint()
        assert saga.params.start >= 1
        if key in saga.world.undo_fails:
            raise ActionFailed(f"{key} cannot be undone")
        saga.world.effects.discard(key)
        saga.world.undone[key] += 1
        saga.world.order.append(f"-{key}")

    return Node(name, act, undo)


async def inner_params(saga: Context[Params]) -> Params:
    return Params(start=saga.params.start + 1)


def recipe() -> Saga:
    """Sequence, branches, a sub-saga, a node without action and one without undo."""
    inner = Saga("inner", Params, step("ONE", "inner/"), Parallel(step("LEFT", "inner/"), step("RIGHT", "inner/")))
    only_undo = step("HOLD")
    only_action = step("LOOK")
    return Saga(
        "outer",
        Params,
        step("FIRST"),
        Parallel([step("A1"), step("A2")], step("B")),
        Node("HOLD", None, only_undo.undo),
        SubSaga("INNER", inner, inner_params),
        Node("LOOK", only_action.action),
        step("LAST"),
    )


class CrashAt:
    """Dies the nth time that a hook is called."""

    def __init__(self, at: int) -> None:
        self.left = at
        self.where: tuple[Point, str] | None = None

    async def __call__(self, point: Point, saga_id: str, label: str) -> None:
        if self.left == 0:
            self.where = (point, label)
            self.left = -1
            raise Crash
        self.left -= 1


Use = Callable[[Executor], Any]


async def nexus(
    store: Store,
    world: World,
    use: Use,
    *,
    name: str = "nexus-1",
    saga: Saga | None = None,
    hooks: Hooks = no_hooks,
    perform: Any = perform_once,
) -> Any:
    """One Nexus process: does ``use`` and lives until its sagas have ended; ``None`` when it died of a crash."""
    numbers = iter(range(1_000_000))
    found: Any = None
    try:
        async with trio.open_nursery() as nursery:
            executor = Executor(
                nursery,
                store,
                [saga or recipe()],
                world,
                name,
                new_id=lambda: f"saga-{next(numbers)}",
                hooks=hooks,
                perform=perform,
            )
            found = await use(executor)
    except* Crash:
        found = None
    return found
