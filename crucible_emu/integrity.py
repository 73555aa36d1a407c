"""Hashes, block contexts, encryption, and digests.

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

import base64
import binascii
import os
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count as count_from
from itertools import repeat
from operator import itemgetter, length_hint

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

KEY_BYTES = 32
NONCE_BYTES = 12
TAG_BYTES = 16
SEAL_BYTES = NONCE_BYTES + TAG_BYTES
FEW_BLOCKS = 4
"""Below, blocks are sealed and opened one by one; from here on arrays are faster."""


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


class Cipher:
    """AES-256-GCM-SIV for whole blocks; 10-15 µs per 4 KiB block, most of it with the interpreter's lock released.

    Nonces of a batch come from one call of ``urandom``: 0.04 µs each instead of 0.6.
    """

    __slots__ = ("aead", "invalid_tag")

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"an encryption key has {KEY_BYTES} bytes, this one has {len(key)}")
        # Not above: 7 MiB and 40 ms of imports that only an encrypted disk needs.
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCMSIV

        self.aead = AESGCMSIV(key)
        self.invalid_tag = InvalidTag

    @classmethod
    def from_base64(cls, text: str) -> Cipher:
        """The cipher for a key in standard base64. Raises :class:`ValueError`, which never shows the key."""
        try:
            key = base64.b64decode(text.strip(), validate=True)
        except (binascii.Error, ValueError):
            raise ValueError("the encryption key is not standard base64 with padding") from None
        return cls(key)

    def encrypt_blocks(self, rows: Rows) -> tuple[Rows, BlockContexts]:
        """Ciphertext of each row (new array) and the contexts that go with it."""
        sealing = Sealing(self, [row.data for row in rows], Slab(*rows.shape))
        sealing.run(0, sealing.count)
        return np.ascontiguousarray(sealing.rows), sealing.contexts()

    def decrypt_blocks(self, rows: Rows, contexts: BlockContexts) -> int | None:
        """Decrypt in place the rows whose context is :data:`ENCRYPTED`; the first row that fails, or ``None``."""
        opening = Opening(self, [row.data for row in rows], contexts)
        opening.run(0, opening.count)
        return min(opening.bad, default=None)


class Slab:
    """Memory in which blocks are sealed, a row for each:

        nonce (12 bytes), tag (16), ciphertext, tag (16)

    So what the cipher writes is in one piece, tag behind ciphertext, and so is what is hashed, tag in front. Only tags
    are copied for it. To be used again: memory that was never touched costs 1 µs per 4 KiB.
    """

    __slots__ = ("count", "hashed", "rows", "sealed", "size", "stored")

    def __init__(self, count: int, block_size: int) -> None:
        self.count = count
        self.size = block_size
        self.rows = np.empty((count, SEAL_BYTES + block_size + TAG_BYTES), np.uint8)
        rows = [row.data for row in self.rows]
        # Made once: a view costs 0.1 µs, each time.
        self.hashed = [row[: SEAL_BYTES + block_size] for row in rows]
        self.stored = [row[SEAL_BYTES : SEAL_BYTES + block_size] for row in rows]
        self.sealed = [row[SEAL_BYTES:] for row in rows]


class Sealing:
    """The encryption of n blocks into a slab for as many or more. It may run in pieces, in several threads at once.

    ``blocks``: the plaintexts, wherever they lie, each of the slab's block size. ``rows``: the ciphertexts, a view of
    the slab whose rows are contiguous each but not together.

    *Optimisation*: loops without a line of Python, 0.6 µs for a block beside the cipher, most of it two hashes, where a
    loop that looks at each takes 1.4. A thread that holds the interpreter's lock keeps all others from encrypting.
    """

    __slots__ = ("_blocks", "_cipher", "_hash", "_nonce", "_slab", "_stored", "count", "rows")

    def __init__(self, cipher: Cipher, blocks: Sequence[memoryview], slab: Slab) -> None:
        count = self.count = len(blocks)
        self._cipher = cipher
        self._blocks = blocks
        self._slab = slab
        self._nonce = np.frombuffer(os.urandom(NONCE_BYTES * count), np.uint8).reshape(count, NONCE_BYTES)
        self._hash = np.empty(count, np.uint64)
        self._stored = np.empty(count, np.uint64)
        slab.rows[:count, :NONCE_BYTES] = self._nonce
        self.rows: Rows = slab.rows[:count, SEAL_BYTES:-TAG_BYTES]

    def run(self, first: int, stop: int) -> None:
        """Encrypt the blocks ``first`` .. ``stop``. In any thread; each block once."""
        if stop - first < FEW_BLOCKS:
            for index in range(first, stop):
                self._seal(index)
            return
        slab, nonces = self._slab, _each(self._nonce[first:stop])
        sealed, rows = slab.sealed[first:stop], slab.rows[first:stop]
        _exhaust(map(self._cipher.aead.encrypt_into, nonces, self._blocks[first:stop], repeat(None), sealed))
        rows[:, NONCE_BYTES:SEAL_BYTES] = rows[:, -TAG_BYTES:]
        self._hash[first:stop] = list(map(xxhash.xxh64_intdigest, slab.hashed[first:stop]))
        self._stored[first:stop] = list(map(xxhash.xxh64_intdigest, slab.stored[first:stop]))

    def _seal(self, index: int) -> None:
        """One of few: 2 µs beside the cipher, where arrays for one block would take 7."""
        slab = self._slab
        sealed, hashed = slab.sealed[index], slab.hashed[index]
        self._cipher.aead.encrypt_into(hashed[:NONCE_BYTES], self._blocks[index], None, sealed)
        hashed[NONCE_BYTES:SEAL_BYTES] = sealed[-TAG_BYTES:]
        self._hash[index] = xxhash.xxh64_intdigest(hashed)
        self._stored[index] = xxhash.xxh64_intdigest(slab.stored[index])

    def contexts(self) -> BlockContexts:
        """The contexts of all the blocks, when all of it has run; they do not need the slab any more."""
        tag = self._slab.rows[: self.count, NONCE_BYTES:SEAL_BYTES].copy()
        kind = np.full(self.count, ENCRYPTED, np.uint8)
        return BlockContexts(kind, self._hash, self._nonce, tag, self._stored)


class Opening:
    """The decryption, in place, of the blocks in ``buffers`` whose context is :data:`ENCRYPTED`. It may run in pieces,
    in several threads at once. ``count``: how many those are; ``bad``: the indexes of those that failed."""

    __slots__ = ("_buffers", "_cipher", "_indexes", "_nonce", "_tag", "bad", "count")

    def __init__(self, cipher: Cipher, buffers: Sequence[memoryview], contexts: BlockContexts) -> None:
        self.bad: list[int] = []
        self._cipher = cipher
        self._buffers = buffers
        self._indexes: list[int] = []
        if contexts.nonce is not None and contexts.tag is not None:
            chosen = np.flatnonzero(contexts.kind == ENCRYPTED)
            self._indexes = chosen.tolist()
            self._nonce, self._tag = contexts.nonce[chosen], contexts.tag[chosen]
            if len(chosen) < len(buffers):
                self._buffers = [buffers[index] for index in self._indexes]
        self.count = len(self._indexes)

    def run(self, first: int, stop: int) -> None:
        """Decrypt number ``first`` .. ``stop`` of them. In any thread; each once."""
        if first == stop:
            return
        buffers, tags = self._buffers[first:stop], _each(self._tag[first:stop])
        nonces = iter(_each(self._nonce[first:stop]))
        # Each ciphertext is copied, to be in front of its tag, when its turn comes: 0.3 µs.
        calls = map(self._cipher.aead.decrypt_into, nonces, map(b"".join, zip(buffers, tags)), repeat(None), buffers)
        while True:
            try:
                _exhaust(calls)
                return
            except self._cipher.invalid_tag:
                self.bad.append(self._indexes[stop - length_hint(nonces) - 1])


def _each(rows: npt.NDArray[np.uint8]) -> list[bytes]:
    """The rows of uint8[n, width] as bytes: 0.03 µs each."""
    found: list[bytes] = np.ascontiguousarray(rows).view(np.dtype((np.void, rows.shape[1])))[:, 0].tolist()
    return found


def _exhaust(calls: Iterable[object]) -> None:
    """Make the calls of a ``map``."""
    deque(calls, maxlen=0)


def open_blocks(rows: Rows, contexts: BlockContexts, cipher: Cipher | None) -> errors.CrucibleError | None:
    """Verify (and decrypt in place) what a replica answered to a read; ``None`` when every block is right.

    The rules are those of upstairs-volume.md §6.16, the error is that of the first bad block. *Safety*: no byte
    reaches a guest that did not pass here.
    """
    kind = contexts.kind
    if cipher is not None:
        error = misfit(rows, contexts)
        if error is not None or cipher.decrypt_blocks(rows, contexts) is None:
            return error
        return errors.DecryptionError()
    if (kind == PLAIN).all():
        return None if np.array_equal(hash_blocks(rows), contexts.hash) else errors.HashMismatch()
    empty = kind == EMPTY
    plain = kind == PLAIN
    if (empty.any() and rows[empty].any()) or not (empty | plain).all():
        return errors.MissingBlockContext()
    return None if np.array_equal(hash_blocks(rows[plain]), contexts.hash[plain]) else errors.HashMismatch()


def misfit(rows: Rows, contexts: BlockContexts) -> errors.CrucibleError | None:
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
    buffers: Sequence[memoryview], contexts: BlockContexts, cipher: Cipher | None
) -> list[tuple[int, errors.CrucibleError]]:
    """:func:`open_blocks` for single blocks in buffers of their own: which are bad, and why. 0.8 µs a plain block."""
    if cipher is None:
        return _open_plain(buffers, contexts)
    opened = _open_few if len(buffers) < FEW_BLOCKS else _open_many
    bad: list[tuple[int, errors.CrucibleError]] = [
        (index, errors.DecryptionError()) for index in opened(buffers, contexts, cipher)
    ]
    for index, kind in enumerate(contexts.kind.tolist()):
        if kind != ENCRYPTED and (kind == PLAIN or buffers[index] != _zeros(len(buffers[index]))):
            bad.append((index, errors.MissingBlockContext()))
    return sorted(bad, key=itemgetter(0))


def _open_many(buffers: Sequence[memoryview], contexts: BlockContexts, cipher: Cipher) -> list[int]:
    opening = Opening(cipher, buffers, contexts)
    opening.run(0, opening.count)
    return opening.bad


def _open_few(buffers: Sequence[memoryview], contexts: BlockContexts, cipher: Cipher) -> list[int]:
    bad = []
    for index, (buffer, kind) in enumerate(zip(buffers, contexts.kind.tolist())):
        if kind == ENCRYPTED:
            assert contexts.nonce is not None and contexts.tag is not None
            sealed = b"".join((buffer, contexts.tag[index].data))
            try:
                cipher.aead.decrypt_into(contexts.nonce[index].data, sealed, None, buffer)
            except cipher.invalid_tag:
                bad.append(index)
    return bad


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
