"""The regions of a new read/write volume: nodes that several sagas share (nexus.md §3.11, §3.13).

    *regions_made(of_the_disk),
    Node("CREATE_VOLUME_RECORD", create_volume_record, undo=destroy_volume),

Three regions are given a place, made by their agents, and named in the VCR of a volume that nobody has yet. What may
happen between: an agent refuses or its disk is lost (the saga unwinds), this Nexus dies, the source of a copy is
deleted.

Why each node may run again (*safety*): the ids of the regions are the saga's own (W35). Their places are found again
by these ids, an agent that is asked for a region a second time answers with the first, and what is undone is what has
these ids, still belongs to the volume, and nothing else. Making is an action of many effects, so its undo hangs on the
node before it: it also runs when only some of the agents did what they were asked (R35).

The key of a volume is drawn in the transaction that makes the volume, and nowhere else; it is never an output. The copy
of a source is taken in the same transaction, so that nothing which it counts on goes away in between (R26).
"""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from pydantic import SecretStr
from sqlalchemy import Connection

from crucible_emu.volume.vcr import TARGETS, VolumeConstructionRequest
from nexus.objects.refusals import CONFLICT, told_to_users
from nexus.placement import AllocatedRegion, Allocation, Geometry, regions_allocate, regions_hard_delete, regions_of
from nexus.saga import ActionFailed, Context, Node
from nexus.saga.identities import derived
from nexus.services import WantedRegion, World
from nexus.volumes import (
    Address,
    CrucibleResources,
    ReadOnlyCopy,
    regions_to_delete,
    volume_checkout,
    volume_create,
    volume_get,
    walks,
)
from nexus.volumes.freed import FreedRegion
from nexus.volumes.recorded import RecordedOpts, RecordedRegion, RecordedVolume

KEY_BYTES = 32
FIRST_GENERATION = 1


@dataclass(frozen=True, slots=True)
class RegionsWanted:
    """For which volume, and how big."""

    volume_id: str
    size_bytes: int
    block_size: int


Wanted = Callable[[Context[Any]], Awaitable[RegionsWanted]]
Leaked = Callable[[Context[Any]], Awaitable[None]]


def region_ids(saga_id: str, volume_id: str) -> tuple[str, ...]:
    """The regions that the saga makes for the volume, in the order of the targets."""
    return tuple(derived(saga_id, "region", volume_id, str(number)) for number in range(TARGETS))


def regions_made(wanted: Wanted, leaked: Leaked | None = None) -> tuple[Node, Node, Node]:
    """REGIONS_ALLOC, REGIONS_ENSURE_UNDO, REGIONS_ENSURE. The last one's output is read by :func:`addresses_made`.

    ``wanted`` says the same whenever it is asked. ``leaked`` is told when an agent does not take its region back: the
    undo fails then, and the saga waits for a person.
    """

    async def allocate(saga: Context[Any]) -> None:
        """Safe to rerun: regions that have their places keep them."""
        world: World = saga.world
        asked = await wanted(saga)
        ids = region_ids(saga.saga_id, asked.volume_id)
        with told_to_users():
            geometry = world.sizes.geometry(asked.size_bytes, asked.block_size)
            allocation = Allocation(asked.volume_id, ids, geometry, seed=ids[0])
            await world.database.transact(lambda c: regions_allocate(c, allocation, world.now()))

    async def forget(saga: Context[Any]) -> None:
        """Safe to rerun: rows that are gone are gone. The agents were asked before, by the undo of the next node."""
        world: World = saga.world
        volume_id = (await wanted(saga)).volume_id
        await world.database.transact(
            lambda c: regions_hard_delete(c, _still_own(c, saga.saga_id, volume_id), world.now())
        )

    async def take_back(saga: Context[Any]) -> None:
        """Safe to rerun: agents say of what is destroyed that it is."""
        world: World = saga.world
        volume_id = (await wanted(saga)).volume_id

        def body(connection: Connection) -> list[FreedRegion]:
            ids = _still_own(connection, saga.saga_id, volume_id)
            return regions_to_delete(connection, CrucibleResources(regions=ids))

        left = await world.database.read(body)
        try:
            await world.agents.regions_delete(left)
        except ActionFailed:
            if leaked is not None:
                await leaked(saga)
            raise

    async def ensure(saga: Context[Any]) -> list[str]:
        """Where the regions' Downstairs listen. Safe to rerun: an agent makes a region once."""
        world: World = saga.world
        asked = await wanted(saga)
        geometry = world.sizes.geometry(asked.size_bytes, asked.block_size)
        found = await world.database.read(lambda c: _own_regions(c, saga.saga_id, asked.volume_id))
        made = await world.agents.regions_ensure([WantedRegion(each, geometry) for each in found])
        return [str(address) for address in made]

    return (
        Node("REGIONS_ALLOC", allocate, undo=forget),
        Node("REGIONS_ENSURE_UNDO", undo=take_back),
        Node("REGIONS_ENSURE", ensure),
    )


