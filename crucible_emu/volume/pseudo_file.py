"""A block device as a file: any offset, any length, a position (upstairs-volume.md §11.12).

What it is for: code that thinks in bytes. Reads and writes of whole blocks go through as they are; for others the
blocks that they touch are read, and patched and written back.

What it guarantees: an unaligned write and a flush have the disk to themselves among those who use this object; aligned
writes and all reads share it, so no neighbour of an unaligned write is lost. (Who writes to the device past this object
is not held up.) The position moves when an operation succeeds.
"""

from __future__ import annotations

import io
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from crucible_emu.blockio import BlockDevice, Kind, Request
from crucible_emu.errors import UsageError
from crucible_emu.volume.image import submit


class SharedLock:
    """Held by any number together, or by one alone; in the order of asking, so that nobody starves."""

    def __init__(self) -> None:
        self._sharing = 0
        self._alone = False
        self._queue: deque[tuple[bool, trio.Event]] = deque()

    @asynccontextmanager
    async def held(self, *, alone: bool) -> AsyncIterator[None]:
        """Hold it inside the block."""
        await self._acquire(alone)
        try:
            yield
        finally:
            if alone:
                self._alone = False
            else:
                self._sharing -= 1
            self._wake()

    def _free(self, alone: bool) -> bool:
        return not self._alone and not (alone and self._sharing)

    def _take(self, alone: bool) -> None:
        if alone:
            self._alone = True
        else:
            self._sharing += 1

    async def _acquire(self, alone: bool) -> None:
        if not self._queue and self._free(alone):
            self._take(alone)
            return
        entry = (alone, trio.Event())
        self._queue.append(entry)
        try:
            await entry[1].wait()
        except trio.Cancelled:
            if entry[1].is_set():  # it was given to us just before: give it on
                if alone:
                    self._alone = False
                else:
                    self._sharing -= 1
            else:
                self._queue.remove(entry)
            self._wake()
            raise

    def _wake(self) -> None:
        while self._queue and self._free(self._queue[0][0]):
            alone, given = self._queue.popleft()
            self._take(alone)
            given.set()


class PseudoFile:
    """The bytes of ``device`` with a position. Operations raise what the device's requests fail with."""

    def __init__(self, device: BlockDevice) -> None:
        self._device = device
        self._block_size = device.block_size
        self._position = 0
        self._lock = SharedLock()

    @property
    def size_bytes(self) -> int:
        return self._device.size_bytes

    def tell(self) -> int:
        """The position, in bytes."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to ``offset`` from the start, the position or the end; beyond the end is allowed, as in any file.

        Raises :class:`UsageError` for a place before the start, and for another ``whence``.
        """
        origins = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size_bytes}
        if whence not in origins:
            raise UsageError(f"whence {whence} is none: take SEEK_SET, SEEK_CUR or SEEK_END")
        position = origins[whence] + offset
        if position < 0:
            raise UsageError(f"seek to {position}: the disk begins at 0")
        self._position = position
        return position

    async def read(self, length: int) -> bytes:
        """The next ``length`` bytes. Raises :class:`~crucible_emu.errors.OffsetInvalid` where they reach beyond the
        end: a disk has no short reads."""
        start = self._position
        async with self._lock.held(alone=False):
            first, blocks = await self._blocks(start, length)
        self._position = start + length
        return bytes(blocks[start - first : start - first + length])

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write ``data`` here. Raises :class:`~crucible_emu.errors.OffsetInvalid` where it reaches beyond the end."""
        start = self._position
        aligned = not (start % self._block_size or len(data) % self._block_size)
        async with self._lock.held(alone=not aligned):
            if aligned:
                first, blocks = start, memoryview(bytearray(data))
            else:
                first, blocks = await self._blocks(start, len(data))
                blocks[start - first : start - first + len(data)] = data
            await submit(self._device, Request(Kind.WRITE, first, len(blocks), blocks))
        self._position = start + len(data)

    async def flush(self) -> None:
        """Make everything written so far durable."""
        async with self._lock.held(alone=True):
            await submit(self._device, Request(Kind.FLUSH))

    async def _blocks(self, start: int, length: int) -> tuple[int, memoryview]:
        """Where the blocks that the range touches begin, and their bytes."""
        first = start // self._block_size * self._block_size
        end = -(-(start + length) // self._block_size) * self._block_size
        blocks = memoryview(bytearray(end - first))
        await submit(self._device, Request(Kind.READ, first, len(blocks), blocks))
        return first, blocks
