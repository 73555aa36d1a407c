"""One read-only target for another in one volume, and back: what the start saga and the step saga share (§3.4, §3.6).

    Node("CREATE_FAKE_VOLUME", create_stash, undo=destroy_stash)
    Node("REPLACE_SNAPSHOT_IN_VOLUME", swap, undo=swap_back)

What is shared are the bodies of these four, given a :class:`Swap`. The *stash* takes over the volume's reference to the
old target in the transaction of the swap (R7), so that nothing is freed while the swap may still be undone; later the
ordinary deletion of the stash frees it.

What may happen between any two of the four: the volume is deleted, the part of it that named the target is taken away,
its other targets are swapped. So a swap that finds the volume deleted has ended well (:func:`require_accepted`), a swap
back that finds nothing to put back has, too (:data:`NOTHING_TO_PUT_BACK`), and the stash is never
simply forgotten: whatever it counts on by then is let go of and, where it was the last, destroyed (W30, W31).
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import Connection

from nexus.objects.refusals import CONFLICT, told_to_users
from nexus.saga import ActionFailed
from nexus.sagas.volume_delete import undo_volume
from nexus.services import World
from nexus.volumes import (
    Address,
    ReadOnlyRegion,
    ReadOnlyTarget,
    RegionSnapshot,
    TargetNotFound,
    VolumeReplaceResult,
    recorded,
    volume_create,
    volume_replace_snapshot,
)
from nexus.volumes.resolution import Resource

ACCEPTED = frozenset(VolumeReplaceResult)
"""*Safety* (R22): all of them. A node that ran, and runs again after the volume was deleted, finds it deleted; did it
fail, it would not be undone itself, and the reference that it moved to the stash would belong to nobody."""

NOTHING_TO_PUT_BACK = (TargetNotFound,)
"""*Liveness* (W32): the part of the volume that named the target was taken away since the swap, and with it what there
was to undo. The stash has the old target's reference, and lets go of it when it is undone in its turn. (The real one
fails here: its saga is stuck, and the volume's lock held for ever.)"""


@dataclass(frozen=True, slots=True)
class Swap:
    """Which target of which volume is to become which, and the stash between. Targets are carried as what they *are*
    and not by address alone (W55): an agent may have given the port away before the swap comes."""

    volume_id: str
    existing: ReadOnlyTarget
    replacement: ReadOnlyTarget
    stash_id: str

    @property
    def inverse(self) -> Swap:
        return Swap(self.volume_id, self.replacement, self.existing, self.stash_id)

    def recorded(self) -> dict[str, Any]:
        """As a saga's log has it: ids and addresses."""
        return {
            "volume_id": self.volume_id,
            "existing": target_recorded(self.existing),
            "replacement": target_recorded(self.replacement),
            "stash_id": self.stash_id,
        }

    @classmethod
    def of(cls, found: dict[str, Any]) -> Swap:
        existing, replacement = target_of(found["existing"]), target_of(found["replacement"])
        return cls(found["volume_id"], existing, replacement, found["stash_id"])


def resource_recorded(resource: Resource) -> dict[str, str]:
    match resource:
        case ReadOnlyRegion(region_id):
            return {"region_id": region_id}
        case RegionSnapshot(dataset_id, region_id, snapshot_id):
            return {"dataset_id": dataset_id, "region_id": region_id, "snapshot_id": snapshot_id}


def resource_of(found: dict[str, str]) -> Resource:
    return RegionSnapshot(**found) if "snapshot_id" in found else ReadOnlyRegion(**found)


def target_recorded(target: ReadOnlyTarget) -> dict[str, Any]:
    return {"address": str(target.address), "resource": resource_recorded(target.resource)}


def target_of(found: dict[str, Any]) -> ReadOnlyTarget:
    return ReadOnlyTarget(Address.parse(found["address"]), resource_of(found["resource"]))


async def create_stash(world: World, stash_id: str) -> None:
    """A volume that names nothing (R6, *safety*: did it name the new target, and the swap never came, its deletion
    would drop a reference that others need). Safe to rerun: it is found."""
    request = recorded.snapshot_stash(UUID(stash_id))
    with told_to_users():
        await world.database.transact(lambda c: volume_create(c, stash_id, request, world.now()) and None)


async def destroy_stash(world: World, stash_id: str) -> None:
    """With all that it counts on by now (W30, W31, *safety*): to take only its row away would leave its references,
    and what they refer to would never be freed. Safe to rerun: of a volume that is gone it is done."""
    await undo_volume(world, stash_id)


async def swap(world: World, wanted: Swap) -> VolumeReplaceResult:
    """Safe to rerun: a volume that names the new target has been swapped, and one that is deleted is done."""
    with told_to_users():
        result = await world.database.transact(lambda c: _swap(c, world, wanted))
    require_accepted(result, wanted.volume_id)
    return result


def require_accepted(result: VolumeReplaceResult, volume_id: str) -> None:
    """Raises :class:`~nexus.saga.ActionFailed` where ``result`` is none of :data:`ACCEPTED`."""
    if result not in ACCEPTED:
        raise ActionFailed(f"volume {volume_id}: {result.value}", CONFLICT)


async def swap_back(world: World, wanted: Swap) -> None:
    """Safe to rerun: what names the old target again is swapped back."""

    def body(connection: Connection) -> None:
        with suppress(*NOTHING_TO_PUT_BACK):
            _swap(connection, world, wanted.inverse)

    await world.database.transact(body)


def _swap(connection: Connection, world: World, wanted: Swap) -> VolumeReplaceResult:
    return volume_replace_snapshot(
        connection, wanted.volume_id, wanted.existing, wanted.replacement, wanted.stash_id, world.now()
    )
