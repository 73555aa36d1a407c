"""The schema refuses what the rules forbid, on both databases.

Each refusal stands beside a row that is accepted and differs in nothing else.
"""

from __future__ import annotations

from typing import Any

import pytest
from db_rig import EPOCH, uuid
from db_rows import ROWS, SNAPSHOT_USED
from sqlalchemy import Connection, Table, insert
from sqlalchemy.exc import IntegrityError

from nexus.db import Database
from nexus.db.schema import (
    METADATA,
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
from nexus.db.schema.columns import Enumeration

SUCCESSOR = {"new_region_id": uuid(7), "old_region_volume_id": uuid(8)}
TARGET_SUCCESSOR = {"new_region_id": uuid(7), "old_snapshot_volume_id": uuid(8), "new_region_volume_id": uuid(9)}
HELD = {"operating_saga_id": uuid(6)}

REFUSED: list[tuple[Table, dict[str, Any], str]] = [
    (sled, {"sled_state": "decommissioned"}, "sled_decommissioned_is_expunged"),
    (sled, {"ip": "127.0.0.1"}, "sled_ip_is_ipv6"),
    (sled, {"port": 65536}, "sled_port_is_in_range"),
    (sled, {"id": "BRM1"}, "sled_id_is_an_id"),
    (physical_disk, {"disk_state": "decommissioned"}, "physical_disk_decommissioned_is_expunged"),
    (crucible_dataset, {"size_used": -1}, "crucible_dataset_size_used_is_in_range"),
    (volume, {"resources_to_clean_up": "{}"}, "volume_resources_are_of_a_deleted_volume"),
    (region, {"read_only": False, "deleting": True}, "region_only_read_only_regions_are_marked_deleting"),
    (region, {"block_size": 1024}, "region_block_size_is_known"),
    (region, {"port": 0}, "region_port_is_in_range"),
    (region_snapshot, {"snapshot_addr": "fd00::1:19000"}, "region_snapshot_snapshot_addr_is_an_address"),
    (region_snapshot, {"snapshot_addr": "127.0.0.1:19000"}, "region_snapshot_snapshot_addr_is_an_address"),
    (volume_resource_usage, {"region_id": None}, "volume_resource_usage_exactly_one_usage_source"),
    (volume_resource_usage, SNAPSHOT_USED, "volume_resource_usage_exactly_one_usage_source"),
    (volume_resource_usage, {"usage_type": "region_snapshot"}, "volume_resource_usage_exactly_one_usage_source"),
    (access_token, {"role": "operator"}, "access_token_a_tenant_has_a_project"),
    (access_token, {"project_id": None}, "access_token_a_tenant_has_a_project"),
    (disk, {"disk_state": "attached"}, "disk_attached_names_its_instance"),
    (disk, {"attach_instance_id": uuid(9)}, "disk_at_rest_names_no_instance"),
    (disk, {"slot": 3}, "disk_a_slot_is_an_instances"),
    (disk, {"disk_state": "attached", "attach_instance_id": uuid(9), "slot": 12}, "disk_slot_is_in_range"),
    (disk, {"time_deleted": EPOCH}, "disk_deleted_is_destroyed"),
    (disk, {"name": ""}, "disk_name_has_a_length"),
    (disk, {"size_bytes": 1000}, "disk_size_is_whole_blocks"),
    (
        disk_type_crucible,
        {"origin_snapshot": uuid(3), "origin_image": uuid(4)},
        "disk_type_crucible_one_origin",
    ),
    (snapshot, {"time_deleted": EPOCH}, "snapshot_deleted_is_destroyed"),
    (user_data_export, {"state": "live"}, "user_data_export_live_is_somewhere"),
    (region_replacement, HELD, "region_replacement_held_while_intermediate"),
    (region_replacement, {"replacement_state": "allocating"}, "region_replacement_held_while_intermediate"),
    (region_replacement, SUCCESSOR, "region_replacement_nothing_new_while_requested"),
    (region_replacement, {"replacement_state": "running"}, "region_replacement_successor_known_from_running_on"),
    (
        region_replacement_step,
        {"step_type": "pantry"},
        "region_replacement_step_a_step_says_who",
    ),
    (
        region_snapshot_replacement,
        {"old_snapshot_id": None},
        "region_snapshot_replacement_proper_replacement_fields",
    ),
    (
        region_snapshot_replacement,
        {"replacement_type": "read_only_region"},
        "region_snapshot_replacement_proper_replacement_fields",
    ),
    (region_snapshot_replacement, HELD, "region_snapshot_replacement_held_while_intermediate"),
    (
        region_snapshot_replacement,
        {"replacement_state": "running", "new_region_id": uuid(7)},
        "region_snapshot_replacement_successor_known_from_done_on",
    ),
    (region_snapshot_replacement_step, HELD, "region_snapshot_replacement_step_held_while_intermediate"),
    (
        region_snapshot_replacement_step,
        {"old_snapshot_volume_id": uuid(8)},
        "region_snapshot_replacement_step_no_stash_while_requested",
    ),
    (
        region_snapshot_replacement_step,
        {"replacement_state": "complete"},
        "region_snapshot_replacement_step_stash_known_when_complete",
    ),
]
ACCEPTED: list[tuple[Table, dict[str, Any]]] = [
    (sled, {"sled_state": "decommissioned", "sled_policy": "expunged"}),
    (volume, {"resources_to_clean_up": "{}", "time_deleted": EPOCH}),
    (region, {"deleting": True, "port": 65535, "extent_count": 0}),
    (volume_resource_usage, {"region_id": None, "usage_type": "region_snapshot", **SNAPSHOT_USED}),
    (access_token, {"role": "operator", "project_id": None}),
    (disk, {"disk_state": "attached", "attach_instance_id": uuid(9), "slot": 11}),
    (disk, {"disk_state": "faulted", "attach_instance_id": uuid(9)}),
    (disk, {"disk_state": "destroyed", "time_deleted": EPOCH}),
    (region_replacement, {"replacement_state": "allocating", **HELD}),
    (region_replacement, {"replacement_state": "driving", **HELD, **SUCCESSOR}),
    (region_replacement, {"replacement_state": "complete"}),
    (region_snapshot_replacement, {"replacement_state": "running", **TARGET_SUCCESSOR}),
    (region_snapshot_replacement, {"replacement_state": "complete"}),
    (
        region_snapshot_replacement,
        {"replacement_type": "read_only_region", "old_dataset_id": None, "old_snapshot_id": None},
    ),
    (region_snapshot_replacement_step, {"replacement_state": "running", **HELD}),
    (region_snapshot_replacement_step, {"replacement_state": "running", **HELD, "old_snapshot_volume_id": uuid(8)}),
    (region_snapshot_replacement_step, {"replacement_state": "volume_deleted"}),
]

USES_SNAPSHOT = {"usage_type": "region_snapshot", "region_id": None, **SNAPSHOT_USED}
TOGETHER: list[tuple[Table, dict[str, Any], dict[str, Any], bool]] = [
    # W36: two references of one volume to one resource, of either kind; of two volumes to one is fine.
    (volume_resource_usage, {}, {"usage_id": uuid(9)}, False),
    (volume_resource_usage, {}, {"usage_id": uuid(9), "volume_id": uuid(8)}, True),
    (volume_resource_usage, USES_SNAPSHOT, {**USES_SNAPSHOT, "usage_id": uuid(9)}, False),
    (volume_resource_usage, USES_SNAPSHOT, {**USES_SNAPSHOT, "usage_id": uuid(9), "volume_id": uuid(8)}, True),
    # An address names one region snapshot that is in use, and any number that are being deleted (R12, R13).
    (region_snapshot, {}, {"snapshot_id": uuid(9)}, False),
    (region_snapshot, {"deleting": True}, {"snapshot_id": uuid(9)}, True),
    (region_snapshot, {"deleting": True}, {"snapshot_id": uuid(9), "deleting": True}, True),
    # I8: at most one holder of a volume's lock.
    (volume_repair, {}, {"repair_id": uuid(9)}, False),
    # W37: one active step per volume; old ones do not count.
    (region_snapshot_replacement_step, {}, {"id": uuid(9), "request_id": uuid(8)}, False),
    (
        region_snapshot_replacement_step,
        {"replacement_state": "complete", "old_snapshot_volume_id": uuid(8)},
        {"id": uuid(9)},
        True,
    ),
    # One request per lost target at a time; for a read-only region too, where the real key has NULLs.
    (region_replacement, {}, {"id": uuid(9)}, False),
    (region_replacement, {"replacement_state": "complete"}, {"id": uuid(9)}, True),
    (region_snapshot_replacement, {}, {"id": uuid(9)}, False),
    (region_snapshot_replacement, {}, {"id": uuid(9), "old_snapshot_id": uuid(8)}, True),
    (
        region_snapshot_replacement,
        {"replacement_type": "read_only_region", "old_dataset_id": None, "old_snapshot_id": None},
        {
            "id": uuid(9),
            "replacement_type": "read_only_region",
            "old_dataset_id": None,
            "old_snapshot_id": None,
        },
        False,
    ),
    # Names, among what is not deleted; and no two disks share a volume or a slot.
    (disk, {}, {"id": uuid(9)}, False),
    (disk, {}, {"id": uuid(9), "project_id": uuid(8)}, True),
    (disk, {"disk_state": "destroyed", "time_deleted": EPOCH}, {"id": uuid(9)}, True),
    (disk_type_crucible, {}, {"disk_id": uuid(9)}, False),
    (
        disk,
        {"disk_state": "attached", "attach_instance_id": uuid(7), "slot": 0},
        {"id": uuid(9), "name": "b", "disk_state": "attached", "attach_instance_id": uuid(7), "slot": 0},
        False,
    ),
    (snapshot, {}, {"id": uuid(9)}, False),
    (snapshot, {"state": "destroyed", "time_deleted": EPOCH}, {"id": uuid(9)}, True),
    (image, {}, {"id": uuid(9)}, False),
    (image, {}, {"id": uuid(9), "project_id": uuid(8)}, True),
    (image, {"project_id": uuid(8)}, {"id": uuid(9), "project_id": uuid(8)}, False),
    (user_data_export, {}, {"id": uuid(9)}, False),
    (user_data_export, {"state": "deleted"}, {"id": uuid(9)}, True),
    (physical_disk, {}, {"id": uuid(9)}, False),
    (physical_disk, {"disk_state": "decommissioned", "disk_policy": "expunged"}, {"id": uuid(9)}, True),
    (crucible_dataset, {}, {"id": uuid(9), "pool_id": uuid(8)}, False),
]


def add(connection: Connection, table: Table, changes: dict[str, Any]) -> None:
    connection.execute(insert(table).values({**ROWS[table], **changes}))


def test_every_table_and_column_is_explained() -> None:
    for table in METADATA.tables.values():
        assert table.comment and table.comment.endswith("."), table.name
        for column in table.columns:
            assert column.comment, f"{table.name}.{column.name}"


async def test_rows_are_accepted(database: Database) -> None:
    for table, changes in [*((table, {}) for table in ROWS), *ACCEPTED]:

        def body(connection: Connection) -> None:
            add(connection, table, changes)  # noqa: B023 - awaited
            raise LookupError

        with pytest.raises(LookupError):
            await database.transact(body)


async def test_rows_are_refused(database: Database) -> None:
    for table, changes, constraint in REFUSED:
        with pytest.raises(IntegrityError, match=rf"\b{constraint}\b"):
            await database.transact(lambda connection: add(connection, table, changes))  # noqa: B023 - awaited


async def test_enumerations_are_checked_by_the_database_as_well(database: Database) -> None:
    """Not only by our own types: somebody may repair a row by hand."""
    for table, row in ROWS.items():
        columns = [column for column in table.columns if isinstance(column.type, Enumeration) and column.name in row]
        for column in columns:

            def body(connection: Connection) -> None:
                add(connection, table, {})  # noqa: B023 - awaited
                connection.exec_driver_sql(f"UPDATE {table.name} SET {column.name} = 'asleep'")  # noqa: B023

            with pytest.raises(IntegrityError):
                await database.transact(body)


async def test_rows_that_may_or_may_not_stand_together(database: Database) -> None:
    for table, first, second, may in TOGETHER:
        assert (await stand_together(database, table, first, second)) is may, (table.name, first, second)


async def stand_together(database: Database, table: Table, first: dict[str, Any], second: dict[str, Any]) -> bool:
    def body(connection: Connection) -> None:
        add(connection, table, first)
        add(connection, table, second)
        raise LookupError

    try:
        await database.transact(body)
    except LookupError:
        return True
    except IntegrityError:
        return False
    raise AssertionError
