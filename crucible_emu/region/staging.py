"""Where un-flushed blocks wait: one piece of memory, filled from one end.

What it is for: the STAGED policy leaves files alone until a flush. :class:`Staging` keeps the newest data of every
block that was written since, one row per block: a block that is written for the first time since the last flush gets
the next free row, one that has a row already is overwritten there. ``row_of_block`` says which row is a block's. A
batch of writes is therefore a copy into rows and a scatter into a table, whatever extents it touches.

What it guarantees: a *frozen* row does not change until its span is freed, so a flush in another thread can use it
without a lock; a block of a frozen row that is written again gets a new one. A row is *live* while ``row_of_block`` of
its block names it; the others are garbage, which costs room until the next flush and nothing else. Row 0 is never
filled: it stays zero, and "row 0" means "not staged".

Why memory and not a file: measured, a warm row costs 0.16 µs per 4 KiB in either, but the first touch of a page of a
mapped file may wait for the file system's journal while a flush runs (28 ms seen), and that wait would stop the loop.

Why the table of rows is given back now and then: it has four bytes for each block of the disk, and costs memory where
it was touched. Writes all over a disk of one TiB touch all of it, which is one GiB for each replica, of zeros once they
are flushed. After a flush that leaves more than :data:`ROW_TABLE_BYTES_MAX` behind, all of it is given back and what is
still staged is entered again. That takes 2,048 pages, so at least as many writes, which cost a hundred times more.

Rows that others look into are pages of a file of memory, which cost much when they are touched for the first time:
2.5 µs each. Those above the highest one that was ever filled are therefore written to that file, many in one call.

Spans are half-open ``(start, stop)`` ranges of rows. Allocation takes the lowest free span first, so that a disk with
frequent flushes keeps using the same few rows, which stay in the processor's cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from mmap import PAGESIZE

import numpy as np
import numpy.typing as npt

from crucible_emu.geometry import BlockIndexes, Selection, as_blocks, run_of
from crucible_emu.integrity import Rows
from crucible_emu.region.memory import SharedFile, reserve

SLICE_ROWS_MIN = 32
"""From this many rows on it pays to look whether they are consecutive: a slice copies twice as fast as a scatter."""

UNTOUCHED_ROWS_MIN = 8
"""From this many rows on the call costs less than touching them."""
PIECES_MAX = 1024
"""As many buffers as one call takes."""

ROW_TABLE_BYTES_MAX = 8 * 1024 * 1024
"""Memory of ``row_of_block`` that may stay touched after a flush."""
ROWS_PER_PAGE = PAGESIZE // 4

Span = tuple[int, int]
RowNumbers = npt.NDArray[np.uint32]


class Staging:
    """Un-flushed blocks of one region. All methods are for the loop's thread; ``rows`` may be read by any.

    ``rows`` uint8[capacity + 1, block size]; ``block_of_row`` int64[capacity + 1]; ``row_of_block`` uint32[blocks of
    the disk], 0 = not staged. ``within``: where other processes may look at the first and the last of them.
    """

    def __init__(
        self,
        total_blocks: int,
        block_size: int,
        capacity: int,
        *,
        table_bytes_max: int = ROW_TABLE_BYTES_MAX,
        within: SharedFile | None = None,
    ) -> None:
        self.capacity = capacity
        memory = reserve((capacity + 1, block_size), np.uint8, dense=True, within=within)
        self.rows: Rows = memory.array
        self._memory = self.rows.data.cast("B")
        self._file, self._rows_offset = within, memory.offset
        self._block_size = block_size
        self.block_of_row: BlockIndexes = reserve(capacity + 1, np.int64).array
        self._table = reserve(total_blocks, np.uint32, within=within)
        self.offsets = {"row_of_block": self._table.offset, "rows": memory.offset}
        self.row_of_block: RowNumbers = self._table.array
        # Pages of that table which a block that was flushed since has touched.
        self._pages = np.zeros(-(-total_blocks // ROWS_PER_PAGE), np.bool_)
        self._pages_max = table_bytes_max // PAGESIZE
        # Rows that are filled and not frozen: those may be overwritten.
        self._writable = np.zeros(capacity + 1, np.bool_)
        self._one_writable = self._writable.data
        self._block_of_row = self.block_of_row.data
        self._row_of_block = self.row_of_block.data
        self._used: list[Span] = []
        self._free: list[Span] = []
        # The span that is being filled: filled from _start to _next, free from there to _stop.
        self._start = self._next = 1
        self._stop = capacity + 1
        self._highest = 1
        self.free_rows = capacity

    @property
    def used_rows(self) -> int:
        """Rows that are filled, live or not, frozen ones included."""
        return self.capacity - self.free_rows

    def put(self, which: Selection, data: Rows) -> None:
        """``data`` is the newest of these blocks. The caller has checked that ``free_rows`` takes them all."""
        rows = self.row_of_block[which]
        side_by_side = run_of(rows) if len(rows) >= SLICE_ROWS_MIN else None
        if side_by_side is not None and self._writable[side_by_side].all():
            self.rows[side_by_side] = data
            return
        blocks = as_blocks(which)
        has_row = self._writable[rows]
        if not has_row.any():
            self._append(blocks, data)
        elif has_row.all():
            self.rows[rows] = data
        else:
            again, first_time = np.flatnonzero(has_row), np.flatnonzero(~has_row)
            self.rows[rows[again]] = data[again]
            self._append(blocks[first_time], data[first_time])

    def put_one(self, block: int, data: Rows) -> None:
        """As :meth:`put` for a single block."""
        row = self._row_of_block[block]
        if not self._one_writable[row]:
            row = self._take_row(block)
        self.rows[row : row + 1] = data

    def put_singles(self, blocks: Sequence[int], data: Sequence[memoryview]) -> None:
        """As :meth:`put` for blocks whose data lies here and there, each of one block's length. Of a block that is
        named twice the last counts."""
        row_of_block, writable, memory, size = self._row_of_block, self._one_writable, self._memory, self._block_size
        touched = self._touched_if_many(len(blocks))
        untouched: dict[int, memoryview] = {}
        for block, each in zip(blocks, data):
            row = row_of_block[block]
            if not writable[row]:
                row = self._take_row(block)
            if row >= touched:
                untouched[row] = each
                continue
            start = row * size
            memory[start : start + size] = each
        if untouched:
            self._write_untouched(touched, list(untouched.values()))

    def _touched_if_many(self, count: int) -> int:
        """Up to where rows are filled as any memory is; from there on they are worth :meth:`_write_untouched`."""
        return self.capacity + 1 if self._file is None or count < UNTOUCHED_ROWS_MIN else self._highest

    def _write_untouched(self, first: int, data: Sequence[memoryview]) -> None:
        """Fill the rows from ``first`` on, none of which was ever touched: they follow upon each other, for what is
        above the highest row is taken from one end."""
        start = first * self._block_size
        for done in range(0, len(data), PIECES_MAX):
            pieces = data[done : done + PIECES_MAX]
            if self._file is not None and not self._file.write(pieces, self._rows_offset + start):
                self._file = None
            for piece in pieces:
                stop = start + len(piece)
                if self._file is None:
                    self._memory[start:stop] = piece
                start = stop

    def _take_row(self, block: int) -> int:
        """The next free row is the block's from now on."""
        if self._next == self._stop:
            self._next_span()
        row = self._next
        self._next = row + 1
        self.free_rows -= 1
        self._block_of_row[row] = block
        self._row_of_block[block] = row
        self._one_writable[row] = True
        if row >= self._highest:
            self._highest = row + 1
        return row

    def _append(self, blocks: BlockIndexes, data: Rows) -> None:
        count = len(blocks)
        self.free_rows -= count
        done = 0
        while done < count:
            if self._next == self._stop:
                self._next_span()
            start = self._next
            stop = self._next = min(start + count - done, self._stop)
            part = slice(done, done + stop - start)
            self._fill(start, data[part])
            self.block_of_row[start:stop] = blocks[part]
            self.row_of_block[blocks[part]] = _numbers(start, stop)
            self._writable[start:stop] = True
            self._highest = max(self._highest, stop)
            done = part.stop

    def _fill(self, start: int, data: Rows) -> None:
        """Fill consecutive rows from ``start`` on, before they are counted among those that were ever filled."""
        touched = min(max(self._touched_if_many(len(data)) - start, 0), len(data))
        if touched < len(data) and data.flags.c_contiguous:
            self._write_untouched(start + touched, [data[touched:].reshape(-1).data])
            data = data[:touched]
        self.rows[start : start + len(data)] = data

    def live(self, spans: list[Span]) -> tuple[RowNumbers, BlockIndexes]:
        """The rows of ``spans`` that hold the newest data of their block, and those blocks."""
        if not spans:
            return _numbers(0, 0), self.block_of_row[:0]
        rows = np.concatenate([_numbers(start, stop) for start, stop in spans])
        blocks = self.block_of_row[rows]
        newest = self.row_of_block[blocks] == rows
        return rows[newest], blocks[newest]

    def live_all(self) -> tuple[RowNumbers, BlockIndexes]:
        """Every row that holds the newest data of its block, frozen or not, and those blocks."""
        top = self._highest
        blocks = self.block_of_row[1:top]
        rows = _numbers(1, top)
        newest = self.row_of_block[blocks] == rows
        return rows[newest], blocks[newest]

    def filled(self) -> list[Span]:
        """The spans that hold blocks and are not frozen."""
        return [*self._used, (self._start, self._next)] if self._start < self._next else list(self._used)

    def freeze(self) -> list[Span]:
        """Take all filled spans away: they stay as they are until :meth:`thaw` or :meth:`keep`.

        What is written from now on goes to other rows.
        """
        spans = self.filled()
        for start, stop in spans:
            self._writable[start:stop] = False
        self._used = []
        self._start = self._next
        # Start over at the lowest free row: those are the warm ones.
        if self._free and self._free[0][0] < self._next:
            if self._next < self._stop:
                self._free = _merged([*self._free, (self._next, self._stop)])
            self._start = self._next = self._free[0][0]
            self._stop = self._free.pop(0)[1]
        return spans

    def keep(self, spans: list[Span]) -> None:
        """Take frozen spans back: their live rows are staged as before."""
        self._used.extend(spans)
        for start, stop in spans:
            self._writable[start:stop] = True

    def drop(self, rows: RowNumbers, blocks: BlockIndexes) -> None:
        """These blocks are in their files now, unless they were written again meanwhile. Under the region's lock, as
        others look into the table."""
        done = self.row_of_block[blocks] == rows
        self.row_of_block[blocks[done]] = 0
        self._pages[blocks // ROWS_PER_PAGE] = True
        if np.count_nonzero(self._pages) > self._pages_max:
            self._give_table_back()

    def _give_table_back(self) -> None:
        """Give the memory of ``row_of_block`` back to the system; what is staged stays in it."""
        rows, blocks = self.live_all()
        self._table.release()
        self.row_of_block[blocks] = rows
        self._pages[:] = False

    def thaw(self, spans: list[Span]) -> None:
        """Nothing lives in these spans any more: use them again."""
        for start, stop in spans:
            self.free_rows += stop - start
        self._free = _merged([*self._free, *spans])

    def _next_span(self) -> None:
        if self._start < self._next:
            self._used.append((self._start, self._next))
        self._start, self._stop = self._free.pop(0)
        self._next = self._start


def _numbers(start: int, stop: int) -> RowNumbers:
    """Row numbers from ``start`` to ``stop``. Made each time, 0.4 µs for 256: those of all rows, kept, are 1 MiB."""
    return np.arange(start, stop, dtype=np.uint32)


def _merged(spans: list[Span]) -> list[Span]:
    found: list[Span] = []
    for start, stop in sorted(spans):
        if found and found[-1][1] == start:
            found[-1] = (found[-1][0], stop)
        else:
            found.append((start, stop))
    return found
