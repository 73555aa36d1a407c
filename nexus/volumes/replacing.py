"""One target of a volume for another: the two primitives of every replacement (nexus.md §5.11).

What they guarantee: document, owners and references change in one transaction, so no reader of the tables ever sees one
without the others. Each may be done again, and says so; each has an inverse, which is itself with the two addresses
(and, read/write, regions) exchanged.

Why no count passes through zero (R7, *safety*): the reference to the old read-only target is not dropped but moved to a
*stash* volume, which the ordinary deletion of volumes frees when nobody can unwind any more.

Why a target is given by address *and* resource (W55, *safety*): agents use ports again. Between a step's planning and
its swap the address may have become another snapshot's; the swap then finds another resource there, and refuses.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from uuid import UUID

from sqlalchemy import Connection, update

from nexus.db import Conflict, schema
from nexus.volumes import recorded, walks
from nexus.volumes.at_rest import at_rest, rest_kept
from nexus.volumes.recorded import Address
from nexus.volumes.refusals import BrokenInvariant, TargetNotFound
from nexus.volumes.resolution import Resource, has_usage, insert_usage, move_usage, require_resource
from nexus.volumes.rows import Volume, require_live, volume_get, write_request

_REGION = schema.region


class VolumeReplaceResult(Enum):
    """What came of it. Recorded by sagas; the values are the names of nexus.md."""

    ALREADY_HAPPENED = "AlreadyHappened"
    DONE = "Done"
    EXISTING_VOLUME_SOFT_DELETED = "ExistingVolumeSoftDeleted"
    EXISTING_VOLUME_HARD_DELETED = "ExistingVolumeHardDeleted"


@dataclass(frozen=True, slots=True)
class VolumeRegion:
    """A read/write region, where it listens, and the volume that owns it or shall own it."""

    volume_id: str
    region_id: str
    address: Address


@dataclass(frozen=True, slots=True)
class ReadOnlyTarget:
    """A read-only target: where it listens, and what it is."""

    address: Address
    resource: Resource


def _decided(*, old: bool, new: bool, swap: str) -> VolumeReplaceResult | None:
    """What is already clear from which of the two the volume names; ``None``: the swap is to be done."""
    match (old, new):
        case (False, True):
            return VolumeReplaceResult.ALREADY_HAPPENED
        case (True, True):
            # *Safety* (W51): the set would have one member twice, and two good copies instead of three.
            raise Conflict(f"{swap}: the volume names both")
        case (False, False):
            raise TargetNotFound(f"{swap}: the volume names neither")
    return None


def _living(connection: Connection, volume_id: str) -> Volume | VolumeReplaceResult:
    """The volume, or how it was deleted."""
    volume = volume_get(connection, volume_id)
    if volume is None:
        return VolumeReplaceResult.EXISTING_VOLUME_HARD_DELETED
    return VolumeReplaceResult.EXISTING_VOLUME_SOFT_DELETED if volume.deleted else volume


def volume_replace_region(
    connection: Connection, existing: VolumeRegion, replacement: VolumeRegion, now: datetime
) -> VolumeReplaceResult:
    """Put ``replacement`` in the place of ``existing`` in the volume of ``existing``; each region's owner becomes the
    other's volume. That of the replacement need not exist yet. Every generation grows, so that who gets this document
    wins over who has the old one. Raises :class:`TargetNotFound`, :class:`Conflict`, :class:`BrokenInvariant`."""
    volume_id = existing.volume_id
    volume = _living(connection, volume_id)
    if isinstance(volume, VolumeReplaceResult):
        return volume
    old = walks.contains_region(volume.request, existing.address)
    new = walks.contains_region(volume.request, replacement.address)
    swap = f"in volume {volume_id}, {existing.address} for {replacement.address}"
    decided = _decided(old=old, new=new, swap=swap)
    if decided is not None:
        return decided
    resting = at_rest(connection, volume_id)
    _give(connection, existing.region_id, replacement.volume_id, now)
    _give(connection, replacement.region_id, volume_id, now)
    request = walks.replace_region(volume.request, existing.address, replacement.address)
    write_request(connection, volume_id, request, now)
    if resting:
        rest_kept(connection, volume_id, request, now)
    return VolumeReplaceResult.DONE


def _give(connection: Connection, region_id: str, volume_id: str, now: datetime) -> None:
    values = {"volume_id": volume_id, "time_modified": now}
    which = update(_REGION).where(_REGION.c.id == region_id, ~_REGION.c.read_only)
    if connection.execute(which.values(**values)).rowcount != 1:
        raise BrokenInvariant(f"there is no read/write region {region_id} that volume {volume_id} could own")


def volume_replace_snapshot(
    connection: Connection,
    volume_id: str,
    existing: ReadOnlyTarget,
    replacement: ReadOnlyTarget,
    stash_id: str,
    now: datetime,
) -> VolumeReplaceResult:
    """Put ``replacement`` in the place of ``existing`` wherever the volume reads from it; the stash, which must be
    there, names ``existing`` from then on and holds the reference to it. Ids and generations stay.

    Backwards, which is this with the two exchanged, the stash takes the reference to the replacement. Raises
    :class:`TargetNotFound`, :class:`Conflict`, :class:`ResourceGone`, :class:`BrokenInvariant`."""
    volume = _living(connection, volume_id)
    if isinstance(volume, VolumeReplaceResult):
        return volume
    old = walks.contains_read_only_target(volume.request, existing.address)
    new = walks.contains_read_only_target(volume.request, replacement.address)
    swap = f"in volume {volume_id}, {existing.address} for {replacement.address}"
    decided = _decided(old=old, new=new, swap=swap)
    if decided is not None:
        return decided
    request, count = walks.replace_read_only_target(volume.request, existing.address, replacement.address)
    if count != 1:
        raise BrokenInvariant(f"volume {volume_id} names the read-only target {existing.address} {count} times (I9)")
    require_same_resource(connection, existing)
    require_same_resource(connection, replacement)
    _stash(connection, stash_id, existing.address, replacement.address, now)
    write_request(connection, volume_id, request, now)
    move_usage(connection, volume_id, stash_id, existing.resource)
    if has_usage(connection, stash_id, replacement.resource):
        move_usage(connection, stash_id, volume_id, replacement.resource)
    else:
        insert_usage(connection, volume_id, replacement.resource)
    return VolumeReplaceResult.DONE


def require_same_resource(connection: Connection, target: ReadOnlyTarget) -> None:
    """*Safety* (W55): what listens at the address is what is meant. Raises :class:`ResourceGone`, :class:`Conflict`."""
    found = require_resource(connection, target.address)
    if found != target.resource:
        raise Conflict(f"at {target.address} is the {found}, not the {target.resource}: the port was given away")


def _stash(connection: Connection, stash_id: str, kept: Address, given: Address, now: datetime) -> None:
    """Make the stash name ``kept`` and nothing else. It may have named what it gives (backwards), or nothing."""
    stash = require_live(connection, stash_id)
    named = walks.read_only_targets(stash.request)
    if named not in ([], [given]):
        raise BrokenInvariant(f"volume {stash_id} is no stash for this: it names {', '.join(map(str, named))}")
    write_request(connection, stash_id, recorded.kept_target(UUID(stash_id), kept), now)
