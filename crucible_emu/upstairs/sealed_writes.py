"""Large writes of an encrypted disk, of which another process seals a share while its owner goes on
(upstairs-volume.md §5.4).

What it is for: to encrypt 1 MiB takes as long as everything else that is done with it. While the other process is at
its share of one write, the owner receives the next one's data, and takes what was sealed before to the replicas.

What it guarantees: the order of the guest. One write at most is under way; it is written before anything that was
submitted later, for whoever admits something else settles it first, waiting if he must. It is completed when it is
written, never before. *Liveness*: where nothing comes that would settle it, its answer does (:meth:`SealedWrites.run`),
or :data:`ANSWER_S_MAX`, after which its owner seals all of it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import trio

from crucible_emu.blockio import Completed, Kind, Request
from crucible_emu.cipher_process import ANSWER_S_MAX
from crucible_emu.encryption import LARGE_BYTES, Sealing
from crucible_emu.integrity import BlockContexts, Rows
from crucible_emu.upstairs.sealer import Sealer

Enter = Callable[[list[Request], Rows, BlockContexts, Completed], None]
"""Writes what is encrypted, and completes the requests."""


@dataclass(slots=True, eq=False)
class _UnderWay:
    requests: list[Request]
    completed: Completed
    sealing: Sealing


class SealedWrites:
    """The write that is under way, if any, of a disk that is encrypted by ``sealer``."""

    def __init__(self, sealer: Sealer, enter: Enter) -> None:
        self._sealer = sealer
        self._enter = enter
        self._under_way: _UnderWay | None = None
        self._began = trio.Event()

    @property
    def under_way(self) -> bool:
        """Whether there is one that :meth:`settle` would write."""
        return self._under_way is not None

    def may_follow(self, request: Request) -> bool:
        """Whether :meth:`begin` takes ``request`` perhaps, and sees to the order."""
        return request.kind is Kind.WRITE and request.length >= LARGE_BYTES

    def begin(self, requests: list[Request], payloads: list[memoryview], completed: Completed) -> bool:
        """Have the other process begin with its share of a train; then write what was under way before. ``False``:
        nothing was begun, and nothing is under way."""
        sealing = self._sealer.begin(payloads)
        if sealing is None:
            self.settle()
            return False
        earlier, self._under_way = self._under_way, _UnderWay(requests, completed, sealing)
        if earlier is not None:
            self._write(earlier)
        sealing.seal_own()
        self._began.set()
        return True

    def settle(self) -> None:
        """Write what is under way, now."""
        earlier, self._under_way = self._under_way, None
        if earlier is not None:
            self._write(earlier)

    def _write(self, write: _UnderWay) -> None:
        rows, contexts = self._sealer.finish(write.sealing)
        self._enter(write.requests, rows, contexts, write.completed)

    async def run(self) -> None:
        """Settle what nobody else does. Until cancelled."""
        with ExitStack() as opened:
            own: int | None = None
            while True:
                await self._began.wait()
                while self._under_way is not None:
                    process = self._under_way.sealing.process
                    if own is None:
                        # There is one process for a disk's whole life. A descriptor of our own, for of two tasks that
                        # wait for the same one Trio refuses the second.
                        own = os.dup(process.fileno())
                        opened.callback(os.close, own)
                    with trio.move_on_after(ANSWER_S_MAX) as patience:
                        await trio.lowlevel.wait_readable(own)
                    if patience.cancelled_caught or process.has_answered:
                        self.settle()
                self._began = trio.Event()
