"""Encryption of what a guest writes, as replicas want it (upstairs-volume.md §5.4).

What it guarantees: a train of writes is sealed in its turn, on the loop's thread, each block with a nonce of its own.

Why memory is used again: 1 MiB that was never touched costs 256 page faults, which is 0.3 ms beside 0.9 of encryption.
Replicas in this process have copied what they are given when a call returns; those elsewhere keep it until they have
answered, and get a copy, which is in one piece as they want it.
"""

from __future__ import annotations

from collections.abc import Sequence

from crucible_emu.encryption import Cipher, Sealing
from crucible_emu.integrity import BlockContexts, Rows, Seals
from crucible_emu.slab import Slab
from crucible_emu.upstairs.row_memory import RowMemory

SPARE_BYTES_MAX = 8 * 1024 * 1024
"""Memory that is kept to be used again."""
SLAB_BLOCKS_MIN = 16


class Sealer:
    """Encrypts for a disk in blocks of ``block_size``. ``copies``: where replicas that keep what they are given past
    the call that gives it get it."""

    def __init__(self, cipher: Cipher, block_size: int, *, copies: RowMemory | None) -> None:
        self._cipher = cipher
        self._block_size = block_size
        self._copies = copies
        self._slab = Slab(SLAB_BLOCKS_MIN, block_size)

    def seal(self, payloads: Sequence[memoryview]) -> tuple[Rows, BlockContexts]:
        """Ciphertext and contexts of payloads of whole blocks, one after the other. Where replicas keep no copies, the
        ciphertext is there until the next call."""
        count = sum(map(len, payloads)) // self._block_size
        return self._kept(*self._cipher.seal(payloads, self._room(count)))

    def begin(self, payloads: Sequence[memoryview]) -> Sealing | None:
        """The same with another process; see :meth:`~crucible_emu.encryption.Cipher.begin`."""
        return self._cipher.begin(payloads, self._block_size)

    def finish(self, sealing: Sealing) -> tuple[Rows, BlockContexts]:
        """What was begun, as of :meth:`seal`."""
        return self._kept(*sealing.finish())

    def _kept(self, rows: Rows, contexts: BlockContexts) -> tuple[Rows, BlockContexts]:
        # Not ascontiguousarray: one row is contiguous as it is, and would not be copied.
        return rows if self._copies is None else self._copies.copy(rows), contexts

    def seal_singles(self, blocks: Sequence[memoryview]) -> tuple[list[memoryview], Seals]:
        """The same for single blocks, with what proves each; both are there until the next call."""
        return self._cipher.seal_singles(blocks, self._room(len(blocks)))

    def _room(self, block_count: int) -> Slab:
        if block_count <= self._slab.count:
            return self._slab
        count = 1 << (block_count - 1).bit_length()
        slab = Slab(count, self._block_size)
        if slab.rows.nbytes <= SPARE_BYTES_MAX:
            self._slab = slab
        return slab
