"""The external API: what users do with projects, disks, snapshots, images and instances (apis-and-tools.md §5.1).

``project`` is the name or id of the project that names are looked for in; ids need none.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator

from pydantic import TypeAdapter

from crucible_emu.client.service import segment
from nexus.api.external_documents import (
    Disk,
    DiskCreate,
    DiskPath,
    DiskResultsPage,
    FinalizeDisk,
    Image,
    ImageCreate,
    ImageResultsPage,
    ImportBlocksBulkWrite,
    Ping,
    Project,
    ProjectCreate,
    ProjectResultsPage,
    Snapshot,
    SnapshotCreate,
    SnapshotResultsPage,
)
from nexus.api.instance_documents import Instance, InstanceCreate, InstanceResultsPage
from nexus.client.asking import NexusClient, asked_for

BULK_WRITE_BYTES_MAX = 512 * 1024

_PING = TypeAdapter(Ping)
_PROJECT, _PROJECTS = TypeAdapter(Project), TypeAdapter(ProjectResultsPage)
_DISK, _DISKS = TypeAdapter(Disk), TypeAdapter(DiskResultsPage)
_SNAPSHOT, _SNAPSHOTS = TypeAdapter(Snapshot), TypeAdapter(SnapshotResultsPage)
_IMAGE, _IMAGES = TypeAdapter(Image), TypeAdapter(ImageResultsPage)
_INSTANCE, _INSTANCES = TypeAdapter(Instance), TypeAdapter(InstanceResultsPage)


class ExternalClient(NexusClient):
    """What users say to a Nexus."""

    VERSION = "2026081901.0.0"

    async def ping(self) -> Ping:
        return await self._ask("GET", "/v1/ping", _PING)

    # --- projects ---

    def project_list(self) -> AsyncIterator[Project]:
        return self._all("/v1/projects", _PROJECTS, Project)

    async def project_create(self, body: ProjectCreate) -> Project:
        return await self._ask("POST", "/v1/projects", _PROJECT, body)

    async def project_view(self, project: str) -> Project:
        return await self._ask("GET", f"/v1/projects/{segment(project)}", _PROJECT)

    async def project_delete(self, project: str) -> None:
        await self._tell("DELETE", f"/v1/projects/{segment(project)}")

    # --- disks ---

    def disk_list(self, project: str | None = None) -> AsyncIterator[Disk]:
        return self._all("/v1/disks", _DISKS, Disk, project=project)

    async def disk_create(self, body: DiskCreate, project: str | None = None) -> Disk:
        """Answered when the disk is there."""
        return await self._ask("POST", asked_for("/v1/disks", project=project), _DISK, body, waits=True)

    async def disk_view(self, disk: str, project: str | None = None) -> Disk:
        return await self._ask("GET", self._disk(disk, "", project), _DISK)

    async def disk_delete(self, disk: str, project: str | None = None) -> None:
        """Answered when it is gone."""
        await self._exchange("DELETE", self._disk(disk, "", project), None, waits=True)

    async def disk_bulk_write_import_start(self, disk: str, project: str | None = None) -> None:
        await self._exchange("POST", self._disk(disk, "/bulk-write-start", project), None, waits=True)

    async def disk_bulk_write_import(
        self, disk: str, offset: int, data: bytes | memoryview, project: str | None = None
    ) -> None:
        """At most :data:`BULK_WRITE_BYTES_MAX` bytes."""
        body = ImportBlocksBulkWrite(offset=offset, base64_encoded_data=base64.b64encode(data).decode())
        await self._exchange("POST", self._disk(disk, "/bulk-write", project), body, waits=True)

    async def disk_bulk_write_import_stop(self, disk: str, project: str | None = None) -> None:
        await self._exchange("POST", self._disk(disk, "/bulk-write-stop", project), None, waits=True)

    async def disk_finalize_import(self, disk: str, body: FinalizeDisk, project: str | None = None) -> None:
        await self._exchange("POST", self._disk(disk, "/finalize", project), body, waits=True)

    def _disk(self, disk: str, more: str, project: str | None) -> str:
        return asked_for(f"/v1/disks/{segment(disk)}{more}", project=project)

    # --- snapshots ---

    def snapshot_list(self, project: str | None = None) -> AsyncIterator[Snapshot]:
        return self._all("/v1/snapshots", _SNAPSHOTS, Snapshot, project=project)

    async def snapshot_create(self, body: SnapshotCreate, project: str | None = None) -> Snapshot:
        """Answered when it is taken."""
        return await self._ask("POST", asked_for("/v1/snapshots", project=project), _SNAPSHOT, body, waits=True)

    async def snapshot_view(self, snapshot: str, project: str | None = None) -> Snapshot:
        return await self._ask("GET", asked_for(f"/v1/snapshots/{segment(snapshot)}", project=project), _SNAPSHOT)

    async def snapshot_delete(self, snapshot: str, project: str | None = None) -> None:
        """Answered when it is gone."""
        path = asked_for(f"/v1/snapshots/{segment(snapshot)}", project=project)
        await self._exchange("DELETE", path, None, waits=True)

    # --- images ---

    def image_list(self, project: str | None = None) -> AsyncIterator[Image]:
        """Those of the project, or without one those of the silo."""
        return self._all("/v1/images", _IMAGES, Image, project=project)

    async def image_create(self, body: ImageCreate, project: str | None = None) -> Image:
        """Answered when it is there."""
        return await self._ask("POST", asked_for("/v1/images", project=project), _IMAGE, body, waits=True)

    async def image_view(self, image: str, project: str | None = None) -> Image:
        return await self._ask("GET", asked_for(f"/v1/images/{segment(image)}", project=project), _IMAGE)

    async def image_delete(self, image: str, project: str | None = None) -> None:
        """Answered when it is gone."""
        await self._exchange("DELETE", asked_for(f"/v1/images/{segment(image)}", project=project), None, waits=True)

    # --- instances ---

    def instance_list(self, project: str | None = None) -> AsyncIterator[Instance]:
        return self._all("/v1/instances", _INSTANCES, Instance, project=project)

    async def instance_create(self, body: InstanceCreate, project: str | None = None) -> Instance:
        return await self._ask("POST", asked_for("/v1/instances", project=project), _INSTANCE, body, waits=True)

    async def instance_view(self, instance: str, project: str | None = None) -> Instance:
        return await self._ask("GET", self._instance(instance, "", project), _INSTANCE)

    async def instance_delete(self, instance: str, project: str | None = None) -> None:
        await self._exchange("DELETE", self._instance(instance, "", project), None, waits=True)

    async def instance_start(self, instance: str, project: str | None = None) -> Instance:
        return await self._ask("POST", self._instance(instance, "/start", project), _INSTANCE, waits=True)

    async def instance_stop(self, instance: str, project: str | None = None) -> Instance:
        return await self._ask("POST", self._instance(instance, "/stop", project), _INSTANCE, waits=True)

    def instance_disk_list(self, instance: str, project: str | None = None) -> AsyncIterator[Disk]:
        return self._all(f"/v1/instances/{segment(instance)}/disks", _DISKS, Disk, project=project)

    async def instance_disk_attach(self, instance: str, disk: str, project: str | None = None) -> Disk:
        body = DiskPath(disk=disk)
        return await self._ask("POST", self._instance(instance, "/disks/attach", project), _DISK, body, waits=True)

    async def instance_disk_detach(self, instance: str, disk: str, project: str | None = None) -> Disk:
        body = DiskPath(disk=disk)
        return await self._ask("POST", self._instance(instance, "/disks/detach", project), _DISK, body, waits=True)

    def _instance(self, instance: str, more: str, project: str | None) -> str:
        return asked_for(f"/v1/instances/{segment(instance)}{more}", project=project)
