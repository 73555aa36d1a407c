"""Finding what users call by name or id, and listing it a page at a time.

What it guarantees: a page costs the same however long the list is and wherever in it the page begins, for it starts
where the last one ended and not at a number of rows to be skipped: the queries here touch ``limit`` rows of an index.
What is made or deleted between two pages is seen or not; no row is seen twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from sqlalchemy import Column, ColumnElement, Connection, Row, Table, select

from nexus.db import schema


class Order(Enum):
    """In which order a list is told; the values are those of ``sort_by``."""

    NAME_ASCENDING = "name_ascending"
    NAME_DESCENDING = "name_descending"
    ID_ASCENDING = "id_ascending"

    @property
    def by(self) -> str:
        """The column that is ordered by."""
        return "id" if self is Order.ID_ASCENDING else "name"


@dataclass(frozen=True, slots=True)
class Slice:
    """Which page: up to ``limit`` rows that follow ``after``, a name or id as ``order`` says."""

    limit: int
    order: Order = Order.ID_ASCENDING
    after: str | None = None


def page(connection: Connection, query: Any, table: Table, wanted: Slice) -> list[Row[Any]]:
    """The page of ``query``, which selects rows of ``table``, perhaps joined by their ids to others."""
    column = table.c[wanted.order.by]
    descending = wanted.order is Order.NAME_DESCENDING
    if wanted.after is not None:
        query = query.where(column < wanted.after if descending else column > wanted.after)
    return list(connection.execute(query.order_by(column.desc() if descending else column).limit(wanted.limit)))


def in_project(table: Table, project_id: str) -> ColumnElement[bool]:
    """What a project has in ``table``, and has not deleted."""
    return (table.c.project_id == project_id) & table.c.time_deleted.is_(None)


def images_of_project(silo_id: str, project_id: str) -> ColumnElement[bool]:
    """The images of a project of this silo, in the words of their index."""
    return in_project(schema.image, project_id) & (schema.image.c.silo_id == silo_id)


def images_of_silo(silo_id: str) -> ColumnElement[bool]:
    """The images that all projects of a silo have, in the words of their index."""
    image = schema.image
    return (image.c.silo_id == silo_id) & image.c.project_id.is_(None) & image.c.time_deleted.is_(None)


def id_by_name(connection: Connection, table: Table, name: str, where: ColumnElement[bool]) -> str | None:
    """The id of what is called ``name`` among what ``where`` holds for, one of the conditions above."""
    found: str | None = connection.execute(select(table.c.id).where(where, table.c.name == name)).scalar_one_or_none()
    return found


def column_by_id(connection: Connection, column: Column[Any], identity: str) -> Any:
    """What the row ``identity``, which is not deleted, has in ``column``; ``None`` where there is no such row."""
    table: Any = column.table
    query = select(column).where(table.c.id == identity, table.c.time_deleted.is_(None))
    return connection.execute(query).scalar_one_or_none()
