"""Which earlier jobs a new job must wait for (upstairs-volume.md §6.17, wire-protocol.md §7.2).

What it is for: a Downstairs may run jobs in any order that their dependencies allow, so every job names the earlier
jobs on its blocks. Writes, flushes and barriers are *blocking*, reads are not: a read waits for the last blocking job
of each block, a blocking job for that and for the reads since.

The real program sends each read to all three replicas, so there a blocking job need not name what the reads wait for
already. Here a read goes to one replica, and to the others the blocking job before it is all that holds the order.

How: a sorted list of disjoint segments of blocks, each with one blocking job and the reads since. A flush covers every
block, so it replaces the whole list by one segment; hence the list never holds more than what was sent since the last
flush or barrier, and a barrier is due after 10,000 jobs.

Why it is safe: finished jobs may be left in the list, because a job that is done on every replica it was sent to is
filtered out when it is looked up (``live``), and one that is not is a true dependency.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable

EVERY_BLOCK = 2**64 - 1
"""Exclusive end of the range that a flush or a barrier covers."""


class _Segment:
    __slots__ = ("blocking", "end", "readers")

    def __init__(self, end: int, blocking: int | None, readers: tuple[int, ...]) -> None:
        self.end = end
        self.blocking = blocking
        self.readers = readers


class DependencyTracker:
    """Interval map from block ranges to the jobs that a newcomer on them must wait for."""

    __slots__ = ("_segments", "_starts")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._segments: list[_Segment] = []

    def __len__(self) -> int:
        """Number of segments: what bounds the memory and the cost of a look-up."""
        return len(self._starts)

    def read(self, job_id: int, start: int, end: int, live: Callable[[int], bool]) -> list[int]:
        """Record a non-blocking job on blocks ``start .. end``; what it depends on, ascending."""
        found: set[int] = set()
        if start >= end:
            return []
        for segment in self._cover(start, end):
            if segment.blocking is not None:
                found.add(segment.blocking)
            segment.readers = (*(reader for reader in segment.readers if live(reader)), job_id)
        return sorted(filter(live, found))

    def block(self, job_id: int, start: int, end: int, live: Callable[[int], bool]) -> list[int]:
        """Record a blocking job on blocks ``start .. end``; what it depends on, ascending."""
        if start >= end:
            return []
        first = self._split(start)
        last = self._split(end)
        found: set[int] = set()
        for segment in self._segments[first:last]:
            found.update(segment.readers)
            if segment.blocking is not None:
                found.add(segment.blocking)
        self._starts[first:last] = [start]
        self._segments[first:last] = [_Segment(end, job_id, ())]
        return sorted(filter(live, found))

    def block_everything(self, job_id: int, live: Callable[[int], bool]) -> list[int]:
        """Record a flush or barrier: it depends on the whole frontier, and all that follows depends on it."""
        return self.block(job_id, 0, EVERY_BLOCK, live)

    def clear(self) -> None:
        """Forget everything (no job is outstanding any more)."""
        self._starts.clear()
        self._segments.clear()

    def _split(self, at: int) -> int:
        """Make ``at`` a border; the index of the first segment that starts at or after it."""
        index = bisect_left(self._starts, at)
        if index:
            before = self._segments[index - 1]
            if before.end > at:
                self._starts.insert(index, at)
                self._segments.insert(index, _Segment(before.end, before.blocking, before.readers))
                before.end = at
        return index

    def _cover(self, start: int, end: int) -> list[_Segment]:
        """The segments that make up ``start .. end`` exactly; gaps become segments without a blocking job."""
        index = self._split(start)
        self._split(end)
        at = start
        while at < end:
            if index == len(self._starts) or self._starts[index] > at:
                gap_end = end if index == len(self._starts) else min(end, self._starts[index])
                self._starts.insert(index, at)
                self._segments.insert(index, _Segment(gap_end, None, ()))
            at = self._segments[index].end
            index += 1
        return self._segments[bisect_left(self._starts, start) : bisect_right(self._starts, end - 1)]