def addresses_made(saga: Context[Any]) -> list[Address]:
    """Where the regions' Downstairs listen, for nodes after REGIONS_ENSURE."""
    return [Address.parse(text) for text in saga.output("REGIONS_ENSURE")]


def volume_of_regions_create(
    connection: Connection,
    world: World,
    wanted: RegionsWanted,
    identity: str,
    targets: Sequence[Address],
    *,
    source_volume_id: str | None = None,
) -> None:
    """Make the volume that owns the regions at ``targets``, with a key of its own, or find that it was made.

    ``identity``: what the volume and its Upstairs call themselves. ``source_volume_id``: what is read where nothing is
    written yet; a copy of it becomes the read-only parent. Raises :class:`~nexus.db.Conflict` where the source, or what
    it is made of, is deleted.
    """
    found = volume_get(connection, wanted.volume_id)
    if found is not None and not found.deleted:
        return
    parent = None
    if source_volume_id is not None:
        source = volume_checkout(connection, source_volume_id, ReadOnlyCopy(), world.now())
        parent = walks.randomized_ids(source.request, lambda: UUID(world.new_id()))
    geometry = world.sizes.geometry(wanted.size_bytes, wanted.block_size)
    request = read_write_volume(identity, geometry, targets, world.draw_bytes(KEY_BYTES), parent)
    volume_create(connection, wanted.volume_id, request, world.now())


def read_write_volume(
    identity: str,
    geometry: Geometry,
    targets: Sequence[Address],
    key: bytes,
    parent: VolumeConstructionRequest | None = None,
) -> VolumeConstructionRequest:
    """One encrypted region set, and what lies beneath it."""
    region = RecordedRegion(
        type="region",
        block_size=geometry.block_size,
        blocks_per_extent=geometry.blocks_per_extent,
        extent_count=geometry.extent_count,
        gen=FIRST_GENERATION,
        opts=RecordedOpts(
            id=UUID(identity),
            target=tuple(map(str, targets)),
            key=SecretStr(base64.b64encode(key).decode("ascii")),
            read_only=False,
        ),
    )
    volume = RecordedVolume(type="volume", id=UUID(identity), block_size=geometry.block_size, sub_volumes=(region,))
    return volume.model_copy(update={"read_only_parent": parent})


def _still_own(connection: Connection, saga_id: str, volume_id: str) -> tuple[str, ...]:
    """*Safety*: a region that a replacement has taken out of the volume belongs to that one's stash, and is destroyed
    with it. After the volume's own undo nobody takes any out."""
    owned = {each.region_id for each in regions_of(connection, volume_id)}
    return tuple(each for each in region_ids(saga_id, volume_id) if each in owned)


def _own_regions(connection: Connection, saga_id: str, volume_id: str) -> list[AllocatedRegion]:
    found = {each.region_id: each for each in regions_of(connection, volume_id)}
    ids = region_ids(saga_id, volume_id)
    missing = [each for each in ids if each not in found]
    if missing:
        raise ActionFailed(f"region {missing[0]} was taken from volume {volume_id}", CONFLICT)
    return [found[each] for each in ids]
