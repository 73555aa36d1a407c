"""Memory in which blocks are sealed, so that what is hashed is in one piece, and so is what is stored.

What it is for: a cipher puts nonce, tag and ciphertext there, hashes and replicas take them from there, and the next
blocks come to the same place: memory that was never touched costs 1 µs per 4 KiB.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from crucible_emu.integrity import SEAL_BYTES, TAG_BYTES, Rows

ROW_BYTES_MORE = SEAL_BYTES + TAG_BYTES
"""Of a row more than its block."""


class Slab:
    """Rows for ``count`` blocks, each: nonce (12 bytes), tag (16), ciphertext, and room for another tag, which is where
    ciphers like to put it. ``memory``: uint8 of that many, to be used instead of some of its own.

    ``rows``: uint8[count, block size + 44]. ``hashed``, ``seals``, ``stored``: of each row nonce, tag and ciphertext;
    the first two; the last. ``address`` and ``row_bytes``: where the first row is, and how far it is to the next.
    """

    __slots__ = ("address", "block_size", "count", "hashed", "row_bytes", "rows", "seals", "stored")

    def __init__(self, count: int, block_size: int, memory: npt.NDArray[np.uint8] | None = None) -> None:
        self.count = count
        self.block_size = block_size
        self.row_bytes = block_size + ROW_BYTES_MORE
        if memory is None:
            memory = np.empty(count * self.row_bytes, np.uint8)
        self.rows: Rows = memory.reshape(count, self.row_bytes)
        self.address: int = self.rows.ctypes.data
        # Made once: a view costs 0.1 µs, each time.
        self.hashed = [row[:-TAG_BYTES].data for row in self.rows]
        self.seals = [row[:SEAL_BYTES] for row in self.hashed]
        self.stored = [row[SEAL_BYTES:] for row in self.hashed]
