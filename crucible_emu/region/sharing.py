"""What a region lets other processes on its machine see, and how they know that it still holds.

What it is for: a read of a block needs to know where its newest data are, in a staged row or in an extent's file, and
what they must be. Whoever can look at the tables that say so, and at the rows and files, reads without asking anybody
(:mod:`shared_reading`). :class:`SharedTables` is the memory in which a region that is told to keeps them, and
:class:`SharedLayout` says where in it they are.

What it guarantees: others can only look. The *epoch*, a number in that memory, is what it was when they were let in
as long as all of that holds: it is changed before a file is put in place of another, before somebody else becomes the
writer, and before the region is closed. They look at it before they look at anything else and again behind; where it
has changed, what they saw in between means nothing.

Why only with the STAGED policy: there a block's place in its file is written only while the block is staged, so what a
table says of the file is in the file. The others write in place, first the context and then the data.

Why only up to :data:`SHARED_BLOCKS_MAX`: of a table that is shared, a page costs memory as soon as it is read. The
table of rows is read for each block that is; it has 4 bytes for each.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from mmap import PAGESIZE
from pathlib import Path
from typing import Any

import numpy as np

from crucible_emu.errors import RemoteError
from crucible_emu.geometry import RegionDefinition
from crucible_emu.integrity import SEAL_BYTES
from crucible_emu.region.memory import SharedFile, reserve
from crucible_emu.region.policy import RULES, SyncPolicy

SHARED_BLOCKS_MAX = 64 * 1024 * 1024
"""256 GiB in blocks of 4 KiB: reads all over them cost 256 MiB for the table of rows."""
EPOCH_BYTES = 8
_SIZES_MAX = 1 << 62


@dataclass(frozen=True, slots=True)
class SharedLayout:
    """Geometry of a region, and where in its shared memory what is: offsets in bytes.

    ``kind`` uint8, ``hash`` uint64, ``seal`` uint8[28] and ``row_of_block`` uint32 have an entry per block; ``rows``
    are ``row_count`` times a block; ``epoch`` is one uint64.
    """

    block_size: int
    blocks_per_extent: int
    extent_count: int
    row_count: int
    size_bytes: int
    epoch: int
    kind: int
    hash: int
    seal: int
    row_of_block: int
    rows: int

    @property
    def total_blocks(self) -> int:
        return self.blocks_per_extent * self.extent_count

    def fits(self, definition: RegionDefinition) -> bool:
        """Whether it is of a region of this geometry."""
        own = (self.block_size, self.blocks_per_extent, self.extent_count)
        return own == (definition.block_size, definition.blocks_per_extent, definition.extent_count)

    def as_json(self) -> dict[str, int]:
        return asdict(self)

    @classmethod
    def from_json(cls, members: object) -> SharedLayout:
        """What :meth:`as_json` made. Raises :class:`RemoteError` where it cannot be that."""
        names = [each.name for each in fields(cls)]
        if not isinstance(members, Mapping) or set(members) != set(names):
            raise RemoteError("a grant whose layout has other members than those it must have")
        numbers: dict[str, Any] = {name: members[name] for name in names}
        if not all(type(number) is int and 0 <= number <= _SIZES_MAX for number in numbers.values()):
            raise RemoteError("a grant whose layout is not all whole numbers of a possible size")
        found = cls(**numbers)
        total = found.total_blocks
        pieces = (
            (found.epoch, EPOCH_BYTES, EPOCH_BYTES),
            (found.kind, total, 1),
            (found.hash, total * 8, 8),
            (found.seal, total * SEAL_BYTES, 1),
            (found.row_of_block, total * 4, 4),
            (found.rows, found.row_count * found.block_size, 1),
        )
        for offset, length, border in pieces:
            if offset % border or offset + length > found.size_bytes:
                raise RemoteError("a grant whose tables do not fit into its memory")
        return found


class SharedTables:
    """The memory of one region that others may look into, made before its tables, which are reserved in ``file``."""

    def __init__(self, definition: RegionDefinition) -> None:
        self.file = SharedFile("crucible-region")
        self._definition = definition
        control = reserve(PAGESIZE // EPOCH_BYTES, np.uint64, within=self.file)
        self._control = control.array
        self._offsets = {"epoch": control.offset}
        self._row_count = 0
        self.on_revoked: Callable[[], None] | None = None
        """Told each time that nothing holds any more what others were told."""

    def complete(self, offsets: dict[str, int], row_count: int) -> None:
        """All tables are reserved: these are their offsets, and there are so many rows."""
        self._offsets |= offsets
        self._row_count = row_count
        self.file.seal()

    @property
    def epoch(self) -> int:
        return int(self._control[0])

    @property
    def layout(self) -> SharedLayout:
        region = self._definition
        geometry = (region.block_size, region.blocks_per_extent, region.extent_count)
        return SharedLayout(*geometry, self._row_count, self.file.size_bytes, **self._offsets)

    def revoke(self) -> None:
        """From now on nothing holds that anybody was told. On the loop's thread."""
        self._control[0] += np.uint64(1)
        if self.on_revoked is not None:
            self.on_revoked()

    @contextmanager
    def descriptors(self, region: Path) -> Iterator[list[int]]:
        """What a reader needs: the memory, and the directory of the region, both to be read only; closed at the end of
        the block. Raises OSError."""
        opened: list[int] = []
        try:
            opened.append(self.file.open_to_read())
            opened.append(os.open(region, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            yield opened
        finally:
            for descriptor in opened:
                os.close(descriptor)

    def close(self) -> None:
        """Nobody is let in any more."""
        self.revoke()
        self.file.close()


def shareable(definition: RegionDefinition, policy: SyncPolicy, read_only: bool) -> bool:
    """Whether other processes could read such a region; see the module's essay."""
    return RULES[policy].staged and not read_only and definition.total_blocks <= SHARED_BLOCKS_MAX
