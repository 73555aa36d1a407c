"""Memory of an Upstairs on the same machine, in which the data of its writes are.

What it is for: a large write need not pass through a socket where both sides can look into the same memory. The writer
of a region shows a file of memory at the socket where it also asks for reads (:mod:`read_grants_service`), and from
then on its writes may say where in it their data are (:data:`~crucible_emu.wire.constants.BY_REFERENCE_TAG`).

    {"upstairs_id": UUID, "session_id": UUID, "memory_bytes": NUMBER}         and one descriptor
    {"granted": {"region": UUID}}      or      {"refused": "a sentence"}

What it guarantees: we only look. What was shown can be looked into for as long as anything here refers to it, for only
memory that can never shrink is taken up (a page that is gone would be the end of this process). And when nothing refers
to it any more, the peer is told, by the end of the connection on which it was shown; until then it keeps what it has
told us of. Data are verified where they lie, and copied then: a peer that changes them meanwhile spoils its own disk.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import weakref
from collections.abc import Sequence

import numpy as np

from crucible_emu.downstairs.read_grants import NotGranted

PEER_MEMORY_BYTES_MAX = 1024 * 1024 * 1024


def mapped(descriptors: Sequence[int], size_bytes: int) -> memoryview:
    """The first ``size_bytes`` of a file of memory, uint8, to read only. Raises :class:`NotGranted`; the descriptors
    stay the caller's."""
    if not 0 < size_bytes <= PEER_MEMORY_BYTES_MAX:
        raise NotGranted(f"memory of {size_bytes} bytes: from 1 to {PEER_MEMORY_BYTES_MAX} are taken up")
    if len(descriptors) != 1:
        raise NotGranted(f"memory with {len(descriptors)} descriptors instead of 1")
    try:
        seals = fcntl.fcntl(descriptors[0], fcntl.F_GET_SEALS)
        if not seals & fcntl.F_SEAL_SHRINK or os.fstat(descriptors[0]).st_size < size_bytes:
            raise NotGranted("memory that may be, or become, shorter than was said")
        memory = mmap.mmap(descriptors[0], size_bytes, mmap.MAP_SHARED, mmap.PROT_READ)
    except OSError as error:
        raise NotGranted(f"memory that cannot be mapped: {error.strerror}") from None
    return np.frombuffer(memory, np.uint8).data


def close_with(memory: memoryview, descriptor: int) -> None:
    """Close ``descriptor`` when the last view of what :func:`mapped` gave is gone, or this process is."""
    # Every view of the memory refers to this array, so it goes last.
    weakref.finalize(memory.obj, os.close, descriptor).atexit = False
