"""What Upstairs tell of their repairs, written down (nexus.md §1.5).

Receiving one only records it: whoever drives a replacement reads the rows later. An Upstairs sends a notification
again when it got no answer, and may have restarted in between, so each function may run again with the same words.

What it guarantees (*safety*: a repair that is believed is the reason for taking an old copy away): all rows of one
repair have one type; of one copy in one session a repair has ended well or not, never both.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, select

from nexus.db import Conflict, NotFound, schema
from nexus.db.schema import RepairNotificationType, RepairType
from nexus.db.schema.notifications import StoppedReason, StopRequestReason
from nexus.db.transitions import insert_if_absent
from nexus.volumes import Address

_REPAIR, _PROGRESS = schema.upstairs_repair_notification, schema.upstairs_repair_progress
_STOP_REQUEST = schema.downstairs_client_stop_request_notification
_STOPPED = schema.downstairs_client_stopped_notification

CONTRADICTS = {
    RepairNotificationType.SUCCEEDED: RepairNotificationType.FAILED,
    RepairNotificationType.FAILED: RepairNotificationType.SUCCEEDED,
}
"""Of two ends of one repair only one can be true."""


@dataclass(frozen=True, slots=True)
class Repair:
    """An attempt of one Upstairs, in one session, to make some copies good again. ``regions``: which, and where."""

    time: datetime
    repair_id: str
    repair_type: RepairType
    upstairs_id: str
    session_id: str
    regions: tuple[tuple[str, Address], ...]


@dataclass(frozen=True, slots=True)
class Client:
    """An Upstairs' client of a downstairs, of which something is told."""

    time: datetime
    upstairs_id: str
    downstairs_id: str


def repair_notified(connection: Connection, repair: Repair, what: RepairNotificationType) -> None:
    """The repair has started, or ended for all these regions. Raises :class:`~nexus.db.Conflict` where that
    contradicts what was told before."""
    known = select(_REPAIR.c.repair_type).where(_REPAIR.c.repair_id == repair.repair_id).limit(1)
    before = connection.execute(known).scalar_one_or_none()
    if before is not None and before != repair.repair_type:
        raise Conflict(f"repair {repair.repair_id} is a {before} repair, not a {repair.repair_type} one")
    for region_id, address in repair.regions:
        key = {
            "repair_id": repair.repair_id,
            "upstairs_id": repair.upstairs_id,
            "session_id": repair.session_id,
            "region_id": region_id,
        }
        _refuse_contradiction(connection, key, what)
        told = {"time": repair.time, "repair_type": repair.repair_type, "notification_type": what}
        where = {"target_ip": address.ip, "target_port": address.port}
        insert_if_absent(connection, _REPAIR, key | told | where)


def _refuse_contradiction(connection: Connection, key: dict[str, str], what: RepairNotificationType) -> None:
    other = CONTRADICTS.get(what)
    if other is None:
        return
    same = [_REPAIR.c[name] == value for name, value in key.items()]
    ended = select(_REPAIR.c.repair_id).where(*same, _REPAIR.c.notification_type == other)
    if connection.execute(ended).first() is not None:
        raise Conflict(f"repair {key['repair_id']} of region {key['region_id']} has {other} already: not {what}")


def repair_progressed(
    connection: Connection, upstairs_id: str, repair_id: str, time: datetime, current_item: int, total_items: int
) -> None:
    """So many items are done. Raises :class:`~nexus.db.NotFound` where the Upstairs has started no such repair."""
    started = select(_REPAIR.c.repair_id).where(
        _REPAIR.c.repair_id == repair_id,
        _REPAIR.c.upstairs_id == upstairs_id,
        _REPAIR.c.notification_type == RepairNotificationType.STARTED,
    )
    if connection.execute(started.limit(1)).first() is None:
        raise NotFound("repair", repair_id)
    row = {"repair_id": repair_id, "time": time, "current_item": current_item, "total_items": total_items}
    insert_if_absent(connection, _PROGRESS, row)


def stop_requested(connection: Connection, client: Client, reason: StopRequestReason) -> None:
    """An Upstairs asked the client to stop."""
    insert_if_absent(connection, _STOP_REQUEST, _of(client) | {"reason": reason})


def stopped(connection: Connection, client: Client, reason: StoppedReason) -> None:
    """The client has stopped."""
    insert_if_absent(connection, _STOPPED, _of(client) | {"reason": reason})


def _of(client: Client) -> dict[str, object]:
    return {"time": client.time, "upstairs_id": client.upstairs_id, "downstairs_id": client.downstairs_id}


def repairs_of(connection: Connection, region_ids: Iterable[str]) -> list[tuple[str, RepairNotificationType]]:
    """What was told of these regions: the region and what became of it, in the order of the Upstairs' clocks."""
    query = select(_REPAIR.c.region_id, _REPAIR.c.notification_type).where(_REPAIR.c.region_id.in_(sorted(region_ids)))
    rows = connection.execute(query.order_by(_REPAIR.c.time, _REPAIR.c.region_id, _REPAIR.c.notification_type))
    return [(row.region_id, RepairNotificationType(row.notification_type)) for row in rows]
