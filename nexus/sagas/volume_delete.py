"""volume-delete: destroy what nobody counts on any more, and then the volume's row (nexus.md §3.9).

The one place that frees things. No node has an undo, and each may run again, also long after another saga did the same:
what is to be destroyed is known from the volume's row, whatever has no row any more was destroyed, and agents are asked
for what they may have done already.

The order is the agents' (*safety*): a running snapshot is stopped before its snapshot goes, all snapshots go before the
region underneath, and a row goes only after the thing that it speaks of; the row of a snapshot is what keeps the region
(R15, W43).

Several at once, for one volume or many: soft deletion tells each freed resource to one volume only (R14), but a region
under a last snapshot may be found both by who deleted the snapshot and by its owner's deletion. Both ask the agent, and
the rows go once. A volume's row goes with the last thing that it has to say something about, in the same transaction,
whoever's saga that is (:func:`~nexus.volumes.volume_hard_delete_when_done`); so a saga that runs again after a crash
finds its list, or nothing left to do.

What differs from the real one: FIND_FREED_REGIONS takes only regions under the snapshots that this saga took away, and
those of its own volume. *Liveness*: with those of all volumes, one agent that is silent or refuses would hold up or
fail every deletion there is. No region is missed: whoever takes its last snapshot away looks at it afterwards, and what
a dead saga left is found by :func:`~nexus.volumes.deletions_to_finish` and deleted once more (W24).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime

from pydantic import BaseModel
from sqlalchemy import Connection, bindparam, select

from crucible_emu.logs import get_logger
from nexus.db import schema
from nexus.placement import regions_hard_delete
from nexus.saga import ActionFailed, Context, Node, Parallel, Saga
from nexus.sagas.upstairs_repair import given_up_by_pantries
from nexus.services import World
from nexus.volumes import (
    CrucibleResources,
    find_deleted_volume_regions,
    freed,
    region_snapshot_remove,
    regions_to_delete,
    snapshots_to_delete,
    soft_delete_volume,
    volume_get,
    volume_hard_delete_when_done,
)

_REGION = schema.region
log = get_logger(__name__)


class Params(BaseModel):
    """Which volume."""

    volume_id: str


async def decrease_count(saga: Context[Params]) -> str | None:
    """Safe to rerun: the list was stored by the transaction that deleted the volume, and is read again. From then on
    nobody is given the volume; who is repairing it gives it up before anything is destroyed."""
    return await _given_up(saga.world, saga.params.volume_id)


async def delete_regions(saga: Context[Params]) -> None:
    """Safe to rerun: regions without a row are done."""
    await _destroy_regions(saga.world, _freed(saga))


async def delete_running_snapshots(saga: Context[Params]) -> None:
    """Safe to rerun: to stop what does not run is done."""
    await _stop_snapshots(saga.world, _freed(saga))


async def delete_snapshots(saga: Context[Params]) -> None:
    """Safe to rerun: to delete what is not there is done."""
    await _destroy_snapshots(saga.world, _freed(saga))


async def delete_snapshot_records(saga: Context[Params]) -> None:
    """Safe to rerun: rows that are gone are gone."""
    await _forget_snapshots(saga.world, _freed(saga))


async def find_freed_regions(saga: Context[Params]) -> list[str]:
    """Safe to rerun: what is found changes by deletions alone, and a region that was found before stays free."""
    return await _find_freed_regions(saga.world, saga.params.volume_id, _freed(saga))


async def delete_freed_regions(saga: Context[Params]) -> None:
    """Safe to rerun: as DELETE_REGIONS. The owners go with their last region."""
    await _destroy_found(saga.world, saga.output("FIND_FREED_REGIONS"))


async def hard_delete_volume_record(saga: Context[Params]) -> bool:
    """Whether the row is gone; it stays while the volume owns regions that others need. Safe to rerun."""
    return await _hard_delete(saga.world, saga.params.volume_id)


VOLUME_DELETE = Saga(
    "volume-delete",
    Params,
    Node("DECREASE_COUNT", decrease_count),
    Parallel(Node("DELETE_REGIONS", delete_regions), Node("DELETE_RUNNING_SNAPSHOTS", delete_running_snapshots)),
    Node("DELETE_SNAPSHOTS", delete_snapshots),
    Node("DELETE_SNAPSHOT_RECORDS", delete_snapshot_records),
    Node("FIND_FREED_REGIONS", find_freed_regions),
    Node("DELETE_FREED_REGIONS", delete_freed_regions),
    Node("HARD_DELETE_VOLUME_RECORD", hard_delete_volume_record),
)


async def undo_volume(world: World, volume_id: str) -> None:
    """For undos of what made a volume: all of the saga in a row, for the volume may by now be the last that counted on
    what it was copied from (W39). Of a volume that is not there it is done.

    Deleting never holds an unwinding up (*liveness*): what an agent refuses stays with the soft-deleted volume, and is
    tried again with it (W24).
    """
    resources = freed.parse(await _given_up(world, volume_id))
    try:
        await _destroy_regions(world, resources)
        await _stop_snapshots(world, resources)
        await _destroy_snapshots(world, resources)
        await _forget_snapshots(world, resources)
        await _destroy_found(world, await _find_freed_regions(world, volume_id, resources))
    except ActionFailed as refusal:
        log.warning("volume is left soft-deleted", volume=volume_id, reason=str(refusal))
        return
    await _hard_delete(world, volume_id)


# -- what the nodes do ------------------------------------------------------------------------------------------------


def _freed(saga: Context[Params]) -> CrucibleResources:
    return freed.parse(saga.output("DECREASE_COUNT"))


async def _given_up(world: World, volume_id: str) -> str | None:
    """What deleting it freed, once nobody is given it any more and no pantry repairs it (#6353)."""
    resources = await _soft_delete(world, volume_id)
    await given_up_by_pantries(world, volume_id)
    return resources


async def _soft_delete(world: World, volume_id: str) -> str | None:
    def body(connection: Connection) -> str | None:
        soft_delete_volume(connection, volume_id, world.now())
        volume = volume_get(connection, volume_id)
        return None if volume is None else volume.resources_to_clean_up

    return await world.database.transact(body)


async def _destroy_regions(world: World, resources: CrucibleResources) -> None:
    await _destroy(world, await world.database.read(lambda c: regions_to_delete(c, resources)))


async def _destroy(world: World, regions: Sequence[freed.FreedRegion]) -> None:
    await world.agents.regions_delete(regions)
    ids = [each.region_id for each in regions]
    await world.database.transact(lambda c: _forget_regions(c, ids, world.now()))


_OWNERS_OF = select(_REGION.c.volume_id).where(_REGION.c.id.in_(bindparam("regions", expanding=True))).distinct()
_OWNED_BY = select(_REGION.c.id).where(_REGION.c.volume_id == bindparam("volume"))


def _forget_regions(connection: Connection, region_ids: Collection[str], now: datetime) -> None:
    """The rows of destroyed regions, and those of soft-deleted volumes that waited for them alone (R17, R18, W40)."""
    owners = sorted(connection.execute(_OWNERS_OF, {"regions": list(region_ids)}).scalars())
    regions_hard_delete(connection, region_ids, now)
    for volume_id in owners:
        volume_hard_delete_when_done(connection, volume_id)


async def _stop_snapshots(world: World, resources: CrucibleResources) -> None:
    await world.agents.snapshots_stop(await world.database.read(lambda c: snapshots_to_delete(c, resources)))


async def _destroy_snapshots(world: World, resources: CrucibleResources) -> None:
    await world.agents.snapshots_delete(await world.database.read(lambda c: snapshots_to_delete(c, resources)))


async def _forget_snapshots(world: World, resources: CrucibleResources) -> None:
    def body(connection: Connection) -> None:
        for each in resources.all_snapshots:
            region_snapshot_remove(connection, each)

    await world.database.transact(body)


async def _find_freed_regions(world: World, volume_id: str, resources: CrucibleResources) -> list[str]:
    """The ids of read/write regions that nothing keeps any more: those that this deletion took a snapshot of away, and
    the volume's own."""
    below = {each.region_id for each in resources.all_snapshots}

    def body(connection: Connection) -> list[str]:
        owned = connection.execute(_OWNED_BY, {"volume": volume_id}).scalars()
        return [each.region_id for each in find_deleted_volume_regions(connection, below | set(owned)).regions]

    return await world.database.read(body)


async def _destroy_found(world: World, region_ids: list[str]) -> None:
    found = CrucibleResources(regions=tuple(region_ids))
    await _destroy(world, await world.database.read(lambda c: regions_to_delete(c, found)))


async def _hard_delete(world: World, volume_id: str) -> bool:
    return await world.database.transact(lambda c: volume_hard_delete_when_done(c, volume_id))
