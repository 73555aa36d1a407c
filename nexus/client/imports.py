"""A file's bytes into a disk that is ready for them, by bulk writes.

What it guarantees: :func:`import_blocks` returns when every byte was acknowledged, with the BLAKE3 of what was read.
Zeros are not sent: a new disk has nothing else. Several writes are under way at once, of at most
:data:`IN_FLIGHT` pieces in memory. They may be carried out in any order, because no two touch the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

import trio
from blake3 import blake3

from nexus.client.external import BULK_WRITE_BYTES_MAX, ExternalClient

IN_FLIGHT = 4


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import came to. ``data_bytes`` of ``size_bytes`` were sent, the others were zeros. ``blake3`` is that of
    the file."""

    size_bytes: int
    data_bytes: int
    blake3: str


def padded(piece: bytes, block_size: int) -> bytes:
    """The last piece of a file, with zeros up to the end of its block."""
    return piece + bytes(-len(piece) % block_size)


# Ctrl-C between the making of a task's coroutine and its start would leave one that nobody awaits, and Python says so.
@trio.lowlevel.enable_ki_protection
async def import_blocks(
    nexus: ExternalClient, disk: str, file: BinaryIO, block_size: int, progress: Callable[[int], None]
) -> Imported:
    """Write the whole ``file`` to the start of ``disk``, an id; ``progress`` is told of the bytes that were done."""
    digest, offset, data_bytes = blake3(), 0, 0
    limit = trio.Semaphore(IN_FLIGHT)

    async def send(at: int, piece: bytes) -> None:
        try:
            await nexus.disk_bulk_write_import(disk, at, padded(piece, block_size))
            progress(len(piece))
        finally:
            limit.release()

    async with trio.open_nursery() as nursery:
        while piece := await trio.to_thread.run_sync(file.read, BULK_WRITE_BYTES_MAX):
            digest.update(piece)
            if piece.count(0) == len(piece):
                progress(len(piece))
            else:
                await limit.acquire()
                nursery.start_soon(send, offset, piece)
                data_bytes += len(piece)
            offset += len(piece)
    return Imported(offset, data_bytes, digest.hexdigest())
