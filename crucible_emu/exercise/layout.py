"""The shape of the disk that is exercised: its blocks, and the borders at which requests are cut in two."""

from __future__ import annotations

from dataclasses import dataclass

from crucible_emu.errors import UsageError
from crucible_emu.volume.vcr import FileRequest, RegionRequest, UrlRequest, VolumeConstructionRequest


@dataclass(frozen=True, slots=True)
class RegionSetLayout:
    """One region set of a disk: its first block, and its extents."""

    first: int
    blocks_per_extent: int
    extent_count: int

    @property
    def block_count(self) -> int:
        return self.blocks_per_extent * self.extent_count

    @property
    def end(self) -> int:
        """The block behind the last one."""
        return self.first + self.block_count


@dataclass(frozen=True, slots=True)
class Layout:
    """A disk of ``block_count`` blocks of ``block_size`` bytes, made of region sets one after the other."""

    block_size: int
    region_sets: tuple[RegionSetLayout, ...]

    @property
    def block_count(self) -> int:
        return self.region_sets[-1].end

    @property
    def size_bytes(self) -> int:
        return self.block_count * self.block_size

    @property
    def extents(self) -> list[tuple[int, int]]:
        """First block and number of blocks of every extent."""
        return [
            (each.first + number * each.blocks_per_extent, each.blocks_per_extent)
            for each in self.region_sets
            for number in range(each.extent_count)
        ]


def layout_of(request: VolumeConstructionRequest) -> Layout:
    """The layout of the disk that ``request`` describes. Raises :class:`UsageError` where it has no region set."""
    found = tuple(_region_sets(request, 0))
    if not found:
        raise UsageError("the volume has no region set: there is nothing to write to")
    return Layout(request.block_size, found)


def _region_sets(request: VolumeConstructionRequest, first: int) -> list[RegionSetLayout]:
    if isinstance(request, RegionRequest):
        return [RegionSetLayout(first, request.blocks_per_extent, request.extent_count)]
    if isinstance(request, UrlRequest | FileRequest):
        raise UsageError(f"the disk has a {request.type} among its sub-volumes: its blocks cannot be written")
    found: list[RegionSetLayout] = []
    for each in request.sub_volumes:
        found += _region_sets(each, found[-1].end if found else first)
    return found
