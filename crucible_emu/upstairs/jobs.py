"""Jobs: what the guest asked for, on its way to three replicas.

What it is for: requests that arrive together become one :class:`Job`, a train of ``count`` operations of one kind with
consecutive ids. On the wire each keeps its own id and frame; here the whole train is one object, and its progress on
each replica is a bit mask with one bit per operation. A batch of one is the same code. Writes of single blocks may come
to a job that has not been sent: it is *open* then, and has :class:`Gathered` data.

What it guarantees: each operation is, on each client, in exactly one of *in progress*, *done*, *failed* or *skipped*.
:class:`JobTable` holds the jobs that are not final everywhere, and those that a replica which comes back would have to
be sent again. Admission bounds the former, flushes and barriers the latter, so memory does not grow with the time that
a disk has been running.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from crucible_emu.errors import CrucibleError
from crucible_emu.geometry import BlockIndexes
from crucible_emu.integrity import BlockContexts, Rows
from crucible_emu.upstairs.rules import CLIENTS, REPAIRS, WRITES, JobKind

FIRST_JOB_ID = 1000
CHANGING = WRITES | REPAIRS
"""Jobs after which a replica's blocks may be others than before."""


Prove = Callable[[Sequence[bytes]], tuple[Rows, BlockContexts]]
"""Makes what a job carries of the data of its blocks."""


class Gathered:
    """Data of single blocks that came one after the other, ``blocks`` all of which differ, for a job that is open."""

    __slots__ = ("_prove", "blocks", "data")

    def __init__(self, prove: Prove) -> None:
        self.blocks: set[int] = set()
        self.data: list[bytes] = []
        self._prove = prove

    def take(self, blocks: Sequence[int], data: Sequence[bytes]) -> None:
        self.blocks.update(blocks)
        self.data.extend(data)

    def proven(self) -> tuple[Rows, BlockContexts]:
        return self._prove(self.data)


class Job:
    """A train of operations of one kind.

    ``starts`` and ``lengths`` in blocks, one per operation. Writes carry ``blocks`` int64[n], ``rows`` uint8[n, block
    size] and ``contexts`` of all their blocks, operation after operation. ``dependencies``: one list per operation.
    ``changes``: its kind is one of :data:`CHANGING`. ``handle`` belongs to whoever submitted the job. ``error``: what
    it was acknowledged with. ``retained``: final on all clients, kept for a replay. ``replayed``: sent again to a
    client that came back. ``asked_before``: of a read, the id from which on jobs were made after it was last sent.
    ``encoded``: the frames that a replica was sent for which it had these dependencies, and which referred to its data
    at this place or contained them, until the job is final.
    ``gathered``: while it is open, what ``rows`` and ``contexts`` will be made of.
    """

    __slots__ = (
        "acked",
        "asked_before",
        "blocks",
        "changes",
        "contexts",
        "count",
        "dependencies",
        "done",
        "encoded",
        "error",
        "failed",
        "first_id",
        "flush_number",
        "full",
        "gathered",
        "gen_number",
        "handle",
        "in_progress",
        "kind",
        "lengths",
        "replayed",
        "retained",
        "rows",
        "size_bytes",
        "skipped",
        "snapshot",
        "starts",
    )

    def __init__(
        self, kind: JobKind, first_id: int, starts: list[int], lengths: list[int], size_bytes: int, handle: Any = None
    ) -> None:
        self.kind = kind
        self.changes = kind in CHANGING
        self.first_id = first_id
        self.count = len(starts)
        self.full = (1 << self.count) - 1
        self.starts = starts
        self.lengths = lengths
        self.size_bytes = size_bytes
        self.handle = handle
        self.blocks: BlockIndexes | None = None
        self.rows: Rows | None = None
        self.contexts: BlockContexts | None = None
        self.dependencies: list[list[int]] | None = None
        self.flush_number = 0
        self.gen_number = 0
        self.snapshot: str | None = None
        self.acked = False
        self.asked_before = 0
        self.encoded: tuple[list[list[int]], int | None, list[bytes | memoryview]] | None = None
        self.gathered: Gathered | None = None
        self.error: CrucibleError | None = None
        self.retained = False
        self.replayed = False
        self.in_progress = [0, 0, 0]
        self.done = [0, 0, 0]
        self.failed = [0, 0, 0]
        self.skipped = [0, 0, 0]

    @property
    def complete(self) -> bool:
        """Whether no client has any of it in progress."""
        return not any(self.in_progress)

    def close(self) -> None:
        """Nothing comes to it any more."""
        if self.gathered is not None:
            self.rows, self.contexts = self.gathered.proven()
            self.gathered = None

    def contains(self, job_id: int) -> bool:
        """Whether ``job_id`` is one of its operations."""
        return self.first_id <= job_id < self.first_id + self.count

    def done_count(self) -> int:
        """On how many clients the whole train is done."""
        return sum(mask == self.full for mask in self.done)

    def __repr__(self) -> str:
        return f"Job({self.kind.value} {self.first_id}+{self.count}, in progress {self.in_progress})"


