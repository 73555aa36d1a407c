"""Block devices that tests steer: completion in their own time and order, errors, allocation on demand."""

from __future__ import annotations

from collections.abc import Callable

import trio

from crucible_emu.blockio import Allocation, Completed, Request
from crucible_emu.blockio_memory import MemoryDevice
from crucible_emu.errors import CrucibleError


class HeldDevice:
    """A memory device whose requests take effect when they are admitted and complete when the test says so.

    ``fail``: asked for each request, it may give the error that the request gets in place of its effect.
    ``held``: what waits, with whom to tell. ``admissions``: one list per call of ``submit``.
    """

    def __init__(self, memory: MemoryDevice, fail: Callable[[Request], CrucibleError | None] | None = None) -> None:
        self.memory = memory
        self.fail = fail
        self.held: list[tuple[Request, Completed]] = []
        self.admissions: list[list[Request]] = []
        self.in_submit = False
        self.allocation_error: CrucibleError | None = None
        self.on_admission: Callable[[], None] = lambda: None

    @property
    def size_bytes(self) -> int:
        return self.memory.size_bytes

    @property
    def block_size(self) -> int:
        return self.memory.block_size

    @property
    def read_only(self) -> bool:
        return self.memory.read_only

    def submit(self, requests: list[Request], completed: Completed) -> None:
        assert not self.in_submit, "a door called submit from inside of submit"
        self.in_submit = True
        self.admissions.append(list(requests))
        for request in requests:
            error = self.fail(request) if self.fail is not None else None
            if error is not None:
                request.error = error
            else:
                self.memory.submit([request], lambda _: None)
            self.held.append((request, completed))
        self.in_submit = False
        self.on_admission()

    def release(self, index: int = 0, count: int = 1) -> None:
        """Complete ``count`` held requests from ``index`` on, in one call for each door."""
        chosen, self.held[index : index + count] = self.held[index : index + count], []
        self.in_submit = True  # completion is no place to submit from, either
        by_door: dict[int, tuple[Completed, list[Request]]] = {}
        for request, completed in chosen:
            by_door.setdefault(id(completed), (completed, []))[1].append(request)
        for completed, requests in by_door.values():
            completed(requests)
        self.in_submit = False

    def release_all(self) -> None:
        self.release(0, len(self.held))

    async def wait_for_room(self) -> None:
        pass

    async def allocation(self, offset: int, length: int) -> list[Allocation]:
        if self.allocation_error is not None:
            raise self.allocation_error
        await trio.lowlevel.checkpoint()
        return await self.memory.allocation(offset, length)
