"""Volumes, what they are made of, and who refers to what (nexus.md §1.2).

A volume's request (VCR) says which addresses it uses, and is the only source of that. What only one volume writes to, a
read/write region, names its owner in ``region.volume_id``. What many volumes may read from, a region snapshot or a
read-only region, is counted by rows of ``volume_resource_usage``: none left means that it may be destroyed, and whoever
takes the last one away says so in ``deleting``.
"""

from __future__ import annotations

from enum import StrEnum

from nexus.db.schema.columns import (
    address,
    block_size,
    check,
    enumeration,
    flag,
    identifier,
    index,
    moment,
    number,
    port,
    table,
    text,
    timestamps,
)


class ReservationPercent(StrEnum):
    """How much more than its data a region is given."""

    TWENTY_FIVE = "25"


class UsageType(StrEnum):
    """What a row of volume_resource_usage refers to."""

    READ_ONLY_REGION = "read_only_region"
    REGION_SNAPSHOT = "region_snapshot"


_SOFT_DELETED = "time_deleted IS NOT NULL"

volume = table(
    "volume",
    "What a disk, snapshot or image is stored in. A row that is absent was destroyed, or not made yet.",
    identifier("id", "Names the volume; the id inside its request need not be the same.", key=True),
    *timestamps(deleted="Soft-deleted: no longer a user of read-only resources, and soon destroyed."),
    number("rcgen", "Not used.", least=1, default=1),
    text("data", "The volume construction request as JSON, with the key of the data in it.", secret=True),
    text(
        "resources_to_clean_up",
        "JSON, written once when the volume is soft-deleted: what that freed and is to be destroyed (§5.7).",
        nullable=True,
    ),
    check("resources_are_of_a_deleted_volume", "resources_to_clean_up IS NULL OR time_deleted IS NOT NULL"),
    index("volume_by_time_deleted", "time_deleted", "id", where=_SOFT_DELETED),
)

_PORT_UNKNOWN = "port IS NULL"

region = table(
    "region",
    "A place for the bytes of one member of a region set, as an agent made it.",
    identifier("id", "Names the region, here and at the agent.", key=True),
    *timestamps(),
    identifier("dataset_id", "Where it is."),
    identifier(
        "volume_id",
        "Read/write: the one volume that owns it. Read-only: the snapshot volume that it was allocated for, even when"
        " that row is gone.",
    ),
    block_size(),
    number("blocks_per_extent", "Blocks of an extent.", least=1),
    number("extent_count", "Extents."),
    port("port", "Where its downstairs listens; NULL until the agent was asked.", nullable=True),
    flag("read_only", "Made as a copy for a snapshot: shared, and counted by volume_resource_usage."),
    flag("deleting", "The last user of a read-only region is gone: it has no new ones, and is destroyed (I3)."),
    enumeration("reservation_percent", ReservationPercent, "How much more than its size is reserved."),
    # bool <= bool is "implies" on both databases.
    check("only_read_only_regions_are_marked_deleting", "deleting <= read_only"),
    index("region_by_volume", "volume_id", "id", unique=True),
    index("region_by_dataset", "dataset_id", "id", unique=True),
    index("region_by_address", "dataset_id", "port"),
    index("region_without_port", "id", where=_PORT_UNKNOWN),
    # Not over all regions: SQLite would take it for a way to the read/write ones, which are nearly all there are.
    index("region_read_only", "id", where="read_only", where_on_sqlite="read_only = 1"),
    index("region_deleting", "id", where="deleting", where_on_sqlite="deleting = 1"),
)

