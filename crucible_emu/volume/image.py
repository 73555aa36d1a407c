"""Raw images into and out of a disk.

What it is for: copies a file through the mirror, and digests what a disk holds, in pieces that keep the loop free.

What it guarantees: after :func:`copy_in` returned, everything is durable. Holes and zeros of the file are not written:
blocks that nobody ever wrote read as zeros.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import trio
from blake3 import blake3

from crucible_emu.blockio import BlockDevice, Kind, Request
from crucible_emu.errors import UsageError

PIECE_BYTES = 1024 * 1024
Progress = Callable[[int], None]
"""Told how many more bytes are done."""


async def submit(device: BlockDevice, request: Request) -> None:
    """Submit one request and wait. Raises what it failed with."""
    done = trio.Event()
    await device.wait_for_room()
    device.submit([request], lambda _: done.set())
    await done.wait()
    if request.error is not None:
        raise request.error


async def copy_in(device: BlockDevice, image: Path, progress: Progress) -> None:
    """Write the bytes of the file ``image`` to the beginning of ``device`` and flush."""
    block_size = device.block_size
    try:
        with image.open("rb") as file:
            offset = 0
            while piece := file.read(PIECE_BYTES):
                await trio.lowlevel.checkpoint()
                buffer = bytearray(-(-len(piece) // block_size) * block_size)
                buffer[: len(piece)] = piece
                if np.frombuffer(buffer, np.uint64).any():
                    await submit(device, Request(Kind.WRITE, offset, len(buffer), memoryview(buffer)))
                offset += len(buffer)
                progress(len(piece))
    except OSError as error:
        raise UsageError(f"cannot read the image {image}: {(error.strerror or str(error)).lower()}") from None
    await submit(device, Request(Kind.FLUSH))


async def digest(device: BlockDevice, length: int | None = None, progress: Progress | None = None) -> str:
    """The volume digest: BLAKE3 (hex) of the first ``length`` bytes of ``device``, all by default (``b3sum``)."""
    hasher = blake3()
    end = device.size_bytes if length is None else length
    buffer = memoryview(bytearray(PIECE_BYTES))
    for offset in range(0, end, PIECE_BYTES):
        wanted = min(PIECE_BYTES, end - offset)
        aligned = -(-wanted // device.block_size) * device.block_size
        await submit(device, Request(Kind.READ, offset, aligned, buffer[:aligned]))
        hasher.update(buffer[:wanted])
        if progress is not None:
            progress(wanted)
    return hasher.hexdigest()
