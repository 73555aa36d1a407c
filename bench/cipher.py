"""What OpenSSL's cipher alone does on this machine's cores: the yardstick of an encrypted disk.

What it is for: how fast AES-256-GCM-SIV is differs from processor to processor. So it is measured in the same rounds,
as if it were a disk: a thread for each core, which encrypts (for a line that writes) or decrypts blocks of 4 KiB and
does nothing else.

Why it is no ceiling: the floor of an encrypted disk was set over this library, which lets go of the interpreter's lock.
The disk itself has BoringSSL's (:mod:`crucible_emu.boringssl`), which needs a seventh of the time, on one core.

What it guarantees: each block has a nonce of its own, as on the disk. Only sequential lines are asked of it: they are
about bytes, and so is this.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.ciphers.aead import AESGCMSIV

from bench.fio import Achieved, FioError
from bench.lines import KIB, MIB, Line

BLOCK_BYTES = 4 * KIB
NONCE_BYTES = 12
BLOCKS_AT_ONCE = 64
"""How many blocks are done between two looks at the clock, with nonces drawn at once."""


def measure(line: Line, seconds: float) -> Achieved | None:
    """What the cipher does in ``seconds``; ``None`` for a line that is not asked of it. Raises :class:`FioError` where
    the libraries have no such cipher."""
    if not line.sequential:
        return None
    try:
        cipher = AESGCMSIV(AESGCMSIV.generate_key(256))
    except UnsupportedAlgorithm as problem:
        raise FioError(f"{line.name}: this machine's OpenSSL has no AES-GCM-SIV ({problem}).") from problem
    counts: list[int] = []
    began = time.perf_counter()
    work = encrypt if line.writes else decrypt
    workers = [
        threading.Thread(target=lambda: counts.append(work(cipher, lambda: time.perf_counter() - began < seconds)))
        for _ in range(os.cpu_count() or 1)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    done_bytes = sum(counts) * BLOCK_BYTES
    took_s = time.perf_counter() - began
    operations = max(1, done_bytes // line.block_bytes)
    return Achieved(done_bytes / line.block_bytes / took_s, done_bytes / MIB / took_s, operations)


def encrypt(cipher: AESGCMSIV, more: Callable[[], bool]) -> int:
    """Encrypt blocks while there is time, and at least once: how many."""
    block, count = os.urandom(BLOCK_BYTES), 0
    while True:
        nonces = os.urandom(BLOCKS_AT_ONCE * NONCE_BYTES)
        for start in range(0, len(nonces), NONCE_BYTES):
            cipher.encrypt(nonces[start : start + NONCE_BYTES], block, None)
        count += BLOCKS_AT_ONCE
        if not more():
            return count


def decrypt(cipher: AESGCMSIV, more: Callable[[], bool]) -> int:
    """Decrypt blocks while there is time, and at least once: how many."""
    nonce, count = os.urandom(NONCE_BYTES), 0
    stored = cipher.encrypt(nonce, os.urandom(BLOCK_BYTES), None)
    while True:
        for _ in range(BLOCKS_AT_ONCE):
            cipher.decrypt(nonce, stored, None)
        count += BLOCKS_AT_ONCE
        if not more():
            return count
