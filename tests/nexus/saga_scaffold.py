"""The scaffold of nexus.md §9.1 over any saga, and what it lacks: death at every hook point, and recovery.

Each function runs the saga again and again in a world that ``World.fresh`` makes anew, and asks after each run whether
things are as they should be: ``finished`` after success, ``clean`` after unwinding.

* :func:`actions_succeed_idempotently`: every action twice, every undo once.
* :func:`action_failure_can_unwind`: an error in place of each action; it fails at exactly that node.
* :func:`action_failure_can_unwind_idempotently`: the same, with the undo before it run twice.
* :func:`death_at_every_point`: this Nexus dies at each hook point of each node; it or another finishes.

After each run no saga is stuck, and the sentences of :func:`nexus.volumes.invariants.check` or the like, which a test
puts into ``clean`` and ``finished``, must be empty.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from itertools import count
from typing import Any

import trio
from pydantic import BaseModel

from nexus.saga import ActionFailed, Context, Dag, Executor, Saga, SagaState, Store
from nexus.saga.dag import Vertex
from nexus.saga.executor import Perform, SagaFailed, perform_once
from nexus.saga.hooks import Crash, Hooks, Point, no_hooks

INJECTED = "injected by the test"


SAGA_ID = "11111111-0000-4000-8000-000000000001"


@dataclass
class Trial:
    """One run's world: what sagas are given, where their log is, the parameters, and what must hold at the end.
    ``saga_id``: of a saga whose regions belong to somebody else's volume, and are to be other ones each time."""

    world: Any
    store: Store
    params: BaseModel
    finished: Callable[[], Awaitable[None]]
    clean: Callable[[], Awaitable[None]]
    saga_id: str = SAGA_ID


Fresh = Callable[[], Awaitable[Trial]]


class Repeat:
    """Runs actions and undos several times in a row, and keeps the last result."""

    def __init__(self, actions: int = 1, undos: int = 1, fail_at: str | None = None) -> None:
        self.actions, self.undos, self.fail_at = actions, undos, fail_at
        self.failed: str | None = None

    async def __call__(self, work: Any, vertex: Vertex, context: Context[Any]) -> Any:
        acting = work is vertex.action
        if acting and vertex.label == self.fail_at:
            self.failed = vertex.label
            raise ActionFailed(INJECTED, "injected")
        result = None
        for _ in range(self.actions if acting else self.undos):
            result = await work(context)
        return result


@dataclass
class Meanwhile:
    """Does something before a node's action, once; and lets one fail."""

    before: str
    work: Callable[[], Awaitable[None]]
    fails: str | None = None
    done: bool = False

    async def __call__(self, work: Any, vertex: Any, context: Any) -> Any:
        if work is vertex.action:
            if vertex.label == self.before and not self.done:
                self.done = True
                await self.work()
            if vertex.label == self.fails:
                raise ActionFailed("on purpose")
        return await work(context)


def everywhere(label: str) -> bool:
    return True


ALL_POINTS = frozenset(Point)
AFTER_EFFECTS = frozenset({Point.AFTER_EFFECT, Point.AFTER_UNDO_EFFECT})
"""Where what was done is not recorded, so that it is done again; elsewhere a death only tries the engine."""


EVERY_DEATH = os.environ.get("NEXUS_EVERY_DEATH") == "1"
"""The full run: at every point of every node. The suite tries every seventh one of those that a test names: with real
agents that takes its time, and the explorer tries all of them on a rack in memory."""
STRIDE = 1 if EVERY_DEATH else 7


class DieAt:
    """Dies when a hook is called for the nth time at one of ``points`` of a node that ``only`` accepts (with ``full``,
    anywhere); ``where`` says at which that was, ``named`` how many there were that the test names."""

    def __init__(
        self,
        at: int,
        only: Callable[[str], bool] = everywhere,
        points: Collection[Point] = ALL_POINTS,
        *,
        full: bool = EVERY_DEATH,
    ) -> None:
        self.full = full
        self.at = at
        self.only = only
        self.points = points
        self.seen = 0
        self.named = 0
        self.where: tuple[Point, str] | None = None

    async def __call__(self, point: Point, saga_id: str, label: str) -> None:
        named = self.only(label) and point in self.points
        self.named += named
        if not named and not self.full:
            return
        self.seen += 1
        if self.seen - 1 == self.at:
            self.where = (point, label)
            raise Crash


