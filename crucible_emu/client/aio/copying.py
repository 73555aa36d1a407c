"""Copies between a local file and a disk, under asyncio.

What it is for: :func:`copy_in` and :func:`copy_out`, which :class:`~crucible_emu.client.aio.disk.Disk` offers. Files go
through ``aiofiles``, digests and the search for zeros through a thread, for both take more than 100 µs a piece; the
disk's requests of several pieces are under way meanwhile.

What it guarantees: memory is bounded by the pace. A thread never works on a file that was closed, or on memory that is
used for something else, for what runs in a thread is awaited to its end even when the copy is cancelled
(:func:`finished`); that is a local file's read or write, so a cancellation waits for milliseconds. The file of a
:func:`copy_out` is made under another name beside its place and renamed when it is whole.
"""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import aiofiles
import aiofiles.os
from blake3 import blake3

from crucible_emu.client.aio.disk import Disk
from crucible_emu.client.copying import (
    FILE_BLOCK_BYTES,
    HOLE_BYTES_MIN,
    Copied,
    Pace,
    Progress,
    data_runs,
    page_aligned,
)
from crucible_emu.client.failures import read_only
from crucible_emu.errors import UsageError

T = TypeVar("T")


async def finished(work: Awaitable[T]) -> T:
    """The result of work in a thread; a cancellation is raised when the work has ended, not before."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # it is of no interest any more, and asyncio wants it looked at
        raise


@asynccontextmanager
async def opened(path: str | os.PathLike[str], mode: str) -> AsyncIterator[Any]:
    """The file ``path`` of ``aiofiles``, unbuffered; closed in the end whenever a cancellation comes."""
    opening = asyncio.ensure_future(_open(path, mode))
    try:
        file = await finished(opening)
    except asyncio.CancelledError:
        if not opening.cancelled() and opening.exception() is None:
            await finished(opening.result().close())
        raise
    try:
        yield file
    finally:
        await finished(file.close())


async def _open(path: str | os.PathLike[str], mode: str) -> Any:
    return await aiofiles.open(path, mode, buffering=0)  # type: ignore[call-overload]  # the mode is not known here


class Window:
    """Tasks in the order in which they were started, at most so many at once."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._tasks: deque[asyncio.Task[Any]] = deque()

    @property
    def full(self) -> bool:
        return len(self._tasks) >= self._most

    def __bool__(self) -> bool:
        return bool(self._tasks)

    def start(self, work: Coroutine[Any, Any, Any]) -> None:
        self._tasks.append(asyncio.create_task(work))

    async def oldest(self) -> Any:
        """The result of the task that was started first; it stays in the window until it is done."""
        result = await asyncio.shield(self._tasks[0])
        self._tasks.popleft()
        return result

    async def close(self) -> None:
        """Cancel what is left, and wait until it has ended."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()


class Tally:
    """What is done of a copy, in bytes and as a digest."""

    def __init__(self, size_bytes: int, progress: Progress | None) -> None:
        self.size_bytes = size_bytes
        self.data_bytes = 0
        self._done_bytes = 0
        self._progress = progress
        self._digest = blake3()
        self._zeros = memoryview(bytes(min(size_bytes, 1 << 20)))

    def look(self, piece: memoryview, granule: int) -> list[tuple[int, int]]:
        """Take the next piece of content into the digest, and find its data. Runs in a thread."""
        self._digest.update(piece)
        return data_runs(piece, granule)

    def look_at_hole(self, length: int) -> None:
        """Take so many zeros into the digest. Runs in a thread."""
        while length:
            count = min(length, len(self._zeros))
            self._digest.update(self._zeros[:count])
            length -= count

    def done(self, length: int) -> None:
        self._done_bytes += length
        if self._progress is not None:
            self._progress(self._done_bytes, self.size_bytes)

    def copied(self) -> Copied:
        return Copied(self.size_bytes, self.data_bytes, self._digest.hexdigest())


# --- from a file to the disk ---


async def copy_in(
    disk: Disk, path: str | os.PathLike[str], offset: int, progress: Progress | None, pace: Pace
) -> Copied:
    """See :meth:`Disk.copy_in`."""
    if disk.read_only:
        raise read_only("copy_in")
    if offset % disk.block_size:
        raise UsageError(f"cannot copy to {offset}: blocks have {disk.block_size} bytes, align it to that")
    async with opened(path, "rb") as file:
        size_bytes = await finished(file.seek(0, os.SEEK_END))
        if offset < 0 or offset + size_bytes > disk.size_bytes:
            raise UsageError(
                f"'{os.fspath(path)}' has {size_bytes} bytes, which do not fit at {offset} into the "
                f"{disk.size_bytes} bytes of {disk.address}"
            )
        tally = Tally(size_bytes, progress)
        await _CopyIn(disk, file, offset, tally, pace).run()
    if disk.can_flush:
        await disk.flush()
    return tally.copied()


class _CopyIn:
    """One copy of a file to a disk: pieces are read and looked at in order, and sent several at a time."""

    def __init__(self, disk: Disk, file: Any, offset: int, tally: Tally, pace: Pace) -> None:
        self._disk = disk
        self._file = file
        self._offset = offset
        self._tally = tally
        self._piece_bytes = pace.piece_bytes
        self._window = Window(pace.in_flight)
        self._unused = [page_aligned(pace.piece_bytes) for _ in range(min(pace.in_flight, self._pieces()) + 1)]

    def _pieces(self) -> int:
        return -(-self._tally.size_bytes // self._piece_bytes)

    async def run(self) -> None:
        window, tally = self._window, self._tally
        try:
            async for start, end, is_data in self._runs():
                if not is_data:
                    await finished(asyncio.to_thread(tally.look_at_hole, end - start))
                    await self._make_room()
                    window.start(self._send(start, end - start, None, []))
                    continue
                for at in range(start, end, self._piece_bytes):
                    await self._make_room()
                    piece = self._unused.pop()[: min(self._piece_bytes, end - at)]
                    await self._read(piece)
                    runs = await finished(asyncio.to_thread(tally.look, piece, HOLE_BYTES_MIN))
                    window.start(self._send(at, len(piece), piece, runs))
            while window:
                await self._oldest_sent()
        finally:
            await window.close()

    async def _make_room(self) -> None:
        while self._window.full:
            await self._oldest_sent()

    async def _oldest_sent(self) -> None:
        length, piece = await self._window.oldest()
        if piece is not None:
            self._unused.append(memoryview(piece.obj))
        self._tally.done(length)

    async def _runs(self) -> AsyncIterator[tuple[int, int, bool]]:
        """``(start, end, whether it is data)`` of the file in order; the file stands at the start of what is data.

        A hole that ends in the middle of a block is taken for data from that block on.
        """
        size, file, at = self._tally.size_bytes, self._file, 0
        while at < size:
            data = await self._seek(at, os.SEEK_DATA, size) // HOLE_BYTES_MIN * HOLE_BYTES_MIN
            if data > at:
                yield at, data, False
                at = data
            # No rounding at the file's end: what follows the last data there is a hole of any length.
            hole = -(-await self._seek(at, os.SEEK_HOLE, size) // HOLE_BYTES_MIN) * HOLE_BYTES_MIN
            end = min(max(hole, at + 1), size)
            await finished(file.seek(at))
            if at < end:
                yield at, end, True
                at = end

    async def _seek(self, at: int, whence: int, size: int) -> int:
        """Where the next data or hole begins; a file system that does not know has only data."""
        try:
            found: int = await finished(self._file.seek(at, whence))
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole until the end
                return size
            if error.errno in (errno.EINVAL, errno.ENOTSUP):
                return at if whence == os.SEEK_DATA else size
            raise
        return found

    async def _read(self, piece: memoryview) -> None:
        filled = 0
        while filled < len(piece):
            count = await finished(self._file.readinto(piece[filled:]))
            if not count:
                raise OSError(errno.EIO, "the file became shorter while it was copied")
            filled += count

    async def _send(
        self, start: int, length: int, piece: memoryview | None, runs: list[tuple[int, int]]
    ) -> tuple[int, memoryview | None]:
        """Bring one piece (or hole) of the file to the disk; its zeros without sending them where that is possible."""
        disk, at = self._disk, self._offset + start
        if piece is not None and not disk.can_zero:
            runs = [(0, length)]
        done = 0
        for first, last in [*runs, (length, length)]:
            if done < first:
                await self._zero(at + done, first - done)
            if first < last:
                assert piece is not None
                await self._write(at + first, piece[first:last])
            done = last
        self._tally.data_bytes += sum(last - first for first, last in runs)
        return length, piece

    async def _write(self, at: int, data: memoryview) -> None:
        """Write; the last block of a file that ends in it keeps what the disk has behind the end."""
        disk = self._disk
        ragged = len(data) % disk.block_size
        if len(data) > ragged:
            await disk.write(at, data[: len(data) - ragged])
        if ragged:
            last = at + len(data) - ragged
            block = bytearray(await disk.read(last, min(disk.block_size, disk.size_bytes - last)))
            block[:ragged] = data[len(data) - ragged :]
            await disk.write(last, block)

    async def _zero(self, at: int, length: int) -> None:
        ragged = length % self._disk.block_size
        if length > ragged:
            await self._disk.zero(at, length - ragged)
        if ragged:
            await self._write(at + length - ragged, memoryview(bytes(ragged)))


# --- from the disk to a file ---


async def copy_out(
    disk: Disk, path: str | os.PathLike[str], offset: int, length: int, progress: Progress | None, pace: Pace
) -> Copied:
    """See :meth:`Disk.copy_out`."""
    target = Path(path).resolve()
    if target.exists() and not target.is_file():
        raise UsageError(f"'{target}' exists and is no regular file: name a new file, or one to replace")
    unfinished = target.with_name(f".{target.name[:200]}.{secrets.token_hex(4)}.part")
    tally = Tally(length, progress)
    try:
        async with opened(unfinished, "xb") as file:
            await finished(file.truncate(length))
            await _CopyOut(disk, file, offset, tally, pace).run()
        await finished(aiofiles.os.replace(unfinished, target))
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(unfinished)  # at once: a cancelled task must not wait for a thread it may not get
        raise
    return tally.copied()


class _CopyOut:
    """One copy of a disk to a file: several pieces are read at a time, and looked at and written in order."""

    def __init__(self, disk: Disk, file: Any, offset: int, tally: Tally, pace: Pace) -> None:
        self._disk = disk
        self._file = file
        self._offset = offset
        self._tally = tally
        self._piece_bytes = pace.piece_bytes
        self._window = Window(pace.in_flight)
        self._unused: list[memoryview] = []
        self._position = 0

    async def run(self) -> None:
        window = self._window
        try:
            async for start, end, is_zero in self._runs():
                if is_zero:
                    await self._make_room(0)
                    await finished(asyncio.to_thread(self._tally.look_at_hole, end - start))
                    self._tally.done(end - start)
                    continue
                for at in range(start, end, self._piece_bytes):
                    await self._make_room()
                    window.start(self._fetch(at, min(self._piece_bytes, end - at)))
            await self._make_room(0)
        finally:
            await window.close()

    async def _make_room(self, most: int | None = None) -> None:
        """Store the oldest pieces until the window has room (or holds no more than ``most``)."""
        while self._window.full or (most == 0 and self._window):
            await self._store(*await self._window.oldest())

    async def _runs(self) -> AsyncIterator[tuple[int, int, bool]]:
        """``(start, end, whether it is known to be zeros)`` of the range, from its start on."""
        at, length = 0, self._tally.size_bytes
        while at < length:
            asked = min(length - at, MAP_BYTES)
            for count, is_zero in await self._disk.zeros(self._offset + at, asked):
                yield at, at + count, is_zero
                at += count

    async def _fetch(self, at: int, length: int) -> tuple[int, memoryview]:
        memory = self._unused.pop() if self._unused else page_aligned(self._piece_bytes)
        piece = memory[:length]
        await self._disk.read_into(self._offset + at, piece)
        return at, piece

    async def _store(self, at: int, piece: memoryview) -> None:
        runs = await finished(asyncio.to_thread(self._tally.look, piece, FILE_BLOCK_BYTES))
        for first, last in runs:
            if self._position != at + first:
                await finished(self._file.seek(at + first))
                self._position = at + first
            while first < last:
                count = await finished(self._file.write(piece[first:last]))
                first += count
                self._position += count
                self._tally.data_bytes += count
        self._unused.append(memoryview(piece.obj))
        self._tally.done(len(piece))


MAP_BYTES = 256 << 20
"""Mapped at once: a BLOCK_STATUS is cheap beside the data under it, and a map is as long as the disk is fragmented."""
