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

from sqlalchemy import Connection, select

from nexus.db import NotFound, schema
from nexus.db.schema import (
    RegionReplacementState,
    RegionSnapshotReplacementState,
    RegionSnapshotReplacementStepState,
)
from nexus.db.schema.sagas import StoredSagaState
from nexus.replacement.held_up import held_up
from nexus.replacement.notes import waiting_of
from nexus.replacement.read_only import (
    ReadOnlyReplacement,
    read_only_replacement_get,
    read_only_replacements_in,
    target_present,
)
from nexus.replacement.region import (
    PropolisStep,
    RegionReplacement,
    region_replacement_get,
    region_replacements_in,
    step_newest,
)
from nexus.replacement.step import ACTIVE, is_stash, steps_in
from nexus.volumes import Address, repair_lock, volumes_using

_STEP, _SAGA, _LEASE = schema.region_snapshot_replacement_step, schema.saga, schema.saga_lease
_RR, _RSR = RegionReplacementState, RegionSnapshotReplacementState
_STEP_STATE = RegionSnapshotReplacementStepState
IN_PROGRESS = frozenset(_STEP_STATE) - {_STEP_STATE.VOLUME_DELETED}

Request = RegionReplacement | ReadOnlyReplacement

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


def reasons(connection: Connection, request: Request, now: datetime) -> tuple[Reason, ...]:
    """What a request that is not complete waits for."""
    found = [*_note(connection, request.id), *_saga(connection, request)]
    if request.operating_saga_id is None:
        of_kind = _of_region if isinstance(request, RegionReplacement) else _of_read_only
        found += of_kind(connection, request, now)
    return tuple(found)


def _note(connection: Connection, request_id: str) -> Iterator[Reason]:
    note = waiting_of(connection, request_id)
    if note is not None:
        yield Reason("note", note.reason, note.time_since)


def _saga(connection: Connection, request: Request) -> Iterator[Reason]:
    if request.operating_saga_id is None:
        return
    saga = connection.execute(select(_SAGA).where(_SAGA.c.id == request.operating_saga_id)).one_or_none()
    if saga is None:
        yield Reason("saga", f"saga {request.operating_saga_id}, of which nothing is known", request.request_time)
    elif saga.state == StoredSagaState.STUCK:
        words = f"saga {saga.name}, which is stuck: nexus saga resume {saga.id}"
        yield Reason("saga", words, saga.time_modified)
    else:
        yield Reason("saga", f"saga {saga.name} {saga.id}, which is {saga.state.value}", saga.time_created)


# -- read/write regions -----------------------------------------------------------------------------------------------


def _of_region(connection: Connection, request: Any, _now: datetime) -> Iterator[Reason]:
    asked = step_newest(connection, request.id)
    if request.state is not _RR.RUNNING or asked is None:
        yield Reason("task", f"background task {RESPONSIBLE[request.state]}", request.request_time)
        return
    step, since = asked
    whole = f"region {request.new_region_id} of volume {request.volume_id} good"
    if isinstance(step, PropolisStep):
        words = f"instance {step.instance_id} to make {whole}, and to say so"
    else:
        words = f"the pantry at {Address.of(step.ip, step.port)} to make {whole}"
    yield Reason("repair", words, since, volume_id=request.volume_id)


# -- read-only targets ------------------------------------------------------------------------------------------------


def _of_read_only(connection: Connection, request: Any, now: datetime) -> Iterator[Reason]:
    if request.state is not _RSR.RUNNING:
        yield Reason("task", f"background task {RESPONSIBLE_READ_ONLY[request.state]}", request.request_time)
        return
    left = [*_own_steps(connection, request.id), *_not_yet_stepped(connection, request, now)]
    yield from left
    if not left and target_present(connection, request.old):
        yield Reason("task", f"the {request.old} to be destroyed", now)
    elif not left:
        yield Reason("task", f"background task {RESPONSIBLE_READ_ONLY[request.state]}", now)


def _own_steps(connection: Connection, request_id: str) -> Iterator[Reason]:
    for step in steps_in(connection, IN_PROGRESS, request_id=request_id):
        if step.operating_saga_id is not None:
            what = f"saga {step.operating_saga_id}"
        else:
            done = step.state is _STEP_STATE.COMPLETE
            what = f"background task {STEP_TASK}" + (", to destroy what was taken out" if done else "")
        words = f"step {step.id} for volume {step.volume_id}, {step.state}: {what}"
        yield Reason("step", words, step.request_time, volume_id=step.volume_id)


def _not_yet_stepped(connection: Connection, request: ReadOnlyReplacement, now: datetime) -> Iterator[Reason]:
    """Volumes that count on the old target, and for which there is no step yet."""
    stepped = {step.volume_id for step in steps_in(connection, ACTIVE, request_id=request.id)}
    for volume_id in volumes_using(connection, request.old):
        if volume_id in stepped or is_stash(connection, volume_id):
            continue
        held = repair_lock.holder(connection, volume_id)
        if held is None:
            yield Reason("task", f"background task {STEP_TASK}, for volume {volume_id}", now, volume_id=volume_id)
        else:
            words = f"the lock of volume {volume_id}: {described(connection, held.repair_id)} has it"
            yield Reason("lock", words, held.time_taken, held.repair_id, volume_id)


# -- locks ------------------------------------------------------------------------------------------------------------


def lines(connection: Connection) -> list[Line]:
    """Every lock for which somebody waits, by volume; the first in line comes first."""
    waiting: dict[str, list[Waiter]] = {}
    for each in repair_lock.waiters(connection):
        waiter = Waiter(each.repair_id, described(connection, each.repair_id), each.time_queued, each.overtaken)
        waiting.setdefault(each.volume_id, []).append(waiter)
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
    request = find(connection, holder_id)
    if isinstance(request, RegionReplacement):
        return f"replacement {request.id} of region {request.old_region_id} ({request.state})"
    if request is not None:
        return f"replacement {request.id} of the {request.old} ({request.state})"
    row = connection.execute(select(_STEP).where(_STEP.c.id == holder_id)).one_or_none()
    if row is not None:
        return f"step {row.id} of replacement {row.request_id} ({row.replacement_state})"
    behind = select(_SAGA).join(_LEASE, _LEASE.c.saga_id == _SAGA.c.id).where(_LEASE.c.holder_id == holder_id)
    row = connection.execute(behind).one_or_none()
    return f"{holder_id}, that is to come" if row is None else f"saga {row.name} {row.id} ({row.state})"


def find(connection: Connection, request_id: str) -> Request | None:
    """The request of either kind."""
    for get in (region_replacement_get, read_only_replacement_get):
        try:
            return get(connection, request_id)
        except NotFound:
            continue
    return None


def open_requests(connection: Connection) -> list[Request]:
    """All that are not complete, the oldest first."""
    found: list[Request] = [
        *region_replacements_in(connection, set(_RR) - {_RR.COMPLETE}),
        *read_only_replacements_in(connection, set(_RSR) - {_RSR.COMPLETE}),
    ]
    return sorted(found, key=lambda each: (each.request_time, each.id))
