"""What may run beside what: the order in which a region's work is started.

Reads and writes are *shared*: any number runs at once, for whoever sends them is bound to give dependencies to those
that must not meet. What changes extents as a whole is *exclusive* and goes one after the other through a lane:

==================  ===========================================================================================
exclusive work      starts when nothing of this runs
==================  ===========================================================================================
flush, destage      another exclusive one, a repair excepted (a repaired extent is closed, a flush passes it by)
flush-and-close,    another exclusive one, a repair of any other extent excepted; a read or write of the same
close, reopen       extent (*safety*: an extent is not taken away from under a thread that reads it)
repair              another exclusive one, a flush or destage excepted; a read or write of the same extent
reopen all          anything at all (*safety*: an Upstairs takes over only a region at rest)
==================  ===========================================================================================

With a peer that keeps to the protocol only the first row ever makes anybody wait; the others are what makes one that
does not harmless.

A write that finds the staging area full *stalls*: it and every write after it wait, in order, until a flush or a
destage has made room. *Liveness*: if none is under way, one is started; if the oldest write still has no room after
that, it is bigger than the whole area and runs regardless.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from crucible_emu.downstairs.work import NOBODY, Kind, Work

LAST_SHARED = Kind.EXTENT_VERSIONS
FIRST_WRITE, LAST_WRITE = Kind.WRITE, Kind.WRITE_UNWRITTEN
RELIEVING = frozenset({Kind.FLUSH, Kind.DESTAGE})
"""Exclusive work that makes room in the staging area."""
FLUSHING = RELIEVING | {Kind.FLUSH_EXTENT}
STAGING_IN_USE = FLUSHING | {Kind.FLUSH_CLOSE, Kind.CLOSE}
"""What keeps the region from emptying its staging area on its own while it runs."""


def excludes(waiting: Work, running: Work, blocks_per_extent: int) -> bool:
    """Whether ``waiting`` must not start while ``running`` runs (the table above)."""
    if waiting.kind is Kind.REOPEN_ALL or running.kind is Kind.REOPEN_ALL:
        return True
    if running.kind <= LAST_SHARED:
        return waiting.kind not in FLUSHING and touches(running, waiting.extent_id, blocks_per_extent)
    if running.kind is Kind.REPAIR:
        if waiting.kind in FLUSHING:
            return False
        return waiting.kind is Kind.REPAIR or waiting.extent_id == running.extent_id
    return not (waiting.kind is Kind.REPAIR and running.kind in FLUSHING)


def touches(work: Work, extent_id: int | None, blocks_per_extent: int) -> bool:
    """Whether a read or write has a block in the extent."""
    if extent_id is None or work.count == 0:
        return False
    return work.start // blocks_per_extent <= extent_id <= (work.start + work.count - 1) // blocks_per_extent


class Lane:
    """Everything of one region that runs, waits for its turn, or is stalled."""

    def __init__(self, blocks_per_extent: int) -> None:
        self.blocks_per_extent = blocks_per_extent
        self._running: dict[Work, None] = {}
        self._waiting: deque[Work] = deque()
        self._stalled: deque[Work] = deque()
        self._emptied = False

    @property
    def idle(self) -> bool:
        return not (self._running or self._waiting or self._stalled)

    @property
    def stalled(self) -> bool:
        return bool(self._stalled)

    @property
    def running(self) -> Iterable[Work]:
        return self._running

    def admit(self, work: Work) -> bool:
        """Start ``work``, if it may start now; else it is returned by a later call of another method."""
        if work.kind <= LAST_SHARED:
            if self._stalled and FIRST_WRITE <= work.kind <= LAST_WRITE:
                self._stalled.append(work)
                return False
        elif self._waiting or self._excluded(work):
            self._waiting.append(work)
            return False
        self._running[work] = None
        return True

    def finish(self, work: Work, failed: bool = False) -> list[Work]:
        """``work`` has run; what starts because of that, in order."""
        del self._running[work]
        started: list[Work] = []
        if work.kind <= LAST_WRITE:
            self._emptied = False
        elif self._stalled and work.kind in RELIEVING and not failed:
            self._emptied = work.kind is Kind.DESTAGE
            started += self._release()
        if self._waiting:
            started += self._advance()
        return started + self._relief() if self._stalled else started

    def finish_writes(self, works: list[Work]) -> list[Work]:
        """As :meth:`finish`, for writes that ended together."""
        running = self._running
        for work in works:
            del running[work]
        self._emptied = False
        started = self._advance() if self._waiting else []
        return started + self._relief() if self._stalled else started

    def stall(self, works: list[Work]) -> list[Work]:
        """These writes, handed out in this order, found no room. What starts because of that: perhaps a destage."""
        for work in works:
            del self._running[work]
        self._stalled.extend(works)
        started: list[Work] = []
        if self._emptied and not any(work.kind in STAGING_IN_USE for work in self._running):
            # The area was emptied just before, nothing was written since, and the oldest still does not fit.
            self._emptied = False
            oldest = self._stalled.popleft()
            oldest.relieved = True
            self._running[oldest] = None
            started.append(oldest)
        return started + self._relief()

    def relieve(self) -> list[Work]:
        """The staging area is getting full: a destage, unless something that makes room is under way already."""
        if any(work.kind in RELIEVING for work in (*self._running, *self._waiting)):
            return []
        destage = Work(Kind.DESTAGE, NOBODY)
        return [destage] if self.admit(destage) else []

    def give_up_stalled(self) -> list[Work]:
        """The staging area cannot be relieved: the writes that wait for it, which will not run."""
        given_up = list(self._stalled)
        self._stalled.clear()
        return given_up

    def drop(self, connection_id: int) -> tuple[list[Work], list[Work]]:
        """A connection ended: what it had not started is gone, what runs is abandoned. Returns both."""
        gone = [work for work in (*self._waiting, *self._stalled) if work.connection_id == connection_id]
        if gone:
            self._waiting = deque(work for work in self._waiting if work.connection_id != connection_id)
            self._stalled = deque(work for work in self._stalled if work.connection_id != connection_id)
        running = [work for work in self._running if work.connection_id == connection_id]
        for work in (*gone, *running):
            work.abandoned = True
        return gone, running

    def advance(self) -> list[Work]:
        """What may start after :meth:`drop` took something out of the way."""
        return self._advance() if self._waiting else []

    def _relief(self) -> list[Work]:
        return self.relieve() if self._stalled else []

    def _release(self) -> list[Work]:
        released = list(self._stalled)
        self._stalled.clear()
        for work in released:
            self._running[work] = None
        return released

    def _advance(self) -> list[Work]:
        started: list[Work] = []
        while self._waiting and not self._excluded(self._waiting[0]):
            work = self._waiting.popleft()
            self._running[work] = None
            started.append(work)
        return started

    def _excluded(self, work: Work) -> bool:
        return any(excludes(work, other, self.blocks_per_extent) for other in self._running)
