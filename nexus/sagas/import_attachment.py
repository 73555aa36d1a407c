"""A disk that is being imported, and the pantry that has it attached meanwhile (nexus.md §3.11, §3.14).

The pantry's address stands in the disk's row from before the attachment is made until after it is given up, so whoever
comes later, another Nexus or a user's next block, knows where to go. The disk's id is the name of the attachment.

Why attaching may be done again (*safety*, W47): a pantry takes a second request only if it is the same as the first,
and a new checkout never is. So what may be attached is given up first. Nobody writes through it at that time: a disk is
written to only while it is imported from bulk writes, and is neither created nor finalized then.
"""

from __future__ import annotations

from nexus.objects.disks import disk_get, disk_pantry_record, require_disk
from nexus.objects.refusals import CONFLICT, told_to_users
from nexus.saga import ActionFailed
from nexus.services import World
from nexus.volumes import Address, Pantry, volume_checkout


async def pantry_for_import(world: World, disk_id: str) -> Address:
    """Choose a pantry and write it down, or find the one that was; raises :class:`~nexus.saga.ActionFailed`."""
    chosen = await world.pantries.choose(disk_id)
    with told_to_users():
        return await world.database.transact(lambda c: disk_pantry_record(c, disk_id, chosen, world.now()))


async def attach_for_import(world: World, disk_id: str) -> None:
    """Attach the disk to the pantry that is written down. Raises :class:`~nexus.saga.ActionFailed`."""
    disk = await world.database.read(lambda c: require_disk(c, disk_id))
    if disk.pantry is None:
        raise ActionFailed(f"disk {disk_id} has no pantry", CONFLICT)
    await world.pantries.detach(disk.pantry, disk_id)
    with told_to_users():
        volume = await world.database.transact(lambda c: volume_checkout(c, disk.volume_id, Pantry(), world.now()))
    await world.pantries.attach(disk.pantry, disk_id, volume.request)


async def detach_for_import(world: World, disk_id: str) -> None:
    """Give the attachment up; of a disk without a pantry, or with one that is gone, it is done."""
    disk = await world.database.read(lambda c: disk_get(c, disk_id))
    if disk is not None and disk.pantry is not None:
        await world.pantries.detach(disk.pantry, disk_id)
