"""Running the background tasks of one Nexus: the Trio shell around :class:`~nexus.tasks.schedule.Schedule`.

What it guarantees: one loop for each task, so never two activations of one at a time; a task that fails, or that takes
for ever, keeps no other from running. Which activation of which Nexus comes first is chance, and must not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import datetime
from math import floor
from typing import Any

import trio

from crucible_emu.logs import get_logger
from nexus.tasks.schedule import Begun, Reason, Schedule
from nexus.tasks.task import Task, told

NANOS = 1_000_000_000

log = get_logger(__name__)


class UnknownTask(Exception):
    """There is no task of this name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"there is no background task {name}")
        self.name = name


class _Entry:
    """A task, when it is due, and who waits for it."""

    def __init__(self, task: Task, period_s: float) -> None:
        self.task = task
        self.schedule = Schedule(period_s)
        self.asked = trio.Event()
        self.ended = trio.Event()

    def ask(self, reason: Reason) -> int:
        number = self.schedule.ask(reason)
        self.asked.set()
        return number


class Scheduler:
    """All tasks. ``now`` is the clock on the wall. ``periods_s``: other periods than the tasks' own, by name.
    ``after``: which tasks run, as a *dependency*, whenever the task named first has ended."""

    def __init__(
        self,
        tasks: Iterable[Task],
        now: Callable[[], datetime],
        *,
        periods_s: Mapping[str, float] | None = None,
        after: Mapping[str, Collection[str]] | None = None,
    ) -> None:
        self._now = now
        wanted = dict(periods_s or {})
        self._entries = {task.name: _Entry(task, wanted.pop(task.name, task.period_s)) for task in tasks}
        self._after = dict(after or {})
        for name in [*wanted, *self._after, *(each for names in self._after.values() for each in names)]:
            self._entry(name)

    @property
    def names(self) -> list[str]:
        return sorted(self._entries)

    async def run(self) -> None:
        """Until it is cancelled. What is under way then is not finished: the next activation, of whichever Nexus,
        finds what is to be done."""
        async with trio.open_nursery() as nursery:
            for entry in self._entries.values():
                nursery.start_soon(self._look_after, entry)

    def activate(self, names: Collection[str]) -> None:
        """Have these tasks run soon, and do not wait for them. Raises :class:`UnknownTask`, and then none was told."""
        for entry in [self._entry(name) for name in names]:
            entry.ask(Reason.SIGNALED)

    async def activated(self, name: str) -> Any:
        """What an activation answered that began after this call. Raises :class:`UnknownTask`."""
        entry = self._entry(name)
        number = entry.ask(Reason.SIGNALED)
        while entry.schedule.last is None or entry.schedule.last.begun.iteration < number:
            await entry.ended.wait()
        return entry.schedule.last.details

    def status(self, name: str) -> dict[str, Any]:
        """A task as the lockstep API's ``BackgroundTask``. Raises :class:`UnknownTask`."""
        entry = self._entry(name)
        schedule = entry.schedule
        current: dict[str, Any] = {"current_status": "idle"}
        if schedule.current is not None:
            current = {"current_status": "running", "details": _begun(schedule.current)}
        last: dict[str, Any] = {"last_result": "never_completed"}
        if schedule.last is not None:
            done = _begun(schedule.last.begun) | {
                "elapsed": _duration(schedule.last.elapsed_s),
                "details": schedule.last.details,
            }
            last = {"last_result": "completed", "details": done}
        return {
            "name": name,
            "description": entry.task.description,
            "period": _duration(schedule.period_s),
            "current": current,
            "last": last,
        }

    def statuses(self) -> dict[str, dict[str, Any]]:
        """All tasks by name, as the lockstep API lists them."""
        return {name: self.status(name) for name in self.names}

    # -- one task -----------------------------------------------------------------------------------------------------

    def _entry(self, name: str) -> _Entry:
        found = self._entries.get(name)
        if found is None:
            raise UnknownTask(name)
        return found

    async def _look_after(self, entry: _Entry) -> None:
        schedule = entry.schedule
        while True:
            reason = schedule.due(trio.current_time())
            if reason is None:
                with trio.move_on_at(schedule.due_s):
                    await entry.asked.wait()
                continue
            entry.asked = trio.Event()
            schedule.begin(trio.current_time(), self._now(), reason)
            details = await self._activate(entry.task)
            schedule.end(trio.current_time(), details)
            ended, entry.ended = entry.ended, trio.Event()
            ended.set()
            for name in self._after.get(entry.task.name, ()):
                self._entry(name).ask(Reason.DEPENDENCY)

    async def _activate(self, task: Task) -> Any:
        try:
            return await task.activate()
        except Exception as error:  # noqa: BLE001 - whatever it is, it comes round again
            log.warning("background task failed", task=task.name, reason=told(error))
            return {"error": told(error)}


def _begun(begun: Begun) -> dict[str, Any]:
    return {
        "iteration": begun.iteration,
        "reason": begun.reason.value,
        "start_time": begun.start_time.isoformat(),
    }


def _duration(length_s: float) -> dict[str, int]:
    """Seconds as the API's ``Duration``."""
    whole = floor(length_s)
    nanos = min(int((length_s - whole) * NANOS), NANOS - 1)
    return {"secs": whole, "nanos": nanos}
