"""A host over HTTP: the disks of instances (apis-and-tools.md §6.1).

What it is for: one method for each operation that a host serves of ``propolis-server-5.0.0.json``. The real program
has one instance, at ``/instance``; this project's hosts have any number, each at an address of its own:
:meth:`HostClient.instance` is a client for one of those, with the same methods.
"""

from __future__ import annotations

from typing import Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, TypeAdapter

from crucible_emu.client.service import ServiceClient, segment
from crucible_emu.host.documents import (
    HostedDisk,
    HostedInstances,
    InstanceEnsureRequest,
    InstanceEnsureResponse,
    InstanceGetResponse,
    InstanceMigrateStatusResponse,
    InstanceSpecGetResponse,
    InstanceStateMonitorRequest,
    InstanceStateMonitorResponse,
    InstanceVCRReplace,
    StateRequest,
    VolumeStatus,
    written,
)
from crucible_emu.upstairs.replacement import ReplaceResult
from crucible_emu.volume.vcr import VolumeConstructionRequest, dumps

ONE = "/instance"
MANY = "/hosts/0/instances"


class HostedDisks(BaseModel):
    """The disks of one instance."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    disks: tuple[HostedDisk, ...]


_ENSURED = TypeAdapter(InstanceEnsureResponse)
_INSTANCE = TypeAdapter(InstanceGetResponse)
_SPEC = TypeAdapter(InstanceSpecGetResponse)
_SEEN = TypeAdapter(InstanceStateMonitorResponse)
_MIGRATION = TypeAdapter(InstanceMigrateStatusResponse)
_VOLUME = TypeAdapter(VolumeStatus)
_REPLACED: TypeAdapter[ReplaceResult] = TypeAdapter(ReplaceResult)
_NULL: TypeAdapter[None] = TypeAdapter(None)
_DISKS = TypeAdapter(HostedDisks)
_INSTANCES = TypeAdapter(HostedInstances)


class HostClient(ServiceClient):
    """The instance at ``/instance``; what each method raises is in :mod:`crucible_emu.client.service`."""

    VERSION = "5.0.0"
    _base = ONE

    def instance(self, instance_id: UUID | str) -> HostClient:
        """The same for the instance ``instance_id`` of a host that has many; it shares this client's connections, so
        only this one is to be closed."""
        other = HostClient.__new__(HostClient)
        other.url, other._timeout_s, other._http = self.url, self._timeout_s, self._http
        other._base = f"{MANY}/{segment(instance_id)}"
        return other

    async def hosted_instances_list(self) -> HostedInstances:
        """All instances of this project's host, and those that its last process lost."""
        return await self._ask("GET", MANY, _INSTANCES)

    async def instance_ensure(self, request: InstanceEnsureRequest) -> InstanceEnsureResponse:
        return await self._ask("PUT", self._base, _ENSURED, _without_none(request), waits=True)

    async def instance_get(self) -> InstanceGetResponse:
        return await self._ask("GET", self._base, _INSTANCE)

    async def instance_spec_get(self) -> InstanceSpecGetResponse:
        return await self._ask("GET", f"{self._base}/spec", _SPEC)

    async def instance_state_put(self, state: Literal["Run", "Stop", "Reboot"]) -> None:
        await self._tell("PUT", f"{self._base}/state", StateRequest(state))

    async def instance_state_monitor(self, gen: int) -> InstanceStateMonitorResponse:
        """Return when the instance's state is one of generation ``gen`` or later."""
        body = InstanceStateMonitorRequest(gen=gen)
        return await self._ask("GET", f"{self._base}/state-monitor", _SEEN, body, waits=True)

    async def instance_migrate_status(self) -> InstanceMigrateStatusResponse:
        return await self._ask("GET", f"{self._base}/migration-status", _MIGRATION)

    async def instance_issue_crucible_snapshot_request(self, disk_id: str, snapshot_id: UUID | str) -> None:
        """Flush the disk, and have its Downstairs take a snapshot of that name."""
        path = f"{self._base}/disk/{segment(disk_id)}/snapshot/{segment(snapshot_id)}"
        await self._ask("POST", path, _NULL, waits=True)

    async def disk_volume_status(self, disk_id: str) -> VolumeStatus:
        return await self._ask("GET", f"{self._base}/disk/{segment(disk_id)}/status", _VOLUME)

    async def instance_issue_crucible_vcr_request(
        self, disk_id: str, request: VolumeConstructionRequest
    ) -> ReplaceResult:
        """Have the disk made of ``request`` from now on (§6.3)."""
        body = InstanceVCRReplace(vcr_json=dumps(request))
        return await self._ask("PUT", f"{self._base}/disk/{segment(disk_id)}/vcr", _REPLACED, body)

    async def instance_disks_list(self) -> tuple[HostedDisk, ...]:
        """The disks of the instance and where a guest finds them; this project's hosts only."""
        return (await self._ask("GET", f"{self._base}/disks", _DISKS)).disks


class _Members(BaseModel):
    """A document by its members only."""

    model_config = ConfigDict(extra="allow", frozen=True)


def _without_none(document: BaseModel) -> BaseModel:
    """``document`` without members that are ``None``: some may be absent and may not be null."""
    return _Members(**written(document))
