"""``resume_volume_deletion``: finish what a dead deletion left (W24).

What it finds: volumes that are soft-deleted, of which something could be destroyed now, and of which no unfinished saga
speaks. A deletion only moves forward and has no undo: where an agent refused for good, or an undo could not finish, it
ends and leaves the volume so, and nobody else would ever look at it.

What it does: starts volume-delete once more. Soft-deleted volumes whose regions wait for snapshots or clones of them to
go are left alone: whoever takes the last one away looks after them.

Why it is safe: every node of volume-delete may run again, and beside another of the same volume; so that no saga speaks
of it is an *optimisation*. A volume whose deletion keeps failing is tried again at growing intervals, or the log would
fill with sagas. Each Nexus counts for itself, and forgets when it ends; that costs a few more attempts.
"""

from __future__ import annotations

from sqlalchemy import Connection

from nexus.db import DatabaseError
from nexus.db.saga_claims import claims
from nexus.saga import Executor
from nexus.sagas.volume_delete import VOLUME_DELETE, Params
from nexus.services import World
from nexus.tasks.task import Status, told
from nexus.volumes import deletions_to_finish

PASSED_OVER_MAX = 60
"""Of how many activations at most all but one pass a volume over."""


class ResumeVolumeDeletion:
    """``started`` names volumes, ``passed_over`` those that are tried again another time."""

    name = "resume_volume_deletion"
    description = "deletes volumes again that a deletion left soft-deleted"
    period_s = 60.0

    def __init__(self, world: World, executor: Executor) -> None:
        self._world = world
        self._executor = executor
        self._pauses: dict[str, int] = {}
        self._left: dict[str, int] = {}

    async def activate(self) -> Status:
        started, passed_over, errors = [], [], []
        found = await self._world.database.read(unattended)
        for volume_id in self._pauses.keys() - set(found):
            del self._pauses[volume_id], self._left[volume_id]
        for volume_id in found:
            if self._left.get(volume_id, 0):
                self._left[volume_id] -= 1
                passed_over.append(volume_id)
                continue
            try:
                await self._executor.start(VOLUME_DELETE, Params(volume_id=volume_id))
            except DatabaseError as error:
                errors.append(f"volume {volume_id}: {told(error)}")
                continue
            started.append(volume_id)
            self._left[volume_id] = self._pauses.get(volume_id, 0)
            self._pauses[volume_id] = min(2 * self._left[volume_id] + 1, PASSED_OVER_MAX)
        return {"started": started, "passed_over": passed_over, "errors": errors}


def unattended(connection: Connection) -> list[str]:
    """Soft-deleted volumes for which something can be done, and of which no unfinished saga speaks."""
    spoken_of = claims(connection)
    return [volume_id for volume_id in deletions_to_finish(connection) if volume_id not in spoken_of]
