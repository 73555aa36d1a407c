"""A database of Nexus with a crowd in it: disks and snapshots as they would be after months, without any bytes.

What it is for: to see what an operation of the control plane costs when there is much that it does not concern.
The rows are those that the sagas leave, written in bulk: a disk has its volume and three regions on three datasets, a
snapshot its read-only volume, a blank destination volume with three regions, three region snapshots and the rows that
count their users. The invariants of Nexus hold for it; a test checks them.

Two things may be asked for beside: a *family*, one snapshot and the disks that were made of it, of which a physical
disk of its own has one copy; and disks that were deleted while snapshots of them live, whose volumes stay for those.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from random import Random
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Table, delete, func, insert, select, update

from nexus.db import Database, schema
from nexus.objects.provisioning import FLEET_ID
from nexus.volumes import CrucibleResources, freed

EXTENT_BYTES = 64 << 20
DISK_BYTES = 1 << 30
BLOCK_SIZE = 4096
EXTENTS = DISK_BYTES // EXTENT_BYTES
POOL_BYTES = 1 << 50
DATASETS = 32
DATASETS_PER_SLED = 2
ROWS_AT_ONCE = 500
LOW_PORT = 1000
ORIGIN = 999_999
"""The number of the disk, and of the snapshot, that a family comes from."""
EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
KEY = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
SILO, PROJECT = str(UUID(int=1)), str(UUID(int=2))
TIMES = {"time_created": EPOCH, "time_modified": EPOCH}


Regions = list[tuple[str, int, str]]
"""Ids of regions or copies, their datasets (by number) and addresses."""


@dataclass(frozen=True, slots=True)
class Family:
    """``physical_disk_id``: where one copy of the snapshot is, and nothing else but the region under it. ``volume_ids``
    are those of the disks that were made of the snapshot."""

    physical_disk_id: str
    snapshot_volume_id: str
    volume_ids: tuple[str, ...]


class Crowd:
    """Makes rows. Ids are drawn, the same ones each time; addresses are counted up. ``datasets`` are the ids, in the
    order of their IPs."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._random = Random(1)
        self._ports = [count(LOW_PORT) for _ in range(DATASETS + 1)]
        self._rows: dict[Table, list[dict[str, Any]]] = {}
        self._turn = count()
        self.datasets = [self._id() for _ in range(DATASETS)]
        self.snapshot_ids: list[str] = []

    def _id(self) -> str:
        return str(UUID(bytes=self._random.randbytes(16), version=4))

    def _add(self, table: Table, **values: Any) -> str:
        self._rows.setdefault(table, []).append(values)
        return str(values.get("id", ""))

    def _write(self) -> None:
        rows, self._rows = self._rows, {}

        def body(connection: Connection) -> None:
            for table, found in rows.items():
                for start in range(0, len(found), ROWS_AT_ONCE):
                    connection.execute(insert(table), found[start : start + ROWS_AT_ONCE])

        self._database.transact_blocking(body)

    def build(self, *, disks: int, snapshots: int, deleted: int = 0, dependents: int = 0) -> Family | None:
        """Hardware, one project, ``disks`` disks, ``snapshots`` snapshots of them, in turn, and if it is to have
        ``dependents`` a family. The first ``deleted`` disks are deleted; there have to be snapshots of them."""
        assert deleted <= min(disks, snapshots)
        self._ground()
        made = []
        for number in range(disks):
            made.append(self._disk(number))
            if number % 1000 == 999:
                self._write()
        for number in range(snapshots):
            self._snapshot(number, *made[number % len(made)])
            if number % 1000 == 999:
                self._write()
        family = self._family(dependents) if dependents else None
        ours = 0 if family is None else 2 + dependents
        self._charge((disks - deleted + snapshots + ours) * DISK_BYTES)
        self._write()
        self._database.transact_blocking(lambda c: _delete(c, [disk_id for disk_id, _ in made[:deleted]]))
        self._database.transact_blocking(_reserve)
        return family

    def _ground(self) -> None:
        self._add(schema.silo, id=SILO, name="silo", description="", **TIMES)
        self._add(schema.project, id=PROJECT, silo_id=SILO, name="project", description="", **TIMES)
        for number in range(DATASETS):
            if number % DATASETS_PER_SLED == 0:
                sled = self._sled(number)
            self._physical_disk(number, sled)

    def _physical_disk(self, number: int, sled: str) -> str:
        """With its pool and dataset."""
        hardware = {"vendor": "emulated", "serial": f"disk{number}", "model": "file", "variant": "u2"}
        policy = {"disk_policy": "in_service", "disk_state": "active"}
        disk = self._add(schema.physical_disk, id=self._id(), sled_id=sled, **hardware, **policy, **TIMES)
        pool = {"id": self._id(), "sled_id": sled}
        self._add(schema.zpool, physical_disk_id=disk, control_plane_storage_buffer=0, **pool, **TIMES)
        self._add(schema.inv_zpool, time_collected=EPOCH, total_size=POOL_BYTES, **pool)
        where = {"ip": _ip(number), "port": 17000}
        dataset = self.datasets[number]
        self._add(schema.crucible_dataset, id=dataset, pool_id=pool["id"], size_used=0, **where, **TIMES)
        return disk

    def _sled(self, number: int) -> str:
        hardware = {"serial_number": f"sled{number}", "part_number": "emulated", "revision": 1}
        state = {"sled_policy": "in_service", "sled_state": "active"}
        where = {"rack_id": SILO, "ip": _ip(number), "port": 12400}
        return self._add(schema.sled, id=self._id(), **hardware, **state, **where, **TIMES)

    def _turns(self) -> list[int]:
        """Three datasets on three sleds, by number."""
        first = next(self._turn)
        return [(first + step * DATASETS_PER_SLED) % DATASETS for step in range(3)]

    def _regions(self, volume_id: str, places: list[int] | None = None) -> Regions:
        """Three regions of the volume."""
        found = []
        for number in places or self._turns():
            region, port = self._id(), next(self._ports[number])
            geometry = {"block_size": BLOCK_SIZE, "blocks_per_extent": EXTENT_BYTES // BLOCK_SIZE}
            state: dict[str, Any] = {"extent_count": EXTENTS, "port": port, "read_only": False, "deleting": False}
            state["reservation_percent"] = "25"
            place = {"id": region, "dataset_id": self.datasets[number], "volume_id": volume_id}
            self._add(schema.region, **place, **geometry, **state, **TIMES)
            found.append((region, number, f"[{_ip(number)}]:{port}"))
        return found

    def _volume(self, volume_id: str, targets: list[str], parent: dict[str, Any] | None, *, read_only: bool) -> None:
        request = _request(volume_id, targets, read_only=read_only)
        data = json.dumps(request if parent is None else request | {"read_only_parent": parent})
        self._add(schema.volume, id=volume_id, data=data, **TIMES)

    def _disk(self, number: int, places: list[int] | None = None) -> tuple[str, Regions]:
        volume_id = self._id()
        regions = self._regions(volume_id, places)
        return self._disk_over(f"disk-{number:06}", volume_id, regions, None), regions

    def _disk_over(self, name: str, volume_id: str, regions: Regions, parent: dict[str, Any] | None) -> str:
        disk_id = self._id()
        self._volume(volume_id, [address for _, _, address in regions], parent, read_only=False)
        named = {"project_id": PROJECT, "name": name, "description": "", "size_bytes": DISK_BYTES}
        state = {"disk_state": "detached", "time_state_updated": EPOCH, "disk_type": "crucible"}
        self._add(schema.disk, id=disk_id, block_size=BLOCK_SIZE, **named, **state, **TIMES)
        self._add(schema.disk_type_crucible, disk_id=disk_id, volume_id=volume_id, read_only=False)
        self._charged(disk_id, "disk")
        return disk_id

    def _family(self, dependents: int) -> Family:
        """The lost copy is the first of its set."""
        self.datasets.append(self._id())
        lost = self._physical_disk(DATASETS, self._sled(DATASETS))
        origin_id, regions = self._disk(ORIGIN, [DATASETS, *self._turns()[1:]])
        volume_id, copies = self._snapshot(ORIGIN, origin_id, regions)
        made = [self._id() for _ in range(dependents)]
        for number, each in enumerate(made):
            parent = _request(self._id(), [address for _, _, address in copies], read_only=True)
            self._disk_over(f"made-{number:06}", each, self._regions(each), parent)
            self._count_on(each, self.snapshot_ids[-1], copies)
        return Family(lost, volume_id, tuple(made))

    def _count_on(self, volume_id: str, snapshot_id: str, copies: Regions) -> None:
        """The volume's references to copies of the snapshot."""
        for region_id, place, _ in copies:
            named = {"dataset_id": self.datasets[place], "region_id": region_id, "snapshot_id": snapshot_id}
            self._add(
                schema.volume_resource_usage,
                usage_id=self._id(),
                volume_id=volume_id,
                usage_type="region_snapshot",
                **{f"region_snapshot_{name}": value for name, value in named.items()},
            )

    def _snapshot(self, number: int, disk_id: str, regions: Regions) -> tuple[str, Regions]:
        """Its volume, and its copies by the region under each."""
        snapshot_id, volume_id, destination_id = self._id(), self._id(), self._id()
        self.snapshot_ids.append(snapshot_id)
        copies = [(region_id, place, f"[{_ip(place)}]:{next(self._ports[place])}") for region_id, place, _ in regions]
        for region_id, place, address in copies:
            named = {"dataset_id": self.datasets[place], "region_id": region_id, "snapshot_id": snapshot_id}
            self._add(schema.region_snapshot, snapshot_addr=address, volume_references=0, deleting=False, **named)
        self._count_on(volume_id, snapshot_id, copies)
        self._volume(volume_id, [address for _, _, address in copies], None, read_only=True)
        blank = [address for _, _, address in self._regions(destination_id)]
        self._volume(destination_id, blank, None, read_only=False)
        named = {"project_id": PROJECT, "name": f"snapshot-{number:06}", "description": "", "disk_id": disk_id}
        made_of = {"volume_id": volume_id, "destination_volume_id": destination_id, "state": "ready"}
        size = {"size_bytes": DISK_BYTES, "block_size": BLOCK_SIZE}
        self._add(schema.snapshot, id=snapshot_id, **named, **made_of, **size, **TIMES)
        self._charged(snapshot_id, "snapshot")
        return volume_id, copies

    def _charged(self, resource_id: str, kind: str) -> None:
        self._add(
            schema.virtual_provisioning_resource,
            id=resource_id,
            time_modified=EPOCH,
            resource_type=kind,
            project_id=PROJECT,
            virtual_disk_bytes_provisioned=DISK_BYTES,
        )

    def _charge(self, size_bytes: int) -> None:
        for collection_id, kind in ((PROJECT, "project"), (SILO, "silo"), (FLEET_ID, "fleet")):
            self._add(
                schema.virtual_provisioning_collection,
                id=collection_id,
                time_modified=EPOCH,
                collection_type=kind,
                virtual_disk_bytes_provisioned=size_bytes,
            )


def _ip(number: int) -> str:
    return f"fd00::{number + 1:x}"


def _request(volume_id: str, targets: list[str], *, read_only: bool) -> dict[str, Any]:
    """The VCR of a volume with one region set."""
    opts = {"id": volume_id, "target": targets, "lossy": False, "key": KEY, "read_only": read_only}
    region = {"type": "region", "block_size": BLOCK_SIZE, "blocks_per_extent": EXTENT_BYTES // BLOCK_SIZE}
    region |= {"extent_count": EXTENTS, "opts": opts, "gen": 1}
    return {"type": "volume", "id": volume_id, "block_size": BLOCK_SIZE, "sub_volumes": [region]}


def _delete(connection: Connection, disk_ids: list[str]) -> None:
    """As the deletion of a disk leaves it that has snapshots: the regions under them stay, and so does the volume."""
    charged = schema.virtual_provisioning_resource
    volumes = select(schema.disk_type_crucible.c.volume_id)
    for start in range(0, len(disk_ids), ROWS_AT_ONCE):
        some = disk_ids[start : start + ROWS_AT_ONCE]
        gone = {"time_deleted": EPOCH, "disk_state": "destroyed"}
        connection.execute(update(schema.disk).where(schema.disk.c.id.in_(some)).values(**gone))
        connection.execute(delete(charged).where(charged.c.id.in_(some)))
        theirs = schema.volume.c.id.in_(volumes.where(schema.disk_type_crucible.c.disk_id.in_(some)))
        empty = {"time_deleted": EPOCH, "resources_to_clean_up": freed.write(CrucibleResources())}
        connection.execute(update(schema.volume).where(theirs).values(**empty))


def _reserve(connection: Connection) -> None:
    """What the regions take on their datasets."""
    region, dataset = schema.region.c, schema.crucible_dataset
    counts = connection.execute(select(region.dataset_id, func.count()).group_by(region.dataset_id)).all()
    for dataset_id, regions in counts:
        size = regions * DISK_BYTES * 5 // 4
        connection.execute(update(dataset).where(dataset.c.id == dataset_id).values(size_used=size))
