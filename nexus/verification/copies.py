"""Who holds the bytes of a volume: its region sets, and the region or running snapshot behind each target.

A read-only set that was made for a snapshot is told by what is behind its targets: the snapshots of the disk's regions,
or read-only regions that were cloned from them for the snapshot's volume. Either names the snapshot, and so its ledger;
that holds in every volume that shares the set, an image or a disk's parent.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, bindparam, select

from crucible_emu.volume.vcr import VolumeConstructionRequest
from nexus.db import schema
from nexus.objects.snapshots import Ledger, ledger_get, snapshot_of_volume
from nexus.volumes import Address, ReadOnlyRegion, RegionSnapshot, freed, read_only_target_to_resource, walks
from nexus.volumes.freed import Dataset
from nexus.volumes.resolution import target_to_region

_REGION = schema.region


@dataclass(frozen=True, slots=True)
class Copy:
    """One copy of a region set: a region, or the snapshot ``snapshot`` of one."""

    dataset: Dataset
    region_id: str
    snapshot: RegionSnapshot | None = None

    @property
    def name(self) -> str:
        if self.snapshot is None:
            return f"region {self.region_id}"
        return f"snapshot {self.snapshot.snapshot_id} of region {self.region_id}"


@dataclass(frozen=True, slots=True)
class RegionSet:
    """A region set of a volume. ``copies`` are those that are known; ``unknown`` the targets behind which nothing is.
    ``snapshot_id`` and ``ledger``: of the snapshot that the set holds, if it holds one."""

    read_only: bool
    copies: tuple[Copy, ...]
    unknown: tuple[Address, ...]
    snapshot_id: str | None
    ledger: Ledger | None


def region_sets_of(connection: Connection, request: VolumeConstructionRequest) -> list[RegionSet]:
    """Every region set of a volume, of its sub-volumes and of its parents."""
    writable = set(walks.read_write_targets(request))
    return [_region_set(connection, targets, writable) for targets in walks.region_sets(request)]


def _region_set(connection: Connection, targets: list[Address], writable: set[Address]) -> RegionSet:
    copies, unknown, snapshots = [], [], []
    for address in targets:
        found = _copy(connection, address, address in writable)
        if found is None:
            unknown.append(address)
        else:
            copies.append(found)
            snapshots.append(_snapshot_of(connection, found))
    known = {each for each in snapshots if each is not None}
    # Copies of two snapshots in one set: damage, and nothing that a ledger could decide.
    snapshot_id = known.pop() if len(known) == 1 else None
    ledger = None if snapshot_id is None else ledger_get(connection, snapshot_id)
    read_only = not any(address in writable for address in targets)
    return RegionSet(read_only, tuple(copies), tuple(unknown), snapshot_id, ledger)


def _copy(connection: Connection, address: Address, writable: bool) -> Copy | None:
    if writable:
        region_id = target_to_region(connection, address, read_only=False)
        return None if region_id is None else _of_region(connection, region_id)
    match read_only_target_to_resource(connection, address):
        case RegionSnapshot() as snapshot:
            dataset = freed.dataset_get(connection, snapshot.dataset_id)
            return None if dataset is None else Copy(dataset, snapshot.region_id, snapshot)
        case ReadOnlyRegion(region_id):
            return _of_region(connection, region_id)
    return None


_DATASET_OF = select(_REGION.c.dataset_id).where(_REGION.c.id == bindparam("region"))
_VOLUME_OF = select(_REGION.c.volume_id).where(_REGION.c.id == bindparam("region"), _REGION.c.read_only)


def _of_region(connection: Connection, region_id: str) -> Copy | None:
    dataset_id = connection.execute(_DATASET_OF, {"region": region_id}).scalar_one()
    dataset = freed.dataset_get(connection, dataset_id)
    return None if dataset is None else Copy(dataset, region_id)


def _snapshot_of(connection: Connection, copy: Copy) -> str | None:
    if copy.snapshot is not None:
        return copy.snapshot.snapshot_id
    volume_id = connection.execute(_VOLUME_OF, {"region": copy.region_id}).scalar_one_or_none()
    found = None if volume_id is None else snapshot_of_volume(connection, volume_id)
    return None if found is None else found.id
