"""Rows of disks, and every change of a disk's state (nexus.md §1.3).

:data:`MOVES` is all that may become of a disk: :func:`disk_move` does what it says and nothing else does. A disk is
made in ``creating`` and ends in ``destroyed``; its row stays then, with ``time_deleted`` set and its name free.

Why a change may be asked for twice (*safety*): it is one update of a row that is still as expected, and each counts
``state_generation`` up. An action that finds its change done returns the generation that the row has, and changes
nothing. Where two sagas could take each other's change for their own, the row says whose it is
(``operating_saga_id``): such a move is made with ``saga_id``, and afterwards only that saga moves the disk on, by
:func:`disk_move_on`.

Moves that have to do with an instance stand in the table as well; the columns that they change besides, the instance
and the slot, are the business of who makes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Any

from sqlalchemy import Connection, bindparam, select, update

from nexus.db import NotFound, schema
from nexus.db.schema import DiskState, DiskType
from nexus.db.transitions import Outcome, insert_if_absent, update_and_check
from nexus.objects.refusals import already_exists, invalid_request, not_found
from nexus.volumes import Address

_DISK = schema.disk
_CRUCIBLE = schema.disk_type_crucible


class Move(Enum):
    """What may happen to a disk."""

    CREATED = "created"
    CREATED_FOR_IMPORT = "created, for an import"
    CREATION_UNDONE = "creation undone"
    CREATION_STUCK = "creation stuck"
    BULK_WRITE_STARTED = "bulk write started"
    BULK_WRITE_STOPPED = "bulk write stopped"
    FINALIZING_STARTED = "finalizing started"
    FINALIZING_UNDONE = "finalizing undone"
    FINALIZED = "finalized"
    MAINTENANCE_STARTED = "maintenance started"
    MAINTENANCE_ENDED = "maintenance ended"
    ATTACHED = "attached"
    DETACHED = "detached"
    DELETED = "deleted"
    DELETION_UNDONE = "deletion undone"


@dataclass(frozen=True, slots=True)
class Edge:
    """From any of ``before`` to ``after``."""

    before: frozenset[DiskState]
    after: DiskState


def _edge(*before: DiskState, to: DiskState) -> Edge:
    return Edge(frozenset(before), to)


MOVES: Mapping[Move, Edge] = {
    Move.CREATED: _edge(DiskState.CREATING, to=DiskState.DETACHED),
    Move.CREATED_FOR_IMPORT: _edge(DiskState.CREATING, to=DiskState.IMPORT_READY),
    Move.CREATION_UNDONE: _edge(DiskState.CREATING, DiskState.FAULTED, to=DiskState.DESTROYED),
    Move.CREATION_STUCK: _edge(DiskState.CREATING, to=DiskState.FAULTED),
    Move.BULK_WRITE_STARTED: _edge(DiskState.IMPORT_READY, to=DiskState.IMPORTING_FROM_BULK_WRITES),
    Move.BULK_WRITE_STOPPED: _edge(DiskState.IMPORTING_FROM_BULK_WRITES, to=DiskState.IMPORT_READY),
    Move.FINALIZING_STARTED: _edge(DiskState.IMPORT_READY, to=DiskState.FINALIZING),
    Move.FINALIZING_UNDONE: _edge(DiskState.FINALIZING, to=DiskState.IMPORT_READY),
    Move.FINALIZED: _edge(DiskState.FINALIZING, to=DiskState.DETACHED),
    Move.MAINTENANCE_STARTED: _edge(DiskState.DETACHED, to=DiskState.MAINTENANCE),
    Move.MAINTENANCE_ENDED: _edge(DiskState.MAINTENANCE, to=DiskState.DETACHED),
    Move.ATTACHED: _edge(DiskState.DETACHED, to=DiskState.ATTACHED),
    Move.DETACHED: _edge(DiskState.ATTACHED, to=DiskState.DETACHED),
    Move.DELETED: _edge(DiskState.DETACHED, DiskState.FAULTED, to=DiskState.DESTROYED),
    Move.DELETION_UNDONE: _edge(DiskState.DESTROYED, to=DiskState.FAULTED),
}
"""All that may become of a disk."""
_ENDS = {Move.DELETED, Move.CREATION_UNDONE}


@dataclass(frozen=True, slots=True)
class Disk:
    """A row, deleted or not, with what it has in Crucible."""

    id: str
    project_id: str
    name: str
    description: str
    state: DiskState
    generation: int
    attach_instance_id: str | None
    slot: int | None
    operating_saga_id: str | None
    size_bytes: int
    block_size: int
    volume_id: str
    origin_snapshot: str | None
    origin_image: str | None
    pantry: Address | None
    read_only: bool
    time_created: datetime
    time_modified: datetime
    time_deleted: datetime | None

    @property
    def deleted(self) -> bool:
        return self.time_deleted is not None


@dataclass(frozen=True, slots=True)
class NewDisk:
    """What a disk is made with. Its volume need not exist yet, unless it is made in another state than ``creating``."""

    id: str
    project_id: str
    name: str
    description: str
    size_bytes: int
    block_size: int
    volume_id: str
    origin_snapshot: str | None = None
    origin_image: str | None = None
    read_only: bool = False
    state: DiskState = DiskState.CREATING


_DISKS = select(
    *(_DISK.c.id, _DISK.c.project_id, _DISK.c.name, _DISK.c.description, _DISK.c.disk_state, _DISK.c.state_generation),
    *(_DISK.c.attach_instance_id, _DISK.c.slot, _DISK.c.operating_saga_id, _DISK.c.size_bytes, _DISK.c.block_size),
    *(_CRUCIBLE.c.volume_id, _CRUCIBLE.c.origin_snapshot, _CRUCIBLE.c.origin_image, _CRUCIBLE.c.pantry_address),
    *(_CRUCIBLE.c.read_only, _DISK.c.time_created, _DISK.c.time_modified, _DISK.c.time_deleted),
).join(_CRUCIBLE, _CRUCIBLE.c.disk_id == _DISK.c.id)


def disk_of_row(row: Any) -> Disk:
    """What a row of :func:`disks_selected` says."""
    values = dict(row._mapping)
    pantry = values.pop("pantry_address")
    state = DiskState(values.pop("disk_state"))
    generation = values.pop("state_generation")
    return Disk(**values, state=state, generation=generation, pantry=None if pantry is None else Address.parse(pantry))


def disks_selected() -> Any:
    """The query for disks, to be narrowed by ``where`` and ordered; rows are read by :func:`disk_of_row`."""
    return _DISKS


_BY_ID = _DISKS.where(_DISK.c.id == bindparam("disk"))
_GENERATION = select(_DISK.c.state_generation).where(_DISK.c.id == bindparam("disk"))


def disk_get(connection: Connection, disk_id: str) -> Disk | None:
    """The disk, deleted or not."""
    row = connection.execute(_BY_ID, {"disk": disk_id}).one_or_none()
    return None if row is None else disk_of_row(row)


def require_disk(connection: Connection, disk_id: str) -> Disk:
    """The disk, which is not deleted. Raises :class:`~nexus.saga.ActionFailed`."""
    found = disk_get(connection, disk_id)
    if found is None or found.deleted:
        raise not_found("disk", disk_id)
    return found


def disk_insert(connection: Connection, new: NewDisk, now: datetime) -> None:
    """Make the rows, or find that they were made. Raises :class:`~nexus.saga.ActionFailed` where another disk of the
    project has the name."""
    added = insert_if_absent(
        connection,
        _DISK,
        {
            "id": new.id,
            "project_id": new.project_id,
            "name": new.name,
            "description": new.description,
            "time_created": now,
            "time_modified": now,
            "disk_state": new.state,
            "time_state_updated": now,
            "size_bytes": new.size_bytes,
            "block_size": new.block_size,
            "disk_type": DiskType.CRUCIBLE,
        },
    )
    if not added and disk_get(connection, new.id) is None:
        raise already_exists("disk", new.name)
    insert_if_absent(
        connection,
        _CRUCIBLE,
        {
            "disk_id": new.id,
            "volume_id": new.volume_id,
            "origin_snapshot": new.origin_snapshot,
            "origin_image": new.origin_image,
            "read_only": new.read_only,
        },
    )


def disk_move(
    connection: Connection,
    disk_id: str,
    move: Move,
    now: datetime,
    *,
    saga_id: str | None = None,
    generation: int | None = None,
    also: Mapping[str, Any] | None = None,
) -> int:
    """Make the move, or find it made; the generation of the disk's state after it.

    ``saga_id``: whose disk it is from then on. ``generation``: the one that the move leads away from, if only that one
    will do. ``also``: other columns to be set. Raises :class:`~nexus.db.Conflict`, :class:`~nexus.db.NotFound`.
    """
    edge = MOVES[move]
    expected: dict[str, Any] = {"disk_state": edge.before}
    same: dict[str, Any] = {"disk_state": edge.after, **(also or {})}
    # *Safety*: what a saga has in hand moves only by :func:`disk_move_on`.
    expected["operating_saga_id"] = None
    same["operating_saga_id"] = saga_id
    if generation is not None:
        expected["state_generation"], same["state_generation"] = generation, generation + 1
    if move is not Move.DELETION_UNDONE:
        expected["time_deleted"] = None
    new = _after(edge.after, now) | {"operating_saga_id": saga_id} | dict(also or {})
    if move in _ENDS:
        # *Safety*: a faulted disk may be attached still, and then a guest may write to its volume.
        expected["attach_instance_id"] = None
        new["time_deleted"] = now
    elif move is Move.DELETION_UNDONE:
        new["time_deleted"] = None
    update_and_check(connection, _DISK, disk_id, expected=expected, new=new, same=same)
    return _generation(connection, disk_id)


def disk_move_strictly(
    connection: Connection, disk_id: str, move: Move, now: datetime, *, saga_id: str | None = None
) -> int:
    """As :func:`disk_move`, for a user's request: a disk that somebody has moved there already is refused like one that
    is elsewhere. Raises :class:`~nexus.saga.ActionFailed`."""
    found, edge = require_disk(connection, disk_id), MOVES[move]
    ours = saga_id is not None and found.operating_saga_id == saga_id
    if not ours and (found.state not in edge.before or found.operating_saga_id is not None):
        wanted = " or ".join(sorted(edge.before))
        raise invalid_request(f"disk {disk_id} is {found.state}; it must be {wanted} for this")
    return disk_move(connection, disk_id, move, now, saga_id=saga_id)


def disk_move_on(
    connection: Connection,
    disk_id: str,
    move: Move,
    now: datetime,
    *,
    saga_id: str,
    also: Mapping[str, Any] | None = None,
) -> Outcome:
    """The saga that has the disk in hand moves it for the last time, and lets go of it. ``also``: other columns.

    A disk that it does not have in hand is as it left it when it did this before, or has gone on since: that is
    :attr:`~nexus.db.transitions.Outcome.ALREADY`, and nothing is changed.
    """
    edge = MOVES[move]
    new = _after(edge.after, now) | {"operating_saga_id": None} | dict(also or {})
    if move is Move.DELETION_UNDONE:
        new["time_deleted"] = None
    changed = connection.execute(
        update(_DISK)
        .where(_DISK.c.id == disk_id, _DISK.c.operating_saga_id == saga_id, _DISK.c.disk_state.in_(sorted(edge.before)))
        .values(**new)
    )
    return Outcome.UPDATED if changed.rowcount else Outcome.ALREADY


def disk_pantry_record(connection: Connection, disk_id: str, address: Address, now: datetime) -> Address:
    """The disk is attached to the pantry at ``address``, or to the one that was recorded before, which is returned."""
    recorded = _pantry(connection, disk_id)
    if recorded is not None:
        return recorded
    _set_pantry(connection, disk_id, str(address), now)
    return address


def disk_pantry_give_up(connection: Connection, disk_id: str, address: Address, now: datetime) -> None:
    """The disk is not attached to the pantry at ``address``; to another it may be."""
    if _pantry(connection, disk_id) == address:
        _set_pantry(connection, disk_id, None, now)


def disk_pantry_clear(connection: Connection, disk_id: str, now: datetime) -> None:
    """The disk is attached to no pantry."""
    _set_pantry(connection, disk_id, None, now)


def disk_in_hand(connection: Connection, disk_id: str, saga_id: str) -> bool:
    """Whether the saga has the disk in hand."""
    query = select(_DISK.c.id).where(_DISK.c.id == disk_id, _DISK.c.operating_saga_id == saga_id)
    return connection.execute(query).first() is not None


def _after(state: DiskState, now: datetime) -> dict[str, Any]:
    return {
        "disk_state": state,
        "state_generation": _DISK.c.state_generation + 1,
        "time_state_updated": now,
        "time_modified": now,
    }


def _generation(connection: Connection, disk_id: str) -> int:
    found: int = connection.execute(_GENERATION, {"disk": disk_id}).scalar_one()
    return found


def _pantry(connection: Connection, disk_id: str) -> Address | None:
    row = connection.execute(select(_CRUCIBLE.c.pantry_address).where(_CRUCIBLE.c.disk_id == disk_id)).one_or_none()
    if row is None:
        raise NotFound("disk", disk_id)
    return None if row.pantry_address is None else Address.parse(row.pantry_address)


def _set_pantry(connection: Connection, disk_id: str, address: str | None, now: datetime) -> None:
    connection.execute(update(_CRUCIBLE).where(_CRUCIBLE.c.disk_id == disk_id).values(pantry_address=address))
    connection.execute(update(_DISK).where(_DISK.c.id == disk_id).values(time_modified=now))
