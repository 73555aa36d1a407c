"""A guest's read that travels as several jobs, and reads that a task of this package waits for.

What it is for: a read larger than one transfer is cut; it is complete when all parts are. A part that is damaged on
every replica is read again in halves, so that one lost block does not hide its neighbours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from crucible_emu import errors
from crucible_emu.blockio import Completed, Request
from crucible_emu.integrity import EMPTY, BlockContexts
from crucible_emu.upstairs.driver import ReadHandle

if TYPE_CHECKING:
    from crucible_emu.upstairs.guest import Guest

DAMAGED = (errors.HashMismatch, errors.DecryptionError, errors.MissingBlockContext)
"""What a read fails with whose bytes are not what they should be."""


class ReadResult:
    """The outcome of one awaited read."""

    __slots__ = ("client", "contexts", "done", "error")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.client: int | None = None
        self.error: errors.CrucibleError | None = None
        self.contexts: BlockContexts | None = None

    def answered(self, handle: ReadHandle, error: errors.CrucibleError | None) -> None:
        self.error = error
        self.contexts = handle.contexts
        self.client = handle.client
        self.done.set()

    def contexts_or_empty(self) -> BlockContexts:
        return self.contexts if self.contexts is not None else BlockContexts.empty(0)


class GatheredRead:
    """One guest read that was cut into several jobs: complete when all parts are."""

    __slots__ = ("_completed", "_guest", "_parts", "_request")

    def __init__(self, guest: Guest, request: Request, completed: Completed) -> None:
        self._guest = guest
        self._request = request
        self._completed = completed
        self._parts = 1  # held by whoever starts the parts, so that an early answer does not complete the request

    def read(self, start: int, count: int, out: memoryview, position: int) -> None:
        """Read one part, ``position`` blocks into the request. No replica may have all of it undamaged and yet each
        block be whole on one of them, so a part that is damaged everywhere is read in halves, down to the blocks that
        are lost."""
        self._parts += 1

        def answered(handle: ReadHandle, error: errors.CrucibleError | None) -> None:
            owned = self._request.owned
            if count > 1 and isinstance(error, DAMAGED):
                half, cut = count // 2, len(out) // count * (count // 2)
                self.read(start, half, out[:cut], position)
                self.read(start + half, count - half, out[cut:], position + half)
            elif error is not None:
                self._request.error = error
            elif owned is not None and handle.contexts is not None:
                owned[position : position + count] = handle.contexts.kind != EMPTY
            self.release()

        self._guest.start_read(start, count, ReadHandle(out, answered))

    def release(self) -> None:
        self._parts -= 1
        if self._parts == 0:
            self._completed([self._request])
