"""The documents of our own API, ``/emulator/v1``: what the real Nexus has no route for (apis-and-tools.md §5.6).

What it is for: the real rack's operator looks into the database (omdb); here the command asks Nexus. Served beside the
lockstep API, to who has the operator's token.

What it guarantees: no document has a key in it, but for :class:`TokenCreated`, which is the only time that a token is
told. A region set of a :class:`VolumeTree` says whether it is encrypted, and nothing more of how.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import Field

from nexus.api.members import ByteCount, Document, Identity, Moment, Name, Page, Words

BASE = "/emulator/v1"

Port = Annotated[int, Field(ge=1, le=0xFFFF)]
Label = Annotated[str, Field(min_length=1, max_length=128)]


# -- GET check --------------------------------------------------------------------------------------------------------


class CheckFinding(Document):
    """Something that is not as it must be. ``rule`` is a word for machines, such as ``I1``; ``sentence`` names the
    ids."""

    rule: str
    sentence: str
    ids: tuple[str, ...]


class CheckReport(Document):
    """What ``nexus check`` found; nothing, where all is well."""

    findings: tuple[CheckFinding, ...]


# -- GET volumes/{volume_id} ------------------------------------------------------------------------------------------


class TargetState(Document):
    """One member of a region set. ``kind``: what listens at ``address``; ``unknown`` where no row says so.

    ``read_write_region`` has ``region_id``; ``read_only_region`` too; ``region_snapshot`` has ``snapshot_id`` as well.
    ``disk_policy``: of the physical disk that it is on, ``expunged`` where its copy is lost. ``agent_state``: what the
    agent says of it, ``None`` where it was not asked or does not answer.
    """

    address: str
    kind: Literal["read_write_region", "read_only_region", "region_snapshot", "unknown"]
    region_id: UUID | None = None
    snapshot_id: UUID | None = None
    dataset_id: UUID | None = None
    physical_disk_id: UUID | None = None
    sled_id: UUID | None = None
    disk_policy: Literal["in_service", "expunged"] | None = None
    agent_state: str | None = None


class RegionNode(Document):
    """A region set. ``size_bytes``: of the whole set."""

    type: Literal["region"] = "region"
    upstairs_id: UUID
    block_size: int
    blocks_per_extent: int
    extent_count: int
    size_bytes: int
    generation: int
    read_only: bool
    encrypted: bool
    targets: tuple[TargetState, ...]


class SourceNode(Document):
    """A part that is read from a URL or file. Where that is is not told: a URL may hold a password."""

    type: Literal["url", "file"]
    id: UUID
    block_size: int


class VolumeNode(Document):
    """A volume, or one in another."""

    type: Literal["volume"] = "volume"
    id: UUID
    block_size: int
    sub_volumes: tuple[TreeNode, ...]
    read_only_parent: TreeNode | None = None


TreeNode = Annotated[VolumeNode | RegionNode | SourceNode, Field(discriminator="type")]


class VolumeOwner(Document):
    """What a volume belongs to. ``name``: ``None`` for what users do not name."""

    kind: Literal["disk", "snapshot", "snapshot_destination", "image"]
    id: UUID
    name: str | None = None


class VolumeTree(Document):
    """A volume as the database has it. ``time_deleted``: it is soft-deleted, and soon destroyed."""

    id: UUID
    time_created: datetime
    time_deleted: datetime | None = None
    owner: VolumeOwner | None = None
    tree: TreeNode


VolumeNode.model_rebuild()


# -- volumes/{volume_id}/lock-holder, volumes/{volume_id}/verify ------------------------------------------------------


class LockHolder(Document):
    """Who holds the lock of a volume: the id of a request, a step, or a saga that makes a snapshot."""

    holder_id: UUID
    time_taken: datetime
    saga_id: str | None = None


class LockReport(Document):
    """``holder``: ``None`` where the lock is free."""

    volume_id: UUID
    holder: LockHolder | None


class VerifyReport(Document):
    """What a reading of the whole volume found. ``findings``: what is not as it must be, a sentence each.

    ``not_looked_at``: what nobody could say anything about, and why. ``ledgers``: the snapshots whose digests of the
    day they were taken were compared with. ``digest``: BLAKE3 of all that was read, where that was the whole volume.
    """

    volume_id: UUID
    findings: tuple[str, ...]
    not_looked_at: tuple[str, ...]
    copies_compared: int
    ledgers: tuple[UUID, ...]
    bytes_read: ByteCount
    digest: str | None = None


# -- sleds, physical-disks --------------------------------------------------------------------------------------------


class SledEntry(Document):
    """One sled. ``host``: the address of its host, ``pantry``: of the pantry on it, if there is one."""

    id: UUID
    serial: str
    policy: Literal["in_service", "no_provision", "expunged"]
    state: Literal["active", "decommissioned"]
    host: str
    pantry: str | None = None
    physical_disks: int
    datasets: int


class SledPage(Page[SledEntry]):
    """Sleds by id."""


class AgentOnSled(Document):
    """One agent of a sled that is added, and the disk under it. ``ip`` is IPv6."""

    ip: str
    port: Port
    size_bytes: Annotated[int, Field(gt=0, lt=2**63)]
    serial: Label
    vendor: Label = "emulated"
    model: Label = "file"


class AddressOnSled(Document):
    """Where something listens. ``ip`` is IPv6."""

    ip: str
    port: Port


class SledAdd(Document):
    """A sled, with what runs on it. Asking for one that is there already, by its serial, adds what is new on it."""

    serial: Label
    part: Label = "emulated"
    host: AddressOnSled
    pantry: AddressOnSled | None = None
    agents: tuple[AgentOnSled, ...] = ()


class PhysicalDiskEntry(Document):
    """One physical disk, and the dataset on it. ``size_used``: bytes that are reserved for regions."""

    id: UUID
    sled_id: UUID
    serial: str
    policy: Literal["in_service", "expunged"]
    state: Literal["active", "decommissioned"]
    dataset_id: UUID | None = None
    agent: str | None = None
    size_bytes: ByteCount | None = None
    size_used: ByteCount | None = None


class PhysicalDiskPage(Page[PhysicalDiskEntry]):
    """Physical disks by id."""


# -- sagas ------------------------------------------------------------------------------------------------------------


class SagaEntry(Document):
    """One saga. ``failure``: why it unwinds or unwound; ``stuck_at``: the node whose undo failed."""

    id: str
    name: str
    state: Literal["running", "unwinding", "done", "unwound", "stuck"]
    nexus_id: str
    time_created: datetime
    time_modified: datetime


class SagaPage(Page[SagaEntry]):
    """Sagas by id."""


class SagaStep(Document):
    """One event of a saga's log: what happened to the node ``label``. ``data``: output or failure, never a secret."""

    number: int
    label: str
    kind: Literal["started", "succeeded", "failed", "undo_started", "undo_finished", "undo_failed"]
    time: datetime
    data: Any = None


