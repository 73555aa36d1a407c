"""The regions of the demonstration, and the requests that make disks of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

from crucible_emu.geometry import BLOCK_SIZE_DEFAULT, RegionDefinition, cut_into_extents, size_for
from crucible_emu.region import Region
from crucible_emu.volume import vcr

EXTENTS_MIN = 16
Tell = Callable[[str], None]
"""Say one line of the story."""


def definition_for(length: int) -> RegionDefinition:
    """What a region for an image of ``length`` bytes looks like; small extents, so that a repair has steps to show."""
    size_bytes = size_for(length, BLOCK_SIZE_DEFAULT)
    blocks_per_extent, extent_count = cut_into_extents(size_bytes, BLOCK_SIZE_DEFAULT)
    while extent_count < EXTENTS_MIN and blocks_per_extent % 2 == 0:
        blocks_per_extent, extent_count = blocks_per_extent // 2, extent_count * 2
    return RegionDefinition(BLOCK_SIZE_DEFAULT, blocks_per_extent, extent_count, uuid4())


def make_regions(folder: Path, names: list[str], definition: RegionDefinition) -> list[Path]:
    """Empty regions of one geometry, each with an id of its own."""
    for name in names:
        Region.create(folder / name, replace(definition, uuid=uuid4())).close()
    return [folder / name for name in names]


def request_for(
    definition: RegionDefinition,
    targets: list[str],
    gen: int,
    *,
    read_only: bool = False,
    parent: vcr.VolumeRequest | None = None,
) -> vcr.VolumeRequest:
    """The volume construction request of a disk over these Downstairs, on top of ``parent``."""
    disk_id = uuid4()
    opts = vcr.CrucibleOpts(id=disk_id, target=tuple(targets), read_only=read_only)
    region = vcr.RegionRequest(
        type="region",
        block_size=definition.block_size,
        blocks_per_extent=definition.blocks_per_extent,
        extent_count=definition.extent_count,
        opts=opts,
        gen=gen,
    )
    return vcr.VolumeRequest(
        type="volume", id=disk_id, block_size=definition.block_size, sub_volumes=(region,), read_only_parent=parent
    )
