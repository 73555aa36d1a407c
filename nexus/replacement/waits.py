"""What every open request waits for, and since when (W2; nexus.md §4.11, ``waiting``).

What it is for: a replacement that stands still must say why, or nobody can tell the unlucky from the broken. For every
request that is not complete this reckons, from what the tables say at one moment, all that has to happen before it goes
on: a saga that moves it, somebody else's lock, a step of its own, a repair, an operator's word, or nothing but the next
activation of a background task.

What it guarantees: nothing is changed by looking, and no document of a volume is read. A request that is open has at
least one reason: there is no state of the tables (nexus.md §2) in which nobody is responsible for the next edge.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, select

from nexus.db import schema
from nexus.db.schema import (
    ReadOnlyTargetType,
    RegionReplacementState,
    RegionReplacementStepType,
    RegionSnapshotReplacementState,
    RegionSnapshotReplacementStepState,
)
from nexus.db.schema.sagas import StoredSagaState
from nexus.replacement.held_up import held_up
from nexus.volumes import Address, repair_lock, volumes_using
from nexus.volumes.resolution import ReadOnlyRegion, RegionSnapshot, Resource, of_snapshot

_REGION_REQUEST, _READ_ONLY_REQUEST = schema.region_replacement, schema.region_snapshot_replacement
_STEP, _REPAIR_STEP = schema.region_snapshot_replacement_step, schema.region_replacement_step
_SAGA, _LEASE, _NOTE = schema.saga, schema.saga_lease, schema.replacement_waiting
_LOCK, _QUEUE, _REGION, _SNAPSHOT = (
    schema.volume_repair,
    schema.volume_repair_queue,
    schema.region,
    schema.region_snapshot,
)
_RR, _RSR, _STEP_STATE = (
    RegionReplacementState,
    RegionSnapshotReplacementState,
    RegionSnapshotReplacementStepState,
)

RESPONSIBLE = {
    _RR.REQUESTED: "region_replacement",
    _RR.RUNNING: "region_replacement_driver",
    _RR.REPLACEMENT_DONE: "region_replacement_driver",
}
RESPONSIBLE_READ_ONLY = {
    _RSR.REQUESTED: "region_snapshot_replacement_start",
    _RSR.REPLACEMENT_DONE: "region_snapshot_replacement_garbage_collection",
    _RSR.RUNNING: "region_snapshot_replacement_finish",
}
STEP_TASK = "region_snapshot_replacement_step"
"""Which background task takes a request on from each state at rest."""


@dataclass(frozen=True, slots=True)
class Reason:
    """One thing that a request waits for. ``kind``: a word for machines. ``holder_id``: who has to let go of the lock
    of ``volume_id``."""

    kind: str
    sentence: str
    since: datetime
    holder_id: str | None = None
    volume_id: str | None = None


@dataclass(frozen=True, slots=True)
class Waiter:
    """Somebody in the line for a lock."""

    id: str
    what: str
    since: datetime
    overtaken: int


@dataclass(frozen=True, slots=True)
class Line:
    """The lock of a volume for which somebody waits. ``holder``: in words; ``None`` where it is free just now."""

    volume_id: str
    holder_id: str | None
    holder: str | None
    held_since: datetime | None
    waiters: tuple[Waiter, ...]


@dataclass(frozen=True, slots=True)
class Blocker:
    """Somebody who waits for nobody, and for whom ``held_up`` wait."""

    holder_id: str
    what: str
    held_up: tuple[str, ...]


def reasons(connection: Connection, row: Row[Any], now: datetime) -> tuple[Reason, ...]:
    """What the request, a row of either table that is not complete, waits for."""
    found = [*_note(connection, row), *_saga(connection, row)]
    if row.operating_saga_id is None:
        found += (
            _of_read_only(connection, row, now) if hasattr(row, "replacement_type") else _of_region(connection, row)
        )
    return tuple(found)


def _note(connection: Connection, row: Row[Any]) -> Iterator[Reason]:
    note = connection.execute(select(_NOTE).where(_NOTE.c.request_id == row.id)).one_or_none()
    if note is not None:
        yield Reason("note", note.reason, note.time_since)


def _saga(connection: Connection, row: Row[Any]) -> Iterator[Reason]:
    if row.operating_saga_id is None:
        return
    saga = connection.execute(select(_SAGA).where(_SAGA.c.id == row.operating_saga_id)).one_or_none()
    if saga is None:
        yield Reason("saga", f"saga {row.operating_saga_id}, of which nothing is known", row.request_time)
    elif saga.state == StoredSagaState.STUCK:
        words = f"saga {saga.name}, which is stuck: nexus saga resume {saga.id}"
        yield Reason("saga", words, saga.time_modified)
    else:
        yield Reason("saga", f"saga {saga.name} {saga.id}, which is {saga.state.value}", saga.time_created)


# -- read/write regions -----------------------------------------------------------------------------------------------


def _of_region(connection: Connection, row: Row[Any]) -> Iterator[Reason]:
    state = RegionReplacementState(row.replacement_state)
    newest = select(_REPAIR_STEP).where(_REPAIR_STEP.c.replacement_id == row.id)
    step = connection.execute(newest.order_by(_REPAIR_STEP.c.step_time.desc()).limit(1)).one_or_none()
    if state is not RegionReplacementState.RUNNING or step is None:
        yield Reason("task", f"background task {RESPONSIBLE[state]}", row.request_time)
    elif step.step_type == RegionReplacementStepType.PROPOLIS:
        who = f"instance {step.step_associated_instance_id} to make region {row.new_region_id} good, and to say so"
        yield Reason("repair", who, step.step_time, volume_id=row.volume_id)
    else:
        at = Address.of(step.step_associated_pantry_ip, step.step_associated_pantry_port)
        words = f"the pantry at {at} to make region {row.new_region_id} good"
        yield Reason("repair", words, step.step_time, volume_id=row.volume_id)


# -- read-only targets ------------------------------------------------------------------------------------------------


def _of_read_only(connection: Connection, row: Row[Any], now: datetime) -> Iterator[Reason]:
    state = RegionSnapshotReplacementState(row.replacement_state)
    if state is not RegionSnapshotReplacementState.RUNNING:
        yield Reason("task", f"background task {RESPONSIBLE_READ_ONLY[state]}", row.request_time)
        return
    target = resource_of_request(row)
    stepped: set[str] = set()
    found = False
    for reason in _own_steps(connection, row.id):
        found = True
        stepped.add(str(reason.volume_id))
        yield reason
    for volume_id in volumes_using(connection, target):
        if volume_id in stepped or _is_stash(connection, volume_id):
            continue
        found = True
        held = repair_lock.holder(connection, volume_id)
        if held is None:
            yield Reason("task", f"background task {STEP_TASK}, for volume {volume_id}", now, volume_id=volume_id)
            continue
        words = f"the lock of volume {volume_id}: {described(connection, held.repair_id)} has it"
        yield Reason("lock", words, held.time_taken, held.repair_id, volume_id)
    if not found and _is_there(connection, target):
        yield Reason("task", f"the {target} to be destroyed", now)
    elif not found:
        yield Reason("task", f"background task {RESPONSIBLE_READ_ONLY[state]}", now)


def _own_steps(connection: Connection, request_id: str) -> Iterator[Reason]:
    over = RegionSnapshotReplacementStepState.VOLUME_DELETED
    open_steps = select(_STEP).where(_STEP.c.request_id == request_id, _STEP.c.replacement_state != over)
    for step in connection.execute(open_steps.order_by(_STEP.c.id)):
        what = "its old target to be destroyed" if step.replacement_state == _STEP_STATE.COMPLETE else "it to be taken"
        if step.operating_saga_id is not None:
            what = f"saga {step.operating_saga_id}"
        words = f"step {step.id} for volume {step.volume_id}, {step.replacement_state.value}: {what}"
        yield Reason("step", words, step.request_time, volume_id=step.volume_id)


def resource_of_request(row: Row[Any]) -> Resource:
    """What a row of ``region_snapshot_replacement`` is about."""
    if row.replacement_type == ReadOnlyTargetType.READ_ONLY_REGION:
        return ReadOnlyRegion(row.old_region_id)
    return RegionSnapshot(row.old_dataset_id, row.old_region_id, row.old_snapshot_id)


def _is_there(connection: Connection, target: Resource) -> bool:
    if isinstance(target, ReadOnlyRegion):
        query = select(_REGION.c.id).where(_REGION.c.id == target.region_id)
    else:
        query = select(_SNAPSHOT.c.region_id).where(of_snapshot(target))
    return connection.execute(query).first() is not None


def _is_stash(connection: Connection, volume_id: str) -> bool:
    query = select(_STEP.c.id).where(_STEP.c.old_snapshot_volume_id == volume_id)
    return connection.execute(query).first() is not None


# -- locks ------------------------------------------------------------------------------------------------------------


def lines(connection: Connection) -> list[Line]:
    """Every lock for which somebody waits, by volume; the first in line comes first."""
    waiting: dict[str, list[Waiter]] = {}
    for row in connection.execute(
        select(_QUEUE).order_by(_QUEUE.c.volume_id, _QUEUE.c.time_queued, _QUEUE.c.repair_id)
    ):
        waiter = Waiter(row.repair_id, described(connection, row.repair_id), row.time_queued, row.overtaken)
        waiting.setdefault(row.volume_id, []).append(waiter)
    found = []
    for volume_id, waiters in waiting.items():
        held = repair_lock.holder(connection, volume_id)
        holder = None if held is None else described(connection, held.repair_id)
        since, holder_id = (None, None) if held is None else (held.time_taken, held.repair_id)
        found.append(Line(volume_id, holder_id, holder, since, tuple(waiters)))
    return found


def blockers(connection: Connection, waits: dict[str, tuple[Reason, ...]], queues: list[Line]) -> list[Blocker]:
    """Who holds up whom, of all that is known: ``waits`` by the id of the request."""
    pairs = [(who, each.holder_id) for who, found in waits.items() for each in found if each.holder_id is not None]
    pairs += [(each.id, line.holder_id) for line in queues for each in line.waiters if line.holder_id is not None]
    return [Blocker(holder_id, described(connection, holder_id), behind) for holder_id, behind in held_up(pairs)]


def described(connection: Connection, holder_id: str) -> str:
    """Who holds a lock or waits for one, in words. The ids of requests and steps are reckoned before there is a row,
    so of one that waits there may be none."""
    row = connection.execute(select(_REGION_REQUEST).where(_REGION_REQUEST.c.id == holder_id)).one_or_none()
    if row is not None:
        return f"replacement {row.id} of region {row.old_region_id} ({row.replacement_state.value})"
    row = connection.execute(select(_READ_ONLY_REQUEST).where(_READ_ONLY_REQUEST.c.id == holder_id)).one_or_none()
    if row is not None:
        return f"replacement {row.id} of the {resource_of_request(row)} ({row.replacement_state.value})"
    row = connection.execute(select(_STEP).where(_STEP.c.id == holder_id)).one_or_none()
    if row is not None:
        return f"step {row.id} of replacement {row.request_id} ({row.replacement_state.value})"
    behind = select(_SAGA).join(_LEASE, _LEASE.c.saga_id == _SAGA.c.id).where(_LEASE.c.holder_id == holder_id)
    row = connection.execute(behind).one_or_none()
    return f"{holder_id}, that is to come" if row is None else f"saga {row.name} {row.id} ({row.state.value})"
