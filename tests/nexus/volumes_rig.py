"""A rack in the database alone: sleds, pools and datasets, agents that give ports away and take them back, and the
operations of users in the steps that the sagas make of them. Every transaction is checked against the invariants."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy import Connection, Table, func, insert, select, update

from crucible_emu.volume.vcr import VolumeConstructionRequest
from nexus.db import Database, schema
from nexus.placement import Allocation, Geometry, regions_allocate, regions_hard_delete
from nexus.placement.allocation import AllocatedRegion
from nexus.placement.geometry import GIB_BYTES
from nexus.volumes import deletion, freed, invariants, recorded, regions, rows, walks
from nexus.volumes.checkout import CopyAndModify, ReadOnlyCopy, volume_checkout, volume_checkout_randomize_ids
from nexus.volumes.freed import CrucibleResources
from nexus.volumes.recorded import Address, RecordedOpts, RecordedRegion, RecordedVolume
from nexus.volumes.replacing import ReadOnlyTarget, VolumeRegion
from nexus.volumes.resolution import ReadOnlyRegion, RegionSnapshot

T = TypeVar("T")
KEY = "tCw7zw0hAsPuxMOTWwnPEFYjBK9qJRtYyGdEXKEnrg0="
SMALL = Geometry(512, 8, 2)
EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class Disk:
    """What a user has: the ids of a disk's volume and regions."""

    volume_id: str
    regions: list[str]
    sources: list[str] = field(default_factory=list)


@dataclass
class Snapshot:
    """The ids of a snapshot, and its running snapshots."""

    id: str
    volume_id: str
    members: list[ReadOnlyTarget]


