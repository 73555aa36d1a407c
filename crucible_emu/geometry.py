"""Region geometry: blocks, extents, and runs of blocks.

What it is for: every layer cuts block ranges at extent borders and groups scattered blocks into runs. It is done here,
once, on whole arrays.

What it guarantees: a :class:`RegionDefinition` that exists is valid (on-disk-format.md §9.1). The real program accepts
a ``shift`` that disagrees with ``block_size`` and then uses one for layout and the other for hashing (§1.2); here the
two cannot disagree, because only one of them is stored.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any
from uuid import UUID

import numpy as np
import numpy.typing as npt

from crucible_emu.errors import UsageError

BlockIndexes = npt.NDArray[np.int64]
"""Block numbers, dtype int64, one per block."""
Selection = slice | BlockIndexes
"""Blocks of a table, side by side or one by one."""
SLICE_BLOCKS_MIN = 64
"""So many blocks are worth a look whether they follow upon each other."""

BLOCK_SIZE_BYTES_MIN = 512
BLOCK_SIZE_BYTES_MAX = 32768
EXTENT_DATA_BYTES_MAX = 512 * 1024 * 1024
EXTENT_COUNT_MAX = 2**32 - 1
DATABASE_VERSION = 1

BLOCK_SIZE_DEFAULT = 4096
EXTENT_BYTES_DEFAULT = 64 * 1024 * 1024
_EXTENT_COUNT_TRIES = 100_000


class GeometryError(ValueError):
    """A region definition that cannot exist; the message says which rule it breaks and what would be right."""


def check_block_size(size: int) -> int:
    """``size``, if it can be a block size. Raises :class:`GeometryError`."""
    if size < BLOCK_SIZE_BYTES_MIN or size > BLOCK_SIZE_BYTES_MAX or size & (size - 1):
        raise GeometryError(
            f"block size {size} is not usable: take a power of two from "
            f"{BLOCK_SIZE_BYTES_MIN} to {BLOCK_SIZE_BYTES_MAX}"
        )
    return size


@dataclass(frozen=True, slots=True)
class RegionDefinition:
    """What a region is (on-disk-format.md §1.2): its block size, its extents, its identity.

    ``block_size`` in bytes; ``blocks_per_extent`` is the real format's ``extent_size.value``.
    Raises :class:`GeometryError` where §9.1 is violated.
    """

    block_size: int
    blocks_per_extent: int
    extent_count: int
    uuid: UUID
    encrypted: bool = False

    def __post_init__(self) -> None:
        size = check_block_size(self.block_size)
        if self.blocks_per_extent < 1:
            raise GeometryError(f"extent size {self.blocks_per_extent} is too small: at least 1 block")
        if size * self.blocks_per_extent > EXTENT_DATA_BYTES_MAX:
            raise GeometryError(
                f"extent size {self.blocks_per_extent} blocks of {size} bytes is bigger than "
                f"{EXTENT_DATA_BYTES_MAX} bytes: take at most {EXTENT_DATA_BYTES_MAX // size} blocks"
            )
        if not 0 <= self.extent_count <= EXTENT_COUNT_MAX:
            raise GeometryError(f"extent count {self.extent_count} is outside 0..{EXTENT_COUNT_MAX}")

    @property
    def shift(self) -> int:
        """log2 of the block size."""
        return self.block_size.bit_length() - 1

    @property
    def total_blocks(self) -> int:
        return self.blocks_per_extent * self.extent_count

    @property
    def extent_bytes(self) -> int:
        """Block data of one extent, in bytes, without contexts."""
        return self.block_size * self.blocks_per_extent

    @property
    def size_bytes(self) -> int:
        """Size of the disk that the region holds, in bytes."""
        return self.block_size * self.total_blocks

    def same_geometry(self, other: RegionDefinition) -> bool:
        """Whether two regions can be mirrors of one another (upstairs-volume.md §2.5)."""
        return (
            self.block_size == other.block_size
            and self.blocks_per_extent == other.blocks_per_extent
            and self.extent_count == other.extent_count
        )

    def as_json(self) -> dict[str, Any]:
        """The members of ``region.json``, in the order in which the real program writes them."""
        return {
            "block_size": self.block_size,
            "extent_size": {"value": self.blocks_per_extent, "shift": self.shift},
            "extent_count": self.extent_count,
            "uuid": str(self.uuid),
            "encrypted": self.encrypted,
            "database_read_version": DATABASE_VERSION,
            "database_write_version": DATABASE_VERSION,
        }

    def dumps(self) -> str:
        """``region.json`` byte for byte as the real program writes it."""
        return json.dumps(self.as_json(), indent=2) + "\n"

    @classmethod
    def from_json(cls, members: Mapping[str, Any]) -> RegionDefinition:
        """The definition in ``members``; unknown members are ignored. Raises :class:`GeometryError`."""
        block_size = _integer(members, "block_size")
        extent_size = members.get("extent_size")
        if not isinstance(extent_size, Mapping):
            raise GeometryError('member "extent_size" is missing or not an object with "value" and "shift"')
        shift = _integer(extent_size, "shift")
        for name in ("database_read_version", "database_write_version"):
            found = _integer(members, name)
            if found != DATABASE_VERSION:
                raise GeometryError(f"{name} is {found}, this program knows only {DATABASE_VERSION}")
        encrypted = members.get("encrypted")
        if not isinstance(encrypted, bool):
            raise GeometryError('member "encrypted" is missing or neither true nor false')
        try:
            uuid = UUID(str(members.get("uuid")))
        except ValueError as error:
            raise GeometryError(f'member "uuid" is {members.get("uuid")!r}, not a UUID') from error
        definition = cls(block_size, _integer(extent_size, "value"), _integer(members, "extent_count"), uuid, encrypted)
        if definition.shift != shift:
            raise GeometryError(
                f"block_size {block_size} and extent_size.shift {shift} disagree: "
                f"the shift of that size is {definition.shift}"
            )
        return definition


def _integer(members: Mapping[str, Any], name: str) -> int:
    value = members.get(name)
    if not isinstance(value, int) or isinstance(value, bool):
        raise GeometryError(f'member "{name}" is missing or not an integer')
    return value


def cut_into_extents(size_bytes: int, block_size: int, extent_bytes: int = EXTENT_BYTES_DEFAULT) -> tuple[int, int]:
    """Blocks per extent and number of extents for a disk of exactly ``size_bytes``: equal extents of at most
    ``extent_bytes``, as few as possible. Raises :class:`UsageError` where the size cannot be cut like that."""
    if size_bytes <= 0 or size_bytes % block_size:
        nearest = max(1, -(-size_bytes // block_size)) * block_size
        raise UsageError(
            f"size {size_bytes} is not a positive multiple of the block size {block_size}: take {nearest}, for example"
        )
    blocks, most = size_bytes // block_size, max(1, extent_bytes // block_size)
    fewest = -(-blocks // most)
    for count in range(fewest, min(blocks, fewest + _EXTENT_COUNT_TRIES) + 1):
        if blocks % count == 0 and (count < 64 or blocks // count * 16 >= most):
            return blocks // count, count
    rounded = fewest * most * block_size
    raise UsageError(f"size {size_bytes} cannot be cut into equal extents: take {rounded} bytes, for example")


def size_for(length: int, block_size: int, blocks_per_extent: int | None = None) -> int:
    """The smallest usable disk size, in bytes, for an image of ``length`` bytes."""
    extent_bytes = block_size * (blocks_per_extent or 1)
    size_bytes = max(1, -(-length // extent_bytes)) * extent_bytes
    if blocks_per_extent is not None:
        return size_bytes
    try:
        cut_into_extents(size_bytes, block_size)
    except UsageError:
        return -(-length // EXTENT_BYTES_DEFAULT) * EXTENT_BYTES_DEFAULT
    return size_bytes


def split_at_extents(start: int, count: int, blocks_per_extent: int) -> Iterator[tuple[int, int, int]]:
    """Cut blocks ``start .. start + count`` at extent borders: ``(extent id, first block inside it, blocks)``."""
    end = start + count
    while start < end:
        extent_id, first = divmod(start, blocks_per_extent)
        length = min(end - start, blocks_per_extent - first)
        yield extent_id, first, length
        start += length


def runs(indexes: BlockIndexes) -> list[tuple[int, int]]:
    """Half-open ``(start, stop)`` runs of consecutive values in the ascending array ``indexes``."""
    if len(indexes) == 0:
        return []
    cuts = np.flatnonzero(np.diff(indexes) != 1)
    starts = indexes[np.concatenate(([0], cuts + 1))]
    stops = indexes[np.concatenate((cuts, [len(indexes) - 1]))] + 1
    return list(zip(starts.tolist(), stops.tolist()))


def equal_runs(values: npt.NDArray[Any], start: int = 0) -> list[tuple[int, int, Any]]:
    """Half-open runs over which ``values`` does not change: ``(start, stop, value)``, offset by ``start``."""
    if len(values) == 0:
        return []
    cuts = np.flatnonzero(values[1:] != values[:-1]) + 1
    edges = [0, *cuts.tolist(), len(values)]
    return [(start + a, start + b, values[a].item()) for a, b in pairwise(edges)]


def run_of(numbers: npt.NDArray[Any]) -> slice | None:
    """The numbers as a slice, if each is the one before and one more; at least one."""
    first, last = int(numbers[0]), int(numbers[-1])
    follow = last - first == len(numbers) - 1 and bool((numbers[1:] > numbers[:-1]).all())
    return slice(first, last + 1) if follow else None


def as_slice(blocks: BlockIndexes) -> Selection:
    """Many blocks that each follow upon the one before as a slice, others as they are; int64[n]. *Optimisation*: what
    lies side by side in a table is read and written in half the time."""
    found = run_of(blocks) if len(blocks) >= SLICE_BLOCKS_MIN else None
    return blocks if found is None else found


def as_blocks(which: Selection) -> BlockIndexes:
    """The other way round."""
    return np.arange(which.start, which.stop, dtype=np.int64) if isinstance(which, slice) else which


def spans_to_blocks(starts: list[int], counts: list[int]) -> BlockIndexes:
    """Every block of the spans ``starts[i] .. starts[i] + counts[i]``, span after span, dtype int64."""
    if len(starts) == 1:
        return np.arange(starts[0], starts[0] + counts[0], dtype=np.int64)
    first = np.array(starts, dtype=np.int64)
    lengths = np.array(counts, dtype=np.int64)
    if int(lengths.max()) == 1:
        return first
    offsets = np.arange(int(lengths.sum()), dtype=np.int64)
    found: BlockIndexes = offsets + np.repeat(first - (np.cumsum(lengths) - lengths), lengths)
    return found
