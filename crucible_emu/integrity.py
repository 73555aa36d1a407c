"""Hashes, block contexts, and digests.

What it is for: every block carries a *context* that proves what it should be. A plain block's is XXH64 of its bytes;
an encrypted block's is a nonce, a tag and XXH64 over nonce, tag and ciphertext (wire-protocol.md §11). Contexts of
many blocks travel together as a few arrays, never as one object per block.

What it guarantees: :func:`first_bad_block` finds the first block whose bytes are not what its context says, by the
rules of upstairs-volume.md §6.16. Hashing is done by the ``xxhash`` wheel in a ``map`` over rows: 0.6-0.8 µs per
4 KiB block, where vectorised numpy lanes take six to ten times as long.

Two digests name data for people and for the control plane. The *volume digest* is BLAKE3 of the guest-visible bytes,
so it equals ``b3sum`` of a raw image. The *region digest* hashes what is stored (``crucible_emu.region.digest``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count as count_from
from operator import itemgetter
from typing import Protocol

import numpy as np
import numpy.typing as npt
import xxhash
from blake3 import blake3

from crucible_emu import errors

Rows = npt.NDArray[np.uint8]
"""Block data: dtype uint8, shape (blocks, block size), C-contiguous rows."""
Hashes = npt.NDArray[np.uint64]

EMPTY, ENCRYPTED, PLAIN = 0, 1, 2
"""Kinds of context; the numbers are the tags of the wire's ReadBlockContext (wire-protocol.md §3.2)."""

NONCE_BYTES = 12
TAG_BYTES = 16
SEAL_BYTES = NONCE_BYTES + TAG_BYTES


@dataclass(slots=True, eq=False)
class BlockContexts:
    """Contexts of n blocks as arrays.

    ``kind`` uint8[n] (:data:`EMPTY`, :data:`ENCRYPTED`, :data:`PLAIN`); ``hash`` uint64[n], 0 where empty or not
    known (a read response of an encrypted block does not carry it); ``nonce`` uint8[n, 12] and ``tag`` uint8[n, 16],
    ``None`` when no block is encrypted; ``on_disk_hash`` uint64[n] = XXH64 of the stored bytes alone, ``None`` when
    nobody computed it yet (for plain blocks it is ``hash``).
    """

    kind: npt.NDArray[np.uint8]
    hash: Hashes
    nonce: npt.NDArray[np.uint8] | None = None
    tag: npt.NDArray[np.uint8] | None = None
    on_disk_hash: Hashes | None = None

    def __len__(self) -> int:
        return len(self.kind)

    def __getitem__(self, rows: slice | npt.NDArray[np.bool_] | npt.NDArray[np.int64]) -> BlockContexts:
        return BlockContexts(
            self.kind[rows],
            self.hash[rows],
            None if self.nonce is None else self.nonce[rows],
            None if self.tag is None else self.tag[rows],
            None if self.on_disk_hash is None else self.on_disk_hash[rows],
        )

    @classmethod
    def plain(cls, hashes: Hashes) -> BlockContexts:
        """Contexts of plain blocks with these hashes."""
        return cls(np.full(len(hashes), PLAIN, np.uint8), hashes, on_disk_hash=hashes)

    @classmethod
    def empty(cls, count: int) -> BlockContexts:
        """Contexts of ``count`` blocks that were never written."""
        return cls(np.zeros(count, np.uint8), np.zeros(count, np.uint64))

    @property
    def stored(self) -> Hashes:
        """XXH64 of each block as it is stored, uint64[n]: of what is encrypted the ciphertext's, where it is known."""
        return self.hash if self.on_disk_hash is None else self.on_disk_hash

    @classmethod
    def concatenate(cls, parts: list[BlockContexts]) -> BlockContexts:
        """The contexts of ``parts``, one after the other."""
        if len(parts) == 1:
            return parts[0]
        if not parts:
            return cls.empty(0)
        sealed = any(part.nonce is not None for part in parts)
        stored = all(part.on_disk_hash is not None for part in parts)
        return cls(
            np.concatenate([part.kind for part in parts]),
            np.concatenate([part.hash for part in parts]),
            np.concatenate([part._nonces() for part in parts]) if sealed else None,
            np.concatenate([part._tags() for part in parts]) if sealed else None,
            np.concatenate([part.on_disk_hash for part in parts if part.on_disk_hash is not None]) if stored else None,
        )

    def same_reads(self, other: BlockContexts) -> bool:
        """Whether two replicas' read responses carry the same contexts (upstairs-volume.md §6.6)."""
        if not np.array_equal(self.kind, other.kind):
            return False
        plain = self.kind == PLAIN
        if not np.array_equal(self.hash[plain], other.hash[plain]):
            return False
        sealed = self.kind == ENCRYPTED
        return bool(
            np.array_equal(self._nonces()[sealed], other._nonces()[sealed])
            and np.array_equal(self._tags()[sealed], other._tags()[sealed])
        )

    def _nonces(self) -> npt.NDArray[np.uint8]:
        return np.zeros((len(self), NONCE_BYTES), np.uint8) if self.nonce is None else self.nonce

    def _tags(self) -> npt.NDArray[np.uint8]:
        return np.zeros((len(self), TAG_BYTES), np.uint8) if self.tag is None else self.tag


