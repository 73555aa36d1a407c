"""snapshot-create: freeze what a disk holds, under a guest or without one (nexus.md §3.13).

An Upstairs flushes the disk and has each of its three Downstairs take a snapshot: that of the guest (*attached*), or
one that a pantry starts for this (*detached*). The agents then serve the snapshots read-only, and the snapshot's volume
is the disk's document with these in the place of its regions. Beside it stands an empty volume of the same size, where
a scrubber would copy the snapshot to.

What may happen between the nodes: the guest goes on writing (the agents' snapshots do not change), stops, or its sled
is lost; the source of the disk is deleted (the snapshot's volume counts on it in the transaction that makes it); this
Nexus dies. What may not: a replacement changes which regions the disk has (TAKE_VOLUME_LOCK, R32), the disk is deleted
(it is in maintenance, or is kept by its instance while a snapshot of it is being made).

Why each node may run again is said at each. Asking twice for the agents' snapshots is where that is not obvious: a
Downstairs that has one keeps it, so if a first attempt came to some of the three only, the second freezes a later
moment on the others. RECORD_LEDGER finds out: it asks what all three hold, extent by extent, and a snapshot whose
copies differ never becomes one (*safety*). What they agree on is written down, and every copy that is ever made of the
snapshot can be held against it.

The order of the undos is that of deletion, and the rows go last (W43): a region snapshot is first marked, so that
nobody finds it by an address that its agent is about to give to another; then it is stopped, then destroyed; then its
row goes, which kept the region underneath.

What differs from the real one: the agents' snapshots are undone by a node of their own before the request, because a
request that fails may have come half-way (W44); the volume of an unwinding saga is deleted with all that it was the
last to count on (W39).
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from pydantic import BaseModel
from sqlalchemy import Connection

from nexus.db.schema import SnapshotState, VmmState
from nexus.objects.disks import disk_in_hand, require_disk
from nexus.objects.instances import active_vmm_of_disk
from nexus.objects.provisioning import charge_snapshot, refund
from nexus.objects.refusals import UNAVAILABLE, invalid_request, not_found, told_to_users
from nexus.objects.snapshots import Change, Snapshot, snapshot_change, snapshot_insert
from nexus.saga import ActionFailed, Context, Node, Saga
from nexus.sagas import frozen_regions
from nexus.sagas.pantry_attachment import detached, given_back, pantry_of, require_copies, taken_to_a_pantry
from nexus.sagas.regions import RegionsWanted, addresses_made, regions_made, volume_of_regions_create
from nexus.sagas.volume_delete import undo_volume
from nexus.services import World
from nexus.volumes import Address, CopyAndModify, volume_checkout, volume_create, volume_get, walks
from nexus.volumes.at_rest import generation_of, rest_proved


class Params(BaseModel):
    """``volume_id``: the snapshot's. ``destination_volume_id``: of the empty one beside it. ``lock_id``: under which
    the disk's volume is locked. All ids are drawn by the caller."""

    snapshot_id: str
    volume_id: str
    destination_volume_id: str
    lock_id: str
    project_id: str
    disk_id: str
    name: str
    description: str


def _disk_id(saga: Context[Params]) -> str:
    return saga.params.disk_id


async def look_at_disk(saga: Context[Params]) -> dict[str, Any]:
    """What is to be frozen. Safe to rerun: a disk's volume and size never change."""
    world, params = _world(saga), saga.params
    disk = await world.database.read(lambda c: require_disk(c, params.disk_id))
    if disk.project_id != params.project_id:
        raise not_found("disk", params.disk_id)
    if disk.read_only:
        raise invalid_request(f"disk {disk.name!r} is read-only: there is nothing in it that its source has not")
    return {"volume_id": disk.volume_id, "size_bytes": disk.size_bytes, "block_size": disk.block_size}


async def take_volume_lock(saga: Context[Params]) -> None:
    """Safe to rerun: who has the lock has it."""
    world, volume_id, lock_id = _world(saga), _frozen(saga)["volume_id"], saga.params.lock_id
    with told_to_users():
        await world.database.transact(
            lambda c: world.locks.volume_repair_overtake(c, volume_id, lock_id, world.now()).require()
        )


async def release_volume_lock(saga: Context[Params]) -> None:
    """Safe to rerun: a lock that is not held under this id is let go of."""
    world, lock_id = _world(saga), saga.params.lock_id
    volume_id = _frozen(saga)["volume_id"]
    await world.database.transact(lambda c: world.locks.volume_repair_delete(c, volume_id, lock_id))


