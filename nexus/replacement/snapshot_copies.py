"""What there is of a snapshot: its copies, its size, its ledger, found from any one of its targets (nexus.md §3.4).

What it is for: a read-only target that is lost is known by its ids. Which snapshot it is of, and what else there is of
that, is asked here.

Why it is found after everything else of the snapshot is gone (R40, *liveness*): a region snapshot has the snapshot's id
in its key; a read-only region keeps the id of the snapshot's volume for ever, also when that volume is gone; and rows
of snapshots are never taken away (:func:`~nexus.replacement.read_only.snapshot_of_target`). Nothing here asks for the
volume.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, Row, bindparam, select

from nexus.db import NotFound, schema
from nexus.db.schema.hardware import DiskPolicy
from nexus.objects.snapshots import Ledger, Snapshot, ledger_get
from nexus.placement import Geometry
from nexus.replacement.clone_source import SnapshotCopy, choose, why_none
from nexus.replacement.notes import sources_refused
from nexus.replacement.read_only import snapshot_of_target
from nexus.verification import Copy
from nexus.volumes import Address, ReadOnlyRegion, RegionSnapshot
from nexus.volumes.freed import Dataset
from nexus.volumes.resolution import Resource, is_used

_REGION, _SNAPSHOT = schema.region, schema.region_snapshot
_DATASET, _POOL, _DISK = schema.crucible_dataset, schema.zpool, schema.physical_disk


@dataclass(frozen=True, slots=True)
class Lost:
    """A target that is to be replaced: the snapshot that it is a copy of, how big each copy is, and what that must
    hold, if it was written down."""

    resource: Resource
    snapshot: Snapshot
    geometry: Geometry
    ledger: Ledger | None


_SIZE = select(_REGION.c.block_size, _REGION.c.blocks_per_extent, _REGION.c.extent_count).where(
    _REGION.c.id == bindparam("region")
)


def lost_target(connection: Connection, resource: Resource) -> Lost:
    """What is known of a target. Raises :class:`~nexus.db.NotFound` where its region, or every trace of its snapshot,
    is gone."""
    row = connection.execute(_SIZE, {"region": resource.region_id}).one_or_none()
    if row is None:
        raise NotFound("region", resource.region_id)
    snapshot = snapshot_of_target(connection, resource)
    return Lost(resource, snapshot, Geometry(*row), ledger_get(connection, snapshot.id))


_REGION_SNAPSHOTS = (
    select(_SNAPSHOT, _DATASET.c.ip, _DATASET.c.port, _DISK.c.disk_policy)
    .join(_DATASET, _DATASET.c.id == _SNAPSHOT.c.dataset_id)
    .join(_POOL, _POOL.c.id == _DATASET.c.pool_id)
    .join(_DISK, _DISK.c.id == _POOL.c.physical_disk_id)
    .where(_SNAPSHOT.c.snapshot_id == bindparam("snapshot"), ~_SNAPSHOT.c.deleting)
)
_CLONES = (
    select(_REGION.c.id, _REGION.c.dataset_id, _REGION.c.port.label("listens_on"), _DATASET.c.ip, _DATASET.c.port)
    .add_columns(_DISK.c.disk_policy)
    .join(_DATASET, _DATASET.c.id == _REGION.c.dataset_id)
    .join(_POOL, _POOL.c.id == _DATASET.c.pool_id)
    .join(_DISK, _DISK.c.id == _POOL.c.physical_disk_id)
    .where(_REGION.c.volume_id == bindparam("volume"), _REGION.c.read_only, ~_REGION.c.deleting)
)


def copies_of(connection: Connection, snapshot: Snapshot) -> list[SnapshotCopy]:
    """Every copy of the snapshot that is not being destroyed, on whatever disk: its region snapshots, and the read-only
    regions that were cloned for its volume."""
    found = []
    for row in connection.execute(_REGION_SNAPSHOTS, {"snapshot": snapshot.id}):
        resource = RegionSnapshot(row.dataset_id, row.region_id, row.snapshot_id)
        found.append(_copy(connection, resource, row, Address.parse(row.snapshot_addr)))
    for row in connection.execute(_CLONES, {"volume": snapshot.volume_id}):
        address = None if row.listens_on is None else Address.of(row.ip, row.listens_on)
        found.append(_copy(connection, ReadOnlyRegion(row.id), row, address))
    return sorted(found, key=lambda each: each.name)


def _copy(
    connection: Connection, resource: Resource, row: Row[tuple[object, ...]], address: Address | None
) -> SnapshotCopy:
    used = is_used(connection, resource)
    dataset = Dataset(row.dataset_id, row.ip, row.port)
    return SnapshotCopy(resource, dataset, address, row.disk_policy == DiskPolicy.IN_SERVICE, used)


def nothing_to_clone(connection: Connection, request_id: str, target: Resource) -> str | None:
    """Why no copy of the target's snapshot can be cloned for the request now, in a sentence; ``None``: one can."""
    lost = lost_target(connection, target)
    copies = copies_of(connection, lost.snapshot)
    refused = {each.source for each in sources_refused(connection, request_id)}
    if choose(copies, target, refused, seed="") is not None:
        return None
    return why_none(copies, lost.snapshot.id, refused)


def as_asked(copy: SnapshotCopy) -> Copy:
    """How its agent is asked for its digest."""
    match copy.resource:
        case RegionSnapshot():
            return Copy(copy.dataset, copy.resource.region_id, copy.resource)
        case ReadOnlyRegion():
            return Copy(copy.dataset, copy.resource.region_id)
