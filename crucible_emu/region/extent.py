"""The extents of a region: their numbers, their active bitmaps, their open files.

What it is for: a region has up to some ten thousand extent files. What is asked of them all the time (numbers, dirty
flags, which slot of a block is active) is held here as a few arrays over all extents; what is asked rarely is read
from the files. Descriptors are opened when needed and at most :attr:`Descriptors.limit` stay open, so three regions of
10,000 extents fit into one process.

What it guarantees: an extent is open only after its length, version, metadata and, where it is dirty, every context
slot have been checked (on-disk-format.md §2.8). A dirty extent's active slots come from the recovery rule (§2.9),
because its bitmap means nothing. Nothing here decides when something is written.

Memory: 36 bytes per extent and one bit per block.
"""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from crucible_emu import errors
from crucible_emu.geometry import BlockIndexes, RegionDefinition, runs
from crucible_emu.integrity import Hashes, Rows, hash_blocks
from crucible_emu.region import layout
from crucible_emu.region.layout import ExtentLayout, ExtentMetadata, Slots
from crucible_emu.region.memory import reserve
from crucible_emu.region.storage import Storage, explain

DESCRIPTORS_KEPT_FREE = 256
DESCRIPTORS_WITHOUT_LIMIT = 1 << 20
DESCRIPTORS_PER_REGION_MIN = 16
DESCRIPTORS_PER_REGION_MAX = 4096
REGIONS_PER_PROCESS = 16
"""Each region may hold this fraction of the process's descriptors."""
FLUSHED_TOGETHER_MAX = 1024
"""Extents whose files one flush has open at a time; each such group goes through its phases before the next."""
Versions = tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64], npt.NDArray[np.bool_]]
"""Generation numbers, flush numbers and dirty flags of all extents."""
TAIL_BYTES = layout.METADATA_BYTES + 1
HASH_CHUNK_BYTES = 4 * 1024 * 1024


