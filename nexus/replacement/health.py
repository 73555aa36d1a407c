"""How one Upstairs is, from what its host or pantry says of the volume: pure (nexus.md §8.3).

What it is for: an Upstairs that was asked before, or that was made from the new document, answers a request to replace
with "that is what I have" and nothing else. Whether the copy that it has is a good one, it says when asked how it is.

What it guarantees (*safety*, R29): :attr:`Health.HEALTHY` only of an Upstairs that serves, with all its copies in
service and no repair under way. Whatever is not known to be so is degraded: a volume that is believed too early loses
its old copy. A copy that is lost for good, and whose turn comes next, is not asked for (W54, *liveness*): it could only
be replaced when this one is done. Each copy that an Upstairs has in service has all that it ever acknowledged.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from enum import StrEnum

from crucible_emu.volume.info import Connecting, UpstairsInfo, UpstairsNode, VolumeInfo
from crucible_emu.volume.vcr import TARGETS
from nexus.volumes import Address

READ_ONLY_ACTIVE_MIN = 1
"""Of a read-only set, whose copies nobody writes to, one in service is enough."""


class Health(StrEnum):
    """How an Upstairs is. All but the first are ways to be degraded."""

    HEALTHY = "healthy"
    DOWNSTAIRS_DEGRADED = "a copy is being repaired"
    NOT_ACTIVE = "it is not in service"
    INVALID_STATE = "it has not three copies"
    REDUCED_REDUNDANCY = "a copy is not in service"


def single_upstairs_health(upstairs: UpstairsInfo, lost: Collection[Address] = ()) -> Health:
    """How the Upstairs of one region set is, but for copies that are ``lost`` for good."""
    if upstairs.reconcile_in_progress or upstairs.live_repair_in_progress:
        return Health.DOWNSTAIRS_DEGRADED
    if upstairs.state != "active":
        return Health.NOT_ACTIVE
    if len(upstairs.targets) != TARGETS:
        return Health.INVALID_STATE
    states = [each.state for each in upstairs.targets if not (each.target_addr and _is_lost(each.target_addr, lost))]
    types = ["connecting" if isinstance(state, Connecting) else state.type for state in states]
    if "live_repair" in types:
        return Health.DOWNSTAIRS_DEGRADED
    wanted = READ_ONLY_ACTIVE_MIN if upstairs.read_only else len(types)
    return Health.HEALTHY if types.count("active") >= wanted else Health.REDUCED_REDUNDANCY


def _is_lost(target: str, lost: Collection[Address]) -> bool:
    return Address.parse(target) in lost


def upstairs_of(info: VolumeInfo) -> Iterator[UpstairsInfo]:
    """Every Upstairs of a volume, those of its parents included."""
    if isinstance(info, UpstairsNode):
        yield info.upstairs
        return
    for part in info.volume.sub_volumes:
        yield from upstairs_of(part)
    if info.volume.read_only_parent is not None:
        yield from upstairs_of(info.volume.read_only_parent)


def targets_of(upstairs: UpstairsInfo) -> set[Address]:
    """Where the copies of an Upstairs are, as far as it knows."""
    return {Address.parse(each.target_addr) for each in upstairs.targets if each.target_addr}


def upstairs_with(info: VolumeInfo, target: Address) -> UpstairsInfo | None:
    """The Upstairs that has this copy; ``None`` where none has."""
    return next((each for each in upstairs_of(info) if target in targets_of(each)), None)


def written_targets(info: VolumeInfo) -> set[Address]:
    """Where the copies are that the volume writes to."""
    return {address for each in upstairs_of(info) if not each.read_only for address in targets_of(each)}
