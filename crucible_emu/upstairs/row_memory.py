"""Memory for the data of writes on their way to other processes, used again.

What it is for: a write's data are kept until every replica has them and a flush or barrier has retired the job, which
is up to 64 MiB at a time, and as much again may be on its way. All of it is freed at once, and the allocator gives it
back to the system. Memory that was never touched costs a page fault per 4 KiB, on a virtual machine up to 15 µs each: 1
to 2 ms of processor time for each MiB that a guest wrote. So what is large is kept here for the next write.

What it guarantees: memory is handed out again only after the last array and view over it are gone; whoever holds one,
a queue of a connection for instance, need not know of this. At most :data:`IDLE_BYTES_MAX` lie idle, and none of it
once nothing has been written for a while (:meth:`RowMemory.trim`).
"""

from __future__ import annotations

import mmap
import weakref

import numpy as np
import numpy.typing as npt

LARGE_BYTES = 128 * 1024
"""Smaller pieces are left to the allocator, which keeps those itself."""
IDLE_BYTES_MAX = 160 * 1024 * 1024


class RowMemory:
    """Gives out memory, for one thread."""

    def __init__(self) -> None:
        self.idle_bytes = 0
        self._idle: dict[int, list[mmap.mmap]] = {}

    def take(self, size_bytes: int) -> npt.NDArray[np.uint8]:
        """uint8[size_bytes] with any content; page-aligned where it is large."""
        if size_bytes < LARGE_BYTES:
            return np.empty(size_bytes, np.uint8)
        capacity = 1 << (size_bytes - 1).bit_length()
        idle = self._idle.get(capacity)
        if idle:
            self.idle_bytes -= capacity
            memory = idle.pop()
        else:
            memory = mmap.mmap(-1, capacity)
        flat = np.frombuffer(memory, np.uint8, size_bytes)
        # Every array and view over it refers to this one, so it goes last.
        weakref.finalize(flat, self._give_back, memory).atexit = False
        return flat

    def trim(self) -> None:
        """Give what lies idle back to the system."""
        self._idle.clear()
        self.idle_bytes = 0

    def _give_back(self, memory: mmap.mmap) -> None:
        if self.idle_bytes + len(memory) <= IDLE_BYTES_MAX:
            self.idle_bytes += len(memory)
            self._idle.setdefault(len(memory), []).append(memory)
