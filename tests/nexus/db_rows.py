"""A row of each table that its constraints accept, for tests that change one thing in it."""

from __future__ import annotations

from typing import Any

from db_rig import EPOCH, uuid
from sqlalchemy import Table

from nexus.db.schema import (
    access_token,
    crucible_dataset,
    disk,
    disk_type_crucible,
    image,
    physical_disk,
    region,
    region_replacement,
    region_replacement_step,
    region_snapshot,
    region_snapshot_replacement,
    region_snapshot_replacement_step,
    sled,
    snapshot,
    user_data_export,
    volume,
    volume_repair,
    volume_resource_usage,
)

TIMES = {"time_created": EPOCH, "time_modified": EPOCH}
NAMED = {"name": "data", "description": "", **TIMES}
SNAPSHOT_USED = {f"region_snapshot_{each}_id": uuid(30) for each in ("dataset", "region", "snapshot")}

ROWS: dict[Table, dict[str, Any]] = {
    sled: {
        "id": uuid(1),
        "rack_id": uuid(2),
        "serial_number": "BRM1",
        "part_number": "913",
        "revision": 1,
        "ip": "fd00::1",
        "port": 12345,
        "sled_policy": "in_service",
        "sled_state": "active",
        **TIMES,
    },
    physical_disk: {
        "id": uuid(1),
        "vendor": "v",
        "serial": "s",
        "model": "m",
        "variant": "u2",
        "sled_id": uuid(2),
        "disk_policy": "in_service",
        "disk_state": "active",
        **TIMES,
    },
    crucible_dataset: {"id": uuid(1), "pool_id": uuid(2), "ip": "fd00::1", "port": 1, "size_used": 0, **TIMES},
    volume: {"id": uuid(1), "data": "{}", **TIMES},
    region: {
        "id": uuid(1),
        "dataset_id": uuid(2),
        "volume_id": uuid(3),
        "block_size": 512,
        "blocks_per_extent": 8,
        "extent_count": 4,
        "read_only": True,
        "reservation_percent": "25",
        **TIMES,
    },
    region_snapshot: {
        "dataset_id": uuid(1),
        "region_id": uuid(2),
        "snapshot_id": uuid(3),
        "snapshot_addr": "[fd00::1]:19000",
    },
    volume_resource_usage: {
        "usage_id": uuid(1),
        "volume_id": uuid(2),
        "usage_type": "read_only_region",
        "region_id": uuid(3),
    },
    volume_repair: {"volume_id": uuid(1), "repair_id": uuid(2), "time_taken": EPOCH},
    access_token: {"id": uuid(1), "digest": "d", "role": "tenant", "project_id": uuid(2), "time_created": EPOCH},
    disk: {
        "id": uuid(1),
        "project_id": uuid(2),
        "disk_state": "detached",
        "time_state_updated": EPOCH,
        "size_bytes": 1 << 30,
        "block_size": 512,
        "disk_type": "crucible",
        **NAMED,
    },
    disk_type_crucible: {"disk_id": uuid(1), "volume_id": uuid(2)},
    snapshot: {
        "id": uuid(1),
        "project_id": uuid(2),
        "disk_id": uuid(3),
        "volume_id": uuid(4),
        "destination_volume_id": uuid(5),
        "state": "ready",
        "block_size": 512,
        "size_bytes": 1 << 30,
        **NAMED,
    },
    image: {
        "id": uuid(1),
        "silo_id": uuid(2),
        "volume_id": uuid(3),
        "os": "debian",
        "version": "12",
        "block_size": 512,
        "size_bytes": 1 << 30,
        **NAMED,
    },
    user_data_export: {
        "id": uuid(1),
        "state": "requested",
        "resource_id": uuid(2),
        "resource_type": "snapshot",
    },
    region_replacement: {
        "id": uuid(1),
        "request_time": EPOCH,
        "old_region_id": uuid(2),
        "volume_id": uuid(3),
        "replacement_state": "requested",
    },
    region_replacement_step: {
        "replacement_id": uuid(1),
        "step_time": EPOCH,
        "step_type": "propolis",
        "step_associated_instance_id": uuid(2),
        "step_associated_vmm_id": uuid(3),
    },
    region_snapshot_replacement: {
        "id": uuid(1),
        "request_time": EPOCH,
        "replacement_type": "region_snapshot",
        "old_dataset_id": uuid(2),
        "old_region_id": uuid(3),
        "old_snapshot_id": uuid(4),
        "replacement_state": "requested",
    },
    region_snapshot_replacement_step: {
        "id": uuid(1),
        "request_id": uuid(2),
        "request_time": EPOCH,
        "volume_id": uuid(3),
        "replacement_state": "requested",
    },
}
"""A row of each table that is accepted."""