@dataclass(slots=True, eq=False)
class Seals:
    """What the contexts of single encrypted blocks say, one for each: ``hashes`` over nonce, tag and ciphertext,
    ``stored`` over the ciphertext alone, and ``seals``, nonce and tag. *Optimisation*: where there are few, to make the
    arrays of :class:`BlockContexts` costs more than what is in them."""

    hashes: list[int]
    stored: list[int]
    seals: Sequence[memoryview | bytes]


Proofs = list[int] | Seals
"""Of single blocks: the XXH64 of each, which is plain, or their seals."""


def hash_blocks(rows: Rows) -> Hashes:
    """XXH64 (seed 0) of each row; uint64[n]."""
    return np.fromiter(map(xxhash.xxh64_intdigest, rows), np.uint64, len(rows))


def hash_sealed_blocks(nonce: npt.NDArray[np.uint8], tag: npt.NDArray[np.uint8], rows: Rows) -> Hashes:
    """XXH64 over nonce, tag and ciphertext of each row (wire-protocol.md §11.2); uint64[n]."""
    count = len(rows)
    joined = np.empty((count, NONCE_BYTES + TAG_BYTES + rows.shape[1]), np.uint8)
    joined[:, :NONCE_BYTES] = nonce
    joined[:, NONCE_BYTES : NONCE_BYTES + TAG_BYTES] = tag
    joined[:, NONCE_BYTES + TAG_BYTES :] = rows
    return hash_blocks(joined)


def stored_hashes(contexts: BlockContexts, rows: Rows) -> Hashes:
    """``on_disk_hash`` of each row, computed only where the contexts do not know it yet.

    Every context must be verified first (:func:`verify_writes`): a plain block's stored hash is then its hash.
    """
    if contexts.on_disk_hash is None:
        sealed = contexts.kind == ENCRYPTED
        found = contexts.hash.copy()
        if sealed.any():
            found[sealed] = hash_blocks(rows[sealed])
        contexts.on_disk_hash = found
    return contexts.on_disk_hash


def verify_writes(contexts: BlockContexts, rows: Rows) -> None:
    """Check each block against the context that came with it, as a Downstairs does before it writes.

    Raises :class:`errors.HashMismatch` (on-disk-format.md §4.3). *Safety*: nothing is written before this passed.
    """
    sealed = contexts.kind == ENCRYPTED
    if sealed.any():
        assert contexts.nonce is not None and contexts.tag is not None
        found = np.empty(len(contexts), np.uint64)
        found[sealed] = hash_sealed_blocks(contexts.nonce[sealed], contexts.tag[sealed], rows[sealed])
        found[~sealed] = hash_blocks(rows[~sealed])
    else:
        found = hash_blocks(rows)
    if not np.array_equal(found, contexts.hash):
        raise errors.HashMismatch()


