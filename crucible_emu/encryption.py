"""Encryption of blocks: AES-256-GCM-SIV with a detached tag (wire-protocol.md §11.2).

What it is for: an encrypted disk stores ciphertext, and beside it a context with the nonce and the tag of each block.
:class:`Cipher` makes both of plaintext, many blocks at a time, and takes them apart again.

What it guarantees: every block that is sealed gets a fresh random nonce from the library; a block that was changed, or
that belongs to another key, nonce or tag, is named and never decrypted.

Whose cipher it is: Tink's, which has BoringSSL's: 2.3 µs to encrypt 4 KiB, 1.4 to decrypt them. OpenSSL's, by way of
``cryptography``, takes 10.6 and stands in where there is no Tink for the machine. Tink keeps the interpreter's lock, so
one core is all that it uses; with OpenSSL two threads on two cores came to 6 µs, and to all that threads cost beside
it. Large writes may be shared with a second process (:mod:`~crucible_emu.cipher_process`).
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from itertools import repeat
from typing import Protocol

import numpy as np
import numpy.typing as npt
import xxhash

from crucible_emu.integrity import ENCRYPTED, NONCE_BYTES, SEAL_BYTES, TAG_BYTES, BlockContexts, Hashes, Rows, Seals

KEY_BYTES = 32
LARGE_BYTES = 256 * 1024
"""Of a write that is worth sharing."""
STARTS_AFTER_BYTES = 32 * 1024 * 1024
"""So much in large writes is worth a process, which costs 0.3 s of a core and 30 MiB."""
SEALED_TOGETHER = 32
"""So many blocks are sealed before they are put in their place: of 4 KiB they are still in the processor's cache."""

Seal = Callable[[bytes, bytes], bytes]
"""Plaintext and associated data; nonce, ciphertext and tag, one behind the other. And the way back."""


def _tink(key: bytes) -> tuple[Seal, Seal, type[Exception]]:
    """Encryption, decryption, and what the latter fails with. Raises ImportError where there is no Tink."""
    from tink.cc.pybind import tink_bindings
    from tink.proto import aes_gcm_siv_pb2, tink_pb2

    tink_bindings.register()
    data = tink_pb2.KeyData(
        type_url="type.googleapis.com/google.crypto.tink.AesGcmSivKey",
        value=aes_gcm_siv_pb2.AesGcmSivKey(key_value=key).SerializeToString(),
        key_material_type=tink_pb2.KeyData.SYMMETRIC,
    )
    # As Tink's own key manager has it, which wraps it: two more calls of Python, 0.9 of 2.3 µs to decrypt a block.
    aead = tink_bindings.AeadKeyManager.from_cc_registry(data.type_url).primitive(data.SerializeToString())
    return aead.encrypt, aead.decrypt, tink_bindings.PythonTinkException


def _openssl(key: bytes) -> tuple[Seal, Seal, type[Exception]]:
    """The same by way of ``cryptography``."""
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCMSIV

    cipher = AESGCMSIV(key)

    def encrypt(plaintext: bytes, associated: bytes) -> bytes:
        nonce = os.urandom(NONCE_BYTES)
        return nonce + cipher.encrypt(nonce, plaintext, associated)

    def decrypt(sealed: bytes, associated: bytes) -> bytes:
        return cipher.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], associated)

    return encrypt, decrypt, InvalidTag


class Slab:
    """Memory in which blocks are sealed, a row for each: nonce (12 bytes), tag (16), ciphertext.

    So what is hashed is in one piece, and so is what is stored. To be used again: memory that was never touched costs
    1 µs per 4 KiB. ``memory``: uint8 of that many, to be used instead of some of its own.
    """

    __slots__ = ("count", "hashed", "rows", "seals", "stored")

    def __init__(self, count: int, block_size: int, memory: npt.NDArray[np.uint8] | None = None) -> None:
        self.count = count
        shape = (count, SEAL_BYTES + block_size)
        self.rows: Rows = np.empty(shape, np.uint8) if memory is None else memory.reshape(shape)
        # Made once: a view costs 0.1 µs, each time.
        self.hashed = [row.data for row in self.rows]
        self.seals = [row[:SEAL_BYTES] for row in self.hashed]
        self.stored = [row[SEAL_BYTES:] for row in self.hashed]


