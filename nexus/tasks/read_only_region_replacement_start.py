"""``read_only_region_replacement_start``: lost read-only regions get a request (nexus.md §4.4).

What it finds: read-only regions, which were cloned for a snapshot once, on physical disks that are expunged, of which
nobody ever asked for a replacement. What it does: a request for each, under the lock of the snapshot's volume, whether
that is there or not (R4). To begin with them is the work of ``region_snapshot_replacement_start``, and that is also
where it says why this is safe.
"""

from __future__ import annotations

from sqlalchemy import Connection, select

from nexus.db import schema
from nexus.replacement.read_only import target_was_requested
from nexus.services import World
from nexus.services.gone import on_expunged_disk
from nexus.tasks.region_snapshot_replacement_start import ask_for
from nexus.tasks.task import Status
from nexus.volumes import ReadOnlyRegion
from nexus.volumes.resolution import Resource

_REGION, _USER_SNAPSHOT = schema.region, schema.snapshot


class ReadOnlyRegionReplacementStart:
    """The entries are sentences, each with the id of the request at its end."""

    name = "read_only_region_replacement_start"
    description = "asks for the replacement of read-only regions on expunged disks"
    period_s = 30.0

    def __init__(self, world: World) -> None:
        self._world = world

    async def activate(self) -> Status:
        status: Status = {"requests_created_ok": [], "errors": []}
        await ask_for(self._world, await self._world.database.read(lost_read_only_regions), status)
        return status


_LOST = (
    select(_REGION.c.id)
    .join(_USER_SNAPSHOT, _USER_SNAPSHOT.c.volume_id == _REGION.c.volume_id)
    .where(on_expunged_disk(_REGION.c.dataset_id), _REGION.c.read_only, ~_REGION.c.deleting)
    .order_by(_REGION.c.id)
)


def lost_read_only_regions(connection: Connection) -> list[Resource]:
    """Read-only regions on expunged disks for which there never was a request, in the order of their ids; none that is
    being destroyed (W52). Each is of a snapshot, deleted or not (R40)."""
    found = [ReadOnlyRegion(region_id) for region_id in connection.execute(_LOST).scalars()]
    return [each for each in found if not target_was_requested(connection, each)]
