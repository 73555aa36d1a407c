"""The lock of a volume (nexus.md §5.10): who may change which regions it is made of.

What it is for: a replacement takes it for as long as it is under way, a step for one volume, a snapshot for the moment
in which it is made. Two of them at once would each compute from a document that the other changes. It does not keep a
volume from being deleted or checked out; the replacements are made to bear that.

What it guarantees: one holder, across processes, in the caller's transaction. Taking what one holds is nothing new, so
that a node may run again. The volume's row need not be there: a request may be about a snapshot volume that is gone
(R3, R4).

:class:`RepairLocks` is what the sagas and requests know. :class:`TryLocks` is the real one's way: whoever comes while
it is held is refused, and in what order they come back is chance; one can lose for ever (W2). :class:`FairLocks` writes
down who was refused, and grants the lock to who has waited longest. *Liveness*: that works for whoever comes back under
the same id, so the ids of requests and steps are derived from what they are for; who does not come back for
:data:`PATIENCE` loses its place, and who never comes back, a user's snapshot, is let through before the first in line
so and so many times, and then no more.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from typing import Protocol

from sqlalchemy import Connection, bindparam, delete, insert, select, update

from nexus.db import Conflict, schema

_LOCK, _QUEUE = schema.volume_repair, schema.volume_repair_queue

LOCK_CONFLICT = "volume repair lock"
"""The whole message of the conflict. Who makes requests takes exactly this for *not now* and not for an error."""


_HOLDER_OF = select(_LOCK).where(_LOCK.c.volume_id == bindparam("volume"))
_HELD_BY = select(_LOCK).where(_LOCK.c.repair_id == bindparam("repair")).order_by(_LOCK.c.volume_id)
_TAKE = insert(_LOCK)
_GIVE_BACK = delete(_LOCK).where(_LOCK.c.volume_id == bindparam("volume"), _LOCK.c.repair_id == bindparam("repair"))


class LockResult(Enum):
    """What became of an attempt to take the lock."""

    TAKEN = "taken"
    HAD_IT = "had it"
    HELD_BY_ANOTHER = "held by another"

    def require(self) -> None:
        """For who cannot go on without it. Raises :class:`LockHeld`."""
        if self is LockResult.HELD_BY_ANOTHER:
            raise LockHeld


class LockHeld(Conflict):
    """Somebody else holds the lock of the volume."""

    def __init__(self) -> None:
        super().__init__(LOCK_CONFLICT)


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds the lock of a volume, since when."""

    volume_id: str
    repair_id: str
    time_taken: datetime


class RepairLocks(Protocol):
    """The locks of all volumes."""

    def volume_repair_insert(self, connection: Connection, volume_id: str, repair_id: str, now: datetime) -> LockResult:
        """Take the lock, or find that one has it, or be refused. A refusal is a result and no error, so that the
        transaction can be committed with what was noted about who waits."""
        ...

    def volume_repair_overtake(
        self, connection: Connection, volume_id: str, repair_id: str, now: datetime
    ) -> LockResult:
        """As :meth:`volume_repair_insert`, for who does not come back when it is refused."""
        ...

    def volume_repair_delete(self, connection: Connection, volume_id: str, repair_id: str) -> None:
        """Give the lock back; of one that is not held by ``repair_id`` it is done."""


class TryLocks:
    """Whoever comes when it is free has it; nobody waits in line."""

    def volume_repair_insert(self, connection: Connection, volume_id: str, repair_id: str, now: datetime) -> LockResult:
        held = holder(connection, volume_id)
        if held is not None:
            return LockResult.HAD_IT if held.repair_id == repair_id else LockResult.HELD_BY_ANOTHER
        connection.execute(_TAKE, {"volume_id": volume_id, "repair_id": repair_id, "time_taken": now})
        return LockResult.TAKEN

    def volume_repair_overtake(
        self, connection: Connection, volume_id: str, repair_id: str, now: datetime
    ) -> LockResult:
        return self.volume_repair_insert(connection, volume_id, repair_id, now)

    def volume_repair_delete(self, connection: Connection, volume_id: str, repair_id: str) -> None:
        connection.execute(_GIVE_BACK, {"volume": volume_id, "repair": repair_id})


def holder(connection: Connection, volume_id: str) -> Holder | None:
    """Who holds the lock of the volume."""
    row = connection.execute(_HOLDER_OF, {"volume": volume_id}).one_or_none()
    return None if row is None else Holder(row.volume_id, row.repair_id, row.time_taken)


def held_by(connection: Connection, repair_id: str) -> list[Holder]:
    """The locks that somebody holds."""
    rows = connection.execute(_HELD_BY, {"repair": repair_id})
    return [Holder(row.volume_id, row.repair_id, row.time_taken) for row in rows]


def hand_on(connection: Connection, volume_id: str, repair_id: str, heir_id: str) -> None:
    """Who holds the lock gives it to another without letting go of it."""
    mine = (_LOCK.c.volume_id == volume_id, _LOCK.c.repair_id == repair_id)
    connection.execute(update(_LOCK).where(*mine).values(repair_id=heir_id))


