"""The guest's disk: a :class:`~crucible_emu.blockio.BlockDevice` in front of one Upstairs (upstairs-volume.md §5).

What it is for: requests that arrive together are admitted together. Consecutive writes become one job: one pass of
hashing (or encryption), one scatter per replica. Reads go to one replica and are verified before anybody sees them;
flushes that come while one is under way share the next.

What it guarantees: a write is acknowledged at admission and visible to every later read; a flush is acknowledged when
two replicas hold everything before it. A block that fails its hash is read from another replica, and the good bytes
are written back (:class:`Healer`) unless the guest has written the block meanwhile.

Admission takes at most 1500 jobs or 75 MiB in progress per replica (§6.13); what comes on top waits here, in order, and
doors are told to stop reading.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import trio

from crucible_emu import errors
from crucible_emu.blockio import Allocation, Completed, Kind, Request
from crucible_emu.geometry import BlockIndexes, equal_runs, spans_to_blocks
from crucible_emu.integrity import EMPTY, BlockContexts, Rows, hash_blocks
from crucible_emu.upstairs.driver import Damage, ReadHandle, Upstairs
from crucible_emu.upstairs.gathered_read import GatheredRead, ReadResult
from crucible_emu.upstairs.group_commit import GroupCommit
from crucible_emu.upstairs.healing import Healer
from crucible_emu.upstairs.live_repair import LiveRepair
from crucible_emu.upstairs.row_memory import LARGE_BYTES
from crucible_emu.upstairs.rules import JobKind
from crucible_emu.upstairs.sealed_writes import SealedWrites
from crucible_emu.upstairs.sealer import Sealer
from crucible_emu.upstairs.single_reads import SingleReads
from crucible_emu.upstairs.single_writes import SingleWrites
from crucible_emu.upstairs.trains import Trains
from crucible_emu.upstairs.zeroing import LargeZeroes

JOBS_IN_PROGRESS_MAX = 1500
BYTES_IN_PROGRESS_MAX = 75 * 1024 * 1024
TRANSFER_BYTES_MAX = 1024 * 1024
"""Largest operation sent to a replica (the real one's MDTS); larger requests are cut."""
ZEROES_BYTES = 4 * 1024 * 1024
"""Zeros are written in pieces of this size, with a checkpoint between: a large request must not stall others."""
ALLOCATION_BLOCKS_MAX = 65536


class Guest:
    """The disk of an active Upstairs. Start :meth:`run` in a nursery: it does the work that takes many steps."""

    def __init__(self, upstairs: Upstairs) -> None:
        definition = upstairs.core.definition
        if definition is None:
            raise errors.PropertyNotAvailable("the size, before a Downstairs has answered")
        self.upstairs = upstairs
        self.definition = definition
        self.healer = Healer(self)
        self._core = upstairs.core
        self._block_size = definition.block_size
        self._shift = definition.shift
        self._size_bytes = definition.size_bytes
        self._trains = Trains(definition.block_size, definition.size_bytes)
        cipher = upstairs.cipher
        copies = None if upstairs.in_process else upstairs.row_memory
        self._sealer = None if cipher is None else Sealer(cipher, self._block_size, copies=copies)
        self._sealed_writes = None if self._sealer is None else SealedWrites(self._sealer, self._enter_sealed)
        self._backlog: deque[tuple[list[Request], Completed]] = deque()
        self._room = trio.Event()
        self._room.set()
        self._flush = GroupCommit(upstairs).flush
        self._zero_hash = hash_blocks(np.zeros((1, self._block_size), np.uint8))
        self._large_zeroes = LargeZeroes(self, ZEROES_BYTES)
        self._single_reads = SingleReads(upstairs, self.read_later)
        self._single_writes = SingleWrites(upstairs, self._sealer, self._writes_are_watched)
        self._admitting = False
        upstairs.on_progress = self._progress
        upstairs.on_damage = self.healer.damaged

    # -- what a door asks ---------------------------------------------------------------------------------------------

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    @property
    def block_size(self) -> int:
        return self._block_size

    @property
    def read_only(self) -> bool:
        return self._core.identity.read_only

    def submit(self, requests: list[Request], completed: Completed) -> None:
        """Admit ``requests`` in order; see :class:`~crucible_emu.blockio.BlockDevice`."""
        if self._backlog or not self._has_room():
            self._backlog.append((requests, completed))
            self._progress()
        else:
            self._admit(requests, completed)

    def read_singles(self, offsets: Sequence[int], outs: Sequence[memoryview]) -> bool:
        """See :class:`~crucible_emu.blockio.SinglesDevice`. *Safety*: what waits for admission may be writes, which
        this must not pass."""
        return not self._backlog and not self._seals() and self._single_reads.read_now(offsets, outs)

    def write_singles(self, offsets: Sequence[int], data: Sequence[memoryview]) -> bool:
        """See :class:`~crucible_emu.blockio.SinglesDevice`."""
        return not self._is_full() and not self._seals() and self._single_writes.write_now(offsets, data)

    def payload_memory(self, length: int) -> memoryview | None:
        """See :class:`~crucible_emu.blockio.PayloadDevice`: where replicas in other processes may look for it."""
        memory = self.upstairs.row_memory
        if self._sealer is not None or length < LARGE_BYTES or not memory.shares:
            return None
        return memory.take(length).data

    async def wait_for_room(self) -> None:
        """Return when nothing waits for admission any more."""
        while self._is_full():
            if self._room.is_set():
                self._room = trio.Event()
            await self._room.wait()

    async def allocation(self, offset: int, length: int) -> list[Allocation]:
        """Runs of written (depth 1) and never written (depth 0) bytes."""
        start, count = offset >> self._shift, min(length >> self._shift, ALLOCATION_BLOCKS_MAX)
        written = self.written(start, count)
        if written is None:
            count = min(count, TRANSFER_BYTES_MAX >> self._shift)
            contexts = await self.read_contexts(start, count)
            written = contexts.kind != EMPTY
        return [
            Allocation((stop - begin) << self._shift, 1 if present else 0)
            for begin, stop, present in equal_runs(written)
        ]

    def written(self, start: int, count: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]] | None:
        """Which blocks were ever written, when a replica in this process knows; else ``None``."""
        client = self._core.reader(start)
        link = None if client is None else self.upstairs.links[client]
        return None if link is None else link.written(start, count)

    async def read_contexts(self, start: int, count: int) -> BlockContexts:
        """The contexts of these blocks, by a read whose data are dropped. Raises what the read failed with."""
        return (await self.read_blocks(start, count, memoryview(bytearray(count << self._shift)))).contexts_or_empty()

    async def flush(self) -> None:
        """Make everything acknowledged so far durable. Raises what the flush failed with."""
        done = trio.Event()
        request = Request(Kind.FLUSH)
        self.submit([request], lambda _: done.set())
        await done.wait()
        if request.error is not None:
            raise request.error

    # -- admission ----------------------------------------------------------------------------------------------------

    def _has_room(self) -> bool:
        jobs = self._core.jobs
        return max(jobs.jobs_in_progress) < JOBS_IN_PROGRESS_MAX and max(jobs.bytes_in_progress) < BYTES_IN_PROGRESS_MAX

    def _is_full(self) -> bool:
        return bool(self._backlog) or not self._has_room()

    def _seals(self) -> bool:
        """Whether a write is being encrypted, which nothing must pass."""
        return self._sealed_writes is not None and self._sealed_writes.under_way

    def _progress(self) -> None:
        """Something finished: admit what waited, as far as there is room."""
        if self._admitting:
            return  # *Safety*: a batch that is admitted now and finishes something must not be overtaken by the next
        self._admitting = True
        try:
            while self._backlog and self._has_room():
                self._admit(*self._backlog.popleft())
        finally:
            self._admitting = False
        if not self._room.is_set() and not self._is_full():
            self._room.set()

    def _admit(self, requests: list[Request], completed: Completed) -> None:
        self.upstairs.gather()
        try:
            done = self._take(requests, completed)
        finally:
            self.upstairs.send_off()
        if done:
            completed(done)

    def _take(self, requests: list[Request], completed: Completed) -> list[Request]:
        """Admit ``requests``; those that are done already."""
        done: list[Request] = []
        index, total = 0, len(requests)
        sealed = self._sealed_writes
        while index < total:
            request = requests[index]
            kind = request.kind
            stop = index + 1
            if sealed is not None and sealed.under_way and not sealed.may_follow(request):
                sealed.settle()
            if not self._trains.in_range(request):
                request.error = errors.OffsetInvalid()
                done.append(request)
            elif kind is Kind.READ:
                stop = self._single_reads.submit(requests, index, done, completed)
                if stop == index:
                    stop = index + 1
                    self._read(request, done, completed)
            elif kind is Kind.WRITE:
                stop = self._single_writes.submit(requests, index, done)
                if stop == index:
                    stop = self._trains.end(requests, index)
                    self._write(requests[index:stop], done, completed)
            elif kind is Kind.WRITE_UNWRITTEN:
                self._write_unwritten(request, done, completed)
            elif kind is Kind.FLUSH:
                self._flush(request, done, completed)
            else:
                self._zero(request, done, completed)
            index = stop
        return done

    # -- writes -------------------------------------------------------------------------------------------------------

    def _writes_are_watched(self) -> bool:
        """Whether something has to know of each write: a healing, zeros that are still being written."""
        return self.healer.watching or bool(self._large_zeroes.unfinished)

    def _write(self, requests: list[Request], done: list[Request], completed: Completed) -> None:
        """Write a train; or begin to, where it is large and encrypted."""
        error = self._core.admission_error(JobKind.WRITE)
        if error is not None:
            for request in requests:
                request.error = error
            done.extend(requests)
        elif self._sealer is None or self._sealed_writes is None:
            self._enter(requests, self._gather(requests), None, done, completed)
        else:
            payloads = [_payload(request) for request in requests if request.length]
            if not self._sealed_writes.begin(requests, payloads, completed):
                self._enter(requests, *self._sealer.seal(payloads), done, completed)

    def _enter(
        self,
        requests: list[Request],
        rows: Rows,
        contexts: BlockContexts | None,
        done: list[Request],
        completed: Completed,
    ) -> None:
        """Write the rows of a train that was admitted."""
        if self._large_zeroes.unfinished:
            self._large_zeroes.written(requests)
        self.write_rows([(request.offset, request.length) for request in requests if request.length], rows, contexts)
        for request in requests:
            if request.fua:
                self._flush(request, done, completed)
            else:
                done.append(request)

    def _enter_sealed(self, requests: list[Request], rows: Rows, contexts: BlockContexts, completed: Completed) -> None:
        """The same of a train that was begun before; the disk may have gone out of service meanwhile."""
        done: list[Request] = []
        error = self._core.admission_error(JobKind.WRITE)
        if error is None:
            self._enter(requests, rows, contexts, done, completed)
        else:
            for request in requests:
                request.error = error
            done = requests
        if done:
            completed(done)

    def _write_unwritten(self, request: Request, done: list[Request], completed: Completed) -> None:
        """Each replica writes the blocks that it has not written yet; flushes and order are those of a write."""
        request.error = self._core.admission_error(JobKind.WRITE_UNWRITTEN)
        if request.error is None and request.length:
            rows = self._gather([request])
            self.write_rows([(request.offset, request.length)], rows, kind=JobKind.WRITE_UNWRITTEN)
        if request.fua and request.error is None:
            self._flush(request, done, completed)
        else:
            done.append(request)

    def _gather(self, requests: list[Request]) -> Rows:
        """The payloads as rows. One that lies where it can stay is not copied: with replicas in this process, or in
        memory from :meth:`payload_memory`."""
        size = self._block_size
        if len(requests) == 1:
            rows = np.frombuffer(_payload(requests[0]), np.uint8).reshape(-1, size)
            if self.upstairs.in_process or self.upstairs.row_memory.offset_of(rows) is not None:
                return rows
        flat = self.upstairs.row_memory.take(sum(request.length for request in requests))
        at = 0
        for request in requests:
            flat[at : at + request.length] = np.frombuffer(_payload(request), np.uint8)
            at += request.length
        return flat.reshape(-1, size)

    def write_rows(
        self,
        spans: list[tuple[int, int]],
        rows: Rows,
        contexts: BlockContexts | None = None,
        kind: JobKind = JobKind.WRITE,
    ) -> None:
        """Write admitted ``rows`` to disjoint byte ``spans`` as one job; ``contexts`` where they are known already, of
        ciphertext where it is that."""
        if not spans:
            return
        cipher = self.upstairs.cipher
        if cipher is not None and (contexts is None or contexts.nonce is None):
            rows, contexts = cipher.encrypt_blocks(rows)
        elif contexts is None:
            contexts = BlockContexts.plain(hash_blocks(rows))
        shift = self._shift
        starts, lengths = [], []
        for offset, length in spans:
            first, count = offset >> shift, length >> shift
            most = count if self.upstairs.in_process else TRANSFER_BYTES_MAX >> shift
            for begin in range(first, first + count, most):
                starts.append(begin)
                lengths.append(min(most, first + count - begin))
        if self.healer.watching:
            self.healer.written(starts, lengths)
        if self._core.repair is None:
            self._write_job(kind, starts, lengths, spans_to_blocks(starts, lengths), rows, contexts)
        else:
            self._write_beside_repair(self._core.repair, kind, list(zip(starts, lengths)), rows, contexts)
        self.upstairs.perform()
        statistics = self.upstairs.statistics
        if kind is JobKind.WRITE:
            statistics.writes += len(spans)
            statistics.written_bytes += rows.size
        else:
            statistics.writes_unwritten += len(spans)

    def _write_job(
        self,
        kind: JobKind,
        starts: list[int],
        lengths: list[int],
        blocks: BlockIndexes,
        rows: Rows,
        contexts: BlockContexts,
    ) -> None:
        job = self._core.new_job(kind, starts, lengths, rows.size, None)
        job.blocks, job.rows, job.contexts = blocks, rows, contexts
        self._core.write(job)

    def _write_beside_repair(
        self, repair: LiveRepair, kind: JobKind, spans: list[tuple[int, int]], rows: Rows, contexts: BlockContexts
    ) -> None:
        """While a live repair runs: one job for the extents that the repaired replicas have, one for those beyond."""
        blocks = spans_to_blocks([start for start, _ in spans], [count for _, count in spans])
        near, beyond = repair.split(spans)
        limit = (repair.extent_id + 1) * self.definition.blocks_per_extent
        for part, chosen in ((near, blocks < limit), (beyond, blocks >= limit)):
            if not part:
                continue
            starts, lengths = [start for start, _ in part], [count for _, count in part]
            if chosen.all():
                self._write_job(kind, starts, lengths, blocks, rows, contexts)
            else:
                self._write_job(kind, starts, lengths, blocks[chosen], rows[chosen], contexts[np.flatnonzero(chosen)])

    # -- reads --------------------------------------------------------------------------------------------------------

    def _read(self, request: Request, done: list[Request], completed: Completed) -> None:
        core = self._core
        request.error = core.admission_error(JobKind.READ)
        if request.error is None and request.length:
            start, count = request.offset >> self._shift, request.length >> self._shift
            if not self._read_now(request, start, count):
                self.read_later(request, start, count, completed)
                return
        done.append(request)

    def _read_now(self, request: Request, start: int, count: int) -> bool:
        """Whether a replica on this machine had it at hand; such a read never becomes a tracked job."""
        upstairs = self.upstairs
        statistics = upstairs.statistics
        statistics.reads += 1
        statistics.read_bytes += request.length
        client = self._core.reader(start)
        link = None if client is None else upstairs.links[client]
        if client is None or link is None:
            return False
        past_process = not upstairs.in_process
        # *Safety*: who looks into another process must not miss a write that is on its way there.
        if past_process and not self._core.settled(client, range(start, start + count)):
            return False
        out = _payload(request)
        contexts = link.read_cached(start, count, out)
        if contexts is None:
            return False
        error = upstairs.verify(out, contexts)
        if error is not None:
            if not past_process:  # there it may have been caught in the middle of a change: a message finds out
                upstairs.damaged(Damage(client, start, count, error))
            return False
        if request.owned is not None:
            request.owned[:] = contexts.kind != EMPTY
        statistics.reads_at_hand += past_process
        return True

    def read_later(self, request: Request, start: int, count: int, completed: Completed) -> None:
        """Read by jobs, each of at most one transfer."""
        out = _payload(request)
        gathering = GatheredRead(self, request, completed)
        most = TRANSFER_BYTES_MAX >> self._shift
        for begin in range(start, start + count, most):
            length = min(most, start + count - begin)
            at = (begin - start) << self._shift
            gathering.read(begin, length, out[at : at + (length << self._shift)], begin - start)
        gathering.release()

    def start_read(self, start: int, count: int, handle: ReadHandle, client: int | None = None) -> None:
        """Submit an admitted read, first to ``client`` if given; ``handle.answered`` is called once, now or later."""
        if client is None or not self._core.reads_from(client):
            client = self._core.reader(start)
        error = self._core.admission_error(JobKind.READ) if client is None else None
        if error is not None:
            handle.answered(handle, error)
            return
        job = self._core.new_job(JobKind.READ, [start], [count], count << self._shift, handle)
        self._core.read(job, client)
        self.upstairs.perform()

    async def read_blocks(self, start: int, count: int, out: memoryview, client: int | None = None) -> ReadResult:
        """Read, first from ``client`` if given, and wait. Raises the error of the read."""
        result = ReadResult()
        self.start_read(start, count, ReadHandle(out, result.answered), client)
        await result.done.wait()
        if result.error is not None:
            raise result.error
        return result

    # -- zeros --------------------------------------------------------------------------------------------------------

    def _zero(self, request: Request, done: list[Request], completed: Completed) -> None:
        """WRITE_ZEROES and TRIM. There is no discard in the format: trimmed blocks that were written become zeros,
        where a replica in this process knows which those are; over the network a trim changes nothing, as it may."""
        error = self._core.admission_error(JobKind.WRITE)
        if error is not None or not request.length or (request.kind is Kind.TRIM and not self.upstairs.in_process):
            request.error = error
            if error is None and request.fua:
                self._flush(request, done, completed)
            else:
                done.append(request)
        elif request.length <= ZEROES_BYTES:
            self.zero_blocks(request.offset, request.length, request.no_hole)
            if request.fua:
                self._flush(request, done, completed)
            else:
                done.append(request)
        else:
            self._large_zeroes.begin(request, completed)

    def zero_blocks(self, offset: int, length: int, no_hole: bool, kept: npt.NDArray[np.bool_] | None = None) -> None:
        """Write zeros to an admitted range, but for the blocks in ``kept`` (bool[n]) and, unless ``no_hole``, for those
        that are known to be unwritten: they read as zeros already."""
        shift = self._shift
        start, count = offset >> shift, length >> shift
        wanted = None if no_hole else self.written(start, count)
        if kept is not None:
            wanted = ~kept if wanted is None else wanted & ~kept
        spans = [(offset, length)]
        if wanted is not None:
            runs = equal_runs(wanted, start)
            spans = [(begin << shift, (stop - begin) << shift) for begin, stop, chosen in runs if chosen]
        blocks = sum(size for _, size in spans) >> shift
        if blocks:
            rows = np.zeros((blocks, self._block_size), np.uint8)
            self.write_rows(spans, rows, BlockContexts.plain(np.repeat(self._zero_hash, blocks)))

    def effect_done(self, request: Request, completed: Completed) -> None:
        """What ``request`` asked for is done, or failed: report it, after a flush where it must be durable."""
        done: list[Request] = []
        if request.fua and request.error is None:
            self._flush(request, done, completed)
        else:
            done.append(request)
        if done:
            completed(done)

    async def run(self) -> None:
        """Do what takes many steps: zero large ranges, heal damaged blocks. Until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._large_zeroes.run)
            nursery.start_soon(self.healer.run)
            if self._sealed_writes is not None:
                nursery.start_soon(self._sealed_writes.run)


def _payload(request: Request) -> memoryview:
    if request.buffer is None:
        raise errors.IoError(f"{request!r} came without a buffer")
    return request.buffer
