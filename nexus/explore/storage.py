"""Regions as bytes in memory: what a Downstairs keeps, small enough that thousands of racks fit into a minute.

What it guarantees: every byte that a volume ever shows was written into a block here. A block that nobody wrote is
absent, and falls through to the parent, as in the real format. Beside the blocks of an extent stands its mark
(generation, flush, dirty), by which an Upstairs tells the newest of three copies. Digests are BLAKE3 of blocks and of
which are absent, so equal digests mean equal bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from blake3 import blake3

from crucible_emu.agent.documents import CreateRegion, State


class Mark(NamedTuple):
    """How new an extent is; of two the greater is newer."""

    generation: int
    flush: int
    dirty: bool


FRESH = Mark(0, 0, False)
ABSENT = b"\0"
PRESENT = b"\1"


@dataclass(slots=True)
class Contents:
    """The blocks of one region or snapshot."""

    blocks_per_extent: int
    extent_count: int
    blocks: dict[int, bytes] = field(default_factory=dict)
    marks: list[Mark] = field(default_factory=list)
    digests: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.marks:
            self.marks = [FRESH] * self.extent_count

    def copy(self) -> Contents:
        return Contents(
            self.blocks_per_extent, self.extent_count, dict(self.blocks), list(self.marks), dict(self.digests)
        )

    def write(self, block: int, data: bytes, generation: int) -> None:
        """Bytes that no flush has covered yet."""
        extent = block // self.blocks_per_extent
        self.blocks[block] = data
        self.marks[extent] = Mark(max(generation, self.marks[extent].generation), self.marks[extent].flush, True)
        self.digests.pop(extent, None)

    def flush(self, generation: int, number: int) -> None:
        """What was written is durable, under this flush."""
        self.marks = [Mark(generation, number, False) if mark.dirty else mark for mark in self.marks]

    def extent(self, extent: int) -> dict[int, bytes]:
        """The blocks of one extent that are there."""
        first = extent * self.blocks_per_extent
        return {
            block: self.blocks[block] for block in range(first, first + self.blocks_per_extent) if block in self.blocks
        }

    def take_extent(self, extent: int, source: Contents) -> None:
        """Make the extent what it is in ``source``."""
        first = extent * self.blocks_per_extent
        for block in range(first, first + self.blocks_per_extent):
            self.blocks.pop(block, None)
        self.blocks |= source.extent(extent)
        self.marks[extent] = source.marks[extent]
        self.digests.pop(extent, None)

    def digest(self, extent: int) -> str:
        found = self.digests.get(extent)
        if found is None:
            hasher = blake3()
            first = extent * self.blocks_per_extent
            for block in range(first, first + self.blocks_per_extent):
                data = self.blocks.get(block)
                hasher.update(ABSENT if data is None else PRESENT + data)
            found = self.digests[extent] = hasher.hexdigest()
        return found


@dataclass(slots=True)
class Served:
    """A snapshot that a read-only Downstairs serves, or served. ``ready_s``: when the state that it is in is over."""

    port: int
    state: State
    ready_s: float = 0.0


@dataclass(slots=True)
class Writer:
    """The Upstairs that a region takes writes from."""

    generation: int
    session: str


@dataclass(slots=True)
class Region:
    """A region as its agent and its Downstairs know it."""

    wish: CreateRegion
    port: int
    state: State
    contents: Contents
    ready_s: float = 0.0
    writer: Writer | None = None
    snapshots: dict[str, Contents] = field(default_factory=dict)
    served: dict[str, Served] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return self.wish.id

    @property
    def read_only(self) -> bool:
        return self.wish.source is not None
