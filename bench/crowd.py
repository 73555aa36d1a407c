"""A database of Nexus with a crowd in it: disks and snapshots as they would be after months, without any bytes.

What it is for: to see what an operation of the control plane costs when there is much that it does not concern.
The rows are those that the sagas leave, written in bulk: a disk has its volume and three regions on three datasets, a
snapshot its read-only volume, a blank destination volume with three regions, three region snapshots and the rows that
count their users. The invariants of Nexus hold for it; a test checks them.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from itertools import count
from random import Random
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Table, func, insert, select, update

from nexus.db import Database, schema
from nexus.objects.provisioning import FLEET_ID

EXTENT_BYTES = 64 << 20
DISK_BYTES = 1 << 30
BLOCK_SIZE = 4096
EXTENTS = DISK_BYTES // EXTENT_BYTES
POOL_BYTES = 1 << 50
DATASETS = 32
DATASETS_PER_SLED = 2
ROWS_AT_ONCE = 500
LOW_PORT = 1000
EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
KEY = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
SILO, PROJECT = str(UUID(int=1)), str(UUID(int=2))
TIMES = {"time_created": EPOCH, "time_modified": EPOCH}


class Crowd:
    """Makes rows. Ids are drawn, the same ones each time; addresses are counted up. ``datasets`` are the ids, in the
    order of their IPs."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._random = Random(1)
        self._ports = [count(LOW_PORT) for _ in range(DATASETS)]
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

    def build(self, *, disks: int, snapshots: int) -> None:
        """Hardware, one project, ``disks`` disks, and ``snapshots`` snapshots of them, in turn."""
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
        self._charge((disks + snapshots) * DISK_BYTES)
        self._write()
        self._database.transact_blocking(_reserve)

    def _ground(self) -> None:
        self._add(schema.silo, id=SILO, name="silo", description="", **TIMES)
        self._add(schema.project, id=PROJECT, silo_id=SILO, name="project", description="", **TIMES)
        for number, dataset in enumerate(self.datasets):
            if number % DATASETS_PER_SLED == 0:
                sled = self._sled(number)
            hardware = {"vendor": "emulated", "serial": f"disk{number}", "model": "file", "variant": "u2"}
            policy = {"disk_policy": "in_service", "disk_state": "active"}
            disk = self._add(schema.physical_disk, id=self._id(), sled_id=sled, **hardware, **policy, **TIMES)
            pool = {"id": self._id(), "sled_id": sled}
            self._add(schema.zpool, physical_disk_id=disk, control_plane_storage_buffer=0, **pool, **TIMES)
            self._add(schema.inv_zpool, time_collected=EPOCH, total_size=POOL_BYTES, **pool)
            where = {"ip": _ip(number), "port": 17000}
            self._add(schema.crucible_dataset, id=dataset, pool_id=pool["id"], size_used=0, **where, **TIMES)

    def _sled(self, number: int) -> str:
        hardware = {"serial_number": f"sled{number}", "part_number": "emulated", "revision": 1}
        state = {"sled_policy": "in_service", "sled_state": "active"}
        where = {"rack_id": SILO, "ip": _ip(number), "port": 12400}
        return self._add(schema.sled, id=self._id(), **hardware, **state, **where, **TIMES)

    def _regions(self, volume_id: str) -> list[tuple[str, int, str]]:
        """Three regions of the volume on three sleds: their ids, datasets (by number) and addresses."""
        found = []
        first = next(self._turn)
        for step in range(3):
            number = (first + step * DATASETS_PER_SLED) % DATASETS
            region, port = self._id(), next(self._ports[number])
            geometry = {"block_size": BLOCK_SIZE, "blocks_per_extent": EXTENT_BYTES // BLOCK_SIZE}
            state: dict[str, Any] = {"extent_count": EXTENTS, "port": port, "read_only": False, "deleting": False}
            state["reservation_percent"] = "25"
            place = {"id": region, "dataset_id": self.datasets[number], "volume_id": volume_id}
            self._add(schema.region, **place, **geometry, **state, **TIMES)
            found.append((region, number, f"[{_ip(number)}]:{port}"))
        return found

    def _volume(self, volume_id: str, targets: list[str], *, read_only: bool) -> None:
        self._add(schema.volume, id=volume_id, data=_request(volume_id, targets, read_only=read_only), **TIMES)

    def _disk(self, number: int) -> tuple[str, list[tuple[str, int, str]]]:
        disk_id, volume_id = self._id(), self._id()
        regions = self._regions(volume_id)
        self._volume(volume_id, [address for _, _, address in regions], read_only=False)
        named = {"project_id": PROJECT, "name": f"disk-{number:06}", "description": "", "size_bytes": DISK_BYTES}
        state = {"disk_state": "detached", "time_state_updated": EPOCH, "disk_type": "crucible"}
        self._add(schema.disk, id=disk_id, block_size=BLOCK_SIZE, **named, **state, **TIMES)
        self._add(schema.disk_type_crucible, disk_id=disk_id, volume_id=volume_id, read_only=False)
        self._charged(disk_id, "disk")
        return disk_id, regions

    def _snapshot(self, number: int, disk_id: str, regions: list[tuple[str, int, str]]) -> None:
        snapshot_id, volume_id, destination_id = self._id(), self._id(), self._id()
        self.snapshot_ids.append(snapshot_id)
        targets = []
        for region_id, place, _ in regions:
            address = f"[{_ip(place)}]:{next(self._ports[place])}"
            targets.append(address)
            named = {"dataset_id": self.datasets[place], "region_id": region_id, "snapshot_id": snapshot_id}
            self._add(schema.region_snapshot, snapshot_addr=address, volume_references=0, deleting=False, **named)
            self._add(
                schema.volume_resource_usage,
                usage_id=self._id(),
                volume_id=volume_id,
                usage_type="region_snapshot",
                **{f"region_snapshot_{name}": value for name, value in named.items()},
            )
        self._volume(volume_id, targets, read_only=True)
        blank = [address for _, _, address in self._regions(destination_id)]
        self._volume(destination_id, blank, read_only=False)
        named = {"project_id": PROJECT, "name": f"snapshot-{number:06}", "description": "", "disk_id": disk_id}
        made_of = {"volume_id": volume_id, "destination_volume_id": destination_id, "state": "ready"}
        size = {"size_bytes": DISK_BYTES, "block_size": BLOCK_SIZE}
        self._add(schema.snapshot, id=snapshot_id, **named, **made_of, **size, **TIMES)
        self._charged(snapshot_id, "snapshot")

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


def _request(volume_id: str, targets: list[str], *, read_only: bool) -> str:
    """The VCR of a volume with one region set."""
    opts = {"id": volume_id, "target": targets, "lossy": False, "key": KEY, "read_only": read_only}
    region = {"type": "region", "block_size": BLOCK_SIZE, "blocks_per_extent": EXTENT_BYTES // BLOCK_SIZE}
    region |= {"extent_count": EXTENTS, "opts": opts, "gen": 1}
    return json.dumps({"type": "volume", "id": volume_id, "block_size": BLOCK_SIZE, "sub_volumes": [region]})


def _reserve(connection: Connection) -> None:
    """What the regions take on their datasets."""
    region, dataset = schema.region.c, schema.crucible_dataset
    counts = connection.execute(select(region.dataset_id, func.count()).group_by(region.dataset_id)).all()
    for dataset_id, regions in counts:
        size = regions * DISK_BYTES * 5 // 4
        connection.execute(update(dataset).where(dataset.c.id == dataset_id).values(size_used=size))
