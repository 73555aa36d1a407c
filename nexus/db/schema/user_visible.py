"""What users make and see, and who they are (nexus.md §1.3).

A *tenant* is a project: what belongs to one is neither seen nor deleted by another. Names are unique among what is not
deleted. Rows of disks, snapshots and images stay when their objects are deleted, with ``time_deleted`` set; replacement
relies on finding deleted snapshots.
"""

from __future__ import annotations

from enum import StrEnum

from nexus.db.schema.columns import (
    address,
    block_size,
    called,
    check,
    enumeration,
    flag,
    identifier,
    index,
    ip,
    moment,
    number,
    one_of,
    port,
    table,
    text,
    timestamps,
)

NOT_DELETED = "time_deleted IS NULL"
DISKS_PER_INSTANCE_MAX = 12


class TokenRole(StrEnum):
    """What the bearer of a token may do."""

    TENANT = "tenant"
    OPERATOR = "operator"


class DiskState(StrEnum):
    """How far a disk is (apis-and-tools.md §5)."""

    CREATING = "creating"
    DETACHED = "detached"
    IMPORT_READY = "import_ready"
    IMPORTING_FROM_URL = "importing_from_url"
    IMPORTING_FROM_BULK_WRITES = "importing_from_bulk_writes"
    FINALIZING = "finalizing"
    MAINTENANCE = "maintenance"
    ATTACHING = "attaching"
    ATTACHED = "attached"
    DETACHING = "detaching"
    DESTROYED = "destroyed"
    FAULTED = "faulted"


class DiskType(StrEnum):
    """Where a disk's bytes are."""

    CRUCIBLE = "crucible"
    LOCAL_STORAGE = "local_storage"


class SnapshotState(StrEnum):
    """How far a snapshot is."""

    CREATING = "creating"
    READY = "ready"
    FAULTED = "faulted"
    DESTROYED = "destroyed"


class ExportState(StrEnum):
    """How far a user's data export is."""

    REQUESTED = "requested"
    ASSIGNING = "assigning"
    LIVE = "live"
    DELETING = "deleting"
    DELETED = "deleted"


class ExportedType(StrEnum):
    """What is exported."""

    SNAPSHOT = "snapshot"
    IMAGE = "image"


class ProvisionedType(StrEnum):
    """What is charged for."""

    DISK = "disk"
    SNAPSHOT = "snapshot"


class CollectionType(StrEnum):
    """What is charged."""

    PROJECT = "project"
    SILO = "silo"
    FLEET = "fleet"


class VmmState(StrEnum):
    """How far a VM process is."""

    CREATING = "creating"
    STARTING = "starting"
    RUNNING = "running"
    REBOOTING = "rebooting"
    MIGRATING = "migrating"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"
    DESTROYED = "destroyed"
    SAGA_UNWOUND = "saga_unwound"


WITH_INSTANCE = (DiskState.ATTACHING, DiskState.ATTACHED, DiskState.DETACHING)
"""A disk in one of these states names its instance. A faulted one may; all others do not."""


def _described() -> list[object]:
    return [called(), text("description", "The user's words.")]


silo = table(
    "silo",
    "Tenants that share images.",
    identifier("id", "Names the silo.", key=True),
    *_described(),
    *timestamps(deleted="When it was deleted."),
    index("silo_name_unique", "name", unique=True, where=NOT_DELETED),
)

project = table(
    "project",
    "A tenant: what is in one project is seen by nobody else.",
    identifier("id", "Names the project.", key=True),
    identifier("silo_id", "The silo that it belongs to."),
    *_described(),
    *timestamps(deleted="When it was deleted."),
    number("rcgen", "Grows when what belongs to the project changes.", least=1, default=1),
    index("project_name_unique", "silo_id", "name", unique=True, where=NOT_DELETED),
)

access_token = table(
    "access_token",
    "Who may do what. The token itself is stored nowhere.",
    identifier("id", "Names the token in listings and logs.", key=True),
    text("digest", "BLAKE3 of the token, in hexadecimal.", secret=True),
    enumeration("role", TokenRole, "A tenant's token opens one project, an operator's everything."),
    identifier("project_id", "The project that it opens.", nullable=True),
    moment("time_created", "When it was given out."),
    moment("time_expires", "When it ends, if ever.", nullable=True),
    moment("time_revoked", "When it was taken back.", nullable=True),
    check("a_tenant_has_a_project", "(role = 'tenant') = (project_id IS NOT NULL)"),
    index("access_token_digest_unique", "digest", unique=True),
    index(
        "access_token_by_project",
        "project_id",
        where="project_id IS NOT NULL",
    ),
)

