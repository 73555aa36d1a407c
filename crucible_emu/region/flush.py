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

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from crucible_emu.geometry import BlockIndexes
from crucible_emu.integrity import BlockContexts
from crucible_emu.region import layout
from crucible_emu.region.extent import Extents
from crucible_emu.region.journal import Journal
from crucible_emu.region.layout import ExtentMetadata, Slots, pack_slots
from crucible_emu.region.redo import RedoFile
from crucible_emu.region.scatter import Plan, data_writes, slot_writes
from crucible_emu.region.staging import RowNumbers, Span, Staging
from crucible_emu.region.storage import Storage, explain

ExtentIds = npt.NDArray[np.int64]
Steps = Generator[list[int], None, None]
"""Descriptors of files to be synced, again and again."""


def run_alone(steps: Steps, storage: Storage) -> None:
    """The steps of one flush to their end, with its own syncs. Raises what they raise."""
    for descriptors in steps:
        try:
            storage.sync_files(descriptors)
        except OSError as error:
            steps.throw(error)


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


@dataclass(frozen=True, slots=True, eq=False)
class ExtentMarks:
    """What the metadata of some extents shall say: ``extent_ids`` int64[n] ascending, ``flush_numbers`` and
    ``gen_numbers`` uint64[n], ``dirty`` bool[n] where something was written after the flush of those numbers."""

    extent_ids: ExtentIds
    flush_numbers: npt.NDArray[np.uint64]
    gen_numbers: npt.NDArray[np.uint64]
    dirty: npt.NDArray[np.bool_]


@dataclass(slots=True, eq=False)
class _Group:
    """Some extents that go through the phases together, the bitmaps they will have, and their open files."""

    extent_ids: ExtentIds
    bits: npt.NDArray[np.uint8]
    descriptors: list[int] = field(default_factory=list)


