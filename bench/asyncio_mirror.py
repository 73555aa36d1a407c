"""A mirror of three files with asyncio and aiofiles: what one would write by hand.

What it is for: the comparison that a Python programmer asks for. ``python -m bench.asyncio_mirror --socket S FOLDER``
serves the files ``r0``, ``r1`` and ``r2`` of the folder as one disk over NBD, in the way that tutorials teach: streams,
a task for each request, one file object for each file, a lock around seeking and writing.

What it guarantees: it is correct. A write is answered when all three files took it, in the same order in each; a flush
when all three are synchronised (so is a write with FUA). What it does not: no hashes, and after a crash nothing makes
the three equal again.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import struct
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiofiles

from bench.flush import EXPORT_NAME, FIXED_NEWSTYLE, FLUSH, HAS_FLUSH, MAGIC, NO_ZEROES, REPLY_MAGIC, REQUEST_MAGIC

FILES = ("r0", "r1", "r2")
READ, WRITE, DISCONNECT = 0, 1, 2
OPTION_REPLY_MAGIC = 0x3E889045565A9
GO, ABORT = 7, 2
ACK, INFO, UNSUPPORTED = 1, 3, 2**31 + 1
INFO_EXPORT = 0
HAS_FLAGS, HAS_FUA = 1 << 0, 1 << 3
FUA = 1 << 0
FLAGS = HAS_FLAGS | HAS_FLUSH | HAS_FUA
EIO, EINVAL = 5, 22
REQUEST_BYTES_MAX = 32 * 1024 * 1024


class Mirror:
    """Three open files. ``size_bytes`` is that of the shortest."""

    def __init__(self, files: list[Any], size_bytes: int) -> None:
        self._files = files
        self._locks = [asyncio.Lock() for _ in files]
        self.size_bytes = size_bytes

    async def read(self, offset: int, count: int) -> bytes:
        async with self._locks[0]:
            await self._files[0].seek(offset)
            data: bytes = await self._files[0].read(count)
        if len(data) < count:
            raise OSError("a file became shorter")
        return data

    async def write(self, offset: int, data: bytes) -> None:
        await asyncio.gather(*(self._write_one(index, offset, data) for index in range(len(self._files))))

    async def _write_one(self, index: int, offset: int, data: bytes) -> None:
        async with self._locks[index]:
            await self._files[index].seek(offset)
            await self._files[index].write(data)

    async def flush(self) -> None:
        await asyncio.gather(*(self._flush_one(index) for index in range(len(self._files))))

    async def _flush_one(self, index: int) -> None:
        async with self._locks[index]:
            await self._files[index].flush()
            await asyncio.to_thread(os.fsync, self._files[index].fileno())


class Client:
    """One connection to the mirror."""

    def __init__(self, mirror: Mirror, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._mirror = mirror
        self._reader = reader
        self._writer = writer
        self._replying = asyncio.Lock()

    async def serve(self) -> None:
        """Negotiate, then answer requests until the client goes."""
        try:
            if await self._negotiate():
                async with asyncio.TaskGroup() as tasks:
                    await self._transmit(tasks)
        except (asyncio.IncompleteReadError, ConnectionError):
            return  # it went without saying goodbye; there is nothing to tell it
        finally:
            self._writer.close()

    async def _negotiate(self) -> bool:
        """Agree on the one export. Returns whether requests follow."""
        self._writer.write(MAGIC + struct.pack(">H", FIXED_NEWSTYLE | NO_ZEROES))
        (flags,) = struct.unpack(">I", await self._reader.readexactly(4))
        while True:
            magic, option, length = struct.unpack(">8sII", await self._reader.readexactly(16))
            if magic != MAGIC[8:] or length > REQUEST_BYTES_MAX:
                return False
            await self._reader.readexactly(length)
            export = struct.pack(">QH", self._mirror.size_bytes, FLAGS)
            if option == EXPORT_NAME:
                self._writer.write(export + (b"" if flags & NO_ZEROES else bytes(124)))
                return True
            if option == GO:
                self._answer(option, INFO, struct.pack(">H", INFO_EXPORT) + export)
            self._answer(option, ACK if option in (GO, ABORT) else UNSUPPORTED)
            await self._writer.drain()
            if option in (GO, ABORT):
                return bool(option == GO)

    def _answer(self, option: int, kind: int, data: bytes = b"") -> None:
        self._writer.write(struct.pack(">QIII", OPTION_REPLY_MAGIC, option, kind, len(data)) + data)

    async def _transmit(self, tasks: asyncio.TaskGroup) -> None:
        while True:
            header = await self._reader.readexactly(28)
            magic, flags, kind, cookie, offset, count = struct.unpack(">IHHQQI", header)
            if magic != REQUEST_MAGIC or kind == DISCONNECT or count > REQUEST_BYTES_MAX:
                return
            data = await self._reader.readexactly(count) if kind == WRITE else b""
            tasks.create_task(self._do(flags, kind, cookie, offset, count, data))

    async def _do(self, flags: int, kind: int, cookie: int, offset: int, count: int, data: bytes) -> None:
        error, found = 0, b""
        try:
            if kind not in (READ, WRITE, FLUSH) or (kind != FLUSH and offset + count > self._mirror.size_bytes):
                error = EINVAL
            elif kind == READ:
                found = await self._mirror.read(offset, count)
            elif kind == WRITE:
                await self._mirror.write(offset, data)
            if not error and (kind == FLUSH or flags & FUA):
                await self._mirror.flush()
        except OSError:
            error = EIO
        async with self._replying:
            self._writer.write(struct.pack(">IIQ", REPLY_MAGIC, error, cookie) + found)
            await self._writer.drain()


async def main(folder: Path, socket: Path) -> None:
    """Serve until the process is ended."""
    async with AsyncExitStack() as stack:
        files = [await stack.enter_async_context(aiofiles.open(folder / name, "r+b")) for name in FILES]
        mirror = Mirror(files, min((folder / name).stat().st_size for name in FILES))
        server = await asyncio.start_unix_server(
            lambda reader, writer: Client(mirror, reader, writer).serve(), str(socket)
        )
        async with server:
            await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench.asyncio_mirror", description=main.__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where r0, r1 and r2 are")
    parser.add_argument("--socket", type=Path, required=True, help="the unix socket to serve on")
    given = parser.parse_args()
    asyncio.run(main(given.folder, given.socket))