instance = table(
    "instance",
    "A virtual machine as far as disks are concerned.",
    identifier("id", "Names the instance.", key=True),
    identifier("project_id", "Whose it is."),
    *_described(),
    *timestamps(deleted="When it was deleted."),
    identifier("active_propolis_id", "The vmm that runs it now.", nullable=True),
    identifier("target_propolis_id", "The vmm that it migrates to.", nullable=True),
    identifier("migration_id", "The migration that is under way.", nullable=True),
    number("state_generation", "Grows with each change of the three ids.", least=1, default=1),
    index(
        "instance_name_unique",
        "project_id",
        "name",
        unique=True,
        where=NOT_DELETED,
    ),
    index("instance_by_project", "project_id", "id", where=NOT_DELETED),
)

vmm = table(
    "vmm",
    "A process that runs, ran or will run an instance (Propolis).",
    identifier("id", "Names the process.", key=True),
    identifier("instance_id", "What it runs."),
    identifier("sled_id", "Where it runs."),
    ip("propolis_ip", "Where it listens."),
    port("propolis_port", "Where it listens."),
    enumeration("state", VmmState, "How far it is."),
    number("state_generation", "Grows with each change of state.", least=1, default=1),
    *timestamps(deleted="When it was forgotten."),
    index("vmm_by_instance", "instance_id", where=NOT_DELETED),
    index("vmm_by_sled", "sled_id", where=NOT_DELETED),
    state="state",
)

_ATTACHED = "attach_instance_id IS NOT NULL AND time_deleted IS NULL"

disk = table(
    "disk",
    "A user's disk.",
    identifier("id", "Names the disk.", key=True),
    identifier("project_id", "Whose it is."),
    *_described(),
    *timestamps(deleted="When it was deleted."),
    number("rcgen", "Not used.", least=1, default=1),
    enumeration("disk_state", DiskState, "How far it is."),
    identifier("attach_instance_id", "The instance that it is attached to.", nullable=True),
    number(
        "state_generation", "Grows with each change of state; a change that is not newer is lost.", least=1, default=1
    ),
    number("slot", "Which of an instance's disks it is.", nullable=True, most=DISKS_PER_INSTANCE_MAX - 1),
    moment("time_state_updated", "When its state last changed."),
    identifier(
        "operating_saga_id",
        "The saga that alone may move it on: another that finds the same state knows by this that it is not its own.",
        nullable=True,
    ),
    number("size_bytes", "Its size.", least=1),
    block_size(),
    enumeration("disk_type", DiskType, "Where its bytes are."),
    check("size_is_whole_blocks", "size_bytes % block_size = 0"),
    check(
        "attached_names_its_instance", f"NOT ({one_of('disk_state', WITH_INSTANCE)}) OR attach_instance_id IS NOT NULL"
    ),
    check(
        "at_rest_names_no_instance",
        f"{one_of('disk_state', (*WITH_INSTANCE, DiskState.FAULTED))} OR attach_instance_id IS NULL",
    ),
    check("a_slot_is_an_instances", "slot IS NULL OR attach_instance_id IS NOT NULL"),
    check("deleted_is_destroyed", "time_deleted IS NULL OR disk_state = 'destroyed'"),
    index("disk_name_unique", "project_id", "name", unique=True, where=NOT_DELETED),
    index("disk_by_project", "project_id", "id", where=NOT_DELETED),
    index(
        "disk_attached_unique",
        "attach_instance_id",
        "id",
        unique=True,
        where=_ATTACHED,
    ),
    index(
        "disk_slot_unique",
        "attach_instance_id",
        "slot",
        unique=True,
        where=_ATTACHED,
    ),
    index(
        "disk_deleted",
        "time_deleted",
        "id",
        where="time_deleted IS NOT NULL",
    ),
    state="disk_state",
)

disk_type_crucible = table(
    "disk_type_crucible",
    "What only a disk in Crucible has.",
    identifier("disk_id", "The disk.", key=True),
    identifier("volume_id", "Its volume; no two disks share one."),
    identifier("origin_snapshot", "The snapshot that it was made from.", nullable=True),
    identifier("origin_image", "The image that it was made from.", nullable=True),
    address("pantry_address", "The pantry that it stays attached to between sagas (bulk import).", nullable=True),
    flag("read_only", "Made of a snapshot's or image's own regions, which nobody writes to."),
    check("one_origin", "origin_snapshot IS NULL OR origin_image IS NULL"),
    index("disk_type_crucible_volume_unique", "volume_id", unique=True),
    index(
        "disk_type_crucible_by_snapshot",
        "origin_snapshot",
        where="origin_snapshot IS NOT NULL",
    ),
    index(
        "disk_type_crucible_by_image",
        "origin_image",
        where="origin_image IS NOT NULL",
    ),
)

