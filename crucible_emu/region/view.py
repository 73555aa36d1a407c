"""Looking at a region without opening it: what dump, verify, digest and export stand on.

What it guarantees: nothing is changed. No leftover is removed, no slot is pruned, no file is opened for writing; even
an old SQLite extent is read from a copy of its database. One extent is open at a time and a few MiB of it are in
memory, so a region with more extents than the process may have descriptors can still be looked at.

Why that is safe: a dirty extent is judged block by block by the recovery rule (on-disk-format.md §2.9), which needs
nothing but the block and its two slots. What a view cannot promise is one instant: when a Downstairs flushes
meanwhile, early blocks are older than late ones. Look at a snapshot, or at a region that nobody serves.

The unit is :class:`Blocks`: some consecutive blocks of one extent with their active contexts.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from crucible_emu import errors
from crucible_emu.geometry import RegionDefinition, split_at_extents
from crucible_emu.integrity import BlockContexts, Rows, hash_blocks
from crucible_emu.region import directory, layout, sqlite_extent
from crucible_emu.region.layout import ExtentLayout, ExtentMetadata
from crucible_emu.region.storage import OsStorage, Storage

CHUNK_BYTES = 4 << 20
"""Block data looked at in one go: enough for hashing to run at full speed, little enough for the cache."""


def is_hole(descriptor: int, start: int, length: int) -> bool:
    """Whether the file has no data in ``start .. start + length``, which lies within it, so that it reads as zeros.

    *Optimisation*: a sparse disk is mostly holes. ``False`` where the file system does not know.
    """
    try:
        return os.lseek(descriptor, start, os.SEEK_DATA) >= start + length
    except OSError as error:
        return error.errno == errno.ENXIO  # no data from here to the end


@dataclass(frozen=True, slots=True, eq=False)
class Blocks:
    """``len(rows)`` consecutive blocks of an extent, the first being its block ``first``.

    ``rows`` uint8[n, block size], read-only, as stored; ``contexts`` the active ones, EMPTY for a block that was never
    written; ``lost`` bool[n]: two contexts and neither fits (only in a dirty extent); ``hole``: the file has no data
    here, all rows are zeros.
    """

    first: int
    rows: Rows
    contexts: BlockContexts
    lost: npt.NDArray[np.bool_]
    hole: bool = False


class ExtentView(Protocol):
    """One extent, raw or SQLite, opened to be looked at."""

    extent_id: int
    path: Path
    layout: ExtentLayout
    metadata: ExtentMetadata

    def look(self, first: int, count: int) -> Blocks:
        """Blocks ``first .. first + count`` of the extent. Raises a CrucibleError where they cannot be read."""
        ...

    def close(self) -> None: ...


class BlockFile:
    """An extent's data file, readable in ranges; holes are not read."""

    def __init__(self, storage: Storage, path: Path, geometry: ExtentLayout) -> None:
        self._storage = storage
        self._geometry = geometry
        self._zeros: Rows | None = None
        self._path = path
        self._descriptor = storage.open(path, os.O_RDONLY)
        self.size_bytes = storage.file_bytes(self._descriptor)

    def close(self) -> None:
        self._storage.close(self._descriptor)

    def read(self, offset: int, length: int) -> npt.NDArray[np.uint8]:
        """``length`` bytes at ``offset``, uint8[length]. Raises :class:`errors.IoError` where the file ends earlier."""
        out = np.empty(length, np.uint8)
        got = self._storage.preadv(self._descriptor, [out.data], offset)
        if got != length:
            raise errors.IoError(f"{self._path} ends at byte {offset + got}, {length - got} bytes too early")
        return out

    def is_hole(self, offset: int, length: int) -> bool:
        """Whether the file system knows that these bytes are zeros that take no space."""
        return isinstance(self._storage, OsStorage) and is_hole(self._descriptor, offset, length)

    def read_rows(self, first: int, count: int) -> tuple[Rows, bool]:
        """Blocks ``first .. first + count``, read-only, and whether they are a hole."""
        if first < 0 or count < 0 or first + count > self._geometry.blocks:
            raise errors.OffsetInvalid()
        block_size = self._geometry.block_size
        offset, length = first * block_size, count * block_size
        hole = self.is_hole(offset, length)
        if hole:
            if self._zeros is None or len(self._zeros) < count:
                self._zeros = np.zeros((count, block_size), np.uint8)
            rows = self._zeros[:count]
        else:
            rows = self.read(offset, length).reshape(count, block_size)
        rows.flags.writeable = False
        return rows, hole


