"""What has to reach a region's files before a job is done: flushes, destages, closing an extent, snapshots.

What it guarantees: what a flush covers is fixed by :meth:`Flushes.begin`, on the loop's thread; its I/O runs in
another; its success is taken over by the region only after that. A snapshot is copied before the flush is taken over:
until then nothing that was written after :meth:`Flushes.begin` can reach a file, so the copy is what the flush covered.
Where a write changes a file at once (every policy but STAGED), flush and snapshot run on the loop instead, and nothing
else runs meanwhile.

A flush that follows hard upon another may go to the region's journal (:mod:`crucible_emu.region.journal`), which takes
one sync instead of three. A guest that flushes now and then gets an ordinary directory after each of them, and when the
flushes stop, whoever runs the Downstairs has the journal settled.

*Optimisation*: small flushes to the journal run on the loop where several in a row took no longer than
:data:`QUICK_S_MAX`: a task, a thread, and the way there and back cost 0.2 ms of processor time. The guest's writes wait
for the flush anyway. One that takes longer sends the next ones to a thread again.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from crucible_emu.downstairs.work import Kind, Work, outcome_of
from crucible_emu.errors import CrucibleError
from crucible_emu.region import FlushWork, Region, SyncPolicy
from crucible_emu.region.journaled import JournaledFlush

JOURNALED_WITHIN_S = 0.25
"""A flush that comes so soon after another goes to the journal."""

QUICK_S_MAX = 0.004
"""How long the loop may be kept from everything else by a flush."""
QUICK_FLUSHES_MIN = 4
"""So many in a row must have been quick before the next is believed to be."""
QUICK_BLOCKS_MAX = 256
"""A larger flush says nothing of small ones."""

InThread = Callable[..., Awaitable[Any]]
"""Runs a function in a thread; what it returns, or the error with which it failed."""


class Together(Protocol):
    """Runs flushes of several regions side by side (:mod:`crucible_emu.downstairs.together`)."""

    def takes(self, flush: FlushWork) -> bool:
        """Whether :meth:`run` is the way for this flush."""
        ...

    async def run(self, flush: FlushWork) -> CrucibleError | None:
        """Run it in a thread; the error with which it failed."""
        ...


class Flushes:
    """The flushes of one region, one at a time. ``now_s`` is the loop's clock."""

    def __init__(
        self, region: Region, in_thread: InThread, now_s: Callable[[], float], together: Together | None = None
    ) -> None:
        self.region = region
        self._now_s = now_s
        self._in_thread = in_thread
        self._together = together
        self._quick_in_a_row = 0
        self.flushed_at_s = -math.inf
        """When the last flush that had anything to do was done, on the loop's clock."""

    def begin(self, work: Work) -> FlushWork:
        """Fix what has to reach the files before ``work`` is done. Raises what the region raises."""
        message = work.message
        if work.kind is Kind.FLUSH:
            soon = self._now_s() - self.flushed_at_s < JOURNALED_WITHIN_S
            journal = soon and message.snapshot_details is None and message.extent_limit is None
            numbers = message.flush_number, message.gen_number
            return self.region.begin_flush(*numbers, message.extent_limit, journal=journal)
        if work.kind is Kind.FLUSH_EXTENT or work.kind is Kind.FLUSH_CLOSE:
            assert work.extent_id is not None
            return self.region.begin_flush_extent(work.extent_id, message.flush_number, message.gen_number)
        # A close flushes nothing, but what is staged belongs into the file that others may copy.
        return self.region.begin_destage()

    def is_quick(self, work: Work, flush: FlushWork) -> bool:
        """Whether :meth:`finish_at_once` is the way: there is no I/O to be done, or such as took no time lately."""
        if flush.is_empty:
            return snapshot_name(work) is None
        return self._is_small(flush) and self._quick_in_a_row >= QUICK_FLUSHES_MIN

    def _is_small(self, flush: FlushWork) -> bool:
        if self._together is not None and self._together.takes(flush):
            return False
        return isinstance(flush, JournaledFlush) and flush.block_count <= QUICK_BLOCKS_MAX

    def finish_at_once(self, work: Work, flush: FlushWork) -> Any:
        """The outcome of a flush that :meth:`is_quick`."""
        began_s = self._now_s()
        outcome = outcome_of(flush.run)
        if isinstance(outcome, CrucibleError):
            self.region.abandon_flush(flush)
            return outcome
        self.region.finish_flush(flush)
        if not flush.is_empty:
            self._took(flush, began_s)
        return self._close(work)

    def _took(self, flush: FlushWork, began_s: float) -> None:
        """A flush that had something to do is done."""
        self.flushed_at_s = self._now_s()
        if self._is_small(flush):
            self._quick_in_a_row = self._quick_in_a_row + 1 if self.flushed_at_s - began_s <= QUICK_S_MAX else 0

    async def finish(self, work: Work, flush: FlushWork) -> Any:
        """Do the I/O of ``flush``; the outcome of ``work``."""
        finished = False
        began_s = self._now_s()
        try:
            outcome = await self._run(work, flush)
            finished = not isinstance(outcome, CrucibleError)
        finally:
            if not finished:
                self.region.abandon_flush(flush)
        if not finished:
            return outcome
        try:
            outcome = await self._snapshot(work)
        finally:
            self.region.finish_flush(flush)
            if work.kind is Kind.FLUSH:
                self._took(flush, began_s)
        return outcome if isinstance(outcome, CrucibleError) else self._close(work)

    async def _run(self, work: Work, flush: FlushWork) -> Any:
        if flush.is_empty or (self.region.policy is not SyncPolicy.STAGED and snapshot_name(work) is not None):
            return outcome_of(flush.run)
        if self._together is not None and self._together.takes(flush):
            return await self._together.run(flush)
        return await self._in_thread(flush.run)

    async def _snapshot(self, work: Work) -> Any:
        name = snapshot_name(work)
        if name is None:
            return None
        if self.region.policy is SyncPolicy.STAGED:
            return await self._in_thread(self.region.snapshot, name)
        return outcome_of(self.region.snapshot, name)

    def _close(self, work: Work) -> Any:
        """After its flush: close the extent, where that was asked for."""
        if work.kind is Kind.CLOSE or work.kind is Kind.FLUSH_CLOSE:
            assert work.extent_id is not None
            return outcome_of(self.region.close_extent, work.extent_id)
        return None


def snapshot_name(work: Work) -> str | None:
    """The snapshot that belongs to a flush, if any."""
    name: str | None = work.message.snapshot_details if work.kind is Kind.FLUSH else None
    return name
