"""instance-stop: end an instance, and let its disks go.

It only goes forward; a saga that fails is followed by another one. Until the host has said that it holds nothing any
more, or is gone for good, the instance names its vmm, and so its disks stay and nobody starts it elsewhere (*safety*).

Why each node may run again: the vmm is chosen once and recorded; what is stopping is stopping; what does not run is
stopped; an instance that names another vmm by now, or none, keeps that.
"""

from __future__ import annotations

from pydantic import BaseModel
from sqlalchemy import Connection

from nexus.db.schema import VmmState
from nexus.objects.instances import active_vmm, instance_require, vmm_change, vmm_deactivate, vmm_get
from nexus.saga import Context, Node, Saga
from nexus.sagas import hosted
from nexus.services import World


class Params(BaseModel):
    instance_id: str


async def begin(saga: Context[Params]) -> str | None:
    """The vmm to be stopped, ``None`` for an instance that is stopped. One that is being started is refused: its saga
    would go on with it. Safe to rerun."""
    world, instance_id = _world(saga), saga.params.instance_id

    def body(connection: Connection) -> str | None:
        instance_require(connection, instance_id)
        found = active_vmm(connection, instance_id)
        if found is None:
            return None
        vmm_change(connection, found.vmm.vmm_id, VmmState.STOPPING, world.now())
        return found.vmm.vmm_id

    return await world.database.transact(body)


async def stop_instance(saga: Context[Params]) -> None:
    """Safe to rerun: what does not run is stopped."""
    world, vmm_id = _world(saga), saga.output("BEGIN")
    found = None if vmm_id is None else await world.database.read(lambda c: vmm_get(c, vmm_id))
    if found is not None and found.state is VmmState.STOPPING:
        await hosted.halted(world, found.vmm)


async def clear_vmm(saga: Context[Params]) -> None:
    """Safe to rerun: a vmm that is destroyed is."""
    world, vmm_id = _world(saga), saga.output("BEGIN")

    def body(connection: Connection) -> None:
        vmm_change(connection, vmm_id, VmmState.DESTROYED, world.now())
        vmm_deactivate(connection, saga.params.instance_id, vmm_id, world.now())

    if vmm_id is not None:
        await world.database.transact(body)


def _world(saga: Context[Params]) -> World:
    world: World = saga.world
    return world


INSTANCE_STOP = Saga(
    "instance-stop",
    Params,
    Node("BEGIN", begin),
    Node("STOP_INSTANCE", stop_instance),
    Node("CLEAR_VMM", clear_vmm),
)
