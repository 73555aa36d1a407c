"""Which job may run: the completed set, and the jobs that wait for it (wire-protocol.md §7.2).

The contract: a job runs once every id among its dependencies is in the completed set of its connection. A completed
job adds its id; a completed Flush or Barrier *replaces* the set by its own id. A dependency may name a job that has
not arrived yet (live repair sends the reopen first), so a job can wait for an id nobody has heard of.

How it is kept cheap: ids come almost in order, so the set is a few ranges and a look at the last one decides. A job
that must wait *watches* one missing dependency, the last of its list, and is looked at again only when that one
completes. A job is found ready at the very moment at which all its dependencies are in the set for the first time: the
watched id is missing until that moment, by choice. In-order trains cost one comparison per job, a waiting job one
list entry whatever the length of its dependencies.

Where it differs from a loop that does one thing after the other: here a flush takes time, and jobs that do not depend
on it may complete meanwhile. In the loop they would have run after the flush and would be in the set behind it;
therefore they stay in it here (:meth:`JobQueue.flush_begun`).

Memory is bounded per connection by :class:`JobLimits`. A peer that fills the queue with jobs none of which can run
would wait for ever; that is :attr:`JobQueue.stuck`, and costs it the connection.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter

from crucible_emu.downstairs.work import Kind, Work


class CompletedJobs:
    """A set of job ids as disjoint ascending ranges; adding the next id in order, and finding a recent one, is O(1)."""

    __slots__ = ("_starts", "_stops")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []

    def add(self, first: int, count: int = 1) -> None:
        """Add the ids ``first .. first + count``."""
        stop = first + count
        if self._stops and first == self._stops[-1]:
            self._stops[-1] = stop
        elif not self._stops or first > self._stops[-1]:
            self._starts.append(first)
            self._stops.append(stop)
        else:
            self._insert(first, stop)

    def _insert(self, first: int, stop: int) -> None:
        # Every range that overlaps or touches the new one becomes part of it.
        low = bisect_right(self._stops, first - 1)
        high = bisect_right(self._starts, stop)
        if low < high:
            first = min(first, self._starts[low])
            stop = max(stop, self._stops[high - 1])
        self._starts[low:high] = [first]
        self._stops[low:high] = [stop]

    def __contains__(self, job_id: object) -> bool:
        assert isinstance(job_id, int)
        index = bisect_right(self._starts, job_id) - 1
        return index >= 0 and job_id < self._stops[index]

    def last_missing(self, job_ids: Sequence[int]) -> int | None:
        """The last of ``job_ids`` that is not in the set; ``None`` when all are."""
        if not job_ids:
            return None
        if self._starts:
            start, stop = self._starts[-1], self._stops[-1]
            if len(job_ids) == 1:
                if start <= job_ids[0] < stop:
                    return None
            elif start <= min(job_ids) and max(job_ids) < stop:
                return None
        for job_id in reversed(job_ids):
            if job_id not in self:
                return job_id
        return None

    @property
    def range_count(self) -> int:
        return len(self._starts)

    def forget_oldest(self, count: int) -> None:
        """Drop the ``count`` ranges with the lowest ids."""
        del self._starts[:count], self._stops[:count]

    def __repr__(self) -> str:
        return f"CompletedJobs({list(zip(self._starts, self._stops))})"


@dataclass(frozen=True, slots=True)
class JobLimits:
    """What one connection may have outstanding before it is no longer read.

    The real Upstairs keeps to 1,500 jobs and 75 MiB, plus a handful for live repair; these leave room for others.
    ``bytes_max`` counts the data of writes and of answers to reads; one job more than the limit is always taken, so
    the bound is ``bytes_max`` plus one frame. ``ranges_max`` bounds the completed set.
    """

    jobs_max: int = 8192
    bytes_max: int = 128 * 1024 * 1024
    ranges_max: int = 262_144


class JobQueue:
    """The jobs of one connection."""

    __slots__ = (
        "_after_flush",
        "_soon",
        "_watchers",
        "completed",
        "limits",
        "outstanding_bytes",
        "outstanding_jobs",
        "waiting",
    )

    def __init__(self, limits: JobLimits, last_flush: int | None = None) -> None:
        self.limits = limits
        self.completed = CompletedJobs()
        if last_flush is not None:
            self.completed.add(last_flush)
        self.outstanding_jobs = 0
        self.outstanding_bytes = 0
        self.waiting = 0
        self._watchers: dict[int, list[Work]] = {}
        self._after_flush: CompletedJobs | None = None
        self._soon: set[int] = set()

    @property
    def full(self) -> bool:
        """*Safety* (memory): nothing more is to be read from this connection for now."""
        return self.outstanding_jobs >= self.limits.jobs_max or self.outstanding_bytes >= self.limits.bytes_max

    @property
    def stuck(self) -> bool:
        """*Liveness*: full, and every job waits for one that cannot come any more because nothing is read."""
        return self.full and self.waiting == self.outstanding_jobs

    def admit(self, work: Work) -> bool:
        """Take a job; whether it may run now. One that may not is returned by :meth:`complete` in due time."""
        self.outstanding_jobs += 1
        self.outstanding_bytes += work.size_bytes
        missing = self.completed.last_missing(work.message.dependencies)
        if missing is None:
            return True
        self.waiting += 1
        self._watch(missing, work)
        if work.kind is Kind.FLUSH and all(map(self._complete_or_soon, work.message.dependencies)):
            assert work.job_id is not None
            self._soon.add(work.job_id)
        return False

    def comes_soon(self, job_id: int) -> bool:
        """Whether a job will complete by itself, whatever else arrives: a flush that runs, writes held until then, a
        flush that waits for nothing but such."""
        return job_id in self._soon

    def _complete_or_soon(self, job_id: int) -> bool:
        return job_id in self.completed or job_id in self._soon

    def hold(self, work: Work, job_ids: Sequence[int]) -> None:
        """Take these writes as one job until what they wait for, of which something is missing, has completed."""
        if self.admit(work):
            raise RuntimeError(f"{work!r} has nothing to wait for")
        self._soon.update(job_ids)

    def let_go(self, work: Work, job_ids: Sequence[int]) -> None:
        """What :meth:`hold` took is about to be done."""
        self._soon.difference_update(job_ids)
        self.released(work)

    def take(self, work: Work) -> None:
        """Count something that waits for no other job: a reconciliation step."""
        self.outstanding_jobs += 1
        self.outstanding_bytes += work.size_bytes

    def complete(self, works: Sequence[Work]) -> list[Work]:
        """These jobs are done and acknowledged; the jobs which may run because of that, in order of arrival.

        The answers must be queued before this is called: an answer goes out before what depends on it runs.
        """
        awakened: list[Work] = []
        for work in works:
            assert work.job_id is not None
            self.released(work)
            self._add(work)
            if self._watchers:
                awakened += self._awakened_by(work.job_id)
        return _in_order_of_arrival(awakened)

    def complete_train(self, works: Sequence[Work]) -> list[Work]:
        """As :meth:`complete`, for reads and writes; *optimisation*: consecutive ids are added in one step."""
        job_ids: list[int] = []
        for work in works:
            assert work.job_id is not None
            self.released(work)
            job_ids.append(work.job_id)
        return self.complete_ids(job_ids)

    def complete_ids(self, job_ids: Sequence[int]) -> list[Work]:
        """As :meth:`complete_train`, for jobs that were never outstanding: they were done as they arrived."""
        if job_ids == list(range(job_ids[0], job_ids[0] + len(job_ids))):
            self._completed_more(job_ids[0], len(job_ids))
        else:
            for job_id in job_ids:
                self._completed_more(job_id, 1)
        awakened: list[Work] = []
        if self._watchers:
            for job_id in job_ids:
                awakened += self._awakened_by(job_id)
        return _in_order_of_arrival(awakened)

    def released(self, work: Work) -> None:
        """A job that was started needs no memory any more: it was answered, or given up."""
        self.outstanding_jobs -= 1
        self.outstanding_bytes -= work.size_bytes

    def failed(self, work: Work) -> None:
        """A job failed. It never counts as complete: what depends on it waits until the Upstairs gives this replica
        up, and so nothing is acknowledged that was to come after it."""
        self.released(work)
        if work.kind is Kind.FLUSH:
            self._after_flush = None
            assert work.job_id is not None
            self._soon.discard(work.job_id)

    def flush_begun(self, work: Work) -> None:
        """A Flush has fixed what it covers; jobs that complete from now on belong behind it."""
        assert work.job_id is not None
        self._after_flush = CompletedJobs()
        self._soon.add(work.job_id)

    def flush_fixed(self, work: Work) -> list[Work]:
        """A Flush has fixed what it covers; the jobs which may run because of that. Here none: dependencies make
        everything behind a flush wait until it is done."""
        return []

    def _add(self, work: Work) -> None:
        assert work.job_id is not None
        if work.kind is Kind.FLUSH:
            self.completed = self._after_flush if self._after_flush is not None else CompletedJobs()
            self._after_flush = None
            self._soon.discard(work.job_id)
        elif work.kind is Kind.BARRIER:
            self.completed = CompletedJobs()
            if self._after_flush is not None:
                self._after_flush = CompletedJobs()
        self._completed_more(work.job_id, 1)

    def _completed_more(self, first_job_id: int, count: int) -> None:
        self.completed.add(first_job_id, count)
        if self._after_flush is not None:
            self._after_flush.add(first_job_id, count)

    def _awakened_by(self, job_id: int) -> list[Work]:
        ready = []
        for work in self._watchers.pop(job_id, ()):
            missing = self.completed.last_missing(work.message.dependencies)
            if missing is None:
                self.waiting -= 1
                ready.append(work)
            else:
                self._watch(missing, work)
        return ready

    def _watch(self, missing: int, work: Work) -> None:
        watchers = self._watchers.get(missing)
        if watchers is None:
            self._watchers[missing] = [work]
        else:
            watchers.append(work)


def _in_order_of_arrival(works: list[Work]) -> list[Work]:
    if len(works) > 1:
        works.sort(key=_sequence)
    return works


_sequence = attrgetter("sequence")
