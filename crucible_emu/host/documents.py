"""What travels over the host's API, as ``propolis-server-5.0.0.json`` names it, and a few documents of ours.

What it is for: the host reads and writes these, and so do its clients. The spec of an instance has a module of its own,
:mod:`~crucible_emu.host.components`.

What it guarantees: members and enumerations are those of the OpenAPI document; unknown members are ignored, but for
those inside components. What is absent from a spec is left out of it again (:func:`written`), because not all of those
members may be ``null``. Ours are :class:`HostedInstance`, :class:`HostedDisk` and
:class:`LostInstance`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, RootModel

from crucible_emu.host.components import (
    U32,
    U64,
    CrucibleStorageBackend,
    InstanceSpec,
    MigrationFailureInjector,
    SpecKey,
    VirtioNetworkBackend,
)
from crucible_emu.host.states import InstanceState
from crucible_emu.volume.info import VolumeInfo

MigrationState = Literal[
    "Sync", "RamPush", "Pause", "RamPushDirty", "Device", "Resume", "RamPull", "Server", "Finish", "Error"
]
InstanceStateRequested = Literal["Run", "Stop", "Reboot"]


class StateRequest(RootModel[InstanceStateRequested]):
    """What ``PUT .../state`` takes: one word."""


class _Document(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


# -- an instance comes to be ------------------------------------------------------------------------------------------


class InstanceMetadata(_Document):
    """Whose statistics these are."""

    project_id: UUID
    silo_id: UUID
    sled_id: UUID
    sled_model: str
    sled_revision: U32
    sled_serial: str


class InstanceProperties(_Document):
    id: UUID
    name: str
    description: str
    metadata: InstanceMetadata


class SpecValue(_Document):
    spec: InstanceSpec


class SpecInit(_Document):
    """A new instance, which waits for ``Run``."""

    method: Literal["Spec"] = "Spec"
    value: SpecValue


class CrucibleReplacement(_Strict):
    component: Literal["CrucibleStorageBackend"]
    spec: CrucibleStorageBackend


class NetworkReplacement(_Strict):
    component: Literal["VirtioNetworkBackend"]
    spec: VirtioNetworkBackend


class InjectorReplacement(_Strict):
    component: Literal["MigrationFailureInjector"]
    spec: MigrationFailureInjector


ReplacementComponent = Annotated[
    CrucibleReplacement | NetworkReplacement | InjectorReplacement, Field(discriminator="component")
]


class MigrationValue(_Document):
    """``src_addr``: ``ip:port`` of the host that has the instance."""

    migration_id: UUID
    src_addr: str
    replace_components: dict[SpecKey, ReplacementComponent]


class MigrationInit(_Document):
    """The instance of another host, which goes on here."""

    method: Literal["MigrationTarget"] = "MigrationTarget"
    value: MigrationValue


class InstanceEnsureRequest(_Document):
    properties: InstanceProperties
    init: Annotated[SpecInit | MigrationInit, Field(discriminator="method")]


class InstanceMigrateInitiateResponse(_Document):
    migration_id: UUID


class InstanceEnsureResponse(_Document):
    migrate: InstanceMigrateInitiateResponse | None = None


# -- how it is doing --------------------------------------------------------------------------------------------------


class Instance(_Document):
    properties: InstanceProperties
    state: InstanceState


class InstanceGetResponse(_Document):
    instance: Instance


class SpecPresent(_Document):
    type: Literal["Present"] = "Present"
    value: InstanceSpec


class SpecAwaited(_Document):
    """The instance is migrating in, and its spec has not come from the source yet."""

    type: Literal["WaitingForMigrationSource"] = "WaitingForMigrationSource"


class InstanceSpecGetResponse(_Document):
    properties: InstanceProperties
    spec: Annotated[SpecPresent | SpecAwaited, Field(discriminator="type")]
    state: InstanceState


class InstanceStateMonitorRequest(_Document):
    gen: U64


class InstanceMigrationStatus(_Document):
    id: UUID
    state: MigrationState


class InstanceMigrateStatusResponse(_Document):
    migration_in: InstanceMigrationStatus | None = None
    migration_out: InstanceMigrationStatus | None = None


class InstanceStateMonitorResponse(_Document):
    gen: int
    state: InstanceState
    migration: InstanceMigrateStatusResponse


# -- disks ------------------------------------------------------------------------------------------------------------


class InstanceVCRReplace(_Document):
    vcr_json: Annotated[str, Field(repr=False)]


class VolumeStatus(_Document):
    """The answer since version 5."""

    volume_info: VolumeInfo


class VolumeActive(_Document):
    """The answer before version 5."""

    active: bool


# -- ours -------------------------------------------------------------------------------------------------------------


class HostedDisk(_Document):
    """A disk of an instance. ``uri``: where a guest finds it, while there is a door. ``problem``: why it serves nothing
    although it should, for one because another Upstairs took over."""

    id: str
    volume_id: UUID
    size_bytes: int
    block_size: int
    read_only: bool
    active: bool
    uri: str | None
    problem: str | None


class HostedInstance(_Document):
    """An instance of this host. ``key``: what its routes name it by, ``None`` for that of ``/instance``.
    ``problem``: why it has failed."""

    key: UUID | None
    id: UUID
    name: str
    state: InstanceState
    problem: str | None
    disks: tuple[HostedDisk, ...]


class LostInstance(_Document):
    """An instance that ran when this host's last process ended without grace."""

    key: UUID | None
    id: UUID
    name: str
    disks: tuple[str, ...]


class HostedInstances(_Document):
    instances: tuple[HostedInstance, ...]
    lost: tuple[LostInstance, ...]


def written(document: BaseModel) -> dict[str, Any]:
    """``document`` as JSON members, without those that are ``None``."""
    return document.model_dump(mode="json", exclude_none=True)
