"""Taking a volume's read-only parent away (nexus.md §5.12).

What it is for: when everything of the parent has been copied, the volume needs it no longer. The parent moves, with its
references, to a volume that is made for it and deleted next, so that what nobody counts on then is freed by the one
path that frees anything.

Why it is safe to do twice: the second time there is no parent, and nothing happens.
"""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection

from crucible_emu.volume.vcr import VolumeRequest
from nexus.volumes import recorded, walks
from nexus.volumes.refusals import BrokenInvariant
from nexus.volumes.resolution import move_usage, require_resource
from nexus.volumes.rows import require_live, volume_get, write_request


def volume_remove_rop(connection: Connection, volume_id: str, temporary_id: str, now: datetime) -> bool:
    """Move the parent of a volume to the volume ``temporary_id``, which must be there. ``False``: there was none to
    move, or no such volume. Raises :class:`NotFound`, :class:`Conflict`, :class:`BrokenInvariant`."""
    volume = volume_get(connection, volume_id)
    if volume is None or volume.deleted or not isinstance(volume.request, VolumeRequest):
        return False
    parent = volume.request.read_only_parent
    if parent is None:
        return False
    temporary = require_live(connection, temporary_id)
    if walks.read_only_targets(temporary.request):
        raise BrokenInvariant(f"volume {temporary_id} cannot take a parent over: it names targets of its own")
    write_request(connection, volume_id, volume.request.model_copy(update={"read_only_parent": None}), now)
    write_request(connection, temporary_id, recorded.with_parent(UUID(temporary_id), parent), now)
    for address in walks.read_only_targets(parent):
        move_usage(connection, volume_id, temporary_id, require_resource(connection, address))
    return True