async def destination_wanted(saga: Context[Params]) -> RegionsWanted:
    frozen = _frozen(saga)
    return RegionsWanted(saga.params.destination_volume_id, frozen["size_bytes"], frozen["block_size"])


async def create_destination_volume_record(saga: Context[Params]) -> None:
    """Safe to rerun: the volume is made, with its key, or it is there."""
    world = _world(saga)
    wanted, targets = await destination_wanted(saga), addresses_made(saga)
    with told_to_users():
        await world.database.transact(lambda c: volume_of_regions_create(c, world, wanted, wanted.volume_id, targets))


async def delete_destination_volume_record(saga: Context[Params]) -> None:
    """Safe to rerun: it is a volume's deletion. Its regions need not be those that were made for it: one that was lost
    meanwhile has a successor, of which only the volume knows."""
    await undo_volume(_world(saga), saga.params.destination_volume_id)


async def create_snapshot_record(saga: Context[Params]) -> None:
    """Safe to rerun: the row is found by its id. From here on the disk does not leave its instance."""
    world, params, frozen = _world(saga), saga.params, _frozen(saga)
    wanted = Snapshot(
        id=params.snapshot_id,
        project_id=params.project_id,
        name=params.name,
        description=params.description,
        disk_id=params.disk_id,
        volume_id=params.volume_id,
        destination_volume_id=params.destination_volume_id,
        state=SnapshotState.CREATING,
        gen=1,
        block_size=frozen["block_size"],
        size_bytes=frozen["size_bytes"],
    )
    await world.database.transact(lambda c: snapshot_insert(c, wanted, world.now()))


async def delete_snapshot_record(saga: Context[Params]) -> None:
    """Safe to rerun: a row that is destroyed is."""
    world, snapshot_id = _world(saga), saga.params.snapshot_id
    await world.database.transact(lambda c: snapshot_change(c, snapshot_id, Change.UNDO, world.now()))


async def charge_space(saga: Context[Params]) -> None:
    """Safe to rerun: what is charged is charged once."""
    world, params, size_bytes = _world(saga), saga.params, _frozen(saga)["size_bytes"]
    with told_to_users():
        await world.database.transact(
            lambda c: charge_snapshot(c, params.snapshot_id, params.project_id, size_bytes, world.now())
        )


async def refund_space(saga: Context[Params]) -> None:
    world, snapshot_id = _world(saga), saga.params.snapshot_id
    await world.database.transact(lambda c: refund(c, snapshot_id, world.now()))


# -- the moment -------------------------------------------------------------------------------------------------------


async def destroy_snapshots(saga: Context[Params]) -> None:
    """Safe to rerun: what agents do not have is destroyed, and rows that are gone are gone."""
    await frozen_regions.destroy(_world(saga), _frozen(saga)["volume_id"], saga.params.snapshot_id)


async def send_snapshot_request(saga: Context[Params]) -> None:
    """Safe to rerun: a Downstairs that has the snapshot keeps it; see above for a first attempt that came half-way."""
    world, params = _world(saga), saga.params
    active = await world.database.read(lambda c: active_vmm_of_disk(c, params.disk_id))
    if active is None or active.state is not VmmState.RUNNING:
        raise ActionFailed(f"no running instance has disk {params.disk_id}: it cannot be flushed", UNAVAILABLE)
    await world.hosts.snapshot(active.vmm, params.disk_id, params.snapshot_id)


async def call_pantry_snapshot(saga: Context[Params]) -> None:
    """As :func:`send_snapshot_request`."""
    await _world(saga).database.read(lambda c: require_copies(c, require_disk(c, saga.params.disk_id)))
    await _world(saga).pantries.snapshot(pantry_of(saga), saga.params.disk_id, saga.params.snapshot_id)


# -- serving it -------------------------------------------------------------------------------------------------------


async def stop_running_snapshots(saga: Context[Params]) -> None:
    """Safe to rerun: what is marked is marked, and what does not run is stopped."""
    await frozen_regions.stop(_world(saga), _frozen(saga)["volume_id"], saga.params.snapshot_id)


async def start_running_snapshots(saga: Context[Params]) -> dict[str, str]:
    """Where each region's snapshot is served, by the address of the region. Safe to rerun: an agent that serves a
    snapshot says where, and a row that says so is there."""
    return await frozen_regions.run(_world(saga), _frozen(saga)["volume_id"], saga.params.snapshot_id)


