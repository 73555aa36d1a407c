"""Everything about volumes that the database holds, read at one moment: what the invariants are checked on.

What it guarantees: a document that cannot be read is counted, and does not end the reading. No key is kept: a volume
here is its targets, not its document.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Table, select

from crucible_emu.volume.vcr import RegionRequest
from nexus.db import schema
from nexus.db.schema import (
    RegionReplacementState,
    RegionSnapshotReplacementState,
    RegionSnapshotReplacementStepState,
)
from nexus.volumes import recorded, walks
from nexus.volumes.recorded import Address, MalformedVolume
from nexus.volumes.resolution import ReadOnlyRegion, RegionSnapshot, Resource, resource_of

_HOLDERS: tuple[tuple[Table, set[Any]], ...] = (
    (schema.region_replacement, {RegionReplacementState.COMPLETE}),
    (schema.region_snapshot_replacement, {RegionSnapshotReplacementState.COMPLETE}),
    (
        schema.region_snapshot_replacement_step,
        {RegionSnapshotReplacementStepState.COMPLETE, RegionSnapshotReplacementStepState.VOLUME_DELETED},
    ),
)
"""The records that may hold a lock, and the states in which they must have given it back."""

_VOLUME, _LOCK, _USAGE = schema.volume, schema.volume_repair, schema.volume_resource_usage
_REGION, _DATASET, _SNAPSHOT = schema.region, schema.crucible_dataset, schema.region_snapshot
_DISK, _CRUCIBLE = schema.disk, schema.disk_type_crucible
_VOLUMES = select(_VOLUME.c.id, _VOLUME.c.time_deleted, _VOLUME.c.data).order_by(_VOLUME.c.id)
_USAGES = select(_USAGE).order_by(_USAGE.c.volume_id)
_LOCKS = select(_LOCK.c.volume_id, _LOCK.c.repair_id)
_STATES = tuple((select(holder.c.id, holder.c.replacement_state), ended) for holder, ended in _HOLDERS)
_DATASETS = select(_DATASET.c.id, _DATASET.c.ip, _DATASET.c.size_used).order_by(_DATASET.c.id)
_REGIONS = select(_REGION).order_by(_REGION.c.id)
_SNAPSHOTS = select(_SNAPSHOT).order_by(_SNAPSHOT.c.region_id, _SNAPSHOT.c.snapshot_id)
_DISKS = (
    select(_DISK.c.id, _CRUCIBLE.c.volume_id, _DISK.c.disk_state, _DISK.c.attach_instance_id)
    .join(_CRUCIBLE, _CRUCIBLE.c.disk_id == _DISK.c.id)
    .where(_DISK.c.time_deleted.is_(None))
    .order_by(_DISK.c.id)
)


@dataclass(frozen=True, slots=True)
class CountedVolume:
    """A row of ``volume``, as far as it says who counts on what. ``unreadable``: why it says nothing."""

    id: str
    deleted: bool
    unreadable: str | None = None
    bare_region: bool = False
    writes: tuple[Address, ...] = ()
    reads: tuple[Address, ...] = ()
    sets: tuple[tuple[Address, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class CountedRegion:
    """A row of ``region``. ``address`` is ``None`` while its port is not known, or its dataset."""

    id: str
    dataset_id: str
    volume_id: str
    read_only: bool
    deleting: bool
    requested_bytes: int
    address: Address | None


@dataclass(frozen=True, slots=True)
class CountedDisk:
    """A user's disk that is not deleted."""

    id: str
    volume_id: str
    state: str
    attached: bool


