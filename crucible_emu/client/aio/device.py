"""Ranges of bytes for asyncio: what an NBD export and a pantry's volume have in common.

What it is for: :class:`Device` is a disk without whole files. The kinds of disk move bytes; here are the checks that
spare a round trip, and the widening of reads.

What it guarantees: a request that cannot be right is refused before anything is sent: outside of the disk, not aligned
(:class:`~crucible_emu.errors.UsageError`), a change of a read-only disk (:class:`~crucible_emu.client.failures.\
RequestFailed`, EPERM). After a cancelled call its memory belongs to the caller again; a cancelled change may or may not
have happened.
"""

from __future__ import annotations

import mmap
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self

from crucible_emu.client.failures import read_only
from crucible_emu.errors import UsageError

Buffer = bytes | bytearray | memoryview | mmap.mmap
"""What bytes are taken from and put into; anything else that a ``memoryview`` takes works as well."""


class Device(ABC):
    """A disk of ``size_bytes`` whose changes are made in multiples of ``block_size`` bytes.

    ``can_flush``, ``can_zero`` and ``can_trim`` say what is offered beside reading and writing; where ``can_map`` is
    false nothing is known of holes.
    """

    address: str
    size_bytes: int
    block_size: int
    read_only: bool
    can_flush: bool
    can_zero: bool
    can_trim: bool
    can_map: bool

    # --- for everybody ---

    async def read(self, offset: int, length: int) -> bytes:
        """``length`` bytes from ``offset`` on, both of any alignment."""
        memory = bytearray(length)
        await self.read_into(offset, memory)
        return bytes(memory)

    async def read_into(self, offset: int, memory: Buffer) -> None:
        """Fill ``memory`` (anything writable) from ``offset`` on; its length says how much."""
        view = memoryview(memory).cast("B")
        self.check_range("read", offset, len(view))
        start, end = self.whole_blocks(offset, len(view))
        if (start, end) == (offset, offset + len(view)):
            await self._read_into(offset, view)
            return
        whole = memoryview(bytearray(end - start))
        await self._read_into(start, whole)
        view[:] = whole[offset - start : offset - start + len(view)]

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        """Write ``data`` at ``offset``, both aligned. ``fua``: it is durable when this returns."""
        view = memoryview(data).cast("B")
        self._check_change("write", offset, len(view))
        await self._write(offset, view, fua)

    async def zero(self, offset: int, length: int) -> None:
        """Make the range read as zeros; where :attr:`can_zero` is false by sending them."""
        self._check_change("zero", offset, length)
        await self._zero(offset, length)

    async def trim(self, offset: int, length: int) -> None:
        """The content of the range is not needed any more; it reads as anything afterwards. Raises
        :class:`UsageError` where :attr:`can_trim` is false."""
        self._check_change("trim", offset, length)
        if not self.can_trim:
            raise UsageError(f"{self.address} does not offer trimming: use zero")
        await self._trim(offset, length)

    async def flush(self) -> None:
        """Return when every write that was answered before is durable. Raises :class:`UsageError` where
        :attr:`can_flush` is false."""
        if not self.can_flush:
            raise UsageError(f"{self.address} does not offer a flush")
        await self._flush()

    async def zeros(self, offset: int, length: int) -> list[tuple[int, bool]]:
        """``(length, whether it is known to read as zeros)`` of the runs of the range, without reading it."""
        self.check_range("map", offset, length)
        return await self._zeros(offset, length) if self.can_map and length else [(length, False)]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # --- what a kind of disk is ---

    @abstractmethod
    async def close(self) -> None:
        """End the connection; a second call does nothing. A volume stays attached at its pantry."""

    @abstractmethod
    async def _read_into(self, offset: int, memory: memoryview) -> None: ...

    @abstractmethod
    async def _write(self, offset: int, data: memoryview, fua: bool) -> None: ...

    @abstractmethod
    async def _zero(self, offset: int, length: int) -> None: ...

    @abstractmethod
    async def _trim(self, offset: int, length: int) -> None: ...

    @abstractmethod
    async def _flush(self) -> None: ...

    @abstractmethod
    async def _zeros(self, offset: int, length: int) -> list[tuple[int, bool]]: ...

    # --- checks ---

    def whole_blocks(self, offset: int, length: int) -> tuple[int, int]:
        """``(start, end)`` of the blocks that a range touches."""
        block = self.block_size
        return offset // block * block, min(-(-(offset + length) // block) * block, self.size_bytes)

    def check_range(self, what: str, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.size_bytes:
            raise UsageError(
                f"cannot {what} {length} bytes at {offset} of {self.address}, which has {self.size_bytes}: ask for less"
            )

    def _check_change(self, what: str, offset: int, length: int) -> None:
        if self.read_only:
            raise read_only(what)
        self.check_range(what, offset, length)
        if offset % self.block_size or length % self.block_size:
            raise UsageError(
                f"cannot {what} {length} bytes at {offset}: blocks have {self.block_size} bytes, align both to that"
            )
