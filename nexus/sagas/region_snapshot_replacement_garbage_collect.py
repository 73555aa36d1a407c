"""region-snapshot-replacement-garbage-collect: the start saga's stash goes (nexus.md §3.5).

The stash holds the reference to the old target that the snapshot's volume had. Deleting it lets go of that; if no other
volume counts on the old target, this is where it is destroyed.

Why the request is *running* only after this (R9, *safety*): steps look for volumes that count on the old target. The
stash is such a volume; a step for it would put the target into another stash, the next step into yet another, and it
would never be freed.

Why each node may run again: the request recognises the saga that has it in hand, and volume-delete bears anything. A
stash that was deleted only in part is deleted further by the next attempt, for the request goes back to *replacement
done* and the task starts this again.
"""

from __future__ import annotations

from pydantic import BaseModel

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
    """Safe to rerun: it recognises itself."""
    await _move(saga, ReadOnlyEdge.DELETE_OLD)


async def unset_saga_id(saga: Context[Params]) -> None:
    """Safe to rerun, as above."""
    await _move(saga, ReadOnlyEdge.DELETE_OLD_UNDONE)


async def stash_of_the_request(saga: Context[Params]) -> volume_delete.Params:
    """Safe to rerun: it was written down for good."""
    world: World = saga.world
    with told_to_users():
        request = await world.database.read(lambda c: read_only.read_only_replacement_get(c, saga.params.request_id))
    assert request.old_snapshot_volume_id is not None
    return volume_delete.Params(volume_id=request.old_snapshot_volume_id)


async def update_request_record(saga: Context[Params]) -> None:
    """Safe to rerun: it recognises itself."""
    await _move(saga, ReadOnlyEdge.RUN)


async def _move(saga: Context[Params], edge: ReadOnlyEdge) -> None:
    world: World = saga.world
    with told_to_users():
        await world.database.transact(
            lambda c: move(c, READ_ONLY_REPLACEMENT, edge, saga.params.request_id, saga_id=saga.saga_id)
        )


REGION_SNAPSHOT_REPLACEMENT_GARBAGE_COLLECT = Saga(
    "region-snapshot-replacement-garbage-collect",
    Params,
    Node("SET_SAGA_ID", set_saga_id, undo=unset_saga_id),
    SubSaga("DELETE_OLD_VOLUME", VOLUME_DELETE, params=stash_of_the_request),
    Node("UPDATE_REQUEST_RECORD", update_request_record),
)
