"""Which bytes go where: turning blocks that are written together into few, large writes (pure).

What it is for: a flush has blocks scattered over extents, staged in rows scattered over memory. Each of its phases
writes one section of the extent files: context slots, or data. Here the whole set is cut, in a handful of array
operations, into stretches that are consecutive in the file; what is left per stretch is one system call.

What it guarantees: every block of a :class:`Plan` is in exactly one write of :func:`slot_writes` and of
:func:`data_writes`, at the offset where the layout wants it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from crucible_emu.geometry import BlockIndexes
from crucible_emu.region.layout import SLOT_BYTES, ExtentLayout, Slots
from crucible_emu.region.staging import RowNumbers, Span

PAGE_BYTES = 4096
"""What reaches the page cache and the disk whole."""
PIECE_BYTES = 64 * 1024
"""Block data is written in pieces of at most this size. A file that was filled in larger ones sits in the page cache in
larger folios; each later write of 4 KiB then takes 11 to 27 µs instead of 3.8, and its sync writes the whole folio."""

Positions = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """n blocks that are written together, by extent and block ascending.

    ``index`` int64[n]: the extent, as a position in the flush's list of extents; ``inside`` int64[n]: the block in it;
    ``rows`` uint32[n]: where its data is staged; ``slots`` uint8[n, 48]: its context; ``target`` bool[n]: the slot to
    be written (True = B), the inactive one.
    """

    index: Positions
    inside: BlockIndexes
    rows: RowNumbers
    slots: Slots
    target: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.inside)


@dataclass(frozen=True, slots=True)
class SlotWrite:
    """``data`` is ready to be written at ``offset`` of the extent ``index``, or, if it is ``None``, the slots at the
    positions ``chosen`` of the plan are to be put among ``count`` slots that are there."""

    index: int
    offset: int
    data: memoryview | None
    count: int
    chosen: Positions | None = None
    first: int = 0


def slot_writes(plan: Plan, geometry: ExtentLayout) -> list[SlotWrite]:
    """The context slots of a plan. Where there are as many stretches as pages, one write spans them.

    *Optimisation*: rewriting the slots between them as they are then dirties no page more. *Safety*: they get the
    bytes they have, so it does not matter when they land.
    """
    if not len(plan):
        return []
    array = plan.index * 2 + plan.target
    order = np.argsort(array, kind="stable")
    array, inside = array[order], plan.inside[order]
    slots = np.ascontiguousarray(plan.slots[order])
    new_array = array[1:] != array[:-1]
    cuts = np.flatnonzero(new_array | (inside[1:] != inside[:-1] + 1)) + 1
    starts = np.concatenate(([0], cuts))
    stops = np.concatenate((cuts, [len(plan)]))
    offsets = geometry.data_bytes + SLOT_BYTES * ((array & 1) * geometry.blocks + inside)
    # Stretches by array: the first of each, and how many.
    firsts = np.flatnonzero(np.concatenate(([True], array[starts[1:]] != array[starts[:-1]])))
    lasts = np.concatenate((firsts[1:], [len(starts)])) - 1
    spanned = inside[stops[lasts] - 1] + 1 - inside[starts[firsts]]
    dense = (lasts > firsts) & (spanned * SLOT_BYTES <= (lasts - firsts + 1) * PAGE_BYTES)
    data = slots.data.cast("B")
    found = []
    for first, last, whole, count in zip(firsts.tolist(), lasts.tolist(), dense.tolist(), spanned.tolist()):
        index = int(array[starts[first]]) >> 1
        if whole:
            begin, end = int(starts[first]), int(stops[last])
            write = SlotWrite(index, int(offsets[begin]), None, count, order[begin:end], int(inside[begin]))
            found.append(write)
            continue
        for begin, end in zip(starts[first : last + 1].tolist(), stops[first : last + 1].tolist()):
            part = data[begin * SLOT_BYTES : end * SLOT_BYTES]
            found.append(SlotWrite(index, int(offsets[begin]), part, end - begin))
    return found


def data_writes(plan: Plan, block_size: int) -> list[tuple[int, int, list[Span]]]:
    """The data of a plan: ``(extent's index, offset in its file, spans of staging rows)`` per stretch of blocks, cut
    where a piece ends."""
    if not len(plan):
        return []
    rows = plan.rows.astype(np.int64)
    new_block = (plan.inside[1:] != plan.inside[:-1] + 1) | (plan.index[1:] != plan.index[:-1])
    new_block |= plan.inside[1:] % max(1, PIECE_BYTES // block_size) == 0
    cuts = np.flatnonzero(new_block | (rows[1:] != rows[:-1] + 1)) + 1
    starts = np.concatenate(([0], cuts))
    lengths = np.concatenate((cuts, [len(plan)])) - starts
    begins = np.concatenate(([True], new_block[cuts - 1]))
    found: list[tuple[int, int, list[Span]]] = []
    columns = (plan.index[starts], plan.inside[starts] * block_size, rows[starts], rows[starts] + lengths, begins)
    for index, offset, row, stop, begin in zip(*(column.tolist() for column in columns)):
        if begin:
            found.append((index, offset, [(row, stop)]))
        else:
            found[-1][2].append((row, stop))
    return found
