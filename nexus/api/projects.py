"""``/v1/projects`` and ``/v1/ping``: which tenants there are.

A tenant sees its own project alone; to make and delete projects is an operator's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, select

from crucible_emu.service import Call, Operation
from nexus.api import access, views
from nexus.api import external_documents as documents
from nexus.api.callers import require_operator
from nexus.api.queries import by_attribute, name_or_id, page_of, slice_of
from nexus.api.refusals import answering
from nexus.db import schema
from nexus.objects import lookups, tenants
from nexus.running import Nexus

_PROJECT = schema.project


class Projects:
    """What the operations do with ``nexus``."""

    def __init__(self, nexus: Nexus) -> None:
        self._world = nexus.world

    async def ping(self, _call: Call) -> object:
        return documents.Ping(status="ok")

    async def listed(self, call: Call) -> object:
        wanted = slice_of(call)
        bearer = call.caller

        def body(connection: Connection) -> Sequence[Any]:
            inside = (_PROJECT.c.silo_id == access.silo(connection, bearer)) & _PROJECT.c.time_deleted.is_(None)
            if bearer.project_id is not None:
                inside = inside & (_PROJECT.c.id == bearer.project_id)
            return lookups.page(connection, select(_PROJECT).where(inside), _PROJECT, wanted)

        rows = await self._world.database.read(body)
        items = tuple(map(views.project, rows))
        return documents.ProjectResultsPage(items=items, next_page=page_of(rows, wanted, by_attribute))

    async def create(self, call: Call) -> object:
        require_operator(call.caller)
        world, wish, project_id = self._world, call.body, self._world.new_id()

        def body(connection: Connection) -> Any:
            silo_id = access.silo(connection, call.caller)
            tenants.project_create(connection, project_id, silo_id, wish.name, wish.description, world.now())
            return _row(connection, project_id)

        return views.project(await world.database.transact(body))

    async def view(self, call: Call) -> object:
        wanted = name_or_id(call.path["project"], "project")
        found = await self._world.database.read(lambda c: _row(c, access.project_by(c, call.caller, wanted)))
        return views.project(found)

    async def delete(self, call: Call) -> object:
        wanted, world = name_or_id(call.path["project"], "project"), self._world

        def body(connection: Connection) -> None:
            project_id = access.project_by(connection, call.caller, wanted)
            require_operator(call.caller)
            tenants.project_delete(connection, project_id, world.now())

        await world.database.transact(body)
        return None


def _row(connection: Connection, project_id: str) -> Any:
    return connection.execute(select(_PROJECT).where(_PROJECT.c.id == project_id)).one()


def operations(nexus: Nexus) -> tuple[Operation, ...]:
    """The rows of the API."""
    do, one = Projects(nexus), "/v1/projects/{project}"
    return (
        Operation("ping", "GET", "/v1/ping", answering(do.ping)),
        Operation("project_list", "GET", "/v1/projects", answering(do.listed)),
        Operation("project_create", "POST", "/v1/projects", answering(do.create), documents.ProjectCreate, 201),
        Operation("project_view", "GET", one, answering(do.view)),
        Operation("project_delete", "DELETE", one, answering(do.delete), success=204),
    )
