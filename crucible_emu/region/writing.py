"""What a region does with a write: one seam, and the STAGED side of it.

What it is for: under the STAGED policy a write goes into memory and a flush carries it to the files; the other
policies write at once (:mod:`inplace`). Both look the same from above: :class:`Writer`.

What it guarantees, for :class:`StagedWriter`: a flush covers everything that was written before it began, and nothing
that it covered is forgotten before its sync has succeeded. Whatever fails is staged still, and the next flush does it
again. That holds for the blocks of a flush that failed half-way too (*limbo*, see :mod:`flush`): they keep their rows,
newer versions notwithstanding, until a later flush has completed them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Protocol

import numpy as np

from crucible_emu import errors
from crucible_emu.geometry import Selection
from crucible_emu.integrity import BlockContexts, Proofs, Rows, stored_hashes
from crucible_emu.region.bounds import FEW_BLOCKS
from crucible_emu.region.contexts import ContextTable
from crucible_emu.region.extent import Extents, Versions
from crucible_emu.region.flush import BlockSet, ExtentIds, FlushWork, StagedFlush
from crucible_emu.region.journal import Journal
from crucible_emu.region.journaled import Journaled, JournaledFlush
from crucible_emu.region.reading import Reader
from crucible_emu.region.redo import RedoFile
from crucible_emu.region.staging import Span, Staging
from crucible_emu.region.storage import explain

LOOK_AGAIN_AFTER_BLOCKS = 4096
"""The free space of the disk is looked up once per so many staged blocks, and after each flush."""
AFFORDABLE_BLOCKS_MIN = 64

Numbers = tuple[int, int]
"""Flush number and generation number."""


class Work(FlushWork, Protocol):
    """A flush as the region sees it."""

    numbers: Numbers | None
    block_count: int

    def extent_ids(self) -> ExtentIds:
        """Every extent that it writes to."""
        ...


class Writer(Protocol):
    """Takes writes and makes them durable. For the loop's thread."""

    takes_singles: bool
    """Whether there is :meth:`write_singles`."""

    def free_blocks(self) -> int | None:
        """How many blocks :meth:`write` takes at once; ``None``: any number."""
        ...

    def write(self, which: Selection, rows: Rows, contexts: BlockContexts) -> None: ...

    def write_singles(self, blocks: Sequence[int], data: Sequence[memoryview], proofs: Proofs) -> None:
        """Blocks, each from its own memory."""
        ...

    def begin(self, first: int, stop: int, numbers: Numbers | None, *, journal: bool = False) -> Work:
        """A flush of the extents ``first .. stop``; without numbers, a destage. ``journal``: the journal is good
        enough for it."""
        ...

    def finish(self, work: Work) -> None: ...
    def abandon(self, work: Work) -> None: ...

    @property
    def is_settled(self) -> bool:
        """Whether the extents hold everything that was flushed, and the directory nothing beside them."""
        ...

    def versions(self) -> Versions:
        """The numbers of the extents' last flush, and whether they hold more than that, on disk or here."""
        ...

    def close(self) -> None:
        """Close what is open beside the extents."""

    def holds(self, first_block: int, stop_block: int) -> bool:
        """Whether any of these blocks is not in its file yet."""
        ...

    def forget(self, extent_id: int) -> None:
        """The extent was closed; what is known about its file may not hold when it opens again."""


@dataclass(slots=True, eq=False)
class _Limbo:
    """What a failed flush left half done."""

    spans: list[Span]
    sets: list[BlockSet]


