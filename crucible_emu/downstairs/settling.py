"""When a region's journal is carried to its extents: as soon as the flushes have stopped, and at the end.

What it is for: while a guest flushes all the time, its flushes wait in the :mod:`~crucible_emu.region.journal`.
A directory that is left alone must be an ordinary one, that the real program opens and anybody may copy.

What it guarantees: within :data:`SETTLED_AFTER_S` of the last flush it is on its way there, by a destage, which goes
through the lane as any other does. *Liveness*: one that fails is tried again after as long. At the end it is done on
the spot; where that fails, the journal stays, and the next open does it.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from crucible_emu.downstairs.flushes import Flushes
from crucible_emu.errors import CrucibleError
from crucible_emu.logs import get_logger
from crucible_emu.region import Region

SETTLED_AFTER_S = 1.0
"""When no flush has come for so long, the journal is carried to the extents."""

log = get_logger(__name__)


class Settling:
    """For one region, with its ``flushes``. ``relieve`` asks for a destage, unless one is under way."""

    def __init__(self, region: Region, flushes: Flushes, relieve: Callable[[], None]) -> None:
        self._region = region
        self._flushes = flushes
        self._relieve = relieve
        self._journaled = trio.Event()

    def flushed(self) -> None:
        """A flush is done, by way of the journal or not."""
        if not self._region.is_settled:
            self._journaled.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._journaled.wait()
            self._journaled = trio.Event()
            while not self._region.is_settled:
                await trio.sleep_until(max(self._flushes.flushed_at_s, trio.current_time()) + SETTLED_AFTER_S)
                if trio.current_time() >= self._flushes.flushed_at_s + SETTLED_AFTER_S:
                    self._relieve()

    def at_last(self) -> None:
        """Leave an ordinary directory behind."""
        if self._region.flush_under_way:
            return
        try:
            self._region.settle()
        except CrucibleError as error:
            log.warning("the journal stays for the next open", region=str(self._region.path), error=str(error))
