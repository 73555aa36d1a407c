"""Hardware, and where regions may be placed (nexus.md §1.1).

A sled holds physical disks, each with one zpool, each with one Crucible dataset, which one agent serves. What a person
wants with a sled or disk is its *policy*; what Nexus has achieved is its *state*. The policy of the physical disk is
the only thing that the replacement machinery looks at to decide that storage is lost.
"""

from __future__ import annotations

from enum import StrEnum

from nexus.db.schema.columns import (
    check,
    enumeration,
    flag,
    identifier,
    index,
    ip,
    moment,
    number,
    port,
    table,
    text,
    timestamps,
)


class SledPolicy(StrEnum):
    """What a person wants with a sled."""

    IN_SERVICE = "in_service"
    NO_PROVISION = "no_provision"
    EXPUNGED = "expunged"


class SledState(StrEnum):
    """What Nexus has achieved with a sled."""

    ACTIVE = "active"
    DECOMMISSIONED = "decommissioned"


class DiskPolicy(StrEnum):
    """What a person wants with a physical disk."""

    IN_SERVICE = "in_service"
    EXPUNGED = "expunged"


class PhysicalDiskState(StrEnum):
    """What Nexus has achieved with a physical disk; decommissioned is for ever."""

    ACTIVE = "active"
    DECOMMISSIONED = "decommissioned"


class PhysicalDiskVariant(StrEnum):
    """What kind of disk it is; others hold no data of users."""

    U2 = "u2"


NOT_DELETED = "time_deleted IS NULL"
DECOMMISSIONED_IS_EXPUNGED = "{0}_state <> 'decommissioned' OR {0}_policy = 'expunged'"

sled = table(
    "sled",
    "A computer of the rack.",
    identifier("id", "Names the sled.", key=True),
    *timestamps(deleted="When the sled was forgotten."),
    number("rcgen", "Grows when what belongs to the sled changes.", least=1, default=1),
    identifier("rack_id", "The rack that it stands in."),
    text("serial_number", "From the hardware."),
    text("part_number", "From the hardware."),
    number("revision", "From the hardware."),
    ip("ip", "Where its sled agent listens."),
    port("port", "Where its sled agent listens."),
    enumeration("sled_policy", SledPolicy, "What a person wants with it; expunged is for ever."),
    enumeration("sled_state", SledState, "What Nexus has achieved."),
    check("decommissioned_is_expunged", DECOMMISSIONED_IS_EXPUNGED.format("sled")),
    index(
        "sled_serial_unique",
        "serial_number",
        "part_number",
        unique=True,
        where=NOT_DELETED,
    ),
    state="sled_state",
)

_PRESENT = "time_deleted IS NULL AND disk_state <> 'decommissioned'"

physical_disk = table(
    "physical_disk",
    "A disk in a sled.",
    identifier("id", "Names the disk.", key=True),
    *timestamps(deleted="When the disk was forgotten."),
    number("rcgen", "Grows when what belongs to the disk changes.", least=1, default=1),
    text("vendor", "From the hardware."),
    text("serial", "From the hardware."),
    text("model", "From the hardware."),
    enumeration("variant", PhysicalDiskVariant, "Which kind of disk."),
    identifier("sled_id", "The sled that it is in."),
    enumeration("disk_policy", DiskPolicy, "Expunged: the data on it is lost, and every copy there is to be replaced."),
    enumeration("disk_state", PhysicalDiskState, "Decommissioned: nothing refers to it any more, and never will."),
    check("decommissioned_is_expunged", DECOMMISSIONED_IS_EXPUNGED.format("disk")),
    index(
        "physical_disk_hardware_unique",
        "vendor",
        "serial",
        "model",
        unique=True,
        where=_PRESENT,
    ),
    index("physical_disk_by_sled", "sled_id", where=NOT_DELETED),
    index("physical_disk_by_policy", "disk_policy", "id"),
    state="disk_state",
)

zpool = table(
    "zpool",
    "The pool on a physical disk. Its size is in inv_zpool.",
    identifier("id", "Names the pool.", key=True),
    *timestamps(deleted="When the pool was forgotten."),
    number("rcgen", "Grows when what belongs to the pool changes.", least=1, default=1),
    identifier("sled_id", "The sled that it is in."),
    identifier("physical_disk_id", "The disk that it is on."),
    number("control_plane_storage_buffer", "Bytes that are never given to Crucible."),
    index("zpool_by_sled", "sled_id", where=NOT_DELETED),
    index("zpool_by_physical_disk", "physical_disk_id", "id", where=NOT_DELETED),
)

inv_zpool = table(
    "inv_zpool",
    "What an inventory found about a pool; the newest row counts.",
    identifier("id", "The pool.", key=True),
    moment("time_collected", "When it was looked at.", key=True),
    identifier("sled_id", "Where it was found."),
    number("total_size", "Bytes of the whole pool."),
)

pantry = table(
    "pantry",
    "A Pantry on a sled: where volumes are attached that no guest has.",
    identifier("id", "Names the pantry.", key=True),
    *timestamps(deleted="When it was taken off the list: from then on it is gone for good."),
    identifier("sled_id", "The sled that it runs on."),
    ip("ip", "Where it listens."),
    port("port", "Where it listens."),
    index("pantry_address_unique", "ip", "port", unique=True, where=NOT_DELETED),
    index("pantry_by_sled", "sled_id", where=NOT_DELETED),
)

crucible_dataset = table(
    "crucible_dataset",
    "The part of a pool that an agent makes regions in. All its downstairs share its IP.",
    identifier("id", "Names the dataset.", key=True),
    *timestamps(deleted="When the dataset was forgotten."),
    number("rcgen", "Grows when what belongs to the dataset changes.", least=1, default=1),
    identifier("pool_id", "The pool that it is in."),
    ip("ip", "Of its agent, and of every downstairs in it."),
    port("port", "Of its agent."),
    number("size_used", "Bytes reserved for regions, overhead included: the sum over their rows (I10)."),
    flag("no_provision", "No new region is placed here."),
    index("crucible_dataset_by_size_used", "size_used", where=NOT_DELETED),
    index("crucible_dataset_by_pool", "pool_id", "id", unique=True, where=NOT_DELETED),
    index(
        "crucible_dataset_agent_unique",
        "ip",
        "port",
        unique=True,
        where=NOT_DELETED,
    ),
    index("crucible_dataset_by_ip", "ip"),
)