class Sharing(Protocol):
    """Another process that seals a share of what is large, once it was taken; see
    :class:`~crucible_emu.cipher_process.CipherProcess`."""

    slab: Slab
    hashes: Hashes
    stored: Hashes
    room: int
    share: float

    def take(self) -> bool: ...

    def begin(self, key: bytes, blocks: Sequence[memoryview]) -> None: ...

    def finish(self) -> AbstractContextManager[bool]: ...


class Cipher:
    """AES-256-GCM-SIV for whole blocks with one key of :data:`KEY_BYTES`. ``library``: by whose.
    ``sharing``: who seals a share of large writes of blocks of a size."""

    __slots__ = ("_decrypt", "_encrypt", "_key", "_large_bytes", "_refused", "_sharing", "library")

    def __init__(self, key: bytes, *, sharing: Callable[[int], Sharing | None] | None = None) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"an encryption key has {KEY_BYTES} bytes, this one has {len(key)}")
        self._sharing = sharing
        self._key = key
        self._large_bytes = 0
        # Not above: 12 MiB and 0.1 s of imports that only an encrypted disk needs.
        try:
            self._encrypt, self._decrypt, self._refused = _tink(key)
            self.library = "tink"
        except ImportError:
            self._encrypt, self._decrypt, self._refused = _openssl(key)
            self.library = "cryptography"

    @classmethod
    def from_base64(cls, text: str, *, sharing: Callable[[int], Sharing | None] | None = None) -> Cipher:
        """The cipher for a key in standard base64. Raises :class:`ValueError`, which never shows the key."""
        try:
            key = base64.b64decode(text.strip(), validate=True)
        except (binascii.Error, ValueError):
            raise ValueError("the encryption key is not standard base64 with padding") from None
        return cls(key, sharing=sharing)

    def seal(self, blocks: Sequence[memoryview], slab: Slab) -> tuple[Rows, BlockContexts]:
        """Encrypt blocks of the slab's size, wherever they lie, into a slab for as many or more.

        The ciphertexts are a view of the slab, whose rows are contiguous each but not together; the contexts stand by
        themselves."""
        count, table = len(blocks), slab.rows
        process, own = self._shared_out(count, table.shape[1] - SEAL_BYTES)
        if process is None:
            hashes, stored = self._seal_some(blocks, slab, 0, count)
        else:
            process.begin(self._key, blocks[own:])
            parts = [self._seal_some(blocks, slab, 0, own)]
            with process.finish() as done:
                if done:
                    others = count - own
                    table[own:count] = process.slab.rows[:others]
                    parts.append((process.hashes[:others].copy(), process.stored[:others].copy()))
                else:
                    parts.append(self._seal_some(blocks, slab, own, count))
            hashes, stored = map(np.concatenate, zip(*parts))
        contexts = BlockContexts(
            np.full(count, ENCRYPTED, np.uint8),
            hashes,
            table[:count, :NONCE_BYTES].copy(),
            table[:count, NONCE_BYTES:SEAL_BYTES].copy(),
            stored,
        )
        return table[:count, SEAL_BYTES:], contexts

    def _shared_out(self, count: int, block_size: int) -> tuple[Sharing | None, int]:
        """The second process, if it is to have some of so many blocks, and how many of them it is not to have.
        *Optimisation*: it is asked for once much has come in large writes."""
        if self._sharing is None or count * block_size < LARGE_BYTES:
            return None, count
        self._large_bytes += count * block_size
        process = self._sharing(block_size) if self._large_bytes >= STARTS_AFTER_BYTES else None
        if process is None or not process.take():
            return None, count
        return process, count - min(int(count * process.share), process.room)

    def _seal_some(self, blocks: Sequence[memoryview], slab: Slab, begin: int, end: int) -> tuple[Hashes, Hashes]:
        """Seal some of the blocks, each in its place; the hashes of what is sealed, and of what is stored."""
        table = slab.rows
        for first in range(begin, end, SEALED_TOGETHER):
            stop = min(first + SEALED_TOGETHER, end)
            joined = b"".join(map(self._encrypt, map(bytes, blocks[first:stop]), repeat(b"")))
            sealed = np.frombuffer(joined, np.uint8).reshape(stop - first, table.shape[1])
            rows = table[first:stop]
            rows[:, :NONCE_BYTES] = sealed[:, :NONCE_BYTES]
            rows[:, NONCE_BYTES:SEAL_BYTES] = sealed[:, -TAG_BYTES:]
            rows[:, SEAL_BYTES:] = sealed[:, NONCE_BYTES:-TAG_BYTES]
        digest = xxhash.xxh64_intdigest
        return (
            np.array(list(map(digest, slab.hashed[begin:end])), np.uint64),
            np.array(list(map(digest, slab.stored[begin:end])), np.uint64),
        )

    def seal_singles(self, blocks: Sequence[memoryview], slab: Slab) -> tuple[list[memoryview], Seals]:
        """As :meth:`seal`, without an array: the ciphertexts, and what proves them; both are of the slab."""
        encrypt, digest, count = self._encrypt, xxhash.xxh64_intdigest, len(blocks)
        for block, seal, stored in zip(blocks, slab.seals, slab.stored):
            sealed = encrypt(bytes(block), b"")
            seal[:] = sealed[:NONCE_BYTES] + sealed[-TAG_BYTES:]
            stored[:] = memoryview(sealed)[NONCE_BYTES:-TAG_BYTES]
        data = slab.stored[:count]
        hashes = list(map(digest, slab.hashed[:count]))
        return data, Seals(hashes, list(map(digest, data)), slab.seals[:count])

    def open_singles(self, buffers: Sequence[memoryview], seals: Sequence[bytes | None]) -> bool:
        """Decrypt blocks in place, each with its seal; one without was never written, and stays as it is. ``False``
        with the first that fails: then some are decrypted."""
        for buffer, seal in zip(buffers, seals):
            if seal is not None:
                plaintext = self.opened(buffer, seal)
                if plaintext is None:
                    return False
                buffer[:] = plaintext
        return True

    def opened(self, data: memoryview, seal: bytes) -> bytes | None:
        """The plaintext of one block; ``None`` where it fails."""
        try:
            return self._decrypt(b"".join((seal[:NONCE_BYTES], data, seal[NONCE_BYTES:])), b"")
        except self._refused:
            return None

    def encrypt_blocks(self, rows: Rows) -> tuple[Rows, BlockContexts]:
        """Ciphertext of each row (new array, rows contiguous each) and the contexts that go with it."""
        sealed, contexts = self.seal([row.data for row in rows], Slab(*rows.shape))
        return np.ascontiguousarray(sealed), contexts

    def open(self, buffers: Sequence[memoryview], contexts: BlockContexts) -> list[int]:
        """Decrypt in place the blocks whose context is :data:`~crucible_emu.integrity.ENCRYPTED`; the indexes of those
        that failed, ascending, which are as they were."""
        if contexts.nonce is None or contexts.tag is None:
            return []
        chosen = np.flatnonzero(contexts.kind == ENCRYPTED)
        indexes = chosen.tolist()
        if len(indexes) < len(buffers):
            buffers = [buffers[index] for index in indexes]
        nonces, tags = _each(contexts.nonce[chosen]), _each(contexts.tag[chosen])
        bad: list[int] = []
        done = 0
        while done < len(indexes):
            sealed = map(b"".join, zip(nonces[done:], buffers[done:], tags[done:]))
            try:
                for buffer, plaintext in zip(buffers[done:], map(self._decrypt, sealed, repeat(b""))):
                    buffer[:] = plaintext
                    done += 1
            except self._refused:
                bad.append(indexes[done])
                done += 1
        return bad

    def decrypt_blocks(self, rows: Rows, contexts: BlockContexts) -> int | None:
        """Decrypt in place the rows whose context is :data:`~crucible_emu.integrity.ENCRYPTED`; the first row that
        fails, or ``None``."""
        return min(self.open([row.data for row in rows], contexts), default=None)


def _each(rows: npt.NDArray[np.uint8]) -> list[bytes]:
    """The rows of uint8[n, width] as bytes: 0.03 µs each."""
    found: list[bytes] = np.ascontiguousarray(rows).view(np.dtype((np.void, rows.shape[1])))[:, 0].tolist()
    return found