region_snapshot = table(
    "region_snapshot",
    "A snapshot of a region, served by its own downstairs. The row lives at least as long as the agent's snapshot:"
    " while it is there, the region underneath cannot be deleted.",
    identifier("dataset_id", "Where it is.", key=True),
    identifier("region_id", "The read/write region that it is a snapshot of.", key=True),
    identifier("snapshot_id", "The user's snapshot that it belongs to.", key=True),
    address("snapshot_addr", "Where its downstairs listens. Agents reuse ports: only a row not deleting counts."),
    number("volume_references", "Obsolete and 0; volume_resource_usage counts.", default=0),
    flag("deleting", "The last user is gone: it has no new ones, and is destroyed (I3)."),
    index("region_snapshot_by_dataset_and_region", "dataset_id", "region_id"),
    index("region_snapshot_by_region", "region_id"),
    index("region_snapshot_by_snapshot", "snapshot_id"),
    # Not over all of them: SQLite would take it for a way to those that are in use, which are nearly all there are.
    index("region_snapshot_deleting", "region_id", where="deleting", where_on_sqlite="deleting = 1"),
    index("region_snapshot_by_address", "snapshot_addr"),
    # Safety: an address names at most one snapshot that is in use (R12, R13, W55). Who gives a port back says so in
    # ``deleting`` before the agent is asked.
    index(
        "region_snapshot_address_in_use_unique",
        "snapshot_addr",
        unique=True,
        where="NOT deleting",
        where_on_sqlite="deleting = 0",
    ),
)

_OF_REGION = f"usage_type = '{UsageType.READ_ONLY_REGION.value}'"
_OF_SNAPSHOT = f"usage_type = '{UsageType.REGION_SNAPSHOT.value}'"
_TRIPLE = ("region_snapshot_dataset_id", "region_snapshot_region_id", "region_snapshot_snapshot_id")

volume_resource_usage = table(
    "volume_resource_usage",
    "One row per reference of a volume to a read-only resource. A resource without rows may be destroyed.",
    identifier("usage_id", "Random.", key=True),
    identifier("volume_id", "Who uses it."),
    enumeration("usage_type", UsageType, "What is used."),
    identifier("region_id", "The read-only region that is used, if it is one.", nullable=True),
    identifier("region_snapshot_dataset_id", "The region snapshot that is used, if it is one.", nullable=True),
    identifier("region_snapshot_region_id", "As above.", nullable=True),
    identifier("region_snapshot_snapshot_id", "As above.", nullable=True),
    check(
        "exactly_one_usage_source",
        f"({_OF_REGION} AND region_id IS NOT NULL AND {' AND '.join(f'{name} IS NULL' for name in _TRIPLE)})"
        f" OR ({_OF_SNAPSHOT} AND region_id IS NULL AND {' AND '.join(f'{name} IS NOT NULL' for name in _TRIPLE)})",
    ),
    index("volume_resource_usage_by_volume", "volume_id"),
    index("volume_resource_usage_by_region", "region_id", where=_OF_REGION),
    index("volume_resource_usage_by_snapshot", *_TRIPLE, where=_OF_SNAPSHOT),
    # Safety (W36): one index over all six columns would never refuse anything, for NULLs are distinct from each other.
    index(
        "one_record_per_volume_and_region",
        "volume_id",
        "region_id",
        unique=True,
        where=_OF_REGION,
    ),
    index(
        "one_record_per_volume_and_snapshot",
        "volume_id",
        *_TRIPLE,
        unique=True,
        where=_OF_SNAPSHOT,
    ),
)

volume_repair = table(
    "volume_repair",
    "The lock of a volume: who may change which regions it is made of. The volume's row need not exist.",
    identifier("volume_id", "The volume that is locked.", key=True),
    identifier("repair_id", "Who holds the lock: a request, a step, or a saga that makes a snapshot."),
    moment("time_taken", "Since when."),
    index("volume_repair_by_holder", "repair_id"),
)

volume_repair_queue = table(
    "volume_repair_queue",
    "Who waits for the lock of a volume: it is granted to who has waited longest (W2).",
    identifier("volume_id", "The volume that is locked.", key=True),
    identifier("repair_id", "Who waits.", key=True),
    moment("time_queued", "Since when; first come, first served."),
    moment("time_asked", "When it last asked; who does not come back for long loses its place."),
    number("overtaken", "How often somebody who came later was let through.", default=0),
    index("volume_repair_queue_in_order", "volume_id", "time_queued", "repair_id"),
    index("volume_repair_queue_by_waiter", "repair_id"),
)

volume_at_rest = table(
    "volume_at_rest",
    "Hashes proved that all copies of the volume's own regions held the same, and nobody was given its document since.",
    identifier("volume_id", "The volume.", key=True),
    number("generation", "The generation that the document had then; a checkout makes it greater."),
    moment("time_proved", "When."),
)
