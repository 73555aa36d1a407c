"""Encryption of blocks: AES-256-GCM-SIV with a detached tag (wire-protocol.md §11.2).

What it is for: an encrypted disk stores ciphertext, and beside it a context with the nonce and the tag of each block.
:class:`Cipher` makes both of plaintext, many blocks at a time, and takes them apart again.

What it guarantees: every block that is sealed gets a fresh random nonce from the library; a block that was changed, or
that belongs to another key, nonce or tag, is named and never decrypted.

Whose cipher it is: BoringSSL's, where there is one (:mod:`~crucible_emu.boringssl`, :mod:`~crucible_emu.aead`). Large
writes may be shared with a second process (:mod:`~crucible_emu.cipher_process`).
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import xxhash

from crucible_emu.aead import Aead, OpenSsl, Tink, seals_of
from crucible_emu.boringssl import BoringSsl
from crucible_emu.integrity import ENCRYPTED, NONCE_BYTES, SEAL_BYTES, TAG_BYTES, BlockContexts, Hashes, Rows, Seals
from crucible_emu.slab import Slab

KEY_BYTES = 32
LARGE_BYTES = 256 * 1024
"""Of a write that is worth sharing."""
STARTS_AFTER_BYTES = 32 * 1024 * 1024
"""So much in large writes is worth a process, which costs 0.3 s of a core and 30 MiB."""


class Sharing(Protocol):
    """Another process that seals a share of what is large; see :class:`~crucible_emu.cipher_process.CipherProcess`."""

    slab: Slab
    hashes: Hashes
    stored: Hashes
    room: int
    share: float

    @property
    def mine(self) -> bool: ...

    @property
    def has_answered(self) -> bool: ...

    def half_for(self, holder: object) -> int | None: ...

    def let_go(self, first: int) -> None: ...

    def begin(self, key: bytes, payloads: Sequence[memoryview], first: int) -> int: ...

    def is_done(self, number: int) -> bool: ...

    def fileno(self) -> int: ...


class Cipher:
    """AES-256-GCM-SIV for whole blocks with one key of :data:`KEY_BYTES`. ``library``: by whose.
    ``sharing``: who seals a share of large writes of blocks of a size."""

    __slots__ = ("_aead", "_key", "_large_bytes", "_sharing")

    def __init__(self, key: bytes, *, sharing: Callable[[int], Sharing | None] | None = None) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"an encryption key has {KEY_BYTES} bytes, this one has {len(key)}")
        self._sharing = sharing
        self._key = key
        self._large_bytes = 0
        self._aead = _best(key)

    @property
    def library(self) -> str:
        """Who encrypts."""
        return self._aead.library

    @classmethod
    def from_base64(cls, text: str, *, sharing: Callable[[int], Sharing | None] | None = None) -> Cipher:
        """The cipher for a key in standard base64. Raises :class:`ValueError`, which never shows the key."""
        try:
            key = base64.b64decode(text.strip(), validate=True)
        except (binascii.Error, ValueError):
            raise ValueError("the encryption key is not standard base64 with padding") from None
        return cls(key, sharing=sharing)

    def seal(self, payloads: Sequence[memoryview], slab: Slab) -> tuple[Rows, BlockContexts]:
        """Encrypt payloads of whole blocks of the slab's size, wherever they lie, into a slab for as many or more.

        The ciphertexts are a view of the slab, whose rows are contiguous each but not together; the contexts stand by
        themselves."""
        count = sum(map(len, payloads)) // slab.block_size
        return _sealed(slab, 0, count, *self.seal_rows(payloads, slab, 0, count))

    def begin(self, payloads: Sequence[memoryview], block_size: int) -> Sealing | None:
        """The same with the help of another process, which is at it when this returns; ``None`` where there is none, or
        where it is not worth it. *Optimisation*: it is asked for once much has come in large writes."""
        size_bytes = sum(map(len, payloads))
        if self._sharing is None or size_bytes < LARGE_BYTES:
            return None
        self._large_bytes += size_bytes
        process = self._sharing(block_size) if self._large_bytes >= STARTS_AFTER_BYTES else None
        if process is None or not process.mine or size_bytes > process.room * block_size:
            return None
        sealing = Sealing(self, process, payloads, size_bytes // block_size)
        return sealing if sealing.begin(self._key) else None

    def seal_rows(self, payloads: Sequence[memoryview], slab: Slab, begin: int, end: int) -> tuple[Hashes, Hashes]:
        """Seal payloads into some rows of the slab; the hashes of what is sealed, and of what is stored."""
        self._aead.seal(payloads, slab, begin, end)
        digest = xxhash.xxh64_intdigest
        return (
            np.array(list(map(digest, slab.hashed[begin:end])), np.uint64),
            np.array(list(map(digest, slab.stored[begin:end])), np.uint64),
        )

    def seal_singles(self, blocks: Sequence[memoryview], slab: Slab) -> tuple[list[memoryview], Seals]:
        """As :meth:`seal`, without an array: the ciphertexts, and what proves them; both are of the slab."""
        digest, count = xxhash.xxh64_intdigest, len(blocks)
        self._aead.seal_singles(blocks, slab)
        data = slab.stored[:count]
        hashes = list(map(digest, slab.hashed[:count]))
        return data, Seals(hashes, list(map(digest, data)), slab.seals[:count])

    def open_singles(self, buffers: Sequence[memoryview], seals: Sequence[bytes | None]) -> bool:
        """Decrypt blocks in place, each with its seal; one without was never written, and stays as it is. Whether all
        were right: if not, what the buffers hold is of no use."""
        chosen = [seal for seal in seals if seal is not None]
        if len(chosen) < len(seals):
            buffers = [buffer for buffer, seal in zip(buffers, seals) if seal is not None]
        return not self._aead.open(buffers, chosen)

    def opened(self, data: memoryview, seal: bytes) -> memoryview | None:
        """The plaintext of one block, which stays as it is; ``None`` where it fails."""
        plaintext = memoryview(bytearray(data))
        return None if self._aead.open([plaintext], [seal]) else plaintext

    def encrypt_blocks(self, rows: Rows) -> tuple[Rows, BlockContexts]:
        """Ciphertext of each row (new array, rows contiguous each) and the contexts that go with it."""
        sealed, contexts = self.seal([np.ascontiguousarray(rows).reshape(-1).data], Slab(*rows.shape))
        return np.ascontiguousarray(sealed), contexts

    def open(self, buffers: Sequence[memoryview], contexts: BlockContexts) -> list[int]:
        """Decrypt in place the blocks whose context is :data:`~crucible_emu.integrity.ENCRYPTED`; the indexes of those
        that failed, ascending, which hold nothing of use then."""
        if contexts.nonce is None or contexts.tag is None:
            return []
        indexes = np.flatnonzero(contexts.kind == ENCRYPTED).tolist()
        seals = seals_of(contexts.nonce, contexts.tag)
        if len(indexes) < len(buffers):
            buffers, seals = [buffers[index] for index in indexes], [seals[index] for index in indexes]
        return [indexes[bad] for bad in self._aead.open(buffers, seals)]

    def open_rows(self, rows: Rows, contexts: BlockContexts) -> list[int]:
        """The same for blocks side by side."""
        if contexts.nonce is None or contexts.tag is None:
            return []
        if (contexts.kind == ENCRYPTED).all():
            return self._aead.open_rows(rows, contexts.nonce, contexts.tag)
        return self.open([row.data for row in rows], contexts)

    def decrypt_blocks(self, rows: Rows, contexts: BlockContexts) -> int | None:
        """Decrypt in place the rows whose context is :data:`~crucible_emu.integrity.ENCRYPTED`; the first row that
        fails, or ``None``."""
        return min(self.open_rows(rows, contexts), default=None)


class Sealing:
    """``count`` blocks of which another process seals a share: after :meth:`begin`, :meth:`seal_own` does the others,
    and :meth:`finish` has all. Their memory may be given away with that."""

    __slots__ = ("__weakref__", "_cipher", "_count", "_first", "_mine", "_number", "_others", "_own", "process")

    def __init__(self, cipher: Cipher, process: Sharing, payloads: Sequence[memoryview], count: int) -> None:
        self._cipher = cipher
        self.process = process
        self._count = count
        self._own = count - int(count * process.share)
        self._mine: list[memoryview] | None
        self._mine, self._others = _divided(payloads, self._own * process.slab.block_size)
        self._first = self._number = 0

    def begin(self, key: bytes) -> bool:
        """Have the other process begin, once it is done with what it does now. ``False``: there is no memory."""
        first = self.process.half_for(self)
        if first is None:
            return False
        self._first = first
        self._number = self.process.begin(key, self._others, first + self._own)
        return True

    def seal_own(self) -> None:
        """Do one's own share, if that is not done yet."""
        if self._mine is not None:
            self._seal(self._mine, self._first, self._first + self._own)
            self._mine = None

    def finish(self) -> tuple[Rows, BlockContexts]:
        """As :meth:`Cipher.seal`; what is in the rows is there until the next one begins."""
        self.seal_own()
        first, stop = self._first, self._first + self._count
        if not self.process.is_done(self._number):
            self._seal(self._others, first + self._own, stop)
        self.process.let_go(first)
        hashes, stored = self.process.hashes[first:stop].copy(), self.process.stored[first:stop].copy()
        return _sealed(self.process.slab, first, stop, hashes, stored)

    def _seal(self, payloads: Sequence[memoryview], first: int, stop: int) -> None:
        process = self.process
        rows = slice(first, stop)
        process.hashes[rows], process.stored[rows] = self._cipher.seal_rows(payloads, process.slab, first, stop)


