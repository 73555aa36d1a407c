"""Rows of images: what disks are made from (nexus.md §1.3).

An image is a project's, or without a project every project's of its silo. Its volume is a read-only copy of a
snapshot's, with references of its own: it outlives the snapshot and the disk. Images are not charged for.

What it guarantees: each function may run again and does nothing then. A name is one image's in its project, or among
those of the silo.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, select, update

from nexus.db import schema
from nexus.db.transitions import insert_if_absent
from nexus.objects.refusals import already_exists, invalid_request, not_found

_IMAGE = schema.image


@dataclass(frozen=True, slots=True)
class Image:
    """A row, deleted or not. ``project_id`` is ``None`` for a silo's image."""

    id: str
    silo_id: str
    project_id: str | None
    name: str
    description: str
    volume_id: str
    os: str
    version: str
    digest: str | None
    block_size: int
    size_bytes: int
    time_created: datetime
    time_modified: datetime
    time_deleted: datetime | None = None

    @property
    def deleted(self) -> bool:
        return self.time_deleted is not None


def images_selected() -> Any:
    """The query for images, to be narrowed by ``where`` and ordered; rows are read by :func:`image_of_row`."""
    return select(*(_IMAGE.c[name] for name in Image.__dataclass_fields__))


def image_of_row(row: Row[Any]) -> Image:
    """What a row of :func:`images_selected` says."""
    return Image(**row._mapping)


def image_get(connection: Connection, image_id: str) -> Image | None:
    """The image, deleted or not."""
    row = connection.execute(images_selected().where(_IMAGE.c.id == image_id)).one_or_none()
    return None if row is None else image_of_row(row)


def require_image(connection: Connection, image_id: str) -> Image:
    """The image, which is not deleted. Raises :class:`~nexus.saga.ActionFailed`."""
    found = image_get(connection, image_id)
    if found is None or found.deleted:
        raise not_found("image", image_id)
    return found


def image_insert(connection: Connection, image: Image) -> None:
    """Make the row, or find that it was made. Raises :class:`~nexus.saga.ActionFailed` where another image has the
    name."""
    values = {name: getattr(image, name) for name in Image.__dataclass_fields__}
    if not insert_if_absent(connection, _IMAGE, values) and image_get(connection, image.id) is None:
        raise already_exists("image", image.name)


def image_delete(connection: Connection, image_id: str, now: datetime) -> Image:
    """Mark the row as deleted, or find it so; the image. Raises :class:`~nexus.saga.ActionFailed` if it never was."""
    found = image_get(connection, image_id)
    if found is None:
        raise not_found("image", image_id)
    alive = (_IMAGE.c.id == image_id, _IMAGE.c.time_deleted.is_(None))
    connection.execute(update(_IMAGE).where(*alive).values(time_deleted=now, time_modified=now))
    return found


def image_scope(connection: Connection, image_id: str, project_id: str | None, now: datetime) -> Image:
    """Make a project's image the whole silo's (``project_id`` is ``None``), or a silo's a project's; of one that is,
    it is done. Raises :class:`~nexus.saga.ActionFailed`."""
    found = require_image(connection, image_id)
    if found.project_id == project_id:
        return found
    if None not in (found.project_id, project_id):
        raise invalid_request(f"image {image_id} is another project's: only a silo's image can be demoted")
    taken = select(_IMAGE.c.id).where(
        _IMAGE.c.silo_id == found.silo_id,
        _IMAGE.c.project_id.is_(None) if project_id is None else _IMAGE.c.project_id == project_id,
        _IMAGE.c.name == found.name,
        _IMAGE.c.time_deleted.is_(None),
    )
    if connection.execute(taken).first() is not None:
        raise already_exists("image", found.name)
    moved = update(_IMAGE).where(_IMAGE.c.id == image_id).values(project_id=project_id, time_modified=now)
    connection.execute(moved)
    return require_image(connection, image_id)
