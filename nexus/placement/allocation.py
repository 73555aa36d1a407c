"""Giving regions to a volume, in one transaction that may run again (nexus.md §7.3).

What it is for: a saga says *which* regions it wants by their ids, which it drew in a node of its own and recorded. This
finds a place for those that do not exist yet, writes their rows and charges their datasets.

Why the ids are the caller's (W35, *safety*): where "one more than there are now" is asked for, a rerun after somebody
freed another region allocates a second one, and an undo that compares before with after takes the wrong one or none.
Here a rerun finds its ids, an undo deletes its ids, and two that allocate for one volume at once do not meet (R3).

Why what is charged is right: charge and row are one transaction, and a region's row is never changed in size (I10).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, bindparam, insert, select, update

from nexus.db import Conflict, schema
from nexus.db.schema import DiskPolicy, PhysicalDiskState, SledPolicy, SledState
from nexus.placement.choice import Candidate, Occupied, choose
from nexus.placement.geometry import RESERVATION_PERCENT, Geometry

_REGION = schema.region
_SNAPSHOT = schema.region_snapshot
_DATASET = schema.crucible_dataset
_POOL = schema.zpool
_SLED = schema.sled
_PHYSICAL_DISK = schema.physical_disk
_INVENTORY = schema.inv_zpool


@dataclass(frozen=True, slots=True)
class Allocation:
    """What is wanted. ``region_ids``: of the regions to be made, any number. ``snapshot_id``: they are read-only, and
    keep clear of the pools that hold this snapshot. ``seed``: draws among what is equally good; the same one for every
    run of one saga's node."""

    volume_id: str
    region_ids: tuple[str, ...]
    geometry: Geometry
    seed: str
    snapshot_id: str | None = None
    distinct_sleds: bool = True


@dataclass(frozen=True, slots=True)
class AllocatedRegion:
    """A region of the volume, and where it is. ``ip`` and ``agent_port`` are the agent's; the Downstairs shares the
    ``ip``, and listens on ``port`` as soon as that is known."""

    region_id: str
    dataset_id: str
    pool_id: str
    sled_id: str
    ip: str
    agent_port: int
    port: int | None
    read_only: bool


_REGIONS_OF = (
    select(
        _REGION.c.id,
        _REGION.c.dataset_id,
        _DATASET.c.pool_id,
        _POOL.c.sled_id,
        _DATASET.c.ip,
        _DATASET.c.port,
        _REGION.c.port,
        _REGION.c.read_only,
    )
    .join(_DATASET, _DATASET.c.id == _REGION.c.dataset_id)
    .join(_POOL, _POOL.c.id == _DATASET.c.pool_id)
    .where(_REGION.c.volume_id == bindparam("volume"))
    .order_by(_REGION.c.id)
)


def regions_of(connection: Connection, volume_id: str) -> list[AllocatedRegion]:
    """The regions that the volume owns (read-only ones: that were made for it), in the order of their ids."""
    return [AllocatedRegion(*row) for row in connection.execute(_REGIONS_OF, {"volume": volume_id})]


def regions_allocate(connection: Connection, wanted: Allocation, now: datetime) -> list[AllocatedRegion]:
    """Make those of the wanted regions that are not there yet, and return all regions of the volume. Raises
    :class:`~nexus.placement.choice.InsufficientCapacity`, and :class:`~nexus.db.Conflict` where one of the ids is
    somebody else's region."""
    old = regions_of(connection, wanted.volume_id)
    missing = _missing(connection, wanted, {each.region_id for each in old})
    if not missing:
        return old
    chosen = choose(
        candidates(connection),
        _occupied(connection, wanted, old),
        [each.pool_id for each in old],
        new=len(missing),
        reserved_bytes=wanted.geometry.reserved_bytes,
        distinct_sleds=wanted.distinct_sleds,
        seed=wanted.seed,
    )
    for region_id, place in zip(missing, chosen, strict=True):
        _make(connection, wanted, region_id, place.dataset_id, now)
    return regions_of(connection, wanted.volume_id)


def _missing(connection: Connection, wanted: Allocation, own: set[str]) -> list[str]:
    missing = [each for each in wanted.region_ids if each not in own]
    taken = connection.execute(select(_REGION.c.id).where(_REGION.c.id.in_(missing))).scalars().first()
    if taken is not None:
        raise Conflict(f"region {taken} does not belong to volume {wanted.volume_id}")
    return missing


