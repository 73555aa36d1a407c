"""Which region directory, port and uuid each Downstairs has (upstairs-volume.md §16.2).

What it is for: the regions of a supervisor lie in ``DIR/PORT``, as the real program keeps them; ports go up in steps
from a base, and a uuid carries its port. Directories are given once for all regions, three times (the three replicas of
every set on three disks), or once per region. A directory that is itself a region is taken as it is, where there is one
per region.

What it guarantees: regions are made before anything is started, and only where there is nothing; what is deleted for
``cleanup`` is a region's directory and nothing else.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from crucible_emu.errors import UsageError
from crucible_emu.geometry import RegionDefinition
from crucible_emu.region import Region
from crucible_emu.region.directory import DEFINITION_NAME
from crucible_emu.region.view import RegionView

PORT_BASE = 8810
PORT_STEP = 10
PORT_MAX = 61535
"""The repair service listens 4000 above, and that must be a port too."""
REGION_COUNT = 3
BLOCK_SIZE, BLOCKS_PER_EXTENT, EXTENT_COUNT = 4096, 100, 15
REPLICAS = 3
_UUID_PREFIX = "12345678-0000-0000-0000-"


@dataclass(frozen=True, slots=True)
class Place:
    """Where Downstairs ``cid`` is: its region directory and its data port."""

    cid: int
    region: Path
    port: int


def uuid_of(port: int) -> UUID:
    """The uuid of the region behind ``port``."""
    return UUID(f"{_UUID_PREFIX}{port:012d}")


def is_region(path: Path) -> bool:
    return (path / DEFINITION_NAME).is_file()


def places(directories: Sequence[Path], count: int, port_base: int, port_step: int = PORT_STEP) -> list[Place]:
    """Directory and port of each of ``count`` Downstairs. Raises :class:`UsageError`."""
    if count < 1:
        raise UsageError(f"{count} regions cannot be run: take at least 1")
    if port_step < 1:
        raise UsageError(f"a port step of {port_step} puts two Downstairs behind one port: take at least 1")
    last = port_base + (count - 1) * port_step
    if port_base < 1 or last > PORT_MAX:
        raise UsageError(f"ports {port_base} to {last} are not all usable: take ports from 1 to {PORT_MAX}")
    if len(directories) not in (1, REPLICAS, count):
        raise UsageError(
            f"{len(directories)} directories were given for {count} regions: give one, {REPLICAS}, or one per region"
        )
    found = []
    for cid in range(count):
        port = port_base + cid * port_step
        given = directories[cid % len(directories)]
        whole = len(directories) == count and is_region(given)
        found.append(Place(cid, given if whole else given / str(port), port))
    if len({place.region.absolute() for place in found}) < count:
        raise UsageError("a region directory is named twice: give each Downstairs its own")
    return found


def make_regions(
    wanted: Sequence[Place],
    *,
    block_size: int = BLOCK_SIZE,
    blocks_per_extent: int = BLOCKS_PER_EXTENT,
    extent_count: int = EXTENT_COUNT,
    encrypted: bool = False,
    cleanup: bool = False,
) -> None:
    """Make a region at each place. Raises :class:`UsageError` where there is something already (unless it is a region
    and ``cleanup`` says to delete it), and GeometryError."""
    definitions = [
        RegionDefinition(block_size, blocks_per_extent, extent_count, uuid_of(place.port), encrypted)
        for place in wanted
    ]
    for place in wanted:
        if is_region(place.region):
            if not cleanup:
                raise UsageError(f"there is a region in {place.region} already: leave --create out, or say --cleanup")
        elif place.region.exists() and (not place.region.is_dir() or any(place.region.iterdir())):
            raise UsageError(f"{place.region} exists and is no region: choose another directory")
    for place, definition in zip(wanted, definitions):
        if is_region(place.region):
            shutil.rmtree(place.region)
        place.region.parent.mkdir(parents=True, exist_ok=True)
        Region.create(place.region, definition).close()


def definitions(wanted: Sequence[Place]) -> list[RegionDefinition]:
    """What the regions at these places are. Raises :class:`UsageError` where one is missing or differs in geometry."""
    found = []
    for place in wanted:
        if not is_region(place.region):
            raise UsageError(f"there is no region in {place.region}: say --create to make it")
        found.append(RegionView.open(place.region).definition)
    first = found[0]
    for place, definition in zip(wanted, found):
        if not definition.same_geometry(first) or definition.encrypted != first.encrypted:
            raise UsageError(
                f"the region in {place.region} differs from that in {wanted[0].region}: all must have the same "
                "geometry and encryption"
            )
    return found


def newest_generation(wanted: Sequence[Place]) -> int:
    """The highest generation that any extent of these regions was written with; nobody may have them open."""
    newest = 0
    for place in wanted:
        region = RegionView.open(place.region)
        for extent_id in range(region.definition.extent_count):
            with region.extent(extent_id) as extent:
                newest = max(newest, extent.metadata.gen_number)
    return newest
