"""Writing blocks where they belong, at once: the policies that keep the real program's order of system calls.

What it is for: under ZFS, ORDERED_FLUSH and STRICT a write is in its file when it returns. The steps are those of
on-disk-format.md §2.6 and §2.7; under ZFS every file ends byte for byte as the real program would leave it, the debug
counters and the defragmentation included.

What it guarantees: the rules of the policy's row in :data:`policy.RULES`. An extent stays dirty, in memory and in its
numbers, until the sync of its clean metadata has succeeded; so a failed flush is tried again as a whole, where the
real program would report success (§4.5). When writing data fails, the blocks' active slots are found anew from what
their file holds.

A call is one job per extent, as in the real program: its blocks are written in runs, contexts before data.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from threading import Lock

import numpy as np
import numpy.typing as npt

from crucible_emu import errors
from crucible_emu.geometry import BlockIndexes, Selection, as_blocks, equal_runs, runs, split_at_extents
from crucible_emu.integrity import BlockContexts, Proofs, Rows, stored_hashes
from crucible_emu.region import layout
from crucible_emu.region.contexts import ContextTable
from crucible_emu.region.extent import Extents, Versions
from crucible_emu.region.flush import ExtentIds
from crucible_emu.region.layout import SLOT_A, SLOT_B, Slots, pack_slots
from crucible_emu.region.policy import DEFRAGMENT_RATIO, Rules
from crucible_emu.region.reading import Reader
from crucible_emu.region.storage import explain
from crucible_emu.region.writing import Work


class InPlaceWriter:
    """An immediate policy: see :class:`writing.Writer`. A write holds the region's lock, and so does the flush of each
    extent: these policies do one thing after the other, as the real program does."""

    takes_singles = False

    def __init__(self, extents: Extents, contexts: ContextTable, reader: Reader, lock: Lock, rules: Rules) -> None:
        self._extents = extents
        self._contexts = contexts
        self._reader = reader
        self._lock = lock
        self._rules = rules
        # Per extent: blocks written since its last sync (§2.5 ``block_dirty``); the fragmentation counters; and
        # extents whose file may say "clean" although memory says "dirty", because the sync of that failed.
        self._unsynced: dict[int, npt.NDArray[np.bool_]] = {}
        self._extra: dict[int, int] = {}
        self._accesses: dict[int, int] = {}
        self._perhaps_clean: set[int] = set()

    def free_blocks(self) -> int | None:
        return None

    def write_singles(self, blocks: Sequence[int], data: Sequence[memoryview], proofs: Proofs) -> None:
        raise RuntimeError("a policy that writes at once takes whole batches: ask takes_singles first")

    @property
    def is_settled(self) -> bool:
        return True

    def versions(self) -> Versions:
        extents = self._extents
        return extents.gen_number.copy(), extents.flush_number.copy(), extents.dirty.copy()

    def close(self) -> None:
        """There is nothing beside the extents."""

    def holds(self, first_block: int, stop_block: int) -> bool:
        return False

    def begin(self, first: int, stop: int, numbers: tuple[int, int] | None, *, journal: bool = False) -> InPlaceFlush:
        """A destage has nothing to do: everything is in its file."""
        extents = self._extents
        chosen = np.zeros(extents.count, np.bool_)
        if numbers is not None:
            chosen[first:stop] = extents.dirty[first:stop]
        closed = np.flatnonzero(chosen & extents.closed)
        if len(closed):
            raise errors.GenericError(f"extent {int(closed[0])} is closed: reopen it before flushing it")
        return InPlaceFlush(self, np.flatnonzero(chosen), numbers)

    def finish(self, work: Work) -> None:
        """Everything was taken over extent by extent."""

    def abandon(self, work: Work) -> None:
        """Extents that were not flushed are dirty still."""

    def forget(self, extent_id: int) -> None:
        self._unsynced.pop(extent_id, None)
        self._extra.pop(extent_id, None)
        self._accesses.pop(extent_id, None)
        self._perhaps_clean.discard(extent_id)

    def write(self, which: Selection, rows: Rows, contexts: BlockContexts) -> None:
        """Write these blocks, extent by extent. Raises :class:`errors.IoError`."""
        blocks = as_blocks(which)
        stored_hashes(contexts, rows)
        with self._lock:
            self._reader.mark(blocks)
            for extent_id, chosen in split_by_extent(blocks, self._extents.layout.blocks):
                self._write_extent(extent_id, blocks[chosen], rows[chosen], contexts[chosen])

    def _write_extent(self, extent_id: int, blocks: BlockIndexes, rows: Rows, contexts: BlockContexts) -> None:
        extents = self._extents
        path = layout.extent_path(extents.path, extent_id)
        descriptor = extents.descriptors.get(extent_id)
        inside = blocks - extent_id * extents.layout.blocks
        try:
            self._set_dirty(extent_id, descriptor)
            unsynced = self._unsynced.setdefault(extent_id, np.zeros(extents.layout.blocks, np.bool_))
            if unsynced[inside].any():
                # The bonus sync. *Safety*: the other slot is about to be overwritten, so the data that belongs to
                # this one must be durable.
                self._sync(extent_id, descriptor)
                unsynced[:] = False
                extents.bonus_sync_count[extent_id] += np.uint64(1)
            unsynced[inside] = True
            self._write_contexts(extent_id, descriptor, inside, rows, contexts)
            if self._rules.sync_contexts:
                self._sync(extent_id, descriptor)
        except OSError as error:
            raise explain(error, "writing contexts of the extent", path) from error
        try:
            self._write_data(descriptor, inside, rows)
        except OSError as error:
            self._settle(extent_id, descriptor, blocks)
            raise explain(error, "writing the extent", path) from error
        flip(extents, extent_id, inside)
        self._contexts.put(blocks, contexts)
        self._contexts.touched(blocks)

    def _sync(self, extent_id: int, descriptor: int) -> None:
        """``fsync``; after one that failed, only once everything was written again (:meth:`Extents.rewrite`)."""
        extents = self._extents
        if extents.suspect[extent_id]:
            extents.rewrite(extent_id, descriptor)
        extents.suspect[extent_id] = True
        extents.storage.fsync(descriptor)
        extents.suspect[extent_id] = False

    def _set_dirty(self, extent_id: int, descriptor: int) -> None:
        """The dirty byte, durable before anything else changes. Raises OSError."""
        extents = self._extents
        if not extents.dirty[extent_id] or extent_id in self._perhaps_clean:
            extents.storage.pwrite(descriptor, b"\x01", extents.layout.metadata_offset)
            self._sync(extent_id, descriptor)
            extents.dirty[extent_id] = True
            self._perhaps_clean.discard(extent_id)

    def _write_contexts(
        self, extent_id: int, descriptor: int, inside: BlockIndexes, rows: Rows, contexts: BlockContexts
    ) -> None:
        extents = self._extents
        slots = pack_slots(contexts, contexts.stored, int(extents.flush_number[extent_id]))
        done = 0
        for start, stop in runs(inside):
            pieces = equal_runs(~extents.active_range(extent_id, start, stop - start), start)
            for first, last, which in pieces:
                part = slots[done : done + last - first]
                offset = extents.layout.slot_offset(int(which), first)
                extents.storage.pwrite(descriptor, part.data.cast("B"), offset)
                done += last - first
            self._count(extent_id, len(pieces))

    def _write_data(self, descriptor: int, inside: BlockIndexes, rows: Rows) -> None:
        done = 0
        for start, stop in runs(inside):
            part = np.ascontiguousarray(rows[done : done + stop - start])
            offset = start * self._extents.layout.block_size
            self._extents.storage.pwrite(descriptor, part.data.cast("B"), offset)
            done += stop - start

    def _settle(self, extent_id: int, descriptor: int, blocks: BlockIndexes) -> None:
        """After a failed data write: ask the file which slots are right (§2.6), and forget the contexts."""
        extents = self._extents
        self._contexts.forget(blocks)
        try:
            for block in (blocks - extent_id * extents.layout.blocks).tolist():
                active = extents.recover_range(extent_id, descriptor, block, 1)
                if active[0] != extents.active_range(extent_id, block, 1)[0]:
                    flip(extents, extent_id, np.array([block], np.int64))
        except OSError as error:
            raise explain(error, "recovering the extent", layout.extent_path(extents.path, extent_id)) from error

    def count_access(self, start: int, count: int) -> None:
        """A read, or the probe of a ``write_unwritten``, fetched the contexts of these blocks (§2.7). Any thread."""
        with self._lock:
            for extent_id, first, length in split_at_extents(start, count, self._extents.layout.blocks):
                active = self._extents.active_range(extent_id, first, length)
                self._count(extent_id, 1 + int(np.count_nonzero(active[1:] != active[:-1])))

    def _count(self, extent_id: int, pieces: int) -> None:
        self._extra[extent_id] = self._extra.get(extent_id, 0) + pieces - 1
        self._accesses[extent_id] = self._accesses.get(extent_id, 0) + 1

    def flush_extent(self, extent_id: int, flush_number: int, gen_number: int) -> None:
        """Make a dirty extent clean with these numbers, durably; in any thread. Raises :class:`errors.IoError`."""
        with self._lock:
            descriptor = self._extents.descriptors.open(extent_id)
            try:
                self._flush_extent(extent_id, descriptor, flush_number, gen_number)
            except OSError as error:
                path = layout.extent_path(self._extents.path, extent_id)
                raise explain(error, "flushing the extent", path) from error
            finally:
                self._extents.storage.close(descriptor)

    def _flush_extent(self, extent_id: int, descriptor: int, flush_number: int, gen_number: int) -> None:
        extents = self._extents
        self._write_clean(extent_id, descriptor, flush_number, gen_number)
        extents.dirty[extent_id] = False
        extents.flush_number[extent_id], extents.gen_number[extent_id] = flush_number, gen_number
        self._perhaps_clean.discard(extent_id)
        self._unsynced.pop(extent_id, None)
        extra, accesses = self._extra.pop(extent_id, 0), self._accesses.pop(extent_id, 0)
        if self._rules.defragment and accesses and extra // accesses > DEFRAGMENT_RATIO:
            self._defragment(extent_id, descriptor)

    def _write_clean(self, extent_id: int, descriptor: int, flush_number: int, gen_number: int) -> None:
        extents, storage, geometry = self._extents, self._extents.storage, self._extents.layout
        record = layout.ExtentMetadata(
            False,
            gen_number,
            flush_number,
            bonus_sync_count=int(extents.bonus_sync_count[extent_id]),
            defrag_count=int(extents.defrag_count[extent_id]),
        )
        bitmap = extents.bits[extent_id].tobytes()
        if self._rules.sync_before_clean:
            storage.pwrite(descriptor, bitmap, geometry.bitmap_offset)
            self._sync(extent_id, descriptor)
            bitmap = b""
        self._perhaps_clean.add(extent_id)
        storage.pwrite(descriptor, bitmap + record.pack(), geometry.metadata_offset - len(bitmap))
        self._sync(extent_id, descriptor)

    def _defragment(self, extent_id: int, descriptor: int) -> None:
        """Make the active slots of the scattered range all A or all B (§2.7); the clean bitmap stays valid."""
        extents, blocks = self._extents, self._extents.layout.blocks
        active = extents.active_range(extent_id, 0, blocks)
        in_b = int(np.count_nonzero(active))
        if in_b in (0, blocks):
            return
        source = SLOT_A if blocks - in_b < in_b else SLOT_B
        from_source = active == bool(source)
        found = np.flatnonzero(from_source)
        first, count = int(found[0]), int(found[-1] - found[0] + 1)
        slots = extents.read_slots(descriptor, 1 - source, first, count)
        pick = from_source[first : first + count]
        slots[pick] = extents.read_slots(descriptor, source, first, count)[pick]
        rewrite(slots, int(extents.flush_number[extent_id]))
        offset = extents.layout.slot_offset(1 - source, first)
        extents.storage.pwrite(descriptor, slots.data.cast("B"), offset)
        active[first : first + count] = not source
        extents.bits[extent_id] = np.packbits(active, bitorder="little")
        extents.defrag_count[extent_id] += np.uint64(1)


class InPlaceFlush:
    """A flush under an immediate policy: see :class:`flush.FlushWork`."""

    def __init__(self, writer: InPlaceWriter, extent_ids: ExtentIds, numbers: tuple[int, int] | None) -> None:
        self._writer = writer
        self._extent_ids = extent_ids
        self.numbers = numbers
        self.block_count = 0

    @property
    def is_empty(self) -> bool:
        return not len(self._extent_ids)

    def extent_ids(self) -> ExtentIds:
        return self._extent_ids

    def run(self) -> None:
        """All extents are tried; the first error is raised (§4.5)."""
        if self.numbers is None:
            return
        failures: list[errors.CrucibleError] = []
        for extent_id in self._extent_ids.tolist():
            try:
                self._writer.flush_extent(extent_id, *self.numbers)
            except errors.CrucibleError as error:
                failures.append(error)
        if failures:
            raise failures[0]


def flip(extents: Extents, extent_id: int, inside: BlockIndexes) -> None:
    """These blocks' other slots are the active ones now."""
    active = extents.active_range(extent_id, 0, extents.layout.blocks)
    active[inside] ^= True
    extents.bits[extent_id] = np.packbits(active, bitorder="little")


