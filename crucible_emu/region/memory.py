"""Tables with one entry per block of a disk, which cost memory only where they are touched.

What it is for: a disk of one TiB has 268 million blocks of 4 KiB; a table of four bytes each is one GiB that nobody
wants to pay for a disk of which a few blocks are in use. The kernel hands out zero pages on first touch, so a table
whose zero means "nothing known" is free until it says something.

What it guarantees: :func:`reserve` returns zeros and reserves address space, not memory. :meth:`Reservation.release`
gives the memory back, after which every entry is zero again. Big reservations refuse huge pages, because one entry
written at random would then cost two MiB instead of four KiB; those that are *dense*, filled from one end, ask for
them.

A reservation may lie in a :class:`SharedFile` instead, which other processes can map and look into. All of the above
holds there, too, but two things: a page that is only *read* costs memory as well, for the kernel has no common page of
zeros for files of memory; and to touch a page for the first time costs 2.5 µs instead of 0.3 in a dense one, for most
systems give such files no huge pages. Written to the file (:meth:`SharedFile.write`) it costs 1.3, and need not be
zeroed before. Written again, it costs the same in either.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from crucible_emu.logs import get_logger

HUGE_PAGES_BYTES_MAX = 64 * 1024 * 1024
log = get_logger(__name__)
_MFD_NOEXEC_SEAL = 0x0008  # nothing in it is ever run; a system may be set up to refuse files of memory without
_MAP_NORESERVE = 0x4000  # Linux; without it the kernel may refuse a reservation larger than the machine's memory.

Scalar = TypeVar("Scalar", bound=np.generic)


class SharedFile:
    """A file of memory without a name, which grows by what is reserved in it until it is sealed.

    *Safety*: a sealed one never shrinks, so whoever has mapped it cannot die of a missing page; and the descriptors
    that others get can neither write nor be opened anew for writing, but by the superuser.
    """

    def __init__(self, name: str) -> None:
        flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
        try:
            self.descriptor = os.memfd_create(name, flags | _MFD_NOEXEC_SEAL)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self.descriptor = os.memfd_create(name, flags)  # a kernel before 6.3
        os.fchmod(self.descriptor, 0o400)
        self.size_bytes = 0

    def place(self, size_bytes: int) -> int:
        """Make room at the end; its offset, a whole number of pages."""
        offset = -(-self.size_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        self.size_bytes = offset + size_bytes
        os.ftruncate(self.descriptor, self.size_bytes)
        return offset

    def seal(self) -> None:
        """From now on its size is what it is."""
        fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)

    def write(self, pieces: Sequence[memoryview], offset: int) -> bool:
        """Put ``pieces``, one after the other, into memory that was never touched; whether all of it is there."""
        total = sum(map(len, pieces))
        try:
            return os.pwritev(self.descriptor, pieces, offset) == total
        except OSError as error:
            log.warning("cannot write to shared memory", error=str(error))
            return False

    def open_to_read(self) -> int:
        """A descriptor that can only be read and mapped to be read."""
        return os.open(f"/proc/self/fd/{self.descriptor}", os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        """Close the descriptor; what is reserved in it lives on."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


class Reservation(Generic[Scalar]):
    """Zero-filled memory: ``array`` has the given shape and dtype. The memory lives as long as the array. ``dense``:
    what is touched lies together. ``within``: where others can look into it, at ``offset``; else it is private."""

    __slots__ = ("_map", "_release", "array", "offset")

    array: npt.NDArray[Scalar]

    def __init__(
        self,
        shape: int | tuple[int, ...],
        dtype: type[Scalar],
        *,
        dense: bool = False,
        within: SharedFile | None = None,
    ) -> None:
        count = int(np.prod(shape, dtype=np.int64))
        size_bytes = max(1, count * np.dtype(dtype).itemsize)
        if within is None:
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
            self._map = mmap.mmap(-1, size_bytes, flags=flags)
            self._release = mmap.MADV_DONTNEED
            self.offset = 0
        else:
            self.offset = within.place(size_bytes)
            flags = mmap.MAP_SHARED | _MAP_NORESERVE
            self._map = mmap.mmap(within.descriptor, size_bytes, flags=flags, offset=self.offset)
            self._release = mmap.MADV_REMOVE
        if size_bytes > HUGE_PAGES_BYTES_MAX:
            self._map.madvise(mmap.MADV_HUGEPAGE if dense else mmap.MADV_NOHUGEPAGE)
        self.array = np.frombuffer(self._map, dtype, count).reshape(shape)

    def release(self, offset: int = 0, size_bytes: int | None = None) -> None:
        """Give the memory, or whole pages of it, back to the system; every entry reads as zero afterwards."""
        if size_bytes is None:
            size_bytes = len(self._map) - offset
        self._map.madvise(self._release, offset, size_bytes)


def reserve(
    shape: int | tuple[int, ...], dtype: type[Scalar], *, dense: bool = False, within: SharedFile | None = None
) -> Reservation[Any]:
    """A :class:`Reservation` of zeros."""
    return Reservation(shape, dtype, dense=dense, within=within)
