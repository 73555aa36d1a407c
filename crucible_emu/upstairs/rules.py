"""When a job is answered, with what, and who may be sent it: the acknowledgement rules in one table.

What it is for: :data:`RULES` holds, for each kind of job, how many replicas must have it done before whoever waits
hears of it, how many may fail, and how many must be accepting work before it is admitted at all (upstairs-volume.md
§5.3, §6.4, §6.5). The Upstairs reads the table; it contains no such number itself.

Why it is safe: a flush is acknowledged when two of three hold everything before it durably, so any two survivors
contain one that has it. Writes are acknowledged before they are sent; they promise nothing until a flush.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from crucible_emu.upstairs.states import ClientState, Mode, Phase

CLIENTS = (0, 1, 2)


class JobKind(Enum):
    """What a job does."""

    READ = "Read"
    WRITE = "Write"
    WRITE_UNWRITTEN = "WriteUnwritten"
    FLUSH = "Flush"
    SNAPSHOT_FLUSH = "Flush with snapshot"
    BARRIER = "Barrier"
    EXTENT_CLOSE = "ExtentLiveClose"
    EXTENT_REPAIR = "ExtentLiveRepair"
    EXTENT_NO_OP = "ExtentLiveNoOp"
    EXTENT_REOPEN = "ExtentLiveReopen"


WRITES = frozenset({JobKind.WRITE, JobKind.WRITE_UNWRITTEN})
FLUSHES = frozenset({JobKind.FLUSH, JobKind.SNAPSHOT_FLUSH})
RETIRING = FLUSHES | {JobKind.BARRIER}
"""When one of these is final on all replicas, it and everything before it are forgotten (§6.8)."""
REPAIRS = frozenset({JobKind.EXTENT_CLOSE, JobKind.EXTENT_REPAIR, JobKind.EXTENT_NO_OP, JobKind.EXTENT_REOPEN})
"""The four jobs of the live repair of one extent (§8.2)."""


@dataclass(frozen=True, slots=True)
class Rule:
    """How one kind of job is answered.

    ``admit_min``: clients that must accept work for the guest's request to be taken. ``done_for_ack``: replicas that
    must have done it before it is acknowledged, ``None``: at admission. ``done_min``: fewer done at the end is failure.
    ``errors_max``: more replicas that answer with an error are a failure, too.
    """

    admit_min: int
    done_for_ack: int | None
    done_min: int
    errors_max: int = 3


RULES: dict[JobKind, Rule] = {
    #                             admit  ack        at least
    JobKind.READ: Rule(1, 1, 1),
    JobKind.WRITE: Rule(2, None, 2),
    JobKind.WRITE_UNWRITTEN: Rule(2, None, 2),
    JobKind.FLUSH: Rule(2, 2, 2),
    JobKind.SNAPSHOT_FLUSH: Rule(3, 3, 3),
    JobKind.BARRIER: Rule(0, 3, 2),
    JobKind.EXTENT_CLOSE: Rule(0, 3, 2, errors_max=0),
    JobKind.EXTENT_REPAIR: Rule(0, 3, 2, errors_max=0),
    JobKind.EXTENT_NO_OP: Rule(0, 3, 2, errors_max=0),
    JobKind.EXTENT_REOPEN: Rule(0, 3, 2, errors_max=0),
}


class Dispatch(Enum):
    """What happens to a new job for one client (§2.6)."""

    SEND = "send"
    HOLD = "hold"
    SKIP = "skip"


def dispatch(state: ClientState) -> Dispatch:
    """Whether a client in ``state`` is sent a new job, has it held for replay, or skips it (§2.6)."""
    if state.phase in (Phase.ACTIVE, Phase.LIVE_REPAIR):
        return Dispatch.SEND
    if state.connecting and state.mode is Mode.OFFLINE:
        return Dispatch.HOLD
    return Dispatch.SKIP
