"""The newest context of every block, as far as it is known.

What it is for: a read needs each block's context, a write replaces it, and ``write_unwritten`` asks whether there is
one. Reading 48 bytes from the file for each would cost as much as the data. So the table remembers: one byte and eight
bytes per plain block, in arrays over the whole disk that cost memory only where they are touched.

What it guarantees: an entry is either unknown or what the newest write of that block said, whether that write has
reached its file or not. Entries may be forgotten (:meth:`ContextTable.trim`) whenever the file says the same; those of
staged blocks may not, because nothing else knows them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from crucible_emu.geometry import BlockIndexes, Selection
from crucible_emu.integrity import ENCRYPTED, NONCE_BYTES, PLAIN, SEAL_BYTES, BlockContexts, Hashes, Proofs, Seals
from crucible_emu.region.memory import SharedFile, reserve

UNKNOWN = 0
"""An entry's ``kind`` is that of integrity.BlockContexts plus one; zero is what untouched memory says."""
KNOWN_EMPTY = 1
KNOWN_PLAIN = PLAIN + 1
KNOWN_SEALED = ENCRYPTED + 1

PAGE_BLOCKS = 512
"""Blocks whose hashes share a page of memory: the unit in which the table's size is counted."""
PAGE_BYTES = 4096 + PAGE_BLOCKS
SEALED_PAGE_BYTES = PAGE_BLOCKS * (SEAL_BYTES + 8)


class ContextTable:
    """Contexts by block of the region. For the loop's thread, or under the region's lock. ``within``: where other
    processes may look at kinds, hashes and seals."""

    def __init__(self, total_blocks: int, budget_bytes: int, within: SharedFile | None = None) -> None:
        self._kind = reserve(total_blocks, np.uint8, within=within)
        self._hash = reserve(total_blocks, np.uint64, within=within)
        self._stored = reserve(total_blocks, np.uint64)
        self._seal = reserve(total_blocks * SEAL_BYTES, np.uint8, within=within)
        self.offsets = {"kind": self._kind.offset, "hash": self._hash.offset, "seal": self._seal.offset}
        self._pages = np.zeros(-(-total_blocks // PAGE_BLOCKS), np.bool_)
        self._budget_bytes = budget_bytes
        self._sealed = False
        self.kind: npt.NDArray[np.uint8] = self._kind.array
        self.hash: Hashes = self._hash.array
        self.stored: Hashes = self._stored.array
        self.seal: npt.NDArray[np.uint8] = self._seal.array.reshape(total_blocks, SEAL_BYTES)
        self._one_kind = self.kind.data
        self._one_hash = self.hash_of_block = self.hash.data
        self._one_stored = self.stored.data
        self._one_seal = self._seal.array.data

    def get(self, which: Selection) -> BlockContexts:
        """Copies of the contexts of blocks that are all known; an EMPTY one has hash 0."""
        kind = self.kind[which] - np.uint8(1)
        hashes = self.hash[which] if isinstance(which, np.ndarray) else self.hash[which].copy()
        if not self._sealed or not (kind == ENCRYPTED).any():
            return BlockContexts(kind, hashes, on_disk_hash=hashes)
        seal = self.seal[which]
        stored = np.where(kind == ENCRYPTED, self.stored[which], hashes)
        return BlockContexts(kind, hashes, seal[:, :NONCE_BYTES].copy(), seal[:, NONCE_BYTES:].copy(), stored)

    def put_one(self, block: int, kind: int, block_hash: int) -> None:
        """As :meth:`put` for one plain block."""
        self._one_hash[block] = block_hash
        self._one_kind[block] = kind + 1

    def put_singles(self, blocks: Sequence[int], proofs: Proofs) -> None:
        """As :meth:`put`; of a block that is named twice the last counts."""
        one_hash, one_kind = self._one_hash, self._one_kind
        if not isinstance(proofs, Seals):
            for block, block_hash in zip(blocks, proofs):
                one_hash[block] = block_hash
                one_kind[block] = KNOWN_PLAIN
            return
        self._sealed = True
        one_stored, one_seal = self._one_stored, self._one_seal
        for block, block_hash, stored, seal in zip(blocks, proofs.hashes, proofs.stored, proofs.seals):
            one_hash[block] = block_hash
            one_stored[block] = stored
            one_seal[block * SEAL_BYTES : (block + 1) * SEAL_BYTES] = seal
            one_kind[block] = KNOWN_SEALED

    def seal_of(self, block: int) -> bytes:
        """Nonce and tag of a block that is encrypted."""
        return bytes(self._one_seal[block * SEAL_BYTES : (block + 1) * SEAL_BYTES])

    def put(self, which: Selection, contexts: BlockContexts) -> None:
        """Remember these contexts. Those that are encrypted must know their ``on_disk_hash``."""
        if contexts.nonce is not None:
            self._put_sealed(which, contexts)
        self.hash[which] = contexts.hash
        self.kind[which] = contexts.kind + np.uint8(1)

    def _put_sealed(self, which: Selection, contexts: BlockContexts) -> None:
        assert contexts.nonce is not None and contexts.tag is not None and contexts.on_disk_hash is not None
        self._sealed = True
        if isinstance(which, slice):
            self.seal[which, :NONCE_BYTES] = contexts.nonce
            self.seal[which, NONCE_BYTES:] = contexts.tag
        else:
            self.seal[which] = np.concatenate((contexts.nonce, contexts.tag), axis=1)
        self.stored[which] = contexts.on_disk_hash

    def learn(self, start: int, contexts: BlockContexts) -> None:
        """Fill in what the file says of the blocks from ``start`` on, where nothing newer is known."""
        span = slice(start, start + len(contexts))
        unknown = np.flatnonzero(self.kind[span] == UNKNOWN)
        if len(unknown) == len(contexts):
            self.put(span, contexts)
        elif len(unknown):
            self.put(unknown + start, contexts[unknown])
        self._pages[start // PAGE_BLOCKS : (span.stop - 1) // PAGE_BLOCKS + 1] = True

    def forget(self, which: Selection) -> None:
        """These blocks' contexts are to be read from their files again."""
        self.kind[which] = UNKNOWN

    def touched(self, blocks: BlockIndexes) -> None:
        """Count the memory of blocks that were put."""
        self._pages[blocks // PAGE_BLOCKS] = True

    @property
    def size_bytes(self) -> int:
        """Memory that the table has touched, counted in whole pages."""
        page_bytes = PAGE_BYTES + (SEALED_PAGE_BYTES if self._sealed else 0)
        return int(np.count_nonzero(self._pages)) * page_bytes

    def is_over_budget(self) -> bool:
        return self.size_bytes > self._budget_bytes

    def trim(self, keep: BlockIndexes) -> None:
        """Forget everything but ``keep``."""
        kept = self.get(keep)
        for reservation in (self._kind, self._hash, self._stored, self._seal):
            reservation.release()
        self._pages[:] = False
        self.put(keep, kept)
        self.touched(keep)
