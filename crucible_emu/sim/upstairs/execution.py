"""Jobs at a model Downstairs: held until what they wait for is done, then run in any order that this allows.

What it is for: a real Downstairs mostly runs jobs in order of arrival, which hides a forgotten dependency. Here one of
the jobs that may run is drawn, so that whatever is allowed happens sooner or later (wire-protocol.md §7).

What it guarantees: a flush or barrier makes the connection forget what was done before it, as the real one does. A job
that waits for a forgotten one would wait for ever: it ends the history at once. So does a job that touches a closed
extent, a write whose hash is wrong, and a job id that means something else elsewhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

import numpy as np
import xxhash

from crucible_emu import errors
from crucible_emu.integrity import EMPTY, PLAIN, BlockContexts
from crucible_emu.sim.upstairs.storage import Block, value_of
from crucible_emu.wire import messages as m

if TYPE_CHECKING:
    from crucible_emu.sim.upstairs.downstairs import ModelDownstairs
    from crucible_emu.sim.upstairs.network import Wire

BURST_MAX = 4
ACK_OF: dict[type[m.JobRequest], type[m.Ack]] = {
    m.Write: m.WriteAck,
    m.WriteUnwritten: m.WriteUnwrittenAck,
    m.Flush: m.FlushAck,
    m.Barrier: m.BarrierAck,
    m.ExtentLiveRepair: m.ExtentLiveRepairAckId,
    m.ExtentLiveReopen: m.ExtentLiveAckId,
    m.ExtentLiveNoOp: m.ExtentLiveAckId,
}
REPAIRS = (m.ExtentLiveClose, m.ExtentLiveFlushClose, m.ExtentLiveRepair, m.ExtentLiveReopen, m.ExtentLiveNoOp)


class Execution:
    """The jobs of one connection."""

    upstairs_id: UUID
    session_id: UUID
    generation: int
    number: int

    def __init__(self, downstairs: ModelDownstairs, wire: Wire) -> None:
        self.downstairs = downstairs
        self.wire = wire
        self.open = True
        self.received: set[int] = set()
        self.pending: dict[int, m.JobRequest] = {}
        self._completed: set[int] = set()
        self._finished: set[int] = set()
        """Every job that ran here, those that a flush made the connection forget included."""
        self._flush_number = -1
        self._working = False
        self._replays_after: int | None = None

    def violation(self, text: str) -> None:
        raise AssertionError(text)

    def reply(self, message: m.Message, *, bad_news: bool = False) -> None:
        self.wire.to_upstairs(message, bad_news=bad_news)

    def begin_replay(self, last_flush: int | None) -> None:
        self._replays_after = -1 if last_flush is None else last_flush
        if last_flush is not None:
            self._completed = {last_flush}
            self._finished.add(last_flush)

    # -- arrival ------------------------------------------------------------------------------------------------------

    def take_job(self, job: m.JobRequest) -> None:
        """A job arrived: check it, and hold it until it may run."""
        job_id = job.job_id
        if job_id in self.received or job_id in self._finished:
            self.violation(f"got job {job_id} twice")
        replayed = self._replays_after is not None and not isinstance(job, m.ReadRequest)
        if replayed and job_id <= (self._replays_after or 0):
            self.violation(f"is replayed job {job_id}, from before its last flush {self._replays_after}")
        if self.downstairs.active is not self:
            self.violation(f"got job {job_id} on a connection that is not the active one")
        self.received.add(job_id)
        self._check_meaning(job)
        if isinstance(job, m.Flush | m.ExtentLiveFlushClose):
            self._check_numbers(job)
        self.pending[job_id] = job
        self._check_hopeless(job)
        self.work_later()

    def _check_meaning(self, job: m.JobRequest) -> None:
        """One id means one job, on whichever replica."""
        meaning: object
        match job:
            case m.Write() | m.WriteUnwritten():
                meaning = (type(job), job.start, job.contexts.hash.tobytes())
                self._check_hashes(job)
            case m.ReadRequest():
                meaning = (type(job), job.start, job.count)
            case m.Flush():
                meaning = (type(job), job.flush_number, job.gen_number, job.snapshot_details)
            case m.Barrier():
                meaning = m.Barrier
            case m.ExtentLiveClose() | m.ExtentLiveFlushClose() | m.ExtentLiveReopen():
                meaning = "repair"
            case _:
                meaning = "repair"
        known = self.downstairs.world.jobs_sent.setdefault((self.session_id, job.job_id), meaning)
        if known != meaning:
            self.violation(f"job {job.job_id} is {meaning}, elsewhere it is {known}")

    def _check_hashes(self, job: m.BlockWrite) -> None:
        size, total = self.downstairs.definition.block_size, self.downstairs.definition.total_blocks
        count, data = len(job.contexts), bytes(job.data)
        if count == 0 or len(data) != count * size or not 0 <= job.start <= total - count:
            self.violation(f"write {job.job_id} has {len(data)} bytes and {count} contexts from block {job.start} on")
        for index, expected in enumerate(job.contexts.hash.tolist()):
            if xxhash.xxh64_intdigest(data[index * size : (index + 1) * size]) != expected:
                self.violation(f"write {job.job_id} carries a wrong hash for block {job.start + index}")

    def _check_numbers(self, job: m.Flush | m.ExtentLiveFlushClose) -> None:
        if job.flush_number <= self._flush_number:
            self.violation(f"job {job.job_id} has flush number {job.flush_number} after {self._flush_number}")
        if job.gen_number != self.generation:
            self.violation(f"job {job.job_id} carries generation {job.gen_number}, not {self.generation}")
        self._flush_number = job.flush_number
        known = self.downstairs.world.jobs_sent.setdefault((self.session_id, ("flush", job.flush_number)), job.job_id)
        if known != job.job_id:
            self.violation(f"flush number {job.flush_number} belongs to job {known} and to job {job.job_id}")

    def _check_hopeless(self, job: m.JobRequest) -> None:
        for dependency in job.dependencies:
            if dependency == job.job_id:
                self.violation(f"job {job.job_id} waits for itself")
            if dependency in self._finished and dependency not in self._completed:
                self.violation(f"job {job.job_id} waits for {dependency}, which a flush made this Downstairs forget")

    def never_to_come(self) -> list[tuple[int, list[int]]]:
        """Pending jobs, each with what it waits for that is not even here."""
        found = [
            (job_id, [wanted for wanted in job.dependencies if wanted not in self._completed | self.pending.keys()])
            for job_id, job in self.pending.items()
        ]
        return [(job_id, missing) for job_id, missing in found if missing]

    # -- running ------------------------------------------------------------------------------------------------------

    def work_later(self) -> None:
        """See to it that ready jobs run, a little later."""
        if not self._working and not self.downstairs.stalled and self.open and self._ready():
            self._working = True
            self.downstairs.world.after(self.downstairs.latency_s(), self._work)

    def _ready(self) -> list[m.JobRequest]:
        completed = self._completed
        return [job for job in self.pending.values() if completed.issuperset(job.dependencies)]

    def _work(self) -> None:
        self._working = False
        rng = self.downstairs.world.rng
        for _ in range(rng.randint(1, BURST_MAX)):
            if not self.open or self.downstairs.stalled:
                return
            ready = self._ready()
            if not ready:
                return
            self._run(ready[0] if rng.random() < 0.3 else rng.choice(ready))
        self.work_later()

    def _run(self, job: m.JobRequest) -> None:
        del self.pending[job.job_id]
        ids = (self.upstairs_id, self.session_id, job.job_id)
        if self.downstairs.fails_now():
            self._fail(job, "the disk fails")
            if isinstance(job, m.ReadRequest):
                self._finish(job)  # an Upstairs keeps the replica after it, so what waits for it must go on
            return
        match job:
            case m.ReadRequest():
                self._read(job)
            case m.ExtentLiveClose() | m.ExtentLiveFlushClose():
                self._close(job)
            case m.ExtentLiveRepair():
                if job.extent_id not in self.downstairs.closed_extents:
                    self.violation(f"repair {job.job_id} of extent {job.extent_id}, which is not closed here")
                problem = self.downstairs.fetch(job.extent_id, job.source_repair_address)
                if problem is not None:
                    self._fail(job, problem)
                    return
                self.reply(m.ExtentLiveRepairAckId(*ids, None))
            case _:
                self._act(job)
                self.reply(ACK_OF[type(job)](*ids, None))
        self._finish(job)

    def _finish(self, job: m.JobRequest) -> None:
        self._finished.add(job.job_id)
        if not isinstance(job, m.Flush | m.Barrier):
            self._completed.add(job.job_id)
            return
        self._completed = {job.job_id}
        if isinstance(job, m.Flush):
            self.downstairs.flushes_done.setdefault(self.session_id, set()).add(job.job_id)
        for waiting in self.pending.values():
            self._check_hopeless(waiting)

    def _fail(self, job: m.JobRequest, problem: str) -> None:
        """Answer with an error: in the acknowledgement, or by a report of its own as the real Downstairs does."""
        self.downstairs.in_trouble()
        ids = (self.upstairs_id, self.session_id, job.job_id)
        error = errors.IoError(problem)
        if isinstance(job, m.ExtentLiveRepair):
            self.reply(m.ErrorReport(*ids, error), bad_news=True)
            self.wire.close_far_end()
        elif self.downstairs.world.rng.random() < 0.3:
            self.reply(m.ErrorReport(*ids, error), bad_news=True)
        elif isinstance(job, m.ReadRequest):
            self.reply(m.ReadResponse(*ids, error, memoryview(b"")), bad_news=True)
        elif isinstance(job, m.ExtentLiveClose | m.ExtentLiveFlushClose):
            self.reply(m.ExtentLiveCloseAck(*ids, error), bad_news=True)
        else:
            self.reply(ACK_OF[type(job)](*ids, error), bad_news=True)

    # -- what jobs do -------------------------------------------------------------------------------------------------

    def _act(self, job: m.JobRequest) -> None:
        downstairs = self.downstairs
        match job:
            case m.Write() | m.WriteUnwritten():
                self._write(job)
            case m.Flush():
                limit = job.extent_limit
                if limit is not None and limit > downstairs.definition.extent_count:
                    self.violation(f"flush {job.job_id} has extent limit {limit}")
                for extent_id in range(downstairs.definition.extent_count if limit is None else limit + 1):
                    if extent_id in downstairs.closed_extents and downstairs.storage.dirty[extent_id]:
                        self.violation(f"flush {job.job_id} runs while extent {extent_id} is dirty and closed")
                    self.stamp(extent_id, job.flush_number, job.gen_number)
            case m.ExtentLiveReopen():
                downstairs.closed_extents.discard(job.extent_id)

    def _check_open(self, job: m.JobRequest, start: int, count: int) -> None:
        for extent_id in self.downstairs.storage.extents(start, count):
            if extent_id in self.downstairs.closed_extents:
                self.violation(f"{type(job).__name__} {job.job_id} runs on extent {extent_id}, which is closed")

    def _write(self, job: m.BlockWrite) -> None:
        storage, size = self.downstairs.storage, self.downstairs.definition.block_size
        hashes, data = job.contexts.hash.tolist(), bytes(job.data)
        self._check_open(job, job.start, len(hashes))
        for index, expected in enumerate(hashes):
            block = job.start + index
            if isinstance(job, m.WriteUnwritten) and storage.blocks[block] is not None:
                continue
            content = data[index * size : (index + 1) * size]
            storage.put(block, Block(value_of(content), content, expected))

    def _read(self, job: m.ReadRequest) -> None:
        storage, size = self.downstairs.storage, self.downstairs.definition.block_size
        if not 0 <= job.start <= self.downstairs.definition.total_blocks - job.count:
            self.violation(f"read {job.job_id} of {job.count} blocks from {job.start} on")
        self._check_open(job, job.start, job.count)
        blocks = storage.blocks[job.start : job.start + job.count]
        kinds = np.array([EMPTY if block is None else PLAIN for block in blocks], np.uint8)
        hashes = np.array([0 if block is None else block.hash for block in blocks], np.uint64)
        data = b"".join(bytes(size) if block is None else block.data for block in blocks)
        damaged = any(block is not None and block.damaged for block in blocks)
        if damaged:
            self.downstairs.in_trouble()
        ids = (self.upstairs_id, self.session_id, job.job_id)
        self.reply(m.ReadResponse(*ids, BlockContexts(kinds, hashes), memoryview(data)), bad_news=damaged)

    def _close(self, job: m.ExtentLiveClose | m.ExtentLiveFlushClose) -> None:
        downstairs, storage, extent_id = self.downstairs, self.downstairs.storage, job.extent_id
        if extent_id in downstairs.closed_extents:
            self.violation(f"close {job.job_id} of extent {extent_id}, which is closed already")
        if isinstance(job, m.ExtentLiveFlushClose):
            self.stamp(extent_id, job.flush_number, job.gen_number)
        downstairs.closed_extents.add(extent_id)
        found = (storage.gen[extent_id], storage.flush[extent_id], storage.dirty[extent_id])
        self.reply(m.ExtentLiveCloseAck(self.upstairs_id, self.session_id, job.job_id, found))

    def stamp(self, extent_id: int, flush_number: int, generation: int) -> None:
        """Flush an extent. *Safety*: the greatest generation names the replica that the others are made equal to, so
        no flush may lower it. (A repeated flush may lower the flush number, until those after it are repeated.)"""
        storage = self.downstairs.storage
        if storage.dirty[extent_id] and generation < storage.gen[extent_id]:
            self.violation(f"extent {extent_id} of generation {storage.gen[extent_id]} is flushed as {generation}")
        storage.flush_extent(extent_id, flush_number, generation)

    def flush_in_part(self) -> None:
        """The power goes while a flush runs: some extents have it, nobody was told."""
        for job in self._ready():
            if isinstance(job, m.Flush) and job.extent_limit is None:
                for extent_id in range(self.downstairs.definition.extent_count):
                    if self.downstairs.world.rng.random() < 0.5 and extent_id not in self.downstairs.closed_extents:
                        self.downstairs.storage.flush_extent(extent_id, job.flush_number, job.gen_number)
