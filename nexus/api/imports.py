"""Filling a disk by bulk writes (apis-and-tools.md §5.1): start, write, stop, finalize.

A write that was answered is durable. Base64 is read strictly: what another reader would take for other bytes is
refused.
"""

from __future__ import annotations

import base64
import binascii

from sqlalchemy import Connection

from crucible_emu.service import Call, Operation
from nexus.api import access
from nexus.api import external_documents as documents
from nexus.api.access import Asked
from nexus.api.members import SIGNED_MAX
from nexus.api.queries import name_or_id
from nexus.api.refusals import answering, bad_request
from nexus.db import schema
from nexus.objects import imports, lookups
from nexus.objects.disks import Disk, require_disk
from nexus.objects.refusals import already_exists
from nexus.running import Nexus
from nexus.sagas import finalize_disk, snapshot_create

_DISK, _SNAPSHOT = schema.disk, schema.snapshot


class Imports:
    """What the operations do with ``nexus``."""

    def __init__(self, nexus: Nexus) -> None:
        self._nexus = nexus
        self._world = nexus.world

    async def start(self, call: Call) -> object:
        await imports.bulk_write_start(self._world, (await self._found(call)).id)
        return None

    async def write(self, call: Call) -> object:
        disk, told = await self._found(call), call.body
        try:
            data = base64.b64decode(told.base64_encoded_data, validate=True)
        except (ValueError, binascii.Error):
            raise bad_request("base64_encoded_data is no base64") from None
        if told.offset > SIGNED_MAX:
            raise bad_request("offset is beyond the end of every disk")
        await imports.bulk_write(self._world, disk.id, told.offset, data)
        return None

    async def stop(self, call: Call) -> object:
        await imports.bulk_write_stop(self._world, (await self._found(call)).id)
        return None

    async def finalize(self, call: Call) -> object:
        disk, name = await self._found(call), call.body.snapshot_name
        if name is None:
            await self._nexus.executor.run(finalize_disk.FINALIZE_DISK, finalize_disk.Params(disk_id=disk.id))
            return None
        await self._world.database.read(lambda c: _refuse_taken_name(c, disk.project_id, name))
        new_id = self._world.new_id
        snapshot = snapshot_create.Params(
            snapshot_id=new_id(),
            volume_id=new_id(),
            destination_volume_id=new_id(),
            lock_id=new_id(),
            project_id=disk.project_id,
            disk_id=disk.id,
            name=name,
            description=f"snapshot of finalized disk {disk.name}",
        )
        params = finalize_disk.ParamsWithSnapshot(disk_id=disk.id, snapshot=snapshot)
        await self._nexus.executor.run(finalize_disk.FINALIZE_DISK_WITH_SNAPSHOT, params)
        return None

    async def _found(self, call: Call) -> Disk:
        asked, wanted = Asked.of(call), name_or_id(call.path["disk"], "disk")
        return await self._world.database.read(lambda c: require_disk(c, access.found(c, asked, _DISK, wanted)))


def _refuse_taken_name(connection: Connection, project_id: str, name: str) -> None:
    """*Optimisation*: the row that the saga makes finds out for certain."""
    if lookups.id_by_name(connection, _SNAPSHOT, name, lookups.in_project(_SNAPSHOT, project_id)) is not None:
        raise already_exists("snapshot", name)


def operations(nexus: Nexus) -> tuple[Operation, ...]:
    """The rows of the API."""
    do, one = Imports(nexus), "/v1/disks/{disk}"
    write, final = documents.ImportBlocksBulkWrite, documents.FinalizeDisk
    return (
        Operation("disk_bulk_write_import_start", "POST", f"{one}/bulk-write-start", answering(do.start), success=204),
        Operation("disk_bulk_write_import", "POST", f"{one}/bulk-write", answering(do.write), write, 204),
        Operation("disk_bulk_write_import_stop", "POST", f"{one}/bulk-write-stop", answering(do.stop), success=204),
        Operation("disk_finalize_import", "POST", f"{one}/finalize", answering(do.finalize), final, 204),
    )
