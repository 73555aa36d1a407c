"""Whether a sled may be lost: three copies outlive the loss of two, and nothing outlives that of all.

What it is for: interferences drawn by chance lose one sled after the other, faster than anybody can repair. What comes
of losing the last good copy is no finding, so no operation does that; and it must be decided from the bytes, before
the sled dies: afterwards nobody could tell bad luck from a copy that was destroyed too early.

What it guarantees: of every set of regions that something living is made of, somebody has all that the sled has of it,
block by block, on a sled that lives. (A stash names one region, and nobody needs that.) A successor that is not
repaired yet may be lost (the others have what it has), and so may the one whose place it takes, as long as a third is
there.
"""

from __future__ import annotations

import trio
from sqlalchemy import bindparam, select

from nexus.db import schema
from nexus.explore.fabric import Fabric, Sled, listening
from nexus.explore.rack import Rack
from nexus.explore.storage import Contents
from nexus.explore.upstairs import sets_of
from nexus.saga import ActionFailed
from nexus.volumes import Address, recorded

COPIES = 3
_VOLUME = schema.volume
_OF_THESE = select(_VOLUME.c.id, _VOLUME.c.data).where(_VOLUME.c.id.in_(bindparam("volumes", expanding=True)))


async def lose_sled(rack: Rack, number: int) -> None:
    """The sled is dead, and an operator says so. Raises :class:`~nexus.saga.ActionFailed` where it has the last copy of
    something, or three copies would not find three sleds any more."""
    sled = rack.fabric.sleds[number]
    if sled.alive and sum(each.alive for each in rack.fabric.sleds) <= COPIES:
        raise ActionFailed(f"sled {number} is one of the last {COPIES}: no replacement could end without it")
    if sled.alive and has_the_last_copy(rack, sled):
        raise ActionFailed(f"sled {number} has the last good copy of something: nothing would outlive its loss")
    # The operator says it again, should the Nexus that was told have died meanwhile.
    with trio.CancelScope(shield=True):
        await rack.lose_sled(number)


def has_the_last_copy(rack: Rack, sled: Sled) -> bool:
    """Whether the sled alone has some block of something living."""
    owners = sorted({thing.volume_id for thing in rack.things.values() if thing.living and thing.volume_id})
    for volume_id, data in rack.run(lambda c: c.execute(_OF_THESE, {"volumes": owners}).all()):
        for part in sets_of(recorded.parse(data, f"volume {volume_id}")):
            here, elsewhere = _copies(rack.fabric, part.opts.target, sled)
            for each in here:
                if not any(each.blocks.items() <= other.blocks.items() for other in elsewhere):
                    return True
    return False


def _copies(fabric: Fabric, targets: tuple[str, ...], lost: Sled) -> tuple[list[Contents], list[Contents]]:
    """Of the members of a set that are on living sleds, whether these answer now or not: those on the sled, and the
    others."""
    here: list[Contents] = []
    elsewhere: list[Contents] = []
    for address in map(Address.parse, targets):
        sled = fabric.sled_at(address.ip)
        if sled is not None and sled.alive:
            found = [each.contents for port, each in listening(sled) if port == address.port]
            (here if sled is lost else elsewhere).extend(found)
    return here, elsewhere
