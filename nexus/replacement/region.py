"""Replacement of a read/write region: its machine, its requests, and whom they asked to repair (nexus.md §2.1, §1.4).

What it is for: region A of volume V is lost. A request holds V's lock from the moment it is made until the end, so that
no other replacement and no snapshot changes what V is made of meanwhile (R2, R32).

Why the phases are apart (R8, R27, *safety*): the document is changed only in Allocating, Upstairs are told only in
Driving, and the old region is destroyed only in Completing. So nobody is told of a change that can still be undone, and
the old region's port is not used again while any document names it.

When several regions of one volume are lost (W54), or the new one is (W41), a second request *joins* the first: it
shares the lock, which goes on to it when the first is complete. Without that the first could never end: an Upstairs
that writes is active only with three whole members. Only the detector joins, and only for what is lost.

Names (*liveness*): the id of a request is derived from its region and from how many requests the region had before, so
that one which was refused the lock finds its place in the line when it comes again.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Any

from sqlalchemy import Connection, Row, bindparam, func, insert, select

from nexus.db import Conflict, NotFound, schema
from nexus.db.schema import RegionReplacementState, RegionReplacementStepType
from nexus.db.transitions import insert_if_absent
from nexus.replacement.machine import Edge, Hold, Machine
from nexus.saga.identities import derived
from nexus.volumes import LockResult, RepairLocks
from nexus.volumes.repair_lock import holder, wait_no_more

_REQUEST, _STEP, _REGION = schema.region_replacement, schema.region_replacement_step, schema.region
_S = RegionReplacementState
START, DRIVE, FINISH = "start saga", "drive saga", "finish saga"
DETECTOR, DRIVER = "detector task", "driver task"


class RegionEdge(Enum):
    """What may happen to a request."""

    ALLOCATE = "allocate"
    ALLOCATE_UNDONE = "allocate undone"
    RUN = "run"
    DRIVE = "drive"
    DRIVE_ENDED = "drive ended"
    DRIVEN = "driven"
    NOTIFIED = "notified"
    COMPLETE_BEGUN = "complete begun"
    COMPLETE_UNDONE = "complete undone"
    COMPLETE = "complete"
    VOLUME_DELETED = "volume deleted"


_E = RegionEdge


def _heir(connection: Connection, request_id: str) -> str | None:
    """The oldest request that is open for the same volume: it goes on holding the lock."""
    volume_id = connection.execute(select(_REQUEST.c.volume_id).where(_REQUEST.c.id == request_id)).scalar_one()
    others = [each.id for each in region_replacements_of_volume(connection, volume_id) if each.id != request_id]
    return others[0] if others else None


REGION_REPLACEMENT = Machine(
    "region replacement",
    _REQUEST,
    _S.REQUESTED,
    "detector task or operator (insert, and take the volume's lock)",
    {
        _E.ALLOCATE: Edge(2, _S.REQUESTED, _S.ALLOCATING, Hold.TAKE, START),
        _E.ALLOCATE_UNDONE: Edge(3, _S.ALLOCATING, _S.REQUESTED, Hold.GIVE, START, back=True),
        _E.RUN: Edge(4, _S.ALLOCATING, _S.RUNNING, Hold.GIVE, START, records=("new_region_id", "old_region_volume_id")),
        _E.DRIVE: Edge(5, _S.RUNNING, _S.DRIVING, Hold.TAKE, DRIVE),
        _E.DRIVE_ENDED: Edge(6, _S.DRIVING, _S.RUNNING, Hold.GIVE, DRIVE, back=True),
        _E.DRIVEN: Edge(7, _S.DRIVING, _S.REPLACEMENT_DONE, Hold.GIVE, DRIVE),
        # R28, *safety*: not out of the hand of a drive saga, which would write Running over it.
        _E.NOTIFIED: Edge(8, _S.RUNNING, _S.REPLACEMENT_DONE, Hold.NONE, DRIVER),
        _E.COMPLETE_BEGUN: Edge(9, _S.REPLACEMENT_DONE, _S.COMPLETING, Hold.TAKE, FINISH),
        _E.COMPLETE_UNDONE: Edge(10, _S.COMPLETING, _S.REPLACEMENT_DONE, Hold.GIVE, FINISH, back=True),
        _E.COMPLETE: Edge(11, _S.COMPLETING, _S.COMPLETE, Hold.GIVE, FINISH, ends=True),
        _E.VOLUME_DELETED: Edge(12, _S.REQUESTED, _S.COMPLETE, Hold.NONE, DETECTOR, ends=True),
    },
    _heir,
)


@dataclass(frozen=True, slots=True)
class RegionReplacement:
    """A request."""

    id: str
    request_time: datetime
    old_region_id: str
    volume_id: str
    old_region_volume_id: str | None
    new_region_id: str | None
    state: RegionReplacementState
    operating_saga_id: str | None


class RequestResult(Enum):
    """What came of asking for a replacement."""

    MADE = "made"
    OPEN_ALREADY = "open already"
    LOCK_HELD = "the volume's lock is held by another"


def region_replacement_request(
    connection: Connection, locks: RepairLocks, region_id: str, now: datetime, *, join: bool = False
) -> tuple[str, RequestResult]:
    """Ask for the replacement of a read/write region: the request's id, and what came of it. Refused, it waits in line
    for the lock under that id. ``join``: the region is lost, so it need not wait for replacements of the same volume.

    Raises :class:`~nexus.db.NotFound`, and :class:`~nexus.db.Conflict` for a read-only region (W8)."""
    query = select(_REGION.c.volume_id, _REGION.c.read_only).where(_REGION.c.id == region_id)
    region = connection.execute(query).one_or_none()
    if region is None:
        raise NotFound("region", region_id)
    require_written_to(region_id, region.read_only)
    open_one = select(_REQUEST.c.id).where(
        _REQUEST.c.old_region_id == region_id, _REQUEST.c.replacement_state != "complete"
    )
    found = connection.execute(open_one).scalar_one_or_none()
    if found is not None:
        return found, RequestResult.OPEN_ALREADY
    before = connection.execute(
        select(func.count()).select_from(_REQUEST).where(_REQUEST.c.old_region_id == region_id)
    ).scalar_one()
    request_id = derived(region_id, "replacement", str(before))
    if not (join and _may_join(connection, region.volume_id)):
        taken = locks.volume_repair_insert(connection, region.volume_id, request_id, now)
        if taken is LockResult.HELD_BY_ANOTHER:
            return request_id, RequestResult.LOCK_HELD
    wait_no_more(connection, request_id)
    connection.execute(
        insert(_REQUEST).values(
            id=request_id,
            request_time=now,
            old_region_id=region_id,
            volume_id=region.volume_id,
            replacement_state=REGION_REPLACEMENT.created,
        )
    )
    return request_id, RequestResult.MADE


def require_written_to(region_id: str, read_only: bool) -> None:
    """W8, *liveness*: no saga could go on with a request of the wrong kind. Raises :class:`~nexus.db.Conflict`."""
    if read_only:
        raise Conflict(f"region {region_id} is read-only: ask for the replacement of a read-only target")


def _may_join(connection: Connection, volume_id: str) -> bool:
    """Whether the lock of the volume is in the hands of its own replacements."""
    held = holder(connection, volume_id)
    return held is not None and held.repair_id in {
        each.id for each in region_replacements_of_volume(connection, volume_id)
    }


_BY_ID = select(_REQUEST).where(_REQUEST.c.id == bindparam("request"))
_OLDEST_FIRST = select(_REQUEST).order_by(_REQUEST.c.request_time, _REQUEST.c.id)
_IN = _OLDEST_FIRST.where(_REQUEST.c.replacement_state.in_(bindparam("states", expanding=True)))
_AT_REST_IN = _IN.where(_REQUEST.c.operating_saga_id.is_(None))
_OPEN_FOR = _OLDEST_FIRST.where(_REQUEST.c.volume_id == bindparam("volume"), _REQUEST.c.replacement_state != "complete")


def region_replacement_get(connection: Connection, request_id: str) -> RegionReplacement:
    """The request. Raises :class:`~nexus.db.NotFound`."""
    row = connection.execute(_BY_ID, {"request": request_id}).one_or_none()
    if row is None:
        raise NotFound("region_replacement", request_id)
    return _of(row)


def region_replacements_in(
    connection: Connection, states: Collection[RegionReplacementState], *, at_rest: bool = False
) -> list[RegionReplacement]:
    """The requests in these states, oldest first; with ``at_rest`` those that no saga has."""
    query = _AT_REST_IN if at_rest else _IN
    return [_of(row) for row in connection.execute(query, {"states": sorted(states)})]


def region_replacements_of_volume(connection: Connection, volume_id: str) -> list[RegionReplacement]:
    """The requests that are open for the volume, oldest first; more than one only when they share its lock."""
    return [_of(row) for row in connection.execute(_OPEN_FOR, {"volume": volume_id})]


def region_was_requested(connection: Connection, region_id: str) -> bool:
    """Whether there ever was a request for the region, complete ones too (§10.3)."""
    return connection.execute(select(_REQUEST.c.id).where(_REQUEST.c.old_region_id == region_id)).first() is not None


def _of(row: Row[Any]) -> RegionReplacement:
    values = {name: getattr(row, name) for name in RegionReplacement.__dataclass_fields__ if name != "state"}
    return RegionReplacement(**values, state=RegionReplacementState(row.replacement_state))


# -- whom it asked ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PropolisStep:
    """A running instance was sent the changed document."""

    instance_id: str
    vmm_id: str


@dataclass(frozen=True, slots=True)
class PantryStep:
    """A pantry was asked to activate the volume, as a job."""

    ip: str
    port: int
    job_id: str


DriveStep = PropolisStep | PantryStep


def step_record(connection: Connection, request_id: str, step: DriveStep, now: datetime) -> None:
    """Write down who was asked. Doing it again with another time is one more breadcrumb, and harmless."""
    values: dict[str, Any]
    match step:
        case PropolisStep(instance_id, vmm_id):
            values = {
                "step_type": RegionReplacementStepType.PROPOLIS,
                "step_associated_instance_id": instance_id,
                "step_associated_vmm_id": vmm_id,
            }
        case PantryStep(ip, port, job_id):
            values = {
                "step_type": RegionReplacementStepType.PANTRY,
                "step_associated_pantry_ip": ip,
                "step_associated_pantry_port": port,
                "step_associated_pantry_job_id": job_id,
            }
    insert_if_absent(connection, _STEP, values | {"replacement_id": request_id, "step_time": now})


_STEP_NEWEST = (
    select(_STEP)
    .where(_STEP.c.replacement_id == bindparam("request"))
    .order_by(_STEP.c.step_time.desc(), _STEP.c.step_type)
    .limit(1)
)


def step_newest(connection: Connection, request_id: str) -> tuple[DriveStep, datetime] | None:
    """Who was asked last, and when."""
    row = connection.execute(_STEP_NEWEST, {"request": request_id}).one_or_none()
    if row is None:
        return None
    if row.step_type == RegionReplacementStepType.PROPOLIS:
        return PropolisStep(row.step_associated_instance_id, row.step_associated_vmm_id), row.step_time
    pantry = PantryStep(
        row.step_associated_pantry_ip, row.step_associated_pantry_port, row.step_associated_pantry_job_id
    )
    return pantry, row.step_time


def pantries_asked(connection: Connection, request_id: str) -> list[PantryStep]:
    """Every pantry that was asked, once, by its newest job; the one that was asked last comes first."""
    query = select(_STEP).where(_STEP.c.replacement_id == request_id, _STEP.c.step_type == "pantry")
    found: dict[tuple[str, int], PantryStep] = {}
    for row in connection.execute(query.order_by(_STEP.c.step_time.desc())):
        where = (row.step_associated_pantry_ip, row.step_associated_pantry_port)
        found.setdefault(where, PantryStep(*where, row.step_associated_pantry_job_id))
    return list(found.values())
