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
import numpy.typing as npt
import xxhash

from crucible_emu.aead import Aead, OpenSsl, Tink
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

    def begin(self, key: bytes, payloads: Sequence[memoryview], first: int) -> None: ...

    def is_done(self) -> bool: ...


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

        The ciphertexts are a view of the slab, or of one that is shared with another process; their rows are contiguous
        each but not together, and there until the next call in this thread. The contexts stand by themselves."""
        size = slab.block_size
        count = sum(map(len, payloads)) // size
        process = self._process_for(count, size)
        if process is None:
            hashes, stored = self.seal_rows(payloads, slab, 0, count)
        else:
            slab = process.slab
            hashes, stored = self._seal_shared(payloads, process, count, size)
        seals = slab.rows[:count, :SEAL_BYTES].copy()
        kinds = np.full(count, ENCRYPTED, np.uint8)
        contexts = BlockContexts(kinds, hashes, seals[:, :NONCE_BYTES], seals[:, NONCE_BYTES:], stored)
        return slab.rows[:count, SEAL_BYTES:-TAG_BYTES], contexts

    def _process_for(self, count: int, block_size: int) -> Sharing | None:
        """The second process, if it is to have some of so many blocks. *Optimisation*: it is asked for once much has
        come in large writes."""
        if self._sharing is None or count * block_size < LARGE_BYTES:
            return None
        self._large_bytes += count * block_size
        process = self._sharing(block_size) if self._large_bytes >= STARTS_AFTER_BYTES else None
        return process if process is not None and process.mine and count <= process.room else None

    def _seal_shared(
        self, payloads: Sequence[memoryview], process: Sharing, count: int, size: int
    ) -> tuple[Hashes, Hashes]:
        """Seal into the slab of both, the last rows there."""
        own = count - int(count * process.share)
        mine, others = _divided(payloads, own * size)
        process.begin(self._key, others, own)
        hashes, stored = process.hashes[:count], process.stored[:count]
        hashes[:own], stored[:own] = self.seal_rows(mine, process.slab, 0, own)
        if not process.is_done():
            hashes[own:], stored[own:] = self.seal_rows(others, process.slab, own, count)
        return hashes.copy(), stored.copy()

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
        seals = _each(np.concatenate([contexts.nonce, contexts.tag], axis=1))
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


def _each(rows: npt.NDArray[np.uint8]) -> list[bytes]:
    """The rows of uint8[n, width] as bytes: 0.03 µs each."""
    found: list[bytes] = np.ascontiguousarray(rows).view(np.dtype((np.void, rows.shape[1])))[:, 0].tolist()
    return found
