"""Flushes by way of the journal: one of them, what they leave to be carried to the extents, and carrying it out.

What it is for: :class:`JournaledFlush` makes staged blocks durable with one append and one sync (:mod:`journal`).
After it the blocks are flushed and yet staged: nothing of the extents has changed. :class:`Journaled` knows these
blocks, and which numbers their extents have by now; the next flush in place or destage takes them along.

What it guarantees: a block in the journal keeps its row, unchanged, until it is durable in its extent, even when a
newer version of it is staged meanwhile: should that be lost, the older one is what was promised.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from crucible_emu.geometry import RegionDefinition
from crucible_emu.integrity import BlockContexts
from crucible_emu.logs import get_logger
from crucible_emu.region import directory, journal, redo
from crucible_emu.region.extent import Extents, Versions
from crucible_emu.region.flush import BlockSet, ExtentIds, ExtentMarks, StagedFlush, Steps, run_alone
from crucible_emu.region.journal import Journal
from crucible_emu.region.layout import pack_slots
from crucible_emu.region.staging import Span, Staging
from crucible_emu.region.storage import Storage, explain

log = get_logger(__name__)


class JournaledFlush:
    """A flush of ``fresh`` whose I/O is one record of the journal; see :class:`flush.FlushWork`."""

    def __init__(
        self, extents: Extents, journal: Journal, fresh: BlockSet, spans: list[Span], numbers: tuple[int, int]
    ) -> None:
        self._extents = extents
        self._journal = journal
        self.fresh = fresh
        self.spans = spans
        self.numbers: tuple[int, int] | None = numbers
        self.block_count = len(fresh)

    @property
    def storage(self) -> Storage:
        """The disk that it writes to."""
        return self._extents.storage

    @property
    def is_empty(self) -> bool:
        return not len(self.fresh)

    def extent_ids(self) -> ExtentIds:
        """Every extent that it has blocks of, ascending."""
        return np.unique(self.fresh.blocks // self._extents.layout.blocks)

    def run(self) -> None:
        """See :class:`flush.FlushWork`."""
        run_alone(self.steps(), self.storage)

    def steps(self) -> Steps:
        """As :meth:`flush.StagedFlush.steps`."""
        if self.is_empty:
            return
        assert self.numbers is not None
        contexts = self.fresh.contexts
        slots = pack_slots(contexts, contexts.stored, self.numbers[0])
        try:
            yield [self._journal.write(self.numbers, self.fresh.blocks, slots, self.fresh.rows)]
        except OSError as error:
            self._journal.failed = True
            raise explain(error, "writing the journal of", self._extents.path) from error
        self._journal.written()


class Journaled:
    """What is in the journal of a region and not in its extents. For the loop's thread."""

    def __init__(self, extents: Extents, staging: Staging) -> None:
        self._extents = extents
        self._sets: list[BlockSet] = []
        self._is_here = np.zeros(staging.capacity + 1, np.bool_)
        self._extent_is_here = np.zeros(extents.count, np.bool_)
        self._flush_number = np.zeros(extents.count, np.uint64)
        self._gen_number = np.zeros(extents.count, np.uint64)
        self.spans: list[Span] = []
        """The staging room that it holds."""
        self.row_count = 0
        """How many blocks of it are flushed ones."""

    def __bool__(self) -> bool:
        return bool(self._sets)

    def add(self, blocks: BlockSet, spans: list[Span], numbers: tuple[int, int]) -> None:
        """These blocks, in rows that are frozen, were flushed with these flush and generation numbers."""
        ids = np.unique(blocks.blocks // self._extents.layout.blocks)
        self._extent_is_here[ids] = True
        self._flush_number[ids], self._gen_number[ids] = numbers
        self._is_here[blocks.rows] = True
        self._sets.append(blocks)
        self.spans += spans
        self.row_count += len(blocks)

    def clear(self) -> None:
        """Everything is in the extents."""
        for each in self._sets:
            self._is_here[each.rows] = False
        self._extent_is_here[:] = False
        self._sets, self.spans, self.row_count = [], [], 0

    def holds(self, rows: npt.NDArray[np.uint32]) -> npt.NDArray[np.bool_]:
        """Which of these staging rows are flushed, bool[n]."""
        found: npt.NDArray[np.bool_] = self._is_here[rows]
        return found

    def newest(self) -> BlockSet:
        """The newest journaled version of each block."""
        rows = np.concatenate([each.rows for each in self._sets])
        blocks = np.concatenate([each.blocks for each in self._sets])
        contexts = BlockContexts.concatenate([each.contexts for each in self._sets])
        last = len(blocks) - 1 - np.unique(blocks[::-1], return_index=True)[1]
        return BlockSet(rows[last], blocks[last], contexts[last])

    def versions(self) -> Versions:
        """Those of all extents, as they were flushed."""
        extents, here = self._extents, self._extent_is_here
        return (
            np.where(here, self._gen_number, extents.gen_number),
            np.where(here, self._flush_number, extents.flush_number),
            self.dirty(),
        )

    def dirty(self) -> npt.NDArray[np.bool_]:
        """Which extents' files hold more than their last flush, bool[extents]."""
        # What a failed attempt to carry the journal out has begun is begun again by the next: nothing newer is there.
        found: npt.NDArray[np.bool_] = self._extents.dirty & ~self._extent_is_here
        return found

    def marks(
        self, written: npt.NDArray[np.bool_], flushed: npt.NDArray[np.bool_], numbers: tuple[int, int] | None
    ) -> ExtentMarks:
        """Marks for a flush in place or a destage that takes along what is here. ``written`` bool[extents]: it has
        blocks of the extent that are not here; ``flushed`` bool[extents]: the extent gets ``numbers``."""
        chosen = np.flatnonzero(flushed | self._extent_is_here)
        flush_numbers, gen_numbers = self._flush_number[chosen], self._gen_number[chosen]  # of what is here
        if numbers is not None:
            flush_numbers[flushed[chosen]], gen_numbers[flushed[chosen]] = numbers
        return ExtentMarks(chosen, flush_numbers, gen_numbers, (written & ~flushed)[chosen])


def settle(extents: Extents, definition: RegionDefinition, *, marked: bool) -> None:
    """Carry out what a region's journal holds, for who opens it read-write, and take the mark of its definition back.
    Raises a CrucibleError."""
    storage, region = extents.storage, extents.path
    try:
        records = list(journal.read_records(storage, region, definition))
        if records:
            _carry_out(extents, records)
        if marked or directory.is_unsettled(storage, region):
            journal.remove(storage, region, definition)
    except OSError as error:
        raise explain(error, "settling the journal of", region) from error
    if records:
        log.info("flushes of the journal were carried to the extents", region=str(region), flushes=len(records))


def _carry_out(extents: Extents, records: list[journal.Record]) -> None:
    """Write what the extents lack.

    *Safety*: an extent that has the numbers of its last flush here, or later ones, got them after all its blocks were
    durable; it may be newer than the journal, and is left alone. One that is dirty was in the middle of a flush in
    place, which may have brought blocks that no flush covers: it gets what it lacks, and stays dirty.
    """
    size = extents.layout.block_size
    staging = Staging(extents.count * extents.layout.blocks, size, sum(len(each.blocks) for each in records))
    journaled = Journaled(extents, staging)
    lacking = _lacking(extents, records)
    for record in records:
        chosen = np.flatnonzero(lacking[record.blocks // extents.layout.blocks])
        if len(chosen):
            staging.put(record.blocks[chosen], record.rows[chosen])
            rows = staging.row_of_block[record.blocks[chosen]]
            blocks = BlockSet(rows, record.blocks[chosen], record.contexts[chosen])
            journaled.add(blocks, staging.freeze(), record.numbers)
    if not journaled:
        return
    marks = journaled.marks(extents.dirty, np.zeros(extents.count, np.bool_), None)
    twice = redo.RedoFile(extents.storage, extents.path, size, staging.rows) if redo.needs_redo(size) else None
    flush = StagedFlush(extents, staging, twice, [journaled.newest()], marks, [], None, whole=True)
    flush.run()
    flush.take_over()


def _lacking(extents: Extents, records: list[journal.Record]) -> npt.NDArray[np.bool_]:
    """Which extents have older numbers than the journal, bool[extents]."""
    lacking = np.zeros(extents.count, np.bool_)
    for record in records:
        flush_number, gen_number = record.numbers
        for extent_id in np.unique(record.blocks // extents.layout.blocks).tolist():
            held = int(extents.gen_number[extent_id]), int(extents.flush_number[extent_id])
            lacking[extent_id] = held < (gen_number, flush_number)
    return lacking