@dataclass
class Census:
    """The tables. ``usages``: how many rows there are of a volume and a resource. ``locks``: holder by volume.
    ``holders``: the records that could hold one; whether each has ended."""

    volumes: dict[str, CountedVolume] = field(default_factory=dict)
    regions: dict[str, CountedRegion] = field(default_factory=dict)
    snapshots: dict[RegionSnapshot, tuple[Address, bool]] = field(default_factory=dict)
    usages: Counter[tuple[str, Resource]] = field(default_factory=Counter)
    size_used: dict[str, int] = field(default_factory=dict)
    disks: list[CountedDisk] = field(default_factory=list)
    locks: dict[str, str] = field(default_factory=dict)
    holders: dict[str, bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._at: dict[tuple[Address, bool], list[str]] = defaultdict(list)
        self._snapshot_at: dict[Address, list[RegionSnapshot]] = defaultdict(list)

    def live(self) -> list[CountedVolume]:
        """The volumes that are not deleted."""
        return [each for each in self.volumes.values() if not each.deleted]

    def writable_at(self, address: Address) -> list[str]:
        """The read/write regions that listen there, but for those whose owner is not there or deleted: their ports may
        be another's."""
        return self._at[address, False]

    def readable_at(self, address: Address) -> list[Resource]:
        """The read-only resources that listen there and are not being deleted; running snapshots come first."""
        return [*self._snapshot_at[address], *(ReadOnlyRegion(each) for each in self._at[address, True])]

    def index(self) -> Census:
        """Make the lookups; to be called when everything is counted."""
        for region in self.regions.values():
            owner = self.volumes.get(region.volume_id)
            going = region.deleting or (not region.read_only and (owner is None or owner.deleted))
            if region.address is not None and not going:
                self._at[region.address, region.read_only].append(region.id)
        for snapshot, (address, deleting) in self.snapshots.items():
            if not deleting:
                self._snapshot_at[address].append(snapshot)
        return self


def _counted(row: Any) -> CountedVolume:
    deleted = row.time_deleted is not None
    try:
        request = recorded.parse(row.data, "its document")
        return CountedVolume(
            row.id,
            deleted,
            bare_region=isinstance(request, RegionRequest),
            writes=tuple(walks.read_write_targets(request)),
            reads=tuple(walks.read_only_targets(request)),
            sets=tuple(tuple(each) for each in walks.region_sets(request)),
        )
    except MalformedVolume as error:
        return CountedVolume(row.id, deleted, unreadable=str(error))


def take(connection: Connection) -> Census:
    """Read everything, in the order of ids."""
    census = Census()
    for row in connection.execute(_VOLUMES):
        census.volumes[row.id] = _counted(row)
    _take_regions(connection, census)
    for mapping in connection.execute(_USAGES).mappings():
        census.usages[mapping["volume_id"], resource_of(mapping)] += 1
    _take_disks(connection, census)
    for volume_id, repair_id in connection.execute(_LOCKS):
        census.locks[volume_id] = repair_id
    for states, ended in _STATES:
        for identity, state in connection.execute(states):
            census.holders[identity] = state in ended
    return census.index()


def _take_regions(connection: Connection, census: Census) -> None:
    ips: dict[str, str] = {}
    for row in connection.execute(_DATASETS):
        ips[row.id] = row.ip
        census.size_used[row.id] = row.size_used
    for row in connection.execute(_REGIONS):
        known = row.port is not None and row.dataset_id in ips
        census.regions[row.id] = CountedRegion(
            id=row.id,
            dataset_id=row.dataset_id,
            volume_id=row.volume_id,
            read_only=row.read_only,
            deleting=row.deleting,
            requested_bytes=row.block_size * row.blocks_per_extent * row.extent_count,
            address=Address.of(ips[row.dataset_id], row.port) if known else None,
        )
    for row in connection.execute(_SNAPSHOTS):
        key = RegionSnapshot(row.dataset_id, row.region_id, row.snapshot_id)
        census.snapshots[key] = (Address.parse(row.snapshot_addr), row.deleting)


def _take_disks(connection: Connection, census: Census) -> None:
    for row in connection.execute(_DISKS):
        attached = row.attach_instance_id is not None
        census.disks.append(CountedDisk(row.id, row.volume_id, str(row.disk_state), attached))
