"""Where the blocks of a volume lie: sub-volumes end to end, a parent below them (upstairs-volume.md §11.1, §11.4).

What it is for: the arithmetic of cutting a range of bytes at the borders of sub-volumes, and of finding in a read what
must come from the parent.

What it guarantees: the pieces of a range are in order, do not overlap and cover it exactly. (The real program's
coverage is off by one where a range ends one block behind a sub-volume; here it is the intersection of two intervals.)
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

RUNS_MAX = 4
"""Holes of one read that are fetched one by one from the parent; where there are more, one read spans them all. Eight
requests of a block each cost about as much as one request of a MiB in the same process, and far more over a network."""


class Piece(NamedTuple):
    """A part of a range: ``length`` bytes at ``offset`` of sub-volume ``child``; they begin at ``position`` of the
    volume."""

    child: int
    offset: int
    length: int
    position: int


class Layout:
    """Sub-volumes of ``sizes`` bytes, end to end from byte 0 in the order given."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self.ends = list(accumulate(sizes))
        self.starts = [0, *self.ends[:-1]]
        self.size_bytes = self.ends[-1] if self.ends else 0

    def at(self, offset: int) -> int:
        """The sub-volume that has the byte ``offset``, which is inside the volume."""
        return bisect_right(self.ends, offset)

    def cut(self, offset: int, length: int) -> Iterator[Piece]:
        """The range, cut at borders. It lies inside the volume and is not empty."""
        end = offset + length
        index = self.at(offset)
        while offset < end:
            stop = min(end, self.ends[index])
            if stop > offset:
                yield Piece(index, offset - self.starts[index], stop - offset, offset)
            offset = stop
            index += 1


def holes(owned: bytes) -> list[tuple[int, int]]:
    """What a read did not find in its own layer, as half-open runs of blocks: each by itself where they are few, else
    one from the first to the last. ``owned``: one byte a block, 0 or 1."""
    runs: list[tuple[int, int]] = []
    start = owned.find(0)
    while start >= 0:
        stop = owned.find(1, start)
        stop = len(owned) if stop < 0 else stop
        runs.append((start, stop))
        if len(runs) > RUNS_MAX:
            return [(runs[0][0], owned.rfind(0) + 1)]
        start = owned.find(0, stop)
    return runs
