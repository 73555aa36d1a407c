"""``lease_reaper``: let go of what an ended saga has locked (W42).

What it finds: locks of volumes, requests and steps of replacements in an intermediate state, and disks that are in a
saga's hand, where that saga has ended. A saga gives back what it took before it ends; but a Nexus that stood still, and
lost the saga to another, may run the node that takes *again*, long after the other came to the end. It finds out at its
next record that the saga is not its own, and does nothing more: what it took stays taken, for ever.

What it does: the lock is given back, and the record goes back to the state at rest that it was taken from.

Why it is safe (*safety*): whether the saga has ended is read in the transaction that lets go. An ended saga does
nothing more with what it took; if its late node comes yet again, the next activation is there. Nothing happened after
the late taking, because the fence lets no later node begin: so the state before it is the right one. What a saga holds
that runs, or that is stuck and may be resumed, stays; and so does what nobody knows, which is told of as an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, Select, Table, delete, exists, or_, select

from nexus.db import DatabaseError, schema
from nexus.db.saga_claims import Behind, saga_behind
from nexus.db.schema import (
    DiskState,
    RegionReplacementState,
    RegionSnapshotReplacementState,
    RegionSnapshotReplacementStepState,
)
from nexus.db.transitions import HOLDER, Outcome, update_and_check
from nexus.objects.disks import Move, disk_move_on
from nexus.saga import SagaState
from nexus.services import World
from nexus.tasks.task import Status, told

_LOCK, _DISK = schema.volume_repair, schema.disk
_REQUEST, _READ_ONLY_REQUEST = schema.region_replacement, schema.region_snapshot_replacement
_STEP = schema.region_snapshot_replacement_step

AT_REST: Mapping[Table, Mapping[StrEnum, tuple[StrEnum, Mapping[str, Any]]]] = {
    _REQUEST: {
        RegionReplacementState.ALLOCATING: (RegionReplacementState.REQUESTED, {}),
        RegionReplacementState.DRIVING: (RegionReplacementState.RUNNING, {}),
        RegionReplacementState.COMPLETING: (RegionReplacementState.REPLACEMENT_DONE, {}),
    },
    _READ_ONLY_REQUEST: {
        RegionSnapshotReplacementState.ALLOCATING: (RegionSnapshotReplacementState.REQUESTED, {}),
        RegionSnapshotReplacementState.DELETING_OLD_VOLUME: (RegionSnapshotReplacementState.REPLACEMENT_DONE, {}),
        RegionSnapshotReplacementState.COMPLETING: (RegionSnapshotReplacementState.RUNNING, {}),
    },
    _STEP: {
        RegionSnapshotReplacementStepState.RUNNING: (
            RegionSnapshotReplacementStepState.REQUESTED,
            {"old_snapshot_volume_id": None},
        ),
    },
}
"""Where an intermediate state was taken from, and what else is undone by going back (§2's back edges)."""

DISK_AT_REST: Mapping[DiskState, tuple[Move, Mapping[str, str]]] = {
    DiskState.FINALIZING: (Move.FINALIZING_UNDONE, {}),
    DiskState.MAINTENANCE: (Move.MAINTENANCE_ENDED, {}),
    # Of a deletion that was undone; its name may be another's by now.
    DiskState.DESTROYED: (Move.DELETION_UNDONE, {"name": "deleted-{}"}),
}
"""The same of disks: the move back, and other columns, with the id where ``{}`` stands."""

LetGo = Callable[[Connection], bool]


class LeaseReaper:
    """``released`` says in sentences what was let go of."""

    name = "lease_reaper"
    description = "releases locks and records whose saga has ended without releasing them"
    period_s = 60.0

    def __init__(self, world: World) -> None:
        self._world = world

    async def activate(self) -> Status:
        released, errors = [], []
        for what, let_go in await self._world.database.read(self._held):
            try:
                if await self._world.database.transact(let_go):
                    released.append(what)
            except DatabaseError as error:
                errors.append(f"{what}: {told(error)}")
        errors += await self._world.database.read(unknown_holders)
        await self._world.database.transact(forget_leases_of_ended)
        return {"released": released, "errors": errors}

    # -- what is held by whom -----------------------------------------------------------------------------------------

    def _held(self, connection: Connection) -> list[tuple[str, LetGo]]:
        """What an ended saga holds, and how to let go of it."""
        return [
            (f"{what}, held by saga {behind.saga_id}, which is {behind.state.value}", let_go)
            for what, holder, let_go in (*self._locks(connection), *self._records(connection), *self._disks(connection))
            if (behind := saga_behind(connection, holder)) is not None and behind.ended
        ]

    def _locks(self, connection: Connection) -> Iterator[tuple[str, str, LetGo]]:
        for row in connection.execute(select(_LOCK).order_by(_LOCK.c.volume_id)):
            if _is_record(connection, row.repair_id):
                # *Safety*: a request or step holds its lock from saga to saga, until it is complete.
                continue

            def let_go(inner: Connection, volume_id: str = row.volume_id, holder: str = row.repair_id) -> bool:
                if not _has_ended(inner, holder):
                    return False
                self._world.locks.volume_repair_delete(inner, volume_id, holder)
                return True

            yield f"the lock of volume {row.volume_id}", row.repair_id, let_go

    def _records(self, connection: Connection) -> Iterator[tuple[str, str, LetGo]]:
        for table, states in AT_REST.items():
            held = select(table.c.id, table.c.replacement_state, table.c[HOLDER]).where(table.c[HOLDER].is_not(None))
            for identity, state, holder in connection.execute(held.order_by(table.c.id)):
                rest, also = states[state]
                expected = {"replacement_state": state, HOLDER: holder}
                new = {"replacement_state": rest, HOLDER: None, **also}

                def let_go(
                    inner: Connection,
                    table: Table = table,
                    identity: str = identity,
                    expected: dict[str, Any] = expected,
                    new: dict[str, Any] = new,
                ) -> bool:
                    if not _has_ended(inner, expected[HOLDER]):
                        return False
                    update_and_check(inner, table, identity, expected=expected, new=new)
                    return True

                yield f"{table.name} {identity}, {state}", holder, let_go

    def _disks(self, connection: Connection) -> Iterator[tuple[str, str, LetGo]]:
        for row in connection.execute(_disks_in_hand()):

            def let_go(
                inner: Connection, disk_id: str = row.id, state: DiskState = row.disk_state, holder: str = row[2]
            ) -> bool:
                behind = saga_behind(inner, holder)
                if behind is None or not behind.ended:
                    return False
                if state == DiskState.DESTROYED and behind.state is SagaState.DONE:
                    return False
                move, also = DISK_AT_REST[state]
                name = {column: text.format(disk_id) for column, text in also.items()}
                moved = disk_move_on(inner, disk_id, move, self._world.now(), saga_id=holder, also=name)
                return moved is Outcome.UPDATED

            yield f"disk {row.id}, {row.disk_state}", row[2], let_go


def _disks_in_hand() -> Select[Any]:
    """Disks in a saga's hand, by id. Deleted ones remain in that of the saga that deleted them: only such are looked at
    that are charged still."""
    charged = exists().where(schema.virtual_provisioning_resource.c.id == _DISK.c.id)
    return (
        select(_DISK.c.id, _DISK.c.disk_state, _DISK.c[HOLDER])
        .where(
            _DISK.c[HOLDER].is_not(None),
            _DISK.c.disk_state.in_(sorted(DISK_AT_REST)),
            or_(_DISK.c.time_deleted.is_(None), charged),
        )
        .order_by(_DISK.c.id)
    )


def _has_ended(connection: Connection, holder: str) -> bool:
    behind: Behind | None = saga_behind(connection, holder)
    return behind is not None and behind.ended


def _is_record(connection: Connection, holder: str) -> bool:
    """Whether it is a request or a step."""
    return any(
        connection.execute(select(table.c.id).where(table.c.id == holder)).first() is not None for table in AT_REST
    )


def unknown_holders(connection: Connection) -> list[str]:
    """Locks whose holder is neither a request, nor a step, nor known to have to do with a saga: for a person to see."""
    found = []
    for row in connection.execute(select(_LOCK).order_by(_LOCK.c.volume_id)):
        if not _is_record(connection, row.repair_id) and saga_behind(connection, row.repair_id) is None:
            found.append(f"the lock of volume {row.volume_id} is held by {row.repair_id}, which nobody knows")
    return found


def forget_leases_of_ended(connection: Connection) -> None:
    """Whoever stood behind a holder, and has ended, need not be remembered once nothing is held."""
    lease, saga = schema.saga_lease, schema.saga
    ended = select(saga.c.id).where(saga.c.state.in_(["done", "unwound"]))
    held = [select(_LOCK.c.repair_id), *(select(t.c[HOLDER]).where(t.c[HOLDER].is_not(None)) for t in AT_REST)]
    still = held[0].union_all(*held[1:])
    connection.execute(delete(lease).where(lease.c.saga_id.in_(ended), lease.c.holder_id.not_in(still)))
