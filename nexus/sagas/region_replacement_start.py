"""region-replacement-start: put a new region in the place of a lost one (nexus.md §3.1).

A blank region is made somewhere else, and then one transaction exchanges the two in the volume's document, gives the
old one to a stash volume of its own, and says that the request runs. From then on whoever constructs the volume uses
the new region, and an Upstairs that runs already the old one; the drive saga brings them together.

What may happen between the nodes: the volume is deleted (R46: the swap refuses, the saga unwinds, and the detector ends
the request), also in the midst of making the new region; another member of the set is lost, or gets a successor (W54:
the swap asks by what right, in its own transaction); the old region is itself somebody's lost successor (W41); an
instance with the volume starts or stops; this Nexus dies.

Why the swap is one transaction with all that belongs to it (*safety*): the real one makes the stash, and says that the
request runs, in nodes of their own, and has to undo the swap when these fail. Then there are moments in which the old
region belongs to a volume that nobody ever made (W33, and R16 hides it for ever), or in which an instance is given a
document that is taken back (R27). Here a document that names the new region is never taken back.

Why each node may run again: the ids of the new region and of the stash are the saga's (W35), and what is undone is what
has them. REPLACE_REGION_IN_VOLUME finds a request that it let go of when it has run before, whatever became of the
volume since. Making a region is undone by the node before it, for it may fail with the region half made (W34, R35), and
where its agent is, is recorded: a deletion of the volume takes the row away, which would say so.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from pydantic import BaseModel
from sqlalchemy import Connection, select

from nexus.db import schema
from nexus.objects.refusals import CAPACITY, CONFLICT, invalid_request, not_found, told_to_users
from nexus.placement import (
    AllocatedRegion,
    Allocation,
    Geometry,
    regions_allocate,
    regions_hard_delete,
    regions_of,
)
from nexus.replacement.machine import move
from nexus.replacement.notes import unlike_no_more, waiting_no_more, waiting_since
from nexus.replacement.region import REGION_REPLACEMENT, RegionEdge, region_replacement_get
from nexus.replacement.survivors import successor_replaced, swap_refused
from nexus.saga import ActionFailed, Context, Node, Saga
from nexus.saga.identities import derived
from nexus.services import Gone, WantedRegion, World
from nexus.volumes import (
    Address,
    VolumeRegion,
    VolumeReplaceResult,
    recorded,
    region_record_port,
    volume_create,
    volume_deleted,
    volume_get,
    volume_replace_region,
    walks,
)
from nexus.volumes.freed import Dataset
from nexus.volumes.resolution import target_to_region

_REGION, _DATASET = schema.region, schema.crucible_dataset
NO_PLACE = "no sled without a copy of the volume has room for the new region"


class SwapRefused(ActionFailed):
    """The region may not be exchanged now; the sentence says why."""

    def __init__(self, why: str) -> None:
        super().__init__(why, CONFLICT)


class Params(BaseModel):
    """The request, and what it is about; none of it ever changes."""

    request_id: str
    volume_id: str
    old_region_id: str


def new_region_id(saga_id: str) -> str:
    """W35: the id of the region that the saga makes."""
    return derived(saga_id, "new region")


def stash_id(saga_id: str) -> str:
    """The volume that owns the old region until it is destroyed."""
    return derived(saga_id, "stash")


async def set_saga_id(saga: Context[Params]) -> None:
    """Safe to rerun: who has the request has it (R1)."""
    world, request_id = _world(saga), saga.params.request_id
    with told_to_users():
        await world.database.transact(
            lambda c: move(c, REGION_REPLACEMENT, RegionEdge.ALLOCATE, request_id, saga_id=saga.saga_id)
        )


async def clear_saga_id(saga: Context[Params]) -> None:
    """Safe to rerun: who let go has let go."""
    world, request_id = _world(saga), saga.params.request_id
    await world.database.transact(
        lambda c: move(c, REGION_REPLACEMENT, RegionEdge.ALLOCATE_UNDONE, request_id, saga_id=saga.saga_id)
    )


async def get_existing(saga: Context[Params]) -> dict[str, int]:
    """How the old region is cut, and so the new one. Safe to rerun: that never changes."""
    return await _world(saga).database.read(lambda c: _geometry_of(c, saga.params))


def _geometry_of(connection: Connection, params: Params) -> dict[str, int]:
    row = connection.execute(select(_REGION).where(_REGION.c.id == params.old_region_id)).one_or_none()
    if row is None:
        raise not_found("region", params.old_region_id)
    if row.read_only:
        raise invalid_request(f"region {params.old_region_id} is read-only: it is replaced as a read-only target")
    if row.volume_id != params.volume_id:
        raise ActionFailed(f"region {params.old_region_id} is not volume {params.volume_id}'s any more", CONFLICT)
    return {name: getattr(row, name) for name in ("block_size", "blocks_per_extent", "extent_count")}


async def alloc_new_region(saga: Context[Params]) -> dict[str, Any]:
    """Where the new region is to be: on a sled that has no copy yet (R38). Safe to rerun: it has its place."""
    world, params = _world(saga), saga.params
    new_id = new_region_id(saga.saga_id)
    wanted = Allocation(params.volume_id, (new_id,), _geometry(saga), seed=new_id)

    def body(connection: Connection) -> dict[str, Any]:
        if volume_deleted(connection, params.volume_id):
            raise _deleted(params)
        placed = regions_allocate(connection, wanted, world.now())
        (found,) = (each for each in placed if each.region_id == new_id)
        return {"id": found.dataset_id, "ip": found.ip, "port": found.agent_port}

    try:
        with told_to_users():
            return await world.database.transact(body)
    except ActionFailed as failure:
        if failure.kind == CAPACITY:
            await world.database.transact(lambda c: waiting_since(c, params.request_id, NO_PLACE, world.now()))
        raise


async def forget_new_region(saga: Context[Params]) -> None:
    """Safe to rerun: a row that is gone is gone. The agent was asked before, by the undo of the next node."""
    world, new_id = _world(saga), new_region_id(saga.saga_id)
    await world.database.transact(lambda c: regions_hard_delete(c, [new_id], world.now()))


async def destroy_new_region(saga: Context[Params]) -> None:
    """Safe to rerun: an agent says of what is destroyed, or was never made, that it is. *Safety*: the agent is asked
    also when the row is gone; who deleted the volume may have taken the row before the region was made."""
    where = Dataset(**saga.output("ALLOC_NEW_REGION"))
    await _world(saga).agents.region_delete(where, new_region_id(saga.saga_id))


async def ensure_new_region(saga: Context[Params]) -> str:
    """Where its Downstairs listens. Safe to rerun: an agent makes a region once."""
    world, new_id = _world(saga), new_region_id(saga.saga_id)
    region = await world.database.read(lambda c: _placed(c, saga.params, new_id))
    with told_to_users():
        return str(await world.agents.region_ensure(WantedRegion(region, _geometry(saga))))


def _placed(connection: Connection, params: Params, new_id: str) -> AllocatedRegion:
    for each in regions_of(connection, params.volume_id):
        if each.region_id == new_id:
            return each
    raise ActionFailed(f"region {new_id} was taken from volume {params.volume_id}", CONFLICT)


async def get_old_region_address(saga: Context[Params]) -> str:
    """Where the old region's Downstairs listened, as the document has it. Safe to rerun: what is recorded stays."""
    world, params = _world(saga), saga.params
    try:
        return str(await world.agents.region_address(params.old_region_id))
    except Gone:
        return str(await world.database.transact(lambda c: address_by_elimination(c, world, params)))


