"""Page-aligned memory that is used again.

What it is for: payloads travel between the socket and the device through this memory. A buffer that starts a few
bytes into a page makes a large ``pwrite`` five to eight times as slow, and memory that was never touched costs a page
fault per 4 KiB (performance.md, rule 8), so buffers are whole pages from ``mmap`` and are given back rather than freed.

What it guarantees: a buffer's memory is handed out again only after its last holder released it. One connection holds
at most what its :class:`Allowance` allows, and the pool keeps at most ``idle_bytes_max`` of unused memory.
"""

from __future__ import annotations

import mmap

BUFFER_BYTES_MIN = 64 * 1024
"""The smallest buffer of the pool; the others are powers of two."""

IDLE_BYTES_MAX = 128 * 1024 * 1024


def capacity_for(length: int) -> int:
    """The size of the pool's buffer that takes ``length`` bytes."""
    return max(BUFFER_BYTES_MIN, 1 << (length - 1).bit_length())


class PooledBuffer:
    """Page-aligned writable memory with a count of its holders: requests in flight, or the one who fills it.

    ``memory`` is as long as the pool's size class, which may be more than was asked for.
    """

    __slots__ = ("_allowance", "holders", "memory")

    def __init__(self, memory: memoryview, allowance: Allowance) -> None:
        self.memory = memory
        self.holders = 0
        self._allowance = allowance

    def release(self) -> None:
        """One holder less; after the last one the memory goes back."""
        self.holders -= 1
        if self.holders <= 0:
            if self.holders < 0:
                raise RuntimeError("a buffer was released more often than it was held")
            self._allowance.give_back(self.memory)


class BufferPool:
    """Unused buffers by size, shared by the connections of one server (one thread)."""

    __slots__ = ("_idle", "idle_bytes", "idle_bytes_max")

    def __init__(self, idle_bytes_max: int = IDLE_BYTES_MAX) -> None:
        self.idle_bytes_max = idle_bytes_max
        self.idle_bytes = 0
        self._idle: dict[int, list[memoryview]] = {}

    def take(self, capacity: int) -> memoryview:
        """Page-aligned memory of ``capacity`` bytes with any content."""
        idle = self._idle.get(capacity)
        if idle:
            self.idle_bytes -= capacity
            return idle.pop()
        return memoryview(mmap.mmap(-1, capacity))

    def give_back(self, memory: memoryview) -> None:
        if self.idle_bytes + len(memory) <= self.idle_bytes_max:
            self.idle_bytes += len(memory)
            self._idle.setdefault(len(memory), []).append(memory)


class Allowance:
    """What one connection may hold of the pool, in bytes. *Safety*: a client cannot make the server's memory grow."""

    __slots__ = ("_pool", "bytes_max", "taken_bytes")

    def __init__(self, pool: BufferPool, bytes_max: int) -> None:
        self._pool = pool
        self.bytes_max = bytes_max
        self.taken_bytes = 0

    def take(self, length: int) -> PooledBuffer | None:
        """A buffer for ``length`` bytes, held once; ``None`` while the connection holds too much already."""
        capacity = capacity_for(length)
        if self.taken_bytes + capacity > self.bytes_max:
            return None
        self.taken_bytes += capacity
        buffer = PooledBuffer(self._pool.take(capacity), self)
        buffer.holders = 1
        return buffer

    def give_back(self, memory: memoryview) -> None:
        self.taken_bytes -= len(memory)
        self._pool.give_back(memory)
