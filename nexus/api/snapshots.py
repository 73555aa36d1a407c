"""``/v1/snapshots``: what disks held at one moment.

A snapshot of a disk that a guest uses is taken by the guest's Upstairs, of any other by one at a pantry. Which it is is
looked up before the saga; where it changes meanwhile, the saga says so and nothing was done.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, select

from crucible_emu.service import Call, Operation
from nexus.api import access, views
from nexus.api import external_documents as documents
from nexus.api.access import Asked
from nexus.api.queries import by_attribute, name_or_id, page_of, slice_of
from nexus.api.refusals import answering
from nexus.db import schema
from nexus.objects import lookups
from nexus.objects.disks import require_disk
from nexus.objects.instances import active_vmm_of_disk
from nexus.objects.refusals import already_exists, invalid_request
from nexus.running import Nexus
from nexus.saga import Saga
from nexus.sagas import snapshot_create, snapshot_delete

_SNAPSHOT = schema.snapshot


class Snapshots:
    """What the operations do with ``nexus``."""

    def __init__(self, nexus: Nexus) -> None:
        self._nexus = nexus
        self._world = nexus.world

    async def listed(self, call: Call) -> object:
        wanted, asked = slice_of(call), Asked.of(call)

        def body(connection: Connection) -> Sequence[Any]:
            inside = lookups.in_project(_SNAPSHOT, access.project(connection, asked))
            return lookups.page(connection, select(_SNAPSHOT).where(inside), _SNAPSHOT, wanted)

        rows = await self._world.database.read(body)
        items = tuple(map(views.snapshot, rows))
        return documents.SnapshotResultsPage(items=items, next_page=page_of(rows, wanted, by_attribute))

    async def view(self, call: Call) -> object:
        snapshot_id = await self._found(call)
        return views.snapshot(await self._world.database.read(lambda c: _row(c, snapshot_id)))

    async def create(self, call: Call) -> object:
        asked, wish, world = Asked.of(call), call.body, self._world

        def check(connection: Connection) -> tuple[str, str, Saga]:
            project_id = access.project(connection, asked)
            disk_id = access.found(connection, Asked(asked.bearer, project_id, False), schema.disk, wish.disk)
            if require_disk(connection, disk_id).read_only:
                raise invalid_request("a read-only disk has nothing in it that its source has not: no snapshot")
            # *Optimisation*: the row that the saga makes finds out for certain.
            inside = lookups.in_project(_SNAPSHOT, project_id)
            if lookups.id_by_name(connection, _SNAPSHOT, wish.name, inside) is not None:
                raise already_exists("snapshot", wish.name)
            return project_id, disk_id, _recipe(connection, disk_id)

        project_id, disk_id, saga = await world.database.read(check)
        params = snapshot_create.Params(
            snapshot_id=world.new_id(),
            volume_id=world.new_id(),
            destination_volume_id=world.new_id(),
            lock_id=world.new_id(),
            project_id=project_id,
            disk_id=disk_id,
            name=wish.name,
            description=wish.description,
        )
        await self._nexus.executor.run(saga, params)
        return views.snapshot(await world.database.read(lambda c: _row(c, params.snapshot_id)))

    async def delete(self, call: Call) -> object:
        params = snapshot_delete.Params(snapshot_id=await self._found(call))
        await self._nexus.executor.run(snapshot_delete.SNAPSHOT_DELETE, params)
        return None

    async def _found(self, call: Call) -> str:
        asked, wanted = Asked.of(call), name_or_id(call.path["snapshot"], "snapshot")
        return await self._world.database.read(lambda c: access.found(c, asked, _SNAPSHOT, wanted))


def _recipe(connection: Connection, disk_id: str) -> Saga:
    if active_vmm_of_disk(connection, disk_id) is None:
        return snapshot_create.SNAPSHOT_CREATE_DETACHED
    return snapshot_create.SNAPSHOT_CREATE_ATTACHED


def _row(connection: Connection, snapshot_id: str) -> Any:
    """The row, which may have been deleted a moment ago: its deleter was told so, who made it is told what it made."""
    return connection.execute(select(_SNAPSHOT).where(_SNAPSHOT.c.id == snapshot_id)).one()


def operations(nexus: Nexus) -> tuple[Operation, ...]:
    """The rows of the API."""
    do, one = Snapshots(nexus), "/v1/snapshots/{snapshot}"
    return (
        Operation("snapshot_list", "GET", "/v1/snapshots", answering(do.listed)),
        Operation("snapshot_create", "POST", "/v1/snapshots", answering(do.create), documents.SnapshotCreate, 201),
        Operation("snapshot_view", "GET", one, answering(do.view)),
        Operation("snapshot_delete", "DELETE", one, answering(do.delete), success=204),
    )
