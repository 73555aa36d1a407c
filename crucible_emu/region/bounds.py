"""What may be asked of a region: blocks that it has, of extents that are open.

What it guarantees: everything that reaches the tables and files of a region was looked at here, with a comparison or
two for one block and a handful of array operations for many. *Safety*: a closed extent's file may be another's by now.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from crucible_emu import errors
from crucible_emu.geometry import BlockIndexes
from crucible_emu.region.extent import Extents

FEW_BLOCKS = 4
"""Up to here plain Python is faster than arrays: a write takes 1.5 µs per block against 9 µs and 0.4 per block."""


class Bounds:
    """The bounds of one region. ``any_closed``: some extent is closed, which hardly ever is so."""

    def __init__(self, extents: Extents) -> None:
        self._extents = extents
        self._blocks_per_extent = extents.layout.blocks
        self._total = extents.count * extents.layout.blocks
        self.any_closed = False

    def check_range(self, start: int, count: int) -> None:
        """Raises :class:`errors.OffsetInvalid` beyond the region, :class:`errors.GenericError` in a closed extent."""
        if start < 0 or count < 0 or start + count > self._total:
            raise errors.OffsetInvalid()
        if self.any_closed and count:
            first, last = start // self._blocks_per_extent, (start + count - 1) // self._blocks_per_extent
            self._check_open(np.arange(first, last + 1))

    def check_blocks(self, blocks: BlockIndexes) -> None:
        """The same for scattered blocks, at least one."""
        if len(blocks) <= FEW_BLOCKS:
            listed = blocks.tolist()
            if min(listed) < 0 or max(listed) >= self._total:
                raise errors.OffsetInvalid()
        elif int(blocks.view(np.uint64).max()) >= self._total:  # unsigned, so that one look finds negative ones too
            raise errors.OffsetInvalid()
        if self.any_closed:
            self._check_open(blocks // self._blocks_per_extent)

    def _check_open(self, extent_ids: npt.NDArray[np.int64]) -> None:
        closed = extent_ids[self._extents.closed[extent_ids]]
        if len(closed):
            raise errors.GenericError(f"extent {int(closed[0])} is closed: reopen it first")

    def check_extent(self, extent_id: int, *, closed_too: bool = False) -> None:
        """Raises :class:`errors.InvalidExtent` for none of the region's, and :class:`errors.GenericError` for a closed
        one, unless ``closed_too``."""
        if not 0 <= extent_id < self._extents.count:
            raise errors.InvalidExtent()
        if not closed_too and self._extents.closed[extent_id]:
            raise errors.GenericError(f"extent {extent_id} is closed: reopen it first")
