"""A disk's regions as snapshots: served, compared, and taken away again (nexus.md §3.13).

What snapshot-create does with the agents of the disk's regions, region after region. The saga holds the lock of the
disk's volume from before its first node here until after the last, and so do its undos: all of them mean the same
regions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy import Connection

from nexus.objects.refusals import told_to_users
from nexus.objects.snapshots import Ledger, ledger_remove, ledger_write
from nexus.placement import regions_of
from nexus.saga import ActionFailed
from nexus.services import World
from nexus.verification import Copy, Difference, asked, compared
from nexus.volumes import (
    RegionSnapshot,
    region_snapshot_create,
    region_snapshot_give_up,
    region_snapshot_remove,
)
from nexus.volumes.freed import Dataset, FreedSnapshot

DIFFERENCES_NAMED_MAX = 3


@dataclass(frozen=True, slots=True)
class Frozen:
    """A snapshot of one region, and where its agent is."""

    dataset: Dataset
    snapshot: RegionSnapshot


def _frozen(connection: Connection, volume_id: str, snapshot_id: str) -> list[Frozen]:
    return [
        Frozen(
            Dataset(region.dataset_id, region.ip, region.agent_port),
            RegionSnapshot(region.dataset_id, region.region_id, snapshot_id),
        )
        for region in regions_of(connection, volume_id)
        if not region.read_only
    ]


async def _all(world: World, volume_id: str, snapshot_id: str) -> list[Frozen]:
    return await world.database.read(lambda c: _frozen(c, volume_id, snapshot_id))


async def run(world: World, volume_id: str, snapshot_id: str) -> dict[str, str]:
    """Have every region's snapshot served, and write down where: by the address of its region. Raises
    :class:`~nexus.saga.ActionFailed`."""
    served = {}
    for each in await _all(world, volume_id, snapshot_id):
        region = await world.agents.region_address(each.snapshot.region_id)
        address = await world.agents.snapshot_run(each.dataset, each.snapshot)
        with told_to_users():
            await world.database.transact(partial(region_snapshot_create, snapshot=each.snapshot, address=address))
        served[str(region)] = str(address)
    return served


async def stop(world: World, volume_id: str, snapshot_id: str) -> None:
    """Nobody finds the region snapshots any more, and then nobody serves them."""
    every = await _all(world, volume_id, snapshot_id)

    def body(connection: Connection) -> None:
        for each in every:
            region_snapshot_give_up(connection, each.snapshot)

    await world.database.transact(body)
    await world.agents.snapshots_stop([FreedSnapshot(each.dataset, each.snapshot) for each in every])


async def destroy(world: World, volume_id: str, snapshot_id: str) -> None:
    """No agent has a snapshot of that name, and then no row says so."""
    every = await _all(world, volume_id, snapshot_id)
    await world.agents.snapshots_delete([FreedSnapshot(each.dataset, each.snapshot) for each in every])

    def body(connection: Connection) -> None:
        for each in every:
            region_snapshot_remove(connection, each.snapshot)

    await world.database.transact(body)


async def record(world: World, frozen: dict[str, Any], snapshot_id: str) -> None:
    """Write down what the copies hold, if they all hold the same. Copies on disks that are gone are not asked. Raises
    :class:`~nexus.saga.ActionFailed`, whose sentence names who differs."""
    every = await _all(world, frozen["volume_id"], snapshot_id)
    holdings = await asked(world.agents, [Copy(each.dataset, each.snapshot.region_id, each.snapshot) for each in every])
    known = [each for each in holdings if each.problem is None]
    unreadable = [each for each in holdings if each.problem is not None and not each.absent]
    if unreadable:
        raise ActionFailed(f"{unreadable[0].name} cannot be read: {unreadable[0].problem}", "refused")
    if not known:
        raise ActionFailed(f"no copy of snapshot {snapshot_id} can be reached", "gone")
    differences = compared(known)
    if differences:
        raise ActionFailed(_sentence(snapshot_id, differences), "refused")
    extents = tuple(each for each in known[0].extents if each is not None)
    geometry = world.sizes.geometry(frozen["size_bytes"], frozen["block_size"])
    ledger = Ledger(geometry.block_size * geometry.blocks_per_extent, extents)
    await world.database.transact(lambda c: ledger_write(c, snapshot_id, ledger, world.now()))


async def forget(world: World, snapshot_id: str) -> None:
    """Nothing is written of the snapshot."""
    await world.database.transact(lambda c: ledger_remove(c, snapshot_id))


def _sentence(snapshot_id: str, differences: list[Difference]) -> str:
    named = "; ".join(map(str, differences[:DIFFERENCES_NAMED_MAX]))
    more = len(differences) - DIFFERENCES_NAMED_MAX
    return f"the copies of snapshot {snapshot_id} are not the same: {named}" + (
        f"; and {more} more" if more > 0 else ""
    )
