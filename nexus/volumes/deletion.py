"""The end of a volume: soft, then hard (nexus.md §5.6, §5.8, §5.9).

What it is for: *soft* deletion takes the volume's references away and learns which resources nobody counts on any more.
They are destroyed by a saga; then the row goes, *hard*.

Why a resource is destroyed once and only once (R14, *safety*): the transaction that drops the last reference sets
``deleting``, and its result is kept in the volume's row. Of two volumes deleted at one moment one sees the other's
reference, and a rerun reads what the first run was told.

Why read/write regions go another way: they have one owner and no references. A region is freed with its owner, unless a
snapshot of it exists; then it is found again, by :func:`find_deleted_volume_regions`, when its last snapshot has gone.
A read-only region is never found there, and a read/write region never by references.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, bindparam, delete, exists, select, update

from nexus.db import schema
from nexus.volumes import freed, walks
from nexus.volumes.at_rest import rest_forgotten
from nexus.volumes.freed import CrucibleResources, Dataset, FreedRegion
from nexus.volumes.recorded import Address
from nexus.volumes.refusals import BrokenInvariant
from nexus.volumes.resolution import (
    OF_SNAPSHOT,
    ReadOnlyRegion,
    RegionSnapshot,
    Resource,
    drop_usage,
    flag_deleting,
    is_used,
    key_of,
    read_only_target_to_resource,
    resources_used_by,
    target_to_region,
)
from nexus.volumes.rows import Volume, volume_get

_VOLUME = schema.volume
_REGION = schema.region
_SNAPSHOT = schema.region_snapshot
_DATASET = schema.crucible_dataset
_USAGE = schema.volume_resource_usage
_DELETED = select(_VOLUME.c.id).where(_VOLUME.c.time_deleted.is_not(None))
_HAS_SNAPSHOT = exists().where(_SNAPSHOT.c.region_id == _REGION.c.id, _SNAPSHOT.c.dataset_id == _REGION.c.dataset_id)
"""Of a row of ``region``: whether there is a snapshot of it."""


def soft_delete_volume(connection: Connection, volume_id: str, now: datetime) -> CrucibleResources:
    """Delete the volume, and say what that set free. Doing it again changes nothing and says the same; of a volume that
    is not there, nothing. Raises :class:`BrokenInvariant` where the VCR and the tables disagree."""
    # *Safety* (R11): the document is read in this transaction, for a replacement may just have changed it.
    volume = volume_get(connection, volume_id)
    if volume is None:
        return CrucibleResources()
    if volume.deleted:
        return freed.parse(volume.resources_to_clean_up)
    return soft_delete_as_read(connection, volume, now)


_SOFT_DELETE = (
    update(_VOLUME)
    .where(_VOLUME.c.id == bindparam("volume"))
    .values(time_deleted=bindparam("now"), resources_to_clean_up=bindparam("freed"))
)


def soft_delete_as_read(connection: Connection, volume: Volume, now: datetime) -> CrucibleResources:
    """What its document counts on is let go of, and the row says what that set free. For who has read the volume in
    this transaction."""
    volume_id = volume.id
    regions = [
        region_id
        for region_id in (_owned(connection, volume_id, each) for each in walks.read_write_targets(volume.request))
        if not has_snapshots(connection, region_id)
    ]
    snapshots = []
    for resource in _dropped(connection, volume_id, walks.read_only_targets(volume.request)):
        match resource:
            case ReadOnlyRegion(region_id):
                regions.append(region_id)
            case RegionSnapshot():
                snapshots.append(resource)
    resources = CrucibleResources(tuple(regions), tuple(snapshots))
    connection.execute(_SOFT_DELETE, {"volume": volume_id, "now": now, "freed": freed.write(resources)})
    return resources


def _owned(connection: Connection, volume_id: str, address: Address) -> str:
    region_id = target_to_region(connection, address, read_only=False)
    if region_id is None:
        raise BrokenInvariant(f"volume {volume_id} writes to {address}, where no read/write region is")
    return region_id


def _dropped(connection: Connection, volume_id: str, targets: Collection[Address]) -> list[Resource]:
    """The references taken away; what has none left is marked, and returned. A target that is nobody's is passed over
    if no reference remains in the end: then it went before, and so would the volume's deletion be stuck (W13)."""
    last: list[Resource] = []
    unknown: list[Address] = []
    for address in targets:
        resource = read_only_target_to_resource(connection, address)
        if resource is None:
            unknown.append(address)
        elif drop_usage(connection, volume_id, resource):
            flag_deleting(connection, resource)
            last.append(resource)
    left = resources_used_by(connection, volume_id)
    if left:
        named = f"; its VCR names {unknown[0]}, where nothing is" if unknown else ""
        raise BrokenInvariant(f"volume {volume_id} would be deleted with a reference to the {left[0]}{named}")
    return last


_HAS_SNAPSHOTS = select(exists().where(_SNAPSHOT.c.region_id == bindparam("region")))


def has_snapshots(connection: Connection, region_id: str) -> bool:
    """Whether there is any row of a snapshot of the region, also of one that is being deleted: the agent may have it
    still, and then refuses to destroy the region (R15, *safety*)."""
    return connection.execute(_HAS_SNAPSHOTS, {"region": region_id}).scalar_one()


_HARD_DELETE = delete(_VOLUME).where(_VOLUME.c.id == bindparam("volume"))