def split_by_extent(blocks: BlockIndexes, blocks_per_extent: int) -> list[tuple[int, npt.NDArray[np.int64]]]:
    """``(extent id, positions in blocks, by block ascending)`` for each extent touched, in ascending order."""
    if len(blocks) == 0:
        return []
    order = np.argsort(blocks, kind="stable")
    extent_ids = blocks[order] // blocks_per_extent
    cuts = [0, *(np.flatnonzero(np.diff(extent_ids)) + 1).tolist(), len(blocks)]
    return [(int(extent_ids[start]), order[start:stop]) for start, stop in pairwise(cuts)]


def stretches(blocks: BlockIndexes) -> list[tuple[int, int]]:
    """Half-open runs of blocks that are consecutive in the order given, which need not ascend."""
    cuts = [0, *(np.flatnonzero(np.diff(blocks) != 1) + 1).tolist(), len(blocks)]
    return [(int(blocks[start]), int(blocks[stop - 1]) + 1) for start, stop in pairwise(cuts)]


def rewrite(slots: Slots, flush_number: int) -> None:
    """Slots as the real program writes them anew: leftovers in unused bytes go, the flush number is the last one."""
    present = slots[:, 0] == 1
    slots[~present] = 0
    slots[present & (slots[:, 9] == 0), 20:] = 0
    layout.set_flush_ids(slots, flush_number)
