"""Copies between a local file and a disk, under asyncio.

What it is for: :func:`copy_in` and :func:`copy_out`, which a disk offers. Local
files are opened and worked on in the threads of ``aiofiles``, several pieces a visit; requests to the disk are under
way meanwhile.

What it guarantees: memory is bounded by the pace. A thread never works on a file that was closed, or on memory that is
used for something else, for what runs in a thread is awaited to its end even when the copy is cancelled
(:func:`finished`); that is a local file's read or write, so a cancellation waits for milliseconds. The file of a
:func:`copy_out` is made under another name beside its place and renamed when it is whole.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import aiofiles
import aiofiles.os

from crucible_emu.client.aio.device import Device
from crucible_emu.client.copying import BATCH_MAX, Copied, Pace, Progress, page_aligned
from crucible_emu.client.failures import read_only
from crucible_emu.client.file_pieces import FileReader, FileWriter, Piece
from crucible_emu.errors import UsageError

T = TypeVar("T")
P = ParamSpec("P")

MAP_BYTES = 256 << 20
"""Mapped at once: a BLOCK_STATUS is cheap beside the data under it, and a map is as long as the disk is fragmented."""


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


async def in_thread(work: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
    """``work`` in the threads that ``aiofiles`` uses, awaited to its end."""
    result: T = await finished(aiofiles.os.wrap(work)(*args, **named))
    return result


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
    return await aiofiles.open(path, mode, buffering=0)


class Window:
    """Tasks in the order in which they were started."""

    def __init__(self) -> None:
        self._tasks: deque[asyncio.Task[Any]] = deque()

    def __len__(self) -> int:
        return len(self._tasks)

    @property
    def ready(self) -> bool:
        """Whether the oldest task is done."""
        return bool(self._tasks) and self._tasks[0].done()

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
    """How far a copy is, told to whoever wants to know."""

    def __init__(self, size_bytes: int, progress: Progress | None) -> None:
        self._size_bytes = size_bytes
        self._done_bytes = 0
        self._progress = progress

    def done(self, length: int) -> None:
        self._done_bytes += length
        if self._progress is not None:
            self._progress(self._done_bytes, self._size_bytes)


# --- from a file to the disk ---


async def copy_in(
    disk: Device, path: str | os.PathLike[str], offset: int, progress: Progress | None, pace: Pace
) -> Copied:
    """See :meth:`crucible_emu.client.aio.disk.Disk.copy_in`."""
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
        reader = FileReader(file.fileno(), size_bytes)
        copy = _CopyIn(disk, offset, Tally(size_bytes, progress))
        await copy.run(reader, min(pace.in_flight, -(-size_bytes // pace.piece_bytes)), pace.piece_bytes)
    if disk.can_flush:
        await disk.flush()
    return Copied(size_bytes, copy.data_bytes, reader.blake3())


class _CopyIn:
    """One copy of a file to a disk: pieces are read in order, and sent several at a time."""

    def __init__(self, disk: Device, offset: int, tally: Tally) -> None:
        self.data_bytes = 0
        self._disk = disk
        self._offset = offset
        self._tally = tally
        self._window = Window()
        self._unused: list[memoryview] = []

    async def run(self, reader: FileReader, in_flight: int, piece_bytes: int) -> None:
        self._unused = [page_aligned(piece_bytes) for _ in range(in_flight)]
        batch = min(BATCH_MAX, in_flight)
        try:
            while batch:
                while len(self._unused) < batch:
                    await self._oldest_sent()
                memories = self._unused[-batch:]
                del self._unused[-batch:]
                pieces = await in_thread(reader.next_pieces, memories)
                if not pieces:
                    break
                for memory, piece in zip(memories, pieces):
                    self._window.start(self._send(piece, memory))
                self._unused += memories[len(pieces) :]
            while self._window:
                await self._oldest_sent()
        finally:
            await self._window.close()

    async def _oldest_sent(self) -> None:
        length, memory = await self._window.oldest()
        self._unused.append(memory)
        self._tally.done(length)

    async def _send(self, piece: Piece, memory: memoryview) -> tuple[int, memoryview]:
        """Bring one piece of the file to the disk; its zeros without sending them where that is possible."""
        at = self._offset + piece.start
        runs = piece.runs if piece.memory is None or self._disk.can_zero else ((0, piece.length),)
        done = 0
        for first, last in [*runs, (piece.length, piece.length)]:
            if done < first:
                await self._zero(at + done, first - done)
            if first < last:
                assert piece.memory is not None
                await self._write(at + first, piece.memory[first:last])
                self.data_bytes += last - first
            done = last
        return piece.length, memory

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
    disk: Device, path: str | os.PathLike[str], offset: int, length: int, progress: Progress | None, pace: Pace
) -> Copied:
    """See :meth:`crucible_emu.client.aio.disk.Disk.copy_out`."""
    target = await in_thread(_place, path)
    unfinished = target.with_name(f".{target.name[:200]}.{secrets.token_hex(4)}.part")
    try:
        async with opened(unfinished, "xb") as file:
            writer = await in_thread(FileWriter, file.fileno(), length)
            await _CopyOut(disk, writer, offset, Tally(length, progress), pace).run(length)
        await in_thread(os.replace, unfinished, target)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(unfinished)  # at once: a cancelled task must not wait for a thread that it may not get
        raise
    return Copied(length, writer.data_bytes, writer.blake3())


def _place(path: str | os.PathLike[str]) -> Path:
    """Where the file goes, behind all links."""
    target = Path(path).resolve()
    if target.exists() and not target.is_file():
        raise UsageError(f"'{target}' exists and is no regular file: name a new file, or one to replace")
    return target


class _CopyOut:
    """One copy of a disk to a file: several pieces are read at a time, and stored in order."""

    def __init__(self, disk: Device, writer: FileWriter, offset: int, tally: Tally, pace: Pace) -> None:
        self._disk = disk
        self._writer = writer
        self._offset = offset
        self._tally = tally
        self._pace = pace
        self._window = Window()
        self._unused: list[memoryview] = []
        self._storing: asyncio.Task[None] | None = None

    async def run(self, length: int) -> None:
        at = 0
        try:
            while at < length:
                asked = min(length - at, MAP_BYTES)
                for count, is_zero in await self._disk.zeros(self._offset + at, asked):
                    await self._fetch_run(at, at + count, is_zero)
                    at += count
            while self._window:
                await self._store_some()
            await self._stored()
        finally:
            await self._window.close()
            if self._storing is not None:
                await finished(asyncio.gather(self._storing, return_exceptions=True))

    async def _fetch_run(self, start: int, end: int, is_zero: bool) -> None:
        step = end - start if is_zero else self._pace.piece_bytes
        for at in range(start, end, step):
            while len(self._window) >= self._pace.in_flight:
                await self._store_some()
            self._window.start(self._fetch(Piece(at, min(step, end - at)), is_zero))

    async def _fetch(self, piece: Piece, is_zero: bool) -> Piece:
        if is_zero:
            return piece
        memory = self._unused.pop() if self._unused else page_aligned(self._pace.piece_bytes)
        filled = Piece(piece.start, piece.length, memory[: piece.length])
        assert filled.memory is not None
        await self._disk.read_into(self._offset + piece.start, filled.memory)
        return filled

    async def _store_some(self) -> None:
        """Hand the oldest pieces to a thread, as soon as it is done with those before them."""
        pieces = [await self._window.oldest()]
        while len(pieces) < BATCH_MAX and self._window.ready:
            pieces.append(await self._window.oldest())
        await self._stored()
        self._storing = asyncio.create_task(self._store(pieces))

    async def _stored(self) -> None:
        if self._storing is not None:
            await asyncio.shield(self._storing)
            self._storing = None

    async def _store(self, pieces: list[Piece]) -> None:
        await in_thread(self._writer.store, pieces)
        for piece in pieces:
            if piece.memory is not None:
                self._unused.append(memoryview(piece.memory.obj))
            self._tally.done(piece.length)