class Rack:
    """Owns a database, in which nothing happens that breaks an invariant."""

    def __init__(self, database: Database, *, checked: bool = True) -> None:
        self.database = database
        self._numbers = count(1)
        self._ticks = count()
        self._ports: dict[str, set[int]] = defaultdict(set)
        self.handed_out = invariants.HandedOut()
        if checked:
            database.after_body = self._require

    def _require(self, connection: Connection) -> None:
        invariants.require(connection)
        findings = self.handed_out.check(connection)
        if findings:
            raise invariants.InvariantViolation(findings)

    # -- the ground ---------------------------------------------------------------------------------------------------

    def id(self) -> str:
        return str(UUID(int=next(self._numbers) << 64))

    def new_uuid(self) -> UUID:
        return UUID(self.id())

    def now(self) -> datetime:
        return EPOCH + timedelta(seconds=next(self._ticks))

    def run(self, body: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """One transaction: ``body`` of a connection and ``args``."""
        return self.database.transact_blocking(lambda connection: body(connection, *args, **kwargs))

    def findings(self, *, at_rest: bool = True) -> list[str]:
        return [str(each) for each in self.run(lambda c: invariants.check(c, at_rest=at_rest))]

    def count(self, table: Table) -> int:
        return self.run(lambda c: c.execute(select(func.count()).select_from(table)).scalar_one())

    def add(self, table: Table, **values: Any) -> str:
        """A row; ``id`` and the timestamps are filled in. Its id."""
        for column in table.columns:
            if column.name in values or column.nullable:
                continue
            if column.name == "id":
                values["id"] = self.id()
            elif column.name in ("time_created", "time_modified"):
                values[column.name] = self.now()
        self.run(lambda c: c.execute(insert(table).values(**values)) and None)
        return str(values.get("id", ""))

    def set(self, table: Table, identity: str, **values: Any) -> None:
        """Change a row by hand."""
        self.run(lambda c: c.execute(update(table).where(table.c.id == identity).values(**values)) and None)

    # -- hardware -----------------------------------------------------------------------------------------------------

    def add_sled(self, pools: int = 1, size_bytes: int = 16 * GIB_BYTES, buffer_bytes: int = 0) -> list[str]:
        """A sled with some pools, each with a dataset; the datasets' ids."""
        number = next(self._numbers)
        sled = self.add(
            schema.sled,
            rack_id=self.id(),
            serial_number=f"serial-{number}",
            part_number="part",
            revision=0,
            ip=f"fd00:{number:x}::1",
            port=12345,
            sled_policy="in_service",
            sled_state="active",
        )
        return [
            self.add_pool(sled, f"fd00:{number:x}::{pool + 2:x}", size_bytes, buffer_bytes) for pool in range(pools)
        ]

    def add_pool(self, sled: str, ip: str, size_bytes: int, buffer_bytes: int = 0) -> str:
        """A physical disk with a pool and a dataset; the dataset's id."""
        disk = self.add(
            schema.physical_disk,
            vendor="vendor",
            serial=self.id(),
            model="model",
            variant="u2",
            sled_id=sled,
            disk_policy="in_service",
            disk_state="active",
        )
        pool = self.add(schema.zpool, sled_id=sled, physical_disk_id=disk, control_plane_storage_buffer=buffer_bytes)
        if size_bytes:
            self.add(schema.inv_zpool, id=pool, time_collected=self.now(), sled_id=sled, total_size=size_bytes)
        return self.add(schema.crucible_dataset, pool_id=pool, ip=ip, port=32345, size_used=0, no_provision=False)

    # -- agents -------------------------------------------------------------------------------------------------------

    def take_port(self, ip: str) -> int:
        """The lowest that is free, as agents do: one that was given back is soon somebody else's."""
        port = next(each for each in count(19000) if each not in self._ports[ip])
        self._ports[ip].add(port)
        return port

    def give_port(self, address: Address) -> None:
        self._ports[address.ip].discard(address.port)

    def address_of(self, region_id: str) -> Address:
        region, dataset = schema.region, schema.crucible_dataset
        query = (
            select(dataset.c.ip, region.c.port)
            .join(dataset, dataset.c.id == region.c.dataset_id)
            .where(region.c.id == region_id)
        )
        return Address.of(*self.run(lambda c: c.execute(query).one()))

    def address_of_snapshot(self, snapshot: RegionSnapshot) -> Address:
        table = schema.region_snapshot
        query = select(table.c.snapshot_addr).where(
            table.c.region_id == snapshot.region_id, table.c.snapshot_id == snapshot.snapshot_id
        )
        return Address.parse(self.run(lambda c: c.execute(query).scalar_one()))

    def snapshots_of(self, region_id: str) -> int:
        table = schema.region_snapshot
        query = select(func.count()).select_from(table).where(table.c.region_id == region_id)
        return self.run(lambda c: c.execute(query).scalar_one())

    def allocate(
        self, volume_id: str, number: int = 3, *, snapshot_id: str | None = None, geometry: Geometry = SMALL, **how: Any
    ) -> list[AllocatedRegion]:
        """New regions of a volume, listening; only those."""
        ids = tuple(self.id() for _ in range(number))
        wanted = Allocation(volume_id, ids, geometry, seed=volume_id, snapshot_id=snapshot_id, **how)
        made = self.run(regions_allocate, wanted, self.now())
        for each in made:
            if each.region_id in ids:
                self.run(regions.region_record_port, each.region_id, self.take_port(each.ip), self.now())
        return [each for each in made if each.region_id in ids]

    # -- users --------------------------------------------------------------------------------------------------------

    def region_set(self, addresses: list[Address], *, read_only: bool = False, gen: int = 1) -> RecordedRegion:
        opts = RecordedOpts(id=self.new_uuid(), target=tuple(map(str, addresses)), read_only=read_only, key=KEY)
        return RecordedRegion(type="region", block_size=512, blocks_per_extent=8, extent_count=2, gen=gen, opts=opts)

    def user_disk(self, volume_id: str, **values: Any) -> str:
        """The rows of a disk; its id."""
        disk_id = self.add(
            schema.disk,
            project_id=self.id(),
            name="disk",
            description="",
            rcgen=1,
            state_generation=1,
            time_state_updated=self.now(),
            size_bytes=512,
            block_size=512,
            disk_type="crucible",
            **{"disk_state": "detached", **values},
        )
        self.add(schema.disk_type_crucible, disk_id=disk_id, volume_id=volume_id, read_only=False)
        return disk_id

    def volume(
        self, *parts: VolumeConstructionRequest, parent: VolumeConstructionRequest | None = None
    ) -> RecordedVolume:
        return RecordedVolume(
            type="volume", id=self.new_uuid(), block_size=512, sub_volumes=parts, read_only_parent=parent
        )

    def create(self, request: VolumeConstructionRequest, volume_id: str | None = None) -> str:
        volume_id = volume_id or self.id()
        self.run(rows.volume_create, volume_id, request, self.now())
        return volume_id

    def disk(self, source: str | None = None) -> Disk:
        """A blank disk, or one over a copy of the volume ``source``."""
        volume_id = self.id()
        regions = [each.region_id for each in self.allocate(volume_id)]
        parent = None
        if source is not None:
            found = self.run(volume_checkout, source, ReadOnlyCopy(), self.now())
            parent = walks.randomized_ids(found.request, self.new_uuid)
        self.create(self.volume(self.region_set([self.address_of(each) for each in regions]), parent=parent), volume_id)
        return Disk(volume_id, regions)

    def run_snapshot(self, region_id: str, snapshot_id: str) -> ReadOnlyTarget:
        """What an agent and START_RUNNING_SNAPSHOT do about one region."""
        region = schema.region
        dataset_id = self.run(
            lambda c: c.execute(select(region.c.dataset_id).where(region.c.id == region_id)).scalar_one()
        )
        ip = self.address_of(region_id).ip
        address = Address(ip, self.take_port(ip))
        found = RegionSnapshot(dataset_id, region_id, snapshot_id)
        for _ in range(2):
            self.run(regions.region_snapshot_create, found, address)
        return ReadOnlyTarget(address, found)

    def snapshot(self, disk: Disk) -> Snapshot:
        """A snapshot of a disk's own regions, over the disk's parent."""
        snapshot_id, volume_id = self.id(), self.id()
        members = [self.run_snapshot(each, snapshot_id) for each in disk.regions]
        mapped = {self.address_of(each): member.address for each, member in zip(disk.regions, members, strict=True)}
        found = self.run(volume_checkout, disk.volume_id, CopyAndModify(), self.now())
        self.create(walks.snapshot_of_disk(found.request, mapped, self.new_uuid), volume_id)
        return Snapshot(snapshot_id, volume_id, members)

    def image(self, snapshot: Snapshot) -> str:
        """A copy under new ids; its volume."""
        dest = self.id()
        self.run(volume_checkout_randomize_ids, snapshot.volume_id, dest, ReadOnlyCopy(), self.now(), self.new_uuid)
        return dest

    def read_only_region(self, volume_id: str, snapshot_id: str) -> ReadOnlyTarget:
        """A clone, made for the snapshot volume."""
        (region,) = self.allocate(volume_id, 1, snapshot_id=snapshot_id)
        return ReadOnlyTarget(self.address_of(region.region_id), ReadOnlyRegion(region.region_id))

    def region(self, volume_id: str, region_id: str) -> VolumeRegion:
        return VolumeRegion(volume_id, region_id, self.address_of(region_id))

    # -- the end ------------------------------------------------------------------------------------------------------

    def delete(self, volume_id: str) -> CrucibleResources:
        """A volume-delete saga, node by node."""
        return self.finish_delete(volume_id, self.run(deletion.soft_delete_volume, volume_id, self.now()))

    def finish_delete(self, volume_id: str, resources: CrucibleResources) -> CrucibleResources:
        """All nodes behind DECREASE_COUNT."""
        owners = self._destroy(self.run(freed.regions_to_delete, resources))
        for snapshot in self.run(freed.snapshots_to_delete, resources):
            self.give_port(self.address_of_snapshot(snapshot.snapshot))
            self.run(deletion.region_snapshot_remove, snapshot.snapshot)
        found = self.run(deletion.find_deleted_volume_regions)
        self._destroy(found.regions)
        for each in (*found.volumes, volume_id, *owners):
            self.run(deletion.volume_hard_delete_when_done, each)
        return resources

    def _destroy(self, regions: Any) -> list[str]:
        """Agents and rows; the volumes that owned them."""
        ids = [each.region_id for each in regions]
        for each in ids:
            # An agent refuses to destroy a region that has snapshots (R15).
            assert not self.snapshots_of(each), f"region {each} has snapshots"
            self.give_port(self.address_of(each))
        table = schema.region
        owners = self.run(
            lambda c: c.execute(select(table.c.volume_id).where(table.c.id.in_(ids)).distinct()).scalars().all()
        )
        self.run(regions_hard_delete, ids, self.now())
        return list(owners)

    def assert_nothing_left(self) -> None:
        assert self.findings() == []
        for table in (schema.volume, schema.region, schema.region_snapshot, schema.volume_resource_usage):
            assert self.count(table) == 0, table.name
        assert not any(self._ports.values()), "every port was given back"

    # -- looking ------------------------------------------------------------------------------------------------------

    def request(self, volume_id: str) -> VolumeConstructionRequest:
        found = self.run(rows.volume_get, volume_id)
        assert found is not None
        return found.request

    def exists(self, volume_id: str) -> rows.Deletion:
        return self.run(rows.volume_state, volume_id)


def targets(request: VolumeConstructionRequest) -> Iterator[Address]:
    for each in walks.region_sets(request):
        yield from each


def stash(rack: Rack) -> str:
    """A blank stash volume F."""
    volume_id = rack.id()
    rack.run(rows.volume_create, volume_id, recorded.snapshot_stash(UUID(volume_id)), rack.now())
    return volume_id