class RawExtentView:
    """A raw extent file (on-disk-format.md §2), checked as on a read-only open (§2.8)."""

    def __init__(self, storage: Storage, path: Path, extent_id: int, geometry: ExtentLayout) -> None:
        self.path = path
        self.extent_id = extent_id
        self.layout = geometry
        self._file = BlockFile(storage, path, geometry)
        try:
            self.metadata = self._read_metadata()
            stored = self._file.read(geometry.bitmap_offset, geometry.bitmap_bytes)
        except BaseException:
            self._file.close()
            raise
        self._active = layout.unpack_bitmap(stored.tobytes(), geometry.blocks)

    def _read_metadata(self) -> ExtentMetadata:
        size, expected = self._file.size_bytes, self.layout.file_bytes
        if size != expected:
            raise errors.BadMetadata(f"extent {self.extent_id}: file size {size} does not match expected {expected}")
        record = self._file.read(self.layout.metadata_offset, layout.METADATA_BYTES)
        metadata = ExtentMetadata.unpack(record.tobytes())
        if metadata.ext_version != layout.EXT_VERSION_RAW:
            raise errors.BadMetadata(
                f"raw extent {self.extent_id} (file {self.path}) has unknown tag {metadata.ext_version}"
            )
        return metadata

    def close(self) -> None:
        self._file.close()

    def rows(self, first: int, count: int) -> Rows:
        """Blocks as stored, uint8[count, block size], read-only."""
        return self._file.read_rows(first, count)[0]

    def slots(self, which: int, first: int, count: int) -> layout.Slots:
        """Context slots of array A (0) or B (1), uint8[count, 48]."""
        length = count * layout.SLOT_BYTES
        return self._file.read(self.layout.slot_offset(which, first), length).reshape(count, layout.SLOT_BYTES)

    def _has_no_slots(self, first: int, count: int) -> bool:
        """*Optimisation*: a part of the extent that was never touched has no slots to read (25 GiB per TiB)."""
        length = count * layout.SLOT_BYTES
        return all(
            self._file.is_hole(self.layout.slot_offset(which, first), length)
            for which in (layout.SLOT_A, layout.SLOT_B)
        )

    def bitmap(self, first: int, count: int) -> npt.NDArray[np.bool_]:
        """Active slots by the stored bitmap (True = B), bool[count]; stale while the extent is dirty."""
        return self._active[first : first + count]

    def look(self, first: int, count: int) -> Blocks:
        rows, hole = self._file.read_rows(first, count)
        if hole and self._has_no_slots(first, count):
            nothing = BlockContexts.empty(count)
            return Blocks(first, rows, replace(nothing, on_disk_hash=nothing.hash), np.zeros(count, np.bool_), True)
        slots_a, slots_b = self.slots(layout.SLOT_A, first, count), self.slots(layout.SLOT_B, first, count)
        active = self.bitmap(first, count)
        lost = np.zeros(count, np.bool_)
        if self.metadata.dirty:
            layout.check_slots(slots_a)
            layout.check_slots(slots_b)
            recovered = layout.recover_active(slots_a, slots_b, hash_blocks(rows), rows)
            active, lost = recovered.active, recovered.lost
        slots = np.where(active[:, None], slots_b, slots_a)
        slots[lost] = 0
        return Blocks(first, rows, layout.unpack_slots(slots), lost, hole)


