"""``decommissioned_disk_cleaner``: forget physical disks that are gone for good (nexus.md §4.10).

What it finds: disks that a person expunged. First it says of those on which nothing is left that they are
*decommissioned*: nothing refers to them any more, and never will. Then it forgets the pools and datasets of
decommissioned disks. (In the real one another part of Nexus decommissions; here it is nobody else's work.)

Why it is safe (*safety*): a pool is forgotten only while no row of a region or region snapshot is on its datasets,
looked at in the same transaction; and nothing new is ever placed on a disk that is not in service. So replacements are
over, their rows included, before the records go that say where a lost region was.
"""

from __future__ import annotations

from datetime import datetime
from functools import partial

from sqlalchemy import ColumnElement, Connection, exists, or_, select, update

from nexus.db import DatabaseError, schema
from nexus.db.schema.hardware import DiskPolicy, PhysicalDiskState
from nexus.services import World
from nexus.tasks.task import Status, told

_DISK, _POOL, _DATASET = schema.physical_disk, schema.zpool, schema.crucible_dataset
_REGION, _SNAPSHOT = schema.region, schema.region_snapshot


class DecommissionedDiskCleaner:
    """``found`` are the pools of decommissioned disks."""

    name = "decommissioned_disk_cleaner"
    description = "deletes the records of storage on physical disks that are decommissioned"
    period_s = 60.0

    def __init__(self, world: World) -> None:
        self._world = world

    async def activate(self) -> Status:
        database, now = self._world.database, self._world.now()
        decommissioned = await database.transact(lambda c: decommission_empty_disks(c, now))
        found = await database.read(pools_of_decommissioned_disks)
        not_ready, deleted = 0, 0
        errors = []
        for pool_id in found:
            try:
                if await database.transact(partial(forget_pool, pool_id=pool_id, now=now)):
                    deleted += 1
                else:
                    not_ready += 1
            except DatabaseError as error:
                errors.append(f"pool {pool_id}: {told(error)}")
        return {
            "decommissioned": decommissioned,
            "found": len(found),
            "not_ready_to_be_deleted": not_ready,
            "deleted": deleted,
            "error_count": len(errors),
            "error": "; ".join(errors) or None,
        }


def decommission_empty_disks(connection: Connection, now: datetime) -> list[str]:
    """The expunged disks on which nothing is left, which are decommissioned now."""
    on_it = exists().where(_POOL.c.physical_disk_id == _DISK.c.id, _occupied())
    empty = (
        update(_DISK)
        .where(
            _DISK.c.time_deleted.is_(None),
            _DISK.c.disk_policy == DiskPolicy.EXPUNGED,
            _DISK.c.disk_state == PhysicalDiskState.ACTIVE,
            ~on_it,
        )
        .values(disk_state=PhysicalDiskState.DECOMMISSIONED, time_modified=now)
        .returning(_DISK.c.id)
    )
    return sorted(connection.execute(empty).scalars())


_POOLS_OF_DECOMMISSIONED = (
    select(_POOL.c.id)
    .join(_DISK, _DISK.c.id == _POOL.c.physical_disk_id)
    .where(_POOL.c.time_deleted.is_(None), _DISK.c.disk_state == PhysicalDiskState.DECOMMISSIONED)
    .order_by(_POOL.c.id)
)


def pools_of_decommissioned_disks(connection: Connection) -> list[str]:
    """Those that are not forgotten, by id."""
    return list(connection.execute(_POOLS_OF_DECOMMISSIONED).scalars())


def forget_pool(connection: Connection, pool_id: str, now: datetime) -> bool:
    """Forget the pool and its datasets, if nothing is on them; whether that was so."""
    if connection.execute(select(_POOL.c.id).where(_POOL.c.id == pool_id, _occupied())).first() is not None:
        return False
    gone = {"time_deleted": now, "time_modified": now}
    connection.execute(
        update(_DATASET).where(_DATASET.c.pool_id == pool_id, _DATASET.c.time_deleted.is_(None)).values(**gone)
    )
    connection.execute(update(_POOL).where(_POOL.c.id == pool_id, _POOL.c.time_deleted.is_(None)).values(**gone))
    return True


def _occupied() -> ColumnElement[bool]:
    """Whether a row of a region or region snapshot is on any dataset of the pool, forgotten or not."""
    on_dataset = or_(
        exists().where(_REGION.c.dataset_id == _DATASET.c.id), exists().where(_SNAPSHOT.c.dataset_id == _DATASET.c.id)
    )
    return exists().where(_DATASET.c.pool_id == _POOL.c.id, on_dataset)
