"""Healing: a block that failed its hash on one replica gets its good bytes back.

What it is for: the real program aborts when a replica answers with bytes that do not match their hash. Here the guest
has long been answered from another replica; this task reads the block once more, verified, and writes it to all three.

Why it is safe: the write goes through the ordinary path, so it is ordered with the guest's. If the guest wrote any of
the blocks after the good bytes were asked for, the healing is dropped: the guest's write has replaced them everywhere.
From the question to the admission of the write every write of the guest is watched, so none can slip between.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import trio

from crucible_emu import errors
from crucible_emu.integrity import EMPTY
from crucible_emu.logs import get_logger
from crucible_emu.upstairs.rules import JobKind

if TYPE_CHECKING:
    from crucible_emu.upstairs.driver import Damage
    from crucible_emu.upstairs.guest import Guest

QUEUE_MAX = 1024
"""Damage that nobody waits for is dropped beyond this; it is found again by the next read."""

log = get_logger(__name__)


class Healer:
    """Writes good bytes over damaged blocks of one disk."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._in, self._out = trio.open_memory_channel[tuple[int, int, int]](QUEUE_MAX)
        self._queued: set[int] = set()
        self._span: tuple[int, int] | None = None
        self._overtaken = False

    @property
    def watching(self) -> bool:
        """Whether writes must be reported through :meth:`written` now."""
        return self._span is not None

    @property
    def idle(self) -> bool:
        """Whether everything that was found damaged has been dealt with."""
        return not self._queued

    def written(self, starts: list[int], lengths: list[int]) -> None:
        """The guest writes these blocks. *Safety*: a healing of any of them must not undo it."""
        if self._span is not None:
            begin, end = self._span
            if any(start < end and start + length > begin for start, length in zip(starts, lengths)):
                self._overtaken = True

    def damaged(self, damage: Damage) -> None:
        """Remember to heal what ``damage`` names."""
        if damage.start in self._queued or self._guest.read_only:
            return
        if self._span is not None and damage.count == 1 and damage.start == self._span[0]:
            return  # found by the healing itself
        try:
            self._in.send_nowait((damage.client, damage.start, damage.count))
        except trio.WouldBlock:
            return
        self._queued.add(damage.start)

    async def run(self) -> None:
        """Heal until cancelled."""
        async for client, start, count in self._out:
            for block in range(start, start + count):
                await self._heal(client, block)
            self._queued.discard(start)

    async def _heal(self, client: int, block: int) -> None:
        """Read ``block`` from ``client``; if another replica had to answer instead, write back what that one has."""
        guest = self._guest
        self._span, self._overtaken = (block, block + 1), False
        try:
            found = memoryview(bytearray(guest.block_size))
            result = await guest.read_blocks(block, 1, found, client)
            contexts = result.contexts_or_empty()
            good_there = result.client == client or len(contexts) == 0 or contexts.kind[0] == EMPTY
            if good_there or self._overtaken or guest.upstairs.core.admission_error(JobKind.WRITE) is not None:
                return
            self._span = None
            offset = block * guest.block_size
            guest.write_rows([(offset, guest.block_size)], np.frombuffer(found, np.uint8).reshape(1, -1))
            guest.upstairs.statistics.healed_blocks += 1
            log.info("healed block", client=client, block=block)
        except errors.CrucibleError as error:
            log.warning("block not healed", client=client, block=block, error=str(error))
        finally:
            self._span = None