def address_by_elimination(connection: Connection, world: World, params: Params) -> Address:
    """Of a region whose port was never written down, and whose agent is gone: the one target of the volume that is
    there and belongs to no other region. W38, *liveness*: it is written down, for the old region's deletion looks for
    it by this address."""
    region = connection.execute(
        select(_DATASET.c.ip, _REGION.c.port)
        .join(_DATASET, _DATASET.c.id == _REGION.c.dataset_id)
        .where(_REGION.c.id == params.old_region_id, _REGION.c.volume_id == params.volume_id)
    ).one_or_none()
    volume = volume_get(connection, params.volume_id)
    if region is None or volume is None or volume.deleted:
        raise _deleted(params)
    if region.port is not None:
        return Address.of(region.ip, region.port)
    unknown = [
        each
        for each in walks.read_write_targets(volume.request)
        if each.ip == region.ip and target_to_region(connection, each, read_only=False) is None
    ]
    if len(unknown) != 1:
        raise ActionFailed(f"nobody knows where region {params.old_region_id} listened", CONFLICT)
    region_record_port(connection, params.old_region_id, unknown[0].port, world.now())
    return unknown[0]


async def replace_region_in_volume(saga: Context[Params]) -> str:
    """The swap, the stash, and the request runs: all of it or nothing. Safe to rerun: see above."""
    world, request_id = _world(saga), saga.params.request_id
    try:
        with told_to_users():
            return await world.database.transact(lambda c: swap(c, world, saga))
    except SwapRefused as refused:
        why = str(refused)
        await world.database.transact(lambda c: waiting_since(c, request_id, why, world.now()))
        raise


