"""What Nexus asks again and again is found by an index, and a page costs the same however long the list is."""

from __future__ import annotations

from typing import Any

import pytest
from db_rig import EPOCH, open_database, uuid
from db_rows import ROWS, SNAPSHOT_USED
from sqlalchemy import Connection, and_, insert, select

from nexus.db.sagas import GOING_ON
from nexus.db.schema import (
    crucible_dataset,
    disk,
    disk_type_crucible,
    instance,
    physical_disk,
    region,
    region_snapshot,
    region_snapshot_replacement,
    region_snapshot_replacement_step,
    saga,
    snapshot,
    volume,
    volume_repair,
    volume_resource_usage,
    zpool,
)

PROJECT, PLACE = uuid(2), uuid(3)
_REGION_AT = and_(region.c.dataset_id == PLACE, region.c.port == 19000)
LOOKUPS = {
    "disks by name": select(disk)
    .where(disk.c.project_id == PROJECT, disk.c.time_deleted.is_(None), disk.c.name > "m")
    .order_by(disk.c.name)
    .limit(100),
    "disks by id": select(disk)
    .where(disk.c.project_id == PROJECT, disk.c.time_deleted.is_(None), disk.c.id > PLACE)
    .order_by(disk.c.id)
    .limit(100),
    "snapshots by name": select(snapshot)
    .where(snapshot.c.project_id == PROJECT, snapshot.c.time_deleted.is_(None), snapshot.c.name > "m")
    .order_by(snapshot.c.name)
    .limit(100),
    "users of a read-only region": select(volume_resource_usage.c.volume_id).where(
        volume_resource_usage.c.usage_type == "read_only_region", volume_resource_usage.c.region_id == PLACE
    ),
    "users of a region snapshot": select(volume_resource_usage.c.volume_id).where(
        volume_resource_usage.c.usage_type == "region_snapshot",
        *(volume_resource_usage.c[name] == PLACE for name in SNAPSHOT_USED),
    ),
    "what a volume uses": select(volume_resource_usage).where(volume_resource_usage.c.volume_id == PLACE),
    "regions of a volume": select(region).where(region.c.volume_id == PLACE).order_by(region.c.id),
    "the region at an address": select(region)
    .join(crucible_dataset, crucible_dataset.c.id == region.c.dataset_id)
    .where(crucible_dataset.c.ip == "fd00::1", region.c.port == 19000, region.c.read_only, ~region.c.deleting),
    "the region of a dataset at a port": select(region).where(_REGION_AT),
    "the snapshot at an address": select(region_snapshot).where(
        region_snapshot.c.snapshot_addr == "[fd00::1]:19000", ~region_snapshot.c.deleting
    ),
    "regions without a port": select(region.c.id).where(region.c.port.is_(None)),
    "regions that are to go": select(region.c.id).where(region.c.deleting),
    "snapshots that are to go": select(region_snapshot.c.region_id).where(region_snapshot.c.deleting),
    "volumes that are to go": select(volume.c.id)
    .where(volume.c.time_deleted.is_not(None))
    .order_by(volume.c.time_deleted),
    "the disk of a volume": select(disk)
    .join(disk_type_crucible, disk_type_crucible.c.disk_id == disk.c.id)
    .where(disk_type_crucible.c.volume_id == PLACE, disk.c.time_deleted.is_(None)),
    "the snapshot of a volume": select(snapshot).where(snapshot.c.volume_id == PLACE),
    "disks of an instance": select(disk).where(disk.c.attach_instance_id == PLACE, disk.c.time_deleted.is_(None)),
    "an instance by name": select(instance).where(
        instance.c.project_id == PROJECT, instance.c.name == "vm", instance.c.time_deleted.is_(None)
    ),
    "who holds a lock": select(volume_repair).where(volume_repair.c.repair_id == PLACE),
    "datasets of a disk": select(crucible_dataset)
    .join(zpool, zpool.c.id == crucible_dataset.c.pool_id)
    .where(
        zpool.c.physical_disk_id == PLACE, zpool.c.time_deleted.is_(None), crucible_dataset.c.time_deleted.is_(None)
    ),
    "disks that are expunged": select(physical_disk.c.id).where(physical_disk.c.disk_policy == "expunged"),
    "running requests": select(region_snapshot_replacement)
    .where(region_snapshot_replacement.c.replacement_state == "running")
    .order_by(region_snapshot_replacement.c.id),
    "the request of a target": select(region_snapshot_replacement).where(
        region_snapshot_replacement.c.old_region_id == PLACE
    ),
    "steps of a request": select(region_snapshot_replacement_step).where(
        region_snapshot_replacement_step.c.request_id == PLACE,
        region_snapshot_replacement_step.c.replacement_state != "volume_deleted",
    ),
    "unfinished sagas of a Nexus": select(saga).where(saga.c.executor_id == "nexus-1", GOING_ON).order_by(saga.c.id),
    "sagas by id": select(saga).where(saga.c.id > "m").order_by(saga.c.id).limit(100),
    "sagas by state": select(saga).where(saga.c.state == "stuck").order_by(saga.c.time_created, saga.c.id).limit(100),
}
"""What Nexus asks again and again (W20: never by going through all volumes)."""


