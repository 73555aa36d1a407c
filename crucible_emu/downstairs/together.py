"""Flushes of the Downstairs of one process, done together where they come together.

What it is for: the replicas of a disk are told to flush in the same moment. :class:`FlushesTogether` lets those that
begin in one turn of the loop go through their phases in one thread with one sync for all
(:mod:`crucible_emu.region.together`): a third of the syncs, and one change of threads instead of three.

What it guarantees: who waits gets the outcome of its own flush. Large ones go together, too: three threads that write
4 KiB at a time take the interpreter's lock from one another at each (11.7 µs of CPU time a write, one thread 3.5), and
for long stretches three are no faster than one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import trio

from crucible_emu.errors import CrucibleError
from crucible_emu.region import FlushWork
from crucible_emu.region.together import SteppedFlush, may_go_together, run_together


@dataclass(slots=True, eq=False)
class _Waiting:
    flush: SteppedFlush
    done: trio.Event = field(default_factory=trio.Event)
    outcome: CrucibleError | BaseException | None = None


class FlushesTogether:
    """For the Downstairs of one disk, in one loop."""

    def __init__(self) -> None:
        self._waiting: list[_Waiting] = []

    def takes(self, flush: FlushWork) -> bool:
        """Whether :meth:`run` is the way for this flush."""
        return may_go_together(flush)

    async def run(self, flush: FlushWork) -> CrucibleError | None:
        """Run it in a thread, with those that come in the same turn; the error with which it failed."""
        assert may_go_together(flush)
        mine = _Waiting(flush)
        self._waiting.append(mine)
        # Not cancelled midway: others wait, and a flush that has begun is not broken off by itself either.
        with trio.CancelScope(shield=True):
            if len(self._waiting) == 1:
                await trio.lowlevel.checkpoint()
                meeting, self._waiting = self._waiting, []
                await _run(meeting)
            else:
                await mine.done.wait()
        if mine.outcome is not None and not isinstance(mine.outcome, CrucibleError):
            raise mine.outcome
        return mine.outcome


async def _run(meeting: list[_Waiting]) -> None:
    outcomes: list[CrucibleError | None] | BaseException
    try:
        outcomes = await trio.to_thread.run_sync(run_together, [each.flush for each in meeting])
    except Exception as defect:  # noqa: BLE001 - raised again by each that waits
        outcomes = defect
    for place, each in enumerate(meeting):
        each.outcome = outcomes if isinstance(outcomes, BaseException) else outcomes[place]
        each.done.set()
