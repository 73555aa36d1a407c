"""``phantom_disks``: give a disk back that was deleted by half (nexus.md §4.9).

What it finds: disks that are deleted but paid for, and whose volume is deleted or gone. No saga of today leaves such a
one; an older Nexus did, where deleting failed half-way. A user can neither see it nor be rid of what it costs.

What it does: the disk is there again, *faulted*, so that it can be deleted once more. Its name may be another's by now,
so it has a new one.

Why it is safe beside a disk that is just being deleted: that one is in its saga's hand, and passed over. So is one
whose creation is being undone, which is deleted before what it costs is given back: whatever an unfinished saga speaks
of is that saga's business, and whether there is one is asked in the transaction that would give the disk back.
"""

from __future__ import annotations

from sqlalchemy import Connection, exists, select

from nexus.db import DatabaseError, schema
from nexus.db.saga_claims import claims
from nexus.db.transitions import HOLDER
from nexus.objects.disks import Move, disk_move
from nexus.services import World
from nexus.tasks.task import Status, told

_DISK, _CRUCIBLE = schema.disk, schema.disk_type_crucible
_CHARGE, _VOLUME = schema.virtual_provisioning_resource, schema.volume


class PhantomDisks:
    """``phantom_disk_deleted_ok`` and ``phantom_disk_deleted_err`` are numbers, as in the real one."""

    name = "phantom_disks"
    description = "detects and un-deletes phantom disks"
    period_s = 30.0

    def __init__(self, world: World) -> None:
        self._world = world

    async def activate(self) -> Status:
        restored, failed = 0, 0
        errors = []
        for disk_id in await self._world.database.read(phantom_disks):
            try:
                restored += await self._restore(disk_id)
            except DatabaseError as error:
                failed += 1
                errors.append(f"disk {disk_id}: {told(error)}")
        return {"phantom_disk_deleted_ok": restored, "phantom_disk_deleted_err": failed, "errors": errors}

    async def _restore(self, disk_id: str) -> bool:
        """Whether it was one."""
        now = self._world.now()
        also = {"name": f"deleted-{disk_id}"}

        def body(connection: Connection) -> bool:
            if disk_id in claims(connection):
                return False
            disk_move(connection, disk_id, Move.DELETION_UNDONE, now, also=also)
            return True

        return await self._world.database.transact(body)


_PHANTOMS = (
    select(_DISK.c.id)
    .join(_CRUCIBLE, _CRUCIBLE.c.disk_id == _DISK.c.id)
    .join(_CHARGE, _CHARGE.c.id == _DISK.c.id)
    .where(
        _DISK.c.time_deleted.is_not(None),
        _DISK.c[HOLDER].is_(None),
        ~exists().where(_VOLUME.c.id == _CRUCIBLE.c.volume_id, _VOLUME.c.time_deleted.is_(None)),
    )
)


def phantom_disks(connection: Connection) -> list[str]:
    """Their ids, in order."""
    # Put in order here: SQLite would go through all disks for the sake of an order.
    return sorted(connection.execute(_PHANTOMS).scalars())