async def execute(
    saga: Saga,
    trial: Trial,
    use: Callable[[Executor], Awaitable[Any]],
    *,
    executor_id: str = "nexus-1",
    hooks: Hooks = no_hooks,
    perform: Perform = perform_once,
) -> Any:
    """One Nexus that knows ``saga``; it lives until its sagas have ended, or until it dies."""
    result: Any = None
    try:
        async with trio.open_nursery() as nursery:
            executor = Executor(
                nursery,
                trial.store,
                [saga],
                trial.world,
                executor_id,
                new_id=lambda: trial.saga_id,
                hooks=hooks,
                perform=perform,
            )
            result = await use(executor)
    except* Crash:
        result = None
    return result


def _actions(saga: Saga) -> list[str]:
    """Labels of the nodes that have an action; the others cannot fail."""
    return [vertex.label for vertex in Dag.of(saga).vertices.values() if vertex.action is not None]


async def _ends(saga: Saga, trial: Trial, *, fails_at: str | None, **settings: Any) -> None:
    """Run to the end; a saga that fails, fails where it was told to."""

    async def use(executor: Executor) -> SagaFailed | None:
        try:
            await executor.run(saga, trial.params)
        except SagaFailed as failure:
            return failure
        return None

    failure = await execute(saga, trial, use, **settings)
    if fails_at is None:
        assert failure is None, f"{saga.name} failed at {failure.label}: {failure}"
        await trial.finished()
    else:
        assert failure is not None, f"{saga.name} went on although {fails_at} failed"
        assert (failure.label, str(failure)) == (fails_at, INJECTED)
        await trial.clean()


async def actions_succeed_idempotently(saga: Saga, fresh: Fresh) -> None:
    await _ends(saga, await fresh(), fails_at=None, perform=Repeat(actions=2))


async def action_failure_can_unwind(saga: Saga, fresh: Fresh, *, only: Callable[[str], bool] = everywhere) -> None:
    for label in filter(only, _actions(saga)):
        await _ends(saga, await fresh(), fails_at=label, perform=Repeat(fail_at=label))


async def action_failure_can_unwind_idempotently(
    saga: Saga, fresh: Fresh, *, only: Callable[[str], bool] = everywhere
) -> None:
    for label in filter(only, _actions(saga)):
        await _ends(saga, await fresh(), fails_at=label, perform=Repeat(undos=2, fail_at=label))


async def death_at_every_point(
    saga: Saga,
    fresh: Fresh,
    *,
    fail_at: str | None = None,
    only: Callable[[str], bool] = everywhere,
    points: Collection[Point] = ALL_POINTS,
    stride: int = STRIDE,
    full: bool = EVERY_DEATH,
) -> int:
    """Also while it unwinds, when it fails at ``fail_at``. ``only``: at which nodes; ``points``: at which points of
    these. How many points that makes; one in ``stride`` is tried. The same Nexus and another go on with it in turns, in
    a full run each from every point. ``full``: in a full run everywhere; not of a saga whose parts have their own."""
    tries = count()
    while True:
        number = next(tries)
        at, by_another = (number // 2, number % 2 == 0) if EVERY_DEATH else (number * stride, number % 2 == 0)
        trial = await fresh()
        hooks, dead = DieAt(at, only, points, full=full), Repeat(fail_at=fail_at)

        async def begin(executor: Executor, trial: Trial = trial) -> None:
            await executor.start(saga, trial.params)

        async def finish(executor: Executor, by_another: bool = by_another) -> None:
            await (executor.take_over("nexus-1") if by_another else executor.recover())

        await execute(saga, trial, begin, hooks=hooks, perform=dead)
        if hooks.where is None:
            await (trial.finished() if fail_at is None else trial.clean())
            return hooks.named
        executor_id = "nexus-2" if by_another else "nexus-1"
        await execute(saga, trial, finish, executor_id=executor_id, perform=Repeat(fail_at=fail_at))
        record, _ = await trial.store.load(trial.saga_id)
        wanted = SagaState.DONE if fail_at is None else SagaState.UNWOUND
        assert record.state is wanted, (
            f"{saga.name}, dead {hooks.where[0].value} {hooks.where[1]}: {record.state.value}"
        )
        await (trial.finished() if fail_at is None else trial.clean())
