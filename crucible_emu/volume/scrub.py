"""Scrub: a disk becomes independent of its parent (upstairs-volume.md §11.8).

What it is for: block by block, what the parent holds is written into the sub-volumes, wherever nothing was written yet;
then the parent is let go. Guests read and write meanwhile.

Why it is safe: a block is copied with write-unwritten, which where it is stored decides whether anybody wrote it, so
whatever a guest writes stays, whether it comes before the copy or after it. A read asks the parent for blocks that its
sub-volume does not own until the very end, so a copy that is lost again before it was flushed (all replicas gone at a
time) still reads as it did. The parent is let go after a flush that succeeded, and only when no flush failed since the
first block was copied: after one that did, copies may be gone, and the scrub begins again.

:attr:`Scrub.point` lives in memory: a scrub that failed or was cancelled goes on there, a new process begins at block
0, which is cheap, for nothing is written twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from crucible_emu import errors
from crucible_emu.blockio import BlockDevice, Kind, Request
from crucible_emu.volume.image import submit

if TYPE_CHECKING:
    from crucible_emu.volume.volume import Volume

STEP_BYTES = 131072
READ_ATTEMPTS = 6
"""A step's read is tried so often, at once; the last failure ends the scrub."""
ROUNDS_MAX = 5
"""So often it is gone through all blocks when flushes fail meanwhile; then that is an error of its own."""


class Scrub:
    """The scrub of ``volume``. ``point``: the first byte that is not copied yet."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._one_at_a_time = trio.Lock()
        self._failed_flushes = 0
        self.point = 0

    async def run(self, start_delay_s: float | None = None, pause_s: float | None = None) -> None:
        """Copy the parent into the sub-volumes and let go of it; nothing where there is none.

        Begins after ``start_delay_s`` seconds and rests ``pause_s`` after every step of 128 KiB. A second call waits
        for the first. Raises :class:`errors.IoError` where the parent cannot be read, and what writing failed with;
        called again, it goes on where it stopped.
        """
        async with self._one_at_a_time:
            if self._volume.parent is None:
                return
            if start_delay_s is not None:
                await trio.sleep(start_delay_s)
            for _ in range(ROUNDS_MAX):
                await self._copy_all(pause_s)
                if await self._is_durable():
                    await self._volume.let_go_of_parent()
                    return
            raise errors.IoError(f"Scrub gave up: flushes failed in each of {ROUNDS_MAX} rounds")

    async def _copy_all(self, pause_s: float | None) -> None:
        volume = self._volume
        if self.point == 0:
            self._failed_flushes = volume.failed_flushes
        if not volume.sub_volumes:
            raise errors.CannotReceiveBlocks("No sub volumes!")
        while self.point < volume.parent_end:
            length = min(STEP_BYTES, volume.parent_end - self.point)
            data = await self._read(self.point, length)
            await submit(volume, Request(Kind.WRITE_UNWRITTEN, self.point, length, data))
            self.point += length
            if pause_s is not None:
                await trio.sleep(pause_s)

    async def _read(self, offset: int, length: int) -> memoryview:
        source = self._source()
        for _ in range(READ_ATTEMPTS):
            data = memoryview(bytearray(length))
            try:
                await submit(source, Request(Kind.READ, offset, length, data))
            except errors.CrucibleError:
                continue
            return data
        raise errors.IoError(f"Scrub failed to read at offset {offset // self._volume.block_size}")

    def _source(self) -> BlockDevice:
        """Where to read what is copied: the parent. But blocks of a sub-volume that come from a parent of its own hide
        this parent and are not written where they are stored; so the volume itself is read where there may be such
        blocks. *Safety*."""
        volume = self._volume
        assert volume.parent is not None
        return volume if any(part.shows_a_parent for part in volume.sub_volumes) else volume.parent.device

    async def _is_durable(self) -> bool:
        """Flush; ``False``, and all is to be copied again, where copies may have been lost. *Safety*."""
        try:
            await self._volume.flush()
        except errors.CrucibleError:
            self.point = 0
            raise
        if self._volume.failed_flushes != self._failed_flushes:
            self.point = 0
            return False
        return True
