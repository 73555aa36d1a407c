"""disk-create, in its three forms (nexus.md §3.11).

``DISK_CREATE`` makes a disk that is blank or a copy of a snapshot or image. ``DISK_CREATE_IMPORTING`` makes one that
stays attached to a pantry, for its user to write into before anybody else sees it. ``DISK_CREATE_READ_ONLY`` makes one
of a source's own regions, and has nothing to make but rows.

Until the last node the disk is ``creating``: nobody can attach, delete or write to it, so nothing that this saga made
is somebody else's before all of it is there. In the real one a disk for an import is given away before it is attached
to its pantry; here that comes first, and so there is nothing to take back from a user.

Why it is safe to run again: every id is a parameter or reckoned from the saga's own; each row is found by its id if it
was made. A checkout that is done again only counts a generation up. An attachment is made anew in the place of the one
that an earlier run may have made (W47), for that was with another generation.

Why unwinding leaves nothing: what an agent or a pantry may have done although its node failed is undone by the node
before. A volume is undone like a volume that is deleted, for it may by then be the last that counts on its source
(W39). Its disk is still ``creating`` then, which is all that a disk without a volume may be (W4).
"""

from __future__ import annotations

from uuid import UUID

from pydantic import BaseModel
from sqlalchemy import Connection

from nexus.db.schema import DiskState
from nexus.objects.disks import Disk, Move, NewDisk, disk_get, disk_insert, disk_move, disk_pantry_clear
from nexus.objects.imports import attach_anew, detach_from_import, pantry_for_import
from nexus.objects.provisioning import charge_disk, refund
from nexus.objects.refusals import CONFLICT, told_to_users
from nexus.objects.sources import FromImage, FromSnapshot, Source, disk_check, origin_of
from nexus.saga import ActionFailed, Context, Node, Saga
from nexus.sagas.regions import RegionsWanted, addresses_made, regions_made, volume_of_regions_create
from nexus.sagas.volume_delete import undo_volume
from nexus.volumes import Deletion, ReadOnlyCopy, volume_checkout_randomize_ids, volume_state


class Params(BaseModel):
    """The disk that is asked for; ``disk_id`` and ``volume_id`` are new."""

    disk_id: str
    volume_id: str
    project_id: str
    name: str
    description: str
    size_bytes: int
    block_size: int
    source: Source


async def validate(saga: Context[Params]) -> None:
    """Safe to rerun: it only looks."""
    await _check(saga, read_only=False)


async def validate_read_only(saga: Context[Params]) -> None:
    """Safe to rerun: it only looks."""
    await _check(saga, read_only=True)


async def charge_space(saga: Context[Params]) -> None:
    """Safe to rerun: a disk is charged once."""
    world, params = saga.world, saga.params
    with told_to_users():
        await world.database.transact(
            lambda c: charge_disk(c, params.disk_id, params.project_id, params.size_bytes, world.now())
        )


async def refund_space(saga: Context[Params]) -> None:
    """Safe to rerun: only what is charged is refunded."""
    world = saga.world
    await world.database.transact(lambda c: refund(c, saga.params.disk_id, world.now()))


async def create_disk_record(saga: Context[Params]) -> None:
    """Safe to rerun: the row is found by its id."""
    world, new = saga.world, _new_disk(saga.params)
    await world.database.transact(lambda c: disk_insert(c, new, world.now()))


async def delete_disk_record(saga: Context[Params]) -> None:
    """Safe to rerun, and after its user deleted the faulted disk that an earlier run left."""
    world, disk_id = saga.world, saga.params.disk_id

    def body(connection: Connection) -> None:
        found = disk_get(connection, disk_id)
        if found is not None and not found.deleted:
            disk_move(connection, disk_id, Move.CREATION_UNDONE, world.now())

    await world.database.transact(body)


async def regions_of_the_disk(saga: Context[Params]) -> RegionsWanted:
    return RegionsWanted(saga.params.volume_id, saga.params.size_bytes, saga.params.block_size)


async def fault_disk(saga: Context[Params]) -> None:
    """An agent does not take a region back: the user sees a faulted disk, not one that is being created for ever."""
    world, disk_id = saga.world, saga.params.disk_id

    def body(connection: Connection) -> None:
        found = disk_get(connection, disk_id)
        if found is not None and found.state is DiskState.CREATING:
            disk_move(connection, disk_id, Move.CREATION_STUCK, world.now())

    await world.database.transact(body)


async def create_volume_record(saga: Context[Params]) -> None:
    """Safe to rerun: the volume is found by its id, with the key that it was made with; whatever became of the source
    since, for an action that fails after it was done is not undone."""
    world, params = saga.world, saga.params
    wanted, targets = await regions_of_the_disk(saga), addresses_made(saga)

    def body(connection: Connection) -> None:
        if volume_state(connection, params.volume_id) is Deletion.LIVE:
            return
        # *Safety* (R26): that the source is there is known, copied and counted in one transaction.
        origin = origin_of(connection, params.project_id, params.source)
        source = None if origin is None else origin.volume_id
        volume_of_regions_create(connection, world, wanted, params.disk_id, targets, source_volume_id=source)

    with told_to_users():
        await world.database.transact(body)


