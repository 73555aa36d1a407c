"""A region: the part of a disk that one Downstairs keeps, as a directory of extent files.

What it is for: everything above asks a :class:`Region` for blocks by their number in the region and never sees a file.
Reads and writes take whole batches; a batch is a handful of array operations whatever extents it touches.

What it guarantees (with the default policy, :mod:`policy`):

* a read returns the newest write of each block, flushed or not, with the context that came with it;
* when :meth:`Region.finish_flush` returns, everything written before :meth:`Region.begin_flush` is durable;
* whatever the machine does, the directory opens again, here and in the real program: each block whole, as new as the
  last flush or newer, and no extent called clean that is not.

Threads: all methods belong to one thread, the loop's, but for :meth:`FlushWork.run`, :meth:`Region.read`,
:meth:`Region.reopen_extent` and :meth:`Region.snapshot`. While a flush runs, the loop goes on reading and writing; only
one flush runs at a time.

    work = region.begin_flush(flush_number, generation)     # takes along what was written so far
    try:
        await trio.to_thread.run_sync(work.run)             # all the I/O
    except CrucibleError:
        region.abandon_flush(work)                          # nothing is lost, the next flush does it again
    else:
        region.finish_flush(work)
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from threading import Lock

import numpy as np
import numpy.typing as npt

from crucible_emu import errors
from crucible_emu.geometry import BlockIndexes, RegionDefinition, as_slice
from crucible_emu.integrity import BlockContexts, Proofs, Rows
from crucible_emu.region import directory, layout, redo, repair_files
from crucible_emu.region.bounds import Bounds
from crucible_emu.region.contexts import KNOWN_EMPTY, ContextTable
from crucible_emu.region.extent import Extents, Versions
from crucible_emu.region.flush import FlushWork
from crucible_emu.region.inplace import InPlaceWriter, stretches
from crucible_emu.region.journal import Journal
from crucible_emu.region.opening import load
from crucible_emu.region.policy import RULES, SyncPolicy
from crucible_emu.region.reading import Reader
from crucible_emu.region.sharing import SharedTables, shareable
from crucible_emu.region.snapshot import take_snapshot
from crucible_emu.region.staging import Staging
from crucible_emu.region.statistics import RegionStatistics
from crucible_emu.region.storage import OsStorage, Storage, explain
from crucible_emu.region.writing import Numbers, StagedWriter, Work, Writer

STAGED_BYTES_MAX = min(1 << 30, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 16)
"""Memory for un-flushed blocks: one GiB, or a sixteenth of the machine's if that is less. The more there is, the more
of what is written again and again reaches the disk but once."""
CONTEXT_BYTES_MAX = 128 * 1024 * 1024
"""Memory for contexts that could be read from the files again."""


class Region:
    """An open region. Made by :meth:`create` or :meth:`open`; a context manager that closes it."""

    definition: RegionDefinition
    path: Path
    read_only: bool
    policy: SyncPolicy
    shared: SharedTables | None
    """What other processes on this machine may look into, where they may."""

    def __init__(
        self,
        extents: Extents,
        definition: RegionDefinition,
        policy: SyncPolicy,
        staged_bytes_max: int,
        shared: SharedTables | None,
    ) -> None:
        """For :meth:`open`."""
        rules, total, block_size = RULES[policy], definition.total_blocks, definition.block_size
        # Twice the disk is enough: every block once in the flush under way, and once written since.
        rows = max(1, min(staged_bytes_max // block_size, 2 * total)) if rules.staged else 0
        self.path, self.read_only = extents.path, extents.read_only
        self.definition = definition
        self.policy = policy
        self._extents = extents
        self._storage = extents.storage
        self._blocks_per_extent = definition.blocks_per_extent
        self._bounds = Bounds(extents)
        within = None if shared is None else shared.file
        self._contexts = ContextTable(total, CONTEXT_BYTES_MAX, within)
        self._staging = Staging(total, block_size, rows, within=within)
        self.shared = shared
        if shared is not None:
            shared.complete({**self._contexts.offsets, **self._staging.offsets}, rows + 1)
        lock = Lock()
        self._reader = Reader(extents, self._contexts, self._staging, lock)
        self._inplace: InPlaceWriter | None = None
        self._writer: Writer
        if rules.staged:
            needed = redo.needs_redo(block_size) and not self.read_only
            twice = redo.RedoFile(self._storage, self.path, block_size, self._staging.rows) if needed else None
            journal = Journal(self._storage, self.path, definition, self._staging.rows.data.cast("B"))
            self._writer = StagedWriter(extents, self._contexts, self._staging, self._reader, lock, twice, journal)
        else:
            self._writer = self._inplace = InPlaceWriter(extents, self._contexts, self._reader, lock, rules)
        self._lock = lock
        # Counts of scattered accesses are part of the bytes only where extents are defragmented (§2.7).
        self._counter = self._inplace if rules.defragment else None
        self._lock_descriptor: int | None = None
        self._work: Work | None = None
        self._is_open = True
        self._written = self._flushed = self._flushes = self._failed = self._destages = 0

    @property
    def storage(self) -> Storage:
        """The disk that holds it; who copies extents of this region must use the same."""
        return self._storage

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
        storage, path = storage or OsStorage(), Path(path)
        made_directory = directory.create(storage, path, definition)
        try:
            return cls.open(path, policy=policy, storage=storage, staged_bytes_max=staged_bytes_max)
        except BaseException:
            directory.undo(storage, path, made_directory)
            raise

    @classmethod
    def open(
        cls,
        path: Path | str,
        *,
        read_only: bool = False,
        policy: SyncPolicy = SyncPolicy.STAGED,
        storage: Storage | None = None,
        staged_bytes_max: int = STAGED_BYTES_MAX,
        share: bool = False,
    ) -> Region:
        """Open the region in ``path`` (on-disk-format.md §1.5); a read-only open changes nothing there.

        ``staged_bytes_max`` bounds the memory for un-flushed blocks. ``share``: other processes on this machine may be
        let read it, where that is possible (:mod:`sharing`). Raises :class:`UsageError` where there is no
        region or another process has it open read-write, a CrucibleError where an extent cannot be opened.
        """
        storage, path = storage or OsStorage(), Path(path)
        definition, marked = directory.read_marked_definition(storage, path)
        lock = None if read_only else directory.take_lock(storage, path)
        extents = Extents(storage, path, definition, read_only)
        shared: SharedTables | None = None
        try:
            try:
                shared = SharedTables(definition) if share and shareable(definition, policy, read_only) else None
                region = cls(extents, definition, policy, staged_bytes_max, shared)
            except OSError as error:
                raise explain(error, "making the memory for", path) from error
            load(extents, region._reader, definition, marked=marked)
        except BaseException:
            extents.close()
            if shared is not None:
                shared.close()
            if lock is not None:
                storage.close(lock)
            raise
        region._lock_descriptor = lock
        return region

    def close(self) -> None:
        """Close the files. Nothing is flushed: staged writes are gone, as after a crash of the process, and a journal
        stays for the next open; :meth:`settle` first, to leave an ordinary directory.

        No flush may be running in a thread; one that begins to after this raises RuntimeError.
        """
        if not self._is_open:
            return
        self._is_open = False
        if self.shared is not None:
            self.shared.close()
        for view in self._reader.legacy.values():
            view.close()
        self._writer.close()
        self._extents.close()
        if self._lock_descriptor is not None:
            self._storage.close(self._lock_descriptor)

    def __enter__(self) -> Region:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- reading

    def read_cached(self, start: int, count: int, out: memoryview) -> BlockContexts | None:
        """Fill ``out`` with blocks ``start .. start + count`` and return their contexts, if no device is needed.

        ``out`` is writable memory of ``count`` * block size bytes. ``None``: the device would have to be waited for;
        call :meth:`read` in a thread. ``out`` may hold anything then. Raises :class:`errors.OffsetInvalid`,
        :class:`errors.IoError`, :class:`errors.BadContextSlot`.
        """
        self._bounds.check_range(start, count)
        if count == 1:
            contexts = self._reader.read_one_cached(start, _as_bytes(out))
        else:
            contexts = self._reader.read_cached(start, count, _as_bytes(out))
        if self._counter is not None and contexts is not None:
            self._counter.count_access(start, count)
        return contexts

    def read_blocks_cached(self, blocks: Sequence[int], outs: Sequence[memoryview]) -> tuple[BlockContexts, list[int]]:
        """Many single blocks in one call: ``blocks[i]`` into ``outs[i]`` (``memoryview`` of bytes, one block long).

        Returns the contexts, and the positions i that would have to wait for the device: read those with :meth:`read`;
        their contexts say EMPTY here and mean nothing. Raises as :meth:`read_cached`.
        """
        for block in blocks:
            self._bounds.check_range(block, 1)
        found = self._reader.read_blocks_cached(blocks, outs)
        if self._counter is not None:
            for block in blocks:
                self._counter.count_access(block, 1)
        return found

    def read_singles(self, blocks: Sequence[int], outs: Sequence[memoryview]) -> list[int] | None:
        """Many single blocks, where each is at hand and plain or never written: the XXH64 that each must have. ``None``
        where :meth:`read_blocks_cached` is the way. ``blocks`` are within the region."""
        if self._bounds.any_closed or self._counter is not None:
            return None
        return self._reader.read_singles(blocks, outs)

    def read_sealed(self, blocks: Sequence[int], outs: Sequence[memoryview]) -> list[bytes | None] | None:
        """The same where each is at hand and encrypted or never written: nonce and tag of each, ``None`` of those."""
        if self._bounds.any_closed or self._counter is not None:
            return None
        return self._reader.read_sealed(blocks, outs)

    def read(self, start: int, count: int, out: memoryview) -> BlockContexts:
        """As :meth:`read_cached`, but waits for the device. For any thread."""
        self._bounds.check_range(start, count)
        contexts = self._reader.read(start, count, _as_bytes(out))
        if self._counter is not None:
            self._counter.count_access(start, count)
        return contexts

    def written(self, start: int, count: int) -> npt.NDArray[np.bool_]:
        """Which blocks have a context, bool[count]; the others were never written. May wait for the device."""
        self._bounds.check_range(start, count)
        self._reader.trim_in_time()
        self._reader.know(start, count, wait=True)
        found: npt.NDArray[np.bool_] = self._contexts.kind[start : start + count] != KNOWN_EMPTY
        return found

    # --- writing

    def has_room(self, block_count: int) -> bool:
        """Whether :meth:`write` takes that many blocks at once; if not, :meth:`begin_destage` makes room."""
        free = self._writer.free_blocks()
        return free is None or free >= block_count

    def wants_destage(self) -> bool:
        """Half of the staging room is used and nothing is being flushed: a destage now keeps writes from waiting."""
        free = self._writer.free_blocks()
        return free is not None and self._work is None and 2 * free < self._staging.capacity

    def write(self, blocks: BlockIndexes, rows: Rows, contexts: BlockContexts) -> None:
        """Write ``blocks`` (int64[n], no duplicates) with ``rows`` (uint8[n, block size]) and verified ``contexts``.

        Without room it makes some first, which waits for the device; RuntimeError if a flush is under way then. Raises
        :class:`errors.ModifyingReadOnlyRegion`, :class:`errors.OffsetInvalid`, :class:`errors.IoError`.
        """
        if self.read_only:
            raise errors.ModifyingReadOnlyRegion()
        count = len(blocks)
        if count == 0:
            return
        which = as_slice(blocks)
        if isinstance(which, slice):
            self._bounds.check_range(which.start, count)
        else:
            self._bounds.check_blocks(blocks)
        free = self._writer.free_blocks()
        if free is None or count <= free:
            self._writer.write(which, rows, contexts)
        else:
            self._write_in_parts(blocks, rows, contexts)
        self._written += count

    def admits_singles(self, count: int) -> bool:
        """Whether :meth:`write_singles` takes ``count`` blocks at once, whichever they are."""
        return not (self.read_only or self._bounds.any_closed) and self._writer.takes_singles and self.has_room(count)

    def write_singles(self, blocks: Sequence[int], data: Sequence[memoryview], proofs: Proofs) -> None:
        """As :meth:`write` for blocks in range, each with its own data (one block of bytes) and what proves that. Of a
        block that is named twice the last counts. Only where :meth:`admits_singles` says so."""
        self._writer.write_singles(blocks, data, proofs)
        self._written += len(blocks)

    def write_unwritten(self, blocks: BlockIndexes, rows: Rows, contexts: BlockContexts) -> None:
        """Write those of ``blocks`` that were never written; see :meth:`write`. May wait for the device."""
        if self.read_only:
            raise errors.ModifyingReadOnlyRegion()
        if len(blocks) == 0:
            return
        self._bounds.check_blocks(blocks)
        self._reader.know_blocks(blocks)
        if self._counter is not None:
            for start, stop in stretches(blocks):
                self._counter.count_access(start, stop - start)
        keep = np.flatnonzero(self._contexts.kind[blocks] == KNOWN_EMPTY)
        if len(keep):
            self.write(blocks[keep], rows[keep], contexts[keep])

    def _write_in_parts(self, blocks: BlockIndexes, rows: Rows, contexts: BlockContexts) -> None:
        if self._work is not None:
            raise RuntimeError("no staging room while a flush runs: ask has_room() and wait for the flush")
        done = 0
        while done < len(blocks):
            free = self._writer.free_blocks() or 0
            if free == 0:
                self._run(self.begin_destage())
            part = np.arange(done, min(done + free, len(blocks)))
            self._writer.write(as_slice(blocks[part]), rows[part], contexts[part])
            done += len(part)

    # --- flushing

    def begin_flush(
        self, flush_number: int, gen_number: int, extent_limit: int | None = None, *, journal: bool = False
    ) -> FlushWork:
        """Take along everything written so far: run the result, then :meth:`finish_flush` or :meth:`abandon_flush`.

        ``journal``: where it may, the flush goes to the journal instead of the extents, which is faster, and one to
        the extents is due before long (:meth:`begin_destage` or another flush); see :mod:`journal`.
        ``extent_limit``: only extents of at most that id; more than the number of extents raises
        :class:`errors.InvalidExtent` (that number itself is accepted, as by the real program, §4.5). Extents that are
        clean keep their numbers. Raises :class:`errors.ModifyingReadOnlyRegion` for dirty extents of a read-only
        region, :class:`errors.GenericError` for closed dirty ones, RuntimeError while another flush is under way.
        """
        count = self._extents.count
        if extent_limit is not None and not 0 <= extent_limit <= count:
            raise errors.InvalidExtent()
        stop = count if extent_limit is None else min(extent_limit + 1, count)
        return self._begin(0, stop, (flush_number, gen_number), journal=journal)

    def begin_flush_extent(self, extent_id: int, flush_number: int, gen_number: int) -> FlushWork:
        """A flush of one extent (ExtentFlush, ExtentLiveFlushClose)."""
        self._bounds.check_extent(extent_id)
        return self._begin(extent_id, extent_id + 1, (flush_number, gen_number))

    def begin_destage(self) -> FlushWork:
        """Move everything staged into the files to free memory; extents stay dirty and keep their numbers. If there is
        a journal, what that holds, and only that: those extents are clean afterwards, and the journal is gone."""
        return self._begin(0, self._extents.count, None)

    @property
    def is_settled(self) -> bool:
        """Whether the extents hold everything that was flushed, and there is no journal."""
        return self._writer.is_settled

    def settle(self) -> None:
        """Carry the journal, if there is one, to the extents, and wait for it: the directory is an ordinary one then.

        RuntimeError while a flush is under way. Raises :class:`errors.IoError`; the journal stays then."""
        if not self.is_settled:
            self._run(self.begin_destage())

    def _begin(self, first: int, stop: int, numbers: Numbers | None, *, journal: bool = False) -> Work:
        if self._work is not None:
            raise RuntimeError("one flush at a time: finish or abandon the one that is under way")
        if self.read_only and self._extents.dirty[first:stop].any():
            raise errors.ModifyingReadOnlyRegion()
        self._work = self._writer.begin(first, stop, numbers, journal=journal)
        return self._work

    @property
    def flush_under_way(self) -> bool:
        """Whether the files are between two flushes' contents this instant."""
        return self._work is not None

    def finish_flush(self, work: FlushWork) -> None:
        """After :meth:`FlushWork.run` succeeded: what it wrote is what the region knows from now on."""
        current = self._current(work)
        self._writer.finish(current)
        self._flushed += current.block_count
        if current.numbers is None:
            self._destages += 1
        else:
            self._flushes += 1
        self._work = None
        self._reader.trim()

    def abandon_flush(self, work: FlushWork) -> None:
        """After :meth:`FlushWork.run` raised: nothing is lost, the next flush does it all again."""
        self._writer.abandon(self._current(work))
        self._failed += 1
        self._work = None

    def flush(self, flush_number: int, gen_number: int, extent_limit: int | None = None) -> None:
        """Flush and wait for it; see :meth:`begin_flush`."""
        self._run(self.begin_flush(flush_number, gen_number, extent_limit))

    def _run(self, work: FlushWork) -> None:
        try:
            work.run()
        except BaseException:
            self.abandon_flush(work)
            raise
        self.finish_flush(work)

    def _current(self, work: FlushWork) -> Work:
        if self._work is None or work is not self._work:
            raise RuntimeError("this flush is not the one under way")
        return self._work

    def snapshot(self, name: str) -> Path:
        """Copy the region's files to ``.zfs/snapshot/<name>`` (§5), or find that this was done; the directory.

        For any thread, between :meth:`FlushWork.run` and :meth:`finish_flush` or while no flush is under way; under an
        immediate policy no write may be under way either. What is staged is not in it. Raises
        :class:`errors.ModifyingReadOnlyRegion`, :class:`errors.SnapshotFailed`.
        """
        if self.read_only:
            raise errors.ModifyingReadOnlyRegion()
        if not self.is_settled:
            raise errors.SnapshotFailed(f"{name}: the extents lag behind the journal; flush without it first")
        return take_snapshot(self.path, name, self.definition, self._storage)

    # --- extents

    def extent_versions(self) -> Versions:
        """Generation numbers, flush numbers (uint64) and dirty flags (bool) of all extents."""
        return self._writer.versions()

    @property
    def all_open(self) -> bool:
        """Whether no extent is closed."""
        return not self._bounds.any_closed

    def extent_is_closed(self, extent_id: int) -> bool:
        self._bounds.check_extent(extent_id, closed_too=True)
        return bool(self._extents.closed[extent_id])

    def close_extent(self, extent_id: int) -> tuple[int, int, bool]:
        """Close an extent so that its file can be replaced; ``(generation, flush number, dirty)``.

        Nothing is flushed (§4.6), but what is staged goes into the file first, which leaves it dirty; that waits for
        the device. Raises :class:`errors.InvalidExtent`, :class:`errors.GenericError` if it is closed,
        :class:`errors.IoError`, RuntimeError while a flush of this extent is under way.
        """
        self._bounds.check_extent(extent_id)
        extents, span = self._extents, self._blocks_of(extent_id)
        holds = self._writer.holds(span.start, span.stop)
        if self._work is not None and (holds or extent_id in self._work.extent_ids()):
            raise RuntimeError(f"extent {extent_id} is being flushed: finish that first")
        while self._writer.holds(span.start, span.stop):  # twice, where there is a journal
            self._run(self._begin(extent_id, extent_id + 1, None))
        if self.shared is not None:
            self.shared.revoke()  # *Safety*: before another file may be in its place
        with self._lock:
            self._reader.mark(np.arange(span.start, span.stop))
            self._contexts.forget(span)
            extents.closed[extent_id] = self._bounds.any_closed = True
        self._writer.forget(extent_id)
        extents.descriptors.forget(extent_id)
        return int(extents.gen_number[extent_id]), int(extents.flush_number[extent_id]), bool(extents.dirty[extent_id])

    def reopen_extent(self, extent_id: int) -> None:
        """Open a closed extent again, with what a repair put in its place (§4.6). A dirty one is read as a whole.

        For any thread: nobody else touches a closed extent. Raises :class:`errors.GenericError` if it is open, and
        whatever opening a region raises for an extent; it stays closed then.
        """
        self._bounds.check_extent(extent_id, closed_too=True)
        extents = self._extents
        if self.read_only:
            raise errors.ModifyingReadOnlyRegion()
        if not extents.closed[extent_id]:
            raise errors.GenericError(f"extent {extent_id} is open: close it before reopening it")
        try:
            repair_files.settle_leftovers(self._storage, self.path, extent_id, extents.layout, False)
        except OSError as error:
            raise explain(error, "reopening the extent", layout.extent_path(self.path, extent_id)) from error
        # *Optimisation*: what was closed clean is on the disk already, and a repair syncs what it puts in its place.
        written_since = extents.dirty[extent_id] or extents.unsynced[extent_id] or extents.suspect[extent_id]
        extents.load([extent_id], durable=not written_since)
        with self._lock:
            self._contexts.forget(self._blocks_of(extent_id))
            extents.closed[extent_id] = False
            self._bounds.any_closed = bool(extents.closed.any())

    def reopen_all_extents(self) -> None:
        """Open every closed extent again, as a promotion to active does."""
        for extent_id in np.flatnonzero(self._extents.closed).tolist():
            self.reopen_extent(extent_id)

    def statistics(self) -> RegionStatistics:
        """Counts since the region was opened, and sizes now."""
        extents, block_size = self._extents, self.definition.block_size
        return RegionStatistics(
            extents=extents.count,
            extents_dirty=int(np.count_nonzero(self._writer.versions()[2])),
            extents_closed=int(np.count_nonzero(extents.closed)),
            descriptors_open=len(extents.descriptors),
            staged_bytes=self._staging.used_rows * block_size,
            staged_bytes_max=self._staging.capacity * block_size,
            context_bytes=self._contexts.size_bytes,
            blocks_written=self._written,
            blocks_flushed=self._flushed,
            flushes=self._flushes,
            flushes_failed=self._failed,
            destages=self._destages,
        )

    def _blocks_of(self, extent_id: int) -> slice:
        return slice(extent_id * self._blocks_per_extent, (extent_id + 1) * self._blocks_per_extent)


def _as_bytes(out: memoryview) -> memoryview:
    return out if type(out) is memoryview and out.format == "B" and out.ndim == 1 else memoryview(out).cast("B")
