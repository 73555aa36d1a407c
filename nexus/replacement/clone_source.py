"""Which copy of a snapshot a lost one's successor is made from: the policy, without a database (nexus.md §3.4).

What it is for: a read-only target is replaced by a clone of a copy that is still there. :func:`choose` is given every
copy of the snapshot with what is known of it, and answers with one of them, or with none; :func:`why_none` is the
sentence that a person reads then.

The order, the first that there is: another region snapshot; a read-only region that was cloned earlier; the target
itself. *Not itself while there is another* (safety): who asks for a replacement of a copy that is still there may do so
because it misbehaves. Among equals the seed draws, so that the next attempt need not meet the same silent agent.

What a source must be (*safety*): on a disk in service, or there is nobody to read it from. Counted on by some volume:
a clone that was made and not yet proved is on its agent, too, and nobody counts on that (with this the region that the
request itself makes is none; that it is chosen before it is made, and written down, is R37). Not refused: whoever was
found to hold other bytes than its snapshot is not asked a second time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from enum import IntEnum

from nexus.placement.choice import rank
from nexus.volumes import Address, ReadOnlyRegion, RegionSnapshot
from nexus.volumes.freed import Dataset
from nexus.volumes.resolution import Resource

REPAIR_PORT_OFFSET = 4000
"""How far above the port of a Downstairs its repair service listens; no agent says so (W16)."""


class Preference(IntEnum):
    """The kinds of sources, best first."""

    ANOTHER_SNAPSHOT = 1
    ANOTHER_REGION = 2
    ITSELF = 3


@dataclass(frozen=True, slots=True)
class SnapshotCopy:
    """A copy of a snapshot's region set. ``address``: where its Downstairs listens, ``None`` while that is not known;
    ``in_service``: its disk is; ``used``: some volume counts on it."""

    resource: Resource
    dataset: Dataset
    address: Address | None
    in_service: bool
    used: bool

    @property
    def name(self) -> str:
        """What it is called where sources are refused."""
        return str(self.resource)


def preference(copy: SnapshotCopy, own: Resource) -> Preference:
    """*Safety*: never the target itself while there is another."""
    if copy.resource == own:
        return Preference.ITSELF
    match copy.resource:
        case RegionSnapshot():
            return Preference.ANOTHER_SNAPSHOT
        case ReadOnlyRegion():
            return Preference.ANOTHER_REGION


def choose(copies: Iterable[SnapshotCopy], own: Resource, refused: Collection[str], seed: str) -> SnapshotCopy | None:
    """The copy to clone; ``own`` is the target that is replaced, ``refused`` are names. ``None``: there is none left.
    The same facts and seed give the same answer, in whatever order the facts come."""
    fit = [each for each in copies if each.in_service and each.used and each.address and each.name not in refused]
    return min(fit, key=lambda each: (preference(each, own), rank(each.name, seed)), default=None)


def why_none(copies: Iterable[SnapshotCopy], snapshot_id: str, refused: Collection[str]) -> str:
    """Why :func:`choose` found none, for a person."""
    found = sorted(copies, key=lambda each: each.name)
    lost = [each.name for each in found if not each.in_service]
    rotten = [each.name for each in found if each.in_service and each.name in refused]
    parts = []
    if rotten:
        parts.append(f"what is there is not what the snapshot was: {', '.join(rotten)}")
    if lost:
        parts.append(f"on disks that are gone: {', '.join(lost)}")
    return f"no good copy of snapshot {snapshot_id} is left to clone" + "".join(f"; {each}" for each in parts)


def repair_address(address: Address) -> Address:
    """Where the files of the Downstairs at ``address`` are read from."""
    return Address(address.ip, address.port + REPAIR_PORT_OFFSET)
