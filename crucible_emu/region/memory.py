"""Tables with one entry per block of a disk, which cost memory only where they are touched.

What it is for: a disk of one TiB has 268 million blocks of 4 KiB; a table of four bytes each is one GiB that nobody
wants to pay for a disk of which a few blocks are in use. The kernel hands out zero pages on first touch, so a table
whose zero means "nothing known" is free until it says something.

What it guarantees: :func:`reserve` returns zeros and reserves address space, not memory. :meth:`Reservation.release`
gives the memory back, after which every entry is zero again. Big reservations refuse huge pages, because one entry
written at random would then cost two MiB instead of four KiB; those that are *dense*, filled from one end, ask for
them.
"""

from __future__ import annotations

import mmap
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

HUGE_PAGES_BYTES_MAX = 64 * 1024 * 1024
_MAP_NORESERVE = 0x4000  # Linux; without it the kernel may refuse a reservation larger than the machine's memory.

Scalar = TypeVar("Scalar", bound=np.generic)


class Reservation(Generic[Scalar]):
    """Zero-filled private memory: ``array`` has the given shape and dtype. The memory lives as long as the array.
    ``dense``: what is touched lies together."""

    __slots__ = ("_map", "array")

    array: npt.NDArray[Scalar]

    def __init__(self, shape: int | tuple[int, ...], dtype: type[Scalar], *, dense: bool = False) -> None:
        count = int(np.prod(shape, dtype=np.int64))
        size_bytes = max(1, count * np.dtype(dtype).itemsize)
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        self._map = mmap.mmap(-1, size_bytes, flags=flags)
        if size_bytes > HUGE_PAGES_BYTES_MAX:
            self._map.madvise(mmap.MADV_HUGEPAGE if dense else mmap.MADV_NOHUGEPAGE)
        self.array = np.frombuffer(self._map, dtype, count).reshape(shape)

    def release(self) -> None:
        """Give the memory back to the system; every entry reads as zero afterwards."""
        self._map.madvise(mmap.MADV_DONTNEED)


def reserve(shape: int | tuple[int, ...], dtype: type[Scalar], *, dense: bool = False) -> Reservation[Any]:
    """A :class:`Reservation` of zeros."""
    return Reservation(shape, dtype, dense=dense)
