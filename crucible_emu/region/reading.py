"""Reading blocks: from staging, from nowhere, from the files; on the loop without waiting, in a thread with.

What it is for: a block that is staged is read from there, one that was never written reads as zeros without a look at
its file, all others come from their extent. Most reads find both context and data in memory and are answered at once;
a read that would have to wait for the device says so, and is done again in a thread.

What it guarantees: data and context returned for a block belong to the same write. That is safe in a thread, beside
writes and flushes on the loop: contexts and staged data are looked up and copied at one moment, under the lock; and a
block's place in its file changes only while the block is staged. So a reader looks again after it has read a file: is
one of those blocks staged by now, it starts over. And it leaves a :class:`Note` of its range, which is marked when such
blocks have come to rest in their file meanwhile; a marked read starts over too. It ends, because what was just written
is in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock

import numpy as np
import numpy.typing as npt
import xxhash

from crucible_emu import errors
from crucible_emu.geometry import BlockIndexes, equal_runs, split_at_extents
from crucible_emu.integrity import EMPTY, PLAIN, BlockContexts, Rows
from crucible_emu.region import layout
from crucible_emu.region.contexts import KNOWN_EMPTY, KNOWN_PLAIN, KNOWN_SEALED, UNKNOWN, ContextTable
from crucible_emu.region.extent import Extents
from crucible_emu.region.staging import Staging
from crucible_emu.region.storage import explain
from crucible_emu.region.view import ExtentView

LEARN_BLOCKS = 256
"""Contexts read from a file at a time: 12 KiB of slots cost hardly more than one."""
TRIM_EVERY = 1024
"""Look at the size of the context table after having learnt that often."""
FROM_STAGING, FROM_NOWHERE, FROM_FILE = 0, 1, 2


@dataclass(slots=True, eq=False)
class Note:
    """A read that another thread is doing: its blocks, and ``stale`` once one of them changed in its file."""

    start: int
    stop: int
    stale: bool = False


class Reader:
    """Reads of one region. ``legacy`` holds the extents that still keep their contexts in SQLite, by id."""

    def __init__(self, extents: Extents, contexts: ContextTable, staging: Staging, lock: Lock) -> None:
        self._extents = extents
        self._storage = extents.storage
        self._contexts = contexts
        self._staging = staging
        self._lock = lock
        self._notes: list[Note] = []
        self._learnt = 0
        self._block_size = extents.layout.block_size
        self._blocks_per_extent = extents.layout.blocks
        self._zeros = bytes(self._block_size)
        self._zero_hash = xxhash.xxh64_intdigest(self._zeros)
        # Looking up one entry: 0.04 µs in a memoryview, 0.1 in an array.
        self._row_of_block = staging.row_of_block.data
        self._kind_of_block = contexts.kind.data
        self._staged = staging.rows.data.cast("B")
        self.legacy: dict[int, ExtentView] = {}

    # --- on the loop's thread, without waiting

    def read_one_cached(self, block: int, out: memoryview) -> BlockContexts | None:
        """One block, if no device is needed. The way of most reads of a busy disk, so every step counts."""
        kind = self._kind_of_block[block]
        if kind == UNKNOWN:
            self.trim_in_time()
            if not self.know(block, 1, wait=False):
                return None
            kind = self._kind_of_block[block]
        if not self._fill_one(block, kind, out):
            return None
        if kind == KNOWN_PLAIN:
            hashes = self._contexts.hash[block : block + 1].copy()
            return BlockContexts(_ONE_PLAIN, hashes, None, None, hashes)
        return self._contexts.get(slice(block, block + 1))

    def _fill_one(self, block: int, kind: int, out: memoryview) -> bool:
        row, size = self._row_of_block[block], self._block_size
        if row:
            out[:] = self._staged[row * size : (row + 1) * size]
            return True
        if kind == KNOWN_EMPTY:
            out[:] = self._zeros
            return True
        extent_id, inside = divmod(block, self._blocks_per_extent)
        descriptor = self._extents.descriptors.find(extent_id)
        if descriptor is None:
            descriptor = self._extents.descriptors.get(extent_id)
        try:
            return self._storage.preadv_nowait(descriptor, (out,), inside * size) == size
        except OSError as error:
            raise self._explain(error, extent_id) from error

    def read_cached(self, start: int, count: int, out: memoryview) -> BlockContexts | None:
        """Consecutive blocks, if no device is needed."""
        self.trim_in_time()
        if not self.know(start, count, wait=False):
            return None
        span = slice(start, start + count)
        for first, last in self._fill_from_memory(span, out):
            part = out[first * self._block_size : last * self._block_size]
            if not self._fill_from_files(start + first, last - first, part, wait=False):
                return None
        return self._contexts.get(span)

    def read_blocks_cached(self, blocks: Sequence[int], outs: Sequence[memoryview]) -> tuple[BlockContexts, list[int]]:
        """Single blocks, each into its own buffer, and the positions that would have to wait for the device."""
        self.trim_in_time()
        late = []
        fill_one, kinds = self._fill_one, self._kind_of_block
        for position, (block, out) in enumerate(zip(blocks, outs)):
            known = kinds[block] != UNKNOWN or self.know(block, 1, wait=False)
            if not known or not fill_one(block, kinds[block], out):
                late.append(position)
        contexts = self._contexts.get(np.array(blocks, np.int64))
        contexts.kind[late] = EMPTY
        return contexts, late

    def read_singles(self, blocks: Sequence[int], outs: Sequence[memoryview]) -> list[int] | None:
        """As :meth:`read_blocks_cached`, where all are at hand and plain or known to be empty: the XXH64 that each must
        have, with no array made. ``None``, and anything in ``outs``, where that is not so."""
        kinds, rows, staged, size = self._kind_of_block, self._row_of_block, self._staged, self._block_size
        per_extent, find, read = self._blocks_per_extent, self._extents.descriptors.find, self._storage.preadv_nowait
        hash_of_block = self._contexts.hash_of_block
        expected = []
        for block, out in zip(blocks, outs):
            kind = kinds[block]
            if kind != KNOWN_PLAIN:
                if kind != KNOWN_EMPTY:
                    return None
                expected.append(self._zero_hash)
                out[:] = self._zeros
                continue
            expected.append(hash_of_block[block])
            row = rows[block]
            if row:
                out[:] = staged[row * size : (row + 1) * size]
                continue
            extent_id = block // per_extent  # divmod is a call, and takes twice as long
            descriptor = find(extent_id)
            if descriptor is None:
                return None
            try:
                if read(descriptor, (out,), (block - extent_id * per_extent) * size) != size:
                    return None
            except OSError as error:
                raise self._explain(error, extent_id) from error
        return expected

    def read_sealed(self, blocks: Sequence[int], outs: Sequence[memoryview]) -> list[bytes | None] | None:
        """As :meth:`read_singles`, where all are encrypted or known to be empty: nonce and tag of each, ``None`` of the
        empty ones."""
        kinds, fill_one, seal_of = self._kind_of_block, self._fill_one, self._contexts.seal_of
        seals: list[bytes | None] = []
        for block, out in zip(blocks, outs):
            kind = kinds[block]
            if kind not in (KNOWN_SEALED, KNOWN_EMPTY) or not fill_one(block, kind, out):
                return None
            seals.append(seal_of(block) if kind == KNOWN_SEALED else None)
        return seals

    def know(self, start: int, count: int, *, wait: bool) -> bool:
        """Have the contexts of these blocks in the table; False if that would take waiting and ``wait`` is not set."""
        kinds = self._contexts.kind[start : start + count]
        if kinds.all():
            return True
        for block in (np.flatnonzero(kinds == UNKNOWN) + start).tolist():
            if self._kind_of_block[block] == UNKNOWN and not self._learn(block, wait):
                return False
        return True

    def know_blocks(self, blocks: BlockIndexes) -> None:
        """The same for scattered blocks, waiting where needed."""
        self.trim_in_time()
        for block in blocks[self._contexts.kind[blocks] == UNKNOWN].tolist():
            if self._kind_of_block[block] == UNKNOWN:
                self._learn(block, wait=True)

    def _learn(self, block: int, wait: bool) -> bool:
        """Read the contexts of an unknown block and of some around it into the table."""
        extent_id, inside = divmod(block, self._blocks_per_extent)
        first = inside - inside % LEARN_BLOCKS
        try:
            stored = self._slots(extent_id, first, min(LEARN_BLOCKS, self._blocks_per_extent - first), wait)
        except errors.BadContextSlot:
            # One of the neighbours, perhaps: then this one alone decides.
            first = inside
            stored = self._slots(extent_id, first, 1, wait)
        if stored is None:
            return False
        with self._lock:
            self._contexts.learn(extent_id * self._blocks_per_extent + first, stored)
        self._learnt += 1
        return True

    def trim_in_time(self) -> None:
        """After having learnt much: :meth:`trim`. Before anything is looked up, for it forgets."""
        if self._learnt >= TRIM_EVERY:
            self.trim()

    def trim(self) -> None:
        """Keep the context table within its budget."""
        self._learnt = 0
        if self._contexts.is_over_budget():
            with self._lock:
                self._contexts.trim(self._staging.live_all()[1])

    # --- in any thread

    def read(self, start: int, count: int, out: memoryview) -> BlockContexts:
        """Consecutive blocks, waiting for the device."""
        while True:
            with self._note(start, count) as note:
                contexts = self._read_once(note, out)
            if contexts is not None and not note.stale:
                return contexts

    def _read_once(self, note: Note, out: memoryview) -> BlockContexts | None:
        """Everything is looked up at one moment, then fetched; ``None`` where it changed before it was all known."""
        span = slice(note.start, note.stop)
        with self._lock:
            known = bool(self._contexts.kind[span].all())
        stored = None if known else self._stored_contexts(note.start, note.stop - note.start)
        with self._lock:
            if stored is not None and not note.stale:
                self._contexts.learn(note.start, stored)
            if not self._contexts.kind[span].all():
                return None
            contexts = self._contexts.get(span)
            stretches = self._fill_from_memory(span, out)
        for first, last in stretches:
            part = out[first * self._block_size : last * self._block_size]
            self._fill_from_files(note.start + first, last - first, part, wait=True)
        with self._lock:
            # *Safety*: a block that was staged meanwhile may be on its way into the file, without a mark as yet.
            rows = self._staging.row_of_block[span]
            return None if any(rows[first:last].any() for first, last in stretches) else contexts

    def _stored_contexts(self, start: int, count: int) -> BlockContexts:
        """What the files say of these blocks."""
        parts = []
        for extent_id, first, length in split_at_extents(start, count, self._blocks_per_extent):
            found = self._slots(extent_id, first, length, wait=True)
            assert found is not None
            parts.append(found)
        return BlockContexts.concatenate(parts)

    @contextmanager
    def _note(self, start: int, count: int) -> Iterator[Note]:
        note = Note(start, start + count)
        with self._lock:
            self._notes.append(note)
        try:
            yield note
        finally:
            with self._lock:
                self._notes.remove(note)

    def mark(self, blocks: BlockIndexes) -> None:
        """These blocks changed in their files. Under the lock."""
        for note in self._notes:
            note.stale = note.stale or bool(((blocks >= note.start) & (blocks < note.stop)).any())

    # --- fetching

    def _fill_from_memory(self, span: slice, out: memoryview) -> list[tuple[int, int]]:
        """Fill in what is staged or was never written; the stretches ``(first, stop)`` of ``span`` that remain."""
        return fill_from_rows(self._staging.row_of_block[span], self._contexts.kind[span], self._staging.rows, out)

    def _fill_from_files(self, start: int, count: int, out: memoryview, *, wait: bool) -> bool:
        done = 0
        for extent_id, first, length in split_at_extents(start, count, self._blocks_per_extent):
            part = out[done : done + length * self._block_size]
            done += len(part)
            try:
                if wait:
                    with self._extents.own_descriptor(extent_id) as descriptor:
                        self._extents.read_data(descriptor, part, first)
                else:
                    descriptor = self._extents.descriptors.get(extent_id)
                    got = self._storage.preadv_nowait(descriptor, (part,), first * self._block_size)
                    if got != len(part):
                        return False
            except OSError as error:
                raise self._explain(error, extent_id) from error
        return True

    def _slots(self, extent_id: int, first: int, count: int, wait: bool) -> BlockContexts | None:
        """Active contexts of consecutive blocks as the file has them; None where it would have to be waited for."""
        legacy = self.legacy.get(extent_id)
        if legacy is not None:
            return legacy.look(first, count).contexts
        extents = self._extents
        with self._lock:
            active = extents.active_range(extent_id, first, count)
        try:
            if wait:
                with extents.own_descriptor(extent_id) as descriptor:
                    slots_a = extents.read_slots(descriptor, layout.SLOT_A, first, count)
                    slots_b = extents.read_slots(descriptor, layout.SLOT_B, first, count)
                return layout.unpack_slots(np.where(active[:, None], slots_b, slots_a))
            descriptor = extents.descriptors.get(extent_id)
            both = np.empty((2, count, layout.SLOT_BYTES), np.uint8)
            for which in (layout.SLOT_A, layout.SLOT_B):
                part = both[which].data.cast("B")
                offset = extents.layout.slot_offset(which, first)
                if self._storage.preadv_nowait(descriptor, (part,), offset) != len(part):
                    return None
            return layout.unpack_slots(np.where(active[:, None], both[1], both[0]))
        except OSError as error:
            raise self._explain(error, extent_id) from error

    def _explain(self, error: OSError, extent_id: int) -> errors.IoError:
        return explain(error, "reading the extent", layout.extent_path(self._extents.path, extent_id))


def fill_from_rows(
    rows: npt.NDArray[np.uint32], kinds: npt.NDArray[np.uint8], staged: Rows, out: memoryview
) -> list[tuple[int, int]]:
    """Of consecutive blocks, whose ``rows`` in ``staged`` are given (0: none) and the ``kinds`` of their contexts, fill
    in those that are staged or were never written; the stretches ``(first, stop)`` that remain."""
    source = np.where(rows != 0, FROM_STAGING, np.where(kinds == KNOWN_EMPTY, FROM_NOWHERE, FROM_FILE))
    out_rows = np.frombuffer(out, np.uint8).reshape(len(rows), staged.shape[1])
    remaining = []
    for first, last, origin in equal_runs(source):
        if origin == FROM_STAGING:
            np.take(staged, rows[first:last], axis=0, out=out_rows[first:last], mode="clip")
        elif origin == FROM_NOWHERE:
            out_rows[first:last] = 0
        else:
            remaining.append((first, last))
    return remaining


_ONE_PLAIN = np.array([PLAIN], np.uint8)
_ONE_PLAIN.flags.writeable = False
