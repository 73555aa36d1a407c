"""What users and operators do on a light rack: through the sagas and functions that the routes of the API call.

Every function may fail *properly*: by :class:`~nexus.saga.ActionFailed`, :class:`~nexus.saga.SagaFailed` or an error of
the database that has a sentence. Then nothing has changed for the user, or what has is undone. Any other failure is a
finding. What a user must find in a disk is written down here at the moment in which the user is told that it is done.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, insert, select, update

from crucible_emu.volume.vcr import VolumeConstructionRequest
from nexus.db import schema
from nexus.db.schema import DiskState, user_data_export
from nexus.db.schema.user_visible import ExportedType, ExportState
from nexus.explore.processes import Process, run_saga
from nexus.explore.rack import BLOCK_BYTES, DISK_BYTES, Rack, Thing, pattern
from nexus.explore.upstairs import Taken, Unavailable
from nexus.objects.disks import disk_get
from nexus.objects.imports import bulk_write, bulk_write_start, bulk_write_stop
from nexus.objects.instances import (
    active_vmm,
    active_vmm_of_disk,
    disk_attach,
    disk_detach,
    instance_create,
    instance_delete,
)
from nexus.objects.sources import Blank, FromImage, FromSnapshot
from nexus.placement import AllocatedRegion, regions_of
from nexus.replacement.read_only import read_only_replacement_request
from nexus.replacement.region import RequestResult, region_replacement_request
from nexus.saga.identities import derived
from nexus.sagas import (
    disk_create,
    disk_delete,
    finalize_disk,
    image_create,
    image_delete,
    instance_start,
    instance_stop,
    remove_read_only_parent,
    snapshot_create,
    snapshot_delete,
    volume_delete,
)
from nexus.volumes import (
    Address,
    Pantry,
    ReadOnlyCopy,
    RegionSnapshot,
    volume_checkout,
    volume_checkout_randomize_ids,
)

IMPORTING = (DiskState.IMPORT_READY, DiskState.IMPORTING_FROM_BULK_WRITES)


def named(name: str, what: str) -> str:
    """The id of ``what`` of a thing, the same in every run, however many ids were drawn before."""
    return derived(name, what)


def unused(rack: Rack, name: str) -> str:
    """The name, or one like it: users draw new ids for what they make, and ids here come from names."""
    while name in rack.things:
        name += "-again"
    return name


async def _made(process: Process, thing: Thing, saga: Any, params: Any) -> Thing:
    """Run the saga that makes the thing. Until its user was told, only the database knows whether it is there."""
    thing.living = thing.sure = False
    process.rack.things[thing.name] = thing
    await run_saga(process, saga, params)
    thing.living = thing.sure = True
    return thing


async def create_disk(process: Process, name: str, source: str | None = None, *, read_only: bool = False) -> Thing:
    """A disk, blank or a copy."""
    rack = process.rack
    name = unused(rack, name)
    origin = None if source is None else rack.things[source]
    params = disk_create.Params(
        disk_id=named(name, "disk"),
        volume_id=named(name, "volume"),
        project_id=rack.project_id,
        name=name,
        description="",
        size_bytes=DISK_BYTES,
        block_size=BLOCK_BYTES,
        source=Blank()
        if origin is None
        else FromSnapshot(snapshot_id=origin.id)
        if origin.kind == "snapshot"
        else FromImage(image_id=origin.id),
    )
    beneath = {} if origin is None else dict(origin.contents)
    saga = disk_create.DISK_CREATE_READ_ONLY if read_only else disk_create.DISK_CREATE
    thing = Thing("disk", name, params.disk_id, params.volume_id, beneath=beneath, read_only=read_only)
    return await _made(process, thing, saga, params)


async def write(process: Process, name: str, *blocks: int, missed_by: int | None = None) -> None:
    """Write blocks of a detached disk, by way of a pantry, as nobody may who is not its user. ``missed_by``: a sled
    that does not answer as long as that takes, so that its copy lacks what was acknowledged."""
    rack, thing = process.rack, process.rack.things[name]
    pantry = await rack.world.pantries.choose(thing.id)
    request = await rack.database.transact(lambda c: volume_checkout(c, thing.volume_id, Pantry(), rack.now()).request)
    await rack.world.pantries.attach(pantry, thing.id, request)
    if missed_by is not None:
        rack.fabric.sleds[missed_by].trouble.silent = True
    for block in blocks:
        data = pattern(name, block, len(thing.own))
        await rack.world.pantries.bulk_write(pantry, thing.id, block * BLOCK_BYTES, data)
        thing.note(block, data)
    await rack.world.pantries.detach(pantry, thing.id)
    if missed_by is not None:
        rack.fabric.sleds[missed_by].trouble.silent = False


async def create_snapshot(process: Process, name: str, disk: str) -> Thing:
    rack, frozen = process.rack, process.rack.things[disk]
    name = unused(rack, name)
    params = snapshot_create.Params(
        snapshot_id=named(name, "snapshot"),
        volume_id=named(name, "volume"),
        destination_volume_id=named(name, "destination"),
        lock_id=named(name, "lock"),
        project_id=rack.project_id,
        disk_id=frozen.id,
        name=name,
        description="",
    )
    running = await rack.database.read(lambda c: active_vmm_of_disk(c, frozen.id))
    saga = snapshot_create.SNAPSHOT_CREATE_ATTACHED if running else snapshot_create.SNAPSHOT_CREATE_DETACHED
    thing = Thing("snapshot", name, params.snapshot_id, params.volume_id, beneath=dict(frozen.contents))
    written_before = len(frozen.written)
    try:
        return await _made(process, thing, saga, params)
    finally:
        # What was changed while it was taken may be in it or not; of several writes to a block, any may be the last in.
        after = frozen.own if frozen.letting_go else frozen.contents
        before, zeros = thing.beneath, bytes(BLOCK_BYTES)
        changed = [block for block in before | after if before.get(block) != after.get(block)]
        meanwhile = [(block, after.get(block, zeros)) for block in changed] + list(frozen.written[written_before:])
        thing.either = {block: frozenset(data for where, data in meanwhile if where == block) for block, _ in meanwhile}


async def create_image(process: Process, name: str, snapshot: str) -> Thing:
    rack, source = process.rack, process.rack.things[snapshot]
    name = unused(rack, name)
    params = image_create.Params(
        image_id=named(name, "image"),
        dest_volume_id=named(name, "volume"),
        project_id=rack.project_id,
        silo_id=rack.silo_id,
        name=name,
        description="",
        os="none",
        version="1",
        snapshot_id=source.id,
    )
    thing = Thing("image", name, params.image_id, params.dest_volume_id, beneath=source.contents)
    return await _made(process, thing, image_create.IMAGE_CREATE, params)


async def export(process: Process, name: str, source: str) -> Thing:
    """A copy of a snapshot is attached to a pantry for its owner to download. No saga of ours makes exports: what is
    there is what a step of a replacement finds."""
    rack, origin = process.rack, process.rack.things[source]
    name = unused(rack, name)
    export_id, volume_id = named(name, "export"), named(name, "volume")
    pantry = await rack.world.pantries.choose(export_id)

    def body(connection: Connection) -> VolumeConstructionRequest:
        copied = volume_checkout_randomize_ids(
            connection, origin.volume_id, volume_id, ReadOnlyCopy(), rack.now(), lambda: UUID(rack.id())
        )
        where = {"pantry_ip": pantry.ip, "pantry_port": pantry.port, "volume_id": volume_id}
        what = {"resource_id": origin.id, "resource_type": ExportedType.SNAPSHOT, "resource_deleted": False}
        row = {"id": export_id, "state": ExportState.LIVE, "generation": 1} | where | what
        connection.execute(insert(user_data_export).values(**row))
        return copied.request

    request = await rack.database.transact(body)
    await rack.world.pantries.attach(pantry, volume_id, request)
    thing = rack.things[name] = Thing("export", name, export_id, volume_id, beneath=dict(origin.contents))
    return thing


async def _end_export(process: Process, thing: Thing) -> None:
    rack = process.rack
    mine = user_data_export.c.id == thing.id
    row = rack.run(lambda c: c.execute(select(user_data_export).where(mine)).one())
    await rack.world.pantries.detach(Address.of(row.pantry_ip, row.pantry_port), thing.volume_id)
    await run_saga(process, volume_delete.VOLUME_DELETE, volume_delete.Params(volume_id=thing.volume_id))
    ended = update(user_data_export).where(mine).values(state=ExportState.DELETED)
    await rack.database.transact(lambda c: c.execute(ended) and None)


async def delete(process: Process, name: str) -> None:
    """A disk, snapshot, image or export; of one that is not there it is done."""
    rack, thing = process.rack, process.rack.things.get(name)
    if thing is None or not thing.living:
        return
    thing.sure = False
    match thing.kind:
        case "disk":
            disk = disk_delete.Params(disk_id=thing.id, project_id=rack.project_id, volume_id=thing.volume_id)
            await run_saga(process, disk_delete.DISK_DELETE, disk)
        case "snapshot":
            await run_saga(process, snapshot_delete.SNAPSHOT_DELETE, snapshot_delete.Params(snapshot_id=thing.id))
        case "image":
            await run_saga(process, image_delete.IMAGE_DELETE, image_delete.Params(image_id=thing.id))
        case "export":
            await _end_export(process, thing)
    thing.living, thing.sure = False, True


async def remove_parent(process: Process, name: str) -> None:
    """The volume lets go of what it was made of. Nobody scrubbed it: its user finds only what was written to it."""
    thing = process.rack.things[name]
    params = remove_read_only_parent.Params(volume_id=thing.volume_id, temporary_id=process.rack.id())
    thing.sure, thing.letting_go = False, not thing.read_only
    await run_saga(process, remove_read_only_parent.REMOVE_READ_ONLY_PARENT, params)
    thing.sure = True
    if not thing.read_only:
        thing.beneath = {}


# -- guests -----------------------------------------------------------------------------------------------------------


async def create_instance(process: Process, name: str) -> Thing:
    rack, instance_id = process.rack, named(name, "instance")
    await rack.database.transact(
        lambda c: instance_create(c, instance_id, rack.project_id, name, "", rack.now()) and None
    )
    thing = rack.things[name] = Thing("instance", name, instance_id)
    return thing


async def attach(process: Process, instance: str, disk: str) -> None:
    rack = process.rack
    instance_id, disk_id = rack.things[instance].id, rack.things[disk].id
    await rack.database.transact(lambda c: disk_attach(c, instance_id, disk_id, rack.now()) and None)


async def detach(process: Process, instance: str, disk: str) -> None:
    rack = process.rack
    instance_id, disk_id = rack.things[instance].id, rack.things[disk].id
    await rack.database.transact(lambda c: disk_detach(c, instance_id, disk_id, rack.now()))


async def start(process: Process, instance: str, sled_id: str | None = None) -> None:
    """On some sled that is in service, or on the one named."""
    instance_id = process.rack.things[instance].id
    params = instance_start.Params(instance_id=instance_id, vmm_id=process.rack.id(), sled_id=sled_id)
    await run_saga(process, instance_start.INSTANCE_START, params)


async def stop(process: Process, instance: str) -> None:
    params = instance_stop.Params(instance_id=process.rack.things[instance].id)
    await run_saga(process, instance_stop.INSTANCE_STOP, params)


async def guest_writes(rack: Rack, instance: str, disk: str, block: int) -> bool:
    """The guest writes a block, if it runs; whether that was acknowledged. Then it must be found for ever."""
    thing, instance_id = rack.things[disk], rack.things[instance].id
    running = await rack.database.read(lambda c: active_vmm(c, instance_id))
    if running is None:
        return False
    guest = rack.switchboard.hosts[running.vmm.address.ip].guests.get(instance_id)
    sled = rack.fabric.sled_at(running.vmm.address.ip)
    if guest is None or sled is None or not sled.alive or thing.id not in guest.disks:
        return False
    data = pattern(disk, block, "guest", len(thing.own), rack.id())
    try:
        guest.disks[thing.id].write(block, data)
    except (Taken, Unavailable):
        return False
    thing.note(block, data)
    return True


async def delete_everything(process: Process) -> None:
    """All that is there, instances and what hangs on them first. Raises what the first that fails does."""
    rack = process.rack
    for instance in rack.living("instance"):
        await stop(process, instance.name)
        rack.run(instance_delete, instance.id, rack.now())
        instance.living = False
    for thing in [each for each in rack.things.values() if each.living]:
        if thing.kind == "disk":
            await end_import(process, thing)
        await delete(process, thing.name)


def ways_to_give_disks_up(process: Process) -> Iterator[tuple[str, Callable[[], Awaitable[None]]]]:
    """What a person does about disks of which two copies are lost while they are in use: an Upstairs that misses a copy
    takes no new one, so whoever uses such a disk has to let go of it. That is said where it waits."""
    rack = process.rack
    for instance in rack.living("instance"):
        yield f"stops {instance.name}", partial(stop, process, instance.name)
    for thing in rack.living("disk"):
        found = rack.run(lambda c, one=thing.id: disk_get(c, one))
        if found is not None and found.state in IMPORTING:
            yield f"ends the import of {thing.name}", partial(end_import, process, thing)


async def end_import(process: Process, thing: Thing) -> None:
    """Of a disk that is not being imported it is done."""
    found = await process.rack.database.read(lambda c: disk_get(c, thing.id))
    if found is None:
        return
    if found.state is DiskState.IMPORTING_FROM_BULK_WRITES:
        await bulk_write_stop(process.rack.world, thing.id)
    if found.state in IMPORTING:
        await run_saga(process, finalize_disk.FINALIZE_DISK, finalize_disk.Params(disk_id=thing.id))


async def import_disk(process: Process, name: str) -> Thing:
    """A disk that its user fills block by block, with a snapshot of it in the end."""
    rack = process.rack
    name = unused(rack, name)
    params = disk_create.Params(
        disk_id=named(name, "disk"),
        volume_id=named(name, "volume"),
        project_id=rack.project_id,
        name=name,
        description="",
        size_bytes=DISK_BYTES,
        block_size=BLOCK_BYTES,
        source=Blank(),
    )
    thing = Thing("disk", name, params.disk_id, params.volume_id)
    await _made(process, thing, disk_create.DISK_CREATE_IMPORTING, params)
    await bulk_write_start(rack.world, thing.id)
    data = pattern(name, 2)
    await bulk_write(rack.world, thing.id, 2 * BLOCK_BYTES, data)
    thing.note(2, data)
    await bulk_write_stop(rack.world, thing.id)
    kept = f"{name}-snapshot"
    snapshot = snapshot_create.Params(
        snapshot_id=named(kept, "snapshot"),
        volume_id=named(kept, "volume"),
        destination_volume_id=named(kept, "destination"),
        lock_id=named(kept, "lock"),
        project_id=rack.project_id,
        disk_id=thing.id,
        name=kept,
        description="",
    )
    whole = finalize_disk.ParamsWithSnapshot(disk_id=thing.id, snapshot=snapshot)
    taken = Thing("snapshot", kept, snapshot.snapshot_id, snapshot.volume_id, beneath=dict(thing.contents))
    await _made(process, taken, finalize_disk.FINALIZE_DISK_WITH_SNAPSHOT, whole)
    return thing


# -- operators --------------------------------------------------------------------------------------------------------


def first_region(rack: Rack, volume_id: str) -> AllocatedRegion:
    """That on the sled with the lowest number."""
    found: list[AllocatedRegion] = rack.run(regions_of, volume_id)
    return min(found, key=lambda each: rack.sled_of_region(each.region_id))


async def replace_first_region(process: Process, disk: str) -> RequestResult:
    """An operator wants the first region of the disk replaced; what came of it."""
    rack = process.rack
    region = first_region(rack, rack.things[disk].volume_id)
    _, result = await rack.database.transact(
        lambda c: region_replacement_request(c, rack.world.locks, region.region_id, rack.now())
    )
    return result


async def replace_copies(process: Process, snapshot: str) -> None:
    """An operator wants every copy of the snapshot replaced that no request is open for."""
    rack = process.rack
    table, snapshot_id = schema.region_snapshot, rack.things[snapshot].id
    which = (table.c.dataset_id, table.c.region_id, table.c.snapshot_id)
    query = select(*which).where(table.c.snapshot_id == snapshot_id).order_by(*which)

    def ask(connection: Connection) -> None:
        for row in connection.execute(query).all():
            read_only_replacement_request(connection, rack.world.locks, RegionSnapshot(*row), rack.now())

    await rack.database.transact(ask)