def _occupied(connection: Connection, wanted: Allocation, old: list[AllocatedRegion]) -> Occupied:
    """Where copies are: the volume's own and, for a copy of a snapshot, the running snapshots themselves. A sled whose
    copy was on a disk that is lost has none (R38): another disk of it is the best place there is."""
    query = select(_POOL.c.id, _POOL.c.sled_id, _PHYSICAL_DISK.c.disk_policy).join(
        _PHYSICAL_DISK, _PHYSICAL_DISK.c.id == _POOL.c.physical_disk_id
    )
    rows = list(connection.execute(query.where(_POOL.c.id.in_({each.pool_id for each in old}))))
    if wanted.snapshot_id is not None:
        frozen = query.join(_DATASET, _DATASET.c.pool_id == _POOL.c.id).join(
            _SNAPSHOT, _SNAPSHOT.c.dataset_id == _DATASET.c.id
        )
        rows += connection.execute(frozen.where(_SNAPSHOT.c.snapshot_id == wanted.snapshot_id))
    sleds = {row.sled_id for row in rows if row.disk_policy == DiskPolicy.IN_SERVICE}
    return Occupied(frozenset(row.id for row in rows), frozenset(sleds))


_INSERT = insert(_REGION)
_CHARGE = (
    update(_DATASET)
    .where(_DATASET.c.id == bindparam("dataset"))
    .values(size_used=_DATASET.c.size_used + bindparam("reserved_bytes"), time_modified=bindparam("now"))
)


def _make(connection: Connection, wanted: Allocation, region_id: str, dataset_id: str, now: datetime) -> None:
    geometry = wanted.geometry
    row = {
        "id": region_id,
        "dataset_id": dataset_id,
        "volume_id": wanted.volume_id,
        "block_size": geometry.block_size,
        "blocks_per_extent": geometry.blocks_per_extent,
        "extent_count": geometry.extent_count,
        "read_only": wanted.snapshot_id is not None,
        "deleting": False,
        "reservation_percent": str(RESERVATION_PERCENT),
        "time_created": now,
        "time_modified": now,
    }
    connection.execute(_INSERT, row)
    charged = {"dataset": dataset_id, "reserved_bytes": geometry.reserved_bytes, "now": now}
    connection.execute(_CHARGE, charged)


# One look at an index per pool: inventories pile up, and a join with all of them would not stay as fast.
_NEWEST_SIZE = (
    select(_INVENTORY.c.total_size)
    .where(_INVENTORY.c.id == _DATASET.c.pool_id)
    .order_by(_INVENTORY.c.time_collected.desc())
    .limit(1)
    .correlate(_DATASET)
    .scalar_subquery()
    .label("total_size")
)
_CANDIDATES = (
    select(
        _DATASET.c.id,
        _DATASET.c.pool_id,
        _DATASET.c.size_used,
        _DATASET.c.no_provision,
        _POOL.c.control_plane_storage_buffer,
        _POOL.c.sled_id,
        _NEWEST_SIZE,
        _SLED.c.sled_policy,
        _SLED.c.sled_state,
        _PHYSICAL_DISK.c.disk_policy,
        _PHYSICAL_DISK.c.disk_state,
    )
    .join(_POOL, (_POOL.c.id == _DATASET.c.pool_id) & _POOL.c.time_deleted.is_(None))
    .join(_SLED, (_SLED.c.id == _POOL.c.sled_id) & _SLED.c.time_deleted.is_(None))
    .join(
        _PHYSICAL_DISK,
        (_PHYSICAL_DISK.c.id == _POOL.c.physical_disk_id) & _PHYSICAL_DISK.c.time_deleted.is_(None),
    )
    .where(_DATASET.c.time_deleted.is_(None))
)


def candidates(connection: Connection) -> list[Candidate]:
    """Every dataset that is not forgotten, with what placement asks about it. The size of a pool is what the newest
    inventory that saw it says; one that no inventory saw has no room."""
    rows = connection.execute(_CANDIDATES).all()
    used: dict[str, int] = {}
    for row in rows:
        used[row.pool_id] = used.get(row.pool_id, 0) + row.size_used
    return [
        Candidate(
            dataset_id=row.id,
            pool_id=row.pool_id,
            sled_id=row.sled_id,
            free_bytes=(
                None
                if row.total_size is None
                else row.total_size - row.control_plane_storage_buffer - used[row.pool_id]
            ),
            used_bytes=used[row.pool_id],
            sled_in_service=(row.sled_policy, row.sled_state) == (SledPolicy.IN_SERVICE, SledState.ACTIVE),
            disk_in_service=(row.disk_policy, row.disk_state) == (DiskPolicy.IN_SERVICE, PhysicalDiskState.ACTIVE),
            no_provision=row.no_provision,
        )
        for row in rows
    ]
