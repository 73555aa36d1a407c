"""``/v1/instances``, as far as disks are concerned: to have them, and to run in a process that uses them.

An instance is made with its disks in several steps, of which each is whole by itself: its row, each disk, each
attachment, its start. Where one fails, what was made before it is taken back. Where this Nexus dies in between, what is
there stays and is seen: a stopped instance with the disks that it has by then.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, select

from crucible_emu.service import Call, Operation, Refusal
from nexus.api import access, views
from nexus.api import external_documents as documents
from nexus.api.access import Asked
from nexus.api.disks import make_disk
from nexus.api.instance_documents import DiskToCreate, Instance, InstanceCreate, InstanceResultsPage
from nexus.api.queries import by_attribute, name_or_id, page_of, slice_of
from nexus.api.refusals import answering, bad_request
from nexus.db import DatabaseError, schema
from nexus.objects import instances, lookups
from nexus.objects.disks import Disk, disk_of_row, disks_selected, require_disk
from nexus.objects.refusals import not_found
from nexus.running import Nexus
from nexus.saga import ActionFailed, SagaFailed
from nexus.sagas import disk_delete, instance_start, instance_stop

_INSTANCE, _VMM, _DISK = schema.instance, schema.vmm, schema.disk
_WITH_VMM = select(
    *_INSTANCE.c, _VMM.c.state.label("vmm_state"), _VMM.c.time_modified.label("time_vmm_modified")
).outerjoin(_VMM, _VMM.c.id == _INSTANCE.c.active_propolis_id)


class Instances:
    """What the operations do with ``nexus``."""

    def __init__(self, nexus: Nexus) -> None:
        self._nexus = nexus
        self._world = nexus.world

    async def listed(self, call: Call) -> object:
        wanted, asked = slice_of(call), Asked.of(call)

        def body(connection: Connection) -> Sequence[Any]:
            inside = lookups.in_project(_INSTANCE, access.project(connection, asked))
            return lookups.page(connection, _WITH_VMM.where(inside), _INSTANCE, wanted)

        rows = await self._world.database.read(body)
        items = tuple(map(views.instance, rows))
        return InstanceResultsPage(items=items, next_page=page_of(rows, wanted, by_attribute))

    async def view(self, call: Call) -> object:
        return await self._view(await self._found(call))

    async def _view(self, instance_id: str) -> Instance:
        query = _WITH_VMM.where(_INSTANCE.c.id == instance_id, _INSTANCE.c.time_deleted.is_(None))
        row = await self._world.database.read(lambda c: c.execute(query).one_or_none())
        if row is None:
            raise not_found("instance", instance_id)
        return views.instance(row)

    async def _found(self, call: Call) -> str:
        asked, wanted = Asked.of(call), name_or_id(call.path["instance"], "instance")
        return await self._world.database.read(lambda c: access.found(c, asked, _INSTANCE, wanted))

    # -- coming and going ---------------------------------------------------------------------------------------------

    async def create(self, call: Call) -> object:
        asked, wish, world = Asked.of(call), call.body, self._world
        attachments = _attachments(wish)
        instance_id = world.new_id()

        def body(connection: Connection) -> str:
            project_id = access.project(connection, asked)
            instances.instance_create(connection, instance_id, project_id, wish.name, wish.description, world.now())
            return project_id

        project_id = await world.database.transact(body)
        made: list[Disk] = []
        try:
            for each in attachments:
                disk_id = await self._disk_for(asked, project_id, each, made)
                await self._attach(instance_id, disk_id)
            if wish.start:
                await self._start(instance_id)
        except (ActionFailed, SagaFailed, Refusal, DatabaseError):
            await self._take_back(instance_id, made)
            raise
        return await self._view(instance_id)

    async def _disk_for(self, asked: Asked, project_id: str, wanted: Any, made: list[Disk]) -> str:
        if isinstance(wanted, DiskToCreate):
            made.append(await make_disk(self._nexus, asked, project_id, wanted))
            return made[-1].id
        inside = Asked(asked.bearer, project_id, faithful=False)
        return await self._world.database.read(lambda c: access.found(c, inside, _DISK, wanted.name))

    async def _take_back(self, instance_id: str, made: Sequence[Disk]) -> None:
        world = self._world
        await world.database.transact(lambda c: instances.instance_delete(c, instance_id, world.now()))
        for disk in made:
            params = disk_delete.Params(disk_id=disk.id, project_id=disk.project_id, volume_id=disk.volume_id)
            await self._nexus.executor.run(disk_delete.DISK_DELETE, params)

    async def delete(self, call: Call) -> object:
        instance_id, world = await self._found(call), self._world
        await world.database.transact(lambda c: instances.instance_delete(c, instance_id, world.now()))
        return None

    async def start(self, call: Call) -> object:
        instance_id = await self._found(call)
        await self._start(instance_id)
        return await self._view(instance_id)

    async def _start(self, instance_id: str) -> None:
        params = instance_start.Params(instance_id=instance_id, vmm_id=self._world.new_id())
        await self._nexus.executor.run(instance_start.INSTANCE_START, params)

    async def stop(self, call: Call) -> object:
        instance_id = await self._found(call)
        params = instance_stop.Params(instance_id=instance_id)
        await self._nexus.executor.run(instance_stop.INSTANCE_STOP, params)
        return await self._view(instance_id)

    # -- disks --------------------------------------------------------------------------------------------------------

    async def disks(self, call: Call) -> object:
        wanted, asked = slice_of(call), Asked.of(call)
        name = name_or_id(call.path["instance"], "instance")

        def body(connection: Connection) -> Sequence[Disk]:
            instance_id = access.found(connection, asked, _INSTANCE, name)
            mine = (_DISK.c.attach_instance_id == instance_id) & _DISK.c.time_deleted.is_(None)
            rows = lookups.page(connection, disks_selected().where(mine), _DISK, wanted)
            return [disk_of_row(row) for row in rows]

        rows = await self._world.database.read(body)
        items = tuple(map(views.disk, rows))
        return documents.DiskResultsPage(items=items, next_page=page_of(rows, wanted, by_attribute))

    async def attach(self, call: Call) -> object:
        instance_id, disk_id = await self._pair(call)
        return views.disk(await self._attach(instance_id, disk_id))

    async def _attach(self, instance_id: str, disk_id: str) -> Disk:
        world = self._world

        def body(connection: Connection) -> Disk:
            instances.disk_attach(connection, instance_id, disk_id, world.now())
            return require_disk(connection, disk_id)

        return await world.database.transact(body)

    async def detach(self, call: Call) -> object:
        instance_id, disk_id = await self._pair(call)
        world = self._world

        def body(connection: Connection) -> Disk:
            instances.disk_detach(connection, instance_id, disk_id, world.now())
            return require_disk(connection, disk_id)

        return views.disk(await world.database.transact(body))

    async def _pair(self, call: Call) -> tuple[str, str]:
        """Instance and disk, of one project."""
        asked, wanted = Asked.of(call), name_or_id(call.path["instance"], "instance")

        def body(connection: Connection) -> tuple[str, str]:
            instance_id = access.found(connection, asked, _INSTANCE, wanted)
            project_id = lookups.column_by_id(connection, _INSTANCE.c.project_id, instance_id)
            inside = Asked(asked.bearer, project_id, faithful=False)
            return instance_id, access.found(connection, inside, _DISK, call.body.disk)

        return await self._world.database.read(body)


def _attachments(wish: InstanceCreate) -> list[Any]:
    found = [*([] if wish.boot_disk is None else [wish.boot_disk]), *wish.disks]
    if len(found) > instances.DISKS_MAX:
        raise bad_request(f"an instance has at most {instances.DISKS_MAX} disks")
    names = [each.name for each in found]
    if len(set(names)) != len(names):
        raise bad_request("a disk is named twice")
    return found


def operations(nexus: Nexus) -> tuple[Operation, ...]:
    """The rows of the API."""
    do, path = Instances(nexus), documents.DiskPath
    one = "/v1/instances/{instance}"
    return (
        Operation("instance_list", "GET", "/v1/instances", answering(do.listed)),
        Operation("instance_create", "POST", "/v1/instances", answering(do.create), InstanceCreate, 201),
        Operation("instance_view", "GET", one, answering(do.view)),
        Operation("instance_delete", "DELETE", one, answering(do.delete), success=204),
        Operation("instance_start", "POST", f"{one}/start", answering(do.start), success=202),
        Operation("instance_stop", "POST", f"{one}/stop", answering(do.stop), success=202),
        Operation("instance_disk_list", "GET", f"{one}/disks", answering(do.disks)),
        Operation("instance_disk_attach", "POST", f"{one}/disks/attach", answering(do.attach), path, 202),
        Operation("instance_disk_detach", "POST", f"{one}/disks/detach", answering(do.detach), path, 202),
    )
