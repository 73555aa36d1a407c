"""Replacement of a read-only target, region snapshot or read-only region: its machine and requests (nexus.md §2.2).

What it is for: a read-only target is shared. The volume of its snapshot names it, and so does every volume that has a
copy of that as its parent. One request replaces it everywhere: first in the snapshot's volume, so that no later copy
has it (R9, R25), then volume by volume (:mod:`nexus.replacement.step`).

Which lock (R3, R4, *safety*): that of the snapshot's volume, by its id alone, for that volume may be gone while copies
of it live. It keeps two members of one snapshot from being given one successor.

Carried by what it is (W55, *safety*): a request knows its target as a resource, by ids. Where that listens is asked
when it is needed; an address by itself may be somebody else's by then.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, bindparam, func, insert, select

from nexus.db import Conflict, NotFound, schema
from nexus.db.schema import ReadOnlyTargetType, RegionSnapshotReplacementState
from nexus.objects.snapshots import Snapshot, snapshot_get, snapshot_of_volume
from nexus.replacement.machine import Edge, Hold, Machine
from nexus.replacement.region import RequestResult
from nexus.replacement.step import steps_in_progress
from nexus.saga.identities import derived
from nexus.volumes import Address, LockResult, ReadOnlyRegion, ReadOnlyTarget, RegionSnapshot, RepairLocks
from nexus.volumes.repair_lock import wait_no_more
from nexus.volumes.resolution import Resource

_REQUEST, _REGION, _SNAPSHOT = schema.region_snapshot_replacement, schema.region, schema.region_snapshot
_DATASET = schema.crucible_dataset
_S = RegionSnapshotReplacementState
START, COLLECT, FINISH = "start saga", "garbage-collect saga", "finish saga"
START_TASK = "start task"


class ReadOnlyEdge(Enum):
    """What may happen to a request."""

    ALLOCATE = "allocate"
    ALLOCATE_UNDONE = "allocate undone"
    REPLACED = "replaced"
    DELETE_OLD = "delete old volume"
    DELETE_OLD_UNDONE = "delete old volume undone"
    RUN = "run"
    COMPLETE_BEGUN = "complete begun"
    COMPLETE_UNDONE = "complete undone"
    COMPLETE = "complete"
    TARGET_GONE = "target gone"


_E = ReadOnlyEdge
_FOUND = ("old_snapshot_volume_id", "new_region_id", "new_region_volume_id")

READ_ONLY_REPLACEMENT = Machine(
    "read-only target replacement",
    _REQUEST,
    _S.REQUESTED,
    "detector tasks or operator (insert, and take the snapshot volume's lock)",
    {
        _E.ALLOCATE: Edge(2, _S.REQUESTED, _S.ALLOCATING, Hold.TAKE, START),
        _E.ALLOCATE_UNDONE: Edge(3, _S.ALLOCATING, _S.REQUESTED, Hold.GIVE, START, back=True),
        _E.REPLACED: Edge(4, _S.ALLOCATING, _S.REPLACEMENT_DONE, Hold.GIVE, START, records=_FOUND),
        _E.DELETE_OLD: Edge(5, _S.REPLACEMENT_DONE, _S.DELETING_OLD_VOLUME, Hold.TAKE, COLLECT),
        _E.DELETE_OLD_UNDONE: Edge(6, _S.DELETING_OLD_VOLUME, _S.REPLACEMENT_DONE, Hold.GIVE, COLLECT, back=True),
        _E.RUN: Edge(7, _S.DELETING_OLD_VOLUME, _S.RUNNING, Hold.GIVE, COLLECT),
        _E.COMPLETE_BEGUN: Edge(8, _S.RUNNING, _S.COMPLETING, Hold.TAKE, FINISH),
        _E.COMPLETE_UNDONE: Edge(9, _S.COMPLETING, _S.RUNNING, Hold.GIVE, FINISH, back=True),
        _E.COMPLETE: Edge(10, _S.COMPLETING, _S.COMPLETE, Hold.GIVE, FINISH, ends=True),
        _E.TARGET_GONE: Edge(
            11,
            _S.REQUESTED,
            _S.COMPLETE,
            Hold.NONE,
            START_TASK,
            expects_null=("new_region_volume_id",),
            ends=True,
        ),
    },
)


@dataclass(frozen=True, slots=True)
class ReadOnlyReplacement:
    """A request. ``old``: what is replaced."""

    id: str
    request_time: datetime
    old: Resource
    old_snapshot_volume_id: str | None
    new_region_id: str | None
    new_region_volume_id: str | None
    state: RegionSnapshotReplacementState
    operating_saga_id: str | None


def read_only_replacement_request(
    connection: Connection, locks: RepairLocks, old: Resource, now: datetime
) -> tuple[str, RequestResult]:
    """Ask for the replacement of a read-only target: the request's id, and what came of it. Refused, it waits in line
    for the lock under that id. Raises :class:`~nexus.db.NotFound` where there is no such target, or no snapshot that
    it is of, and :class:`~nexus.db.Conflict` for a read/write region (W8)."""
    snapshot = snapshot_of_target(connection, old)
    mine = _of_target(old)
    found = connection.execute(select(_REQUEST.c.id).where(mine, _REQUEST.c.replacement_state != "complete"))
    open_one = found.scalar_one_or_none()
    if open_one is not None:
        return open_one, RequestResult.OPEN_ALREADY
    before = connection.execute(select(func.count()).select_from(_REQUEST).where(mine)).scalar_one()
    request_id = derived(snapshot.volume_id, "replacement", *_words(old), str(before))
    if snapshot_locked(connection, locks, snapshot.volume_id, request_id, now) is LockResult.HELD_BY_ANOTHER:
        return request_id, RequestResult.LOCK_HELD
    wait_no_more(connection, request_id)
    values = {"id": request_id, "request_time": now, "replacement_state": READ_ONLY_REPLACEMENT.created}
    connection.execute(insert(_REQUEST).values(**values, **_columns(old)))
    return request_id, RequestResult.MADE


def snapshot_locked(
    connection: Connection, locks: RepairLocks, volume_id: str, request_id: str, now: datetime
) -> LockResult:
    """R3, *safety*: one request at a time for the copies of one snapshot. R4, *liveness*: whether the snapshot's volume
    is there is not asked; copies of it have to be mended when it is gone."""
    return locks.volume_repair_insert(connection, volume_id, request_id, now)


def snapshot_of_target(connection: Connection, target: Resource) -> Snapshot:
    """The snapshot that the target is a copy of, deleted or not (R40). Raises :class:`~nexus.db.NotFound`,
    :class:`~nexus.db.Conflict`."""
    match target:
        case RegionSnapshot():
            row = connection.execute(_PLACE_OF_SNAPSHOT, _key(target)).one_or_none()
            if row is None:
                raise NotFound("region_snapshot", str(target))
            found = snapshot_get(connection, target.snapshot_id)
            if found is None:
                raise NotFound("snapshot", target.snapshot_id)
            return found
        case ReadOnlyRegion(region_id):
            query = select(_REGION.c.volume_id, _REGION.c.read_only).where(_REGION.c.id == region_id)
            region = connection.execute(query).one_or_none()
            if region is None:
                raise NotFound("region", region_id)
            if not region.read_only:
                raise Conflict(f"region {region_id} is written to: ask for the replacement of a read/write region")
            found = snapshot_of_volume(connection, region.volume_id)
            if found is None:
                raise NotFound("snapshot with volume", region.volume_id)
            return found


_BY_ID = select(_REQUEST).where(_REQUEST.c.id == bindparam("request"))
_OLDEST_FIRST = select(_REQUEST).order_by(_REQUEST.c.request_time, _REQUEST.c.id)
_IN = _OLDEST_FIRST.where(_REQUEST.c.replacement_state.in_(bindparam("states", expanding=True)))
_AT_REST_IN = _IN.where(_REQUEST.c.operating_saga_id.is_(None))


def read_only_replacement_get(connection: Connection, request_id: str) -> ReadOnlyReplacement:
    """The request. Raises :class:`~nexus.db.NotFound`."""
    row = connection.execute(_BY_ID, {"request": request_id}).one_or_none()
    if row is None:
        raise NotFound("region_snapshot_replacement", request_id)
    return _of(row)


def read_only_replacements_in(
    connection: Connection, states: Collection[RegionSnapshotReplacementState], *, at_rest: bool = False
) -> list[ReadOnlyReplacement]:
    """The requests in these states, oldest first; with ``at_rest`` those that no saga has."""
    query = _AT_REST_IN if at_rest else _IN
    return [_of(row) for row in connection.execute(query, {"states": sorted(states)})]


def target_was_requested(connection: Connection, target: Resource) -> bool:
    """Whether there ever was a request for the target, complete ones too (§10.3)."""
    return connection.execute(select(_REQUEST.c.id).where(_of_target(target))).first() is not None


def target_present(connection: Connection, target: Resource) -> bool:
    """Whether the target has a row, be it ``deleting`` or not: when it has none, its agent has destroyed it."""
    return _address_of(connection, target) is not None


def target_of(connection: Connection, target: Resource) -> ReadOnlyTarget | None:
    """The target, and where it listens; ``None`` when it is gone, is being deleted (W55), or was never told where."""
    row = _address_of(connection, target)
    if row is None or row.deleting or row.address is None:
        return None
    return ReadOnlyTarget(row.address, target)


# -- the end ----------------------------------------------------------------------------------------------------------


def what_is_left(connection: Connection, request: ReadOnlyReplacement) -> str | None:
    """What keeps a request that runs from ending, in a sentence; ``None``: nothing (R24, *safety*).

    Both have to hold. That the target is gone, for a volume that still names it has a reference, and with a reference
    it has a row; and no step, for a step that still owns a stash, or waits, would be one of a request that is over.
    """
    if target_present(connection, request.old):
        return f"the {request.old} is still there"
    steps = steps_in_progress(connection, request.id)
    return f"{steps} steps are not at their end" if steps else None


def require_nothing_left(connection: Connection, request_id: str) -> None:
    """For who is about to complete it: once this is so it stays so, as long as steps are made only for requests that
    run. Raises :class:`~nexus.db.Conflict`."""
    left = what_is_left(connection, read_only_replacement_get(connection, request_id))
    if left is not None:
        raise Conflict(f"request {request_id} is not at its end: {left}")


# -- rows -------------------------------------------------------------------------------------------------------------


_PLACE_OF_SNAPSHOT = select(_SNAPSHOT.c.snapshot_addr, _SNAPSHOT.c.deleting).where(
    _SNAPSHOT.c.dataset_id == bindparam("dataset"),
    _SNAPSHOT.c.region_id == bindparam("region"),
    _SNAPSHOT.c.snapshot_id == bindparam("snapshot"),
)
_PLACE_OF_REGION = (
    select(_DATASET.c.ip, _REGION.c.port, _REGION.c.deleting)
    .join(_DATASET, _DATASET.c.id == _REGION.c.dataset_id)
    .where(_REGION.c.id == bindparam("region"))
)


@dataclass(frozen=True, slots=True)
class _Found:
    deleting: bool
    address: Address | None


def _address_of(connection: Connection, target: Resource) -> _Found | None:
    match target:
        case RegionSnapshot():
            found = connection.execute(_PLACE_OF_SNAPSHOT, _key(target)).one_or_none()
            return None if found is None else _Found(found.deleting, Address.parse(found.snapshot_addr))
        case ReadOnlyRegion(region_id):
            row = connection.execute(_PLACE_OF_REGION, {"region": region_id}).one_or_none()
            if row is None:
                return None
            return _Found(row.deleting, None if row.port is None else Address.of(row.ip, row.port))


def _key(target: RegionSnapshot) -> dict[str, str]:
    return {"dataset": target.dataset_id, "region": target.region_id, "snapshot": target.snapshot_id}


def _of_target(target: Resource) -> ColumnElement[bool]:
    """The requests for the target."""
    columns = _columns(target)
    condition: ColumnElement[bool] = _REQUEST.c.replacement_type == columns.pop("replacement_type")
    for name, value in columns.items():
        condition = condition & (_REQUEST.c[name] == value)
    return condition


def _columns(target: Resource) -> dict[str, Any]:
    match target:
        case RegionSnapshot(dataset_id, region_id, snapshot_id):
            return {
                "replacement_type": ReadOnlyTargetType.REGION_SNAPSHOT,
                "old_dataset_id": dataset_id,
                "old_region_id": region_id,
                "old_snapshot_id": snapshot_id,
            }
        case ReadOnlyRegion(region_id):
            return {"replacement_type": ReadOnlyTargetType.READ_ONLY_REGION, "old_region_id": region_id}


def _words(target: Resource) -> tuple[str, ...]:
    match target:
        case RegionSnapshot(dataset_id, region_id, snapshot_id):
            return dataset_id, region_id, snapshot_id
        case ReadOnlyRegion(region_id):
            return (region_id,)


def _of(row: Row[Any]) -> ReadOnlyReplacement:
    old: Resource
    if row.replacement_type == ReadOnlyTargetType.REGION_SNAPSHOT:
        old = RegionSnapshot(row.old_dataset_id, row.old_region_id, row.old_snapshot_id)
    else:
        old = ReadOnlyRegion(row.old_region_id)
    return ReadOnlyReplacement(
        id=row.id,
        request_time=row.request_time,
        old=old,
        old_snapshot_volume_id=row.old_snapshot_volume_id,
        new_region_id=row.new_region_id,
        new_region_volume_id=row.new_region_volume_id,
        state=RegionSnapshotReplacementState(row.replacement_state),
        operating_saga_id=row.operating_saga_id,
    )