class SagaDetail(SagaEntry):
    """A saga with its parameters and its log."""

    params: Any
    events: tuple[SagaStep, ...]


# -- silos, projects, tokens ------------------------------------------------------------------------------------------


class Silo(Identity):
    """Projects that share images."""


class SiloPage(Page[Silo]):
    """Silos by id."""


class SiloCreate(Document):
    """A silo to be made."""

    name: Name
    description: Words = ""


class ProjectEntry(Identity):
    """A project, and whose it is."""

    silo_id: UUID


class ProjectPage(Page[ProjectEntry]):
    """Projects of all silos, by id."""


class ProjectAdd(Document):
    """A project to be made. ``silo_id``: may be left out where there is one silo."""

    name: Name
    description: Words = ""
    silo_id: UUID | None = None


class TokenEntry(Document):
    """A token, without itself."""

    id: UUID
    role: Literal["tenant", "operator"]
    project_id: UUID | None = None
    time_created: datetime
    time_expires: datetime | None = None
    time_revoked: datetime | None = None


class TokenPage(Page[TokenEntry]):
    """Tokens by id, those that were taken back too."""


class TokenCreate(Document):
    """A token to be given out. A tenant's opens ``project_id``, an operator's names none."""

    role: Literal["tenant", "operator"]
    project_id: UUID | None = None
    time_expires: Moment | None = None


class TokenCreated(TokenEntry):
    """The token itself, told this once: it is stored nowhere."""

    token: str = Field(repr=False)
