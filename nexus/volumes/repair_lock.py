"""The lock of a volume (nexus.md §5.10): who may change which regions it is made of.

What it is for: a replacement takes it for as long as it is under way, a step for one volume, a snapshot for the moment
in which it is made. Two of them at once would each compute from a document that the other changes. It does not keep a
volume from being deleted or checked out; the replacements are made to bear that.

What it guarantees: one holder, across processes, in the caller's transaction. Taking what one holds is nothing new, so
that a node may run again. The volume's row need not be there: a request may be about a snapshot volume that is gone
(R3, R4).

:class:`RepairLocks` is what the sagas and requests know. :class:`TryLocks` is the real one's way: whoever comes while
it is held is refused, and in what order they come back is chance.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Protocol

from sqlalchemy import Connection, delete, insert, select

from nexus.db import Conflict, schema

_LOCK = schema.volume_repair

LOCK_CONFLICT = "volume repair lock"
"""The whole message of the conflict. Who makes requests takes exactly this for *not now* and not for an error."""


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

    def volume_repair_delete(self, connection: Connection, volume_id: str, repair_id: str) -> None:
        """Give the lock back; of one that is not held by ``repair_id`` it is done."""


class TryLocks:
    """Whoever comes when it is free has it; nobody waits in line."""

    def volume_repair_insert(self, connection: Connection, volume_id: str, repair_id: str, now: datetime) -> LockResult:
        held = holder(connection, volume_id)
        if held is not None:
            return LockResult.HAD_IT if held.repair_id == repair_id else LockResult.HELD_BY_ANOTHER
        connection.execute(insert(_LOCK).values(volume_id=volume_id, repair_id=repair_id, time_taken=now))
        return LockResult.TAKEN

    def volume_repair_delete(self, connection: Connection, volume_id: str, repair_id: str) -> None:
        connection.execute(delete(_LOCK).where(_LOCK.c.volume_id == volume_id, _LOCK.c.repair_id == repair_id))


def holder(connection: Connection, volume_id: str) -> Holder | None:
    """Who holds the lock of the volume."""
    row = connection.execute(select(_LOCK).where(_LOCK.c.volume_id == volume_id)).one_or_none()
    return None if row is None else Holder(row.volume_id, row.repair_id, row.time_taken)


def held_by(connection: Connection, repair_id: str) -> list[Holder]:
    """The locks that somebody holds."""
    rows = connection.execute(select(_LOCK).where(_LOCK.c.repair_id == repair_id).order_by(_LOCK.c.volume_id))
    return [Holder(row.volume_id, row.repair_id, row.time_taken) for row in rows]
