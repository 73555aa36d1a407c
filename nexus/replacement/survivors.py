"""By what right a lost member of a region set may be exchanged for a blank one (R2, W41, W54).

What it is for: a write is acknowledged when two of three members have it. As long as two good ones stay in the set, one
of them has everything, and the Upstairs that puts the set in order finds out which. Where only one would stay, it may
be the one that missed the last writes; and once it alone is left to copy from, nobody will ever know.

What it guarantees (*safety*): a swap that leaves one good member needs a right to believe that one. There are three:

* an Upstairs that is in service has the volume: it knows what it acknowledged, and refuses by itself where a member
  that would stay is missing something;
* the volume is *at rest*: hashes proved that all members held the same, and nobody was given the document since;
* an operator said that this survivor is to be believed.

Without one the request waits, and says so. A member that is good is never taken out while only one other is. Where no
good member would stay, nothing is done: an operator brings one back, or the disk is deleted.

Why an Upstairs in service is given one new member at a time: it takes a document that differs from its own in one
target, and no more. Where the volume is in nobody's hands, all lost members are exchanged at once: a set with a lost
one in it cannot be activated, so no repair of the others would ever end (W54). A new member that is lost is exchanged
like any other; the request that it was the successor for goes on with the next one (W41).

:func:`refusal` is the rules and nothing else; :func:`swap_refused` asks the database, in the transaction of the swap.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum

from sqlalchemy import Connection, bindparam, delete, select, update

from nexus.db import schema
from nexus.db.schema import RegionReplacementState
from nexus.placement import AllocatedRegion, regions_of
from nexus.replacement.in_service import takes_one_at_a_time
from nexus.replacement.notes import survivor_decided, waiting_no_more
from nexus.replacement.owners import CONSTRUCTED, SERVED, Owner, owner_of
from nexus.replacement.region import region_replacements_of_volume
from nexus.services.gone import dataset_gone
from nexus.volumes import Address, volume_get, walks
from nexus.volumes.at_rest import at_rest

_REQUEST, _DECISION = schema.region_replacement, schema.survivor_decision
UNDER_REPAIR = frozenset({RegionReplacementState.RUNNING, RegionReplacementState.DRIVING})
"""In these states a request's new region is in the volume's document, and may be blank."""
NEEDS_DECISION = "needs an operator's decision"
NO_GOOD_COPY = "no good copy is left"


class Standing(Enum):
    """What a member of a region set is worth."""

    GOOD = "good"
    NEW = "new: it may be blank"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class Member:
    """A member of the volume's own region set. ``region_id`` is ``None`` of a target that nobody knows."""

    address: Address
    region_id: str | None
    standing: Standing


@dataclass(frozen=True, slots=True)
class Facts:
    """What the rules ask. ``old``: the member that is to go. ``others_under_way``: other new members of the volume that
    are not good yet. ``believed``: the regions that an operator said are to be believed."""

    old: Standing
    survivors: tuple[str, ...]
    owner: Owner
    others_under_way: tuple[Address, ...]
    at_rest: bool
    believed: frozenset[str] = frozenset()


def refusal(facts: Facts) -> str | None:
    """Why the member may not be exchanged now; ``None``: it may."""
    if facts.owner.situation in CONSTRUCTED and facts.others_under_way:
        return takes_one_at_a_time(facts.owner, facts.others_under_way)
    if len(facts.survivors) >= 2:
        return None
    if facts.old is Standing.GOOD:
        return "too few other copies are good: it waits until they are"
    if not facts.survivors:
        return NO_GOOD_COPY
    return None if may_be_believed(facts) else _undecided(facts.survivors[0])


def may_be_believed(facts: Facts) -> bool:
    """W54, *safety*: whether the one good member that would stay has everything that was acknowledged."""
    return facts.owner.situation in SERVED or facts.at_rest or facts.survivors[0] in facts.believed


def _undecided(survivor: str) -> str:
    return (
        f"{NEEDS_DECISION}: region {survivor} is the only good copy that is left, and may have missed writes that"
        " were acknowledged"
    )


