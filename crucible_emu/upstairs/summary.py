"""One job as people are shown it: the ``WorkSummary`` of the control API (upstairs-volume.md §15.3).

What it is for: :func:`summaries` turns a job, or what was kept of one, into one plain document per operation, for a
train is as many jobs to everybody outside as it has operations. :class:`RetiredJob` is what the last few retired jobs
leave behind.

Why keeping it is safe: it holds numbers only. The job itself refers to the guest's memory, which is lent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from crucible_emu.upstairs.jobs import Job
from crucible_emu.upstairs.rules import CLIENTS, JobKind

COMPLETED_MAX = 8
"""How many retired jobs are remembered."""

JOB_TYPES: dict[JobKind, str] = {
    JobKind.READ: "Read",
    JobKind.WRITE: "Write",
    JobKind.WRITE_UNWRITTEN: "WriteU",
    JobKind.FLUSH: "Flush",
    JobKind.SNAPSHOT_FLUSH: "Flush",
    JobKind.BARRIER: "Barrier",
    JobKind.EXTENT_CLOSE: "FClose",
    JobKind.EXTENT_REPAIR: "Repair",
    JobKind.EXTENT_NO_OP: "NoOp",
    JobKind.EXTENT_REOPEN: "Reopen",
}
NAMES_AN_EXTENT = frozenset({JobKind.EXTENT_CLOSE, JobKind.EXTENT_REPAIR, JobKind.EXTENT_REOPEN})
"""Where ``num_blocks`` is the number of the extent; the real program has it so."""
MOVES_BLOCKS = frozenset({JobKind.READ, JobKind.WRITE, JobKind.WRITE_UNWRITTEN})


@dataclass(slots=True)  # not frozen, which would make it three times as dear
class RetiredJob:
    """What is kept of a job that is final everywhere; the members are those of :class:`Job`."""

    kind: JobKind
    first_id: int
    count: int
    starts: list[int]
    lengths: list[int]
    dependencies: list[list[int]] | None
    replayed: bool
    acked: bool
    in_progress: list[int]
    done: list[int]
    failed: list[int]


def retired(job: Job) -> RetiredJob:
    """What to keep of ``job``. Its lists are taken over: nobody changes them once it is final."""
    return RetiredJob(
        job.kind,
        job.first_id,
        job.count,
        job.starts,
        job.lengths,
        job.dependencies,
        job.replayed,
        job.acked,
        job.in_progress,
        job.done,
        job.failed,
    )


def summaries(job: Job | RetiredJob) -> list[dict[str, Any]]:
    """A ``WorkSummary`` for each operation of ``job``, in the order of their ids."""
    return [
        {
            "id": job.first_id + index,
            "replay": job.replayed,
            "job_type": JOB_TYPES[job.kind],
            "num_blocks": _num_blocks(job, index),
            "deps": list(job.dependencies[index]) if job.dependencies else [],
            "ack_status": "acked" if job.acked else "not_acked",
            "state": [_outcome(job, client, 1 << index) for client in CLIENTS],
        }
        for index in range(job.count)
    ]


def _num_blocks(job: Job | RetiredJob, index: int) -> int:
    if job.kind in MOVES_BLOCKS:
        return job.lengths[index]
    return job.starts[0] if job.kind in NAMES_AN_EXTENT else 0


def _outcome(job: Job | RetiredJob, client: int, bit: int) -> str:
    """The four words of the real program, the blank of the last one included."""
    if job.in_progress[client] & bit:
        return "Sent"
    if job.done[client] & bit:
        return "Done"
    return " Err" if job.failed[client] & bit else "Skip"
