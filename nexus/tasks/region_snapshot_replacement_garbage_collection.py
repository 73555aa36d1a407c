"""``region_snapshot_replacement_garbage_collection``: the stash of a start saga goes (nexus.md §4.5).

What it finds: requests for read-only targets whose target was replaced in the snapshot's volume. What it does: starts
the saga that deletes the stash volume, after which the request runs. Beside other Nexus all but one of the sagas end at
their first node (R1).
"""

from __future__ import annotations

from nexus.db import DatabaseError
from nexus.db.schema import RegionSnapshotReplacementState
from nexus.replacement.read_only import read_only_replacements_in
from nexus.saga import Executor
from nexus.sagas.region_snapshot_replacement_garbage_collect import (
    REGION_SNAPSHOT_REPLACEMENT_GARBAGE_COLLECT,
    Params,
)
from nexus.services import World
from nexus.tasks.task import Status, told


class RegionSnapshotReplacementGarbageCollection:
    """The entries are sentences, each with the id of the request at its end."""

    name = "region_snapshot_replacement_garbage_collection"
    description = "deletes the volumes that hold what was replaced in snapshots' volumes"
    period_s = 30.0

    def __init__(self, world: World, executor: Executor) -> None:
        self._world = world
        self._executor = executor

    async def activate(self) -> Status:
        requested, errors = [], []
        states = (RegionSnapshotReplacementState.REPLACEMENT_DONE,)
        for request in await self._world.database.read(lambda c: read_only_replacements_in(c, states, at_rest=True)):
            try:
                await self._executor.start(REGION_SNAPSHOT_REPLACEMENT_GARBAGE_COLLECT, Params(request_id=request.id))
            except DatabaseError as error:
                errors.append(f"request {request.id}: {told(error)}")
                continue
            requested.append(f"requested garbage collection for request {request.id}")
        return {"garbage_collect_requested": requested, "errors": errors}
