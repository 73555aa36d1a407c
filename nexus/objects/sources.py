"""What a disk may be made of, and how big it may be (apis-and-tools.md §5.1).

:func:`disk_check` is the whole of the rules. A route asks it before there is a saga, so that its user hears at once;
the saga's first node asks it again, for anything may have happened since; and the transaction that copies a source asks
once more what :func:`origin_of` says (*safety*: only there it is certain that the source is still there).

*Safety*: a source in another project is refused whatever its size, before anything else is said of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, Field
from sqlalchemy import Connection, select

from nexus.db import schema
from nexus.db.schema import SnapshotState
from nexus.objects.refusals import invalid_request, not_found, told_to_users
from nexus.placement import Sizes

_PROJECT, _SNAPSHOT, _IMAGE = schema.project, schema.snapshot, schema.image


class Blank(BaseModel):
    """Nothing: every block reads as zeros."""

    type: Literal["blank"] = "blank"


class FromSnapshot(BaseModel):
    """What a disk held when a snapshot was taken of it."""

    type: Literal["snapshot"] = "snapshot"
    snapshot_id: str


class FromImage(BaseModel):
    """What an image holds."""

    type: Literal["image"] = "image"
    image_id: str


Source = Annotated[Blank | FromSnapshot | FromImage, Field(discriminator="type")]


@dataclass(frozen=True, slots=True)
class Origin:
    """A snapshot or image that is there. ``what`` names it in sentences."""

    what: str
    volume_id: str
    size_bytes: int
    block_size: int


def origin_of(connection: Connection, project_id: str, source: Source) -> Origin | None:
    """What the disk is to be a copy of; ``None`` of a blank one. Raises :class:`~nexus.saga.ActionFailed` where it is
    not there, or not this project's to copy."""
    match source:
        case Blank():
            return None
        case FromSnapshot(snapshot_id=snapshot_id):
            return _snapshot(connection, project_id, snapshot_id)
        case FromImage(image_id=image_id):
            return _image(connection, project_id, image_id)


def _snapshot(connection: Connection, project_id: str, snapshot_id: str) -> Origin:
    row = connection.execute(
        select(_SNAPSHOT).where(_SNAPSHOT.c.id == snapshot_id, _SNAPSHOT.c.time_deleted.is_(None))
    ).one_or_none()
    if row is None:
        raise not_found("snapshot", snapshot_id)
    if row.project_id != project_id:
        raise invalid_request(f"snapshot {snapshot_id} does not belong to this project")
    if row.state != SnapshotState.READY:
        raise invalid_request(f"snapshot {snapshot_id} is {row.state}; a disk can be made of one that is ready")
    return Origin(f"snapshot {snapshot_id}", row.volume_id, row.size_bytes, row.block_size)


def _image(connection: Connection, project_id: str, image_id: str) -> Origin:
    row = connection.execute(
        select(_IMAGE, _PROJECT.c.silo_id.label("silo_of_the_project"))
        .outerjoin(_PROJECT, _PROJECT.c.id == project_id)
        .where(_IMAGE.c.id == image_id, _IMAGE.c.time_deleted.is_(None))
    ).one_or_none()
    if row is None:
        raise not_found("image", image_id)
    # An image without a project is for every project of its silo.
    if row.silo_id != row.silo_of_the_project or row.project_id not in (None, project_id):
        raise invalid_request(f"image {image_id} does not belong to this project")
    return Origin(f"image {image_id}", row.volume_id, row.size_bytes, row.block_size)


def disk_check(
    connection: Connection,
    sizes: Sizes,
    project_id: str,
    size_bytes: int,
    block_size: int,
    source: Source,
    *,
    read_only: bool = False,
) -> None:
    """Whether such a disk may be made. Raises :class:`~nexus.saga.ActionFailed`."""
    living = select(_PROJECT.c.id).where(_PROJECT.c.id == project_id, _PROJECT.c.time_deleted.is_(None))
    if connection.execute(living).first() is None:
        raise not_found("project", project_id)
    origin = origin_of(connection, project_id, source)
    with told_to_users():
        sizes.check(size_bytes)
        sizes.geometry(size_bytes, block_size)
    if origin is None:
        if read_only:
            raise invalid_request("a read-only disk is made of a snapshot or an image")
        return
    if block_size != origin.block_size:
        raise invalid_request(f"{origin.what} has blocks of {origin.block_size} bytes, and so has a disk made of it")
    if read_only and size_bytes != origin.size_bytes:
        raise invalid_request(f"a read-only disk of {origin.what} has {origin.size_bytes} bytes, as that has")
    if size_bytes < origin.size_bytes:
        raise invalid_request(
            f"disk size {size_bytes} must be greater than or equal to the {origin.size_bytes} bytes of {origin.what}"
        )
