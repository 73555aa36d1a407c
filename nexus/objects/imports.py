"""Disks that are being imported: the pantry that has them attached, and the blocks that users write (nexus.md §3.11).

The pantry's address stands in the disk's row from before the attachment is made until after it is given up, so whoever
comes later, another Nexus or a user's next block, knows where to go. The disk's id is the name of the attachment.

What it guarantees: a block is written when :func:`bulk_write` returns. While a disk is ``import_ready`` or later in its
import it can be written to again whatever became of its pantry: one that was started again, or is gone for good, is
replaced by an attachment somewhere when the next block comes. So nobody has to keep an attachment alive, and a saga
that unwinds need not make one anew.

Why attaching may be done again (*safety*, W47): a pantry takes a second request only if it is the same as the first,
and a new checkout never is. So what may be attached is given up first, which flushes it, and the writer that was handed
the older generation has lost.
"""

from __future__ import annotations

from sqlalchemy import Connection

from crucible_emu.client.failures import ServiceError, ServiceUnreachable
from nexus.db.schema import DiskState
from nexus.objects.disks import (
    Disk,
    Move,
    disk_get,
    disk_move_strictly,
    disk_pantry_give_up,
    disk_pantry_record,
    require_disk,
)
from nexus.objects.refusals import CONFLICT, invalid_request, told_to_users
from nexus.saga import ActionFailed
from nexus.services import Gone, ServiceRefused, World
from nexus.volumes import Address, Pantry, volume_checkout

CHUNK_BYTES_MAX = 512 * 1024
"""What a pantry takes in one request."""
NOT_THERE = (404, 410)
"""How a pantry answers of what is not attached there, or was taken over."""


# -- users ------------------------------------------------------------------------------------------------------------


async def bulk_write_start(world: World, disk_id: str) -> None:
    """From now on blocks may be written. Raises :class:`~nexus.saga.ActionFailed`."""
    await _move(world, disk_id, Move.BULK_WRITE_STARTED)


async def bulk_write_stop(world: World, disk_id: str) -> None:
    """No more blocks, for now. Raises :class:`~nexus.saga.ActionFailed`."""
    await _move(world, disk_id, Move.BULK_WRITE_STOPPED)


async def bulk_write(world: World, disk_id: str, offset: int, data: bytes) -> None:
    """Write whole blocks. Raises :class:`~nexus.saga.ActionFailed`."""
    disk = await world.database.read(lambda c: require_disk(c, disk_id))
    if disk.state is not DiskState.IMPORTING_FROM_BULK_WRITES:
        wanted = DiskState.IMPORTING_FROM_BULK_WRITES
        raise invalid_request(f"disk {disk_id} is {disk.state}; it must be {wanted} for this")
    chunk_check(disk, offset, len(data))
    if disk.pantry is not None:
        try:
            await world.pantries.bulk_write(disk.pantry, disk_id, offset, data)
            return
        except Gone:
            pass
        except ServiceRefused as refusal:
            if refusal.status not in NOT_THERE:
                raise
    address = await require_attached(world, disk_id)
    await world.pantries.bulk_write(address, disk_id, offset, data)


def chunk_check(disk: Disk, offset: int, length: int) -> None:
    """Whether these are whole blocks of the disk, and not too many. Raises :class:`~nexus.saga.ActionFailed`."""
    if offset < 0 or offset % disk.block_size or length % disk.block_size:
        raise invalid_request(f"{length} bytes at {offset} are no whole blocks of {disk.block_size} bytes")
    if length > CHUNK_BYTES_MAX:
        raise invalid_request(f"{length} bytes in one request: at most {CHUNK_BYTES_MAX} are allowed")
    if offset + length > disk.size_bytes:
        raise invalid_request(f"{length} bytes at {offset} end beyond the disk, which has {disk.size_bytes}")


# -- sagas ------------------------------------------------------------------------------------------------------------


async def pantry_for_import(world: World, disk_id: str) -> Address:
    """Choose a pantry and write it down, or find the one that was, whether or not any answers now. Raises
    :class:`~nexus.saga.ActionFailed`."""
    recorded = (await world.database.read(lambda c: require_disk(c, disk_id))).pantry
    if recorded is not None:
        return recorded
    chosen = await world.pantries.choose(disk_id)
    with told_to_users():
        return await world.database.transact(lambda c: disk_pantry_record(c, disk_id, chosen, world.now()))


async def attach_anew(world: World, disk_id: str) -> None:
    """Attach the disk to the pantry that is written down. Raises :class:`~nexus.saga.ActionFailed`."""
    disk = await world.database.read(lambda c: require_disk(c, disk_id))
    if disk.pantry is None:
        raise ActionFailed(f"disk {disk_id} has no pantry", CONFLICT)
    await let_go_first(world, disk.pantry, disk_id)
    with told_to_users():
        volume = await world.database.transact(lambda c: volume_checkout(c, disk.volume_id, Pantry(), world.now()))
    await world.pantries.attach(disk.pantry, disk_id, volume.request)


async def let_go_first(world: World, pantry: Address, disk_id: str) -> None:
    """W47, *safety*: before a disk is attached the pantry gives up what an earlier run of the same node attached, for
    it refuses a second document for one disk. Raises :class:`~nexus.saga.ActionFailed`."""
    await world.pantries.detach(pantry, disk_id)


async def require_attached(world: World, disk_id: str) -> Address:
    """Where the disk is attached and active: it was, or it is now. Raises :class:`~nexus.saga.ActionFailed`."""
    disk = await world.database.read(lambda c: require_disk(c, disk_id))
    if disk.pantry is not None and await world.pantries.is_gone(disk.pantry):
        lost = disk.pantry
        await world.database.transact(lambda c: disk_pantry_give_up(c, disk_id, lost, world.now()))
    address = await pantry_for_import(world, disk_id)
    if not await _is_active(world, address, disk_id):
        await attach_anew(world, disk_id)
    return address


async def detach_from_import(world: World, disk_id: str) -> None:
    """Flush the attachment and give it up; of a disk without one, or with one that is gone, it is done. Raises
    :class:`~nexus.services.ServiceRefused`."""
    disk = await world.database.read(lambda c: disk_get(c, disk_id))
    if disk is not None and disk.pantry is not None:
        await world.pantries.detach(disk.pantry, disk_id)


# -- how --------------------------------------------------------------------------------------------------------------


async def _move(world: World, disk_id: str, move: Move) -> None:
    def body(connection: Connection) -> None:
        disk_move_strictly(connection, disk_id, move, world.now())

    with told_to_users():
        await world.database.transact(body)


async def _is_active(world: World, address: Address, disk_id: str) -> bool:
    """*Optimisation*, and kinder to others who write at the same moment: what is attached is left as it is."""
    try:
        return (await world.pantries.client(address).volume_status(disk_id)).active
    except (ServiceError, ServiceUnreachable):
        return False
