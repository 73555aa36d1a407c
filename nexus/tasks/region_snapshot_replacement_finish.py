"""``region_snapshot_replacement_finish``: requests with nothing left to do come to their end (nexus.md §4.7).

What it finds: requests for read-only targets that run, whose target is gone and that have no step before its end. What
it does: starts their finish saga. That looks once more, in the transaction that takes the request in hand; to look here
is an *optimisation*. Beside other Nexus all but one of the sagas end there (R1).
"""

from __future__ import annotations

from functools import partial

from nexus.db import DatabaseError
from nexus.db.schema import RegionSnapshotReplacementState
from nexus.replacement import read_only
from nexus.replacement.read_only import read_only_replacements_in
from nexus.saga import Executor
from nexus.sagas.region_snapshot_replacement_finish import REGION_SNAPSHOT_REPLACEMENT_FINISH, Params
from nexus.services import World
from nexus.tasks.task import Status, told


class RegionSnapshotReplacementFinish:
    """The entries are sentences, each with the id of the request at its end."""

    name = "region_snapshot_replacement_finish"
    description = "ends the replacements of read-only targets that nobody refers to any more"
    period_s = 30.0

    def __init__(self, world: World, executor: Executor) -> None:
        self._world = world
        self._executor = executor

    async def activate(self) -> Status:
        invoked, errors = [], []
        states = (RegionSnapshotReplacementState.RUNNING,)
        for request in await self._world.database.read(lambda c: read_only_replacements_in(c, states, at_rest=True)):
            try:
                left = await self._world.database.read(partial(read_only.what_is_left, request=request))
                if left is not None:
                    continue
                await self._executor.start(REGION_SNAPSHOT_REPLACEMENT_FINISH, Params(request_id=request.id))
            except DatabaseError as error:
                errors.append(f"request {request.id}: {told(error)}")
                continue
            invoked.append(f"began to finish request {request.id}")
        return {"finish_invoked_ok": invoked, "errors": errors}
