"""The journal: flushes that come in quick succession, appended to one file instead of carried to many.

What it is for: a flush in place writes scattered pages of many extents in three phases with a sync after each
(:mod:`flush`). A guest that flushes all the time pays that every time. Here the same flush is one record appended to
``.journal`` in the region directory, with one sync: the contexts and data of its blocks and its numbers. Later, when
the region has been quiet for a moment or the file is full, everything in it is carried to the extents by one flush in
place, and the file goes.

What it guarantees: a record that was synced is found by every later open, whole, in its order, until its blocks are
durable in their extents. Why that is safe:

* a record names its sequence number and carries the XXH64 of its index, and each block is compared with the hash in its
  context: one that was cut off is not taken, and nothing behind it. Only the last can be cut off, for each is durable
  before the next is written.
* a record from an earlier life of the file has an earlier number and ends the chain.
* records are put out of force (:meth:`Journal.reset`, :meth:`Journal.remove`) only when what they say is durable in the
  extents, and that is itself durable before a later flush in place is reported. Carrying a record out twice changes
  nothing.

What the real program finds: while the file may hold records, ``region.json`` gives another version
(:data:`directory.JOURNALED_VERSION`), which it refuses to open (on-disk-format.md §1.2), loudly and without touching
anything: without the journal the extents are older than what was promised. A read-write open here carries the journal
out first, and the directory is an ordinary one again, as it is while nothing is flushed in quick succession.

Space is set aside :data:`GROWN_BYTES` at a time, not written with zeros: 0.6 ms for a record in each of three files,
where a sync that finds space takes 0.6 to 1.0 and zeros, which make it 0.3, cost more than that themselves (1.1 to 1.5
until the file is full). From the second time on that the file is filled it is 0.3. It holds at most
:data:`JOURNAL_BYTES_MAX`.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from crucible_emu.errors import CrucibleError
from crucible_emu.geometry import BlockIndexes, RegionDefinition, runs
from crucible_emu.integrity import BlockContexts, Rows, hash_blocks
from crucible_emu.region import directory, layout
from crucible_emu.region.directory import JOURNAL_NAME, is_unsettled
from crucible_emu.region.layout import Slots, slot_hashes
from crucible_emu.region.scatter import PAGE_BYTES
from crucible_emu.region.staging import RowNumbers
from crucible_emu.region.storage import Storage

JOURNAL_BYTES_MAX = 64 * 1024 * 1024
"""The more it takes, the more contexts share a page when it is carried out, and the more blocks are written once."""
RECORDS_MIN = 16
"""A flush of more than this part of the journal goes to the extents at once: writing so much twice does not pay."""
GROWN_BYTES = 4 * 1024 * 1024
FREE_BYTES_MIN = 4 * JOURNAL_BYTES_MAX
"""The journal takes no space from a disk that has no more than this: what is in place already can be flushed there."""
_FILE_MAGIC, _RECORD_MAGIC = b"crucible-journal", b"flushed\n"
_FILE_HEAD = struct.Struct("<16s16sQQ")
"""Magic, the region's UUID, sequence number of the first record, XXH64 of what is before."""
_RECORD_HEAD = struct.Struct("<8sQQQQQ")
"""Magic, sequence number, flush number, generation number, blocks, XXH64 of the rest of the index and of this."""
_FIRST_RECORD = PAGE_BYTES


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """One flush: its flush and generation ``numbers``, ``blocks`` of the region int64[n], their ``rows`` uint8[n, block
    size] and ``contexts``."""

    numbers: tuple[int, int]
    blocks: BlockIndexes
    rows: Rows
    contexts: BlockContexts


def record_bytes(count: int, block_size: int) -> int:
    """Space of a record of ``count`` blocks."""
    return _index_bytes(count) + _to_pages(count * block_size)


def _index_bytes(count: int) -> int:
    return _to_pages(_RECORD_HEAD.size + count * (8 + layout.SLOT_BYTES))


