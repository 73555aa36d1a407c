"""BoringSSL's AES-256-GCM-SIV, called where the blocks lie.

What it is for: Tink's wheel is BoringSSL with a Python interface that takes ``bytes`` and gives ``bytes``, which is
four copies of each block. The wheel's library hands out BoringSSL's own C interface as well (``openssl/aead.h``);
through that a block is encrypted from where the guest has put it to where replicas want it, and decrypted in place.

What it guarantees: what is sealed has a fresh random nonce of the system's; what does not open is zeros afterwards, as
BoringSSL leaves it.

Why that is safe: C believes what it is told. So only versions of Tink are asked whose functions were looked at
(:data:`KNOWN_VERSIONS`), they must encrypt and decrypt a published block rightly before anybody gets them, and every
length is held against the memory it is about before a call. Where any of this is not so, there is an
:class:`ImportError`, and Tink's Python interface does it (:mod:`~crucible_emu.aead`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crucible_emu.aead import Tink
from crucible_emu.integrity import NONCE_BYTES, SEAL_BYTES, TAG_BYTES, Rows
from crucible_emu.slab import Slab

KNOWN_VERSIONS = ("1.12.", "1.13.", "1.14.", "1.15.", "1.16.")
"""Of Tink. In another one a function might want other arguments, and would take ours for them."""

_INTERFACE = """
void *EVP_aead_aes_256_gcm_siv(void);
void *EVP_AEAD_CTX_new(void *aead, const uint8_t *key, size_t key_len, size_t tag_len);
void EVP_AEAD_CTX_free(void *ctx);
int EVP_AEAD_CTX_seal(void *ctx, uintptr_t out, size_t *out_len, size_t max_out_len,
    uintptr_t nonce, size_t nonce_len, uintptr_t in, size_t in_len, uintptr_t ad, size_t ad_len);
int EVP_AEAD_CTX_open_gather(void *ctx, uintptr_t out, uintptr_t nonce, size_t nonce_len,
    uintptr_t in, size_t in_len, uintptr_t in_tag, size_t in_tag_len, uintptr_t ad, size_t ad_len);
"""
"""Addresses as numbers: those of blocks side by side are counted up, with no object made for each."""
_DOING = ("EVP_AEAD_CTX_seal", "EVP_AEAD_CTX_open_gather")

# wire-protocol.md, encryption example: what these 512 bytes become with this key and nonce.
_KEY, _NONCE, _PLAIN = bytes(range(32)), bytes(range(12)), b"\x5a" * 512
_TAG = bytes.fromhex("befa34d9115b6b265d5065b471ea8111")


@lru_cache(maxsize=1)
def _library() -> tuple[Any, Any]:
    """cffi's interface and BoringSSL. Raises :class:`ImportError`."""
    # Not above: a disk that is not encrypted needs none of them.
    from importlib import metadata, util

    import cffi

    place = util.find_spec("tink")
    if place is None or place.origin is None:
        raise ImportError("Tink is not installed")
    version = metadata.version("tink")
    if not version.startswith(KNOWN_VERSIONS):
        raise ImportError(f"Tink {version} is not known here")
    interface = cffi.FFI()
    interface.cdef(_INTERFACE)
    files = sorted(Path(place.origin).parent.glob("cc/pybind/tink_bindings*.so"))
    try:
        library = interface.dlopen(str(files[0]))
        for name in ("EVP_aead_aes_256_gcm_siv", "EVP_AEAD_CTX_new", "EVP_AEAD_CTX_free", *_DOING):
            getattr(library, name)
    except (IndexError, OSError, AttributeError) as error:
        raise ImportError(f"Tink {version} does not hand out BoringSSL") from error
    return interface, library


@lru_cache(maxsize=1)
def _trusted() -> tuple[Any, Any]:
    """The same, after it has done the published example rightly. *Safety*: once for each process."""
    found = _library()
    aead = BoringSsl(_KEY, found)
    slab = Slab(1, len(_PLAIN))
    aead._seal([memoryview(_PLAIN)], slab, 0, 1, _NONCE)
    row = slab.rows
    tag, data = row[:, NONCE_BYTES:SEAL_BYTES], row[:, SEAL_BYTES:-TAG_BYTES]
    sealed = data.tobytes()
    bad = aead.open_rows(data, row[:, :NONCE_BYTES], tag)
    if tag.tobytes() != _TAG or sealed == _PLAIN or bad or data.tobytes() != _PLAIN:
        raise ImportError("what BoringSSL makes of the published example is not what was published")
    return found


