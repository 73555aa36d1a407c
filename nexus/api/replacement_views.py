"""Replacements as operators see them: rows as documents (nexus.md §4.11).

A listing is of two tables, by id, so that a page of it costs two pages of an index. What is lost and not replaced is
looked for from the expunged disks on; no volume's document is read for any of it.
"""

from __future__ import annotations

from collections.abc import Iterable
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
    RegionSnapshotReplacementStepState,
    RepairNotificationType,
)
from nexus.objects.lookups import Slice
from nexus.objects.refusals import not_found
from nexus.replacement import waits
from nexus.replacement.notes import sources_refused, waiting_of
from nexus.replacement.region import RegionReplacement
from nexus.replacement.step import steps_in
from nexus.volumes import Address, ReadOnlyRegion, RegionSnapshot
from nexus.volumes.resolution import Resource

_REGION_REQUEST, _READ_ONLY_REQUEST = schema.region_replacement, schema.region_snapshot_replacement
_REPAIR_STEP, _DECISION = schema.region_replacement_step, schema.survivor_decision
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
    ids: list[str] = []
    for table in (_REGION_REQUEST, _READ_ONLY_REQUEST):
        query = select(table.c.id).order_by(table.c.id).limit(wanted.limit)
        if wanted.after is not None:
            query = query.where(table.c.id > wanted.after)
        if state is not None:
            if state not in set(STATES[table.name]):
                continue  # only requests of the other kind are ever in it
            query = query.where(table.c.replacement_state == state)
        elif not everything:
            query = query.where(table.c.replacement_state != COMPLETE)
        ids += connection.execute(query).scalars()
    return [told_of(connection, require(connection, each)) for each in sorted(ids)[: wanted.limit]]


def told_of(connection: Connection, request: waits.Request) -> documents.Replacement:
    """A request as a document."""
    note = waiting_of(connection, request.id)
    found = {
        "id": request.id,
        "state": request.state.value,
        "request_time": request.request_time,
        "new_region_id": request.new_region_id,
        "operating_saga_id": request.operating_saga_id,
        "note": None if note is None else {"reason": note.reason, "since": note.time_since},
    }
    if isinstance(request, RegionReplacement):
        found |= {"kind": "region", "volume_id": request.volume_id, "old_region_id": request.old_region_id}
    else:
        found |= {"volume_id": _locked(connection, request.old), **_target(request.old)}
    return documents.Replacement.model_validate(found)


def _target(old: Resource) -> dict[str, str]:
    match old:
        case ReadOnlyRegion(region_id):
            return {"kind": "read_only_region", "old_region_id": region_id}
        case RegionSnapshot(dataset_id, region_id, snapshot_id):
            place = {"old_dataset_id": dataset_id, "old_snapshot_id": snapshot_id}
            return {"kind": "region_snapshot", "old_region_id": region_id} | place


def _locked(connection: Connection, old: Resource) -> str | None:
    """The volume whose lock a request about a read-only target has; ``None`` where its target is gone."""
    match old:
        case ReadOnlyRegion(region_id):
            query = select(_REGION.c.volume_id).where(_REGION.c.id == region_id)
        case RegionSnapshot():
            query = select(_SNAPSHOT.c.volume_id).where(_SNAPSHOT.c.id == old.snapshot_id)
    return connection.execute(query).scalar_one_or_none()


def require(connection: Connection, request_id: str) -> waits.Request:
    """A request of either kind. Raises :class:`~nexus.saga.ActionFailed` (not_found)."""
    found = waits.find(connection, request_id)
    if found is None:
        raise not_found("replacement", request_id)
    return found


def detail(connection: Connection, request_id: str) -> documents.ReplacementDetail:
    """One request with its steps and repairs. Raises :class:`~nexus.saga.ActionFailed` (not_found)."""
    request = require(connection, request_id)
    if isinstance(request, RegionReplacement):
        more: dict[str, Any] = {"repair_steps": _repair_steps(connection, request_id)}
        more["repairs"] = _repairs(connection, request.new_region_id)
    else:
        more = {"volume_steps": _volume_steps(connection, request_id)}
        refused = sources_refused(connection, request_id)
        more["refused_sources"] = [{"source": each.source, "reason": each.reason} for each in refused]
    return documents.ReplacementDetail.model_validate(told_of(connection, request).model_dump() | more)


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
    return [
        {
            "id": step.id,
            "volume_id": step.volume_id,
            "state": step.state.value,
            "request_time": step.request_time,
            "owner": owner_of(connection, step.volume_id),
        }
        for step in steps_in(connection, set(RegionSnapshotReplacementStepState), request_id=request_id)
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


def decided(connection: Connection, volume_id: str, region_id: str) -> documents.SurvivorDecided:
    """An operator's word that was given."""
    mine = (_DECISION.c.volume_id == volume_id, _DECISION.c.survivor_region_id == region_id)
    when = connection.execute(select(_DECISION.c.time_decided).where(*mine)).scalar_one()
    return documents.SurvivorDecided(volume_id=UUID(volume_id), region_id=UUID(region_id), time_decided=when)


# -- waiting ----------------------------------------------------------------------------------------------------------


def waiting(connection: Connection, now: datetime) -> documents.WaitingReport:
    """What every open request waits for."""
    requests = waits.open_requests(connection)
    found = {each.id: waits.reasons(connection, each, now) for each in requests}
    lines = waits.lines(connection)
    return documents.WaitingReport(
        requests=tuple(
            documents.Waiting(request=told_of(connection, each), reasons=tuple(map(_reason, found[each.id])))
            for each in requests
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