class StagedWriter:
    """The STAGED policy: see :class:`Writer`, and :mod:`staging` for where blocks wait."""

    takes_singles = True

    def __init__(
        self,
        extents: Extents,
        contexts: ContextTable,
        staging: Staging,
        reader: Reader,
        lock: Lock,
        redo: RedoFile | None,
        journal: Journal,
    ) -> None:
        self._extents = extents
        self._journal = journal
        self._journaled = Journaled(extents, staging)
        self._contexts = contexts
        self._staging = staging
        self._reader = reader
        self._lock = lock
        self._redo = redo
        self._blocks_per_extent = extents.layout.blocks
        self._limbo: _Limbo | None = None
        self._look_again_at = 0
        self._affordable = 0

    def free_blocks(self) -> int | None:
        used = self._staging.used_rows
        if used >= self._look_again_at:
            self._look_at_disk(used)
        return min(self._staging.free_rows, self._affordable - used)

    def _look_at_disk(self, used: int) -> None:
        """Stage no more than the disk could take: a full disk is then found out early, by a destage.

        *Liveness*: some blocks always fit, for most writes overwrite blocks that have their space already.
        """
        extents = self._extents
        try:
            free = extents.storage.free_bytes(extents.path) // extents.layout.block_size
        except OSError as error:
            raise explain(error, "asking for the free space of", extents.path) from error
        self._affordable = used + max(AFFORDABLE_BLOCKS_MIN, free - used)
        self._look_again_at = used + LOOK_AGAIN_AFTER_BLOCKS

    def write(self, which: Selection, rows: Rows, contexts: BlockContexts) -> None:
        if contexts.nonce is not None and contexts.on_disk_hash is None:
            stored_hashes(contexts, rows)
        with self._lock:
            if not isinstance(which, slice) and len(which) <= FEW_BLOCKS and contexts.nonce is None:
                put_data, put_context = self._staging.put_one, self._contexts.put_one
                columns = zip(which.tolist(), contexts.kind.tolist(), contexts.hash.tolist())
                for row, (block, kind, block_hash) in enumerate(columns):
                    put_data(block, rows[row : row + 1])
                    put_context(block, kind, block_hash)
            else:
                self._staging.put(which, rows)
                self._contexts.put(which, contexts)

    def write_singles(self, blocks: Sequence[int], data: Sequence[memoryview], proofs: Proofs) -> None:
        with self._lock:
            self._staging.put_singles(blocks, data)
            self._contexts.put_singles(blocks, proofs)

    def begin(
        self, first: int, stop: int, numbers: Numbers | None, *, journal: bool = False
    ) -> StagedFlush | JournaledFlush:
        # A destage that finds a journal carries that out, and nothing else: room is made, and no extent gets dirty.
        takes_fresh = numbers is not None or not self._journaled
        held = self._limbo.spans if self._limbo is not None else []
        filled = self._staging.filled() if takes_fresh else []
        fresh, whole = self._fresh([*held, *filled], first, stop)
        self._contexts.touched(fresh.blocks)
        self._look_again_at = 0
        if journal and numbers is not None and whole and self._belongs_into_journal(fresh):
            spans = self._staging.freeze() if len(fresh) else []
            return JournaledFlush(self._extents, self._journal, fresh, spans, numbers)
        work = self._in_place(fresh, first, stop, numbers, whole=whole, keeps_journal=journal)
        if takes_fresh:
            work.fresh_spans = self._staging.freeze()
            work.spans += work.fresh_spans
        return work

    def _fresh(self, spans: list[Span], first: int, stop: int) -> tuple[BlockSet, bool]:
        """What is staged in ``spans`` and was never flushed nor tried to, of the extents ``first .. stop``; whether
        that is all of it."""
        rows, blocks = self._staging.live(spans)
        known = self._journaled.holds(rows)
        for each in self._limbo.sets if self._limbo is not None else ():
            known |= np.isin(rows, each.rows)
        if known.any():
            rows, blocks = rows[~known], blocks[~known]
        whole = first == 0 and stop == self._extents.count
        if not whole:
            extent_ids = blocks // self._blocks_per_extent
            taken = (extent_ids >= first) & (extent_ids < stop)
            whole = bool(taken.all())
            rows, blocks = rows[taken], blocks[taken]
        return BlockSet(rows, blocks, self._contexts.get(blocks)), whole

    def _belongs_into_journal(self, fresh: BlockSet) -> bool:
        """Not what is large, nor what would leave little room for staging; and not while an extent's file holds
        anything that no flush covers: its numbers would be those of a flush that is not all there."""
        if self._limbo is not None or self._extents.closed.any() or self._journaled.dirty().any():
            return False
        if self._journaled.row_count + len(fresh) > self._staging.capacity // 2:
            return False
        try:
            return self._journal.takes(len(fresh))
        except OSError as error:
            raise explain(error, "asking for the free space of", self._extents.path) from error

    def _in_place(
        self, fresh: BlockSet, first: int, stop: int, numbers: Numbers | None, *, whole: bool, keeps_journal: bool
    ) -> StagedFlush:
        extents, journaled, limbo = self._extents, self._journaled, self._limbo
        sets = list(limbo.sets) if limbo is not None else []
        sets.append(self._with_journaled(fresh, sets))
        written = np.zeros(extents.count, np.bool_)
        for each in sets:
            written[each.blocks[~journaled.holds(each.rows)] // self._blocks_per_extent] = True
        flushed = np.zeros(extents.count, np.bool_)
        if numbers is not None:
            flushed[first:stop] = (written | journaled.dirty())[first:stop]
        marks = journaled.marks(written, flushed, numbers)
        closed = marks.extent_ids[extents.closed[marks.extent_ids]]
        if len(closed):
            raise errors.GenericError(f"extent {int(closed[0])} is closed: reopen it before flushing it")
        # What is in limbo holds the journal's room already.
        spans = list(journaled.spans if limbo is None else limbo.spans)
        work = StagedFlush(extents, self._staging, self._redo, sets, marks, spans, numbers, whole=whole)
        work.in_limbo = len(sets) - 1
        work.carries_out(self._journal, keeps_it=keeps_journal)
        return work

    def _with_journaled(self, fresh: BlockSet, limbo: list[BlockSet]) -> BlockSet:
        """``fresh`` and what the journal holds of other blocks and limbo does not."""
        if not self._journaled:
            return fresh
        old = self._journaled.newest()
        other = ~np.isin(old.blocks, fresh.blocks)
        for each in limbo:
            other &= ~np.isin(old.blocks, each.blocks)
        rows, blocks = old.rows[other], old.blocks[other]
        contexts = BlockContexts.concatenate([old.contexts[np.flatnonzero(other)], fresh.contexts])
        return BlockSet(np.concatenate([rows, fresh.rows]), np.concatenate([blocks, fresh.blocks]), contexts)

    def finish(self, work: Work) -> None:
        if isinstance(work, JournaledFlush):
            assert work.numbers is not None
            if not work.is_empty:
                self._journaled.add(work.fresh, work.spans, work.numbers)
            return
        assert isinstance(work, StagedFlush)
        with self._lock:
            for each in work.sets:
                self._reader.mark(each.blocks)
            work.take_over()
        self._journaled.clear()
        self._limbo = None

    def abandon(self, work: Work) -> None:
        if isinstance(work, JournaledFlush):
            self._staging.keep(work.spans)
            return
        assert isinstance(work, StagedFlush)
        extents, ids = self._extents, work.extent_ids()
        extents.dirty[list(work.begun)] = True
        extents.suspect[ids] |= extents.unsynced[ids]
        if work.in_limbo:
            self._limbo = _Limbo(work.spans, work.sets[: work.in_limbo])
        else:
            self._staging.keep(work.fresh_spans)

    @property
    def is_settled(self) -> bool:
        return not self._journal.exists

    def versions(self) -> Versions:
        gen_numbers, flush_numbers, dirty = self._journaled.versions()
        rows, blocks = self._staging.live_all()
        dirty[blocks[~self._journaled.holds(rows)] // self._blocks_per_extent] = True
        return gen_numbers, flush_numbers, dirty

    def close(self) -> None:
        self._journal.close()

    def holds(self, first_block: int, stop_block: int) -> bool:
        # Limbo blocks are still named by their rows, or by newer ones.
        return bool(self._staging.row_of_block[first_block:stop_block].any())

    def forget(self, extent_id: int) -> None:
        """Nothing beyond what :class:`Extents` reads again."""
