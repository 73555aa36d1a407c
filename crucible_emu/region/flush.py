"""Flushing staged blocks: the three phases that make any file system safe enough.

What it is for: under the STAGED policy a flush is the only time when extents change. :class:`StagedFlush` is one such
flush: it is put together on the loop's thread, :meth:`StagedFlush.run` does all its I/O in any other, and its outcome
is taken over on the loop's thread again.

What it guarantees, whatever subset of the pages written since the last sync reaches the disk before a power cut
(on-disk-format.md §6): every block's stored data matches one of its two stored slots. Three phases, a sync after each:

1. the dirty byte and the new contexts, into the *inactive* slots: a clean extent does not look at those, a dirty one
   still finds its old data in the other slot;
2. the data, and the new bitmap, which means nothing while the extent is dirty: each block now matches the old slot or
   the new one, whichever version landed;
3. the 32 bytes of metadata: clean, with the new numbers.

A *destage* frees memory in the same way but stops after writing the data: the extent stays dirty with its old numbers.
Its data is not synced; whoever overwrites the other slot of such a block must sync first (phase 0), for then the
stored data could be older than both slots. Should that sync fail, the kernel may take the data for written that is
not; it is then written again before any further sync counts (:meth:`Extents.rewrite`).

When a flush fails in phase 2 or later, some of its blocks may be on disk and some not, and for each the slots hold the
old and the failed version. Writing a third version over either could lose the block. So the failed set stays in
*limbo*: the next flush completes it first, exactly as it was, and goes on only then.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol

import numpy as np
import numpy.typing as npt

from crucible_emu.geometry import BlockIndexes, runs
from crucible_emu.integrity import BlockContexts
from crucible_emu.region import layout
from crucible_emu.region.extent import Extents
from crucible_emu.region.layout import SLOT_BYTES, ExtentMetadata, Slots, pack_slots
from crucible_emu.region.redo import PAGE_BYTES, RedoFile
from crucible_emu.region.staging import RowNumbers, Span, Staging
from crucible_emu.region.storage import explain

EXTENTS_AT_ONCE = 512
"""Extents whose files one flush has open together; each such group goes through its phases before the next."""

ExtentIds = npt.NDArray[np.int64]


class FlushWork(Protocol):
    """A flush between :meth:`Region.begin_flush` and :meth:`Region.finish_flush`."""

    @property
    def is_empty(self) -> bool:
        """Nothing to write: running it costs no I/O."""
        ...

    def run(self) -> None:
        """All the I/O, in any thread, once. Raises a CrucibleError; then :meth:`Region.abandon_flush` is due."""


@dataclass(slots=True, eq=False)
class BlockSet:
    """Blocks that are written together: ``rows`` of the staging area, ``blocks`` of the region, their contexts."""

    rows: RowNumbers
    blocks: BlockIndexes
    contexts: BlockContexts

    def __len__(self) -> int:
        return len(self.blocks)


@dataclass(slots=True, eq=False)
class _Piece:
    """The part of a set that lies in one extent, by block ascending."""

    extent_id: int
    index: int
    """Row of the extent in the group's arrays."""
    inside: BlockIndexes
    rows: RowNumbers
    slots: Slots
    target: npt.NDArray[np.bool_]
    """The slot to be written (True = B): the inactive one."""


@dataclass(slots=True, eq=False)
class _Group:
    """Some extents that go through the phases together, with the bitmaps they will have."""

    extent_ids: ExtentIds
    bits: npt.NDArray[np.uint8]
    descriptors: dict[int, int] = field(default_factory=dict)


