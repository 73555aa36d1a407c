"""The redo file: blocks bigger than a page, written twice so that none can be torn.

What it is for: a block of at most 4096 bytes lies within one page, and a page reaches the page cache and the disk
whole. A bigger one can be cut in the middle, by a power cut or by a SIGKILL inside ``pwrite``; the format has no
answer to that (on-disk-format.md §6.4): half old, half new matches neither slot and the region does not open. So a
flush of such blocks first writes them to ``.redo`` in the region directory and syncs it, then writes them in place.

What it guarantees: whenever the file may hold a torn block, ``.redo`` holds that block whole and durable. A
read-write open puts it in place before the extent is recovered. A program that does not know the file sees an
ordinary region and is no worse off.

Why stale records do no harm: a record is used only for a block of a *dirty* extent whose data matches *neither* slot
while the record's own hash is that of one of them. A block that was completely written matches one. And the records
of the last flush are replaced before the next one tears anything: by a rename, because when a flush failed they may
still be needed until the moment when the new ones are durable.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from crucible_emu.geometry import BlockIndexes
from crucible_emu.integrity import Hashes, Rows
from crucible_emu.region import layout
from crucible_emu.region.extent import Extents
from crucible_emu.region.layout import Slots, slot_hashes
from crucible_emu.region.scatter import PAGE_BYTES
from crucible_emu.region.staging import RowNumbers
from crucible_emu.region.storage import Storage

REDO_NAME = ".redo"
REDO_NEW_NAME = ".redo-new"
MAGIC = b"crucible-redo-1\n"
_HEADER = struct.Struct("<16sIIQ")
"""Magic, block size, records, XXH64 of the index."""
INDEX_RECORD = np.dtype([("extent", "<u4"), ("block", "<u4"), ("hash", "<u8")])


def needs_redo(block_size: int) -> bool:
    """Whether blocks of this size can be torn."""
    return block_size > PAGE_BYTES


class RedoFile:
    """``.redo`` of a region that is open read-write: header, index, block data from the next page border on."""

    def __init__(self, storage: Storage, region: Path, block_size: int, rows: Rows) -> None:
        self._storage = storage
        self._path = region / REDO_NAME
        self._new_path = region / REDO_NEW_NAME
        self._block_size = block_size
        self._staged = rows.data.cast("B")

    def write(self, extent_ids: npt.NDArray[np.int64], inside: BlockIndexes, slots: Slots, rows: RowNumbers) -> None:
        """Make these blocks durable here: their extents, blocks in them, slots and staging rows. Raises OSError."""
        index = np.zeros(len(inside), INDEX_RECORD)
        index["extent"], index["block"], index["hash"] = extent_ids, inside, slot_hashes(slots)
        size = self._block_size
        parts = [self._staged[row * size : (row + 1) * size] for row in rows.tolist()]
        head = _head(self._block_size, index)
        descriptor = self._storage.open(self._new_path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        try:
            self._storage.pwritev(descriptor, [head, *parts], 0)
            self._storage.fsync(descriptor)
        finally:
            self._storage.close(descriptor)
        self._storage.rename(self._new_path, self._path)
        self._storage.sync_directory(self._path.parent)

    def clear(self) -> None:
        """The blocks are durable in place. *Optimisation*: stale records do no harm, so nothing is synced."""
        descriptor = self._storage.open(self._path, os.O_RDWR)
        try:
            self._storage.ftruncate(descriptor, 0)
        finally:
            self._storage.close(descriptor)


def _head(block_size: int, index: npt.NDArray[np.void]) -> bytes:
    stored = index.tobytes()
    head = _HEADER.pack(MAGIC, block_size, len(index), xxhash.xxh64_intdigest(stored)) + stored
    return head.ljust(-(-len(head) // PAGE_BYTES) * PAGE_BYTES, b"\0")


def replay(extents: Extents) -> int:
    """Put torn blocks of dirty extents in place again, before they are recovered; how many there were.

    Raises OSError. A redo file that was itself cut off is ignored: then nothing was torn yet.
    """
    storage, path = extents.storage, extents.path / REDO_NAME
    if not storage.exists(path):
        return 0
    descriptor = storage.open(path, os.O_RDONLY)
    try:
        index, data_offset = _read_index(storage, descriptor, extents.layout.block_size)
        replayed = 0
        for extent_id in np.unique(index["extent"]).tolist():
            if extent_id < extents.count:
                records = np.flatnonzero(index["extent"] == extent_id)
                replayed += _replay_extent(extents, extent_id, descriptor, index, records, data_offset)
        return replayed
    finally:
        storage.close(descriptor)


def _read_index(storage: Storage, descriptor: int, block_size: int) -> tuple[npt.NDArray[np.void], int]:
    head = storage.pread(descriptor, _HEADER.size, 0)
    nothing = np.zeros(0, INDEX_RECORD)
    if len(head) < _HEADER.size:
        return nothing, 0
    magic, size, count, digest = _HEADER.unpack(head)
    if magic != MAGIC or size != block_size:
        return nothing, 0
    stored = storage.pread(descriptor, count * INDEX_RECORD.itemsize, _HEADER.size)
    if len(stored) != count * INDEX_RECORD.itemsize or xxhash.xxh64_intdigest(stored) != digest:
        return nothing, 0
    return np.frombuffer(stored, INDEX_RECORD), -(-(_HEADER.size + len(stored)) // PAGE_BYTES) * PAGE_BYTES


def _replay_extent(
    extents: Extents,
    extent_id: int,
    redo: int,
    index: npt.NDArray[np.void],
    records: npt.NDArray[np.int64],
    data_offset: int,
) -> int:
    storage, geometry = extents.storage, extents.layout
    path = layout.extent_path(extents.path, extent_id)
    descriptor = storage.open(path, os.O_RDWR)
    replayed = 0
    try:
        if storage.pread(descriptor, 1, geometry.metadata_offset) != b"\x01":
            return 0
        for record in records.tolist():
            inside, wanted = int(index["block"][record]), int(index["hash"][record])
            if inside >= geometry.blocks or not _is_torn(extents, descriptor, inside, wanted):
                continue
            data = storage.pread(redo, geometry.block_size, data_offset + record * geometry.block_size)
            if len(data) == geometry.block_size and xxhash.xxh64_intdigest(data) == wanted:
                storage.pwrite(descriptor, data, inside * geometry.block_size)
                replayed += 1
        if replayed:
            storage.fsync(descriptor)
    finally:
        storage.close(descriptor)
    return replayed


def _is_torn(extents: Extents, descriptor: int, inside: int, wanted: int) -> bool:
    """Whether the block matches neither of its slots while one of them is that of the record."""
    slots = np.concatenate([extents.read_slots(descriptor, which, inside, 1) for which in (0, 1)])
    hashes: Hashes = slot_hashes(slots)[slots[:, 0] == 1]
    return wanted in hashes and int(extents.stored_hashes(descriptor, inside, 1)[0]) not in hashes
