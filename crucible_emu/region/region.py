"""A region: the part of a disk that one Downstairs keeps, as a directory of extent files.

What it is for: everything above asks a :class:`Region` for blocks by their number in the region and never sees a file.
Reads and writes take whole batches; a batch is a handful of array operations whatever extents it touches.

What it guarantees (with the default policy, :mod:`policy`):

* a read returns the newest write of each block, flushed or not, with the context that came with it;
* when :meth:`Region.finish_flush` returns, everything written before :meth:`Region.begin_flush` is durable;
* whatever the machine does, the directory opens again, here and in the real program: each block whole, as new as the
  last flush or newer, and no extent called clean that is not.

Threads: all methods belong to one thread, the loop's, but for :meth:`FlushWork.run`, :meth:`Region.read` and
:meth:`Region.snapshot`. A read in another thread notes what it is about to read; a flush that changes one of those
blocks in its file marks the note, and the read starts over. The lock is held for index look-ups only, never for I/O.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np
import numpy.typing as npt

from crucible_emu import errors
from crucible_emu.errors import CrucibleError, UsageError
from crucible_emu.geometry import BlockIndexes, RegionDefinition, equal_runs, split_at_extents
from crucible_emu.integrity import EMPTY, BlockContexts, Rows, stored_hashes
from crucible_emu.region import directory, layout, redo, repair_files
from crucible_emu.region.contexts import KNOWN_EMPTY, UNKNOWN, ContextTable
from crucible_emu.region.extent import Extents
from crucible_emu.region.flush import BlockSet, ExtentIds, FlushWork, StagedFlush
from crucible_emu.region.inplace import InPlace, InPlaceFlush
from crucible_emu.region.policy import RULES, SyncPolicy
from crucible_emu.region.snapshot import take_snapshot
from crucible_emu.region.staging import Span, Staging
from crucible_emu.region.storage import OsStorage, Storage, explain
from crucible_emu.region.view import ExtentView, open_extent

STAGED_BYTES_MAX = 256 * 1024 * 1024
CONTEXT_BYTES_MAX = 128 * 1024 * 1024
"""Memory for contexts that could be read from the files again."""
LEARN_BLOCKS = 256
"""Contexts read from a file at a time: 12 KiB of slots cost hardly more than one."""
FROM_STAGING, FROM_NOWHERE, FROM_FILE = 0, 1, 2


@dataclass(slots=True, eq=False)
class _Reading:
    """A read that another thread is doing; ``stale`` once one of its blocks changed in its file."""

    start: int
    stop: int
    stale: bool = False


@dataclass(slots=True, eq=False)
class _Limbo:
    """What a failed flush left half done: the next flush completes it first (see :mod:`flush`)."""

    spans: list[Span]
    sets: list[BlockSet]


@dataclass(frozen=True, slots=True)
class RegionStatistics:
    """What a region is doing, for logs and metrics. Sizes in bytes, the rest are counts."""

    extents: int
    extents_dirty: int
    extents_closed: int
    descriptors_open: int
    staged_bytes: int
    staged_bytes_max: int
    context_bytes: int
    blocks_written: int
    blocks_flushed: int
    flushes: int
    flushes_failed: int
    destages: int


class Region:
    """An open region. Made by :meth:`create` or :meth:`open`."""

    def __init__(
        self, path: Path, extents: Extents, definition: RegionDefinition, policy: SyncPolicy, staged_bytes_max: int
    ) -> None:
        rows = max(1, min(staged_bytes_max, 2 * definition.size_bytes) // definition.block_size)
        total = definition.total_blocks
        self.path = path
        self.definition = definition
        self.read_only = extents.read_only
        self.policy = policy
        self._rules = RULES[policy]
        self._extents = extents
        self._storage = extents.storage
        self._block_size = definition.block_size
        self._blocks_per_extent = definition.blocks_per_extent
        self._total = total
        self._contexts = ContextTable(total, CONTEXT_BYTES_MAX)
        self._staging = Staging(total, definition.block_size, rows if self._rules.staged else 1)
        self._inplace = InPlace(extents, self._contexts, self._rules)
        self._redo = (
            redo.RedoFile(extents.storage, path, definition.block_size, self._staging.rows)
            if self._rules.staged and not self.read_only and redo.needs_redo(definition.block_size)
            else None
        )
        self._staged_view = memoryview(self._staging.rows).cast("B")
        self._zeros = bytes(definition.block_size)
        self._lock = Lock()
        self._readings: list[_Reading] = []
        self._legacy: dict[int, ExtentView] = {}
        self._work: StagedFlush | InPlaceFlush | None = None
        self._limbo: _Limbo | None = None
        self._lock_descriptor: int | None = None
        self._any_closed = False
        self._open = True
        self._counts = dict.fromkeys(("written", "flushed", "flushes", "failed", "destages", "learnt"), 0)

    @classmethod
    def create(
        cls,
        path: Path | str,
        definition: RegionDefinition,
        *,
        policy: SyncPolicy = SyncPolicy.STAGED,
        storage: Storage | None = None,
        staged_bytes_max: int = STAGED_BYTES_MAX,
    ) -> Region:
        """Make a region of zeros and open it read-write.

        ``path`` is a directory that does not exist or holds no region. Raises :class:`UsageError` or
        :class:`errors.IoError`; then nothing half-made stays.
        """
        storage = storage or OsStorage()
        directory.create(storage, Path(path), definition)
        return cls.open(path, policy=policy, storage=storage, staged_bytes_max=staged_bytes_max)

    @classmethod
    def open(
        cls,
        path: Path | str,
        *,
        read_only: bool = False,
        policy: SyncPolicy = SyncPolicy.STAGED,
        storage: Storage | None = None,
        staged_bytes_max: int = STAGED_BYTES_MAX,
    ) -> Region:
        """Open the region in ``path`` (on-disk-format.md §1.5); a read-only open changes nothing there.

        Raises :class:`UsageError` where there is no region or another process has it open read-write, a
        CrucibleError where an extent cannot be opened.
        """
        storage, path = storage or OsStorage(), Path(path)
        definition = directory.read_definition(storage, path)
        lock = None if read_only else _take_lock(storage, path)
        extents = Extents(storage, path, definition, read_only)
        try:
            region = cls(path, extents, definition, policy, staged_bytes_max)
            region._load()
        except BaseException:
            extents.close()
            if lock is not None:
                storage.close(lock)
            raise
        region._lock_descriptor = lock
        return region

    def _load(self) -> None:
        try:
            with_leftovers = _extents_with_leftovers(self._storage, self.path, self._extents.count)
            for extent_id, names in with_leftovers.items():
                geometry = self._extents.layout
                repair_files.settle_leftovers(self._storage, self.path, extent_id, geometry, self.read_only)
                if self.read_only and any(name.endswith(".db") for name in names):
                    self._open_legacy(extent_id)
            if not self.read_only:
                # What an earlier process wrote may still be on its way to the disk; nothing is believed before it is
                # there. The real program syncs each extent (§2.8).
                self._storage.sync_tree(self.path)
                redo.replay(self._extents)
        except OSError as error:
            raise explain(error, "opening the region", self.path) from error
        for extent_id in range(self._extents.count):
            if extent_id not in self._legacy:
                self._extents.open_one(extent_id)

    def _open_legacy(self, extent_id: int) -> None:
        """An old SQLite extent, opened read-only: its contexts come from its database (§3)."""
        extents = self._extents
        path = layout.extent_path(self.path, extent_id)
        view = self._legacy[extent_id] = open_extent(self._storage, path, extent_id, extents.layout)
        extents.gen_number[extent_id] = view.metadata.gen_number
        extents.flush_number[extent_id] = view.metadata.flush_number
        extents.dirty[extent_id] = view.metadata.dirty

    def close(self) -> None:
        """Close the files. Nothing is flushed: staged writes are gone, as after a crash of the process."""
        if not self._open:
            return
        self._open = False
        for view in self._legacy.values():
            view.close()
        self._extents.close()
        if self._lock_descriptor is not None:
            self._storage.close(self._lock_descriptor)

    def __enter__(self) -> Region:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- reading

    def read_cached(self, start: int, count: int, out: memoryview) -> BlockContexts | None:
        """Fill ``out`` with blocks ``start .. start + count`` and return their contexts, if no disk is needed.

        ``out`` is writable memory of ``count`` * block size bytes. ``None``: the device would have to be waited for;
        call :meth:`read` in a thread, ``out`` may hold anything. Raises :class:`errors.OffsetInvalid`,
        :class:`errors.IoError`, :class:`errors.BadContextSlot`.
        """
        self._check_range(start, count)
        if count == 0:
            return BlockContexts.empty(0)
        if not self._know(start, count, wait=False):
            return None
        if self._rules.defragment:
            self._inplace.count_access(start, count)
        span = slice(start, start + count)
        rows, kinds = self._staging.row_of_block[span], self._contexts.kind[span]
        if not self._fill(start, out, rows, kinds, wait=False):
            return None
        return self._contexts.get(span)

    def read(self, start: int, count: int, out: memoryview) -> BlockContexts:
        """As :meth:`read_cached`, but waits for the device. For any thread."""
        self._check_range(start, count)
        if count == 0:
            return BlockContexts.empty(0)
        while True:
            with self._reading(start, count) as note:
                contexts = self._read_once(start, count, out)
            if not note.stale:
                if self._rules.defragment:
                    with self._lock:
                        self._inplace.count_access(start, count)
                return contexts

    def _read_once(self, start: int, count: int, out: memoryview) -> BlockContexts:
        span = slice(start, start + count)
        with self._lock:
            rows = self._staging.row_of_block[span].copy()
            kinds = self._contexts.kind[span].copy()
            known = bool(kinds.all())
            contexts = self._contexts.get(span) if known else None
        if contexts is None:
            stored = self._stored_contexts(start, count)
            with self._lock:
                self._contexts.learn(start, stored)
                contexts = self._contexts.get(span)
                rows = self._staging.row_of_block[span].copy()
                kinds = self._contexts.kind[span].copy()
        self._fill(start, out, rows, kinds, wait=True)
        return contexts

    def written(self, start: int, count: int) -> npt.NDArray[np.bool_]:
        """Which blocks have a context, bool[count]; the others were never written. May wait for the device."""
        self._check_range(start, count)
        self._know(start, count, wait=True)
        return self._contexts.kind[start : start + count] != KNOWN_EMPTY

    def _fill(
        self, start: int, out: memoryview, rows: npt.NDArray[np.uint32], kinds: npt.NDArray[np.uint8], *, wait: bool
    ) -> bool:
        """Bring each block from where it is; False if that would take waiting and ``wait`` is not set."""
        count = len(rows)
        source = np.where(rows != 0, FROM_STAGING, np.where(kinds == KNOWN_EMPTY, FROM_NOWHERE, FROM_FILE))
        out_rows = np.frombuffer(out, np.uint8).reshape(count, self._block_size)
        view = memoryview(out).cast("B")
        for first, last, origin in equal_runs(source):
            if origin == FROM_STAGING:
                np.take(self._staging.rows, rows[first:last], axis=0, out=out_rows[first:last])
            elif origin == FROM_NOWHERE:
                out_rows[first:last] = 0
            else:
                part = view[first * self._block_size : last * self._block_size]
                if not self._fill_from_files(start + first, last - first, part, wait=wait):
                    return False
        return True

    def _fill_from_files(self, start: int, count: int, out: memoryview, *, wait: bool) -> bool:
        done = 0
        for extent_id, first, length in split_at_extents(start, count, self._blocks_per_extent):
            part = out[done : done + length * self._block_size]
            done += len(part)
            try:
                if wait:
                    with self._extents.own_descriptor(extent_id) as descriptor:
                        self._extents.read_data(descriptor, part, first)
                    continue
                descriptor = self._extents.descriptors.get(extent_id)
                got = self._storage.preadv_nowait(descriptor, [part], first * self._block_size)
                if got != len(part):
                    return False
            except OSError as error:
                raise self._explain(error, extent_id) from error
        return True

    def _know(self, start: int, count: int, *, wait: bool) -> bool:
        """Have the contexts of these blocks in the table; False if that would take waiting and ``wait`` is not set."""
        kinds = self._contexts.kind[start : start + count]
        if kinds.all():
            return True
        for block in (np.flatnonzero(kinds == UNKNOWN) + start).tolist():
            if self._contexts.kind[block] == UNKNOWN and not self._learn(block, start + count, wait):
                return False
        return True

    def _learn(self, block: int, stop: int, wait: bool) -> bool:
        """Read the contexts of an unknown block and of some around it into the table."""
        extent_id, inside = divmod(block, self._blocks_per_extent)
        first = inside - inside % LEARN_BLOCKS
        count = min(LEARN_BLOCKS, self._blocks_per_extent - first)
        try:
            stored = self._slots(extent_id, first, count, wait)
        except errors.BadContextSlot:
            # One of the neighbours, perhaps: then this one alone decides.
            stored = self._slots(extent_id, inside, 1, wait)
            first = inside
        if stored is None:
            return False
        with self._lock:
            self._contexts.learn(extent_id * self._blocks_per_extent + first, stored)
        self._counts["learnt"] += 1
        if self._counts["learnt"] % 1024 == 0:
            self._trim()
        return True

    def _stored_contexts(self, start: int, count: int) -> BlockContexts:
        """What the files say of these blocks. For any thread."""
        parts = []
        for extent_id, first, length in split_at_extents(start, count, self._blocks_per_extent):
            found = self._slots(extent_id, first, length, wait=True)
            assert found is not None
            parts.append(found)
        return BlockContexts.concatenate(parts)

    def _slots(self, extent_id: int, first: int, count: int, wait: bool) -> BlockContexts | None:
        """Active contexts of consecutive blocks of an extent from its file; None where it would have to be waited for."""
        legacy = self._legacy.get(extent_id)
        if legacy is not None:
            return legacy.look(first, count).contexts
        extents = self._extents
        with self._lock:
            active = extents.active_range(extent_id, first, count)
        tables = []
        try:
            if wait:
                with extents.own_descriptor(extent_id) as descriptor:
                    for which in (layout.SLOT_A, layout.SLOT_B):
                        tables.append(extents.read_slots(descriptor, which, first, count))
            else:
                descriptor = extents.descriptors.get(extent_id)
                for which in (layout.SLOT_A, layout.SLOT_B):
                    slots = np.empty((count, layout.SLOT_BYTES), np.uint8)
                    part = memoryview(slots).cast("B")
                    got = self._storage.preadv_nowait(descriptor, [part], extents.layout.slot_offset(which, first))
                    if got != len(part):
                        return None
                    tables.append(slots)
        except OSError as error:
            raise self._explain(error, extent_id) from error
        return layout.unpack_slots(np.where(active[:, None], tables[1], tables[0]))

    @contextmanager
    def _reading(self, start: int, count: int) -> Iterator[_Reading]:
        note = _Reading(start, start + count)
        with self._lock:
            self._readings.append(note)
        try:
            yield note
        finally:
            with self._lock:
                self._readings.remove(note)

    def _mark_readings(self, blocks: BlockIndexes) -> None:
        """These blocks change in their files: reads under way must start over. Under the lock."""
        for note in self._readings:
            note.stale = note.stale or bool(((blocks >= note.start) & (blocks < note.stop)).any())

    # --- writing

    def has_room(self, block_count: int) -> bool:
        """Whether :meth:`write` takes that many blocks at once; if not, :meth:`begin_destage` makes room."""
        return not self._rules.staged or self._staging.free_rows >= block_count

    def wants_destage(self) -> bool:
        """Half of the staging room is used and nothing is being flushed: a destage now keeps writes from waiting."""
        return self._work is None and self._rules.staged and 2 * self._staging.free_rows < self._staging.capacity

    def write(self, blocks: BlockIndexes, rows: Rows, contexts: BlockContexts) -> None:
        """Write ``blocks`` (int64[n], no duplicates) with ``rows`` (uint8[n, block size]) and verified ``contexts``.

        Without room and without a flush under way it destages first, which blocks. Raises
        :class:`errors.ModifyingReadOnlyRegion`, :class:`errors.OffsetInvalid`, :class:`errors.IoError`.
        """
        if self.read_only:
            raise errors.ModifyingReadOnlyRegion()
        if len(blocks) == 0:
            return
        self._check_blocks(blocks)
        self._counts["written"] += len(blocks)
        if not self._rules.staged:
            stored_hashes(contexts, rows)
            with self._lock:
                self._mark_readings(blocks)
                self._inplace.write(blocks, rows, contexts)
            return
        if len(blocks) > self._staging.free_rows:
            self._write_in_parts(blocks, rows, contexts)
            return
        if contexts.nonce is not None:
            stored_hashes(contexts, rows)
        spans = self._staging.fill(rows)
        with self._lock:
            self._staging.publish(blocks, spans)
            self._contexts.put(blocks, contexts)

    def write_unwritten(self, blocks: BlockIndexes, rows: Rows, contexts: BlockContexts) -> None:
        """Write those of ``blocks`` that were never written; see :meth:`write`. May wait for the device."""
        if self.read_only:
            raise errors.ModifyingReadOnlyRegion()
        self._check_blocks(blocks)
        for block in blocks.tolist():
            self._know(block, 1, wait=True)
        if self._rules.defragment:
            for start, stop in _stretches(blocks):
                self._inplace.count_access(start, stop - start)
        keep = np.flatnonzero(self._contexts.kind[blocks] == KNOWN_EMPTY)
        if len(keep):
            self.write(blocks[keep], rows[keep], contexts[keep])

    def _write_in_parts(self, blocks: BlockIndexes, rows: Rows, contexts: BlockContexts) -> None:
        if self._work is not None:
            raise RuntimeError("no staging room while a flush runs: ask has_room() and wait for the flush")
        done = 0
        while done < len(blocks):
            if self._staging.free_rows == 0:
                self._run(self.begin_destage())
            part = slice(done, done + self._staging.free_rows)
            self.write(blocks[part], rows[part], contexts[part])
            done = part.stop

    # --- flushing

    def begin_flush(self, flush_number: int, gen_number: int, extent_limit: int | None = None) -> FlushWork:
        """Take along everything written so far; :meth:`FlushWork.run` it, then :meth:`finish_flush`.

        ``extent_limit``: only extents of at most that id. Raises :class:`errors.InvalidExtent` for a limit beyond the
        number of extents (that number itself is accepted, as in the real program, §4.5),
        :class:`errors.ModifyingReadOnlyRegion` for dirty extents of a read-only region, RuntimeError while another
        flush runs.
        """
        count = self._extents.count
        if extent_limit is not None and not 0 <= extent_limit <= count:
            raise errors.InvalidExtent()
        stop = count if extent_limit is None else min(extent_limit + 1, count)
        return self._begin(0, stop, (flush_number, gen_number))

    def begin_flush_extent(self, extent_id: int, flush_number: int, gen_number: int) -> FlushWork:
        """A flush of one extent (ExtentFlush, ExtentLiveFlushClose)."""
        self._check_extent(extent_id)
        return self._begin(extent_id, extent_id + 1, (flush_number, gen_number))

    def begin_destage(self) -> FlushWork:
        """Move everything staged into the files to free memory; extents stay dirty and keep their numbers."""
        return self._begin(0, self._extents.count, None)

    def _begin(self, first: int, stop: int, numbers: tuple[int, int] | None) -> StagedFlush | InPlaceFlush:
        if self._work is not None:
            raise RuntimeError("one flush at a time: finish or abandon the one that runs")
        extents = self._extents
        if self.read_only and extents.dirty[first:stop].any():
            raise errors.ModifyingReadOnlyRegion()
        chosen = np.zeros(extents.count, np.bool_)
        if numbers is not None:
            chosen[first:stop] = extents.dirty[first:stop]
        if self._rules.staged:
            self._work = self._begin_staged(first, stop, numbers, chosen)
        else:
            self._check_none_closed(chosen)
            self._work = InPlaceFlush(self._inplace, self._lock, np.flatnonzero(chosen), numbers or (0, 0))
        return self._work

    def _begin_staged(
        self, first: int, stop: int, numbers: tuple[int, int] | None, chosen: npt.NDArray[np.bool_]
    ) -> StagedFlush:
        limbo, staging = self._limbo, self._staging
        rows, blocks = staging.live_all()
        if limbo is not None:
            fresh = ~np.isin(rows, np.concatenate([each.rows for each in limbo.sets]))
            rows, blocks = rows[fresh], blocks[fresh]
        extent_ids = blocks // self._blocks_per_extent
        taken = (extent_ids >= first) & (extent_ids < stop)
        whole = bool(taken.all())
        if not whole:
            rows, blocks, extent_ids = rows[taken], blocks[taken], extent_ids[taken]
        sets = [*(limbo.sets if limbo else []), BlockSet(rows, blocks, self._contexts.get(blocks))]
        if numbers is not None:
            for each in sets:
                touched = each.blocks // self._blocks_per_extent
                chosen[touched[(touched >= first) & (touched < stop)]] = True
        self._check_none_closed(chosen)
        self._contexts.touched(blocks)
        spans = [*(limbo.spans if limbo else []), *staging.freeze()]
        work = StagedFlush(
            self._extents, staging, self._redo, sets, np.flatnonzero(chosen), spans, numbers, whole=whole
        )
        work.in_limbo = len(sets) - 1
        return work

    def finish_flush(self, work: FlushWork) -> None:
        """After :meth:`FlushWork.run` succeeded: what it wrote is what the region knows now."""
        current = self._current(work)
        self._counts["flushes" if current.numbers is not None else "destages"] += 1
        if isinstance(current, StagedFlush):
            with self._lock:
                for each in current.sets:
                    self._mark_readings(each.blocks)
                current.take_over()
            self._counts["flushed"] += current.block_count
            self._limbo = None
        self._work = None
        self._trim()

    def abandon_flush(self, work: FlushWork) -> None:
        """After :meth:`FlushWork.run` raised: nothing is lost, the next flush tries everything again."""
        current = self._current(work)
        self._counts["failed"] += 1
        if isinstance(current, StagedFlush):
            self._extents.dirty[list(current.begun)] = True
            if current.in_limbo:
                self._limbo = _Limbo(current.spans, current.sets[: current.in_limbo])
            else:
                self._staging.keep(current.spans)
        self._work = None

    def flush(self, flush_number: int, gen_number: int, extent_limit: int | None = None) -> None:
        """Flush and wait for it."""
        self._run(self.begin_flush(flush_number, gen_number, extent_limit))

    def _run(self, work: FlushWork) -> None:
        try:
            work.run()
        except BaseException:
            self.abandon_flush(work)
            raise
        self.finish_flush(work)

    def _current(self, work: FlushWork) -> StagedFlush | InPlaceFlush:
        if work is not self._work or self._work is None:
            raise RuntimeError("this flush is not the one under way")
        return self._work

    def snapshot(self, name: str) -> Path:
        """Copy the region's files to ``.zfs/snapshot/<name>`` (§5), or find that this was done; the directory.

        For any thread, between :meth:`FlushWork.run` and :meth:`finish_flush` or while no flush runs. What is staged
        is not in it. Raises :class:`errors.ModifyingReadOnlyRegion`, :class:`errors.SnapshotFailed`.
        """
        if self.read_only:
            raise errors.ModifyingReadOnlyRegion()
        return take_snapshot(self.path, name, self.definition, self._storage)

    # --- extents

    def extent_versions(self) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64], npt.NDArray[np.bool_]]:
        """Generation numbers, flush numbers (uint64) and dirty flags (bool) of all extents."""
        extents = self._extents
        dirty = extents.dirty.copy()
        dirty[self._staging.live_all()[1] // self._blocks_per_extent] = True
        return extents.gen_number.copy(), extents.flush_number.copy(), dirty

    def extent_is_closed(self, extent_id: int) -> bool:
        self._check_extent(extent_id, open_only=False)
        return bool(self._extents.closed[extent_id])

    def close_extent(self, extent_id: int) -> tuple[int, int, bool]:
        """Close an extent so that its file can be replaced; ``(gen, flush, dirty)``.

        Nothing is flushed (§4.6), but what is staged goes into the file first, which leaves it dirty. Raises
        :class:`errors.InvalidExtent`, :class:`errors.GenericError` if it is closed.
        """
        self._check_extent(extent_id)
        extents = self._extents
        first = extent_id * self._blocks_per_extent
        span = slice(first, first + self._blocks_per_extent)
        if self._work is not None and (extent_id in self._work.extent_ids() or self._staging.row_of_block[span].any()):
            raise RuntimeError(f"extent {extent_id} is being flushed: finish that first")
        if self._limbo is not None or self._staging.row_of_block[span].any():
            self._run(self._begin(extent_id, extent_id + 1, None))
        with self._lock:
            self._mark_readings(np.arange(span.start, span.stop))
            self._contexts.forget(span)
        self._inplace.forget(extent_id)
        extents.descriptors.forget(extent_id)
        extents.closed[extent_id] = self._any_closed = True
        return int(extents.gen_number[extent_id]), int(extents.flush_number[extent_id]), bool(extents.dirty[extent_id])

    def reopen_extent(self, extent_id: int) -> None:
        """Open a closed extent again, a finished repair included (§4.6)."""
        self._check_extent(extent_id, open_only=False)
        extents = self._extents
        if self.read_only:
            raise errors.ModifyingReadOnlyRegion()
        if not extents.closed[extent_id]:
            raise errors.GenericError(f"extent {extent_id} is open: close it before reopening it")
        path = layout.extent_path(self.path, extent_id)
        try:
            repair_files.settle_leftovers(self._storage, self.path, extent_id, extents.layout, False)
            with extents.own_descriptor(extent_id) as descriptor:
                self._storage.fsync(descriptor)
        except OSError as error:
            raise explain(error, "reopening the extent", path) from error
        with self._lock:
            extents.open_one(extent_id)
            self._contexts.forget(slice(extent_id * self._blocks_per_extent, (extent_id + 1) * self._blocks_per_extent))
        extents.closed[extent_id] = False
        self._any_closed = bool(extents.closed.any())

    def reopen_all_extents(self) -> None:
        """Open every closed extent again, as a promotion to active does."""
        for extent_id in np.flatnonzero(self._extents.closed).tolist():
            self.reopen_extent(extent_id)

    def statistics(self) -> RegionStatistics:
        """Counts since the region was opened, and sizes now."""
        extents, counts = self._extents, self._counts
        return RegionStatistics(
            extents=extents.count,
            extents_dirty=int(np.count_nonzero(self.extent_versions()[2])),
            extents_closed=int(np.count_nonzero(extents.closed)),
            descriptors_open=len(extents.descriptors),
            staged_bytes=self._staging.used_rows * self._block_size,
            staged_bytes_max=self._staging.capacity * self._block_size,
            context_bytes=self._contexts.size_bytes,
            blocks_written=counts["written"],
            blocks_flushed=counts["flushed"],
            flushes=counts["flushes"],
            flushes_failed=counts["failed"],
            destages=counts["destages"],
        )

    # --- checks

    def _check_range(self, start: int, count: int) -> None:
        if start < 0 or count < 0 or start + count > self._total:
            raise errors.OffsetInvalid()
        if self._any_closed and count:
            first, last = start // self._blocks_per_extent, (start + count - 1) // self._blocks_per_extent
            closed = np.flatnonzero(self._extents.closed[first : last + 1])
            if len(closed):
                raise _closed(first + int(closed[0]))

    def _check_blocks(self, blocks: BlockIndexes) -> None:
        if len(blocks) and int(blocks.view(np.uint64).max()) >= self._total:
            raise errors.OffsetInvalid()
        if self._any_closed:
            extent_ids = blocks // self._blocks_per_extent
            closed = extent_ids[self._extents.closed[extent_ids]]
            if len(closed):
                raise _closed(int(closed[0]))

    def _check_extent(self, extent_id: int, *, open_only: bool = True) -> None:
        if not 0 <= extent_id < self._extents.count:
            raise errors.InvalidExtent()
        if open_only and self._extents.closed[extent_id]:
            raise _closed(extent_id)

    def _check_none_closed(self, chosen: npt.NDArray[np.bool_]) -> None:
        closed = np.flatnonzero(chosen & self._extents.closed)
        if len(closed):
            raise _closed(int(closed[0]))

    def _trim(self) -> None:
        with self._lock:
            self._contexts.trim(self._staging.live_all()[1])

    def _explain(self, error: OSError, extent_id: int) -> CrucibleError:
        if error.errno == errno.EIO and not error.filename:
            return explain(error, "reading the extent", layout.extent_path(self.path, extent_id))
        return explain(error, "reading the extent", layout.extent_path(self.path, extent_id))


def _closed(extent_id: int) -> CrucibleError:
    return errors.GenericError(f"extent {extent_id} is closed: reopen it first")


def _take_lock(storage: Storage, path: Path) -> int:
    try:
        descriptor = storage.lock(path)
    except OSError as error:
        raise explain(error, "locking the region", path) from error
    if descriptor is None:
        raise UsageError(f"the region in {path} is open read-write elsewhere: stop that process, or open it read-only")
    return descriptor


def _stretches(blocks: BlockIndexes) -> list[tuple[int, int]]:
    """Half-open runs of blocks that are consecutive in the order given."""
    cuts = [0, *(np.flatnonzero(np.diff(blocks) != 1) + 1).tolist(), len(blocks)]
    return [(int(blocks[a]), int(blocks[b - 1]) + 1) for a, b in zip(cuts, cuts[1:]) if b > a]


def _extents_with_leftovers(storage: Storage, path: Path, count: int) -> dict[int, list[str]]:
    """Extents beside which there is more than their file, and the names of that."""
    found: dict[int, list[str]] = {}
    for first in range(0, count, 4096):
        parent = layout.extent_path(path, first).parent
        try:
            names = storage.names(parent)
        except FileNotFoundError:
            continue  # opening the first of these extents says that it is missing
        for name in names:
            stem, dot, _ = name.partition(".")
            if dot and len(stem) == 3 and set(stem) <= set("0123456789ABCDEF"):
                extent_id = first + int(stem, 16)
                if extent_id < count:
                    found.setdefault(extent_id, []).append(name)
    return found
