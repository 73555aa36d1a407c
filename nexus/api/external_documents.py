"""The documents of the external API, by the names and members of ``nexus-external-2026081901.0.0.json``.

What it is for: users and the command read and write these; see apis-and-tools.md §5.1. Instances have a module of
their own, :mod:`~nexus.api.instance_documents`.

What it guarantees: no document has a member for what is secret. Nothing of a volume is shown but its size.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from pydantic import Field

from nexus.api.members import BlockSize, ByteCount, Document, Identity, Name, NameOrId, Page, Uint64, Words


class Ping(Document):
    """Nexus answers."""

    status: Literal["ok"]


# -- projects ---------------------------------------------------------------------------------------------------------


class ProjectCreate(Document):
    """A project to be made."""

    name: Name
    description: Words


class Project(Identity):
    """A tenant."""


class ProjectResultsPage(Page[Project]):
    """Some projects."""


# -- disks ------------------------------------------------------------------------------------------------------------


class BlankSource(Document):
    """A disk of zeros."""

    type: Literal["blank"]
    block_size: BlockSize


class SnapshotSource(Document):
    """A disk that begins as a snapshot; with ``read_only`` it stays that."""

    type: Literal["snapshot"]
    snapshot_id: UUID
    read_only: bool = False


class ImageSource(Document):
    """A disk that begins as an image; with ``read_only`` it stays that."""

    type: Literal["image"]
    image_id: UUID
    read_only: bool = False


class ImportingBlocksSource(Document):
    """A disk that is filled by bulk writes before anybody uses it."""

    type: Literal["importing_blocks"]
    block_size: BlockSize


DiskSource = Annotated[BlankSource | SnapshotSource | ImageSource | ImportingBlocksSource, Field(discriminator="type")]


class LocalBackend(Document):
    """Storage of the sled itself, which this rack does not have."""

    type: Literal["local"]


class DistributedBackend(Document):
    """Storage in Crucible."""

    type: Literal["distributed"]
    disk_source: DiskSource


DiskBackend = Annotated[LocalBackend | DistributedBackend, Field(discriminator="type")]


class DiskCreate(Document):
    """A disk to be made. ``size`` in bytes."""

    name: Name
    description: Words
    size: ByteCount
    disk_backend: DiskBackend


class StateAtRest(Document):
    """How far a disk is that no instance has."""

    state: Literal[
        "creating",
        "detached",
        "import_ready",
        "importing_from_url",
        "importing_from_bulk_writes",
        "finalizing",
        "maintenance",
        "destroyed",
        "faulted",
    ]


class StateWithInstance(Document):
    """How far a disk is that an instance has."""

    state: Literal["attaching", "attached", "detaching"]
    instance: UUID


DiskState = StateAtRest | StateWithInstance


class Disk(Identity):
    """A disk. ``snapshot_id`` and ``image_id``: what it was made from."""

    project_id: UUID
    snapshot_id: UUID | None = None
    image_id: UUID | None = None
    size: ByteCount
    block_size: BlockSize
    state: DiskState
    device_path: str
    disk_type: Literal["distributed", "local"]
    read_only: bool


class DiskResultsPage(Page[Disk]):
    """Some disks."""


class DiskPath(Document):
    """Which disk."""

    disk: NameOrId


class ImportBlocksBulkWrite(Document):
    """At most 512 KiB, once decoded; ``offset`` in bytes."""

    offset: Uint64
    base64_encoded_data: str


class FinalizeDisk(Document):
    """``snapshot_name``: what was imported is kept as a snapshot of this name, too."""

    snapshot_name: Name | None = None


# -- snapshots --------------------------------------------------------------------------------------------------------


class SnapshotCreate(Document):
    """A snapshot to be taken of ``disk``."""

    name: Name
    description: Words
    disk: NameOrId


class Snapshot(Identity):
    """What a disk held at one moment."""

    project_id: UUID
    disk_id: UUID
    size: ByteCount
    state: Literal["creating", "ready", "faulted", "destroyed"]


class SnapshotResultsPage(Page[Snapshot]):
    """Some snapshots."""


# -- images -----------------------------------------------------------------------------------------------------------


class SnapshotOfImage(Document):
    """What an image is made from."""

    type: Literal["snapshot"]
    id: UUID


class ImageCreate(Document):
    """An image to be made."""

    name: Name
    description: Words
    os: Words
    version: Words
    source: SnapshotOfImage


class Digest(Document):
    """Of an image's bytes."""

    type: Literal["sha256"]
    value: str


class Image(Identity):
    """An image of a project, or without ``project_id`` of the whole silo."""

    project_id: UUID | None = None
    size: ByteCount
    block_size: BlockSize
    os: str
    version: str
    digest: Digest | None = None


class ImageResultsPage(Page[Image]):
    """Some images."""


# -- hardware ---------------------------------------------------------------------------------------------------------


class Baseboard(Document):
    """What is written on a sled."""

    serial: str
    part: str
    revision: int


class SledInService(Document):
    """A sled that is used. Not ``provisionable``: it gets nothing new."""

    kind: Literal["in_service"] = "in_service"
    provision_policy: Literal["provisionable", "non_provisionable"]


class Expunged(Document):
    """Lost for good."""

    kind: Literal["expunged"] = "expunged"


SledPolicy = Annotated[SledInService | Expunged, Field(discriminator="kind")]


class Sled(Document):
    """A sled. Nothing is known here of its threads and memory: 0."""

    id: UUID
    time_created: datetime
    time_modified: datetime
    baseboard: Baseboard
    policy: SledPolicy
    rack_id: UUID
    slot: int | None = None
    state: Literal["active", "decommissioned"]
    usable_hardware_threads: int
    usable_physical_ram: ByteCount


class SledResultsPage(Page[Sled]):
    """Some sleds."""


class InService(Document):
    """In use."""

    kind: Literal["in_service"] = "in_service"


PhysicalDiskPolicy = Annotated[InService | Expunged, Field(discriminator="kind")]


class PhysicalDisk(Document):
    """A disk in a sled."""

    id: UUID
    time_created: datetime
    time_modified: datetime
    form_factor: Literal["m2", "u2"]
    vendor: str
    serial: str
    model: str
    policy: PhysicalDiskPolicy
    sled_id: UUID | None = None
    state: Literal["active", "decommissioned"]


class PhysicalDiskResultsPage(Page[PhysicalDisk]):
    """Some physical disks."""


class SledProvisionPolicyParams(Document):
    """Whether a sled gets anything new."""

    state: Literal["provisionable", "non_provisionable"]


class SledProvisionPolicyResponse(Document):
    """What was, and what is."""

    old_state: Literal["provisionable", "non_provisionable"]
    new_state: Literal["provisionable", "non_provisionable"]
