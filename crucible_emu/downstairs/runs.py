"""Runs of single blocks, done at once: what a busy guest's requests become in a Downstairs of another process.

What it is for: writes and reads of one block each, which arrived side by side, are checked, done and answered in
one pass over their columns: no message, job or action for each. In batches of 16 a write and a read cost 2.9 µs each,
where as single messages they cost 9.1 and 11.8 (decisions.md).

Writes that arrive while a flush runs name that flush. They wait for it together, as one job, and are done in one pass
then. (As 32 jobs, each with its message, work and order, that took a replica 1 ms of every flush.)

Why it is safe: nothing is different from jobs that are admitted, run, are answered and complete one after the other,
which is what happens to such jobs anyway when nothing stands in their way. So it is the way only where nothing does:
the session runs, all that a job waits for is complete or comes before it in the run, and no job waits for room. Hashes
are verified before anything is written. Whatever else there is, or is wrong, makes :func:`write` and :func:`read`
decline; nothing was answered then, and the same run goes through as messages, which find out what it is. To write the
same blocks once more changes nothing. Writes wait together only for what completes whatever else arrives
(:meth:`JobQueue.comes_soon`): so none of them keeps another from something that, in the end, waits for that one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xxhash

from crucible_emu.downstairs.admission import CONTEXT_BYTES, JOB_OVERHEAD_BYTES, compare_ids
from crucible_emu.downstairs.core import Connection, Downstairs
from crucible_emu.downstairs.in_order import InOrderJobs
from crucible_emu.downstairs.jobs import JobQueue
from crucible_emu.downstairs.session import State
from crucible_emu.downstairs.work import Action, Kind, Work
from crucible_emu.errors import CrucibleError
from crucible_emu.integrity import Proofs, Seals, hash_blocks
from crucible_emu.region import Region
from crucible_emu.wire import messages as m
from crucible_emu.wire.runs import AckRun, ReadRequestRun, RequestRun, ResponseFrames, WriteRun

READ_BYTES_MAX = 8 * 1024 * 1024
"""Of what was received at once, so much is answered without a look at whether the peer takes it."""


class Runs:
    """Runs for one region and the Downstairs that serves it. ``None`` from its methods: take them as messages."""

    def __init__(self, region: Region, core: Downstairs) -> None:
        self._region = region
        self._core = core
        self._block_size = region.definition.block_size
        self.wrote = False
        """Whether anything was written since somebody looked."""
        self.read_bytes = 0
        """How much was read since somebody looked."""
        self._total_blocks = region.definition.total_blocks
        (self._zero_hash,) = hash_blocks(np.zeros((1, self._block_size), np.uint8)).tolist()

    def do(self, connection_id: int, run: m.Message) -> list[Action] | None:
        """Do what a run asks for; what is to be done because of that."""
        if isinstance(run, WriteRun):
            return self.write(connection_id, run)
        return self.read(connection_id, run) if isinstance(run, ReadRequestRun) else None

    def split(self, connection_id: int, run: RequestRun) -> list[m.Message]:
        """What a run becomes that cannot be done as one: where only some of it waits for other jobs, those message by
        message, behind a run of the others. *Optimisation*: beside a live repair a few of the guest's requests wait for
        an extent that is closed, and need not have the others looked at one by one. What names one that waits, waits.
        """
        connection = self._core.connection(connection_id)
        late = [] if connection is None else waiting(connection.jobs, run.job_ids, run.dependencies)
        if not late or len(late) == len(run.job_ids):
            return run.messages()
        those = set(late)
        ready = [position for position in range(len(run.job_ids)) if position not in those]
        return [run.only(ready), *run.only(late).messages()]

    def write(self, connection_id: int, run: WriteRun) -> list[Action] | None:
        """Do the writes; what is to be done because of that."""
        connection = self._passable(connection_id, run)
        if connection is None or set(map(len, run.data)) != {self._block_size}:
            return None
        missing = missing_jobs(connection.jobs, run.job_ids, run.dependencies)
        if missing:
            return self._hold(connection, run, missing)
        if not self._region.admits_singles(len(run.starts)):
            return None
        found = stored = list(map(xxhash.xxh64_intdigest, run.data))
        proofs: Proofs = stored
        if run.seals is not None:
            found = list(map(xxhash.xxh64_intdigest, map(b"".join, zip(run.seals, run.data))))
            proofs = Seals(found, stored, run.seals)
        if found != run.hashes:
            return None
        self.wrote = True
        try:
            self._region.write_singles(run.starts, run.data, proofs)
        except (CrucibleError, OSError):
            return None
        known = connection.known
        acks = AckRun(m.WriteAck, known.upstairs_id, known.session_id, run.job_ids)
        return self._core.run_done(connection, acks, run.job_ids, written=len(run.job_ids))

    def _hold(self, connection: Connection, run: WriteRun, missing: set[int]) -> list[Action] | None:
        """Have the writes wait for ``missing``; nothing is to be done because of that."""
        if not all(map(connection.jobs.comes_soon, missing)):
            return None
        # *Safety* (memory): the views would keep the whole buffer alive into which they were received.
        joined, size = memoryview(b"".join(run.data)), self._block_size
        run.data = [joined[at : at + size] for at in range(0, len(joined), size)]
        held_bytes = len(joined) + len(run.job_ids) * (CONTEXT_BYTES + JOB_OVERHEAD_BYTES)
        held = HeldRun(run, tuple(missing))
        work = Work(Kind.WRITE_RUN, connection.session.connection_id, held, size_bytes=held_bytes)
        self._core.hold_run(connection, work, run.job_ids)
        return []

    def do_held(self, work: Work) -> list[Action]:
        """Do writes that have waited long enough; what is to be done because of that."""
        connection = self._core.connection(work.connection_id)
        if connection is None:
            return []
        run: WriteRun = work.message.run
        connection.jobs.let_go(work, run.job_ids)
        done = self.write(work.connection_id, run)
        return self._core.take_counted(work.connection_id, run.messages()) if done is None else done

    def read(self, connection_id: int, run: ReadRequestRun) -> list[Action] | None:
        """Do the reads; what is to be done because of that."""
        connection = self._passable(connection_id, run)
        size_bytes = len(run.starts) * self._block_size
        # *Safety* (memory): the peer that asks for more than this at once has it counted job by job.
        if connection is None or self.read_bytes + size_bytes > READ_BYTES_MAX:
            return None
        if missing_jobs(connection.jobs, run.job_ids, run.dependencies):
            return None
        known = connection.known
        ids, sealed = (known.upstairs_id, known.session_id), self._region.definition.encrypted
        frames = ResponseFrames(*ids, run.job_ids, self._block_size, sealed=sealed)
        try:
            filled = self._fill_sealed(run, frames) if sealed else self._fill(run, frames)
        except (CrucibleError, OSError):
            return None
        if not filled:
            return None
        self.read_bytes += size_bytes
        return self._core.run_done(connection, frames, run.job_ids, read=len(run.job_ids))

    def _fill(self, run: ReadRequestRun, frames: ResponseFrames) -> bool:
        hashes = self._region.read_singles(run.starts, frames.outs)
        # A block of zeros may be one that was never written, which is answered in other words.
        if hashes is None or self._zero_hash in hashes:
            return False
        frames.prove(hashes)
        return True

    def _fill_sealed(self, run: ReadRequestRun, frames: ResponseFrames) -> bool:
        found = self._region.read_sealed(run.starts, frames.outs)
        seals = [seal for seal in found or [] if seal is not None]
        if len(seals) < len(run.starts):
            return False
        frames.seal(seals)
        return True

    def _passable(self, connection_id: int, run: WriteRun | ReadRequestRun) -> Connection | None:
        """The connection, if all jobs of the run may be done now, one after the other, unless they wait for others."""
        core = self._core
        connection = core.connection(connection_id)
        if connection is None or connection.session.state is not State.RUNNING or core.lane.stalled:
            return None
        jobs, known = connection.jobs, connection.known
        if connection.paused or jobs.full or isinstance(jobs, InOrderJobs):
            return None
        same = run.upstairs_id is known.upstairs_id and run.session_id is known.session_id
        if not same and compare_ids(known, run) is not None:
            return None
        return None if max(run.starts) >= self._total_blocks else connection


@dataclass(frozen=True, slots=True)
class HeldRun:
    """Writes that wait for ``dependencies``, none of which is one of them."""

    run: WriteRun
    dependencies: tuple[int, ...]


def waiting(jobs: JobQueue, job_ids: Sequence[int], dependencies: Sequence[tuple[int, ...]]) -> list[int]:
    """The positions of jobs that name one that is not complete, or one of these that waits itself."""
    completed = jobs.completed
    ready: set[int] = set()
    late: list[int] = []
    for position, (job_id, needed) in enumerate(zip(job_ids, dependencies)):
        if all(dependency in ready or dependency in completed for dependency in needed):
            ready.add(job_id)
        else:
            late.append(position)
    return late


_NONE: set[int] = set()


def missing_jobs(jobs: JobQueue, job_ids: Sequence[int], dependencies: Sequence[tuple[int, ...]]) -> set[int]:
    """What jobs that are done one after the other name, and would not find complete: before the run, or within it."""
    if not any(dependencies):
        return _NONE
    completed = jobs.completed
    earlier: set[int] = set()
    missing: set[int] = set()
    for job_id, needed in zip(job_ids, dependencies):
        for dependency in needed:
            if dependency not in earlier and dependency not in completed:
                missing.add(dependency)
        earlier.add(job_id)
    return missing