snapshot = table(
    "snapshot",
    "What a disk held at one moment. The row is never taken away: replacement looks at deleted ones too.",
    identifier("id", "Names the snapshot.", key=True),
    identifier("project_id", "Whose it is."),
    *_described(),
    *timestamps(deleted="When it was deleted."),
    identifier("disk_id", "The disk that it was taken of, which may be gone."),
    identifier("volume_id", "The snapshot volume: read-only."),
    identifier("destination_volume_id", "Read/write and blank: where a scrubber would copy it to."),
    number("gen", "Grows with each change of state.", least=1, default=1),
    enumeration("state", SnapshotState, "How far it is."),
    block_size(),
    number("size_bytes", "Its size.", least=1),
    check("deleted_is_destroyed", "time_deleted IS NULL OR state = 'destroyed'"),
    index(
        "snapshot_name_unique",
        "project_id",
        "name",
        unique=True,
        where=NOT_DELETED,
    ),
    index("snapshot_by_project", "project_id", "id", where=NOT_DELETED),
    index("snapshot_by_volume", "volume_id"),
    index("snapshot_by_destination_volume", "destination_volume_id"),
    index("snapshot_by_disk", "disk_id"),
    state="state",
)

snapshot_ledger = table(
    "snapshot_ledger",
    "What the bytes of a snapshot were when it was taken, to compare every copy with.",
    identifier("snapshot_id", "The snapshot.", key=True),
    moment("time_created", "When its bytes were read."),
    number("extent_size_bytes", "How many bytes each digest is of; the last may be of fewer.", least=1),
    text("extent_digests", "JSON list of BLAKE3 digests in hexadecimal, extent after extent."),
)

_SILO_IMAGE = "project_id IS NULL AND time_deleted IS NULL"
_PROJECT_IMAGE = "project_id IS NOT NULL AND time_deleted IS NULL"

image = table(
    "image",
    "What disks are made from: a read-only copy of a snapshot's volume.",
    identifier("id", "Names the image.", key=True),
    identifier("silo_id", "Whose it is."),
    identifier("project_id", "Whose it is; NULL: every project's of the silo.", nullable=True),
    *_described(),
    *timestamps(deleted="When it was deleted."),
    identifier("volume_id", "Its volume: read-only."),
    text("url", "Where it came from, if it was loaded.", nullable=True),
    text("os", "Which operating system."),
    text("version", "Which version of that."),
    text("digest", "Of its bytes, if known: JSON.", nullable=True),
    block_size(),
    number("size_bytes", "Its size.", least=1),
    index("image_silo_name_unique", "silo_id", "name", unique=True, where=_SILO_IMAGE),
    index(
        "image_project_name_unique",
        "silo_id",
        "project_id",
        "name",
        unique=True,
        where=_PROJECT_IMAGE,
    ),
    index("image_by_project", "project_id", "id", where=NOT_DELETED),
    index("image_by_volume", "volume_id"),
)

_EXPORTED = "state <> 'deleted'"

user_data_export = table(
    "user_data_export",
    "A read-only copy of a snapshot or image that is attached to a pantry for its owner to download.",
    identifier("id", "Names the export.", key=True),
    enumeration("state", ExportState, "How far it is."),
    identifier("operating_saga_id", "The saga that moves it (§1.6).", nullable=True),
    number("generation", "Grows with each change of state.", least=1, default=1),
    identifier("resource_id", "What is exported."),
    enumeration("resource_type", ExportedType, "What that is."),
    flag("resource_deleted", "What is exported was deleted meanwhile."),
    ip("pantry_ip", "Where it is attached.", nullable=True),
    port("pantry_port", "Where it is attached.", nullable=True),
    identifier("volume_id", "The copy's volume, and its name at the pantry.", nullable=True),
    check(
        "live_is_somewhere",
        "state <> 'live' OR (pantry_ip IS NOT NULL AND pantry_port IS NOT NULL AND volume_id IS NOT NULL)",
    ),
    index(
        "user_data_export_resource_unique",
        "resource_id",
        unique=True,
        where=_EXPORTED,
    ),
    index("user_data_export_by_type", "resource_type"),
    index("user_data_export_by_volume", "volume_id"),
    index("user_data_export_by_state", "state"),
    state="state",
)

virtual_provisioning_resource = table(
    "virtual_provisioning_resource",
    "What a disk or snapshot is charged for.",
    identifier("id", "The disk or snapshot.", key=True),
    moment("time_modified", "When it was charged."),
    enumeration("resource_type", ProvisionedType, "What it is."),
    identifier("project_id", "Who is charged."),
    number("virtual_disk_bytes_provisioned", "Its full size, read-only or not."),
    index("virtual_provisioning_resource_by_project", "project_id"),
)

virtual_provisioning_collection = table(
    "virtual_provisioning_collection",
    "What a project, a silo or the whole fleet is charged for: the sum of its resources.",
    identifier("id", "The project, silo or fleet.", key=True),
    moment("time_modified", "When it last changed."),
    enumeration("collection_type", CollectionType, "What it is."),
    number("virtual_disk_bytes_provisioned", "The sum."),
)
