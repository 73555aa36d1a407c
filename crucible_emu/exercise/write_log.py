"""The write log: what each block may hold, from how often it was written (upstairs-volume.md §16.1).

What it is for: per block a count ``cur``, raised *before* a write is issued, and a count ``min``, raised to what a
flush has made durable. An undisturbed session reads exactly ``cur``. After a crash of whatever was between
the tester and the disk, any count from ``min`` to ``cur`` is right, because a write that no flush has covered may be
there or not; such blocks are *doubtful* until a read has shown which it is. The real tester accepts ranges for a whole
run (``--range``); here doubt is kept per block, so that all others are checked strictly.

Why it is safe: ``cur`` is never below what was issued, and ``min`` never above what a completed flush covers, whatever
moment the tester dies at. A write counts for a flush only if it had succeeded when the flush was submitted.

A block of count 0 has content that nobody knows and is not checked; on a disk that was blank when the log began
(``blank``) it must be zeros.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from crucible_emu.errors import UsageError
from crucible_emu.exercise.content import Blocks, Counts, Mask, Rows, Rule, counts_in, equal_rows, made

COUNT_MAX = 2**32 - 1
MARKS_MAX = 4096
"""Writes between two flushes are put into one array now and then: 12 bytes for each block instead of objects."""


@dataclass(frozen=True, slots=True)
class WrongBlock:
    """A block that holds what it must not hold. ``minimum`` and ``current`` are the counts that would be right (one
    where they are equal), ``found`` says what is there."""

    block: int
    minimum: int
    current: int
    found: str

    def __str__(self) -> str:
        if self.current == 0:
            wanted = "zeros, for it was never written"
        elif self.minimum == self.current:
            wanted = f"write {self.current}"
        else:
            wanted = f"one of writes {self.minimum} to {self.current}"
        return f"block {self.block} is wrong: expected {wanted}, found {self.found}"


class Expectation(NamedTuple):
    """What a read may find: counts from ``low`` to ``cur``, uint32[blocks] each, equal where there is no doubt."""

    low: Counts
    cur: Counts


Mark = tuple[Blocks, Counts]
"""Blocks and their counts that a flush covers."""


class WriteLog:
    """The log of a disk of ``len(cur)`` blocks. ``cur`` and ``min`` are uint32[blocks], perhaps mapped from a file."""

    def __init__(self, cur: Counts, minimum: Counts, *, rule: Rule = Rule.CRUTEST, blank: bool = False) -> None:
        self.cur = cur
        self.min = minimum
        self.rule = rule
        self.blank = blank
        self.doubtful: Mask = np.zeros(len(cur), np.bool_)
        self._written: list[Mark] = []

    @classmethod
    def new(cls, block_count: int, *, rule: Rule = Rule.CRUTEST, blank: bool = False) -> WriteLog:
        """A log in memory of a disk that it knows nothing of (or, ``blank``, that it is all zeros)."""
        return cls(np.zeros(block_count, np.uint32), np.zeros(block_count, np.uint32), rule=rule, blank=blank)

    @property
    def block_count(self) -> int:
        return len(self.cur)

    # -- writing ------------------------------------------------------------------------------------------------------

    def issue(self, blocks: Blocks) -> Counts:
        """Raise the counts of ``blocks`` (each at most once in it) and return the new ones. Call it before the write is
        submitted: *safety*. Raises :class:`UsageError` where a count would pass its 32 bits."""
        if (self.cur[blocks] == COUNT_MAX).any():
            raise UsageError("a block was written 2^32 times: begin a new write log")
        self.cur[blocks] += np.uint32(1)
        return self.cur[blocks]

    def succeeded(self, blocks: Blocks, counts: Counts) -> None:
        """The write of these blocks with these counts was acknowledged; no doubt is left where it is the newest."""
        self.doubtful[blocks[self.cur[blocks] == counts]] = False
        self._written.append((blocks, counts))
        if len(self._written) >= MARKS_MAX:
            self._written = [_joined(self._written)]

    def failed(self, blocks: Blocks) -> None:
        """The write of these blocks failed: it may be there or not."""
        self.doubtful[blocks] = True

    def flush_begins(self) -> list[Mark]:
        """What a flush submitted now covers; give it to :meth:`commit` when it has succeeded, or to
        :meth:`flush_failed`."""
        mark, self._written = self._written, []
        return mark

    def flush_failed(self, mark: list[Mark]) -> None:
        """The next flush covers it."""
        self._written = mark + self._written

    def commit(self, mark: list[Mark]) -> None:
        """What ``mark`` names is durable."""
        if mark:
            blocks, counts = _joined(mark)
            np.maximum.at(self.min, blocks, np.minimum(counts, self.cur[blocks]))

    def commit_all(self) -> None:
        """Everything that was issued is durable (the disk was flushed and nothing is in flight)."""
        certain = ~self.doubtful
        self.min[certain] = self.cur[certain]
        self._written = []

    def doubt(self) -> None:
        """Something died with writes in flight: what no flush covers may be there or not."""
        self.doubtful |= self.min < self.cur
        self._written = []

    # -- reading ------------------------------------------------------------------------------------------------------

    def expect(self, blocks: Blocks, *, in_range: bool = False) -> Expectation:
        """What a read of ``blocks`` that is submitted now may find. ``in_range``: any count from ``min`` on."""
        cur, low = self.cur[blocks], self.min[blocks]
        return Expectation(low if in_range else np.where(self.doubtful[blocks], low, cur), cur)

    def check(self, blocks: Blocks, rows: Rows, expected: Expectation | None = None) -> WrongBlock | None:
        """The first of ``blocks`` whose row is not right, ``None`` where all are.

        ``expected``: as :meth:`expect` had it when the read was submitted; by default as it has it now. What was
        written since may be there as well: a read that one replica failed is tried on another, and finds what that one
        holds by then. Where doubt is resolved, ``cur`` is lowered to what was found, unless it was written since.
        """
        if expected is None:
            expected = self.expect(blocks)
        low, counts = expected
        right = equal_rows(rows, made(blocks, counts, rows.shape[1], self.rule))
        certain = right & self.doubtful[blocks]
        if certain.any():
            self.doubtful[blocks[certain & (self.cur[blocks] == counts)]] = False
        if not self.blank:
            right |= counts == 0
        if right.all():
            return None
        others = ~right
        right[others] = self._resolve(blocks[others], rows[others], low[others], counts[others])
        wrong = np.flatnonzero(~right)
        if not len(wrong):
            return None
        at = int(wrong[0])
        block, current = int(blocks[at]), int(counts[at])
        return WrongBlock(block, int(low[at]), current, self._describe(block, rows[at], current))

    def _resolve(self, blocks: Blocks, rows: Rows, low: Counts, counts: Counts) -> Mask:
        """Which rows hold a count from ``low`` to the newest; the log takes it for what is there."""
        newest = np.maximum(counts, self.cur[blocks])
        said = counts_in(rows, newest, self.rule)
        known = (said >= np.maximum(low, 1)) & (said <= newest)
        candidates = np.where(known, said, 0).astype(np.uint32)
        fits = known & equal_rows(rows, made(blocks, candidates, rows.shape[1], self.rule))
        # Never durably written: it may be as it was before the log began.
        before = ~fits & (low == 0) & (~rows.any(axis=1) if self.blank else np.ones(len(rows), np.bool_))
        candidates[before] = 0
        fits |= before
        settled = fits & (low < counts) & (self.cur[blocks] == counts)
        self.cur[blocks[settled]] = candidates[settled]
        self.doubtful[blocks[settled]] = False
        return fits

    def _describe(self, block: int, row: Rows, expected: int) -> str:
        """In words what a row holds: zeros, another write of this block, another block, or where it differs."""
        if not row.any():
            return "zeros"
        one = row[None, :]
        here = np.array([block], np.int64)
        highest = np.array([max(expected, 1) + 255 if max(expected, 1) + 255 <= COUNT_MAX else COUNT_MAX], np.uint32)
        said = int(counts_in(one, np.array([max(expected, 1)], np.uint32), self.rule)[0])
        for count in (said, int(counts_in(one, highest, self.rule)[0])):
            if 0 < count <= COUNT_MAX:
                counts = np.array([count], np.uint32)
                if equal_rows(one, made(here, counts, len(row), self.rule))[0]:
                    return f"write {count}"
        if self.rule is Rule.CRUTEST and (row[1:] == row[1]).all():
            return f"a block whose number modulo 255 is {row[0]} and whose count modulo 256 is {row[1]}"
        wanted = made(here, np.array([expected], np.uint32), len(row), self.rule)[0]
        at = int(np.flatnonzero(row != wanted)[0])
        return f"byte {at} as 0x{row[at]:02x} instead of 0x{wanted[at]:02x}"

    # -- the real tester's file ---------------------------------------------------------------------------------------

    def dumps(self) -> str:
        """The log as the real tester writes it (``--verify-out``)."""
        return json.dumps({"count_cur": self.cur.tolist(), "count_min": self.min.tolist()})

    def load(self, text: str | bytes, source: str) -> None:
        """Take over the counts of such a file. What it leaves open becomes doubtful. Raises :class:`UsageError`."""
        try:
            members = json.loads(text)
            columns = [np.array(members[name], np.int64) for name in ("count_cur", "count_min")]
        except (ValueError, TypeError, KeyError, OverflowError):
            raise UsageError(
                f"{source} is no write log: it has two arrays of counts, count_cur and count_min"
            ) from None
        for column in columns:
            if column.shape != (self.block_count,):
                raise UsageError(f"{source} is of a disk of {column.size} blocks, this one has {self.block_count}")
            if len(column) and (column.min() < 0 or column.max() > COUNT_MAX):
                raise UsageError(f"{source} has a count that is none: counts are 0 to {COUNT_MAX}")
        cur, low = columns
        if (low > cur).any():
            raise UsageError(f"{source} has a count_min above its count_cur: it is damaged")
        self.cur[:] = cur
        self.min[:] = low
        self.doubtful[:] = False


def _joined(marks: list[Mark]) -> Mark:
    return np.concatenate([blocks for blocks, _ in marks]), np.concatenate([counts for _, counts in marks])
