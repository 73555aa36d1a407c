"""Which volumes a request for a read-only target still has to mend, and which of its steps are of no use any more.

What it is for: the step task makes steps and gives them up; the rules of both stand here, each by itself, and each says
what it is for. All are asked in the transaction that acts on them, for between a look and a step a user may delete
anything.

Volumes are found by their references (W20): every volume that names a target and is not deleted has one (I1), so no
volume that is not affected is ever read, and a deleted one is not found (R19).
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection, select

from nexus.db import Conflict, schema
from nexus.db.schema import RegionSnapshotReplacementState
from nexus.replacement.machine import move
from nexus.replacement.notice import Reader, reading_of
from nexus.replacement.read_only import ReadOnlyReplacement, read_only_replacement_get, target_of
from nexus.replacement.step import (
    ACTIVE,
    READ_ONLY_REPLACEMENT_STEP,
    InsertStepResult,
    Step,
    StepEdge,
    step_insert,
)
from nexus.volumes import RepairLocks, volume_deleted, volumes_using
from nexus.volumes.repair_lock import waiters
from nexus.volumes.resolution import Resource, has_usage

_STEP = schema.region_snapshot_replacement_step


def affected_volumes(connection: Connection, request: ReadOnlyReplacement) -> list[str]:
    """Who counts on the target and has no step under way. *Safety* (W55): nobody, where the target is being destroyed,
    for its address may be another's by now."""
    if target_of(connection, request.old) is None:
        return []
    under_way = select(_STEP.c.volume_id).where(_STEP.c.replacement_state.in_(ACTIVE))
    busy = set(connection.execute(under_way.where(_STEP.c.request_id == request.id)).scalars())
    return [volume_id for volume_id in volumes_using(connection, request.old) if volume_id not in busy]


def may_have_steps(connection: Connection, request_id: str) -> bool:
    """*Safety* (R9): only a request that runs. Before that the start saga's stash names the target, and a step for it
    would put the target into a stash of its own, and so on for ever; after it the request is about to end (R24)."""
    return read_only_replacement_get(connection, request_id).state is RegionSnapshotReplacementState.RUNNING


def is_affected(connection: Connection, volume_id: str, target: Resource) -> bool:
    """Whether the volume counts on the target. *Liveness* (R19): a step for one that is deleted would do nothing, and
    be made again."""
    return has_usage(connection, volume_id, target)


def step_make(
    connection: Connection, locks: RepairLocks, request: ReadOnlyReplacement, volume_id: str, now: datetime
) -> tuple[str, InsertStepResult] | None:
    """A step for the volume, as :func:`~nexus.replacement.step.step_insert` says; ``None`` where it needs none."""
    if not may_have_steps(connection, request.id) or not is_affected(connection, volume_id, request.old):
        return None
    return step_insert(connection, locks, request.id, volume_id, now)


# -- steps that nobody needs ------------------------------------------------------------------------------------------


def volume_is_deleted(connection: Connection, step: Step) -> bool:
    """*Optimisation* (R20): the saga copes with it. But then the step has to let go of the lock all the same."""
    return volume_deleted(connection, step.volume_id)


def target_is_taken_away(connection: Connection, step: Step) -> bool:
    """*Liveness* (R23): the volume's parent was removed, or nobody counts on the target any more. The saga would not
    find what it is to replace, and fail for ever."""
    target = read_only_replacement_get(connection, step.request_id).old
    return target_of(connection, target) is None or not has_usage(connection, step.volume_id, target)


def stands_in_the_way(connection: Connection, step: Step) -> bool:
    """*Liveness*: the volume's guest is about to run or to stop, so that the step cannot go on, and somebody else waits
    for the volume. If that is who replaces a lost region of the same volume, the guest cannot run before it has had its
    turn. The step stands in line again, behind it."""
    if not waiters(connection, step.volume_id):
        return False
    return reading_of(connection, step.volume_id).reader is Reader.GUEST_ON_ITS_WAY


def why_void(connection: Connection, step: Step) -> str | None:
    """Why a step that nobody has begun with is of no use now, in a few words; ``None``: it is wanted."""
    if volume_is_deleted(connection, step):
        return f"volume {step.volume_id} is deleted"
    if target_is_taken_away(connection, step):
        return f"volume {step.volume_id} does not name the target any more"
    if stands_in_the_way(connection, step):
        return f"volume {step.volume_id} cannot be changed now, and others wait for it"
    return None


def give_up_if_void(connection: Connection, locks: RepairLocks, step: Step) -> str | None:
    """Give a step up, with its lock, if it is of no use (edge 6); why. ``None`` also where somebody has begun with it
    meanwhile."""
    why = why_void(connection, step)
    if why is None:
        return None
    try:
        move(connection, READ_ONLY_REPLACEMENT_STEP, StepEdge.NO_LONGER_NEEDED, step.id, locks=locks)
    except Conflict:
        return None
    return why
