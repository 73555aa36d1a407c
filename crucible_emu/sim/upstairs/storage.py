"""The blocks of one model Downstairs: what is there now, and what a crash would leave of it.

What it is for: the real region in a few lines of plain Python, so that a history of a whole disk takes milliseconds.
A block is what was last written to it, with the number that the writer put into its bytes. Until an extent is flushed,
a crash leaves of each block any version since the last flush, each for itself.

What it guarantees: as the real one, an extent that differs from its last flush is dirty after a crash; one that lost
everything may be either.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from crucible_emu.geometry import RegionDefinition

NEVER_WRITTEN = 0
ZEROED = -1


@dataclass(frozen=True, slots=True)
class Block:
    """A written block. ``value`` is what the guest meant; ``data`` differs from it where the block is damaged."""

    value: int
    data: bytes
    hash: int
    damaged: bool = False


def value_of(data: bytes) -> int:
    """The number that fills a block, :data:`ZEROED` for zeros. Raises :class:`ValueError` for torn bytes."""
    head = data[:8]
    if head * (len(data) // 8) != data:
        raise ValueError("the block is torn")
    return int.from_bytes(head, "little") or ZEROED


def data_of(value: int, block_size: int) -> bytes:
    """The bytes of a block that holds ``value``."""
    return value.to_bytes(8, "little") * (block_size // 8)


class Storage:
    """The extents of one Downstairs."""

    def __init__(self, definition: RegionDefinition) -> None:
        count = definition.extent_count
        self.definition = definition
        self.blocks: list[Block | None] = [None] * definition.total_blocks
        self.gen = [0] * count
        self.flush = [0] * count
        self.dirty = [False] * count
        self._dirty_on_disk = [False] * count
        self._versions: dict[int, list[Block | None]] = {}
        """For each block written since its extent's last flush: what it held before, oldest first."""

    def extent_blocks(self, extent_id: int) -> range:
        size = self.definition.blocks_per_extent
        return range(extent_id * size, (extent_id + 1) * size)

    def extents(self, start: int, count: int) -> range:
        size = self.definition.blocks_per_extent
        return range(start // size, (start + max(count, 1) - 1) // size + 1)

    def durable(self, block: int) -> int:
        """The value that a crash at this moment is sure to leave at least, of what was flushed."""
        versions = self._versions.get(block)
        found = versions[0] if versions else self.blocks[block]
        return NEVER_WRITTEN if found is None else found.value

    def values(self) -> list[int]:
        return [NEVER_WRITTEN if block is None else block.value for block in self.blocks]

    def put(self, block: int, content: Block) -> None:
        self._versions.setdefault(block, []).append(self.blocks[block])
        self.blocks[block] = content
        self.dirty[block // self.definition.blocks_per_extent] = True

    def flush_extent(self, extent_id: int, flush_number: int, generation: int) -> None:
        """Make a dirty extent durable under these numbers; a clean one keeps its own."""
        if self.dirty[extent_id]:
            self._forget_versions(extent_id)
            self.gen[extent_id], self.flush[extent_id] = generation, flush_number
            self.dirty[extent_id] = self._dirty_on_disk[extent_id] = False

    def _forget_versions(self, extent_id: int) -> None:
        for block in self.extent_blocks(extent_id):
            self._versions.pop(block, None)

    def copy_extent(self, extent_id: int, source: Storage) -> None:
        """Replace an extent by a durable copy of another's."""
        self._forget_versions(extent_id)
        blocks = self.extent_blocks(extent_id)
        self.blocks[blocks.start : blocks.stop] = source.blocks[blocks.start : blocks.stop]
        self.gen[extent_id] = source.gen[extent_id]
        self.flush[extent_id] = source.flush[extent_id]
        self.dirty[extent_id] = self._dirty_on_disk[extent_id] = source.dirty[extent_id]

    def lose_power(self, rng: random.Random) -> None:
        """Each block that was not flushed is any version since; so it stays."""
        for extent_id in range(self.definition.extent_count):
            differs = changed = False
            for block in self.extent_blocks(extent_id):
                versions = self._versions.pop(block, None)
                if versions:
                    changed = True
                    found = rng.choice([*versions, self.blocks[block]])
                    differs = differs or found is not versions[0]
                    self.blocks[block] = found
            if changed and not differs and not self._dirty_on_disk[extent_id] and rng.random() < 0.5:
                self.dirty[extent_id] = False
            self._dirty_on_disk[extent_id] = self.dirty[extent_id]

    def copy(self) -> Storage:
        """What is there now, all of it durable."""
        found = Storage(self.definition)
        for extent_id in range(self.definition.extent_count):
            found.copy_extent(extent_id, self)
        return found

    def damage(self, block: int) -> None:
        """Change the bytes of a written block behind its hash."""
        found = self.blocks[block]
        if found is not None:
            data = bytes([found.data[0] ^ 0xFF]) + found.data[1:]
            self.blocks[block] = Block(found.value, data, found.hash, damaged=True)
