"""``lost_instances``: end what ran on a sled that is gone.

What it finds: instances whose process runs, by its row, on a sled that is expunged. Nobody will ever say that it has
ended, and as long as the instance names it, its disks are in use: a pantry is not given their volumes (R33), and what
was lost of them with the sled would never be replaced (*liveness*).

What it does: starts instance-stop, which finds the host gone, and lets the disks go. Whoever wants the instance starts
it elsewhere.

Why it is safe: an expunged sled is gone for good, that is what the word means; and who is given the disks' volumes next
has a higher generation, so that a process which ran on all the same could not write any more. A process that is about
to start, or to stop, is in the hands of a saga, which finds out by itself. Of two stops one finds the instance stopped.
"""

from __future__ import annotations

from sqlalchemy import Connection, select

from nexus.db import DatabaseError, schema
from nexus.db.schema import SledPolicy, VmmState
from nexus.saga import Executor
from nexus.sagas.instance_stop import INSTANCE_STOP, Params
from nexus.services import World
from nexus.tasks.task import Status, told

_INSTANCE, _VMM, _SLED = schema.instance, schema.vmm, schema.sled


class LostInstances:
    """``stop_invoked_ok`` names instances."""

    name = "lost_instances"
    description = "stops instances whose sled is gone, so that their disks can be repaired"
    period_s = 30.0

    def __init__(self, world: World, executor: Executor) -> None:
        self._world = world
        self._executor = executor

    async def activate(self) -> Status:
        stopped, errors = [], []
        for instance_id in await self._world.database.read(on_gone_sleds):
            try:
                await self._executor.start(INSTANCE_STOP, Params(instance_id=instance_id))
                stopped.append(f"instance {instance_id}")
            except DatabaseError as error:
                errors.append(f"instance {instance_id}: {told(error)}")
        return {"stop_invoked_ok": stopped, "errors": errors}


_ON_GONE_SLEDS = (
    select(_INSTANCE.c.id)
    .join(_VMM, _VMM.c.id == _INSTANCE.c.active_propolis_id)
    .join(_SLED, _SLED.c.id == _VMM.c.sled_id)
    .where(
        _SLED.c.sled_policy == SledPolicy.EXPUNGED,
        _VMM.c.state.in_([VmmState.RUNNING, VmmState.FAILED]),
        _INSTANCE.c.time_deleted.is_(None),
    )
    .order_by(_INSTANCE.c.id)
)


def on_gone_sleds(connection: Connection) -> list[str]:
    """The instances that run on sleds that are gone, in the order of their ids."""
    return list(connection.execute(_ON_GONE_SLEDS).scalars())
