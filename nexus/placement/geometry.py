"""How big a region is, and what it costs its dataset (nexus.md §7.1, §7.2).

What it is for: the size of a disk becomes extents of 64 MiB; the space that a region reserves is a quarter more, for
what the Downstairs keeps beside the data.

What it guarantees: the same disk gives the same geometry for all its regions for ever; a replacement copies it.
"""

from __future__ import annotations

from dataclasses import dataclass

MIB_BYTES = 1024 * 1024
GIB_BYTES = 1024 * MIB_BYTES
EXTENT_BYTES = 64 * MIB_BYTES
BLOCK_SIZES = (512, 2048, 4096)
DISK_BYTES_MAX = 1023 * GIB_BYTES
"""A disk is one region set, and that is how big a region may be."""
RESERVATION_PERCENT = 25


class InvalidSize(ValueError):
    """A size that no disk may have; the message says what would be right."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """Blocks of ``block_size`` bytes, ``blocks_per_extent`` of them in each of ``extent_count`` extents."""

    block_size: int
    blocks_per_extent: int
    extent_count: int

    @classmethod
    def of_disk(cls, size_bytes: int, block_size: int, extent_bytes: int = EXTENT_BYTES) -> Geometry:
        """That of a disk of ``size_bytes``, rounded up to whole extents. Raises :class:`InvalidSize`."""
        if block_size not in BLOCK_SIZES:
            raise InvalidSize(f"block size {block_size} is not usable: take {', '.join(map(str, BLOCK_SIZES))}")
        if size_bytes < 0:
            raise InvalidSize(f"a disk of {size_bytes} bytes is not possible")
        if extent_bytes < block_size or extent_bytes % block_size:
            raise InvalidSize(f"an extent of {extent_bytes} bytes is no number of blocks of {block_size}")
        return cls(block_size, extent_bytes // block_size, -(-size_bytes // extent_bytes))

    @property
    def requested_bytes(self) -> int:
        return self.block_size * self.blocks_per_extent * self.extent_count

    @property
    def reserved_bytes(self) -> int:
        """What is charged to the dataset. A whole number: every block size is divisible by 4."""
        return reserved(self.requested_bytes)


def reserved(requested_bytes: int) -> int:
    """What a region of ``requested_bytes`` is charged."""
    if requested_bytes * RESERVATION_PERCENT % 100:
        raise InvalidSize(f"a region of {requested_bytes} bytes is not divisible by 4")
    return requested_bytes + requested_bytes * RESERVATION_PERCENT // 100


@dataclass(frozen=True, slots=True)
class Sizes:
    """Which sizes disks may have, and their extents. A rack for a demonstration has smaller ones."""

    extent_bytes: int = EXTENT_BYTES
    step_bytes: int = GIB_BYTES
    most_bytes: int = DISK_BYTES_MAX

    def __post_init__(self) -> None:
        if self.extent_bytes % max(BLOCK_SIZES) or self.step_bytes % self.extent_bytes or not self.extent_bytes:
            raise InvalidSize(f"disks in steps of {self.step_bytes} bytes are no whole extents of {self.extent_bytes}")

    def check(self, size_bytes: int) -> int:
        """``size_bytes``, if a user may ask for a disk of it. Raises :class:`InvalidSize`."""
        if not self.step_bytes <= size_bytes <= self.most_bytes or size_bytes % self.step_bytes:
            unit, most = _in_units(self.step_bytes), self.most_bytes // self.step_bytes
            raise InvalidSize(f"a disk of {size_bytes} bytes is not possible: take whole {unit}, from 1 to {most}")
        return size_bytes

    def geometry(self, size_bytes: int, block_size: int) -> Geometry:
        """As :meth:`Geometry.of_disk`."""
        return Geometry.of_disk(size_bytes, block_size, self.extent_bytes)


def _in_units(step_bytes: int) -> str:
    for unit, size_bytes in (("GiB", GIB_BYTES), ("MiB", MIB_BYTES)):
        if step_bytes % size_bytes == 0:
            count = step_bytes // size_bytes
            return unit if count == 1 else f"multiples of {count} {unit}"
    return f"multiples of {step_bytes} bytes"
