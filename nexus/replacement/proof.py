"""Whether the copies of a volume that nobody has are alike, by hashes: before an old copy is destroyed (W54).

What it is for: a pantry's word that it activated a volume is the word of an Upstairs: it made its copies alike. What
they really hold, their agents say, extent by extent, and then the pantry has let go of the volume.

What it guarantees (*safety*): :attr:`Proof.regions` are members that held the same bytes at one moment, at which nobody
had the volume and its document had the generation :attr:`Proof.generation`. Who is given the document afterwards has a
greater one, so whoever acts on the proof compares (:func:`still_holds`) in the transaction in which it acts. Of a
volume that a guest has, nothing is proved, though its copies be alike: they need not be a moment later. Members on
disks that are gone for good are not asked. A single member proves nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import trio
from sqlalchemy import Connection

from nexus.replacement.driving import UNLIKE
from nexus.replacement.owners import IN_NOBODYS_HANDS, owner_of
from nexus.services import World
from nexus.services.gone import dataset_gone
from nexus.verification import RegionSet, asked_if_present, compared, region_sets_of
from nexus.volumes import volume_get
from nexus.volumes.at_rest import generation_of, rest_proved

HASHING_TIMEOUT_S = 600.0
"""*Liveness*: an extent that nobody has flushed has no digest. The next attempt begins with a pantry, which flushes."""
DIFFERENCES_NAMED_MAX = 3


@dataclass(frozen=True, slots=True)
class Proof:
    """``regions``: the members that hold the same; none where that is not so, and ``reason`` says why."""

    generation: int
    regions: tuple[str, ...] = ()
    reason: str | None = None


async def copies_proved(world: World, volume_id: str) -> Proof:
    """Compare the copies of the volume's own region sets."""
    generation, sets = await world.database.read(lambda c: _own_sets(c, volume_id))
    if sets is None:
        return Proof(generation, reason="somebody has the volume: what is written is not compared")
    proved: list[str] = []
    for each in sets:
        found = await _set_proved(world, generation, each)
        if found.reason is not None:
            return found
        proved += found.regions
    return Proof(generation, tuple(proved))


def still_holds(connection: Connection, volume_id: str, proof: Proof) -> bool:
    """Whether nobody was given the document since."""
    volume = volume_get(connection, volume_id)
    return volume is not None and not volume.deleted and generation_of(volume.request) == proof.generation


def rest_recorded(connection: Connection, volume_id: str, proof: Proof, now: datetime) -> None:
    """The volume is at rest, by this proof."""
    rest_proved(connection, volume_id, proof.generation, now)


def _own_sets(connection: Connection, volume_id: str) -> tuple[int, list[RegionSet] | None]:
    volume = volume_get(connection, volume_id)
    if volume is None or volume.deleted:
        return 0, []
    if owner_of(connection, volume_id).situation not in IN_NOBODYS_HANDS:
        return 0, None
    sets = [each for each in region_sets_of(connection, volume.request) if not each.read_only]
    present = [
        RegionSet(
            each.read_only,
            tuple(copy for copy in each.copies if not dataset_gone(connection, copy.dataset.id)),
            each.unknown,
            each.snapshot_id,
            each.ledger,
        )
        for each in sets
    ]
    return generation_of(volume.request), present


async def _set_proved(world: World, generation: int, members: RegionSet) -> Proof:
    if len(members.copies) < 2:
        return Proof(generation, reason="there are not two copies that could be compared")
    holdings = None
    with trio.move_on_after(HASHING_TIMEOUT_S):
        holdings = await asked_if_present(world.agents, list(members.copies))
    if holdings is None:
        return Proof(generation, reason="the copies could not be hashed in time")
    unknown = next((each for each in holdings if each.problem is not None), None)
    if unknown is not None:
        return Proof(generation, reason=f"{unknown.name} could not be compared: {unknown.problem}")
    differences = compared(holdings)
    if differences:
        named = "; ".join(map(str, differences[:DIFFERENCES_NAMED_MAX]))
        return Proof(generation, reason=f"{UNLIKE}: {named}")
    return Proof(generation, tuple(each.region_id for each in members.copies))
