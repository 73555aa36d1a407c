"""The seam between a door (NBD, later the Pantry) and whatever has blocks behind it.

What it is for: a door parses all requests that arrived together and hands them over in one call; the device does at
once what it can do at once and reports it in one call. One request is an object with slots (0.2 µs); there is no task,
channel or lock per request.

What it guarantees: requests are *admitted* in the order of the list. A write is visible to every read that is
submitted after it. Completion may come in any order, during :meth:`BlockDevice.submit` or later, always on the loop's
thread. Until a request completes, its buffer belongs to the device; afterwards the device has forgotten it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from crucible_emu.errors import CrucibleError


class Kind(IntEnum):
    """What a request asks for."""

    READ = 0
    WRITE = 1
    FLUSH = 2
    WRITE_ZEROES = 3
    TRIM = 4
    WRITE_UNWRITTEN = 5
    """Write only the blocks that were never written; which those are is decided where they are stored, block by block.
    Not every device can."""


class Request:
    """One request to a block device.

    ``offset`` and ``length`` are bytes, multiples of the device's block size. ``buffer`` is writable memory of
    ``length`` bytes: the payload of a WRITE, the destination of a READ, ``None`` otherwise. ``fua``: complete only
    when the effect is durable. ``no_hole``: WRITE_ZEROES must store zeros rather than leave blocks unwritten.
    ``error`` is set by the device before it reports completion. ``cookie`` belongs to the door.

    ``owned``: bool[blocks] of a READ whose caller wants to know which blocks were ever written, ``None`` otherwise. The
    device sets every element before it reports completion. Blocks that are not owned read as zeros.
    """

    __slots__ = ("buffer", "cookie", "error", "fua", "kind", "length", "no_hole", "offset", "owned")

    def __init__(
        self,
        kind: Kind,
        offset: int = 0,
        length: int = 0,
        buffer: memoryview | None = None,
        *,
        fua: bool = False,
        no_hole: bool = False,
        cookie: Any = None,
        owned: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        self.kind = kind
        self.offset = offset
        self.length = length
        self.buffer = buffer
        self.fua = fua
        self.no_hole = no_hole
        self.cookie = cookie
        self.owned = owned
        self.error: CrucibleError | None = None

    def __repr__(self) -> str:
        return f"Request({self.kind.name}, offset={self.offset}, length={self.length}, error={self.error})"


Completed = Callable[[list[Request]], None]
"""Called with the requests that are done; it must not block, must not raise, and must not call ``submit``: a device is
never entered from inside its own completion. Report all that became done together in one call: a door answers it with
one system call."""


@dataclass(frozen=True, slots=True)
class Allocation:
    """A run of bytes with one origin: ``depth`` 0 = nowhere written (reads as zeros), 1 = written in this disk,
    2 = comes from its read-only parent, 3 = from that one's parent, and so on."""

    length: int
    depth: int


class BlockDevice(Protocol):
    """A disk that a door can serve."""

    @property
    def size_bytes(self) -> int: ...

    @property
    def block_size(self) -> int: ...

    @property
    def read_only(self) -> bool: ...

    def submit(self, requests: list[Request], completed: Completed) -> None:
        """Admit ``requests`` in order; report each exactly once through ``completed``, now or later."""
        ...

    async def wait_for_room(self) -> None:
        """Return when the device would take more work without queueing it without bound (back-pressure)."""
        ...

    async def allocation(self, offset: int, length: int) -> list[Allocation]:
        """Where the bytes come from; adjacent runs differ in depth. May cover less than ``length``, never nothing."""
        ...


@runtime_checkable
class SinglesDevice(Protocol):
    """A device that may do single blocks at once: most of what a busy disk is asked.

    ``True``: it is done, as if it had been submitted and completed. ``False``: it cannot be done now, and
    :meth:`BlockDevice.submit` is the way. So it is where requests wait for room, which must not be passed.
    """

    def read_singles(self, offsets: Sequence[int], outs: Sequence[memoryview]) -> bool:
        """Read one block from each of ``offsets`` (bytes) into each of ``outs`` (one block long). Where that is
        refused, anything is in ``outs``."""
        ...

    def write_singles(self, offsets: Sequence[int], data: Sequence[memoryview]) -> bool:
        """Write each of ``data`` (one block long) to each of ``offsets``, of which the last counts where one is named
        twice. Where that is refused, some may be written: they are to be written again."""
        ...


@runtime_checkable
class PayloadDevice(Protocol):
    """A device that keeps the data of large writes, in memory of its own."""

    def payload_memory(self, length: int) -> memoryview | None:
        """Memory for the data of one write, with any content: where they lie there already, the device need not copy
        them. Whoever fills it and submits the write never changes it again. ``None``: any other memory is as good."""
        ...