async def record_ledger(saga: Context[Params]) -> None:
    """Safe to rerun: what was frozen does not change. Of a disk that nobody can have got since it was frozen, the
    copies are known to be alike, too (W54)."""
    world, disk_id, volume_id = _world(saga), saga.params.disk_id, _frozen(saga)["volume_id"]
    await frozen_regions.record(world, _frozen(saga), saga.params.snapshot_id)

    def body(connection: Connection) -> None:
        volume = volume_get(connection, volume_id)
        # *Safety*: only while this saga has the disk in hand, from before it was frozen on; else an instance may have
        # started and written since.
        if volume is not None and disk_in_hand(connection, disk_id, saga.saga_id):
            rest_proved(connection, volume_id, generation_of(volume.request), world.now())

    await world.database.transact(body)


async def forget_ledger(saga: Context[Params]) -> None:
    await frozen_regions.forget(_world(saga), saga.params.snapshot_id)


async def create_volume_record(saga: Context[Params]) -> None:
    """Safe to rerun: a volume that is there was made by an earlier run, with other random ids in it."""
    world, volume_id = _world(saga), saga.params.volume_id
    sockets: dict[str, str] = saga.output("START_RUNNING_SNAPSHOT")
    replaced = {Address.parse(region): Address.parse(snapshot) for region, snapshot in sockets.items()}

    def body(connection: Connection) -> None:
        found = volume_get(connection, volume_id)
        if found is not None and not found.deleted:
            return
        source = volume_checkout(connection, _frozen(saga)["volume_id"], CopyAndModify(), world.now())
        request = walks.snapshot_of_disk(source.request, replaced, lambda: UUID(world.new_id()))
        volume_create(connection, volume_id, request, world.now())

    with told_to_users():
        await world.database.transact(body)


async def delete_volume_record(saga: Context[Params]) -> None:
    """Safe to rerun, as volume-delete is."""
    await undo_volume(_world(saga), saga.params.volume_id)


async def finalize_snapshot_record(saga: Context[Params]) -> None:
    """Safe to rerun: a snapshot that is ready is."""
    world, snapshot_id = _world(saga), saga.params.snapshot_id
    await world.database.transact(lambda c: snapshot_change(c, snapshot_id, Change.FINISH, world.now()))


def _world(saga: Context[Params]) -> World:
    world: World = saga.world
    return world


def _frozen(saga: Context[Params]) -> dict[str, Any]:
    """The disk's volume, and its size."""
    found: dict[str, Any] = saga.output("LOOK_AT_DISK")
    return found


_BEFORE = (
    Node("LOOK_AT_DISK", look_at_disk),
    Node("TAKE_VOLUME_LOCK", take_volume_lock, undo=release_volume_lock),
    *regions_made(destination_wanted),
    Node("CREATE_DESTINATION_VOLUME_RECORD", create_destination_volume_record, undo=delete_destination_volume_record),
    Node("CREATE_SNAPSHOT_RECORD", create_snapshot_record, undo=delete_snapshot_record),
    Node("SPACE_ACCOUNT", charge_space, undo=refund_space),
)
_AFTER = (
    Node("START_RUNNING_SNAPSHOT_UNDO", undo=stop_running_snapshots),
    Node("START_RUNNING_SNAPSHOT", start_running_snapshots),
    Node("RECORD_LEDGER", record_ledger, undo=forget_ledger),
    Node("CREATE_VOLUME_RECORD", create_volume_record, undo=delete_volume_record),
    Node("FINALIZE_SNAPSHOT_RECORD", finalize_snapshot_record),
)
_RELEASE = Node("RELEASE_VOLUME_LOCK", release_volume_lock)

SNAPSHOT_CREATE_ATTACHED = Saga(
    "snapshot-create-attached",
    Params,
    *_BEFORE,
    Node("SNAPSHOT_REQUEST_UNDO", undo=destroy_snapshots),
    Node("SEND_SNAPSHOT_REQUEST_TO_SLED_AGENT", send_snapshot_request),
    *_AFTER,
    _RELEASE,
)

SNAPSHOT_CREATE_DETACHED = Saga(
    "snapshot-create-detached",
    Params,
    *_BEFORE,
    *taken_to_a_pantry(_disk_id),
    Node("SNAPSHOT_REQUEST_UNDO", undo=destroy_snapshots),
    Node("CALL_PANTRY_SNAPSHOT", call_pantry_snapshot),
    detached(_disk_id),
    *_AFTER,
    given_back(_disk_id),
    _RELEASE,
)
