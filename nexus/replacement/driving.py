"""What a drive of a replacement does next, decided from facts alone (nexus.md §3.2).

What it is for: the document of a volume names a new region in the place of a lost one. Somebody's Upstairs has to copy
into it, and *only an Upstairs may say that the volume is whole again*: that it was asked to proves nothing. The saga
gathers facts; what follows from them stands in the tables here: :data:`LAST_VMM`, :data:`LAST_PANTRY` (is the last one
that was asked still at it?), :data:`NEXT` (whom to ask now), :data:`ANSWERS` (what an answer means).

Copies that a pantry made alike, and that are not by their hashes, will hardly be the next time:
:func:`asked_again_from` is when to try once more.

What it guarantees: every member of every kind of fact has its line; what a table does not list does not happen.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from crucible_emu.pantry.documents import ReplaceResult
from nexus.db.schema import VmmState
from nexus.replacement.health import Health
from nexus.replacement.owners import Situation

SILENT_MAX = timedelta(minutes=5)
"""W10, *liveness*: an instance that runs and has told nothing for so long is asked again. Its notification may be
lost, and it may be in service for years."""


class Check(StrEnum):
    """What became of the last step; the values are the names of nexus.md."""

    LAST_STEP_STILL_RUNNING = "LastStepStillRunning"
    WAIT = "Wait"
    DONE = "Done"
    ACTION_REQUIRED = "ActionRequired"


class Prepared(StrEnum):
    """Whom to ask now."""

    PROPOLIS = "Propolis"
    PANTRY = "Pantry"
    IMPORT = "Import"
    NOBODY = "Noop"


# -- was the last step enough? ----------------------------------------------------------------------------------------

LAST_VMM: dict[VmmState, Check] = {
    VmmState.RUNNING: Check.LAST_STEP_STILL_RUNNING,
    VmmState.REBOOTING: Check.LAST_STEP_STILL_RUNNING,
    # The real one fails and unwinds in these three, which comes to the same.
    VmmState.CREATING: Check.WAIT,
    VmmState.STARTING: Check.WAIT,
    VmmState.MIGRATING: Check.WAIT,
    VmmState.STOPPING: Check.WAIT,
    VmmState.STOPPED: Check.WAIT,
    VmmState.FAILED: Check.WAIT,
    VmmState.DESTROYED: Check.WAIT,
    VmmState.SAGA_UNWOUND: Check.WAIT,
}
"""The process that was asked is the one that the instance names still, and is in this state."""


@dataclass(frozen=True, slots=True)
class VmmFacts:
    """Of a last step that asked an instance. ``now``: the process that the instance names, if any, and its state.
    ``silent``: how long ago it was asked."""

    asked_vmm_id: str
    now_vmm_id: str | None
    now_state: VmmState | None
    migrating: bool
    silent: timedelta


def check_vmm(facts: VmmFacts) -> Check:
    """Is the process that was asked still at it?"""
    if facts.now_vmm_id is None or facts.now_state is None:
        return Check.ACTION_REQUIRED
    if facts.migrating:
        return Check.WAIT  # R30, an optimisation: the process is another one afterwards, and is asked anew
    if facts.now_vmm_id != facts.asked_vmm_id:
        return Check.ACTION_REQUIRED
    found = LAST_VMM[facts.now_state]
    if found is Check.LAST_STEP_STILL_RUNNING and too_long_silent(facts.silent):
        return Check.ACTION_REQUIRED
    return found


def too_long_silent(silent: timedelta) -> bool:
    """W10: whether one that has told nothing is asked again."""
    return silent >= SILENT_MAX


class PantrySaid(StrEnum):
    """What is found of a last step that asked a pantry."""

    TAKEN_OVER = "an Upstairs elsewhere has the volume now"
    NO_ANSWER = "the pantry, or the job, is not there"
    RUNNING = "the job has not ended"
    OTHER_DOCUMENT = "it was given another document than the volume has now"
    SEEN_ACTIVE = "the job has ended, and the volume was active"
    NOT_ACTIVE = "the job has ended, and the volume was never active"
    NO_STATUS = "the job has ended, and the volume is not there"


LAST_PANTRY: dict[PantrySaid, Check] = {
    PantrySaid.TAKEN_OVER: Check.ACTION_REQUIRED,
    PantrySaid.NO_ANSWER: Check.ACTION_REQUIRED,
    PantrySaid.RUNNING: Check.LAST_STEP_STILL_RUNNING,
    # *Liveness* (W41, W54): a document with a lost copy in it is never activated; the one that took its place may be.
    PantrySaid.OTHER_DOCUMENT: Check.ACTION_REQUIRED,
    # R29: also of a volume that was taken over and given up since.
    PantrySaid.SEEN_ACTIVE: Check.DONE,
    PantrySaid.NOT_ACTIVE: Check.ACTION_REQUIRED,
    PantrySaid.NO_STATUS: Check.ACTION_REQUIRED,
}


# -- whom to ask ------------------------------------------------------------------------------------------------------

NEXT: dict[Situation, Prepared] = {
    Situation.RUNNING: Prepared.PROPOLIS,
    # *Liveness*: its document was handed out with the lost copy in it, and it waits for all three; told of the new one
    # it goes on. The real one waits for it to run, which it never does.
    Situation.STARTING: Prepared.PROPOLIS,
    Situation.UNSETTLED: Prepared.NOBODY,
    # R30: the process that it moves to has the old document perhaps, and is asked when it is the only one.
    Situation.MIGRATING: Prepared.NOBODY,
    Situation.IMPORTING: Prepared.IMPORT,
    Situation.IN_HAND: Prepared.NOBODY,
    Situation.STOPPED: Prepared.PANTRY,
    Situation.DETACHED: Prepared.PANTRY,
    Situation.DESTINATION: Prepared.PANTRY,
    Situation.UNKNOWN: Prepared.NOBODY,
}
"""Who is asked to repair a volume that is in these hands. *Nobody* waits, and says for what."""


ANOTHER_REPAIRS = "another request has the volume repaired"
UNLIKE = "the copies are not alike"
"""So begins the reason of a request whose copies were compared after a pantry had repaired them."""
UNLIKE_PAUSE_MIN, UNLIKE_PAUSE_MAX = timedelta(minutes=1), timedelta(hours=1)


def asked_again_from(unlike_since: datetime, asked_at: datetime) -> datetime:
    """When a pantry is given a volume again whose copies are unlike since then, and which one was given last at
    ``asked_at``. *Optimisation*: to compare is to read all that they hold. The pause is as long as it took so far, so
    it doubles with each attempt, up to :data:`UNLIKE_PAUSE_MAX`."""
    pause = min(max(asked_at - unlike_since, UNLIKE_PAUSE_MIN), UNLIKE_PAUSE_MAX)
    return max(asked_at, unlike_since) + pause


def next_asked(situation: Situation, *, others_turn: bool) -> Prepared:
    """``others_turn``: an older request for the same volume has it at a pantry, or will."""
    found = NEXT[situation]
    return Prepared.NOBODY if found is Prepared.PANTRY and others_turn else found


# -- what the answer means --------------------------------------------------------------------------------------------


class Answer(StrEnum):
    """What follows from the answer of an Upstairs to the document."""

    UNDER_WAY = "under way"
    ASK_HEALTH = "ask how it is"
    FAILED = "failed"


ANSWERS: dict[ReplaceResult, Answer] = {
    ReplaceResult.STARTED: Answer.UNDER_WAY,
    ReplaceResult.STARTED_ALREADY: Answer.UNDER_WAY,
    # The real one believes this. *Safety*: it says that the copy was put in its place and is not on its way in; one
    # whose repair has failed is that, too.
    ReplaceResult.COMPLETED_ALREADY: Answer.ASK_HEALTH,
    ReplaceResult.VCR_MATCHES: Answer.ASK_HEALTH,
    ReplaceResult.MISSING: Answer.FAILED,
}


def is_done(answer: Answer, health: Health | None) -> bool:
    """Whether the Upstairs has said that its copies are whole. ``health`` is ``None`` where it was not asked."""
    return answer is Answer.ASK_HEALTH and health is Health.HEALTHY
