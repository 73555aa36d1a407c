"""What all parts of one simulated history share: randomness, timed events, the trace and the verdict.

What it guarantees: all that a history does comes from one :class:`random.Random` and one heap of timed events, worked
off by one task, so the same seed gives the same history. Times are whole milliseconds: events that are close together
happen in one wake-up, in the order in which they were asked for.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

import trio

from crucible_emu.geometry import RegionDefinition

if TYPE_CHECKING:
    from crucible_emu.sim.upstairs.downstairs import ModelDownstairs


class Violation(Exception):
    """The Upstairs did what it must not do; the message says what."""


class World:
    """One history's surroundings. ``trace`` receives one line per step and message; ``None``: nobody looks."""

    def __init__(self, seed: int, definition: RegionDefinition, trace: Callable[[str], None] | None = None) -> None:
        self.rng = random.Random(seed)
        self.definition = definition
        self.downstairs: list[ModelDownstairs] = []
        self.jobs_sent: dict[tuple[object, object], object] = {}
        """What each job of each session is, to find one id used twice."""
        self.events = 0
        """Counts faults and changes of membership: tells what happened before what."""
        self.failure: str | None = None
        self.counts: dict[str, int] = {}
        self.trace = trace
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._asked = 0
        self._wake = trio.Event()

    # -- the trace and the verdict ------------------------------------------------------------------------------------

    def say(self, text: str) -> None:
        if self.trace is not None:
            self.trace(f"{trio.current_time():10.3f}  {text}")

    def violation(self, text: str) -> NoReturn:
        """End the history: the Upstairs broke a promise."""
        if self.failure is None:
            self.failure = f"{text} (at {trio.current_time():.3f} s)"
            self.say(f"VIOLATION {text}")
        raise Violation(text)

    def count(self, what: str) -> None:
        """Remember that ``what`` happened: a summary shows what the histories reached."""
        self.counts[what] = self.counts.get(what, 0) + 1

    def next_event(self) -> int:
        self.events += 1
        return self.events

    # -- timed events -------------------------------------------------------------------------------------------------

    def after(self, delay_s: float, action: Callable[..., None], *arguments: Any) -> float:
        """Call ``action`` in so many seconds, rounded up to a millisecond; the time of it."""
        return self.at(math.ceil((trio.current_time() + delay_s) * 1000 - 1e-6) / 1000, action, *arguments)

    def at(self, when: float, action: Callable[..., None], *arguments: Any) -> float:
        self._asked += 1
        if not self._heap or when < self._heap[0][0]:
            self._wake.set()
        heapq.heappush(self._heap, (when, self._asked, action, arguments))
        return when

    async def run_events(self) -> None:
        """Work off the timed events, until cancelled."""
        heap = self._heap
        while True:
            now = trio.current_time()
            while heap and heap[0][0] <= now:
                _, _, action, arguments = heapq.heappop(heap)
                action(*arguments)
            self._wake = trio.Event()
            with trio.move_on_at(heap[0][0] if heap else math.inf):
                await self._wake.wait()
