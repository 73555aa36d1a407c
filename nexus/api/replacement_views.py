"""Replacements as operators see them: rows as documents (nexus.md §4.11).

A listing is of two tables, by id, so that a page of it costs two pages of an index. What is lost and not replaced is
looked for from the expunged disks on; no volume's document is read for any of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, Select, select

from nexus.api import replacement_documents as documents
from nexus.api.volume_tree import owner_of
from nexus.db import schema
from nexus.db.schema import (
    DiskPolicy,
    ReadOnlyTargetType,
    RegionReplacementState,
    RegionSnapshotReplacementState,
    RepairNotificationType,
)
from nexus.objects.lookups import Slice
from nexus.objects.refusals import not_found
from nexus.replacement import waits
from nexus.volumes import Address

_REGION_REQUEST, _READ_ONLY_REQUEST = schema.region_replacement, schema.region_snapshot_replacement
_STEP, _REPAIR_STEP = schema.region_snapshot_replacement_step, schema.region_replacement_step
_NOTE, _REFUSAL = schema.replacement_waiting, schema.clone_source_refusal
_REPAIR, _PROGRESS = schema.upstairs_repair_notification, schema.upstairs_repair_progress
_REGION, _TARGET, _SNAPSHOT = schema.region, schema.region_snapshot, schema.snapshot
_DATASET, _POOL, _DISK = schema.crucible_dataset, schema.zpool, schema.physical_disk
COMPLETE = "complete"
STATES = {
    _REGION_REQUEST.name: RegionReplacementState,
    _READ_ONLY_REQUEST.name: RegionSnapshotReplacementState,
}


# -- requests ---------------------------------------------------------------------------------------------------------


def page(connection: Connection, wanted: Slice, state: str | None, *, everything: bool) -> list[documents.Replacement]:
    """Requests by id: in ``state``, or else all that are open, or ``everything``."""
    rows: list[Row[Any]] = []
    for table in (_REGION_REQUEST, _READ_ONLY_REQUEST):
        query = select(table).order_by(table.c.id).limit(wanted.limit)
        if wanted.after is not None:
            query = query.where(table.c.id > wanted.after)
        if state is not None:
            if state not in set(STATES[table.name]):
                continue  # only requests of the other kind are ever in it
            query = query.where(table.c.replacement_state == state)
        elif not everything:
            query = query.where(table.c.replacement_state != COMPLETE)
        rows += connection.execute(query)
    return told(connection, sorted(rows, key=lambda row: str(row.id))[: wanted.limit])


def open_requests(connection: Connection) -> list[Row[Any]]:
    """All that are not complete, by the time at which they were asked for."""
    rows = [
        row
        for table in (_REGION_REQUEST, _READ_ONLY_REQUEST)
        for row in connection.execute(select(table).where(table.c.replacement_state != COMPLETE))
    ]
    return sorted(rows, key=lambda row: (row.request_time, row.id))


def told(connection: Connection, rows: Sequence[Row[Any]]) -> list[documents.Replacement]:
    """Rows of either table as documents."""
    ids = [row.id for row in rows]
    notes = {row.request_id: row for row in connection.execute(select(_NOTE).where(_NOTE.c.request_id.in_(ids)))}
    locked = _snapshot_volumes(connection, [row for row in rows if hasattr(row, "replacement_type")])
    return [documents.Replacement.model_validate(_entry(row, notes.get(row.id), locked)) for row in rows]


def _entry(row: Row[Any], note: Row[Any] | None, locked: dict[str, str]) -> dict[str, Any]:
    found = {
        "id": row.id,
        "state": row.replacement_state.value,
        "request_time": row.request_time,
        "old_region_id": row.old_region_id,
        "new_region_id": row.new_region_id,
        "operating_saga_id": row.operating_saga_id,
        "note": None if note is None else {"reason": note.reason, "since": note.time_since},
    }
    if not hasattr(row, "replacement_type"):
        return found | {"kind": "region", "volume_id": row.volume_id}
    place = {"old_dataset_id": row.old_dataset_id, "old_snapshot_id": row.old_snapshot_id}
    return found | place | {"kind": row.replacement_type.value, "volume_id": locked.get(row.id)}


def _snapshot_volumes(connection: Connection, rows: Sequence[Row[Any]]) -> dict[str, str]:
    """The volume whose lock each request about a read-only target has."""
    found = {}
    for row in rows:
        if row.replacement_type == ReadOnlyTargetType.REGION_SNAPSHOT:
            query = select(_SNAPSHOT.c.volume_id).where(_SNAPSHOT.c.id == row.old_snapshot_id)
        else:
            query = select(_REGION.c.volume_id).where(_REGION.c.id == row.old_region_id)
        volume_id = connection.execute(query).scalar_one_or_none()
        if volume_id is not None:
            found[row.id] = str(volume_id)
    return found


def require(connection: Connection, request_id: str) -> Row[Any]:
    """The row of a request of either kind. Raises :class:`~nexus.saga.ActionFailed` (not_found)."""
    for table in (_REGION_REQUEST, _READ_ONLY_REQUEST):
        row = connection.execute(select(table).where(table.c.id == request_id)).one_or_none()
        if row is not None:
            return row
    raise not_found("replacement", request_id)


def detail(connection: Connection, request_id: str) -> documents.ReplacementDetail:
    """One request with its steps and repairs. Raises :class:`~nexus.saga.ActionFailed` (not_found)."""
    row = require(connection, request_id)
    (entry,) = told(connection, [row])
    if entry.kind == "region":
        more: dict[str, Any] = {"repair_steps": _repair_steps(connection, request_id)}
        more["repairs"] = _repairs(connection, row.new_region_id)
    else:
        more = {"volume_steps": _volume_steps(connection, request_id)}
        refusals = select(_REFUSAL).where(_REFUSAL.c.request_id == request_id).order_by(_REFUSAL.c.time_refused)
        more["refused_sources"] = [
            {"source": each.source, "reason": each.reason} for each in connection.execute(refusals)
        ]
    return documents.ReplacementDetail.model_validate(entry.model_dump() | more)


def _repair_steps(connection: Connection, request_id: str) -> list[dict[str, Any]]:
    query = select(_REPAIR_STEP).where(_REPAIR_STEP.c.replacement_id == request_id).order_by(_REPAIR_STEP.c.step_time)
    found = []
    for row in connection.execute(query):
        ip, port = row.step_associated_pantry_ip, row.step_associated_pantry_port
        found.append(
            {
                "time": row.step_time,
                "who": row.step_type.value,
                "instance_id": row.step_associated_instance_id,
                "vmm_id": row.step_associated_vmm_id,
                "pantry": None if ip is None else str(Address.of(ip, port)),
                "job_id": row.step_associated_pantry_job_id,
            }
        )
    return found


def _volume_steps(connection: Connection, request_id: str) -> list[dict[str, Any]]:
    query = select(_STEP).where(_STEP.c.request_id == request_id).order_by(_STEP.c.request_time, _STEP.c.id)
    return [
        {
            "id": row.id,
            "volume_id": row.volume_id,
            "state": row.replacement_state.value,
            "request_time": row.request_time,
            "owner": owner_of(connection, row.volume_id),
        }
        for row in connection.execute(query)
    ]


def _repairs(connection: Connection, region_id: str | None) -> list[dict[str, Any]]:
    """Attempts to make a region good, in the order in which they began."""
    if region_id is None:
        return []
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for row in connection.execute(select(_REPAIR).where(_REPAIR.c.region_id == region_id).order_by(_REPAIR.c.time)):
        ids = {"repair_id": row.repair_id, "upstairs_id": row.upstairs_id, "session_id": row.session_id}
        attempt = found.setdefault(
            (row.repair_id, row.upstairs_id, row.session_id),
            ids | {"type": row.repair_type.value, "state": RepairNotificationType.STARTED.value},
        )
        if row.notification_type == RepairNotificationType.STARTED:
            attempt["time_started"] = row.time
        else:
            attempt |= {"state": row.notification_type.value, "time_ended": row.time}
    for attempt in found.values():
        progress = select(_PROGRESS).where(_PROGRESS.c.repair_id == attempt["repair_id"])
        newest = connection.execute(
            progress.order_by(_PROGRESS.c.time.desc(), _PROGRESS.c.current_item.desc()).limit(1)
        ).one_or_none()
        if newest is not None:
            attempt |= {"done_items": newest.current_item, "total_items": newest.total_items}
    return list(found.values())


# -- waiting ----------------------------------------------------------------------------------------------------------


def waiting(connection: Connection, now: datetime) -> documents.WaitingReport:
    """What every open request waits for."""
    rows = open_requests(connection)
    found = {row.id: waits.reasons(connection, row, now) for row in rows}
    lines = waits.lines(connection)
    return documents.WaitingReport(
        requests=tuple(
            documents.Waiting(request=entry, reasons=tuple(map(_reason, found[str(entry.id)])))
            for entry in told(connection, rows)
        ),
        locks=tuple(_line(connection, each) for each in lines),
        blockers=tuple(
            documents.Blocker(holder_id=UUID(each.holder_id), what=each.what, held_up=tuple(map(UUID, each.held_up)))
            for each in waits.blockers(connection, found, lines)
        ),
    )


def _reason(each: waits.Reason) -> documents.Reason:
    return documents.Reason.model_validate(
        {
            "kind": each.kind,
            "sentence": each.sentence,
            "since": each.since,
            "holder_id": each.holder_id,
            "volume_id": each.volume_id,
        }
    )


def _line(connection: Connection, each: waits.Line) -> documents.LockLine:
    return documents.LockLine(
        volume_id=UUID(each.volume_id),
        owner=owner_of(connection, each.volume_id),
        holder_id=None if each.holder_id is None else UUID(each.holder_id),
        holder=each.holder,
        held_since=each.held_since,
        line=tuple(
            documents.Waiter(id=UUID(one.id), what=one.what, since=one.since, overtaken=one.overtaken)
            for one in each.waiters
        ),
    )


# -- what is lost -----------------------------------------------------------------------------------------------------


def to_do(connection: Connection) -> documents.ToDoReport:
    """Everything on expunged disks that is not replaced yet: its row is still there."""
    regions = _on_expunged_disks(
        select(_REGION.c.id, _REGION.c.read_only, _REGION.c.volume_id, _REGION.c.dataset_id), _REGION.c.dataset_id
    )
    copies = [_lost_region(connection, row) for row in connection.execute(regions.order_by(_REGION.c.id))]
    snapshots = _on_expunged_disks(
        select(_TARGET.c.region_id, _TARGET.c.snapshot_id, _TARGET.c.dataset_id), _TARGET.c.dataset_id
    )
    order = (_TARGET.c.snapshot_id, _TARGET.c.region_id)
    copies += [_lost_snapshot(connection, row) for row in connection.execute(snapshots.order_by(*order))]
    return documents.ToDoReport(copies=tuple(copies))


def _on_expunged_disks(query: Select[Any], dataset_id: Any) -> Select[Any]:
    return (
        query.add_columns(_DISK.c.id.label("physical_disk_id"), _DISK.c.sled_id)
        .join(_DATASET, _DATASET.c.id == dataset_id)
        .join(_POOL, _POOL.c.id == _DATASET.c.pool_id)
        .join(_DISK, _DISK.c.id == _POOL.c.physical_disk_id)
        .where(_DISK.c.disk_policy == DiskPolicy.EXPUNGED)
    )


def _lost_region(connection: Connection, row: Row[Any]) -> documents.LostCopy:
    table = _READ_ONLY_REQUEST if row.read_only else _REGION_REQUEST
    of_kind = [table.c.replacement_type == ReadOnlyTargetType.READ_ONLY_REGION] if row.read_only else []
    kind = "read_only_region" if row.read_only else "region"
    return _lost(connection, row, kind, row.id, row.volume_id, table, [table.c.old_region_id == row.id, *of_kind])


def _lost_snapshot(connection: Connection, row: Row[Any]) -> documents.LostCopy:
    table = _READ_ONLY_REQUEST
    volume_id = connection.execute(select(_SNAPSHOT.c.volume_id).where(_SNAPSHOT.c.id == row.snapshot_id)).scalar_one()
    same = [
        table.c.old_region_id == row.region_id,
        table.c.old_dataset_id == row.dataset_id,
        table.c.old_snapshot_id == row.snapshot_id,
    ]
    return _lost(connection, row, "region_snapshot", row.region_id, volume_id, table, same, row.snapshot_id)


def _lost(
    connection: Connection,
    row: Row[Any],
    kind: str,
    region_id: str,
    volume_id: str,
    table: Any,
    same: Iterable[Any],
    snapshot_id: str | None = None,
) -> documents.LostCopy:
    newest = select(table.c.id, table.c.replacement_state).where(*same).order_by(table.c.request_time.desc()).limit(1)
    request = connection.execute(newest).one_or_none()
    return documents.LostCopy.model_validate(
        {
            "kind": kind,
            "region_id": region_id,
            "snapshot_id": snapshot_id,
            "dataset_id": row.dataset_id,
            "physical_disk_id": row.physical_disk_id,
            "sled_id": row.sled_id,
            "volume_id": volume_id,
            "request_id": None if request is None else request.id,
            "state": None if request is None else request.replacement_state.value,
        }
    )