class JobTable:
    """The jobs in the order of their ids, with what each client still owes."""

    def __init__(self) -> None:
        self._by_first: dict[int, Job] = {}
        self._firsts: list[int] = []
        self._forgotten = 0
        self.jobs_in_progress = [0, 0, 0]
        self.bytes_in_progress = [0, 0, 0]
        self.changes_in_progress = [0, 0, 0]
        """The same as ``jobs_in_progress``, of :data:`CHANGING` only."""

    def __len__(self) -> int:
        return len(self._by_first)

    def __iter__(self) -> Iterator[Job]:
        """In the order of the ids; the table may change meanwhile."""
        by_first = self._by_first
        return iter([by_first[first] for first in self._firsts if first in by_first])

    def add(self, job: Job) -> None:
        """Start tracking ``job``."""
        self._by_first[job.first_id] = job
        if self._firsts and job.first_id < self._firsts[-1]:
            insort(self._firsts, job.first_id)  # a job of a live repair, whose ids were taken before
        else:
            self._firsts.append(job.first_id)
        for client in CLIENTS:
            if job.in_progress[client]:
                self.jobs_in_progress[client] += job.count
                self.bytes_in_progress[client] += job.size_bytes
                if job.changes:
                    self.changes_in_progress[client] += job.count

    def grow(self, job: Job, starts: list[int], size_bytes: int) -> None:
        """To ``job``, which is open and stands last, come operations of one block each."""
        before, added = job.full, len(starts)
        job.starts += starts
        job.lengths += [1] * added
        job.size_bytes += size_bytes
        job.count += added
        job.full = (1 << job.count) - 1
        for client in CLIENTS:
            if job.in_progress[client]:
                job.in_progress[client] = job.full
                self.jobs_in_progress[client] += added
                self.bytes_in_progress[client] += size_bytes
                self.changes_in_progress[client] += added
            else:
                job.skipped[client] |= job.full ^ before

    def find(self, job_id: int) -> Job | None:
        """The job that contains ``job_id``, unless it is forgotten."""
        index = bisect_right(self._firsts, job_id) - 1
        if index < 0:
            return None
        job = self._by_first.get(self._firsts[index])
        return job if job is not None and job.contains(job_id) else None

    def live(self, job_id: int) -> bool:
        """Whether somebody may still have to wait for this job."""
        return self.find(job_id) is not None

    def restart(self, job: Job, client: int) -> None:
        """All of ``job`` is in progress on ``client`` from now on, whatever it was before."""
        job.skipped[client] = job.done[client] = job.failed[client] = 0
        before, job.in_progress[client] = job.in_progress[client], job.full
        self.jobs_in_progress[client] += job.count - before.bit_count()
        if job.changes:
            self.changes_in_progress[client] += job.count - before.bit_count()
        if not before:
            self.bytes_in_progress[client] += job.size_bytes

    def settle(self, job: Job, client: int, mask: int, outcome: list[int]) -> None:
        """Move operations ``mask`` of ``job`` from in progress to ``outcome`` (one of the job's own mask lists)."""
        before = job.in_progress[client]
        moved = before & mask
        job.in_progress[client] = before & ~moved
        outcome[client] |= moved
        self.jobs_in_progress[client] -= moved.bit_count()
        if job.changes:
            self.changes_in_progress[client] -= moved.bit_count()
        if before and not job.in_progress[client]:
            self.bytes_in_progress[client] -= job.size_bytes

    def forget(self, job: Job) -> None:
        """Stop tracking a job that is final on all clients."""
        if self._by_first.pop(job.first_id, None) is None:
            return
        self._forgotten += 1
        # Removing from the middle of the list is linear; doing it for half of the list at once makes it constant.
        if self._forgotten * 2 > len(self._firsts):
            self._firsts = sorted(self._by_first)
            self._forgotten = 0

    def clear(self) -> None:
        """Forget everything; nobody waits for any of it."""
        self._by_first.clear()
        self._firsts.clear()
        self._forgotten = 0
        self.jobs_in_progress = [0, 0, 0]
        self.bytes_in_progress = [0, 0, 0]
        self.changes_in_progress = [0, 0, 0]
