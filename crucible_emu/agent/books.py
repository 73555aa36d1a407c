"""Space that regions may take and are promised (apis-and-tools.md §1.6, §1.7).

What it is for: the real agent gives each region's dataset a *reservation* of 1.25 times its bytes, which the pool must
have, and a *quota* of three times, which leaves room for snapshots. Region files here are sparse and there is no pool,
so the agent keeps books: reservations against the capacity that it was given. What would exceed it is not made, and
ends in *failed*, where the real one's ``zfs create`` fails. The quota is written down in the log and enforced by
nobody.

What it guarantees: reservations are held by regions that have files, and by no others.
"""

from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID

from crucible_emu.agent.documents import CreateRegion
from crucible_emu.errors import UsageError
from crucible_emu.geometry import GeometryError, RegionDefinition

EXTENTS_MAX = 65_536
"""Files per region: 4 TiB in extents of 64 MiB. *Safety*: a request is a few bytes, and every extent costs an inode."""


def region_bytes(wish: CreateRegion) -> int:
    """Block data of a region."""
    return wish.block_size * wish.extent_size * wish.extent_count


def reservation_bytes(wish: CreateRegion) -> int:
    """What a region is promised: its bytes and 25 % for contexts."""
    return (region_bytes(wish) * 5 + 2) // 4


def quota_bytes(wish: CreateRegion) -> int:
    """What a region may take with its snapshots."""
    return 3 * region_bytes(wish)


def definition_of(wish: CreateRegion) -> RegionDefinition:
    """The region that is asked for. Raises :class:`UsageError` where there is no such region."""
    region_id = directory_name(wish.id)
    if region_id is None:
        raise UsageError(f"region id {wish.id[:80]!r} is no UUID")
    if not 1 <= wish.extent_count <= EXTENTS_MAX:
        raise UsageError(f"a region cannot have {wish.extent_count} extents: take 1 to {EXTENTS_MAX}")
    try:
        return RegionDefinition(
            wish.block_size, wish.extent_size, wish.extent_count, UUID(region_id), encrypted=wish.encrypted
        )
    except GeometryError as error:
        raise UsageError(str(error)) from None


def directory_name(region_id: str) -> str | None:
    """The name of a region's directory: its id, where that is a UUID; ``None`` for an id that has no directory.

    *Safety*: an id is any text, and must not lead out of the dataset.
    """
    if len(region_id) not in (32, 36) or set(region_id) - set("0123456789abcdefABCDEF-"):
        return None
    try:
        UUID(region_id)
    except ValueError:
        return None
    return region_id


def check_capacity(wish: CreateRegion, held: Iterable[CreateRegion], capacity_bytes: int | None) -> None:
    """Raises :class:`UsageError` where ``wish`` does not fit beside the regions that have files."""
    if capacity_bytes is None:
        return
    free = capacity_bytes - sum(map(reservation_bytes, held))
    needed = reservation_bytes(wish)
    if needed > free:
        raise UsageError(f"the region needs a reservation of {needed} bytes, {max(0, free)} are left: delete others")