class SqliteExtentView:
    """An old SQLite extent (on-disk-format.md §3): block data in the file, contexts from a copy of the database."""

    def __init__(self, storage: Storage, path: Path, extent_id: int, geometry: ExtentLayout) -> None:
        self.path = path
        self.extent_id = extent_id
        self.layout = geometry
        self._tables = sqlite_extent.read_tables(storage, path, geometry.blocks)
        self.metadata = self._tables.metadata
        self._file = BlockFile(storage, path, geometry)
        # A migration that was cut off before it removed the database leaves the raw length: the blocks are the same.
        if self._file.size_bytes not in (geometry.data_bytes, geometry.file_bytes):
            self._file.close()
            raise errors.BadMetadata(
                f"extent {extent_id}: file size {self._file.size_bytes} does not match expected {geometry.data_bytes}"
            )

    def close(self) -> None:
        self._file.close()

    def look(self, first: int, count: int) -> Blocks:
        rows, hole = self._file.read_rows(first, count)
        contexts = self._tables.contexts(first, hash_blocks(rows), trust_single_rows=True)
        return Blocks(first, rows, contexts, np.zeros(count, np.bool_), hole)


def open_extent(storage: Storage, path: Path, extent_id: int, geometry: ExtentLayout) -> ExtentView:
    """A view of the extent whose data file is ``path``; a ``.db`` beside it marks the old SQLite format (§2.8).

    The caller closes it. Raises :class:`errors.BadMetadata`, :class:`errors.IoError`, or :class:`OSError` where there
    is no such file.
    """
    sqlite = storage.exists(sqlite_extent.database_path(path))
    return (SqliteExtentView if sqlite else RawExtentView)(storage, path, extent_id, geometry)


@dataclass(frozen=True, slots=True)
class RegionView:
    """A region directory (or a snapshot of one) to be looked at."""

    path: Path
    definition: RegionDefinition
    storage: Storage

    @classmethod
    def open(cls, path: Path, storage: Storage | None = None) -> RegionView:
        """Read ``region.json`` and nothing else. Raises :class:`errors.UsageError` where ``path`` is no region."""
        storage = storage or OsStorage()
        return cls(path, directory.read_definition(storage, path), storage)

    @property
    def layout(self) -> ExtentLayout:
        return ExtentLayout(self.definition.block_size, self.definition.blocks_per_extent)

    @property
    def chunk_blocks(self) -> int:
        """Blocks per :class:`Blocks` when streaming."""
        return max(1, min(CHUNK_BYTES // self.definition.block_size, self.definition.blocks_per_extent))

    def extent(self, extent_id: int) -> closing[ExtentView]:
        """``with region.extent(3) as extent:``. Raises :class:`errors.InvalidExtent` beyond the last one, and
        :class:`directory.Unsettled` where flushes are in the journal that are not in the extents."""
        if not 0 <= extent_id < self.definition.extent_count:
            raise errors.InvalidExtent()
        directory.refuse_unsettled(self.storage, self.path)
        path = layout.extent_path(self.path, extent_id)
        return closing(open_extent(self.storage, path, extent_id, self.layout))

    def stream(self, start: int, count: int) -> Iterator[tuple[int, Blocks]]:
        """``(extent id, blocks)`` for the region's blocks ``start .. start + count``, in order and in chunks.

        Raises :class:`errors.OffsetInvalid`, and :class:`errors.MissingContextSlot` at a block that is lost.
        """
        if start < 0 or count < 0 or start + count > self.definition.total_blocks:
            raise errors.OffsetInvalid()
        for extent_id, first, length in split_at_extents(start, count, self.definition.blocks_per_extent):
            with self.extent(extent_id) as extent:
                for blocks in look_through(extent, first, length, self.chunk_blocks):
                    require_contexts(blocks, extent_id)
                    yield extent_id, blocks


def require_contexts(blocks: Blocks, extent_id: int) -> None:
    """Raises :class:`errors.MissingContextSlot` where a block is lost."""
    if blocks.lost.any():
        raise errors.MissingContextSlot(blocks.first + int(np.argmax(blocks.lost)), extent_id)


def look_through(extent: ExtentView, first: int, count: int, chunk_blocks: int) -> Iterator[Blocks]:
    """Blocks ``first .. first + count`` of ``extent``, ``chunk_blocks`` at a time."""
    for start in range(first, first + count, chunk_blocks):
        yield extent.look(start, min(chunk_blocks, first + count - start))
