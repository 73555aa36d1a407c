"""Jobs in and outcomes back: the half of the Upstairs core that guests drive (upstairs-volume.md §5.3, §6).

What it is for: admits jobs, numbers them, gives them their dependencies, chooses who is sent them, and answers the
guest by the table of :mod:`crucible_emu.upstairs.rules` when replicas report. :class:`Dispatcher` is the base of
:class:`~crucible_emu.upstairs.core.UpstairsCore`, which adds who is connected; like it, it is synchronous and pure.

What it guarantees: every job that was taken is answered exactly once, whatever happens to the replicas; a read that
fails on one replica is tried on every other before it fails. What is not flushed stays in the job table, in the order
of its ids, so that a replica which was away for a while can be sent all that it missed (:meth:`Dispatcher.replay`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Any

from crucible_emu import errors
from crucible_emu.geometry import RegionDefinition
from crucible_emu.upstairs.actions import Action, Answer, RepairNews, Report, Send
from crucible_emu.upstairs.dependencies import DependencyTracker
from crucible_emu.upstairs.jobs import FIRST_JOB_ID, Job, JobTable
from crucible_emu.upstairs.members import Client, Identity
from crucible_emu.upstairs.rules import CLIENTS, FLUSHES, RETIRING, RULES, WRITES, Dispatch, JobKind, dispatch
from crucible_emu.upstairs.states import Phase, StopReason, UpstairsState
from crucible_emu.upstairs.summary import COMPLETED_MAX, RetiredJob, retired
from crucible_emu.wire import messages as m

FINISHED_JOBS_MAX = 10_000
FINISHED_BYTES_MAX = 64 * 1024 * 1024
"""A barrier is due after this much since the last flush or barrier; it bounds what both sides remember (§6.10)."""
OFFLINE_JOBS_MAX = 1000
OFFLINE_BYTES_MAX = 50 * 1024 * 1024
"""A replica that is away and owes more than this is not waited for: it is repaired when it comes back (§6.12)."""


class Dispatcher(ABC):
    """Admission, dispatch and outcomes of jobs. Take what it wants done with :meth:`take_actions`."""

    def __init__(self, identity: Identity, generation: int, definition: RegionDefinition | None) -> None:
        self.identity = identity
        self.generation = generation
        self.definition = definition
        self.state = UpstairsState.INITIALIZING
        self.clients = [Client(index) for index in CLIENTS]
        self.jobs = JobTable()
        self.tracker = DependencyTracker()
        self.next_job_id = FIRST_JOB_ID
        self.next_flush = 0
        self.need_flush = False
        self.finished_jobs = 0
        self.finished_bytes = 0
        self.acknowledged = dict.fromkeys(JobKind, 0)
        """Jobs whose outcome is known to whoever waits; writes, which are taken at admission, are counted there."""
        self.completed: deque[RetiredJob] = deque(maxlen=COMPLETED_MAX)
        self.can_replay = True
        """Whether all that a replica may have missed since its last flush is still in the table."""
        self._waiting_reads: list[Job] = []
        self._barriers: list[Job] = []
        """Flushes and barriers that are not final, oldest first."""
        self.last_write = 0
        """The id of the last write that was admitted."""
        self._flushed_below = 0
        self._writes_lost = False
        # Who accepts work and who is read from, kept because every request asks and they hardly ever change.
        self._accepting = 0
        self.readers: list[int] = []
        """The clients that reads may be sent to, ascending."""
        self._actions: list[Action] = []
        self._open: Job | None = None
        self._open_actions = 0

    @abstractmethod
    def stop_client(self, client: Client, reason: StopReason) -> None:
        """Close the connection of ``client``."""

    @abstractmethod
    def progress(self) -> None:
        """Something finished: push on what waits for it."""

    # -- what goes out ------------------------------------------------------------------------------------------------

    def take_actions(self) -> list[Action]:
        """The actions since the last call, oldest first."""
        self._close_open_job()
        taken, self._actions = self._actions, []
        return taken

    def _close_open_job(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None

    def send(self, client: int, item: m.Message | Job) -> None:
        """Ask for a message, or a job, to be sent."""
        self._actions.append(Send(client, item))

    def report(self, level: str, event: str, **fields: Any) -> None:
        self._actions.append(Report(level, event, fields))

    def notify(self, news: RepairNews) -> None:
        """Tell whoever is interested how a repair goes."""
        self._actions.append(news)

    # -- admission ----------------------------------------------------------------------------------------------------

    def accepting(self) -> int:
        """How many clients accept work (§2.6)."""
        return self._accepting

    def members_changed(self) -> None:
        """A client's state has changed."""
        self._accepting = sum(client.state.accepts_io for client in self.clients)
        self.readers = [client.index for client in self.clients if client.state.phase is Phase.ACTIVE]

    def admission_error(self, kind: JobKind) -> errors.CrucibleError | None:
        """Why a job of ``kind`` cannot be taken now, or ``None`` (§5.3). *Safety*: refuses what could not be kept."""
        if self.state is not UpstairsState.ACTIVE:
            return errors.UpstairsInactive()
        if self.identity.read_only and kind in (JobKind.WRITE, JobKind.WRITE_UNWRITTEN):
            return errors.ModifyingReadOnlyRegion()
        need, found = RULES[kind].admit_min, self._accepting
        if self.identity.read_only:
            need = min(need, 1)
        if found < need:
            return errors.IoError(f"too many inactive clients: need {need}, got {found}")
        return None

    def reader(self, start: int) -> int | None:
        """The client that reads of block ``start`` go to. One extent always goes to the same replica while the set is
        unchanged, so that the page caches of three replicas do not hold the same blocks."""
        readers = self.readers
        if not readers:
            return None
        extent = start // self.definition.blocks_per_extent if self.definition else 0
        return readers[extent % len(readers)]

    def reads_from(self, client: int) -> bool:
        """Whether reads may be sent to ``client`` now."""
        return self.clients[client].state.phase is Phase.ACTIVE

    # -- jobs ---------------------------------------------------------------------------------------------------------

    def write(self, job: Job) -> None:
        """Send an admitted train of writes (made with :meth:`new_job`); the guest has its answer already."""
        job.acked = True
        self.need_flush = True
        self.last_write = job.first_id
        self._enqueue(job)

    def write_open(self, job: Job) -> None:
        """As :meth:`write`, of a train of single blocks with ``gathered`` data: until somebody takes the actions,
        further ones may come to it (:meth:`grow`)."""
        self._close_open_job()
        self.write(job)
        self._open, self._open_actions = job, len(self._actions)

    def grow(self, blocks: list[int], data: list[bytes]) -> bool:
        """Admitted writes of one block each, all different, become part of the last job. ``False``: it is not open to
        them. *Safety*: nothing was wanted since, so nothing can come between it and them."""
        job = self._open
        if job is None or job.gathered is None or len(self._actions) != self._open_actions:
            return False
        if job.first_id + job.count != self.next_job_id or not job.gathered.blocks.isdisjoint(blocks):
            return False
        job.gathered.take(blocks, data)
        self.jobs.grow(job, blocks, sum(map(len, data)))
        if job.dependencies is not None:
            job.dependencies += self._blocking(self.next_job_id, blocks, repeat(1))
        self.next_job_id += len(blocks)
        return True

    @property
    def open_bytes(self) -> int:
        """How much is in the job that is open."""
        return 0 if self._open is None else self._open.size_bytes

    def written_at_once(self, count: int) -> int:
        """A train of ``count`` writes, of one block each, is done on all clients within the call that admits it: what
        is left of a job that begins, is acknowledged and ends. The first of its ids. Not with remote replicas."""
        first = self.last_write = self.next_job_id
        self.next_job_id = first + count
        self.need_flush = True
        return first

    def read(self, job: Job, client: int | None) -> None:
        """Send an admitted read to ``client``; others are tried when it fails there. With ``None`` it waits for a
        replica that is away and expected back."""
        self.need_flush = True
        for other in CLIENTS:
            job.skipped[other] = job.full
        self.jobs.add(job)
        if client is None:
            self._try_read(job, None)
        else:
            self._send_read(job, client)

    def _send_read(self, job: Job, client: int) -> None:
        # Asked anew at each try: what it waited for may lie before a flush that this client has finished, and a client
        # forgets what was before its last flush (wire-protocol.md §7.2).
        self._depend_on_writes(job)
        job.asked_before = self.next_job_id
        self.jobs.restart(job, client)
        self.send(client, job)

    def _depend_on_writes(self, job: Job) -> None:
        """What a read has to wait for, as of now."""
        if self.identity.remote:
            live, spans = self.jobs.live, enumerate(zip(job.starts, job.lengths), job.first_id)
            job.dependencies = [
                self.tracker.read(job_id, start, start + count, live) for job_id, (start, count) in spans
            ]

    def new_job(self, kind: JobKind, starts: list[int], lengths: list[int], size_bytes: int, handle: Any) -> Job:
        """A job with the next ids."""
        job = Job(kind, self.next_job_id, starts, lengths, size_bytes, handle)
        self.next_job_id += job.count
        return job

    def flush(self, handle: Any, snapshot: str | None = None) -> None:
        """Submit an admitted flush of the guest; ``handle`` is answered by the rules."""
        if self._writes_lost:
            self._writes_lost = False
            error = errors.IoError("writes since the last flush may be lost: all replicas were away at a time")
            self._actions.append(Answer(handle, error))
        else:
            self.submit_flush(handle, snapshot)

    def all_were_away(self) -> None:
        """No replica kept its connection, so what was acknowledged and not flushed may be gone. *Safety*: the guest's
        next flush says so, once, as a disk does whose cache lost its power; it must not be told that all is durable."""
        if self.last_write > self._flushed_below:
            self._writes_lost = True
            self.report("warning", "acknowledged writes may be lost")

    def idle_flush(self) -> None:
        """The automatic flush (§6.9): called when nothing happened for the flush interval."""
        if self.state is UpstairsState.ACTIVE and self.need_flush and not any(self.jobs.jobs_in_progress):
            self.submit_flush(None)

    def submit_flush(self, handle: Any, snapshot: str | None = None) -> Job:
        """A flush that nobody's admission stands in the way of; the job, which may be final already."""
        self.need_flush = False
        job = self.new_job(JobKind.SNAPSHOT_FLUSH if snapshot else JobKind.FLUSH, [0], [0], 0, handle)
        job.flush_number = self.next_flush
        job.gen_number = self.generation
        job.snapshot = snapshot
        self.next_flush += 1
        self._start_barrier(job)
        return job

    def _start_barrier(self, job: Job) -> None:
        self.finished_jobs = self.finished_bytes = 0
        self._barriers.append(job)
        self._enqueue(job)

    def _enqueue(self, job: Job) -> None:
        if self.identity.remote:
            job.dependencies = self._dependencies(job)
        targets: list[Client] = []
        held: list[Client] = []
        for client in self.clients:
            wanted = dispatch(client.state)
            if wanted is Dispatch.SEND and client.state.phase is Phase.LIVE_REPAIR and not self.repair_reaches(job):
                wanted = Dispatch.SKIP
            if wanted is Dispatch.SKIP:
                job.skipped[client.index] = job.full
                continue
            job.in_progress[client.index] = job.full
            (targets if wanted is Dispatch.SEND else held).append(client)
        self.jobs.add(job)
        for client in targets:
            if job.kind in FLUSHES and client.state.phase is Phase.LIVE_REPAIR:
                self.send(client.index, self.limited_flush(job, client))
            else:
                self.send(client.index, job)
        if not targets and not held:
            self.check(job)
        for client in held:
            if self.owes_too_much(client):
                self.fall_behind(client)

    @abstractmethod
    def repair_reaches(self, job: Job) -> bool:
        """Whether a client under live repair is sent ``job`` (§8.4)."""

    @abstractmethod
    def limited_flush(self, job: Job, client: Client) -> m.Flush:
        """The message of a flush for a client under live repair: it leaves out the extents that are not repaired."""

    @abstractmethod
    def fall_behind(self, client: Client) -> None:
        """Give up replaying to ``client``, which is away: it is to be repaired when it comes back."""

    @property
    def pending_barriers(self) -> int:
        """How many flushes and barriers are not final."""
        return len(self._barriers)

    def flush_under_way(self, client: Client) -> bool:
        """Whether a client was sent a flush that it has not answered."""
        return any(job.kind in FLUSHES and job.in_progress[client.index] for job in self._barriers)

    def owes_too_much(self, client: Client) -> bool:
        """Whether a client that is away is too far behind, or cannot be replayed to at all (§6.12)."""
        return (
            not self.can_replay
            or self.jobs.jobs_in_progress[client.index] > OFFLINE_JOBS_MAX
            or self.jobs.bytes_in_progress[client.index] > OFFLINE_BYTES_MAX
        )

    def _dependencies(self, job: Job) -> list[list[int]]:
        if job.kind in WRITES:
            return self._blocking(job.first_id, job.starts, job.lengths)
        return [self.tracker.block_everything(job.first_id, self.jobs.live)]

    def _blocking(self, first_id: int, starts: Sequence[int], lengths: Iterable[int]) -> list[list[int]]:
        """What writes of these blocks depend on, operation by operation."""
        live, spans = self.jobs.live, enumerate(zip(starts, lengths), first_id)
        return [self.tracker.block(job_id, start, start + length, live) for job_id, (start, length) in spans]

    def pruned_dependencies(self, job: Job, client: int) -> list[list[int]]:
        """The job's dependencies for one client: without the jobs that it was never sent (§6.3)."""
        dependencies = job.dependencies or [[]]
        return [self._prune(wanted, job, client) for wanted in dependencies] if any(dependencies) else dependencies

    def _prune(self, wanted: list[int], job: Job, client: int) -> list[int]:
        sent = [dependency for dependency in wanted if self._was_sent(dependency, job, client)]
        if len(sent) < len(wanted) and any(self._was_skipped(each) for each in wanted if each not in sent):
            # Safety: what is left out may itself have waited for a flush that the client has not done yet. Done before
            # that flush, this job would be forgotten at it, and whatever waits for this job would wait for ever.
            made_before = max(job.first_id, job.asked_before)
            for barrier in reversed(self._barriers):
                if barrier.first_id < made_before and barrier.in_progress[client]:
                    return sorted({*sent, barrier.first_id})
        return sent

    def _was_skipped(self, job_id: int) -> bool:
        """Whether a job that was left out held the order of those around it; a read never does alone."""
        found = self.jobs.find(job_id)
        return found is not None and found.kind is not JobKind.READ

    def _was_sent(self, job_id: int, job: Job, client: int) -> bool:
        if job.contains(job_id) or self.is_of_repair(job_id):
            return True
        found = self.jobs.find(job_id)
        if found is not None and found.kind is JobKind.READ:
            # A read that failed here is tried elsewhere; this client may have forgotten it at a flush since. And one
            # that was sent anew, whatever its id, waits for the jobs made before, so they must not wait for it.
            under_way = found.in_progress[client] >> (job_id - found.first_id) & 1
            return bool(under_way) and job.first_id >= found.asked_before
        # Safety: an id that was never sent over this connection would make its replica wait for ever. A job that is
        # gone meanwhile is done everywhere it was sent to, so nobody has to wait for it.
        if job_id < self.clients[client].knows_from:
            return False
        return found is not None and not found.skipped[client] >> (job_id - found.first_id) & 1

    @abstractmethod
    def is_of_repair(self, job_id: int) -> bool:
        """Whether ``job_id`` is one of the four of an extent under live repair, which are sent in another order."""

    # -- outcomes -----------------------------------------------------------------------------------------------------

    def done(self, job: Job, client: int, mask: int) -> None:
        """Operations ``mask`` of ``job`` are done on ``client``."""
        self.jobs.settle(job, client, mask, job.done)
        if job.kind in FLUSHES:
            self.clients[client].last_flush = job.first_id
        if not job.in_progress[client]:
            self.check(job)
            if self.busy:
                self.progress()

    @property
    @abstractmethod
    def busy(self) -> bool:
        """Whether something waits for jobs to end: a live repair, a deactivation."""

    def failed(self, job: Job, client: int, mask: int, error: errors.CrucibleError) -> None:
        """Operations ``mask`` of ``job`` failed on ``client`` (§6.6): a read is tried elsewhere, all else faults it."""
        self.clients[client].errors += 1
        self.jobs.settle(job, client, mask, job.failed)
        self.report("warning", "operation failed on a replica", client=client, job=job.kind.value, error=str(error))
        if job.kind is JobKind.READ:
            self._try_read(job, error)
        else:
            reason = StopReason.DISABLED if isinstance(error, errors.UpstairsInactive) else StopReason.IO_ERROR
            self.stop_client(self.clients[client], reason)
            self.check(job)
        self.progress()

    def _try_read(self, job: Job, error: errors.CrucibleError | None) -> None:
        """Send a read to the next replica that has not failed it; wait for one that is away and expected back; or fail
        with ``error``, the last that was met."""
        if job.acked:
            self.check(job)
            return
        untried = [client for client in self.clients if not job.failed[client.index] and client.state.accepts_io]
        if any(job.in_progress[client.index] for client in untried):
            return  # of several operations one failed before, and so this is tried there already
        for client in untried:
            if client.state.phase is Phase.ACTIVE and not client.stop_requested:
                self._send_read(job, client.index)
                return
        if any(client.state.connecting for client in untried):
            job.error = error or job.error
            self._waiting_reads.append(job)
            return
        job.acked = True
        self.acknowledged[job.kind] += 1
        error = error or job.error or errors.IoError("3 out of 3 downstairs failed to complete this IO")
        self._actions.append(Answer(job.handle, error))
        self.check(job)

    def try_waiting_reads(self) -> None:
        """A replica came back, or is not expected back any more."""
        if self._waiting_reads:
            waiting, self._waiting_reads = self._waiting_reads, []
            for job in waiting:
                self._try_read(job, None)

    def skip_jobs(self, client: Client) -> None:
        """What the client has in progress will not be done by it: skip it and answer what can be answered (§6.5)."""
        for job in self.jobs:
            if job.in_progress[client.index]:
                self.jobs.settle(job, client.index, job.full, job.skipped)
                if job.kind is JobKind.READ:
                    self._try_read(job, None)
                else:
                    self.check(job)

    def hand_over_reads(self, client: Client) -> None:
        """The client is away and will be replayed to: only its reads go elsewhere, for somebody waits for them."""
        for job in self.jobs:
            if job.kind is JobKind.READ and job.in_progress[client.index]:
                self.jobs.settle(job, client.index, job.full, job.skipped)
                self._try_read(job, None)

    # -- replay -------------------------------------------------------------------------------------------------------

    def replay(self, client: Client) -> None:
        """Send a client that was away everything since its last flush, in the order of the ids (§6.11).

        Why it is safe: it may have done some of it already, even all; doing the same jobs once more in an order that
        their dependencies allow ends in the same bytes. Reads are not repeated; nobody waits for them here.
        """
        last = client.last_flush
        client.knows_from = 0 if last is None else last
        self.send(client.index, m.LastFlush(last))
        for job in self.jobs:
            if job.kind is JobKind.READ or (last is not None and job.first_id <= last):
                continue
            job.replayed = True
            self.jobs.restart(job, client.index)
            self.send(client.index, job)
        self.try_waiting_reads()

    def forget_history(self) -> None:
        """All replicas hold the same bytes and nothing is under way: nothing from before is owed to anybody."""
        self.jobs.clear()
        self.tracker.clear()
        self._barriers.clear()
        self.can_replay = True
        self.finished_jobs = self.finished_bytes = 0
        for client in self.clients:
            client.last_flush = None
            client.knows_from = self.next_job_id

    # -- what comes of it ---------------------------------------------------------------------------------------------

    def check(self, job: Job) -> None:
        """Answer the guest and forget the job where the rules allow it (§6.4, §6.5)."""
        complete = job.complete
        if not job.acked:
            rule = RULES[job.kind]
            done = job.done_count()
            needed = 3 if self.state is UpstairsState.DEACTIVATING and job.kind is JobKind.FLUSH else rule.done_for_ack
            if complete or (needed is not None and done - self._halves(job) >= needed):
                job.acked = True
                self.acknowledged[job.kind] += 1
                failed = sum(mask != 0 for mask in job.failed)
                if done < self._done_min(rule.done_min) or failed > rule.errors_max:
                    job.error = errors.IoError(f"{3 - done} out of 3 downstairs failed to complete this IO")
                if job.handle is not None:
                    self._actions.append(Answer(job.handle, job.error))
                if job.error is None and job.kind in FLUSHES:
                    self._flushed_below = job.first_id
        if complete:
            self._finished(job)

    def _halves(self, job: Job) -> int:
        """*Safety*: replicas under repair that have done a flush, which leaves out the extents they do not have yet; it
        is not acknowledged on the strength of them while a whole replica still works at it."""
        if job.kind not in FLUSHES:
            return 0
        return sum(job.done[c.index] == job.full and c.state.phase is Phase.LIVE_REPAIR for c in self.clients)

    def _done_min(self, done_min: int) -> int:
        return min(done_min, 1) if self.identity.read_only else done_min

    def _finished(self, job: Job) -> None:
        """``job`` is final on all clients: forget it, or keep it for a client that may have to be sent it again."""
        if job.kind in RETIRING:
            self._barriers.remove(job)
            self._retire(job)
        elif job.kind is JobKind.READ or not self.identity.remote:
            self.jobs.forget(job)
            if self.identity.remote:
                self.completed.append(retired(job))
        elif not job.retained:
            job.retained, job.encoded = True, None
            self.finished_jobs += job.count
            self.finished_bytes += job.size_bytes
            if (
                self.state is UpstairsState.ACTIVE
                and not self._barriers
                and (self.finished_jobs >= FINISHED_JOBS_MAX or self.finished_bytes >= FINISHED_BYTES_MAX)
            ):
                self._start_barrier(self.new_job(JobKind.BARRIER, [0], [0], 0, None))

    def _retire(self, barrier: Job) -> None:
        """A flush or barrier is final everywhere, and with it all that it depended on (§6.8)."""
        if not self.identity.remote:
            self.jobs.forget(barrier)
            self.completed.append(retired(barrier))
            return
        forgotten: deque[Job] = deque(maxlen=COMPLETED_MAX)
        for job in self.jobs:
            if job.first_id > barrier.first_id:
                break
            if job.complete and job.acked:
                self.jobs.forget(job)
                forgotten.append(job)
        self.completed.extend(map(retired, forgotten))
        # *Safety*: after a barrier, what a replica did not flush is nowhere but on the others.
        self.can_replay = barrier.kind in FLUSHES
