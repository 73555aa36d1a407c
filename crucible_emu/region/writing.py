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
import numpy.typing as npt

from crucible_emu import errors
from crucible_emu.geometry import BlockIndexes
from crucible_emu.integrity import BlockContexts, Rows, stored_hashes
from crucible_emu.region.contexts import ContextTable
from crucible_emu.region.extent import Extents
from crucible_emu.region.flush import BlockSet, ExtentIds, FlushWork, StagedFlush
from crucible_emu.region.reading import Reader
from crucible_emu.region.redo import RedoFile
from crucible_emu.region.staging import Span, Staging
from crucible_emu.region.storage import explain

LOOK_AGAIN_AFTER_BLOCKS = 4096
"""The free space of the disk is looked up once per so many staged blocks, and after each flush."""
AFFORDABLE_BLOCKS_MIN = 64
FEW_BLOCKS = 4
"""Up to here plain Python is faster than arrays: 1.5 µs per block against 9 µs and 0.4 per block."""

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

    def write(self, blocks: BlockIndexes, rows: Rows, contexts: BlockContexts) -> None: ...

    def write_singles(self, blocks: Sequence[int], data: Sequence[memoryview], hashes: Sequence[int]) -> None:
        """Plain blocks, each from its own memory."""
        ...

    def begin(self, first: int, stop: int, numbers: Numbers | None) -> Work:
        """A flush of the extents ``first .. stop``; without numbers, a destage."""
        ...

    def finish(self, work: Work) -> None: ...
    def abandon(self, work: Work) -> None: ...

    def dirty_extents(self) -> npt.NDArray[np.bool_]:
        """Which extents hold more than their last flush, on disk or here, bool[extents]."""
        ...

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
    ) -> None:
        self._extents = extents
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

    def write(self, blocks: BlockIndexes, rows: Rows, contexts: BlockContexts) -> None:
        if contexts.nonce is not None and contexts.on_disk_hash is None:
            stored_hashes(contexts, rows)
        with self._lock:
            if len(blocks) <= FEW_BLOCKS and contexts.nonce is None:
                put_data, put_context = self._staging.put_one, self._contexts.put_one
                columns = zip(blocks.tolist(), contexts.kind.tolist(), contexts.hash.tolist())
                for row, (block, kind, block_hash) in enumerate(columns):
                    put_data(block, rows[row : row + 1])
                    put_context(block, kind, block_hash)
            else:
                self._staging.put(blocks, rows)
                self._contexts.put(blocks, contexts)

    def write_singles(self, blocks: Sequence[int], data: Sequence[memoryview], hashes: Sequence[int]) -> None:
        with self._lock:
            self._staging.put_singles(blocks, data)
            self._contexts.put_plain(blocks, hashes)

    def begin(self, first: int, stop: int, numbers: Numbers | None) -> StagedFlush:
        extents, staging, limbo = self._extents, self._staging, self._limbo
        held = limbo.spans if limbo is not None else []
        sets = list(limbo.sets) if limbo is not None else []
        rows, blocks = staging.live([*held, *staging.filled()])
        if sets:
            fresh = ~np.isin(rows, np.concatenate([each.rows for each in sets]))
            rows, blocks = rows[fresh], blocks[fresh]
        extent_ids = blocks // self._blocks_per_extent
        whole = first == 0 and stop == extents.count
        if not whole:
            taken = (extent_ids >= first) & (extent_ids < stop)
            whole = bool(taken.all())
            rows, blocks = rows[taken], blocks[taken]
        sets.append(BlockSet(rows, blocks, self._contexts.get(blocks)))
        chosen = np.zeros(extents.count, np.bool_)
        if numbers is not None:
            chosen[first:stop] = extents.dirty[first:stop]
            for each in sets:
                touched = each.blocks // self._blocks_per_extent
                chosen[touched[(touched >= first) & (touched < stop)]] = True
        closed = np.flatnonzero(chosen & extents.closed)
        if len(closed):
            raise errors.GenericError(f"extent {int(closed[0])} is closed: reopen it before flushing it")
        self._contexts.touched(blocks)
        self._look_again_at = 0
        spans = [*held, *staging.freeze()]
        work = StagedFlush(extents, staging, self._redo, sets, np.flatnonzero(chosen), spans, numbers, whole=whole)
        work.in_limbo = len(sets) - 1
        return work

    def finish(self, work: Work) -> None:
        assert isinstance(work, StagedFlush)
        with self._lock:
            for each in work.sets:
                self._reader.mark(each.blocks)
            work.take_over()
        self._limbo = None

    def abandon(self, work: Work) -> None:
        assert isinstance(work, StagedFlush)
        extents, ids = self._extents, work.extent_ids()
        extents.dirty[list(work.begun)] = True
        extents.suspect[ids] |= extents.unsynced[ids]
        if work.in_limbo:
            self._limbo = _Limbo(work.spans, work.sets[: work.in_limbo])
        else:
            self._staging.keep(work.spans)

    def dirty_extents(self) -> npt.NDArray[np.bool_]:
        dirty = self._extents.dirty.copy()
        dirty[self._staging.live_all()[1] // self._blocks_per_extent] = True
        return dirty

    def holds(self, first_block: int, stop_block: int) -> bool:
        # Limbo blocks are still named by their rows, or by newer ones.
        return bool(self._staging.row_of_block[first_block:stop_block].any())

    def forget(self, extent_id: int) -> None:
        """Nothing beyond what :class:`Extents` reads again."""