# -- first come, first served -----------------------------------------------------------------------------------------

PATIENCE = timedelta(minutes=10)
"""Tasks come back every 30 seconds; one that has not for so long has no reason any more, or its Nexus is dead."""
OVERTAKEN_MAX = 3
"""How often a snapshot may be taken before who waits for the volume gets it."""


@dataclass(frozen=True, slots=True)
class Waiter:
    """Who waits for the lock of a volume, since when. ``overtaken``: how often another came first."""

    volume_id: str
    repair_id: str
    time_queued: datetime
    time_asked: datetime
    overtaken: int


class FairLocks:
    """First come, first served."""

    def volume_repair_insert(self, connection: Connection, volume_id: str, repair_id: str, now: datetime) -> LockResult:
        held = holder(connection, volume_id)
        if held is not None and held.repair_id == repair_id:
            return LockResult.HAD_IT
        forget_who_does_not_come_back(connection, now, volume_id)
        first = next(iter(waiters(connection, volume_id)), None)
        if held is not None or (first is not None and first.repair_id != repair_id):
            _wait(connection, volume_id, repair_id, now)
            return LockResult.HELD_BY_ANOTHER
        return _take(connection, volume_id, repair_id, now)

    def volume_repair_overtake(
        self, connection: Connection, volume_id: str, repair_id: str, now: datetime
    ) -> LockResult:
        """As :meth:`volume_repair_insert`, for who does not come back when it is refused: it does not stand in line,
        and is let through before those who do, :data:`OVERTAKEN_MAX` times."""
        held = holder(connection, volume_id)
        if held is not None:
            return LockResult.HAD_IT if held.repair_id == repair_id else LockResult.HELD_BY_ANOTHER
        forget_who_does_not_come_back(connection, now, volume_id)
        first = next(iter(waiters(connection, volume_id)), None)
        if first is not None and first.overtaken >= OVERTAKEN_MAX:
            return LockResult.HELD_BY_ANOTHER
        connection.execute(
            update(_QUEUE).where(_QUEUE.c.volume_id == volume_id).values(overtaken=_QUEUE.c.overtaken + 1)
        )
        return _take(connection, volume_id, repair_id, now)

    def volume_repair_delete(self, connection: Connection, volume_id: str, repair_id: str) -> None:
        connection.execute(_GIVE_BACK, {"volume": volume_id, "repair": repair_id})


_WAITERS = select(_QUEUE).order_by(_QUEUE.c.volume_id, _QUEUE.c.time_queued, _QUEUE.c.repair_id)
_WAITERS_FOR = _WAITERS.where(_QUEUE.c.volume_id == bindparam("volume"))
_WAIT_NO_MORE = delete(_QUEUE).where(_QUEUE.c.repair_id == bindparam("repair"))
_NOT_FOR = delete(_QUEUE).where(_QUEUE.c.volume_id == bindparam("volume"), _QUEUE.c.repair_id == bindparam("repair"))
_FORGET = delete(_QUEUE).where(_QUEUE.c.time_asked < bindparam("since"))
_FORGET_FOR = _FORGET.where(_QUEUE.c.volume_id == bindparam("volume"))


def waiters(connection: Connection, volume_id: str | None = None) -> list[Waiter]:
    """Who waits for the lock of the volume, or of any, in the order in which they will get it."""
    found = connection.execute(_WAITERS if volume_id is None else _WAITERS_FOR, _for(volume_id))
    return [Waiter(row.volume_id, row.repair_id, row.time_queued, row.time_asked, row.overtaken) for row in found]


def wait_no_more(connection: Connection, repair_id: str) -> None:
    """Who waited has no reason any more."""
    connection.execute(_WAIT_NO_MORE, {"repair": repair_id})


def forget_who_does_not_come_back(connection: Connection, now: datetime, volume_id: str | None = None) -> None:
    """Who has not asked for the lock of the volume, or of any, for :data:`PATIENCE` waits for it no more."""
    late = {"since": now - PATIENCE, **_for(volume_id)}
    connection.execute(_FORGET if volume_id is None else _FORGET_FOR, late)


def _for(volume_id: str | None) -> dict[str, str]:
    return {} if volume_id is None else {"volume": volume_id}


def _take(connection: Connection, volume_id: str, repair_id: str, now: datetime) -> LockResult:
    connection.execute(_TAKE, {"volume_id": volume_id, "repair_id": repair_id, "time_taken": now})
    connection.execute(_NOT_FOR, {"volume": volume_id, "repair": repair_id})
    return LockResult.TAKEN


def _wait(connection: Connection, volume_id: str, repair_id: str, now: datetime) -> None:
    mine = (_QUEUE.c.volume_id == volume_id, _QUEUE.c.repair_id == repair_id)
    if connection.execute(update(_QUEUE).where(*mine).values(time_asked=now)).rowcount == 0:
        waits = {"volume_id": volume_id, "repair_id": repair_id, "time_queued": now, "time_asked": now}
        connection.execute(insert(_QUEUE).values(**waits, overtaken=0))
