"""Job order for an Upstairs in the same process, which relies on the order of its messages.

What it is for: between two processes the Upstairs names what each job depends on. Inside one process nothing can
overtake anything on the way, so it does not compute dependencies for guest I/O at all; the order of arrival says it.
A loop that does one thing after the other would need nothing more. Here cold reads, flushes and repairs take time, so
a job waits for those that arrived before it *and must not be passed*:

==========================================  ==========================================================================
arriving                                    waits for what is outstanding of
==========================================  ==========================================================================
read                                        writes of the same blocks; live repair of the extents it touches
write, write-unwritten                      reads and writes of the same blocks; live repair of the extents it touches;
                                            flushes that have not fixed what they cover
flush                                       writes, live repair: all of them
barrier                                     everything
close, flush-and-close of an extent         reads and writes of that extent, flushes
==========================================  ==========================================================================

A write waits for a flush that arrived before it only until the flush has fixed what it covers, which it does when it
begins. *Safety*: if a write got into a flush before it on one replica and not on another, and failed there, both would
hold the same numbers and other bytes, which nobody could tell any more. Explicit dependencies, which live repair uses
also here because it sends the reopen of an extent first, are waited for besides.

When a job other than a read fails, nothing that arrives later runs: it would have to come after something that never
happened. The Upstairs gives this replica up and repairs it.

What it guarantees: each read sees exactly the writes that arrived before it, and a flush covers all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from crucible_emu.downstairs.jobs import JobLimits, JobQueue
from crucible_emu.downstairs.work import Kind, Work

_GUEST = frozenset({Kind.READ, Kind.WRITE, Kind.WRITE_UNWRITTEN})
_ABSENT = object()
_WRITES = frozenset({Kind.WRITE, Kind.WRITE_UNWRITTEN})
_CLOSING = frozenset({Kind.CLOSE, Kind.FLUSH_CLOSE})


class InOrderJobs(JobQueue):
    """The jobs of one connection in the same process."""

    __slots__ = (
        "_blocks_per_extent",
        "_broken",
        "_flushes",
        "_guest",
        "_live_repair",
        "_missing",
        "_reads",
        "_unfixed",
    )

    def __init__(self, limits: JobLimits, last_flush: int | None = None, blocks_per_extent: int = 1) -> None:
        super().__init__(limits, last_flush)
        self._blocks_per_extent = blocks_per_extent
        self._guest: dict[Work, None] = {}
        self._flushes: dict[Work, None] = {}
        self._unfixed: dict[Work, None] = {}
        self._live_repair: dict[Work, None] = {}
        self._missing: dict[Work, int] = {}
        self._broken = False
        self._reads = 0

    @property
    def reads_pass(self) -> bool:
        """Whether a read that arrives now waits for nothing: only flushes and reads are outstanding."""
        return self.outstanding_jobs == len(self._flushes) + self._reads and not self._broken

    def writes_pass(self, starts: Sequence[int], counts: Iterable[int]) -> bool:
        """Whether writes that arrive now wait for nothing: besides, every flush has fixed what it covers, and no
        outstanding read is of the same blocks."""
        if self._unfixed or not self.reads_pass:
            return False
        if not self._reads:
            return True
        spans = list(zip(starts, counts))
        return not any(
            start < read.start + read.count and read.start < start + count
            for read in self._guest
            for start, count in spans
        )

    def admit(self, work: Work) -> bool:
        self.take(work)
        if self._broken:
            self.waiting += 1
            return False
        waits_for = {other.job_id for other in self._predecessors(work)}
        waits_for.update(job_id for job_id in work.message.dependencies if job_id not in self.completed)
        if self._unfixed and work.kind in _WRITES:
            waits_for.update(fixed(flush) for flush in self._unfixed)
        self._group(work)[work] = None
        self._reads += work.kind is Kind.READ
        if work.kind is Kind.FLUSH:
            self._unfixed[work] = None
        if not waits_for:
            return True
        self.waiting += 1
        self._missing[work] = len(waits_for)
        for job_id in waits_for:
            assert job_id is not None
            self._watch(job_id, work)
        return False

    def flush_fixed(self, work: Work) -> list[Work]:
        if self._unfixed.pop(work, _ABSENT) is _ABSENT:
            return []
        return self._awakened_by(fixed(work))

    def released(self, work: Work) -> None:
        super().released(work)
        self._unfixed.pop(work, None)
        if self._group(work).pop(work, _ABSENT) is not _ABSENT:
            self._reads -= work.kind is Kind.READ

    def failed(self, work: Work) -> None:
        super().failed(work)
        self._broken = True

    def train_done(self, first_job_id: int, count: int) -> None:
        """A train of writes was done at once, which :meth:`writes_pass` allowed."""
        self._completed_more(first_job_id, count)

    def _completed_more(self, first_job_id: int, count: int) -> None:
        super()._completed_more(first_job_id, count)
        # Reads that need no message leave gaps in the ids. *Safety* (memory): nobody names jobs as old as these.
        if self.completed.range_count > self.limits.ranges_max:
            self.completed.forget_oldest(self.completed.range_count // 2)

    def _awakened_by(self, job_id: int) -> list[Work]:
        ready = []
        # A flush that is done has fixed what it covers, whether anybody said so or not.
        for work in (*self._watchers.pop(job_id, ()), *self._watchers.pop(-1 - job_id, ())):
            self._missing[work] -= 1
            if not self._missing[work]:
                del self._missing[work]
                self.waiting -= 1
                ready.append(work)
        return ready

    def _group(self, work: Work) -> dict[Work, None]:
        if work.kind in _GUEST:
            return self._guest
        return self._flushes if work.kind is Kind.FLUSH else self._live_repair

    def _predecessors(self, work: Work) -> Iterable[Work]:
        """What is outstanding and must not be passed, by the table above."""
        kind = work.kind
        if kind in _GUEST:
            if self._guest:
                yield from (other for other in self._guest if _collide(work, other))
            if self._live_repair:
                yield from (other for other in self._live_repair if self._touches(work, other))
        elif kind is Kind.FLUSH:
            yield from (other for other in self._guest if other.kind is not Kind.READ)
            yield from self._live_repair
        elif kind is Kind.BARRIER:
            yield from self._guest
            yield from self._flushes
            yield from self._live_repair
        elif kind in _CLOSING:
            yield from (other for other in self._guest if self._touches(other, work))
            yield from self._flushes

    def _touches(self, guest: Work, other: Work) -> bool:
        """Whether a read or write touches the extent that ``other`` is about (a barrier or no-op is about none)."""
        if other.extent_id is None:
            return False
        size = self._blocks_per_extent
        return guest.start // size <= other.extent_id <= (guest.start + guest.count - 1) // size


def fixed(flush: Work) -> int:
    """What writes watch that wait for a flush to fix what it covers; no id of a job is negative."""
    assert flush.job_id is not None
    return -1 - flush.job_id


def _collide(one: Work, other: Work) -> bool:
    if one.kind is Kind.READ and other.kind is Kind.READ:
        return False
    return one.start < other.start + other.count and other.start < one.start + one.count