def plan(connection: Connection, lookup: Any) -> str:
    statement = lookup.compile(dialect=connection.dialect)
    values = tuple(statement.construct_params()[name] for name in statement.positiontup)
    processed = tuple(getattr(value, "value", value) if value != EPOCH else "2026" for value in values)
    rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", processed)
    return "; ".join(row[3] for row in rows)


@pytest.mark.parametrize("name", LOOKUPS)
def test_what_is_looked_for_is_found_by_an_index_and_in_order(name: str) -> None:
    with open_database("sqlite://") as database:
        found = database.transact_blocking(lambda connection: plan(connection, LOOKUPS[name]))
    # Going through a whole index of nothing but what is looked for is no search, and costs what it finds.
    whole = [step for step in found.split("; ") if step.startswith("SCAN")]
    parts = ("region_without_port", "region_deleting", "region_snapshot_deleting")
    assert all(step.endswith(parts) for step in whole), found
    assert "TEMP B-TREE" not in found, found


@pytest.mark.parametrize("name", ["disks by name", "disks by id"])
def test_a_page_costs_the_same_however_long_the_list_is(name: str) -> None:
    """Counted in steps of SQLite's machine, for a page in the middle."""
    steps = []
    for disks in (400, 4000):
        with open_database("sqlite://") as database:

            def fill(connection: Connection) -> None:
                rows = [
                    {**ROWS[disk], "id": uuid(number), "name": f"disk-{number:06}"}
                    for number in range(disks)  # noqa: B023 - run at once
                ]
                connection.execute(insert(disk), rows)

            middle = {"name": f"disk-{disks // 2:06}", "id": uuid(disks // 2)}
            column = disk.c.name if name == "disks by name" else disk.c.id
            page = (
                select(disk)
                .where(disk.c.project_id == PROJECT, disk.c.time_deleted.is_(None), column > middle[column.name])
                .order_by(column)
                .limit(100)
            )
            database.transact_blocking(fill)
            steps.append(database.transact_blocking(lambda connection: steps_of(connection, page)))  # noqa: B023
    assert steps[1] <= 1.1 * steps[0]


def steps_of(connection: Connection, lookup: Any) -> int:
    """How many steps SQLite's machine takes for 100 rows."""
    taken = 0

    def count() -> int:
        nonlocal taken
        taken += 1
        return 0

    driver: Any = connection.connection.driver_connection
    driver.set_progress_handler(count, 1)
    assert len(connection.execute(lookup).all()) == 100
    driver.set_progress_handler(None, 1)
    return taken
