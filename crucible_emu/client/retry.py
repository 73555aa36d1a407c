"""When a request to a service is made again, and when it is given up (apis-and-tools.md §0.4).

What it is for: a control plane does not fail because a sled restarts. It repeats what was not answered, and what was
answered with "not now", at growing intervals, until an answer comes or somebody knows that none can come any more.

What it guarantees: :class:`Patience` decides and neither sleeps nor draws a number of its own, so a test or a
simulation sees the same waits under the same seed. There is no overall deadline, as in the real control plane: a caller
that wants one has a cancel scope. A request that is repeated may be carried out twice; only those that may be are for
here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from crucible_emu.client.failures import ServiceError, ServiceUnreachable

PASSING = frozenset({429, 503})
"""Statuses of a service that will answer another time; any other error is for good."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """Growing intervals, in seconds. ``spread``: an interval is drawn from that part of itself below and above."""

    first_s: float = 0.167
    factor: float = 2.0
    longest_s: float = 180.0
    spread: float = 0.5

    def __post_init__(self) -> None:
        if not (self.first_s > 0 and self.factor >= 1 and self.longest_s >= self.first_s and 0 <= self.spread < 1):
            raise ValueError(f"{self} is no backoff: intervals are positive and grow, the spread is below 1")

    def interval_s(self, attempt: int, drawn: float) -> float:
        """The pause after so many attempts before (0: the first failed), with ``drawn`` from [0, 1)."""
        # No power of a number of attempts that nobody bounds: it would overflow after a thousand.
        interval = self.first_s
        for _ in range(attempt):
            interval *= self.factor
            if interval >= self.longest_s:
                break
        return min(interval, self.longest_s) * (1 - self.spread + 2 * self.spread * drawn)


def is_passing(error: Exception) -> bool:
    """Whether the same request may succeed later."""
    return isinstance(error, ServiceUnreachable) or (isinstance(error, ServiceError) and error.status in PASSING)


class Patience:
    """The pauses of one operation. ``draw`` gives numbers from [0, 1); a ``random.Random(seed).random`` is one."""

    def __init__(self, backoff: Backoff, draw: Callable[[], float]) -> None:
        self._backoff = backoff
        self._draw = draw
        self.attempts = 0

    def pause_s(self) -> float:
        """How long to wait before the next attempt."""
        interval = self._backoff.interval_s(self.attempts, self._draw())
        self.attempts += 1
        return interval