async def destroy_volume(saga: Context[Params]) -> None:
    """Safe to rerun: it is a volume's deletion."""
    await undo_volume(saga.world, saga.params.volume_id)


async def create_read_only_disk_records(saga: Context[Params]) -> None:
    """Disk and volume in one transaction, so there is nothing to undo. Safe to rerun, also after its user attached or
    deleted the disk: that it has a row says that this was done."""
    world, params = saga.world, saga.params

    def body(connection: Connection) -> None:
        if disk_get(connection, params.disk_id) is not None:
            return
        origin = origin_of(connection, params.project_id, params.source)
        if origin is None:
            raise ActionFailed("a read-only disk is made of a snapshot or an image", CONFLICT)
        volume_checkout_randomize_ids(
            connection, origin.volume_id, params.volume_id, ReadOnlyCopy(), world.now(), lambda: UUID(world.new_id())
        )
        disk_insert(connection, _new_disk(params, read_only=True), world.now())

    with told_to_users():
        await world.database.transact(body)


async def get_pantry_address(saga: Context[Params]) -> str:
    """Safe to rerun: what was written down first stays."""
    return str(await pantry_for_import(saga.world, saga.params.disk_id))


async def clear_pantry_address(saga: Context[Params]) -> None:
    """Safe to rerun."""
    world, disk_id = saga.world, saga.params.disk_id
    await world.database.transact(lambda c: disk_pantry_clear(c, disk_id, world.now()))


async def attach_to_pantry(saga: Context[Params]) -> None:
    """Safe to rerun: an earlier attachment is given up first."""
    await attach_anew(saga.world, saga.params.disk_id)


async def detach_from_pantry(saga: Context[Params]) -> None:
    """Safe to rerun: a pantry says of what is not attached that it is not."""
    await detach_from_import(saga.world, saga.params.disk_id)


async def finalize_disk_record(saga: Context[Params]) -> None:
    """Give the disk to its user. Safe to rerun, also after its user attached or deleted it."""
    await _give_away(saga, Move.CREATED)


async def finalize_disk_record_for_import(saga: Context[Params]) -> None:
    """As :func:`finalize_disk_record`, of a disk that is written into first."""
    await _give_away(saga, Move.CREATED_FOR_IMPORT)


_VALIDATE = Node("VALIDATE", validate)
_DISK_AND_VOLUME = (
    Node("SPACE_ACCOUNT", charge_space, undo=refund_space),
    Node("CREATE_CRUCIBLE_DISK_RECORD", create_disk_record, undo=delete_disk_record),
    *regions_made(regions_of_the_disk, leaked=fault_disk),
    Node("CREATE_VOLUME_RECORD", create_volume_record, undo=destroy_volume),
)

DISK_CREATE = Saga(
    "disk-create",
    Params,
    _VALIDATE,
    *_DISK_AND_VOLUME,
    Node("FINALIZE_DISK_RECORD", finalize_disk_record),
)

DISK_CREATE_IMPORTING = Saga(
    "disk-create-importing",
    Params,
    _VALIDATE,
    *_DISK_AND_VOLUME,
    Node("GET_PANTRY_ADDRESS", get_pantry_address, undo=clear_pantry_address),
    Node("CALL_PANTRY_ATTACH_FOR_DISK_UNDO", undo=detach_from_pantry),
    Node("CALL_PANTRY_ATTACH_FOR_DISK", attach_to_pantry),
    Node("FINALIZE_DISK_RECORD", finalize_disk_record_for_import),
)

DISK_CREATE_READ_ONLY = Saga(
    "disk-create-read-only",
    Params,
    Node("VALIDATE", validate_read_only),
    Node("SPACE_ACCOUNT", charge_space, undo=refund_space),
    Node("CREATE_READONLY_DISK_RECORDS", create_read_only_disk_records),
)


async def _check(saga: Context[Params], *, read_only: bool) -> None:
    world, params = saga.world, saga.params
    await world.database.read(
        lambda c: disk_check(
            c,
            world.sizes,
            params.project_id,
            params.size_bytes,
            params.block_size,
            params.source,
            read_only=read_only,
        )
    )


def _new_disk(params: Params, *, read_only: bool = False) -> NewDisk:
    source = params.source
    return NewDisk(
        id=params.disk_id,
        project_id=params.project_id,
        name=params.name,
        description=params.description,
        size_bytes=params.size_bytes,
        block_size=params.block_size,
        volume_id=params.volume_id,
        origin_snapshot=source.snapshot_id if isinstance(source, FromSnapshot) else None,
        origin_image=source.image_id if isinstance(source, FromImage) else None,
        read_only=read_only,
        state=DiskState.DETACHED if read_only else DiskState.CREATING,
    )


async def _give_away(saga: Context[Params], move: Move) -> None:
    world, disk_id = saga.world, saga.params.disk_id

    def body(connection: Connection) -> None:
        found: Disk | None = disk_get(connection, disk_id)
        # *Safety*: whoever finds it in another state finds it given away, and perhaps gone on since.
        if found is not None and found.state is DiskState.CREATING:
            disk_move(connection, disk_id, move, world.now())

    await world.database.transact(body)