def swap_refused(connection: Connection, volume_id: str, old_region_id: str) -> str | None:
    """Why the region may not be exchanged now, in a sentence; ``None``: it may. In the transaction of the swap this is
    the safeguard, R2 and W54; before that an *optimisation*."""
    found = members(connection, volume_id)
    old = next((each for each in found if each.region_id == old_region_id), None)
    survivors = tuple(
        each.region_id
        for each in found
        if each.standing is Standing.GOOD and each.region_id is not None and each.region_id != old_region_id
    )
    new = under_repair(connection, volume_id) - {old_region_id}
    return refusal(
        Facts(
            old=Standing.GONE if old is None else old.standing,
            survivors=survivors,
            owner=owner_of(connection, volume_id),
            others_under_way=tuple(each.address for each in found if each.region_id in new),
            at_rest=at_rest(connection, volume_id),
            believed=frozenset(each for each in survivors if survivor_decided(connection, volume_id, each)),
        )
    )


def lost_beside(connection: Connection, volume_id: str, target: Address) -> list[Address]:
    """Where the volume's members were that are lost, but for ``target``."""
    found = members(connection, volume_id)
    return [each.address for each in found if each.standing is Standing.GONE and each.address != target]


def members(connection: Connection, volume_id: str) -> list[Member]:
    """The members of the volume's own region sets, in the order of its document; none of a volume that is deleted."""
    volume = volume_get(connection, volume_id)
    if volume is None or volume.deleted:
        return []
    owned = {
        Address.of(each.ip, each.port): each
        for each in regions_of(connection, volume_id)
        if not each.read_only and each.port is not None
    }
    new = under_repair(connection, volume_id)
    written = walks.read_write_targets(volume.request)
    return [_member(connection, address, owned.get(address), new) for address in written]


def _member(connection: Connection, address: Address, region: AllocatedRegion | None, new: Collection[str]) -> Member:
    if region is None:
        return Member(address, None, Standing.GONE)
    if dataset_gone(connection, region.dataset_id):
        return Member(address, region.region_id, Standing.GONE)
    return Member(address, region.region_id, Standing.NEW if region.region_id in new else Standing.GOOD)


def under_repair(connection: Connection, volume_id: str) -> set[str]:
    """The regions that took the place of others in the volume and are not known to be good."""
    return {
        each.new_region_id
        for each in region_replacements_of_volume(connection, volume_id)
        if each.state in UNDER_REPAIR and each.new_region_id is not None
    }


# -- a successor that is lost itself ----------------------------------------------------------------------------------


def successor_replaced(connection: Connection, lost_region_id: str, new_region_id: str) -> None:
    """The successor of some request is lost, and has a successor itself: the request goes on with that (W41,
    *liveness*: it could wait for ever for the lost one to become good). In the transaction of the swap; backwards, in
    that of its undo, with the two exchanged."""
    waits = (_REQUEST.c.new_region_id == lost_region_id, _REQUEST.c.replacement_state.in_(sorted(UNDER_REPAIR)))
    connection.execute(update(_REQUEST).where(*waits).values(new_region_id=new_region_id))


def request_ended(connection: Connection, request_id: str, volume_id: str) -> None:
    """The request is complete, and in this transaction. It waits for nothing more; and when it was the volume's last,
    all its copies are good again, or it is deleted. *Safety*: what an operator said of a survivor was said of that
    moment, and not of the next time."""
    waiting_no_more(connection, request_id)
    if not region_replacements_of_volume(connection, volume_id):
        connection.execute(delete(_DECISION).where(_DECISION.c.volume_id == volume_id))


# -- what the detector looks for --------------------------------------------------------------------------------------


_REGION = schema.region
_PLACE_OF = select(_REGION.c.volume_id, _REGION.c.port).where(_REGION.c.id == bindparam("region"), ~_REGION.c.read_only)


def is_member(connection: Connection, volume_id: str, region_id: str) -> bool:
    """Whether the living volume names the region. Of a region whose port nobody knows, it is taken to."""
    row = connection.execute(_PLACE_OF, {"region": region_id}).one_or_none()
    if row is None or row.volume_id != volume_id:
        return False
    found = members(connection, volume_id)
    return bool(found) if row.port is None else any(each.region_id == region_id for each in found)


def drives_at_a_pantry(connection: Connection, volume_id: str) -> str | None:
    """Which of the volume's requests has it repaired when nobody else has it: the oldest one that is so far. A pantry
    that was asked by two of them would be given the volume by each, and taken from by the other."""
    found = region_replacements_of_volume(connection, volume_id)
    return next((each.id for each in found if each.state in UNDER_REPAIR), None)
