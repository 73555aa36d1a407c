"""``/v1/disks``: what a user does with disks (apis-and-tools.md §5.1).

What is made or taken away is a saga, run to its end before the answer; a client that goes away meanwhile changes
nothing about that, and finds the disk in the list. What a disk may be made of is checked before there is a saga, so
that a user's mistake leaves no trace, and in it once more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection

from crucible_emu.service import Call, Operation
from nexus.api import access, views
from nexus.api import external_documents as documents
from nexus.api.access import Asked
from nexus.api.queries import by_attribute, name_or_id, page_of, slice_of
from nexus.api.refusals import answering, bad_request
from nexus.db import schema
from nexus.objects import lookups
from nexus.objects.disks import Disk, disk_of_row, disks_selected, require_disk
from nexus.objects.refusals import already_exists
from nexus.objects.sources import Blank, FromImage, FromSnapshot, Source, disk_check
from nexus.running import Nexus
from nexus.saga import Saga
from nexus.sagas import disk_create, disk_delete

_DISK = schema.disk


class Disks:
    """What the operations do with ``nexus``."""

    def __init__(self, nexus: Nexus) -> None:
        self._nexus = nexus
        self._world = nexus.world

    async def listed(self, call: Call) -> object:
        wanted, asked = slice_of(call), Asked.of(call)

        def body(connection: Connection) -> Sequence[Disk]:
            inside = lookups.in_project(_DISK, access.project(connection, asked))
            return [disk_of_row(row) for row in lookups.page(connection, disks_selected().where(inside), _DISK, wanted)]

        rows = await self._world.database.read(body)
        items = tuple(map(views.disk, rows))
        return documents.DiskResultsPage(items=items, next_page=page_of(rows, wanted, by_attribute))

    async def view(self, call: Call) -> object:
        return views.disk(await self._found(call))

    async def create(self, call: Call) -> object:
        asked = Asked.of(call)
        project_id = await self._world.database.read(lambda c: access.project(c, asked))
        return views.disk(await make_disk(self._nexus, asked, project_id, call.body))

    async def delete(self, call: Call) -> object:
        disk = await self._found(call)
        params = disk_delete.Params(disk_id=disk.id, project_id=disk.project_id, volume_id=disk.volume_id)
        await self._nexus.executor.run(disk_delete.DISK_DELETE, params)
        return None

    async def _found(self, call: Call) -> Disk:
        asked, wanted = Asked.of(call), name_or_id(call.path["disk"], "disk")
        return await self._world.database.read(lambda c: require_disk(c, access.found(c, asked, _DISK, wanted)))


# -- making -----------------------------------------------------------------------------------------------------------


async def make_disk(nexus: Nexus, asked: Asked, project_id: str, wish: Any) -> Disk:
    """The disk that ``wish`` (a ``DiskCreate``) asks for, when it is there. Raises :class:`Refusal`,
    :class:`~nexus.saga.ActionFailed`, :class:`~nexus.saga.SagaFailed`."""
    world = nexus.world
    if isinstance(wish.disk_backend, documents.LocalBackend):
        raise bad_request("this rack has no local storage: take a disk_backend of type distributed")
    source = wish.disk_backend.disk_source

    def check(connection: Connection) -> tuple[Saga, Source, int]:
        saga, made_of, block_size = _recipe(connection, asked, project_id, source)
        read_only = saga is disk_create.DISK_CREATE_READ_ONLY
        disk_check(connection, world.sizes, project_id, wish.size, block_size, made_of, read_only=read_only)
        _refuse_taken_name(connection, project_id, wish.name)
        return saga, made_of, block_size

    saga, made_of, block_size = await world.database.read(check)
    params = disk_create.Params(
        disk_id=world.new_id(),
        volume_id=world.new_id(),
        project_id=project_id,
        name=wish.name,
        description=wish.description,
        size_bytes=wish.size,
        block_size=block_size,
        source=made_of,
    )
    await nexus.executor.run(saga, params)
    return await world.database.read(lambda c: require_disk(c, params.disk_id))


def _recipe(connection: Connection, asked: Asked, project_id: str, source: Any) -> tuple[Saga, Source, int]:
    """Which saga makes such a disk, of what, with blocks of how many bytes."""
    match source:
        case documents.BlankSource():
            return disk_create.DISK_CREATE, Blank(), source.block_size
        case documents.ImportingBlocksSource():
            return disk_create.DISK_CREATE_IMPORTING, Blank(), source.block_size
        case documents.SnapshotSource():
            snapshot = schema.snapshot
            inside = Asked(asked.bearer, None, faithful=False)
            snapshot_id = access.found(connection, inside, snapshot, str(source.snapshot_id))
            block_size = lookups.column_by_id(connection, snapshot.c.block_size, snapshot_id)
            return _copying(source), FromSnapshot(snapshot_id=snapshot_id), block_size
        case documents.ImageSource():
            inside = Asked(asked.bearer, None, faithful=False)
            image_id = access.image(connection, inside, str(source.image_id))
            block_size = lookups.column_by_id(connection, schema.image.c.block_size, image_id)
            return _copying(source), FromImage(image_id=image_id), block_size
    raise AssertionError(f"a disk of {type(source).__name__}")


def _copying(source: Any) -> Saga:
    return disk_create.DISK_CREATE_READ_ONLY if source.read_only else disk_create.DISK_CREATE


def _refuse_taken_name(connection: Connection, project_id: str, name: str) -> None:
    """*Optimisation*: the row that the saga makes finds out for certain; this saves the way there and back."""
    if lookups.id_by_name(connection, _DISK, name, lookups.in_project(_DISK, project_id)) is not None:
        raise already_exists("disk", name)


def operations(nexus: Nexus) -> tuple[Operation, ...]:
    """The rows of the API."""
    do, one = Disks(nexus), "/v1/disks/{disk}"
    return (
        Operation("disk_list", "GET", "/v1/disks", answering(do.listed)),
        Operation("disk_create", "POST", "/v1/disks", answering(do.create), documents.DiskCreate, 201),
        Operation("disk_view", "GET", one, answering(do.view)),
        Operation("disk_delete", "DELETE", one, answering(do.delete), success=204),
    )
