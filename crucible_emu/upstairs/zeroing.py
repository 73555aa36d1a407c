"""Zeroing: a range too large to be zeroed in one go is zeroed piece by piece, and others go on meanwhile.

What it is for: a request to zero a gigabyte must not stall the small ones behind it, so it is worked off in pieces with
a checkpoint between. It is complete when all of them are.

Why it is safe: what the guest writes after it asked for the zeros must stay, although some pieces are zeroed later than
that. So every write into a range that is not complete marks its blocks as kept, one flag a block; a piece leaves them
out. To the guest each such block was zeroed just before it was written.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import trio

from crucible_emu.blockio import Completed, Request
from crucible_emu.upstairs.rules import JobKind

if TYPE_CHECKING:
    from crucible_emu.upstairs.guest import Guest


class _Range:
    """A range on its way to zeros. ``kept``: bool[blocks], what was written since; ``None`` while nothing was."""

    __slots__ = ("completed", "kept", "request")

    def __init__(self, request: Request, completed: Completed) -> None:
        self.request = request
        self.completed = completed
        self.kept: npt.NDArray[np.bool_] | None = None


class LargeZeroes:
    """Zeroes large ranges of one disk, one after the other."""

    def __init__(self, guest: Guest, piece_bytes: int) -> None:
        self._guest = guest
        self._piece_bytes = piece_bytes
        # Unbounded here: the doors bound how many requests are outstanding.
        self._in, self._out = trio.open_memory_channel[_Range](math.inf)
        self.unfinished: list[_Range] = []
        """Ranges that are not complete; while there are any, writes must be reported through :meth:`written`."""

    def begin(self, request: Request, completed: Completed) -> None:
        """Zero the range of ``request``, whose completion is reported later."""
        wanted = _Range(request, completed)
        self.unfinished.append(wanted)
        self._in.send_nowait(wanted)

    def written(self, requests: list[Request]) -> None:
        """The guest writes this. *Safety*: zeros that it asked for before must not come over it."""
        size = self._guest.block_size
        for request in requests:
            for wanted in self.unfinished:
                offset, length = wanted.request.offset, wanted.request.length
                start, stop = max(request.offset, offset), min(request.offset + request.length, offset + length)
                if start < stop:
                    if wanted.kept is None:
                        wanted.kept = np.zeros(length // size, np.bool_)
                    wanted.kept[(start - offset) // size : (stop - offset) // size] = True

    async def run(self) -> None:
        """Zero until cancelled."""
        async for wanted in self._out:
            await self._zero(wanted)
            self.unfinished.remove(wanted)
            self._guest.effect_done(wanted.request, wanted.completed)

    async def _zero(self, wanted: _Range) -> None:
        guest, request = self._guest, wanted.request
        for at in range(0, request.length, self._piece_bytes):
            await trio.lowlevel.checkpoint()
            await guest.wait_for_room()
            request.error = guest.upstairs.core.admission_error(JobKind.WRITE)
            if request.error is not None:
                return
            length = min(self._piece_bytes, request.length - at)
            first, stop = at // guest.block_size, (at + length) // guest.block_size
            kept = None if wanted.kept is None else wanted.kept[first:stop]
            guest.zero_blocks(request.offset + at, length, request.no_hole, kept)
