"""A disk image into a region, and a region out as a disk image (on-disk-format.md §1.6).

*Import* writes the file's bytes from block 0 on as plain blocks, the last one filled up with zeros, and ends with one
flush: in a new region with flush number 1 and generation 0, as the real program does. In a region with a history the
numbers go up from there, never down, because reconciliation takes the replica with the highest for the truth. With
``sparse`` a block of zeros that was never written stays unwritten, which reads the same and takes no space.

*Export* writes the stored bytes of a run of blocks. It skips whole blocks everywhere; the real program mixes bytes
and blocks beyond the first extent.

Neither knows a key. An import into an encrypted region is refused, because its Upstairs would refuse such blocks;
an export of one gives ciphertext.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from crucible_emu.errors import UsageError
from crucible_emu.geometry import RegionDefinition
from crucible_emu.integrity import BlockContexts, Rows, hash_blocks
from crucible_emu.region import directory
from crucible_emu.region.region import Region
from crucible_emu.region.storage import OsStorage
from crucible_emu.region.view import RegionView

IMPORT_CHUNK_BYTES = 4 << 20

Progress = Callable[[int], None]
"""Called with the number of bytes done since the last call."""


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import did: bytes read, blocks written, blocks of zeros left unwritten."""

    read_bytes: int
    written_blocks: int
    skipped_blocks: int


def extents_needed(size_bytes: int, definition: RegionDefinition) -> int:
    """Extents that hold an image of this size."""
    return -(-size_bytes // definition.extent_bytes)


def grow_for(path: Path, size_bytes: int) -> RegionDefinition:
    """Add extents to the region in ``path``, which nobody has open, until it holds that many bytes; its definition.

    Raises what :func:`directory.extend` raises, and :class:`UsageError` where somebody has it open.
    """
    storage = OsStorage()
    definition = directory.read_definition(storage, path)
    count = max(definition.extent_count, extents_needed(size_bytes, definition))
    if count == definition.extent_count:
        return definition
    lock = storage.lock(path)
    if lock is None:
        raise UsageError(f"the region in {path} is open read-write elsewhere: stop that process first")
    try:
        return directory.extend(storage, path, count)
    finally:
        storage.close(lock)


def import_image(
    region: Region, image: BinaryIO, *, sparse: bool = False, progress: Progress | None = None
) -> Imported:
    """Write ``image`` into ``region``, which is open read-write and big enough, and flush.

    Raises :class:`UsageError` for an encrypted region or an image that does not fit, else what writing raises.
    """
    definition = region.definition
    if definition.encrypted:
        raise UsageError("an encrypted region takes no plain image: attach to it with its key and copy the image there")
    size = definition.block_size
    chunk = bytearray(max(1, IMPORT_CHUNK_BYTES // size) * size)
    start = read_bytes = written = skipped = 0
    while got := _read_into(image, chunk):
        read_bytes += got
        rows = _whole_blocks(chunk, got, size)
        if start + len(rows) > definition.total_blocks:
            raise UsageError(f"the image is bigger than the region, which holds {definition.size_bytes} bytes")
        blocks = np.arange(start, start + len(rows), dtype=np.int64)
        if sparse:
            wanted = rows.any(axis=1) | region.written(start, len(rows))
            skipped += len(rows) - int(np.count_nonzero(wanted))
            blocks, rows = blocks[wanted], rows[wanted]
        if len(blocks):
            region.write(blocks, rows, BlockContexts.plain(hash_blocks(rows)))
        written += len(blocks)
        start += -(-got // size)
        if progress is not None:
            progress(got)
    gens, flushes, _ = region.extent_versions()
    region.flush(int(flushes.max(initial=0)) + 1, int(gens.max(initial=0)))
    return Imported(read_bytes, written, skipped)


def _read_into(image: BinaryIO, chunk: bytearray) -> int:
    """Fill ``chunk`` as far as ``image`` goes; the number of bytes."""
    view = memoryview(chunk)
    done = 0
    while done < len(view):
        got = image.readinto(view[done:])  # type: ignore[attr-defined]
        if not got:
            break
        done += got
    return done


def _whole_blocks(chunk: bytearray, got: int, block_size: int) -> Rows:
    blocks = -(-got // block_size)
    chunk[got : blocks * block_size] = bytes(blocks * block_size - got)
    return np.frombuffer(chunk, np.uint8, blocks * block_size).reshape(blocks, block_size)


def export_image(
    region: RegionView,
    out: BinaryIO,
    *,
    skip_blocks: int = 0,
    count_blocks: int = 0,
    sparse: bool = False,
    progress: Progress | None = None,
) -> int:
    """Write ``count_blocks`` blocks (0: all that follow) from block ``skip_blocks`` on; the number of bytes.

    With ``sparse`` ``out`` is a regular file, in which holes stay holes. Raises :class:`UsageError` where the range
    ends beyond the region.
    """
    total = region.definition.total_blocks
    if skip_blocks > total or skip_blocks + count_blocks > total:
        raise UsageError(
            f"blocks {skip_blocks} to {skip_blocks + max(count_blocks, 1) - 1} go beyond the region, "
            f"whose blocks are 0 to {total - 1}"
        )
    count = count_blocks or total - skip_blocks
    for _, blocks in region.stream(skip_blocks, count):
        length = blocks.rows.nbytes
        if sparse and blocks.hole:
            out.seek(length, os.SEEK_CUR)
        else:
            out.write(blocks.rows.reshape(-1).data)
        if progress is not None:
            progress(length)
    if sparse:
        out.truncate()  # a hole at the end has not made the file longer yet
    return count * region.definition.block_size