def _sealed(slab: Slab, first: int, stop: int, hashes: Hashes, stored: Hashes) -> tuple[Rows, BlockContexts]:
    """The ciphertexts in some rows of a slab, and the contexts that go with them."""
    rows = slab.rows[first:stop]
    seals = rows[:, :SEAL_BYTES].copy()
    kinds = np.full(stop - first, ENCRYPTED, np.uint8)
    contexts = BlockContexts(kinds, hashes, seals[:, :NONCE_BYTES], seals[:, NONCE_BYTES:], stored)
    return rows[:, SEAL_BYTES:-TAG_BYTES], contexts


def _best(key: bytes) -> Aead:
    """The best way that there is here. The libraries are imported then: what they cost only an encrypted disk needs."""
    for way in (BoringSsl, Tink):
        try:
            return way(key)
        except ImportError:
            continue
    return OpenSsl(key)


def _divided(payloads: Sequence[memoryview], size_bytes: int) -> tuple[list[memoryview], list[memoryview]]:
    """The first so many bytes of them, and the others."""
    front: list[memoryview] = []
    back: list[memoryview] = []
    for payload in payloads:
        mine = min(len(payload), size_bytes)
        size_bytes -= mine
        if mine:
            front.append(payload[:mine])
        if mine < len(payload):
            back.append(payload[mine:])
    return front, back
