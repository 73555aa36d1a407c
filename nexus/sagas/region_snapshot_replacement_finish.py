"""region-snapshot-replacement-finish: nothing is left to do, and the holder volume goes (nexus.md §3.8).

Why it cannot miss a volume (R24, *safety*): the transaction that takes the request in hand looks at both conditions.
*The old target's row is gone*: a volume that reads from it would have a reference, and with a reference the row is
there; and nothing new can refer to a row that is not there. *No step is under way or owns a stash*: a step's volume is
locked under its id, and its stash is known by it alone. No step is made for a request that is not *running*, so that
both hold from then on. (The task looks as well, before it starts the saga; that is an *optimisation*.)

Deleting the holder lets go of the clone; if everybody who read from it was deleted meanwhile, it is destroyed here.

Why each node may run again: the request recognises its saga, and volume-delete bears anything. The volume's lock goes
in the transaction that completes the request, and a request that waits for it has the clone's disk lost, or is an
operator's: it finds a snapshot of three copies.
"""

from __future__ import annotations

from pydantic import BaseModel
from sqlalchemy import Connection

from nexus.objects.refusals import told_to_users
from nexus.replacement import read_only
from nexus.replacement.machine import move
from nexus.replacement.read_only import READ_ONLY_REPLACEMENT, ReadOnlyEdge
from nexus.saga import Context, Node, Saga, SubSaga
from nexus.sagas import volume_delete
from nexus.sagas.volume_delete import VOLUME_DELETE
from nexus.services import World


class Params(BaseModel):
    """Which request."""

    request_id: str


async def set_saga_id(saga: Context[Params]) -> None:
    """Safe to rerun: it recognises itself, and what was done then stays done."""
    world: World = saga.world

    def body(connection: Connection) -> None:
        read_only.require_nothing_left(connection, saga.params.request_id)
        move(
            connection, READ_ONLY_REPLACEMENT, ReadOnlyEdge.COMPLETE_BEGUN, saga.params.request_id, saga_id=saga.saga_id
        )

    with told_to_users():
        await world.database.transact(body)


async def unset_saga_id(saga: Context[Params]) -> None:
    """Safe to rerun, as above."""
    await _move(saga, ReadOnlyEdge.COMPLETE_UNDONE)


async def holder_of_the_request(saga: Context[Params]) -> volume_delete.Params:
    """Safe to rerun: it was written down for good."""
    world: World = saga.world
    with told_to_users():
        request = await world.database.read(lambda c: read_only.read_only_replacement_get(c, saga.params.request_id))
    assert request.new_region_volume_id is not None
    return volume_delete.Params(volume_id=request.new_region_volume_id)


async def update_request_record(saga: Context[Params]) -> None:
    """Safe to rerun: it recognises itself."""
    await _move(saga, ReadOnlyEdge.COMPLETE)


async def _move(saga: Context[Params], edge: ReadOnlyEdge) -> None:
    world: World = saga.world
    with told_to_users():
        await world.database.transact(
            lambda c: move(
                c, READ_ONLY_REPLACEMENT, edge, saga.params.request_id, saga_id=saga.saga_id, locks=world.locks
            )
        )


REGION_SNAPSHOT_REPLACEMENT_FINISH = Saga(
    "region-snapshot-replacement-finish",
    Params,
    Node("SET_SAGA_ID", set_saga_id, undo=unset_saga_id),
    SubSaga("DELETE_NEW_REGION_VOLUME", VOLUME_DELETE, params=holder_of_the_request),
    Node("UPDATE_REQUEST_RECORD", update_request_record),
)
