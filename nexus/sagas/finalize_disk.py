"""finalize-disk: the import of a disk is over, and it is a disk like any other (nexus.md §3.14).

``FINALIZE_DISK_WITH_SNAPSHOT`` takes a snapshot of what was imported on the way, while the pantry has the disk still.

Why a rerun does not meet somebody else (*safety*): while the disk is ``finalizing`` its row says which saga has it in
hand. A second request to finalize it is refused, the snapshot's saga is part of this one and finds the disk in its own
hands, and what is not in this saga's hands any more has been given back before.

Why an undo need not attach the disk again: an attachment that is given up while the disk stays in its import is made
anew by whoever needs it next (:mod:`nexus.objects.imports`), here and when the user's next block comes.
"""

from __future__ import annotations

from pydantic import BaseModel

from nexus.objects.disks import Move, disk_move_on, disk_move_strictly, disk_pantry_clear
from nexus.objects.imports import detach_from_import, require_attached
from nexus.objects.refusals import told_to_users
from nexus.saga import Context, Node, Saga, SubSaga
from nexus.sagas import snapshot_create
from nexus.sagas.snapshot_create import SNAPSHOT_CREATE_DETACHED


class Params(BaseModel):
    """Which disk."""

    disk_id: str


class ParamsWithSnapshot(Params):
    """``snapshot``: of the same disk."""

    snapshot: snapshot_create.Params


async def set_finalizing_state(saga: Context[Params]) -> None:
    """Safe to rerun: the disk is in this saga's hands then."""
    world, disk_id = saga.world, saga.params.disk_id

    with told_to_users():
        await world.database.transact(
            lambda c: disk_move_strictly(c, disk_id, Move.FINALIZING_STARTED, world.now(), saga_id=saga.saga_id)
        )


async def set_import_ready_state(saga: Context[Params]) -> None:
    """Safe to rerun: a disk that is not in this saga's hands was given back before."""
    world, disk_id = saga.world, saga.params.disk_id
    await world.database.transact(
        lambda c: disk_move_on(c, disk_id, Move.FINALIZING_UNDONE, world.now(), saga_id=saga.saga_id)
    )


async def attach_to_pantry(saga: Context[Params]) -> None:
    """A snapshot is taken of what is attached. Safe to rerun: what is attached stays."""
    await require_attached(saga.world, saga.params.disk_id)


async def snapshot_of_the_disk(saga: Context[ParamsWithSnapshot]) -> snapshot_create.Params:
    return saga.params.snapshot


async def detach_from_pantry(saga: Context[Params]) -> None:
    """Safe to rerun: a pantry says of what is not attached that it is not."""
    await detach_from_import(saga.world, saga.params.disk_id)


async def clear_pantry_address(saga: Context[Params]) -> None:
    """Safe to rerun."""
    world, disk_id = saga.world, saga.params.disk_id
    await world.database.transact(lambda c: disk_pantry_clear(c, disk_id, world.now()))


async def set_detached_state(saga: Context[Params]) -> None:
    """Give the disk to its user. Safe to rerun, also after its user attached or deleted it: it is not in this saga's
    hands then."""
    world, disk_id = saga.world, saga.params.disk_id
    await world.database.transact(lambda c: disk_move_on(c, disk_id, Move.FINALIZED, world.now(), saga_id=saga.saga_id))


_BEGIN = Node("SET_FINALIZING_STATE", set_finalizing_state, undo=set_import_ready_state)
_END = (
    Node("CALL_PANTRY_DETACH", detach_from_pantry),
    Node("CLEAR_PANTRY_ADDRESS", clear_pantry_address),
    Node("SET_DETACHED_STATE", set_detached_state),
)

FINALIZE_DISK = Saga("finalize-disk", Params, _BEGIN, *_END)

FINALIZE_DISK_WITH_SNAPSHOT = Saga(
    "finalize-disk-with-snapshot",
    ParamsWithSnapshot,
    _BEGIN,
    Node("CALL_PANTRY_ATTACH", attach_to_pantry),
    SubSaga("SNAPSHOT", SNAPSHOT_CREATE_DETACHED, params=snapshot_of_the_disk),
    *_END,
)