class BoringSsl(Tink):
    """AES-256-GCM-SIV with ``key``, of 32 bytes; single blocks go the way of :class:`~crucible_emu.aead.Tink`, which is
    as fast for them. Raises :class:`ImportError` where it cannot be had."""

    library = "boringssl"

    def __init__(self, key: bytes, library: tuple[Any, Any] | None = None) -> None:
        super().__init__(key)
        self._interface, functions = _trusted() if library is None else library
        made = functions.EVP_AEAD_CTX_new(functions.EVP_aead_aes_256_gcm_siv(), key, len(key), TAG_BYTES)
        if made == self._interface.NULL:
            raise ValueError(f"BoringSSL takes no key of {len(key)} bytes")
        self._context = self._interface.gc(made, functions.EVP_AEAD_CTX_free)
        self._length = self._interface.new("size_t *")
        self._number = self._interface.typeof("uintptr_t")
        self._seal_at, self._open_at = functions.EVP_AEAD_CTX_seal, functions.EVP_AEAD_CTX_open_gather

    def seal(self, payloads: Sequence[memoryview], slab: Slab, first: int, stop: int) -> None:
        """See :class:`~crucible_emu.aead.Aead`."""
        self._seal(payloads, slab, first, stop, os.urandom(NONCE_BYTES * (stop - first)))

    def _seal(self, payloads: Sequence[memoryview], slab: Slab, first: int, stop: int, nonces: bytes) -> None:
        size, step, room = slab.block_size, slab.row_bytes, slab.block_size + TAG_BYTES
        if not 0 <= first <= stop <= slab.count or sum(map(len, payloads)) != (stop - first) * size:
            raise ValueError(f"rows {first} to {stop} of {slab.count} are not the place for these blocks")
        rows = slab.rows[first:stop]
        rows[:, :NONCE_BYTES] = np.frombuffer(nonces, np.uint8).reshape(-1, NONCE_BYTES)
        seal, context, length = self._seal_at, self._context, self._length
        cast, from_buffer = self._interface.cast, self._interface.from_buffer
        row = slab.address + first * step
        for payload in payloads:
            if len(payload) % size:
                raise ValueError(f"a payload is not whole blocks of {size} bytes")
            start = int(cast(self._number, from_buffer(payload)))
            for block in range(start, start + len(payload), size):
                if not seal(context, row + SEAL_BYTES, length, room, row, NONCE_BYTES, block, size, 0, 0):
                    raise RuntimeError("BoringSSL does not encrypt")
                row += step
        # It has put each tag behind the ciphertext. (To have it put where it belongs takes three more arguments, which
        # is 8% of the time.)
        rows[:, NONCE_BYTES:SEAL_BYTES] = rows[:, -TAG_BYTES:]

    def open_rows(self, rows: Rows, nonces: npt.NDArray[np.uint8], tags: npt.NDArray[np.uint8]) -> list[int]:
        """See :class:`~crucible_emu.aead.Aead`."""
        count, size = rows.shape
        if nonces.shape != (count, NONCE_BYTES) or tags.shape != (count, TAG_BYTES):
            raise ValueError(f"{count} blocks have as many nonces and tags, of {NONCE_BYTES} and {TAG_BYTES} bytes")
        if rows.strides[1] != 1 or rows.strides[0] < size or not rows.flags.writeable:
            raise ValueError("blocks are decrypted where they are, so that must be writable, each in one piece")
        nonces, tags = np.ascontiguousarray(nonces), np.ascontiguousarray(tags)
        block, nonce, tag = rows.ctypes.data, nonces.ctypes.data, tags.ctypes.data
        blocks = range(block, block + count * rows.strides[0], rows.strides[0])
        right = map(
            self._open_at,
            *(repeat(self._context), blocks, range(nonce, nonce + nonces.nbytes, NONCE_BYTES), repeat(NONCE_BYTES)),
            *(blocks, repeat(size), range(tag, tag + tags.nbytes, TAG_BYTES), repeat(TAG_BYTES), repeat(0), repeat(0)),
        )
        return [index for index, each in enumerate(right) if not each]