class Opens(Protocol):
    """What decrypts blocks (:class:`crucible_emu.encryption.Cipher`)."""

    def open(self, buffers: Sequence[memoryview], contexts: BlockContexts) -> list[int]:
        """Decrypt in place the blocks whose context is :data:`ENCRYPTED`; the indexes of those that failed."""
        ...

    def open_rows(self, rows: Rows, contexts: BlockContexts) -> list[int]:
        """The same for blocks side by side."""
        ...


def open_blocks(rows: Rows, contexts: BlockContexts, cipher: Opens | None) -> errors.CrucibleError | None:
    """Verify (and decrypt in place) what a replica answered to a read; ``None`` when every block is right.

    The rules are those of upstairs-volume.md §6.16, the error is that of the first bad block. *Safety*: no byte
    reaches a guest that did not pass here.
    """
    kind = contexts.kind
    if cipher is not None:
        error = _misfit(rows, contexts)
        if error is not None or not cipher.open_rows(rows, contexts):
            return error
        return errors.DecryptionError()
    if (kind == PLAIN).all():
        return None if np.array_equal(hash_blocks(rows), contexts.hash) else errors.HashMismatch()
    empty = kind == EMPTY
    plain = kind == PLAIN
    if (empty.any() and rows[empty].any()) or not (empty | plain).all():
        return errors.MissingBlockContext()
    return None if np.array_equal(hash_blocks(rows[plain]), contexts.hash[plain]) else errors.HashMismatch()


def _misfit(rows: Rows, contexts: BlockContexts) -> errors.CrucibleError | None:
    """What is wrong with blocks of an encrypted disk before any is decrypted: one that has the context of a plain
    block, or none at all although it is not zero."""
    sealed = contexts.kind == ENCRYPTED
    if sealed.all():
        return None
    empty = contexts.kind == EMPTY
    return errors.MissingBlockContext() if not (sealed | empty).all() or rows[empty].any() else None


def _open_plain(buffers: Sequence[memoryview], contexts: BlockContexts) -> list[tuple[int, errors.CrucibleError]]:
    bad: list[tuple[int, errors.CrucibleError]] = []
    digest = xxhash.xxh64_intdigest
    each = zip(count_from(), buffers, contexts.kind.tolist(), contexts.hash.tolist())
    for index, buffer, kind, wanted in each:
        if kind == PLAIN:
            if digest(buffer) != wanted:
                bad.append((index, errors.HashMismatch()))
        elif kind != EMPTY or buffer != _zeros(len(buffer)):
            bad.append((index, errors.MissingBlockContext()))
    return bad


@lru_cache(maxsize=8)
def _zeros(size_bytes: int) -> bytes:
    return bytes(size_bytes)


def open_scattered(
    buffers: Sequence[memoryview], contexts: BlockContexts, cipher: Opens | None
) -> list[tuple[int, errors.CrucibleError]]:
    """:func:`open_blocks` for single blocks in buffers of their own: which are bad, and why. 0.8 µs a plain block."""
    if cipher is None:
        return _open_plain(buffers, contexts)
    bad: list[tuple[int, errors.CrucibleError]] = [
        (index, errors.DecryptionError()) for index in cipher.open(buffers, contexts)
    ]
    for index, kind in enumerate(contexts.kind.tolist()):
        if kind != ENCRYPTED and (kind == PLAIN or buffers[index] != _zeros(len(buffers[index]))):
            bad.append((index, errors.MissingBlockContext()))
    return sorted(bad, key=itemgetter(0))


def first_bad_block(rows: Rows, contexts: BlockContexts) -> int | None:
    """The first stored block that its context does not match, by ``on_disk_hash``; ``None`` when all are right.

    Needs no key: it is what ``verify`` checks (on-disk-format.md §2.10).
    """
    assert contexts.on_disk_hash is not None
    empty = contexts.kind == EMPTY
    bad = np.where(empty, rows.any(axis=1), hash_blocks(rows) != contexts.on_disk_hash)
    found = np.flatnonzero(bad)
    return int(found[0]) if len(found) else None


def volume_digest(chunks: object) -> str:
    """BLAKE3 (hex) of the bytes-like objects in the iterable ``chunks``: equals ``b3sum`` of the same bytes."""
    hasher = blake3()
    for chunk in chunks:  # type: ignore[attr-defined]
        hasher.update(chunk)
    return hasher.hexdigest()