class StagedFlush:
    """One flush (``numbers`` given) or destage (``numbers`` None) of staged blocks.

    ``sets`` are written in order; all but the last are in limbo from an earlier attempt. ``marks`` are the extents
    whose metadata is written. ``spans`` is the staging room to be given back, ``whole`` whether nothing but these sets
    lives there.
    """

    def __init__(
        self,
        extents: Extents,
        staging: Staging,
        redo: RedoFile | None,
        sets: list[BlockSet],
        marks: ExtentMarks,
        spans: list[Span],
        numbers: tuple[int, int] | None,
        *,
        whole: bool,
    ) -> None:
        self._extents = extents
        self._staging = staging
        self._redo = redo
        self.sets = sets
        self.marks = marks
        self._is_chosen = frozenset(marks.extent_ids.tolist())
        self.spans = spans
        self.fresh_spans: list[Span] = []
        """Those of it that hold what no flush covered before."""
        self._journal: Journal | None = None
        self._keeps_journal = False
        self.numbers = numbers
        self.whole = whole
        self.begun: set[int] = set()
        self.in_limbo = 0
        """How many of ``sets``, from the first, may have reached the files in part."""
        self.outcome: list[_Group] = []
        self.block_count = sum(map(len, sets))

    def carries_out(self, journal: Journal, *, keeps_it: bool) -> None:
        """Everything in ``journal`` is among the sets: it is gone afterwards, or empty where more flushes will come to
        it (``keeps_it``)."""
        self._journal = journal if journal.exists else None
        self._keeps_journal = keeps_it

    @property
    def storage(self) -> Storage:
        """The disk that it writes to."""
        return self._extents.storage

    @property
    def is_empty(self) -> bool:
        is_left_over = self._journal is not None and not self._keeps_journal
        return not len(self.marks.extent_ids) and not any(map(len, self.sets)) and not is_left_over

    @property
    def _leaves_unsynced(self) -> bool:
        """Data goes to the files and nothing says that it is there."""
        return self.numbers is None and self._redo is None and not len(self.marks.extent_ids)

    def extent_ids(self) -> ExtentIds:
        """Every extent that is written to, ascending."""
        named = np.zeros(self._extents.count, np.bool_)
        named[self.marks.extent_ids] = True
        for each in self.sets:
            named[each.blocks // self._extents.layout.blocks] = True
        return np.flatnonzero(named)

    def run(self) -> None:
        """See :class:`FlushWork`."""
        run_alone(self.steps(), self.storage)

    def steps(self) -> Steps:
        """All the I/O of :meth:`run` but the syncs: yields the files that have to be durable before it goes on, for
        whoever syncs those of several flushes together. A sync that fails is thrown in."""
        if self.is_empty:
            return
        for each in self.sets:
            order = np.argsort(each.blocks, kind="stable")
            each.rows, each.blocks, each.contexts = each.rows[order], each.blocks[order], each.contexts[order]
        ids, step = self.extent_ids(), self._extents.flushed_together_max
        for start in range(0, len(ids), step):
            yield from self._run_group(ids[start : start + step])
        if self._journal is not None:
            self._empty_journal(self._journal)

    def _empty_journal(self, journal: Journal) -> None:
        """*Safety*: durably, before this flush is reported: a later one must not be undone by what is older."""
        try:
            if self._keeps_journal and not journal.failed:
                journal.reset()
            else:
                journal.remove()
        except OSError as error:
            raise explain(error, "emptying the journal of", self._extents.path) from error

    def _run_group(self, ids: ExtentIds) -> Steps:
        extents = self._extents
        group = _Group(ids, extents.bits[ids].copy())
        try:
            for extent_id in ids.tolist():
                group.descriptors.append(extents.descriptors.open(extent_id))
            yield from self._rewrite_suspects(group)
            for number, each in enumerate(self.sets):
                yield from self._run_set(group, number, self._plan(group, each))
            yield from self._write_metadata(group)
        except OSError as error:
            raise explain(error, "flushing", extents.path) from error
        finally:
            for descriptor in group.descriptors:
                extents.storage.close(descriptor)
        self.outcome.append(group)

    def _rewrite_suspects(self, group: _Group) -> Steps:
        """*Safety*: destaged data whose sync failed once must be written again before a sync of it means anything."""
        extents = self._extents
        suspects = np.flatnonzero(extents.suspect[group.extent_ids]).tolist()
        size = extents.layout.blocks
        for index in suspects:
            first = int(group.extent_ids[index]) * size
            limbo = np.concatenate([each.blocks for each in self.sets[: self.in_limbo]] or [np.zeros(0, np.int64)])
            inside = limbo[(limbo >= first) & (limbo < first + size)] - first
            extents.rewrite(first // size, group.descriptors[index], inside)
        if suspects:
            yield [group.descriptors[index] for index in suspects]

    def _plan(self, group: _Group, each: BlockSet) -> Plan:
        """The set's part in the group. Targets follow from the group's bits, which are flipped: call it in turn."""
        blocks_per_extent = self._extents.layout.blocks
        low = int(np.searchsorted(each.blocks, int(group.extent_ids[0]) * blocks_per_extent))
        high = int(np.searchsorted(each.blocks, (int(group.extent_ids[-1]) + 1) * blocks_per_extent))
        part = slice(low, high)
        extent_ids, inside = np.divmod(each.blocks[part], blocks_per_extent)
        index = np.searchsorted(group.extent_ids, extent_ids)
        mask = np.left_shift(1, inside & 7).astype(np.uint8)
        target = group.bits[index, inside >> 3] & mask == 0
        np.bitwise_xor.at(group.bits, (index, inside >> 3), mask)
        contexts = each.contexts[part]
        slots = pack_slots(contexts, contexts.stored)
        _stamp(slots, self._extents.flush_number[extent_ids])
        return Plan(index, inside, each.rows[part], slots, target)

    def _run_set(self, group: _Group, number: int, plan: Plan) -> Steps:
        extents, storage = self._extents, self._extents.storage
        touched = np.unique(plan.index).tolist()
        descriptors = [group.descriptors[index] for index in touched]
        self.begun.update(group.extent_ids[touched].tolist())
        # Phase 0. *Safety*: what a destage left unsynced must be durable before its other slot is overwritten.
        unsynced = [group.descriptors[index] for index in touched if extents.unsynced[group.extent_ids[index]]]
        if unsynced:
            yield unsynced
        # Phase 1.
        for descriptor in descriptors:
            storage.pwrite(descriptor, b"\x01", extents.layout.metadata_offset)
        self._write_contexts(group, plan)
        if descriptors:
            yield descriptors
        if self._redo is not None and descriptors:
            self._redo.write(group.extent_ids[plan.index], plan.inside, plan.slots, plan.rows)
        # Phase 2.
        self.in_limbo = max(self.in_limbo, number + 1)
        self._write_data(group, plan)
        last = number == len(self.sets) - 1
        if last:
            chosen = self._chosen_in(group)
            for index in chosen:
                storage.pwrite(group.descriptors[index], group.bits[index].data, extents.layout.bitmap_offset)
            descriptors = [group.descriptors[index] for index in sorted({*touched, *chosen})]
        if descriptors and not (last and self._leaves_unsynced):
            yield descriptors
        if self._redo is not None and len(plan):
            self._redo.clear()

    def _write_contexts(self, group: _Group, plan: Plan) -> None:
        storage, slots = self._extents.storage, plan.slots
        for write in slot_writes(plan, self._extents.layout):
            descriptor = group.descriptors[write.index]
            if write.data is not None:
                storage.pwrite(descriptor, write.data, write.offset)
            else:
                whole = self._extents.read_slots_at(descriptor, write.offset, write.count)
                whole[plan.inside[write.chosen] - write.first] = slots[write.chosen]
                storage.pwrite(descriptor, whole.data.cast("B"), write.offset)

    def _write_data(self, group: _Group, plan: Plan) -> None:
        storage, block_size = self._extents.storage, self._extents.layout.block_size
        staged = self._staging.rows.data.cast("B")
        for index, offset, spans in data_writes(plan, block_size):
            descriptor = group.descriptors[index]
            if len(spans) == 1:
                row, stop = spans[0]
                storage.pwrite(descriptor, staged[row * block_size : stop * block_size], offset)
            else:
                parts = [staged[row * block_size : stop * block_size] for row, stop in spans]
                storage.pwritev(descriptor, parts, offset)

    def _chosen_in(self, group: _Group) -> list[int]:
        """Of which of the group's extents the metadata is written, as positions in it."""
        chosen = self._is_chosen
        return [index for index, extent_id in enumerate(group.extent_ids.tolist()) if extent_id in chosen]

    def _write_metadata(self, group: _Group) -> Steps:
        """Phase 3."""
        extents, storage, marks = self._extents, self._extents.storage, self.marks
        chosen = self._chosen_in(group)
        places = np.searchsorted(marks.extent_ids, group.extent_ids[chosen]).tolist()
        for index, place in zip(chosen, places):
            extent_id = int(group.extent_ids[index])
            self.begun.add(extent_id)
            record = ExtentMetadata(
                bool(marks.dirty[place]),
                int(marks.gen_numbers[place]),
                int(marks.flush_numbers[place]),
                bonus_sync_count=int(extents.bonus_sync_count[extent_id]),
                defrag_count=int(extents.defrag_count[extent_id]),
            )
            storage.pwrite(group.descriptors[index], record.pack(), extents.layout.metadata_offset)
        if chosen:
            yield [group.descriptors[index] for index in chosen]

    def take_over(self) -> None:
        """After :meth:`run` succeeded, on the loop's thread: memory says what the files say now."""
        extents = self._extents
        for group in self.outcome:
            ids = group.extent_ids
            extents.bits[ids] = group.bits
            extents.dirty[ids] = True
            extents.unsynced[ids] = self._leaves_unsynced
            extents.suspect[ids] = False
        marks = self.marks
        extents.flush_number[marks.extent_ids] = marks.flush_numbers
        extents.gen_number[marks.extent_ids] = marks.gen_numbers
        extents.dirty[marks.extent_ids] = marks.dirty
        for each in self.sets:
            self._staging.drop(each.rows, each.blocks)
        if self.whole:
            self._staging.thaw(self.spans)
        else:
            self._staging.keep(self.spans)


def _stamp(slots: Slots, flush_numbers: npt.NDArray[np.uint64]) -> None:
    """Put the low 16 bits of each slot's extent's last flush number into it; all slots are present."""
    ids = flush_numbers.astype(np.uint16)
    if not ids.any():
        return
    sealed = slots[:, 9] == 1
    slots.view(layout.PLAIN_SLOT)[:, 0]["flush"][~sealed] = ids[~sealed]
    slots.view(layout.SEALED_SLOT)[:, 0]["flush"][sealed] = ids[sealed]
