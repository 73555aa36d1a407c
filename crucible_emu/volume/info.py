"""What a disk is made of and how its parts are doing, as the real programs write it (upstairs-volume.md §12.4).

What it is for: the answer to ``query_volume_info``: a tree of volumes with region sets as leaves. The models are
externally tagged (``{"volume": {...}}``, ``{"upstairs": {...}}``), snake_case, and read back what they wrote.
"""

from __future__ import annotations

from typing import Annotated, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

ConnectingState = Literal["wait_connect", "negotiating", "wait_quorum", "reconcile", "live_repair_ready"]
ConnectionMode = Literal["new", "offline", "faulted", "replaced"]
UpstairsPhase = Literal["initializing", "go_active", "active", "deactivating", "disabled"]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Connecting(_Model):
    """On its way into service."""

    type: Literal["connecting"] = "connecting"
    state: ConnectingState
    mode: ConnectionMode


class Settled(_Model):
    """In service, or on its way out."""

    type: Literal["active", "live_repair", "stopping"]


class TargetInfo(_Model):
    """One Downstairs of a region set; ``null`` is what is not known (yet)."""

    region_id: UUID | None
    target_addr: str | None
    repair_addr: str | None
    state: Annotated[Connecting | Settled, Field(discriminator="type")]


class UpstairsInfo(_Model):
    """One region set."""

    state: UpstairsPhase
    block_size: int | None
    upstairs_id: UUID
    session_id: UUID
    generation: int
    read_only: bool
    encrypted: bool
    reconcile_in_progress: bool
    live_repair_in_progress: bool
    targets: tuple[TargetInfo, ...]


class UpstairsNode(_Model):
    """A region set, under its tag."""

    upstairs: UpstairsInfo


class VolumeParts(_Model):
    """What a volume is made of."""

    sub_volumes: tuple[VolumeInfo, ...]
    read_only_parent: VolumeInfo | None


class VolumeNode(_Model):
    """A volume, under its tag."""

    volume: VolumeParts


VolumeInfo = VolumeNode | UpstairsNode
VolumeParts.model_rebuild()
VolumeNode.model_rebuild()
