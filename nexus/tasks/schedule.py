"""When one task is due: a pure core, without loop or clock.

What it guarantees: a task is never begun while it is under way. Being asked for while it is means one more activation
after this one, however often it was asked for: what the asker has seen may have come too late for the one under way.
Nobody asks: the next begins a period after the last one *ended*, so a slow task does not run without pause.

The phases are the table :data:`TRANSITIONS`, which the code runs and which refuses what it does not list.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Any


class Reason(Enum):
    """Why a task was activated; the values are those of the lockstep API."""

    SIGNALED = "signaled"
    TIMEOUT = "timeout"
    DEPENDENCY = "dependency"


class Phase(Enum):
    """What a task does."""

    IDLE = "idle"
    WANTED = "wanted"
    RUNNING = "running"
    RUNNING_AND_WANTED = "running, and wanted again"


class Happening(Enum):
    """What may happen to it."""

    ASKED = "asked for"
    BEGUN = "begun"
    ENDED = "ended"


TRANSITIONS: dict[tuple[Phase, Happening], Phase] = {
    (Phase.IDLE, Happening.ASKED): Phase.WANTED,
    (Phase.WANTED, Happening.ASKED): Phase.WANTED,
    (Phase.RUNNING, Happening.ASKED): Phase.RUNNING_AND_WANTED,
    (Phase.RUNNING_AND_WANTED, Happening.ASKED): Phase.RUNNING_AND_WANTED,
    (Phase.IDLE, Happening.BEGUN): Phase.RUNNING,
    (Phase.WANTED, Happening.BEGUN): Phase.RUNNING,
    (Phase.RUNNING, Happening.ENDED): Phase.IDLE,
    (Phase.RUNNING_AND_WANTED, Happening.ENDED): Phase.WANTED,
}


class ImpossibleHappening(Exception):
    """A task was begun while it was under way, or ended while it was not: a defect of the scheduler."""


@dataclass(frozen=True, slots=True)
class Begun:
    """An activation. ``at_s`` by the loop's clock, ``start_time`` by that on the wall."""

    iteration: int
    reason: Reason
    start_time: datetime
    at_s: float


@dataclass(frozen=True, slots=True)
class Completed:
    """An activation that has ended, and what it answered."""

    begun: Begun
    elapsed_s: float
    details: Any


@dataclass(slots=True)
class Schedule:
    """One task's. ``due_s``: when the next activation begins by itself; the first one at once."""

    period_s: float
    due_s: float = 0.0
    phase: Phase = Phase.IDLE
    iteration: int = 0
    reason: Reason = Reason.TIMEOUT
    current: Begun | None = None
    last: Completed | None = field(default=None)

    def ask(self, reason: Reason) -> int:
        """Somebody wants it to run; the number of the first activation that begins after this."""
        if self.phase in (Phase.IDLE, Phase.RUNNING):
            self.reason = reason
        self._happen(Happening.ASKED)
        return self.iteration + 1

    def due(self, now_s: float) -> Reason | None:
        """Why it is to begin now; ``None`` if it is not."""
        if self.phase is Phase.WANTED:
            return self.reason
        return Reason.TIMEOUT if self.phase is Phase.IDLE and now_s >= self.due_s else None

    def begin(self, now_s: float, now: datetime, reason: Reason) -> None:
        self._happen(Happening.BEGUN)
        self.iteration += 1
        self.current = Begun(self.iteration, reason, now, now_s)

    def end(self, now_s: float, details: Any) -> None:
        self._happen(Happening.ENDED)
        assert self.current is not None
        self.last, self.current = Completed(self.current, now_s - self.current.at_s, details), None
        self.due_s = now_s + self.period_s

    def _happen(self, happening: Happening) -> None:
        after = TRANSITIONS.get((self.phase, happening))
        if after is None:
            raise ImpossibleHappening(f"a task that is {self.phase.value} cannot be {happening.value}")
        self.phase = after