def volume_hard_delete(connection: Connection, volume_id: str) -> None:
    """Take the row away. Of one that is not there it is done. Raises :class:`BrokenInvariant` while the volume counts
    on something: it must be soft-deleted first, or its references would stay for ever (W30, *safety*)."""
    left = resources_used_by(connection, volume_id)
    if left:
        raise BrokenInvariant(f"volume {volume_id} cannot be hard-deleted: it has a reference to the {left[0]}")
    connection.execute(_HARD_DELETE, {"volume": volume_id})
    rest_forgotten(connection, volume_id)


# -- read/write regions whose last snapshot went ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FreedRegions:
    """Regions to be destroyed, and volumes to be hard-deleted after that."""

    regions: tuple[FreedRegion, ...]
    volumes: tuple[str, ...]


_UNKEPT = (
    select(_DATASET.c.id, _DATASET.c.ip, _DATASET.c.port, _REGION.c.id, _REGION.c.volume_id)
    .join(_DATASET, _DATASET.c.id == _REGION.c.dataset_id)
    .where(~_REGION.c.read_only, ~_HAS_SNAPSHOT)
)
_UNKEPT_OF_ALL = _UNKEPT.where(_REGION.c.volume_id.in_(_DELETED))
_UNKEPT_AMONG = _UNKEPT.where(
    _REGION.c.id.in_(bindparam("regions", expanding=True)),
    exists().where(_VOLUME.c.id == _REGION.c.volume_id, _VOLUME.c.time_deleted.is_not(None)),
)
_KEPT_OF = select(_REGION.c.volume_id).where(
    _REGION.c.volume_id.in_(bindparam("volumes", expanding=True)), ~_REGION.c.read_only, _HAS_SNAPSHOT
)


def find_deleted_volume_regions(connection: Connection, among: Collection[str] | None = None) -> FreedRegions:
    """The read/write regions of soft-deleted volumes that have no snapshots, of whichever volume. A volume goes with
    them if all its read/write regions do (R17, *safety*: one that stays would have no owner, and never be found).

    A region whose owner has no row is not found: it was allocated for a volume that is yet to be made (R16, *safety*).

    ``among``: only these regions are looked at (*optimisation*): volumes that were deleted and wait for their snapshots
    to go are many, and no business of whoever deletes another.
    """
    if among is not None and not among:
        return FreedRegions((), ())
    if among is None:
        found = connection.execute(_UNKEPT_OF_ALL)
    else:
        found = connection.execute(_UNKEPT_AMONG, {"regions": list(among)})
    # Put in order here: SQLite would go through all regions for the sake of an order (§13.2, W20).
    rows = sorted(found.all(), key=lambda row: row[3])
    owners = {row.volume_id for row in rows}
    volumes = owners - set(connection.execute(_KEPT_OF, {"volumes": list(owners)}).scalars()) if owners else owners
    return FreedRegions(tuple(FreedRegion(Dataset(*row[:3]), row[3]) for row in rows), tuple(sorted(volumes)))


# -- after the agents -------------------------------------------------------------------------------------------------


_REMOVE_SNAPSHOT = delete(_SNAPSHOT).where(OF_SNAPSHOT)


def region_snapshot_remove(connection: Connection, snapshot: RegionSnapshot) -> None:
    """Take the row of a destroyed region snapshot away. *Safety* (W43): only when the agent has it no more, for the row
    is what keeps the region underneath. Raises :class:`BrokenInvariant` while somebody counts on it."""
    if is_used(connection, snapshot):
        raise BrokenInvariant(f"the {snapshot} is still used")
    connection.execute(_REMOVE_SNAPSHOT, key_of(snapshot))


def volume_hard_delete_when_done(connection: Connection, volume_id: str) -> bool:
    """Take the row of a soft-deleted volume away if nothing is left to do for it; whether there is none now.

    *Safety*: it stays while it owns a region, read-only ones included, for nothing would find that later (R18, W40);
    and while something that its deletion freed has a row, for what that was is written down here alone.
    """
    volume = volume_get(connection, volume_id)
    if volume is None:
        return True
    if not volume.deleted or _owns_regions(connection, volume_id):
        return False
    if freed.left_to_destroy(connection, freed.parse(volume.resources_to_clean_up)):
        return False
    volume_hard_delete(connection, volume_id)
    return True


_OWNS_REGIONS = select(exists().where(_REGION.c.volume_id == bindparam("volume")))


def _owns_regions(connection: Connection, volume_id: str) -> bool:
    return connection.execute(_OWNS_REGIONS, {"volume": volume_id}).scalar_one()


_SOFT_DELETED = select(_VOLUME.c.id, _VOLUME.c.resources_to_clean_up).where(_VOLUME.c.time_deleted.is_not(None))
_OWNERS_OF_UNKEPT = select(_REGION.c.volume_id).where(
    _REGION.c.volume_id.in_(_DELETED), ~_REGION.c.read_only, ~_HAS_SNAPSHOT
)


def deletions_to_finish(connection: Connection) -> list[str]:
    """The soft-deleted volumes for which something can be done now, in the order of their ids: to delete such a volume
    again finishes what a dead saga left (W24). Other soft-deleted volumes wait for snapshots or clones to go."""
    owners = set(connection.execute(_OWNERS_OF_UNKEPT).scalars())
    # Put in order here: SQLite would go through all volumes for the sake of an order.
    rows = sorted(connection.execute(_SOFT_DELETED).all(), key=lambda row: row.id)
    return [
        row.id
        for row in rows
        if row.id in owners
        or not _owns_regions(connection, row.id)
        or freed.left_to_destroy(connection, freed.parse(row.resources_to_clean_up))
    ]
