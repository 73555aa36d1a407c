"""Which earlier jobs a new job must wait for (upstairs-volume.md §6.17, wire-protocol.md §7.2).

What it is for: a Downstairs may run jobs in any order that their dependencies allow, so every job names the earlier
jobs on its blocks. Writes, flushes and barriers are *blocking*, reads are not: a read waits for the last blocking job
of each block, a blocking job for that and for the reads since.

The real program sends each read to all three replicas, so there a blocking job need not name what the reads wait for
already. Here a read goes to one replica, and to the others the blocking job before it is all that holds the order.

How: a sorted list of disjoint segments of blocks, each with one blocking job and the reads since. A flush covers every
block, so it replaces the whole list by one segment; hence the list never holds more than what was sent since the last
flush or barrier, and a barrier is due after 10,000 jobs.

Jobs on single blocks, which are most of a busy disk's, do not cut the list up: they stand in a table by block *above*
it, an entry of which hides the segment beneath as soon as it has a blocking job. A job on several blocks takes up what
stands above them. *Optimisation*: 1 µs for a read and 2 for a write, where a list of thousands of segments took 6 and
5; reads that ended long ago are swept out of the table when it has doubled.

Why it is safe: finished jobs may be left in the list, because a job that is done on every replica it was sent to is
filtered out when it is looked up (``live``), and one that is not is a true dependency.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable

EVERY_BLOCK = 2**64 - 1
"""Exclusive end of the range that a flush or a barrier covers."""


SINGLES_MIN = 4096
"""Up to so many single blocks nothing is swept out."""

_Single = tuple[int | None, tuple[int, ...]]
"""The blocking job of a block, ``None`` where the segment beneath has it, and the reads since."""
_NOTHING: _Single = (None, ())


class _Segment:
    __slots__ = ("blocking", "end", "readers")

    def __init__(self, end: int, blocking: int | None, readers: tuple[int, ...]) -> None:
        self.end = end
        self.blocking = blocking
        self.readers = readers


class DependencyTracker:
    """Interval map from block ranges to the jobs that a newcomer on them must wait for."""

    __slots__ = ("_segments", "_singles", "_starts", "_sweep_at")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._segments: list[_Segment] = []
        self._singles: dict[int, _Single] = {}
        self._sweep_at = SINGLES_MIN

    def __len__(self) -> int:
        """Number of segments and single blocks: what bounds the memory and the cost of a look-up."""
        return len(self._starts) + len(self._singles)

    def read(self, job_id: int, start: int, end: int, live: Callable[[int], bool]) -> list[int]:
        """Record a non-blocking job on blocks ``start .. end``; what it depends on, ascending."""
        found: set[int] = set()
        if end - start == 1:
            return self._read_one(job_id, start, live)
        if start >= end:
            return []
        for block in self._singles_within(start, end):
            self._lower(block)
        for segment in self._cover(start, end):
            if segment.blocking is not None:
                found.add(segment.blocking)
            segment.readers = (*(reader for reader in segment.readers if live(reader)), job_id)
        return sorted(filter(live, found))

    def blocking(self, block: int) -> int | None:
        """The last blocking job of a block, finished or not; nothing is recorded."""
        blocking, _ = self._singles.get(block, _NOTHING)
        if blocking is None:
            beneath = self._segment_of(block)
            blocking = None if beneath is None else beneath.blocking
        return blocking

    def block(self, job_id: int, start: int, end: int, live: Callable[[int], bool]) -> list[int]:
        """Record a blocking job on blocks ``start .. end``; what it depends on, ascending."""
        if end - start == 1:
            return self._block_one(job_id, start, live)
        if start >= end:
            return []
        first = self._split(start)
        last = self._split(end)
        found: set[int] = set()
        hiding: list[int] = []
        for block in self._singles_within(start, end):
            blocking, readers = self._singles.pop(block)
            found.update(readers)
            if blocking is not None:
                found.add(blocking)
                hiding.append(block)
        for segment in self._visible(first, last, hiding):
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
        self._singles.clear()

    def _read_one(self, job_id: int, block: int, live: Callable[[int], bool]) -> list[int]:
        blocking, readers = self._singles.get(block, _NOTHING)
        if readers:
            readers = tuple(filter(live, readers))
        elif blocking is None and len(self._singles) >= self._sweep_at:
            self._sweep(live)
        self._singles[block] = (blocking, (*readers, job_id))
        if blocking is None:
            beneath = self._segment_of(block)
            blocking = None if beneath is None else beneath.blocking
        return [] if blocking is None or not live(blocking) else [blocking]

    def _block_one(self, job_id: int, block: int, live: Callable[[int], bool]) -> list[int]:
        blocking, readers = self._singles.get(block, _NOTHING)
        self._singles[block] = (job_id, ())
        if blocking is not None:
            return sorted(filter(live, {*readers, blocking})) if readers else [blocking] if live(blocking) else []
        beneath = self._segment_of(block)
        found = {*readers} if beneath is None else {*readers, *beneath.readers}
        if beneath is not None and beneath.blocking is not None:
            found.add(beneath.blocking)
        return sorted(filter(live, found)) if found else []

    def _segment_of(self, block: int) -> _Segment | None:
        index = bisect_right(self._starts, block) - 1
        return self._segments[index] if index >= 0 and self._segments[index].end > block else None

    def _singles_within(self, start: int, end: int) -> list[int]:
        singles = self._singles
        if not singles:
            return []
        if end - start <= len(singles):
            return [block for block in range(start, end) if block in singles]
        return [block for block in singles if start <= block < end]

    def _visible(self, first: int, last: int, hiding: list[int]) -> list[_Segment]:
        """The segments ``first`` to ``last`` of which some block is not among those ``hiding`` what is beneath."""
        starts, segments = self._starts, self._segments
        small = {index for index in range(first, last) if segments[index].end - starts[index] <= len(hiding)}
        if small:
            beneath = ((block, bisect_right(starts, block) - 1) for block in hiding)
            hidden = Counter(index for block, index in beneath if index >= 0 and block < segments[index].end)
            small = {index for index in small if hidden[index] == segments[index].end - starts[index]}
        return [segments[index] for index in range(first, last) if index not in small]

    def _lower(self, block: int) -> None:
        """What the table says of this block becomes a segment."""
        blocking, readers = self._singles.pop(block)
        (segment,) = self._cover(block, block + 1)
        if blocking is None:
            segment.readers += readers
        else:
            segment.blocking, segment.readers = blocking, readers

    def _sweep(self, live: Callable[[int], bool]) -> None:
        """Forget blocks that were only read, by jobs that are over."""
        singles = self._singles
        for block in [block for block, (blocking, readers) in singles.items() if blocking is None]:
            if not any(map(live, singles[block][1])):
                del singles[block]
        self._sweep_at = max(SINGLES_MIN, 2 * len(singles))

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
