"""disk-delete: a disk's row, what it is charged, and its volume (nexus.md §3.12).

A disk that could not be deleted to the end comes back as a faulted one, called ``deleted-`` and its id, for its name
may be somebody else's by then. It is charged again, and its user may delete it again: its volume is soft-deleted
perhaps, and goes on from there.

Why a rerun does not meet somebody else (*safety*): the row of a disk that is being deleted says which saga does that.
Nobody else finds the disk, and a second deletion of it is refused; so what an undo finds in its saga's hands is as the
action left it, and what it does not find there it has given back before.
"""

from __future__ import annotations

from pydantic import BaseModel
from sqlalchemy import Connection

from nexus.db import Conflict, NotFound
from nexus.objects.disks import Move, disk_get, disk_in_hand, disk_move, disk_move_on
from nexus.objects.provisioning import charge_disk, refund
from nexus.objects.refusals import invalid_request, not_found
from nexus.saga import Context, Node, Saga, SubSaga
from nexus.sagas import volume_delete
from nexus.sagas.volume_delete import VOLUME_DELETE


class Params(BaseModel):
    """Which disk, and what belongs to it."""

    disk_id: str
    project_id: str
    volume_id: str


async def delete_disk_record(saga: Context[Params]) -> None:
    """Only a detached or faulted disk. Safe to rerun: it is in this saga's hands then."""
    world, disk_id = saga.world, saga.params.disk_id
    try:
        await world.database.transact(
            lambda c: disk_move(c, disk_id, Move.DELETED, world.now(), saga_id=saga.saga_id) and None
        )
    except Conflict as error:
        raise invalid_request(f"disk {disk_id} cannot be deleted: it is {error.state}") from error
    except NotFound as error:
        raise not_found("disk", disk_id) from error


async def restore_disk_record(saga: Context[Params]) -> None:
    """Safe to rerun: the second time the disk is not in this saga's hands any more."""
    world, disk_id = saga.world, saga.params.disk_id
    name = {"name": f"deleted-{disk_id}"}
    await world.database.transact(
        lambda c: disk_move_on(c, disk_id, Move.DELETION_UNDONE, world.now(), saga_id=saga.saga_id, also=name)
    )


async def refund_space(saga: Context[Params]) -> None:
    """Safe to rerun: only what is charged is refunded."""
    world = saga.world
    await world.database.transact(lambda c: refund(c, saga.params.disk_id, world.now()))


async def charge_space(saga: Context[Params]) -> None:
    """Safe to rerun: only what is not charged is charged, and only while the disk is in this saga's hands."""
    world, params = saga.world, saga.params

    def body(connection: Connection) -> None:
        disk = disk_get(connection, params.disk_id)
        if disk is not None and disk_in_hand(connection, params.disk_id, saga.saga_id):
            charge_disk(connection, disk.id, params.project_id, disk.size_bytes, world.now())

    await world.database.transact(body)


async def volume_of_the_disk(saga: Context[Params]) -> volume_delete.Params:
    return volume_delete.Params(volume_id=saga.params.volume_id)


DISK_DELETE = Saga(
    "disk-delete",
    Params,
    Node("DELETE_DISK_RECORD", delete_disk_record, undo=restore_disk_record),
    Node("SPACE_ACCOUNT", refund_space, undo=charge_space),
    SubSaga("DELETE_VOLUME", VOLUME_DELETE, params=volume_of_the_disk),
)