class StagedFlush:
    """One flush (``numbers`` given) or destage (``numbers`` None) of staged blocks.

    ``sets`` are written in order; all but the last are in limbo from an earlier attempt. ``chosen`` are the ids of the
    extents that shall be clean afterwards, ascending. ``spans`` is the staging room to be given back, ``whole``
    whether nothing but these sets lives there.
    """

    def __init__(
        self,
        extents: Extents,
        staging: Staging,
        redo: RedoFile | None,
        sets: list[BlockSet],
        chosen: ExtentIds,
        spans: list[Span],
        numbers: tuple[int, int] | None,
        *,
        whole: bool,
    ) -> None:
        self._extents = extents
        self._staging = staging
        self._redo = redo
        self.sets = sets
        self.chosen = chosen
        self.spans = spans
        self.numbers = numbers
        self.whole = whole
        self.begun: set[int] = set()
        self.in_limbo = 0
        """How many of ``sets``, from the first, may have reached the files in part."""
        self.outcome: list[_Group] = []
        self.block_count = sum(map(len, sets))

    @property
    def is_empty(self) -> bool:
        return not len(self.chosen) and not any(map(len, self.sets))

    def extent_ids(self) -> ExtentIds:
        """Every extent that is written to, ascending."""
        named = np.zeros(self._extents.count, np.bool_)
        named[self.chosen] = True
        for each in self.sets:
            named[each.blocks // self._extents.layout.blocks] = True
        return np.flatnonzero(named)

    def run(self) -> None:
        """See :class:`FlushWork`."""
        if self.is_empty:
            return
        for each in self.sets:
            order = np.argsort(each.blocks, kind="stable")
            each.rows, each.blocks, each.contexts = each.rows[order], each.blocks[order], each.contexts[order]
        ids = self.extent_ids()
        for start in range(0, len(ids), EXTENTS_AT_ONCE):
            self._run_group(ids[start : start + EXTENTS_AT_ONCE])

    def _run_group(self, ids: ExtentIds) -> None:
        extents = self._extents
        group = _Group(ids, extents.bits[ids].copy())
        doing, path = "opening the extents of", extents.path
        try:
            for extent_id in ids.tolist():
                group.descriptors[extent_id] = extents.descriptors.open(extent_id)
            doing = "flushing"
            self._rewrite_suspects(group)
            for number, each in enumerate(self.sets):
                self._run_set(group, number, list(self._pieces(group, each)), last=number == len(self.sets) - 1)
            if self.numbers is not None:
                self._write_metadata(group)
        except OSError as error:
            raise explain(error, doing, path) from error
        finally:
            for descriptor in group.descriptors.values():
                extents.storage.close(descriptor)
        self.outcome.append(group)

    def _rewrite_suspects(self, group: _Group) -> None:
        """*Safety*: destaged data whose sync failed once must be written again before a sync of it means anything."""
        extents = self._extents
        suspects = group.extent_ids[extents.suspect[group.extent_ids]].tolist()
        for extent_id in suspects:
            extents.rewrite(extent_id, group.descriptors[extent_id])
        if suspects:
            extents.storage.sync_files([group.descriptors[extent_id] for extent_id in suspects])

    def _pieces(self, group: _Group, each: BlockSet) -> Iterator[_Piece]:
        """The set's pieces in the group's extents. Targets are chosen by the group's bits, so call it in turn."""
        blocks_per_extent = self._extents.layout.blocks
        low = np.searchsorted(each.blocks, int(group.extent_ids[0]) * blocks_per_extent)
        high = np.searchsorted(each.blocks, (int(group.extent_ids[-1]) + 1) * blocks_per_extent)
        extent_ids, inside = np.divmod(each.blocks[low:high], blocks_per_extent)
        index = np.searchsorted(group.extent_ids, extent_ids)
        mask = np.left_shift(1, inside & 7).astype(np.uint8)
        target = group.bits[index, inside >> 3] & mask == 0
        contexts = each.contexts[low:high] if low or high < len(each) else each.contexts
        slots = pack_slots(contexts, _stored(contexts))
        stamps = self._extents.flush_number[extent_ids]
        if stamps.any():
            _stamp(slots, stamps)
        np.bitwise_xor.at(group.bits, (index, inside >> 3), mask)
        cuts = [0, *(np.flatnonzero(np.diff(extent_ids)) + 1).tolist(), len(extent_ids)]
        for start, stop in pairwise(cuts):
            if stop > start:
                yield _Piece(
                    int(extent_ids[start]),
                    int(index[start]),
                    inside[start:stop],
                    each.rows[low + start : low + stop],
                    slots[start:stop],
                    target[start:stop],
                )

    def _run_set(self, group: _Group, number: int, pieces: list[_Piece], *, last: bool) -> None:
        extents, storage = self._extents, self._extents.storage
        descriptors = [group.descriptors[piece.extent_id] for piece in pieces]
        # Phase 0. *Safety*: what a destage left unsynced must be durable before its other slot is overwritten.
        unsynced = [fd for piece, fd in zip(pieces, descriptors) if extents.unsynced[piece.extent_id]]
        if unsynced:
            storage.sync_files(unsynced)
        self.begun.update(piece.extent_id for piece in pieces)
        for piece, descriptor in zip(pieces, descriptors):
            storage.pwrite(descriptor, b"\x01", extents.layout.metadata_offset)
            self._write_contexts(descriptor, piece)
        if pieces:
            storage.sync_files(descriptors)
        if self._redo is not None and pieces:
            self._redo.write([(piece.extent_id, piece.inside, piece.slots, piece.rows) for piece in pieces])
        self.in_limbo = max(self.in_limbo, number + 1)
        for piece, descriptor in zip(pieces, descriptors):
            self._write_data(descriptor, piece)
        if not last:
            storage.sync_files(descriptors)
        elif self.numbers is not None:
            written = set(descriptors)
            for index, extent_id in self._chosen_in(group):
                descriptor = group.descriptors[extent_id]
                storage.pwrite(descriptor, group.bits[index].data, extents.layout.bitmap_offset)
                written.add(descriptor)
            storage.sync_files(list(written))
        elif self._redo is not None:
            storage.sync_files(descriptors)
        if self._redo is not None and pieces:
            self._redo.clear()

    def _write_contexts(self, descriptor: int, piece: _Piece) -> None:
        storage, geometry = self._extents.storage, self._extents.layout
        if len(piece.inside) == 1:
            offset = geometry.slot_offset(int(piece.target[0]), int(piece.inside[0]))
            storage.pwrite(descriptor, piece.slots[0].data, offset)
            return
        for which in (layout.SLOT_A, layout.SLOT_B):
            chosen = np.flatnonzero(piece.target == bool(which))
            if len(chosen):
                self._write_slots(descriptor, which, piece.inside[chosen], piece.slots[chosen])

    def _write_slots(self, descriptor: int, which: int, inside: BlockIndexes, slots: Slots) -> None:
        """Slots of ascending blocks into array ``which``."""
        storage, geometry = self._extents.storage, self._extents.layout
        spans = runs(inside)
        first, length = spans[0][0], spans[-1][1] - spans[0][0]
        if len(spans) > 1 and length * SLOT_BYTES <= len(spans) * PAGE_BYTES:
            # As many runs as pages: rewriting the slots between them as they are dirties no page more. *Safety*: they
            # are rewritten with the bytes they have, so a page that lands early or late changes nothing.
            whole = self._extents.read_slots(descriptor, which, first, length)
            whole[inside - first] = slots
            storage.pwrite(descriptor, whole.data.cast("B"), geometry.slot_offset(which, first))
            return
        done = 0
        for start, stop in spans:
            part = slots[done : done + stop - start]
            storage.pwrite(descriptor, part.data.cast("B"), geometry.slot_offset(which, start))
            done += stop - start

    def _write_data(self, descriptor: int, piece: _Piece) -> None:
        storage, block_size = self._extents.storage, self._extents.layout.block_size
        staged = self._staging.rows.data.cast("B")
        if len(piece.inside) == 1:
            row = int(piece.rows[0]) * block_size
            storage.pwrite(descriptor, staged[row : row + block_size], int(piece.inside[0]) * block_size)
            return
        rows = piece.rows.astype(np.int64)
        done = 0
        for start, stop in runs(piece.inside):
            parts = [staged[a * block_size : b * block_size] for a, b in _row_runs(rows[done : done + stop - start])]
            if len(parts) == 1:
                storage.pwrite(descriptor, parts[0], start * block_size)
            else:
                storage.pwritev(descriptor, parts, start * block_size)
            done += stop - start

    def _chosen_in(self, group: _Group) -> list[tuple[int, int]]:
        """``(row in the group, extent id)`` of the extents that become clean."""
        low, high = np.searchsorted(self.chosen, [group.extent_ids[0], group.extent_ids[-1] + 1])
        ids = self.chosen[low:high]
        return list(zip(np.searchsorted(group.extent_ids, ids).tolist(), ids.tolist()))

    def _write_metadata(self, group: _Group) -> None:
        extents, storage = self._extents, self._extents.storage
        assert self.numbers is not None
        flush_number, gen_number = self.numbers
        descriptors = []
        for _, extent_id in self._chosen_in(group):
            record = ExtentMetadata(
                False,
                gen_number,
                flush_number,
                bonus_sync_count=int(extents.bonus_sync_count[extent_id]),
                defrag_count=int(extents.defrag_count[extent_id]),
            )
            self.begun.add(extent_id)
            descriptors.append(group.descriptors[extent_id])
            storage.pwrite(descriptors[-1], record.pack(), extents.layout.metadata_offset)
        if descriptors:
            storage.sync_files(descriptors)

    def take_over(self) -> None:
        """After :meth:`run` succeeded, on the loop's thread: memory says what the files say now."""
        extents = self._extents
        for group in self.outcome:
            ids = group.extent_ids
            extents.bits[ids] = group.bits
            extents.dirty[ids] = True
            extents.unsynced[ids] = self.numbers is None and self._redo is None
            extents.suspect[ids] = False
        if self.numbers is not None:
            extents.flush_number[self.chosen], extents.gen_number[self.chosen] = self.numbers
            extents.dirty[self.chosen] = False
        for each in self.sets:
            self._staging.drop(each.rows, each.blocks)
        if self.whole:
            self._staging.thaw(self.spans)
        else:
            self._staging.keep(self.spans)


def _row_runs(rows: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
    """Stretches of staging rows that are consecutive in the order given."""
    cuts = [0, *(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)]
    return [(int(rows[start]), int(rows[stop - 1]) + 1) for start, stop in pairwise(cuts)]


def _stored(contexts: BlockContexts) -> npt.NDArray[np.uint64]:
    return contexts.hash if contexts.on_disk_hash is None else contexts.on_disk_hash


def _stamp(slots: Slots, flush_numbers: npt.NDArray[np.uint64]) -> None:
    """Put the low 16 bits of each extent's last flush number into its slots, which are all present."""
    ids = flush_numbers.astype(np.uint16)
    sealed = slots[:, 9] == 1
    slots.view(layout.PLAIN_SLOT)[:, 0]["flush"][~sealed] = ids[~sealed]
    slots.view(layout.SEALED_SLOT)[:, 0]["flush"][sealed] = ids[sealed]
