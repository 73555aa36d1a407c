"""``/v1/images``: what disks are made from. An image is its project's, or *promoted* all projects' of the silo.

A tenant sees the images of its silo and makes disks of them. To promote, demote or delete one of the whole silo is an
operator's, for it is every other tenant's as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection

from crucible_emu.service import Call, Operation
from nexus.api import access, views
from nexus.api import external_documents as documents
from nexus.api.access import Asked
from nexus.api.callers import require_operator
from nexus.api.queries import by_attribute, name_or_id, page_of, slice_of
from nexus.api.refusals import answering
from nexus.db import schema
from nexus.objects import lookups, tenants
from nexus.objects.images import Image, image_of_row, image_scope, images_selected, require_image
from nexus.objects.refusals import already_exists, invalid_request
from nexus.running import Nexus
from nexus.sagas import image_create, image_delete

_IMAGE = schema.image


class Images:
    """What the operations do with ``nexus``."""

    def __init__(self, nexus: Nexus) -> None:
        self._nexus = nexus
        self._world = nexus.world

    async def listed(self, call: Call) -> object:
        wanted, asked = slice_of(call), Asked.of(call)

        def body(connection: Connection) -> Sequence[Image]:
            inside = _scope(*_owner(connection, asked))
            rows = lookups.page(connection, images_selected().where(inside), _IMAGE, wanted)
            return [image_of_row(row) for row in rows]

        rows = await self._world.database.read(body)
        items = tuple(map(views.image, rows))
        return documents.ImageResultsPage(items=items, next_page=page_of(rows, wanted, by_attribute))

    async def view(self, call: Call) -> object:
        return views.image(await self._found(call))

    async def create(self, call: Call) -> object:
        asked, wish, world = Asked.of(call), call.body, self._world

        def check(connection: Connection) -> tuple[str, str | None]:
            silo_id, project_id = _owner(connection, asked)
            if project_id is None:
                require_operator(asked.bearer)
            snapshot_id = str(wish.source.id)
            access.found(connection, Asked(asked.bearer, None, False), schema.snapshot, snapshot_id)
            owner = lookups.column_by_id(connection, schema.snapshot.c.project_id, snapshot_id)
            if project_id is not None and owner != project_id:
                raise invalid_request("snapshot does not belong to this project")
            if tenants.silo_of(connection, owner) != silo_id:
                raise invalid_request("snapshot does not belong to this silo")
            # *Optimisation*: the row that the saga makes finds out for certain.
            inside = _scope(silo_id, project_id)
            if lookups.id_by_name(connection, _IMAGE, wish.name, inside) is not None:
                raise already_exists("image", wish.name)
            return silo_id, project_id

        silo_id, project_id = await world.database.read(check)
        params = image_create.Params(
            image_id=world.new_id(),
            dest_volume_id=world.new_id(),
            project_id=project_id,
            silo_id=silo_id,
            name=wish.name,
            description=wish.description,
            os=wish.os,
            version=wish.version,
            snapshot_id=str(wish.source.id),
        )
        await self._nexus.executor.run(image_create.IMAGE_CREATE, params)
        return views.image(await world.database.read(lambda c: require_image(c, params.image_id)))

    async def delete(self, call: Call) -> object:
        image = await self._found(call)
        if image.project_id is None:
            require_operator(call.caller)
        await self._nexus.executor.run(image_delete.IMAGE_DELETE, image_delete.Params(image_id=image.id))
        return None

    async def promote(self, call: Call) -> object:
        asked, wanted, world = Asked.of(call), name_or_id(call.path["image"], "image"), self._world

        def body(connection: Connection) -> Image:
            image_id = access.image(connection, asked, wanted)
            require_operator(asked.bearer)
            return image_scope(connection, image_id, None, world.now())

        return views.image(await world.database.transact(body))

    async def demote(self, call: Call) -> object:
        asked, wanted, world = Asked.of(call), name_or_id(call.path["image"], "image"), self._world

        def body(connection: Connection) -> Image:
            project_id = access.project(connection, asked)
            image_id = access.image(connection, Asked(asked.bearer, None, False), wanted)
            require_operator(asked.bearer)
            return image_scope(connection, image_id, project_id, world.now())

        return views.image(await world.database.transact(body))

    async def _found(self, call: Call) -> Image:
        asked, wanted = Asked.of(call), name_or_id(call.path["image"], "image")
        return await self._world.database.read(lambda c: require_image(c, access.image(c, asked, wanted)))


def _owner(connection: Connection, asked: Asked) -> tuple[str, str | None]:
    """Silo and project that the query says; without a project it is the silo as a whole."""
    if asked.project is None:
        return access.silo(connection, asked.bearer), None
    project_id = access.project(connection, asked)
    return tenants.silo_of(connection, project_id), project_id


def _scope(silo_id: str, project_id: str | None) -> Any:
    return lookups.images_of_silo(silo_id) if project_id is None else lookups.images_of_project(silo_id, project_id)


def operations(nexus: Nexus) -> tuple[Operation, ...]:
    """The rows of the API."""
    do, one = Images(nexus), "/v1/images/{image}"
    return (
        Operation("image_list", "GET", "/v1/images", answering(do.listed)),
        Operation("image_create", "POST", "/v1/images", answering(do.create), documents.ImageCreate, 201),
        Operation("image_view", "GET", one, answering(do.view)),
        Operation("image_delete", "DELETE", one, answering(do.delete), success=204),
        Operation("image_promote", "POST", f"{one}/promote", answering(do.promote), success=202),
        Operation("image_demote", "POST", f"{one}/demote", answering(do.demote), success=202),
    )
