"""Nexus processes on a light rack: they run sagas and tasks, stand still, die, and take over from each other.

What it guarantees: a process that dies does so between two instants, as after SIGKILL: its sagas stay as their logs
say, and its lease has run out for the others. A process that stands still at a hook knows nothing of what happens
meanwhile, and finds out by the fence.
"""

from __future__ import annotations

from typing import Any

import trio

from nexus.db.sagas import Leases, SagaStore
from nexus.explore.rack import Rack
from nexus.saga import Executor, Fenced, SagaFailed, SagaStuck
from nexus.saga.executor import Perform, perform_once
from nexus.saga.hooks import Crash, Hooks, no_hooks
from nexus.sagas import ALL_SAGAS
from nexus.tasks import Status, Task, all_tasks

LEASE_S = 1e7
"""Longer than any run: a lease ends because its holder died."""
SAGA_PATIENCE_S = 3600.0
"""A saga that takes longer than that, by the clock of the run, waits for something that does not come."""
NOT_RUN = frozenset({"volume_verification"})


class Process:
    """One Nexus. ``tasks`` by name, in the order in which a round runs them."""

    def __init__(self, rack: Rack, name: str, executor: Executor, leases: Leases) -> None:
        self.rack, self.name, self.executor = rack, name, executor
        self.alive = True
        self.lifetime = trio.CancelScope()
        """Whoever waits for an answer of it waits in here."""
        self.held_up: set[trio.CancelScope] = set()
        """What of it does not end when its sagas are cancelled, but when it dies."""
        tasks: list[Task] = all_tasks(rack.world, executor, leases)
        self.tasks = {task.name: task for task in tasks if task.name not in NOT_RUN}

    def die(self) -> None:
        """From this instant on nobody gets an answer."""
        self.alive = False
        for scope in (self.lifetime, *self.held_up):
            scope.cancel()

    async def activate(self, name: str) -> Status:
        """One activation of a task, and the end of the sagas that it began."""
        before = set(self.executor.in_hand)
        status = await self.tasks[name].activate()
        await self.settle(before)
        return status

    async def settle(self, but: set[str] = frozenset()) -> None:  # type: ignore[assignment]
        """Return when none of its sagas runs, but for those named. Raises :class:`trio.TooSlowError`."""
        with trio.fail_after(SAGA_PATIENCE_S):
            while True:
                running = [each for each in self.executor.in_hand if each not in but]
                if not running:
                    return
                try:
                    await self.executor.wait(running[0])
                except (SagaFailed, SagaStuck, Fenced):
                    continue


class Processes:
    """All Nexus of a run."""

    def __init__(self, rack: Rack, nursery: trio.Nursery) -> None:
        self._rack, self._nursery = rack, nursery
        self.leases = Leases(rack.database, LEASE_S, clock=lambda connection: rack.now())
        self.store = SagaStore(rack.database, clock=lambda connection: rack.now())
        self.known: list[Process] = []

    async def start(
        self, *, hooks: Hooks = no_hooks, perform: Perform = perform_once, name: str | None = None
    ) -> Process:
        """Another Nexus; it has registered when this returns."""
        name = name or f"nexus-{len(self.known) + 1}"
        await self.leases.register(name)
        started: Process = await self._nursery.start(self._live, name, hooks, perform)
        self.known.append(started)
        return started

    async def _live(self, name: str, hooks: Hooks, perform: Perform, *, task_status: trio.TaskStatus[Process]) -> None:
        process: Process | None = None
        try:
            async with trio.open_nursery() as nursery:
                executor = Executor(
                    nursery,
                    self.store,
                    ALL_SAGAS,
                    self._rack.world,
                    name,
                    new_id=self._rack.id,
                    hooks=hooks,
                    perform=perform,
                )
                process = Process(self._rack, name, executor, self.leases)
                task_status.started(process)
                await trio.sleep_forever()
        except* Crash:
            assert process is not None and not process.alive

    async def living(self) -> Process:
        """One that lives, which has gone on with what dead ones left; started if there is none."""
        alive = [each for each in self.known if each.alive]
        process = alive[0] if alive else await self.start()
        for dead in [each for each in self.known if not each.alive]:
            await self.leases.retire(dead.name)
        await process.activate("saga_recovery")
        return process


async def run_saga(process: Process, saga: Any, params: Any) -> Any:
    """The outputs of a saga. Raises as :meth:`nexus.saga.Executor.run`."""
    with trio.fail_after(SAGA_PATIENCE_S):
        return await process.executor.run(saga, params)