def swap(connection: Connection, world: World, saga: Context[Params]) -> str:
    """The transaction; what came of it. Raises :class:`~nexus.saga.ActionFailed`, and nothing is changed then."""
    params, stash, new_id = saga.params, stash_id(saga.saga_id), new_region_id(saga.saga_id)
    if done_before(connection, saga):
        return str(VolumeReplaceResult.ALREADY_HAPPENED.value)
    refused = swap_refused(connection, params.volume_id, params.old_region_id)
    deleted = volume_deleted(connection, params.volume_id)
    if refused is not None and not deleted:
        raise SwapRefused(refused)
    old_address = Address.parse(saga.output("GET_OLD_REGION_ADDRESS"))
    new_address = Address.parse(saga.output("NEW_REGION_ENSURE"))
    old = VolumeRegion(params.volume_id, params.old_region_id, old_address)
    result = volume_replace_region(connection, old, VolumeRegion(stash, new_id, new_address), world.now())
    if result is not VolumeReplaceResult.DONE:
        # R46: nobody needs the new region. The request goes back, and the detector ends it.
        raise _deleted(params)
    volume_create(connection, stash, recorded.read_write_stash(UUID(stash), old_address), world.now())
    successor_replaced(connection, params.old_region_id, new_id)
    unlike_no_more(connection, params.volume_id)
    where: dict[str, Any] = {"new_region_id": new_id, "old_region_volume_id": stash}
    move(connection, REGION_REPLACEMENT, RegionEdge.RUN, params.request_id, saga_id=saga.saga_id, **where)
    waiting_no_more(connection, params.request_id)
    return str(result.value)


def done_before(connection: Connection, saga: Context[Params]) -> bool:
    """W33, *safety*: whether an earlier run of this node came to its end. The request says so, and not the volume: that
    may be deleted since, and what was swapped has to be brought to its end all the same."""
    row = region_replacement_get(connection, saga.params.request_id)
    return row.operating_saga_id != saga.saga_id and row.old_region_volume_id == stash_id(saga.saga_id)


def _deleted(params: Params) -> ActionFailed:
    return ActionFailed(f"volume {params.volume_id} is deleted: nothing is replaced in it", CONFLICT)


def _geometry(saga: Context[Params]) -> Geometry:
    return Geometry(**saga.output("GET_EXISTING"))


def _world(saga: Context[Params]) -> World:
    world: World = saga.world
    return world


REGION_REPLACEMENT_START = Saga(
    "region-replacement-start",
    Params,
    Node("SET_SAGA_ID", set_saga_id, undo=clear_saga_id),
    Node("GET_EXISTING", get_existing),
    Node("ALLOC_NEW_REGION", alloc_new_region, undo=forget_new_region),
    Node("NEW_REGION_ENSURE_UNDO", undo=destroy_new_region),
    Node("NEW_REGION_ENSURE", ensure_new_region),
    Node("GET_OLD_REGION_ADDRESS", get_old_region_address),
    Node("REPLACE_REGION_IN_VOLUME", replace_region_in_volume),
)
