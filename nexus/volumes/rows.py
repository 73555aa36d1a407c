"""Rows of ``volume``, and the making of one (nexus.md §5.2, §5.3).

What it guarantees: a volume comes into being together with its references, or not at all: every read-only target of its
VCR is resolved and counted in the transaction that inserts it (R26, *safety*). A volume whose row is marked as deleted
keeps its text and counts on nothing.

Every function works on a connection inside somebody's transaction, and has no effect outside it; so it may be run again
from the start when the database asks for that.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import Enum

from sqlalchemy import Connection, bindparam, insert, select, update

from crucible_emu.volume.vcr import RegionRequest, VolumeConstructionRequest
from nexus.db import Conflict, NotFound, schema
from nexus.volumes import recorded, walks
from nexus.volumes.resolution import insert_usage, require_resource

_VOLUME = schema.volume
_INSERT = insert(_VOLUME)
_BY_ID = select(_VOLUME).where(_VOLUME.c.id == bindparam("volume"))
_WRITE = update(_VOLUME).where(_VOLUME.c.id == bindparam("volume"))
_WHETHER_DELETED = select(_VOLUME.c.time_deleted).where(_VOLUME.c.id == bindparam("volume"))


class Deletion(Enum):
    """Whether a volume is still there."""

    LIVE = "live"
    SOFT_DELETED = "soft-deleted"
    HARD_DELETED = "hard-deleted"


@dataclass(frozen=True, slots=True)
class Volume:
    """A row. ``resources_to_clean_up`` is the stored text, if there is one."""

    id: str
    request: VolumeConstructionRequest
    time_deleted: datetime | None
    resources_to_clean_up: str | None

    @property
    def deleted(self) -> bool:
        return self.time_deleted is not None


def volume_get(connection: Connection, volume_id: str) -> Volume | None:
    """The row, soft-deleted or not. Raises :class:`~nexus.volumes.recorded.MalformedVolume`."""
    row = connection.execute(_BY_ID, {"volume": volume_id}).one_or_none()
    if row is None:
        return None
    request = recorded.parse(row.data, f"volume {volume_id}")
    return Volume(volume_id, request, row.time_deleted, row.resources_to_clean_up)


def volume_state(connection: Connection, volume_id: str) -> Deletion:
    """Whether it is still there."""
    row = connection.execute(_WHETHER_DELETED, {"volume": volume_id}).one_or_none()
    if row is None:
        return Deletion.HARD_DELETED
    return Deletion.LIVE if row.time_deleted is None else Deletion.SOFT_DELETED


def volume_deleted(connection: Connection, volume_id: str) -> bool:
    """Soft-deleted, hard-deleted, or never there."""
    return volume_state(connection, volume_id) is not Deletion.LIVE


def require_live(connection: Connection, volume_id: str) -> Volume:
    """The row of a volume that is not deleted. Raises :class:`~nexus.db.NotFound`,
    :class:`~nexus.db.Conflict`."""
    found = volume_get(connection, volume_id)
    if found is None:
        raise NotFound("volume", volume_id)
    if found.deleted:
        raise Conflict(f"volume {volume_id} is deleted")
    return found


def write_request(connection: Connection, volume_id: str, request: VolumeConstructionRequest, now: datetime) -> None:
    """Record a changed VCR. The usage rows are the caller's business, in the same transaction."""
    connection.execute(_WRITE, {"volume": volume_id, "data": recorded.write(request), "time_modified": now})


def volume_create(connection: Connection, volume_id: str, request: VolumeConstructionRequest, now: datetime) -> Volume:
    """Make the volume, or find that an earlier run made it; what others did to it since then (a target replaced, a
    generation more) is kept. Unlike the real one this refuses to take a deleted volume, or a volume of other content
    under the same id, for its own (W50). Raises :class:`Conflict`, and :class:`ResourceGone` for a dead target."""
    if isinstance(request, RegionRequest):
        raise recorded.MalformedVolume("a recorded volume cannot be a bare region")
    targets = walks.read_only_targets(request)
    found = volume_get(connection, volume_id)
    if found is not None:
        if found.deleted:
            raise Conflict(f"volume {volume_id} was made and is deleted")
        if not walks.same_volume(found.request, request):
            raise Conflict(f"volume {volume_id} exists, with other content")
        return found
    if len(set(targets)) != len(targets):
        # *Safety* (I9): two places would share one usage row, and deletion would look for it twice.
        raise Conflict(f"volume {volume_id} would name one read-only target twice")
    text = recorded.write(request)
    connection.execute(_INSERT, {"id": volume_id, "data": text, "time_created": now, "time_modified": now})
    for address in targets:
        insert_usage(connection, volume_id, require_resource(connection, address))
    return Volume(volume_id, recorded.parse(text), None, None)
