"""What a copy between a file and a disk is made of, without either.

What it is for: both directions go in pieces, look for zeros in each and take a digest of all. Here is what a copy came
to (:class:`Copied`), how large pieces are, and which parts of a piece are data.

What it guarantees: the digest is BLAKE3 of every byte of the range in order, holes included: what ``b3sum`` says of
the file. :func:`data_runs` leaves out nothing but zeros, in whole granules.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Progress = Callable[[int, int], None]
"""Called with the bytes that are done and with all bytes of the copy, in the caller's loop, between two pieces."""

PIECE_BYTES = 1 << 20
IN_FLIGHT = 16
"""Pieces in memory at once. A gigabyte in pieces of 1 MiB and more took 0.7 s of a processor, of 256 KiB 1.9 s."""
BATCH_MAX = 4
"""Pieces that one visit to a thread takes along. *Optimisation*: on a busy machine each waits for a core twice."""

HOLE_BYTES_MIN = 64 * 1024
"""The granule of zeros that are not sent to a disk: a request of its own costs about as much as sending this."""
FILE_BLOCK_BYTES = 4096
"""The granule of zeros that are not written into a file: a block of every file system that has holes."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How a copy goes: the length of its pieces (a multiple of 64 KiB) and how many are under way."""

    piece_bytes: int = PIECE_BYTES
    in_flight: int = IN_FLIGHT

    def __post_init__(self) -> None:
        if self.piece_bytes < HOLE_BYTES_MIN or self.piece_bytes % HOLE_BYTES_MIN:
            raise ValueError(f"pieces of {self.piece_bytes} bytes: use a multiple of {HOLE_BYTES_MIN}")
        if self.in_flight < 1:
            raise ValueError(f"{self.in_flight} pieces in flight: use at least 1")


@dataclass(frozen=True, slots=True)
class Copied:
    """What a copy came to. ``data_bytes`` of ``size_bytes`` were sent or written; the others were zeros and needed no
    more than to be told or left out. ``blake3`` is the hexadecimal digest of all ``size_bytes``."""

    size_bytes: int
    data_bytes: int
    blake3: str


def page_aligned(length: int) -> memoryview:
    """``length`` bytes of memory that begin with a page; files are read and written fastest that way."""
    return memoryview(mmap.mmap(-1, length))


def data_runs(piece: memoryview, granule: int) -> list[tuple[int, int]]:
    """``(start, end)`` of what is not zero in ``piece``, in whole granules counted from its start, neighbours joined.

    ``granule``: a multiple of 8. A piece's last granule may be shorter.
    """
    length = len(piece)
    whole = length // granule
    data = np.zeros(whole + 3, bool)  # one for the last, shorter granule; a border on each side
    if whole:
        rows = np.frombuffer(piece, np.uint64, whole * granule // 8).reshape(whole, granule // 8)
        # Most data differs from zero in its first word already, so that the rest is rarely looked at.
        found = rows[:, 0] != 0
        unsure = np.flatnonzero(~found)
        if len(unsure) == whole:
            found = rows.any(axis=1)
        elif len(unsure):
            found[unsure] = rows[unsure].any(axis=1)
        data[1 : whole + 1] = found
    tail = bytes(piece[whole * granule :])
    data[whole + 1] = tail.count(0) != len(tail)
    edges = np.flatnonzero(data[1:] != data[:-1])
    return [(int(start) * granule, min(int(end) * granule, length)) for start, end in zip(edges[::2], edges[1::2])]
