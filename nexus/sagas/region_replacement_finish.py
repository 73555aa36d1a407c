"""region-replacement-finish: destroy the region that was replaced, and end the request (nexus.md §3.3).

R8, *safety*: only here. No document names the old region but that of its stash, and no Upstairs uses it that is still
believed; only now its agent may give its port to another. Deleting the stash destroys it, by the one saga that destroys
anything.

A region under snapshots stays with its stash, which is soft-deleted, until the last snapshot has gone; whoever takes
that away destroys it (R47, *liveness*: a request that waited for it would hold the volume's lock for months).

What may happen between the nodes: an agent refuses (the saga unwinds to ReplacementDone, and the task tries again), the
volume is deleted, this Nexus dies. Why each node may run again: volume-delete may, and a request that has ended has.
"""

from __future__ import annotations

from pydantic import BaseModel
from sqlalchemy import Connection, select

from nexus.db import schema
from nexus.objects.refusals import CONFLICT, told_to_users
from nexus.replacement.machine import move
from nexus.replacement.region import REGION_REPLACEMENT, RegionEdge, region_replacement_get
from nexus.replacement.survivors import request_ended
from nexus.saga import ActionFailed, Context, Node, Saga, SubSaga
from nexus.sagas import volume_delete
from nexus.sagas.volume_delete import VOLUME_DELETE
from nexus.services import World
from nexus.volumes import volume_deleted
from nexus.volumes.deletion import has_snapshots

_REGION = schema.region


class Params(BaseModel):
    """The request, its stash, and what is in that."""

    request_id: str
    volume_id: str
    old_region_id: str
    stash_id: str


async def set_saga_id(saga: Context[Params]) -> None:
    """Safe to rerun: who has the request has it (R1)."""
    world, request_id = _world(saga), saga.params.request_id
    with told_to_users():
        await world.database.transact(
            lambda c: move(c, REGION_REPLACEMENT, RegionEdge.COMPLETE_BEGUN, request_id, saga_id=saga.saga_id)
        )


async def clear_saga_id(saga: Context[Params]) -> None:
    """Safe to rerun: who let go has let go."""
    world, request_id = _world(saga), saga.params.request_id
    await world.database.transact(
        lambda c: move(c, REGION_REPLACEMENT, RegionEdge.COMPLETE_UNDONE, request_id, saga_id=saga.saga_id)
    )


async def stash_of_the_request(saga: Context[Params]) -> volume_delete.Params:
    return volume_delete.Params(volume_id=saga.params.stash_id)


async def update_request_record(saga: Context[Params]) -> None:
    """Safe to rerun: a request that is complete is. The volume's lock goes on to the next request, if one shares it."""
    world, params = _world(saga), saga.params

    def body(connection: Connection) -> None:
        row = region_replacement_get(connection, params.request_id)
        if row.operating_saga_id == saga.saga_id:
            require_old_region_left(connection, params)
        move(
            connection,
            REGION_REPLACEMENT,
            RegionEdge.COMPLETE,
            params.request_id,
            saga_id=saga.saga_id,
            locks=world.locks,
        )
        request_ended(connection, params.request_id, params.volume_id)

    with told_to_users():
        await world.database.transact(body)


def require_old_region_left(connection: Connection, params: Params) -> None:
    """W53: nobody asks for this region's replacement again, so a request does not end while the region is there; unless
    it lies under snapshots, with a stash that is deleted. Raises :class:`~nexus.saga.ActionFailed`."""
    query = select(_REGION.c.volume_id).where(_REGION.c.id == params.old_region_id)
    owner = connection.execute(query).scalar_one_or_none()
    if owner is None:
        return
    parked = owner == params.stash_id and volume_deleted(connection, owner)
    if not (parked and has_snapshots(connection, params.old_region_id)):
        raise ActionFailed(f"region {params.old_region_id} is still there", CONFLICT)


def _world(saga: Context[Params]) -> World:
    world: World = saga.world
    return world


REGION_REPLACEMENT_FINISH = Saga(
    "region-replacement-finish",
    Params,
    Node("SET_SAGA_ID", set_saga_id, undo=clear_saga_id),
    SubSaga("DELETE_STASH", VOLUME_DELETE, params=stash_of_the_request),
    Node("UPDATE_REQUEST_RECORD", update_request_record),
)
