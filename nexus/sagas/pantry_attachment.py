"""A disk that nobody runs, at a pantry for as long as a saga needs it: nodes that several sagas share (§3.13).

    *taken_to_a_pantry(disk_of_the_saga),
    ... what is done with it there ...
    Node("CALL_PANTRY_DETACH", partial(detach, ...)), Node("DETACH_DISK_FROM_PANTRY", ...)

The disk is in maintenance meanwhile: it is neither attached to an instance nor deleted. A disk that waits in an import
(finalizing) is at its pantry already, and stays there; one that is attached to a stopped instance is not touched, and
whoever starts the instance takes it over.

Why each node may run again (*safety*): the pantry is chosen once and recorded. Attaching begins with detaching, for a
pantry refuses a second document for one disk, and each document that is handed out has a generation of its own (W47);
so what a dead run attached is given up, and its writer has lost to the new one. The disk says which saga has it in
hand, so that no saga ends the maintenance of another.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection

from nexus.db.schema import DiskState
from nexus.objects.disks import Disk, Move, disk_get, disk_in_hand, disk_move, disk_move_on, require_disk
from nexus.objects.imports import let_go_first
from nexus.objects.refusals import UNAVAILABLE, told_to_users
from nexus.placement import regions_of
from nexus.saga import ActionFailed, Context, Node
from nexus.services import World
from nexus.services.gone import dataset_gone
from nexus.volumes import Address, Pantry, volume_checkout

DiskOf = Callable[[Context[Any]], str]
"""The id of the disk that a saga is about."""


def taken_to_a_pantry(disk_of: DiskOf) -> tuple[Node, Node, Node, Node]:
    """GET_PANTRY_ADDRESS, ATTACH_DISK_TO_PANTRY, CALL_PANTRY_ATTACH_UNDO, CALL_PANTRY_ATTACH."""

    async def choose(saga: Context[Any]) -> dict[str, Any]:
        """Where; and whether it is there already. Safe to rerun: what counts is what was recorded."""
        world: World = saga.world
        disk = await world.database.read(lambda c: require_disk(c, disk_of(saga)))
        if disk.state is DiskState.FINALIZING and disk.pantry is not None:
            return {"address": str(disk.pantry), "attached_before": True}
        return {"address": str(await world.pantries.choose(saga.saga_id)), "attached_before": False}

    async def take(saga: Context[Any]) -> None:
        """Safe to rerun: a disk that this saga has in hand is taken."""
        world: World = saga.world
        await world.database.transact(lambda c: disk_take(c, world, disk_of(saga), saga.saga_id))

    async def give_back(saga: Context[Any]) -> None:
        await give_disk_back(saga, disk_of)

    async def attach(saga: Context[Any]) -> None:
        """Safe to rerun: it begins with detaching."""
        if saga.output("GET_PANTRY_ADDRESS")["attached_before"]:
            return
        world: World = saga.world
        disk = await world.database.read(lambda c: require_disk(c, disk_of(saga)))
        await let_go_first(world, pantry_of(saga), disk.id)
        await world.database.read(lambda c: require_copies(c, disk))
        with told_to_users():
            volume = await world.database.transact(lambda c: volume_checkout(c, disk.volume_id, Pantry(), world.now()))
        await world.pantries.attach(pantry_of(saga), disk.id, volume.request)

    async def detach(saga: Context[Any]) -> None:
        await detach_from_pantry(saga, disk_of)

    return (
        Node("GET_PANTRY_ADDRESS", choose),
        Node("ATTACH_DISK_TO_PANTRY", take, undo=give_back),
        Node("CALL_PANTRY_ATTACH_UNDO", undo=detach),
        Node("CALL_PANTRY_ATTACH", attach),
    )


def require_copies(connection: Connection, disk: Disk) -> None:
    """*Liveness*: with a copy that is gone for good no pantry activates the volume. The patience with that begins again
    when this Nexus dies, and the replacement waits for the lock that the saga has: so it is looked up, too. Raises
    :class:`~nexus.saga.ActionFailed`."""
    for each in regions_of(connection, disk.volume_id):
        if dataset_gone(connection, each.dataset_id):
            raise ActionFailed(f"a copy of disk {disk.id} is lost, and not replaced yet: try again later", UNAVAILABLE)


def given_back(disk_of: DiskOf) -> Node:
    """DETACH_DISK_FROM_PANTRY: the maintenance has ended."""

    async def give_back(saga: Context[Any]) -> None:
        await give_disk_back(saga, disk_of)

    return Node("DETACH_DISK_FROM_PANTRY", give_back)


def detached(disk_of: DiskOf) -> Node:
    """CALL_PANTRY_DETACH: the pantry has flushed the disk and let go of it."""

    async def detach(saga: Context[Any]) -> None:
        await detach_from_pantry(saga, disk_of)

    return Node("CALL_PANTRY_DETACH", detach)


def pantry_of(saga: Context[Any]) -> Address:
    """Where the disk is, for nodes after GET_PANTRY_ADDRESS."""
    return Address.parse(saga.output("GET_PANTRY_ADDRESS")["address"])


async def detach_from_pantry(saga: Context[Any], disk_of: DiskOf) -> None:
    """Safe to rerun: what is not attached is detached. A disk that was there before stays."""
    if not saga.output("GET_PANTRY_ADDRESS")["attached_before"]:
        await saga.world.pantries.detach(pantry_of(saga), disk_of(saga))


async def give_disk_back(saga: Context[Any], disk_of: DiskOf) -> None:
    """Safe to rerun: a disk that this saga does not have in hand is as it left it, or has gone on since."""
    world: World = saga.world
    await world.database.transact(
        lambda c: disk_move_on(c, disk_of(saga), Move.MAINTENANCE_ENDED, world.now(), saga_id=saga.saga_id)
    )


def disk_take(connection: Connection, world: World, disk_id: str, saga_id: str) -> Disk:
    """The saga has the disk to itself, or finds it where nobody runs it. Raises :class:`~nexus.saga.ActionFailed`
    (unavailable) for a disk that is on its way somewhere."""
    disk = require_disk(connection, disk_id)
    ours = disk_in_hand(connection, disk_id, saga_id)
    match disk.state:
        case DiskState.DETACHED:
            with told_to_users():
                disk_move(connection, disk_id, Move.MAINTENANCE_STARTED, world.now(), saga_id=saga_id)
        case DiskState.ATTACHED:
            pass  # whether its instance runs is asked by the checkout, in one transaction with that
        case DiskState.MAINTENANCE | DiskState.FINALIZING if ours:
            pass
        case _:
            raise ActionFailed(f"disk {disk.name!r} is {disk.state}: try again later", UNAVAILABLE)
    found = disk_get(connection, disk_id)
    assert found is not None
    return found
