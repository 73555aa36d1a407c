"""Rows of snapshots, and the ledger of what their bytes were (nexus.md §1.3).

A snapshot's row is made while the snapshot is being taken, and never goes away: replacement looks at deleted ones too.
How it changes is :data:`TRANSITIONS`, which the code runs. Beside it stands the *ledger*: one digest for each extent,
of what the agents hold of the snapshot. Bytes that are compared with it can be shown to be those that were frozen.

What it guarantees: each function may run again, and does nothing then. A name is one snapshot's in its project; the
same name for another snapshot is refused, and the same snapshot is found again. What the ledger says of a snapshot is
never changed (*safety*: it is evidence).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Any

from sqlalchemy import Connection, Row, bindparam, select

from nexus.db import schema
from nexus.db.schema import SnapshotState
from nexus.db.transitions import insert_if_absent, update_and_check
from nexus.objects.refusals import CONFLICT, OBJECT_ALREADY_EXISTS, already_exists, not_found, told_to_users
from nexus.saga import ActionFailed

_SNAPSHOT, _LEDGER = schema.snapshot, schema.snapshot_ledger


class Change(Enum):
    """What may happen to a snapshot."""

    FINISH = "finish"
    UNDO = "undo"
    DELETE = "delete"


TRANSITIONS: dict[Change, tuple[frozenset[SnapshotState], SnapshotState]] = {
    Change.FINISH: (frozenset({SnapshotState.CREATING}), SnapshotState.READY),
    # The saga that makes it unwinds: whatever it has become, nobody else has it yet.
    Change.UNDO: (
        frozenset({SnapshotState.CREATING, SnapshotState.READY, SnapshotState.FAULTED}),
        SnapshotState.DESTROYED,
    ),
    # *Safety*: not one that is being made: its saga would go on with it.
    Change.DELETE: (frozenset({SnapshotState.READY, SnapshotState.FAULTED}), SnapshotState.DESTROYED),
}
"""From which states to which."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A row. ``deleted``: it has ``time_deleted``."""

    id: str
    project_id: str
    name: str
    description: str
    disk_id: str
    volume_id: str
    destination_volume_id: str
    state: SnapshotState
    gen: int
    block_size: int
    size_bytes: int
    deleted: bool = False


@dataclass(frozen=True, slots=True)
class Ledger:
    """The digests of a snapshot's extents, in hexadecimal, in order."""

    extent_size_bytes: int
    extents: tuple[str, ...]


_BY_ID = select(_SNAPSHOT).where(_SNAPSHOT.c.id == bindparam("snapshot"))
_LEDGER_OF = select(_LEDGER).where(_LEDGER.c.snapshot_id == bindparam("snapshot"))


def snapshot_get(connection: Connection, snapshot_id: str) -> Snapshot | None:
    """The snapshot, deleted or not."""
    row = connection.execute(_BY_ID, {"snapshot": snapshot_id}).one_or_none()
    return None if row is None else _of(row)


def snapshot_require(connection: Connection, snapshot_id: str) -> Snapshot:
    """The snapshot, which is not deleted. Raises :class:`~nexus.saga.ActionFailed` (not_found)."""
    found = snapshot_get(connection, snapshot_id)
    if found is None or found.deleted:
        raise not_found("snapshot", snapshot_id)
    return found


def snapshot_insert(connection: Connection, wanted: Snapshot, now: datetime) -> None:
    """Write the row of a snapshot that is being made, or find it. Raises :class:`~nexus.saga.ActionFailed`."""
    there = snapshot_get(connection, wanted.id)
    if there is not None:
        if there.deleted:
            raise ActionFailed(f"snapshot {wanted.id} was made and is deleted", CONFLICT)
        if _identity(there) != _identity(wanted):
            raise ActionFailed(f"snapshot {wanted.id} exists, and is another", OBJECT_ALREADY_EXISTS)
        return
    values = {
        name: getattr(wanted, name) for name in Snapshot.__dataclass_fields__ if name not in ("deleted", "state", "gen")
    }
    stamps = {"time_created": now, "time_modified": now, "state": SnapshotState.CREATING, "gen": 1}
    if not insert_if_absent(connection, _SNAPSHOT, values | stamps):
        raise already_exists("snapshot", wanted.name)


def snapshot_change(connection: Connection, snapshot_id: str, change: Change, now: datetime) -> None:
    """What :data:`TRANSITIONS` says. Raises :class:`~nexus.saga.ActionFailed` where it does not apply."""
    before, after = TRANSITIONS[change]
    new = {"state": after, "gen": _SNAPSHOT.c.gen + 1, "time_modified": now}
    if after is SnapshotState.DESTROYED:
        new["time_deleted"] = now
    with told_to_users():
        update_and_check(
            connection, _SNAPSHOT, snapshot_id, expected={"state": before}, new=new, same={"state": {after}}
        )


def snapshot_being_made(connection: Connection, disk_id: str) -> str | None:
    """The snapshot of a disk that a saga is about to take, if there is one."""
    query = select(_SNAPSHOT.c.id).where(
        _SNAPSHOT.c.disk_id == disk_id,
        _SNAPSHOT.c.state == SnapshotState.CREATING,
        _SNAPSHOT.c.time_deleted.is_(None),
    )
    found: str | None = connection.execute(query.order_by(_SNAPSHOT.c.id).limit(1)).scalar_one_or_none()
    return found


def snapshot_of_volume(connection: Connection, volume_id: str) -> Snapshot | None:
    """The snapshot whose volume this is, deleted or not."""
    row = connection.execute(select(_SNAPSHOT).where(_SNAPSHOT.c.volume_id == volume_id)).one_or_none()
    return None if row is None else _of(row)


# -- the ledger -------------------------------------------------------------------------------------------------------


def ledger_write(connection: Connection, snapshot_id: str, ledger: Ledger, now: datetime) -> None:
    """Write down what the bytes of a snapshot are. Raises :class:`~nexus.saga.ActionFailed` where something else is
    written there."""
    values = {
        "snapshot_id": snapshot_id,
        "time_created": now,
        "extent_size_bytes": ledger.extent_size_bytes,
        "extent_digests": json.dumps(ledger.extents),
    }
    if not insert_if_absent(connection, _LEDGER, values) and ledger_get(connection, snapshot_id) != ledger:
        raise ActionFailed(f"snapshot {snapshot_id} holds other bytes than its ledger says", CONFLICT)


def ledger_get(connection: Connection, snapshot_id: str) -> Ledger | None:
    row = connection.execute(_LEDGER_OF, {"snapshot": snapshot_id}).one_or_none()
    return None if row is None else Ledger(row.extent_size_bytes, tuple(json.loads(row.extent_digests)))


def ledger_remove(connection: Connection, snapshot_id: str) -> None:
    """Forget what was written of a snapshot that never came to be."""
    connection.execute(_LEDGER.delete().where(_LEDGER.c.snapshot_id == snapshot_id))


# -- rows -------------------------------------------------------------------------------------------------------------


def _of(row: Row[Any]) -> Snapshot:
    columns = row._mapping
    values = {name: columns[name] for name in Snapshot.__dataclass_fields__ if name != "deleted"}
    return Snapshot(**values, deleted=columns["time_deleted"] is not None)


def _identity(snapshot: Snapshot) -> tuple[str, ...]:
    """What makes it the snapshot that was asked for; its state and name may have changed since."""
    return (snapshot.project_id, snapshot.disk_id, snapshot.volume_id, snapshot.destination_volume_id)
