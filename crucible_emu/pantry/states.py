"""What may happen to an attached volume and to a job, as tables which the code executes (apis-and-tools.md §2.5, §2.6).

What it is for: :data:`ENTRY_TRANSITIONS` is the life of a volume in the pantry, :data:`ADMISSION` what may be asked of
it in each state, :data:`JOB_TRANSITIONS` the life of a job. Nobody changes a state by any other way.

::

    attach ─► BUILDING ──built──► ATTACHED ──detach──► DETACHING ──left──► GONE
                 │                  ▲   │                │  │
                 │ not built        │   └── failed ──┐   │  └─ not built ─► GONE
                 ▼                  └──── stayed ────│───┘
                GONE                                ▼
                                                   LOST ──detach──► GONE

What it guarantees: what a table does not list is a defect and raises :class:`KeyError`; no request causes it.
"""

from __future__ import annotations

from enum import Enum, StrEnum


class EntryState(Enum):
    """Where a volume is."""

    BUILDING = "building"
    """Its parts are opened and measured; whoever asks for it waits."""
    ATTACHED = "attached"
    """It can be used, as far as it is active."""
    DETACHING = "detaching"
    """Its jobs are being ended; it is flushed and leaves service."""
    LOST = "lost"
    """What drove it has failed; it can only be detached."""
    GONE = "gone"


class EntryEvent(Enum):
    """What happens to a volume."""

    BUILT = "it was put together"
    NOT_BUILT = "it could not be put together, or need not be any more"
    DETACH = "somebody detaches it"
    LEFT = "it is out of service"
    STAYED = "its deactivation failed"
    FAILED = "what drives it failed"


_E, _V = EntryState, EntryEvent

ENTRY_TRANSITIONS: dict[tuple[EntryState, EntryEvent], EntryState] = {
    (_E.BUILDING, _V.BUILT): _E.ATTACHED,
    (_E.BUILDING, _V.NOT_BUILT): _E.GONE,
    (_E.BUILDING, _V.DETACH): _E.DETACHING,
    (_E.ATTACHED, _V.DETACH): _E.DETACHING,
    (_E.ATTACHED, _V.FAILED): _E.LOST,
    (_E.DETACHING, _V.NOT_BUILT): _E.GONE,
    (_E.DETACHING, _V.LEFT): _E.GONE,
    (_E.DETACHING, _V.STAYED): _E.ATTACHED,
    (_E.DETACHING, _V.FAILED): _E.LOST,
    (_E.LOST, _V.DETACH): _E.GONE,
}


class Use(Enum):
    """What is asked of a volume that the pantry has."""

    ATTACH = "attach it again"
    LOOK = "ask how it is"
    DATA = "replace, import, snapshot, read, write, scrub, validate"
    DETACH = "detach it"


class Admission(Enum):
    """May it be asked now?"""

    YES = "yes"
    NOT_WHEN_TAKEN = "yes, unless it was active once and is not any more"
    WAIT = "when it is built"
    DEACTIVATING = "no: it is leaving"
    CALL_AGAIN = "not now"


_U, _A = Use, Admission

ADMISSION: dict[tuple[EntryState, Use], Admission] = {
    (_E.BUILDING, _U.ATTACH): _A.YES,
    (_E.BUILDING, _U.LOOK): _A.WAIT,
    (_E.BUILDING, _U.DATA): _A.WAIT,
    (_E.BUILDING, _U.DETACH): _A.YES,
    (_E.ATTACHED, _U.ATTACH): _A.NOT_WHEN_TAKEN,
    (_E.ATTACHED, _U.LOOK): _A.YES,
    (_E.ATTACHED, _U.DATA): _A.NOT_WHEN_TAKEN,
    (_E.ATTACHED, _U.DETACH): _A.YES,
    (_E.DETACHING, _U.ATTACH): _A.CALL_AGAIN,
    (_E.DETACHING, _U.LOOK): _A.YES,
    (_E.DETACHING, _U.DATA): _A.DEACTIVATING,
    (_E.DETACHING, _U.DETACH): _A.CALL_AGAIN,
    (_E.LOST, _U.ATTACH): _A.NOT_WHEN_TAKEN,
    (_E.LOST, _U.LOOK): _A.YES,
    (_E.LOST, _U.DATA): _A.NOT_WHEN_TAKEN,
    (_E.LOST, _U.DETACH): _A.YES,
}


class JobKind(StrEnum):
    """What a job does."""

    ACTIVATE = "activate"
    IMPORT = "import"
    SCRUB = "scrub"
    VALIDATE = "validate"


class JobState(StrEnum):
    """How far a job is."""

    RUNNING = "running"
    OK = "ok"
    FAILED = "failed"
    CANCELLED = "cancelled"
    """Its volume was detached, or the pantry ended, before it had."""
    DIED = "died"
    """It failed for a reason that nobody foresaw."""


class JobEvent(Enum):
    """How a job ends."""

    SUCCEEDED = "it has done what it was for"
    REFUSED = "it failed for a reason that can be told"
    CANCELLED = "it was ended from outside"
    CRASHED = "it failed for a reason that nobody foresaw"


JOB_TRANSITIONS: dict[tuple[JobState, JobEvent], JobState] = {
    (JobState.RUNNING, JobEvent.SUCCEEDED): JobState.OK,
    (JobState.RUNNING, JobEvent.REFUSED): JobState.FAILED,
    (JobState.RUNNING, JobEvent.CANCELLED): JobState.CANCELLED,
    (JobState.RUNNING, JobEvent.CRASHED): JobState.DIED,
}