def raise_descriptor_limit() -> int:
    """Raise the soft limit of open files to the hard one, as the real program does (§1.5); the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (ValueError, OSError):
            hard = soft  # a hard limit above what the kernel takes; the soft one holds
    return DESCRIPTORS_WITHOUT_LIMIT if hard == resource.RLIM_INFINITY else hard


def descriptors_per_region() -> int:
    """How many extent files one region may have open at a time."""
    share = (raise_descriptor_limit() - DESCRIPTORS_KEPT_FREE) // REGIONS_PER_PROCESS
    return max(DESCRIPTORS_PER_REGION_MIN, min(share, DESCRIPTORS_PER_REGION_MAX))


class Descriptors:
    """Open extent files by extent id, the oldest closed first when ``limit`` is reached.

    For the loop's thread alone: nobody else closes one while it is in use. Other threads open their own.
    """

    def __init__(self, storage: Storage, region: Path, flags: int, limit: int) -> None:
        self._storage = storage
        self._region = region
        self._root = str(region)
        self._flags = flags
        self._open: dict[int, int] = {}
        self._closed = False
        self.limit = limit
        self.find = self._open.get

    def __len__(self) -> int:
        return len(self._open)

    def get(self, extent_id: int) -> int:
        """The descriptor of an extent. Raises :class:`errors.IoError`."""
        found = self._open.get(extent_id)
        if found is None:
            if len(self._open) >= self.limit:
                self._close_oldest(max(1, self.limit // 8))
            found = self._open[extent_id] = self._open_here(extent_id)
        return found

    def open(self, extent_id: int) -> int:
        """A descriptor of the caller's own, from any thread. Raises :class:`errors.IoError`."""
        if self._closed:
            # *Safety*: somebody else may have the region open by now.
            raise RuntimeError(f"the region in {self._region} was closed")
        try:
            return self._storage.open(layout.extent_name(self._root, extent_id), self._flags)
        except OSError as error:
            raise explain(error, "opening the extent", layout.extent_path(self._region, extent_id)) from error

    def _open_here(self, extent_id: int) -> int:
        try:
            return self.open(extent_id)
        except errors.IoError as error:
            cause = error.__cause__
            if not self._open or not isinstance(cause, OSError) or cause.errno not in (errno.EMFILE, errno.ENFILE):
                raise
        # Something else in the process took more than its share: make do with half.
        self._close_oldest(max(1, len(self._open) // 2))
        return self.open(extent_id)

    def forget(self, extent_id: int) -> None:
        descriptor = self._open.pop(extent_id, None)
        if descriptor is not None:
            self._storage.close(descriptor)

    def close(self) -> None:
        self._closed = True
        self._close_oldest(len(self._open))

    def _close_oldest(self, count: int) -> None:
        for extent_id in list(self._open)[:count]:
            self._storage.close(self._open.pop(extent_id))


class Extents:
    """All extents of one region.

    Arrays over extents: ``gen_number`` and ``flush_number`` uint64, ``dirty`` bool (as the file says, or will say once
    it is synced), ``closed`` bool, ``unsynced`` bool (block data that no sync covers yet),
    ``suspect`` bool (a sync of such data failed, see :meth:`rewrite`),
    ``bonus_sync_count`` and ``defrag_count`` uint64. ``bits`` uint8[extents, bitmap bytes]: bit k of a row is block
    k's active slot, as in the file.
    """

    def __init__(self, storage: Storage, path: Path, definition: RegionDefinition, read_only: bool) -> None:
        count = definition.extent_count
        self.storage = storage
        self.path = path
        self.count = count
        self.read_only = read_only
        self.layout = ExtentLayout(definition.block_size, definition.blocks_per_extent)
        self.gen_number = np.zeros(count, np.uint64)
        self.flush_number = np.zeros(count, np.uint64)
        self.bonus_sync_count = np.zeros(count, np.uint64)
        self.defrag_count = np.zeros(count, np.uint64)
        self.dirty = np.zeros(count, np.bool_)
        self.closed = np.zeros(count, np.bool_)
        self.unsynced = np.zeros(count, np.bool_)
        self.suspect = np.zeros(count, np.bool_)
        self.bits: npt.NDArray[np.uint8] = reserve((count, self.layout.bitmap_bytes), np.uint8).array
        limit = descriptors_per_region()
        self.flushed_together_max = min(limit, FLUSHED_TOGETHER_MAX)
        self.descriptors = Descriptors(storage, path, os.O_RDONLY if read_only else os.O_RDWR, limit)

    def load(self, extent_ids: Sequence[int], *, durable: bool = False) -> None:
        """Check and load these extents (§2.8); dirty ones are recovered.

        *Safety*: read-write, they are synced first. What an earlier process wrote may still be on its way to the disk,
        and nothing is believed before it is there; ``durable`` says that the caller knows it to be there. Raises
        :class:`errors.IoError`, :class:`errors.BadMetadata`, :class:`errors.BadContextSlot` or
        :class:`errors.MissingContextSlot` for the first that cannot be opened.
        """
        sync = not (self.read_only or durable)
        try:
            if sync and len(extent_ids) > 1 and self.storage.sync_at_once(self.path, len(extent_ids)):
                sync = False
        except OSError as error:
            raise explain(error, "syncing the extents of", self.path) from error
        tails = np.zeros((len(extent_ids), TAIL_BYTES), np.uint8)
        for start in range(0, len(extent_ids), self.flushed_together_max):
            group = slice(start, start + self.flushed_together_max)
            self._load_tails(extent_ids[group], tails[group], sync=sync)
        ids = np.array(extent_ids, np.int64)
        records = np.ascontiguousarray(tails[:, : layout.METADATA_BYTES]).view(layout.METADATA)[:, 0]
        self._check_metadata(ids, records)
        self.gen_number[ids] = records["gen_number"]
        self.flush_number[ids] = records["flush_number"]
        self.bonus_sync_count[ids] = records["bonus_sync_count"]
        self.defrag_count[ids] = records["defrag_count"]
        self.dirty[ids] = records["dirty"] == 1
        self.unsynced[ids] = self.suspect[ids] = False
        for extent_id in ids[self.dirty[ids]].tolist():
            descriptor = self._open_to_look(extent_id)
            try:
                active = self._recover(extent_id, descriptor)
            except OSError as error:
                raise explain(error, "recovering the extent", layout.extent_path(self.path, extent_id)) from error
            finally:
                self.storage.close(descriptor)
            self.bits[extent_id] = np.packbits(active, bitorder="little")

    def _load_tails(self, extent_ids: Sequence[int], tails: npt.NDArray[np.uint8], *, sync: bool) -> None:
        descriptors: list[int] = []
        try:
            for extent_id in extent_ids:
                descriptors.append(self._open_to_look(extent_id))
            if sync:
                self.storage.sync_files(descriptors)
            for position, extent_id in enumerate(extent_ids):
                self._load_tail(extent_id, descriptors[position], tails[position].data)
        except OSError as error:
            raise explain(error, "reading the extents of", self.path) from error
        finally:
            for descriptor in descriptors:
                self.storage.close(descriptor)

    def _open_to_look(self, extent_id: int) -> int:
        try:
            return self.storage.open(layout.extent_name(str(self.path), extent_id), os.O_RDONLY)
        except OSError as error:
            path = layout.extent_path(self.path, extent_id)
            if error.errno != errno.ENOENT:
                raise explain(error, "opening the extent", path) from error
            raise errors.IoError(
                f"{path} is missing, so the region in {self.path} is not whole: "
                "making it was cut off, or files were lost; make the region anew or replace it"
            ) from None

    def _load_tail(self, extent_id: int, descriptor: int, tail: memoryview) -> None:
        # One byte more than there should be: bitmap, metadata and the check of the length in one system call.
        geometry = self.layout
        got = self.storage.preadv(descriptor, (self.bits[extent_id].data, tail), geometry.bitmap_offset)
        if got != geometry.bitmap_bytes + layout.METADATA_BYTES:
            raise errors.BadMetadata(
                f"extent {extent_id}: file size {self.storage.file_bytes(descriptor)} does not match expected "
                f"{geometry.file_bytes}; {layout.extent_path(self.path, extent_id)} was truncated or belongs to "
                "another region: repair or replace it"
            )

    def _check_metadata(self, ids: npt.NDArray[np.int64], records: npt.NDArray[np.void]) -> None:
        bad = np.flatnonzero((records["dirty"] > 1) | (records["ext_version"] != layout.EXT_VERSION_RAW))
        if not len(bad):
            return
        path = layout.extent_path(self.path, int(ids[bad[0]]))
        metadata = ExtentMetadata.unpack(records[bad[0]].tobytes())
        raise errors.BadMetadata(
            f"raw extent {int(ids[bad[0]])} (file {path}) has unknown tag {metadata.ext_version}: "
            f"this program knows {layout.EXT_VERSION_RAW}; the file is foreign or damaged, repair or replace it"
        )

    def _recover(self, extent_id: int, descriptor: int) -> npt.NDArray[np.bool_]:
        """Active slots of a dirty extent by what its blocks hold (§2.9), bool[blocks]; reads all of it."""
        blocks = self.layout.blocks
        active = np.zeros(blocks, np.bool_)
        step = max(1, HASH_CHUNK_BYTES // self.layout.block_size)
        for first in range(0, blocks, step):
            count = min(step, blocks - first)
            active[first : first + count] = self.recover_range(extent_id, descriptor, first, count)
        return active

    def recover_range(self, extent_id: int, descriptor: int, first: int, count: int) -> npt.NDArray[np.bool_]:
        """The recovery rule for some blocks, bool[count]. Raises :class:`errors.MissingContextSlot`."""
        slots_a = self.read_slots(descriptor, layout.SLOT_A, first, count)
        slots_b = self.read_slots(descriptor, layout.SLOT_B, first, count)
        layout.check_slots(slots_a)
        layout.check_slots(slots_b)
        active = np.zeros(count, np.bool_)
        written = np.flatnonzero(slots_a[:, 0] | slots_b[:, 0])
        if len(written) == 0:
            return active
        # Blocks that nobody ever wrote are not read.
        low, high = int(written[0]), int(written[-1]) + 1
        rows: Rows = np.empty((high - low, self.layout.block_size), np.uint8)
        self.read_data(descriptor, rows.data.cast("B"), first + low)
        recovered = layout.recover_active(slots_a[low:high], slots_b[low:high], hash_blocks(rows), rows)
        active[low:high] = recovered.active
        if recovered.lost.any():
            raise errors.MissingContextSlot(first + low + int(np.argmax(recovered.lost)), extent_id)
        return active

    def rewrite(self, extent_id: int, descriptor: int, being_written: BlockIndexes | None = None) -> None:
        """Write every block and slot of the extent again as it reads now, after a sync of it failed.

        A failed sync may leave pages marked as written that are not, and the next sync then succeeds without them.
        *Safety*: so what is to be synced is made dirty again; and it is checked first, for the kernel may have dropped
        it altogether. ``being_written`` are blocks of the extent that the caller writes anew anyway, and that may be of
        another version than their active slot says. Raises :class:`errors.IoError` where blocks are gone, OSError.
        """
        geometry = self.layout
        step = max(1, HASH_CHUNK_BYTES // geometry.block_size)
        for first in range(0, geometry.blocks, step):
            count = min(step, geometry.blocks - first)
            tables = [self.read_slots(descriptor, which, first, count) for which in (layout.SLOT_A, layout.SLOT_B)]
            active = np.where(self.active_range(extent_id, first, count)[:, None], tables[1], tables[0])
            rows: Rows = np.empty((count, geometry.block_size), np.uint8)
            self.read_data(descriptor, rows.data.cast("B"), first)
            present = active[:, 0] == 1
            if being_written is not None:
                present[being_written[(being_written >= first) & (being_written < first + count)] - first] = False
            written = np.flatnonzero(present)
            if not np.array_equal(hash_blocks(rows[written]), layout.slot_hashes(active[written])):
                path = layout.extent_path(self.path, extent_id)
                raise errors.IoError(f"{path} lost blocks in a failed sync: repair the extent or replace the region")
            for which, table in enumerate(tables):
                if table.any():
                    self.storage.pwrite(descriptor, table.data.cast("B"), geometry.slot_offset(which, first))
            for start, stop in runs(written):
                part = rows[start:stop].data.cast("B")
                self.storage.pwrite(descriptor, part, (first + start) * geometry.block_size)

    def stored_hashes(self, descriptor: int, first: int, count: int) -> Hashes:
        """XXH64 of each of some blocks as stored, uint64[count]."""
        rows: Rows = np.empty((count, self.layout.block_size), np.uint8)
        self.read_data(descriptor, rows.data.cast("B"), first)
        return hash_blocks(rows)

    def read_slots(self, descriptor: int, which: int, first: int, count: int) -> Slots:
        """``count`` slots of array A (0) or B (1), uint8[count, 48], as stored."""
        return self.read_slots_at(descriptor, self.layout.slot_offset(which, first), count)

    def read_slots_at(self, descriptor: int, offset: int, count: int) -> Slots:
        """The same by the offset of the first in the file."""
        slots = np.empty((count, layout.SLOT_BYTES), np.uint8)
        part = slots.data.cast("B")
        if self.storage.preadv(descriptor, [part], offset) != len(part):
            raise OSError(errno.EIO, "the file ended early")
        return slots

    def read_data(self, descriptor: int, out: memoryview, first: int) -> None:
        """Fill ``out`` with block data from block ``first`` of the extent on."""
        if self.storage.preadv(descriptor, [out], first * self.layout.block_size) != len(out):
            raise OSError(errno.EIO, "the file ended early")

    def metadata(self, extent_id: int) -> ExtentMetadata:
        """What the file's metadata is, as far as memory knows."""
        return ExtentMetadata(
            bool(self.dirty[extent_id]),
            int(self.gen_number[extent_id]),
            int(self.flush_number[extent_id]),
            layout.EXT_VERSION_RAW,
            int(self.bonus_sync_count[extent_id]),
            int(self.defrag_count[extent_id]),
        )

    def active(self, blocks: BlockIndexes) -> npt.NDArray[np.bool_]:
        """Which slot is active for each of these blocks of the region, bool[n] (True = B)."""
        extent_ids, inside = np.divmod(blocks, self.layout.blocks)
        active: npt.NDArray[np.bool_] = self.bits[extent_ids, inside >> 3] >> (inside & 7).astype(np.uint8) & 1 != 0
        return active

    def active_range(self, extent_id: int, first: int, count: int) -> npt.NDArray[np.bool_]:
        """The same for consecutive blocks of one extent, bool[count]."""
        low = first >> 3
        bits = np.unpackbits(self.bits[extent_id, low : (first + count + 7) >> 3], bitorder="little")
        return bits[first - 8 * low : first - 8 * low + count].astype(np.bool_)

    @contextmanager
    def own_descriptor(self, extent_id: int) -> Iterator[int]:
        """A descriptor for a thread other than the loop's."""
        descriptor = self.descriptors.open(extent_id)
        try:
            yield descriptor
        finally:
            self.storage.close(descriptor)

    def close(self) -> None:
        self.descriptors.close()