def _to_pages(size_bytes: int) -> int:
    return -(-size_bytes // PAGE_BYTES) * PAGE_BYTES


class Journal:
    """The journal of a region that is open read-write. ``staged``: the memory of its staging rows.

    :meth:`write`, :meth:`reset` and :meth:`remove` do I/O, in any thread, one at a time.
    """

    def __init__(self, storage: Storage, region: Path, definition: RegionDefinition, staged: memoryview) -> None:
        self._storage = storage
        self._region = region
        self._path = region / JOURNAL_NAME
        self._definition = definition
        self._staged = staged
        self._descriptor: int | None = None
        self._size = 0
        self._sequence = 0
        self._first_is_written = False
        self._tail = self._next_tail = _FIRST_RECORD
        self.failed = False
        """A write failed; nothing more is written before :meth:`remove`. *Safety*: what a failed sync leaves behind
        cannot be told from what was written."""

    @property
    def exists(self) -> bool:
        """There is something to be removed: a file, with records or without, or what failing to make one left."""
        return self._descriptor is not None or self.failed

    def takes(self, count: int) -> bool:
        """Whether a flush of ``count`` blocks belongs here. Raises OSError."""
        size = record_bytes(count, self._definition.block_size)
        if self.failed or size * RECORDS_MIN > JOURNAL_BYTES_MAX or self._tail + size > JOURNAL_BYTES_MAX:
            return False
        return self._tail + size <= self._size or self._storage.free_bytes(self._region) >= FREE_BYTES_MIN

    def write(self, numbers: tuple[int, int], blocks: BlockIndexes, slots: Slots, rows: RowNumbers) -> int:
        """Append a flush of ``blocks``, staged in ``rows``, which ascend, with flush and generation ``numbers``; the
        descriptor that has to be synced before :meth:`written`. Raises OSError."""
        if self._descriptor is None:
            self._create()
        descriptor = self._descriptor
        assert descriptor is not None
        count, size = len(blocks), self._definition.block_size
        index = _index(self._sequence, numbers, blocks, slots)
        parts: list[bytes | memoryview] = [index]
        parts += [self._staged[row * size : stop * size] for row, stop in runs(rows.astype(np.int64))]
        end = self._tail + record_bytes(count, size)
        if not self._first_is_written:
            self._storage.pwrite(descriptor, _file_head(self._definition, self._sequence), 0)
        if end > self._size:
            self._grow(descriptor, end)
        self._storage.pwritev(descriptor, parts, self._tail)
        self._next_tail = end
        return descriptor

    def written(self) -> None:
        """What :meth:`write` wrote is durable."""
        self._first_is_written = True
        self._tail = self._next_tail
        self._sequence += 1

    def _create(self) -> None:
        # The mark is durable before there is anything to be marked.
        directory.write_definition(self._storage, self._region, self._definition, journaled=True)
        self._descriptor = self._storage.open(self._path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        self._size, self._tail, self._first_is_written = 0, _FIRST_RECORD, False
        self._storage.sync_directory(self._region)

    def _grow(self, descriptor: int, end: int) -> None:
        size = -(-end // GROWN_BYTES) * GROWN_BYTES
        self._storage.allocate(descriptor, self._size, size - self._size)
        self._size = size

    def reset(self) -> None:
        """Everything in it is durable in the extents: start over, durably. Raises OSError."""
        descriptor = self._descriptor
        if descriptor is None or not self._first_is_written:
            return
        self._storage.pwrite(descriptor, _file_head(self._definition, self._sequence), 0)
        self._storage.fsync(descriptor)
        self._tail = _FIRST_RECORD

    def remove(self) -> None:
        """The same, and the directory is an ordinary one again. Raises OSError."""
        if not self.exists:
            return
        # First out of force, then unmarked, then gone: a crash in between leaves nothing that could be carried out
        # after a later flush.
        self.reset()
        remove(self._storage, self._region, self._definition)
        self.close()
        self._size = 0

    def close(self) -> None:
        """Close the file, with whatever is in it."""
        if self._descriptor is not None:
            self._storage.close(self._descriptor)
        self._descriptor, self.failed = None, False


def remove(storage: Storage, region: Path, definition: RegionDefinition) -> None:
    """Make the directory an ordinary one again, when nothing in the journal counts any more. Raises OSError."""
    directory.write_definition(storage, region, definition)
    storage.remove_tree(region / JOURNAL_NAME)  # which an earlier attempt may have removed
    storage.sync_directory(region)


def read_records(storage: Storage, region: Path, definition: RegionDefinition) -> Iterator[Record]:
    """The flushes in a region's journal, oldest first; none where there is no journal. Raises OSError."""
    if not is_unsettled(storage, region):
        return
    descriptor = storage.open(region / JOURNAL_NAME, os.O_RDONLY)
    try:
        sequence = _first_sequence(storage.pread(descriptor, _FILE_HEAD.size, 0), definition)
        offset = _FIRST_RECORD
        while sequence is not None:
            record = _read_record(storage, descriptor, offset, sequence, definition)
            if record is None:
                return
            yield record
            offset += record_bytes(len(record.blocks), definition.block_size)
            sequence += 1
    finally:
        storage.close(descriptor)


def _file_head(definition: RegionDefinition, sequence: int) -> bytes:
    head = _FILE_HEAD.pack(_FILE_MAGIC, definition.uuid.bytes, sequence, 0)[:-8]
    return head + xxhash.xxh64_intdigest(head).to_bytes(8, "little")


def _first_sequence(head: bytes, definition: RegionDefinition) -> int | None:
    if len(head) != _FILE_HEAD.size:
        return None
    sequence: int = _FILE_HEAD.unpack(head)[2]
    return sequence if head == _file_head(definition, sequence) else None


def _index(sequence: int, numbers: tuple[int, int], blocks: BlockIndexes, slots: Slots) -> bytes:
    table = blocks.astype("<i8").tobytes() + slots.tobytes()
    head = _RECORD_HEAD.pack(_RECORD_MAGIC, sequence, *numbers, len(blocks), 0)[:-8]
    digest = xxhash.xxh64_intdigest(head + table).to_bytes(8, "little")
    return (head + digest + table).ljust(_index_bytes(len(blocks)), b"\0")


def _read_record(
    storage: Storage, descriptor: int, offset: int, sequence: int, definition: RegionDefinition
) -> Record | None:
    """The record at ``offset``, if it is that one and whole."""
    head = storage.pread(descriptor, _RECORD_HEAD.size, offset)
    if len(head) != _RECORD_HEAD.size:
        return None
    magic, found, flush_number, gen_number, count, digest = _RECORD_HEAD.unpack(head)
    if magic != _RECORD_MAGIC or found != sequence or count > definition.total_blocks:
        return None
    table = storage.pread(descriptor, count * (8 + layout.SLOT_BYTES), offset + _RECORD_HEAD.size)
    if len(table) != count * (8 + layout.SLOT_BYTES) or xxhash.xxh64_intdigest(head[:-8] + table) != digest:
        return None
    blocks = np.frombuffer(table, "<i8", count).astype(np.int64)
    slots = np.frombuffer(table, np.uint8, offset=8 * count).reshape(count, layout.SLOT_BYTES)
    rows: Rows = np.empty((count, definition.block_size), np.uint8)
    out = rows.data.cast("B")
    if storage.preadv(descriptor, [out], offset + _index_bytes(count)) != len(out):
        return None
    try:
        contexts = layout.unpack_slots(slots)
    except CrucibleError:
        return None
    if not np.array_equal(hash_blocks(rows), slot_hashes(slots)):
        return None
    return Record((flush_number, gen_number), blocks, rows, contexts)
