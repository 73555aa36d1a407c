"""One volume that still names a read-only target that is replaced: the machine and rows of steps (nexus.md §2.3, §4.6).

What it is for: a request that runs makes a step for each volume that counts on its old target. A step holds the lock of
that volume, and its stash volume takes over the reference to the old target when the two are exchanged.

Why a stash is never taken for an affected volume (R10, W45, *safety*): its id is written into the step when the saga
takes the step, before the stash names anything; the real one writes it at the end. And a step that is complete, whose
stash still names the target, is cleaned up before new steps are looked for.

*Complete* does not mean that the request may end: a step's stash still holds a reference. Only *volume deleted* does;
whichever volume that speaks of, the stash or the affected one.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Any

from sqlalchemy import Connection, Row, bindparam, func, insert, select

from nexus.db import NotFound, schema
from nexus.db.schema import RegionSnapshotReplacementStepState
from nexus.replacement.machine import Edge, Hold, Machine
from nexus.saga.identities import derived
from nexus.volumes import LockResult, RepairLocks
from nexus.volumes.repair_lock import wait_no_more

_STEP = schema.region_snapshot_replacement_step
_S = RegionSnapshotReplacementStepState
STEP_SAGA, COLLECT, STEP_TASK = "step saga", "step garbage-collect saga", "step task"
ACTIVE = (_S.REQUESTED, _S.RUNNING)


class StepEdge(Enum):
    """What may happen to a step."""

    RUN = "run"
    RUN_UNDONE = "run undone"
    COMPLETE = "complete"
    STASH_DELETED = "stash deleted"
    NO_LONGER_NEEDED = "no longer needed"


_E = StepEdge

READ_ONLY_REPLACEMENT_STEP = Machine(
    "step of a read-only target replacement",
    _STEP,
    _S.REQUESTED,
    "step task (insert, and take the volume's lock)",
    {
        _E.RUN: Edge(2, _S.REQUESTED, _S.RUNNING, Hold.TAKE, STEP_SAGA, records=("old_snapshot_volume_id",)),
        _E.RUN_UNDONE: Edge(
            3, _S.RUNNING, _S.REQUESTED, Hold.GIVE, STEP_SAGA, clears=("old_snapshot_volume_id",), back=True
        ),
        _E.COMPLETE: Edge(4, _S.RUNNING, _S.COMPLETE, Hold.GIVE, STEP_SAGA, ends=True),
        _E.STASH_DELETED: Edge(5, _S.COMPLETE, _S.VOLUME_DELETED, Hold.NONE, COLLECT),
        _E.NO_LONGER_NEEDED: Edge(
            6,
            _S.REQUESTED,
            _S.VOLUME_DELETED,
            Hold.NONE,
            STEP_TASK,
            expects_null=("old_snapshot_volume_id",),
            ends=True,
        ),
    },
)


@dataclass(frozen=True, slots=True)
class Step:
    """A row."""

    id: str
    request_id: str
    request_time: datetime
    volume_id: str
    old_snapshot_volume_id: str | None
    state: RegionSnapshotReplacementStepState
    operating_saga_id: str | None


class InsertStepResult(Enum):
    """What came of making a step."""

    INSERTED = "inserted"
    ALREADY_HANDLED = "already handled"
    LOCK_HELD = "the volume's lock is held by another"


def step_insert(
    connection: Connection, locks: RepairLocks, request_id: str, volume_id: str, now: datetime
) -> tuple[str, InsertStepResult]:
    """Make a step for the volume: its id, and what came of it. Refused, it waits in line for the lock under that id."""
    if is_stash(connection, volume_id):
        return volume_id, InsertStepResult.ALREADY_HANDLED
    active = connection.execute(
        select(_STEP.c.id).where(_STEP.c.volume_id == volume_id, _STEP.c.replacement_state.in_(ACTIVE))
    ).scalar_one_or_none()
    if active is not None:
        return active, InsertStepResult.ALREADY_HANDLED
    mine = (_STEP.c.request_id == request_id, _STEP.c.volume_id == volume_id)
    before = connection.execute(select(func.count()).select_from(_STEP).where(*mine)).scalar_one()
    step_id = derived(request_id, "step", volume_id, str(before))
    if locks.volume_repair_insert(connection, volume_id, step_id, now) is LockResult.HELD_BY_ANOTHER:
        return step_id, InsertStepResult.LOCK_HELD
    wait_no_more(connection, step_id)
    values = {"id": step_id, "request_id": request_id, "request_time": now, "volume_id": volume_id}
    connection.execute(insert(_STEP).values(**values, replacement_state=READ_ONLY_REPLACEMENT_STEP.created))
    return step_id, InsertStepResult.INSERTED


def is_stash(connection: Connection, volume_id: str) -> bool:
    """Whether the volume holds what some step has put aside (R10)."""
    return connection.execute(select(_STEP.c.id).where(_STEP.c.old_snapshot_volume_id == volume_id)).first() is not None


def step_get(connection: Connection, step_id: str) -> Step:
    """The step. Raises :class:`~nexus.db.NotFound`."""
    row = connection.execute(select(_STEP).where(_STEP.c.id == step_id)).one_or_none()
    if row is None:
        raise NotFound("region_snapshot_replacement_step", step_id)
    return _of(row)


_IN = (
    select(_STEP)
    .where(_STEP.c.replacement_state.in_(bindparam("states", expanding=True)))
    .order_by(_STEP.c.request_time, _STEP.c.id)
)
_OF_REQUEST_IN = _IN.where(_STEP.c.request_id == bindparam("request"))


def steps_in(
    connection: Connection,
    states: Collection[RegionSnapshotReplacementStepState],
    *,
    request_id: str | None = None,
) -> list[Step]:
    """The steps in these states, of one request or of all, oldest first."""
    query = _IN if request_id is None else _OF_REQUEST_IN
    asked = {"states": sorted(states)} | ({} if request_id is None else {"request": request_id})
    return [_of(row) for row in connection.execute(query, asked)]


def steps_in_progress(connection: Connection, request_id: str) -> int:
    """How many steps keep the request from ending (R24): all but those whose stash or volume is deleted."""
    open_ones = (_STEP.c.request_id == request_id, _STEP.c.replacement_state != _S.VOLUME_DELETED)
    return connection.execute(select(func.count()).select_from(_STEP).where(*open_ones)).scalar_one()


def _of(row: Row[Any]) -> Step:
    return Step(
        row.id,
        row.request_id,
        row.request_time,
        row.volume_id,
        row.old_snapshot_volume_id,
        RegionSnapshotReplacementStepState(row.replacement_state),
        row.operating_saga_id,
    )
