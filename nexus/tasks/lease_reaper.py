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
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, Delete, Table, bindparam, delete, exists, or_, select

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
from nexus.volumes.repair_lock import forget_who_does_not_come_back

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


@dataclass(frozen=True, slots=True)
class Held:
    """What an ended saga holds. ``what`` and ``ids`` name it; ``let_go``, in a transaction, gives it back if the saga
    has still ended, and says whether it did."""

    what: str
    ids: tuple[str, ...]
    behind: Behind
    let_go: Callable[[Connection, World], bool]

    def __str__(self) -> str:
        return f"{self.what} is held by saga {self.behind.saga_id}, which is {self.behind.state.value}"


class LeaseReaper:
    """``released`` says in sentences what was let go of."""

    name = "lease_reaper"
    description = "releases locks and records whose saga has ended without releasing them"
    period_s = 60.0

    def __init__(self, world: World) -> None:
        self._world = world

    async def activate(self) -> Status:
        world = self._world
        released, errors = [], []
        for held in await world.database.read(held_by_ended):
            try:
                if await self._let_go(held):
                    released.append(str(held))
            except DatabaseError as error:
                errors.append(f"{held.what}: {told(error)}")
        errors += await world.database.read(unknown_holders)
        await world.database.transact(forget_leases_of_ended)
        # Of a volume that is gone nobody else asks for the lock, and so nobody else would forget who waits for it.
        await world.database.transact(lambda c: forget_who_does_not_come_back(c, world.now()))
        return {"released": released, "errors": errors}

    async def _let_go(self, held: Held) -> bool:
        return await self._world.database.transact(lambda c: held.let_go(c, self._world))


def held_by_ended(connection: Connection) -> list[Held]:
    """All that ended sagas hold."""
    return [*_locks(connection), *_records(connection), *_disks(connection)]


_LOCKS = select(_LOCK.c.volume_id, _LOCK.c.repair_id).order_by(_LOCK.c.volume_id)


def _locks(connection: Connection) -> Iterator[Held]:
    for volume_id, holder in connection.execute(_LOCKS):
        # *Safety*: a request or step holds its lock from saga to saga, until it is complete.
        behind = None if _is_record(connection, holder) else _ended(connection, holder)
        if behind is not None:
            back = _LockBack(volume_id, holder)
            yield Held(f"the lock of volume {volume_id}", (volume_id, holder), behind, back)


@dataclass(frozen=True, slots=True)
class _LockBack:
    """The lock of a volume is given back."""

    volume_id: str
    holder: str

    def __call__(self, connection: Connection, world: World) -> bool:
        if _ended(connection, self.holder) is None:
            return False
        world.locks.volume_repair_delete(connection, self.volume_id, self.holder)
        return True


_IN_HAND = {
    table: select(table.c.id, table.c.replacement_state, table.c[HOLDER]).where(table.c[HOLDER].is_not(None))
    for table in AT_REST
}


def _records(connection: Connection) -> Iterator[Held]:
    for table, states in AT_REST.items():
        # Put in order here: SQLite would go through the whole table for the sake of an order.
        for identity, state, holder in sorted(connection.execute(_IN_HAND[table]).all(), key=lambda row: row.id):
            behind = _ended(connection, holder)
            if behind is not None:
                back = _Back(table, identity, state, holder, *states[state])
                yield Held(f"{table.name} {identity}, {state},", (identity, holder), behind, back)


@dataclass(frozen=True, slots=True)
class _Back:
    """A request or step goes back to the state at rest."""

    table: Table
    identity: str
    state: StrEnum
    holder: str
    rest: StrEnum
    also: Mapping[str, Any]

    def __call__(self, connection: Connection, world: World) -> bool:
        if _ended(connection, self.holder) is None:
            return False
        expected = {"replacement_state": self.state, HOLDER: self.holder}
        new = {"replacement_state": self.rest, HOLDER: None, **self.also}
        return update_and_check(connection, self.table, self.identity, expected=expected, new=new) is Outcome.UPDATED


_DISKS_IN_HAND = (
    select(_DISK.c.id, _DISK.c.disk_state, _DISK.c[HOLDER])
    .where(
        _DISK.c[HOLDER].is_not(None),
        _DISK.c.disk_state.in_(sorted(DISK_AT_REST)),
        or_(
            _DISK.c.time_deleted.is_(None),
            exists().where(schema.virtual_provisioning_resource.c.id == _DISK.c.id),
        ),
    )
    .order_by(_DISK.c.id)
)
"""Disks in a saga's hand, by id. Deleted ones remain in that of the saga that deleted them: only such are looked at
that are charged still."""


def _disks(connection: Connection) -> Iterator[Held]:
    for disk_id, state, holder in connection.execute(_DISKS_IN_HAND):
        behind = _ended(connection, holder)
        if behind is not None and not (state == DiskState.DESTROYED and behind.state is SagaState.DONE):
            yield Held(f"disk {disk_id}, {state},", (disk_id, holder), behind, _DiskBack(disk_id, state, holder))


@dataclass(frozen=True, slots=True)
class _DiskBack:
    """A disk goes back to the state at rest."""

    disk_id: str
    state: DiskState
    holder: str

    def __call__(self, connection: Connection, world: World) -> bool:
        if _ended(connection, self.holder) is None:
            return False
        move, also = DISK_AT_REST[self.state]
        name = {column: text.format(self.disk_id) for column, text in also.items()}
        moved = disk_move_on(connection, self.disk_id, move, world.now(), saga_id=self.holder, also=name)
        return moved is Outcome.UPDATED


def _ended(connection: Connection, holder: str) -> Behind | None:
    """The saga behind a holder, if that has ended."""
    behind = saga_behind(connection, holder)
    return behind if behind is not None and behind.ended else None


_IS_RECORD = [select(table.c.id).where(table.c.id == bindparam("holder")) for table in AT_REST]


def _is_record(connection: Connection, holder: str) -> bool:
    """Whether it is a request or a step."""
    return any(connection.execute(query, {"holder": holder}).first() is not None for query in _IS_RECORD)


def unknown_holders(connection: Connection) -> list[str]:
    """Locks whose holder is neither a request, nor a step, nor known to have to do with a saga: for a person to see."""
    found = []
    for row in connection.execute(_LOCKS):
        if not _is_record(connection, row.repair_id) and saga_behind(connection, row.repair_id) is None:
            found.append(f"the lock of volume {row.volume_id} is held by {row.repair_id}, which nobody knows")
    return found


def _leases_of_ended() -> Delete:
    lease, saga = schema.saga_lease, schema.saga
    ended = select(saga.c.id).where(saga.c.state.in_(["done", "unwound"]))
    held = [select(_LOCK.c.repair_id), *(select(t.c[HOLDER]).where(t.c[HOLDER].is_not(None)) for t in AT_REST)]
    still = held[0].union_all(*held[1:])
    return delete(lease).where(lease.c.saga_id.in_(ended), lease.c.holder_id.not_in(still))


_LEASES_OF_ENDED = _leases_of_ended()


def forget_leases_of_ended(connection: Connection) -> None:
    """Whoever stood behind a holder, and has ended, need not be remembered once nothing is held."""
    connection.execute(_LEASES_OF_ENDED)
