"""From a name or id in a request to the id of a thing that the caller may touch.

What it guarantees (*safety*): whatever comes out of :func:`project` and :func:`found` belongs to the caller, and what
belongs to another is not told apart from what does not exist. Both are asked in the transaction that goes on with what
they found, so nothing changes hands in between.

Where a request says a thing by name, the query says the project; a tenant's is the one that his token opens, if the
query says none. A faithful service insists on it, as the real one does, and refuses a project beside an id.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, Table

from crucible_emu.service import Call
from nexus.api.members import is_id
from nexus.api.queries import name_or_id
from nexus.api.refusals import bad_request, not_found
from nexus.db import schema
from nexus.objects import lookups, tenants
from nexus.objects.tenants import Bearer


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request says of whom and what. ``project``: from the query, checked for its form only."""

    bearer: Bearer
    project: str | None
    faithful: bool

    @classmethod
    def of(cls, call: Call) -> Asked:
        """Raises :class:`Refusal` (400)."""
        text = call.query.get("project")
        return cls(call.caller, None if text is None else name_or_id(text, "project"), call.faithful)


def silo(connection: Connection, bearer: Bearer) -> str:
    """The caller's silo: that of his project, or for an operator the only one. Raises
    :class:`~nexus.saga.ActionFailed`."""
    if bearer.project_id is not None:
        return tenants.silo_of(connection, bearer.project_id)
    return tenants.only_silo(connection)


def project(connection: Connection, asked: Asked) -> str:
    """The project that a request is about. Raises :class:`Refusal` (400, 404)."""
    bearer, wanted = asked.bearer, asked.project
    if wanted is None:
        if bearer.project_id is None or asked.faithful:
            raise bad_request("project is missing: say it in the query, by name or id")
        tenants.silo_of(connection, bearer.project_id)
        return bearer.project_id
    return project_by(connection, bearer, wanted)


def project_by(connection: Connection, bearer: Bearer, wanted: str) -> str:
    """The project of this name or id. Raises :class:`Refusal` (404)."""
    table = schema.project
    if is_id(wanted):
        known = lookups.column_by_id(connection, table.c.id, wanted)
    else:
        where = (table.c.silo_id == silo(connection, bearer)) & table.c.time_deleted.is_(None)
        known = lookups.id_by_name(connection, table, wanted, where)
    if known is None or bearer.project_id not in (None, known):
        raise not_found("project", wanted)
    return str(known)


def found(connection: Connection, asked: Asked, table: Table, wanted: str) -> str:
    """The id of the disk, snapshot or instance of this name or id. Raises :class:`Refusal` (400, 404)."""
    if not is_id(wanted):
        if asked.project is None and (asked.faithful or asked.bearer.project_id is None):
            raise bad_request(f"say the {table.name} by its id, or the project in the query")
        inside = lookups.in_project(table, project(connection, asked))
        known = lookups.id_by_name(connection, table, wanted, inside)
        if known is None:
            raise not_found(table.name, wanted)
        return known
    _refuse_project_beside_id(asked, table)
    owner = lookups.column_by_id(connection, table.c.project_id, wanted)
    if owner is None or owner not in _opened(connection, asked, str(owner)):
        raise not_found(table.name, wanted)
    return wanted


def image(connection: Connection, asked: Asked, wanted: str) -> str:
    """As :func:`found`, of an image: of the project that is said, else of the silo. Raises :class:`Refusal`."""
    table = schema.image
    if is_id(wanted):
        _refuse_project_beside_id(asked, table)
        if image_is_seen(connection, asked.bearer, wanted):
            owner = lookups.column_by_id(connection, table.c.project_id, wanted)
            if asked.project is None or owner == project(connection, asked):
                return wanted
        raise not_found(table.name, wanted)
    if asked.project is None:
        where = lookups.images_of_silo(silo(connection, asked.bearer))
    else:
        project_id = project(connection, asked)
        where = lookups.images_of_project(tenants.silo_of(connection, project_id), project_id)
    known = lookups.id_by_name(connection, table, wanted, where)
    if known is None:
        raise not_found(table.name, wanted)
    return known


def image_is_seen(connection: Connection, bearer: Bearer, image_id: str) -> bool:
    """Whether an image is there for the caller: of his project, or of his silo as a whole."""
    table = schema.image
    owning_silo = lookups.column_by_id(connection, table.c.silo_id, image_id)
    if owning_silo is None or bearer.project_id is None:
        return owning_silo is not None
    owner = lookups.column_by_id(connection, table.c.project_id, image_id)
    return owner == bearer.project_id or (owner is None and owning_silo == silo(connection, bearer))


def _opened(connection: Connection, asked: Asked, owner: str) -> tuple[str, ...]:
    """The projects whose things this request may be about, as far as ``owner`` goes."""
    if asked.project is not None:
        return (project(connection, asked),)
    return (asked.bearer.project_id or owner,)


def _refuse_project_beside_id(asked: Asked, table: Table) -> None:
    if asked.faithful and asked.project is not None:
        raise bad_request(f"when providing {table.name} as an ID project should not be specified")
