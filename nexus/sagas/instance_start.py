"""instance-start: run an instance on some sled, with its disks (nexus.md §5.4, §8.3).

The instance names its vmm before any disk is handed out: from then on its disks stay, and nobody else starts it. Each
disk's document is checked out for exactly this vmm, so that its writers win over whoever had the disk before.

Why each node may run again (*safety*): the vmm and its sled are rows found by their ids. What an earlier run put on the
host is stopped, and the instance is put there anew with documents of a higher generation. A host that runs it is told
to run it.

Unwinding stops the instance before its row forgets the vmm, so that at no moment somebody writes to disks of an
instance that the database takes for stopped.
"""

from __future__ import annotations

from pydantic import BaseModel
from sqlalchemy import Connection

from crucible_emu.host.documents import InstanceEnsureRequest
from nexus.db.schema import VmmState
from nexus.objects.instances import (
    disks_attached,
    instance_require,
    sled_for_instance,
    sled_of_instance,
    vmm_activate,
    vmm_change,
    vmm_deactivate,
    vmm_get,
    vmm_insert,
)
from nexus.objects.refusals import told_to_users
from nexus.saga import Context, Node, Saga
from nexus.sagas import hosted
from nexus.services import World
from nexus.services.hosts import Vmm
from nexus.volumes import InstanceStart, volume_checkout


class Params(BaseModel):
    """``vmm_id`` is new. ``sled_id``: where, if not anywhere."""

    instance_id: str
    vmm_id: str
    sled_id: str | None = None


async def choose_sled(saga: Context[Params]) -> str:
    """Where it is to run. Safe to rerun: what counts is what was recorded."""
    world, params = _world(saga), saga.params

    def body(connection: Connection) -> str:
        instance_require(connection, params.instance_id)
        return params.sled_id or sled_for_instance(connection, params.vmm_id)

    return await world.database.read(body)


async def create_vmm_record(saga: Context[Params]) -> None:
    """Safe to rerun: the row is found by its id."""
    world, params, sled_id = _world(saga), saga.params, saga.output("CHOOSE_SLED")
    await world.database.transact(lambda c: vmm_insert(c, params.vmm_id, params.instance_id, sled_id, world.now()))


async def unwind_vmm_record(saga: Context[Params]) -> None:
    """Safe to rerun: a vmm that is unwound is."""
    world, vmm_id = _world(saga), saga.params.vmm_id
    await world.database.transact(lambda c: vmm_change(c, vmm_id, VmmState.SAGA_UNWOUND, world.now()))


async def activate_vmm(saga: Context[Params]) -> None:
    """Safe to rerun: an instance that names this vmm does."""
    world, params = _world(saga), saga.params
    await world.database.transact(lambda c: vmm_activate(c, params.instance_id, params.vmm_id, world.now()))


async def deactivate_vmm(saga: Context[Params]) -> None:
    """Safe to rerun: an instance that names another vmm, or none, keeps it so."""
    world, params = _world(saga), saga.params
    await world.database.transact(lambda c: vmm_deactivate(c, params.instance_id, params.vmm_id, world.now()))


async def ensure_instance(saga: Context[Params]) -> None:
    """Safe to rerun: what is there is stopped, and documents of a higher generation take its place."""
    world = _world(saga)
    vmm = await _vmm(saga)
    await hosted.halted(world, vmm)
    with told_to_users():
        request = await world.database.transact(lambda c: _checked_out(c, world, saga.params, vmm))
    await hosted.ensured(world, vmm, request)


def _checked_out(connection: Connection, world: World, params: Params, vmm: Vmm) -> InstanceEnsureRequest:
    now = world.now()
    vmm_change(connection, params.vmm_id, VmmState.STARTING, now)
    reason = InstanceStart(params.vmm_id)
    disks = [
        (disk, volume_checkout(connection, disk.volume_id, reason, now).request)
        for disk in disks_attached(connection, params.instance_id)
    ]
    instance = instance_require(connection, params.instance_id)
    return hosted.instance_request(instance, sled_of_instance(connection, instance, vmm.sled_id), disks)


async def halt_instance(saga: Context[Params]) -> None:
    """Safe to rerun: what does not run is halted."""
    await hosted.halted(_world(saga), await _vmm(saga))


async def run_instance(saga: Context[Params]) -> None:
    """Safe to rerun: one that runs is told to run."""
    await hosted.running(_world(saga), await _vmm(saga))


async def record_running(saga: Context[Params]) -> None:
    """Safe to rerun: a vmm that runs does. So did one that is being stopped, or was: an earlier run wrote that down,
    and its user has gone on since (*safety*: to undo it would halt what the instance runs in by now)."""
    world, vmm_id = _world(saga), saga.params.vmm_id

    def body(connection: Connection) -> None:
        found = vmm_get(connection, vmm_id)
        if found is None or found.state not in STOPPED_SINCE:
            vmm_change(connection, vmm_id, VmmState.RUNNING, world.now())

    await world.database.transact(body)


STOPPED_SINCE = frozenset({VmmState.STOPPING, VmmState.DESTROYED})
"""What only a vmm becomes that ran."""


async def _vmm(saga: Context[Params]) -> Vmm:
    found = await _world(saga).database.read(lambda c: vmm_get(c, saga.params.vmm_id))
    assert found is not None, "its row is made by an earlier node"
    return found.vmm


def _world(saga: Context[Params]) -> World:
    world: World = saga.world
    return world


INSTANCE_START = Saga(
    "instance-start",
    Params,
    Node("CHOOSE_SLED", choose_sled),
    Node("CREATE_VMM_RECORD", create_vmm_record, undo=unwind_vmm_record),
    Node("ACTIVATE_VMM", activate_vmm, undo=deactivate_vmm),
    Node("ENSURE_INSTANCE_UNDO", undo=halt_instance),
    Node("ENSURE_INSTANCE", ensure_instance),
    Node("RUN_INSTANCE", run_instance),
    Node("RECORD_RUNNING", record_running),
)
