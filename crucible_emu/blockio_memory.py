"""A block device in memory: what a door can do when nothing stands behind it.

What it is for: tests and benchmarks of a door alone, and a model of how a device behaves. Blocks are bytes of one numpy
array, which takes memory only where something was written; ``depths`` is the allocation map.

What it guarantees: every request is done before :meth:`MemoryDevice.submit` returns, all of a batch reported in one
call, in order. A flush has nothing to do: memory is as durable as this device gets.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from crucible_emu import errors
from crucible_emu.blockio import Allocation, Completed, Kind, Request
from crucible_emu.geometry import equal_runs


class MemoryDevice:
    """A disk of ``size_bytes`` (a multiple of ``block_size``) in memory; implements ``blockio.BlockDevice``
    and ``blockio.SinglesDevice``.

    ``depths`` is uint8, one per block: 0 where nothing is written, 1 where something is (see
    :class:`~crucible_emu.blockio.Allocation`); a test may set other depths. Zeroing and trimming make holes again.
    """

    def __init__(self, size_bytes: int, block_size: int = 4096, *, read_only: bool = False) -> None:
        if size_bytes <= 0 or block_size <= 0 or size_bytes % block_size:
            raise ValueError(f"a disk of {size_bytes} bytes is not made of blocks of {block_size} bytes")
        self._data = np.zeros(size_bytes, np.uint8)
        self._view = self._data.data
        self._read_only = read_only
        self._block_size = block_size
        self.depths: npt.NDArray[np.uint8] = np.zeros(size_bytes // block_size, np.uint8)
        self._depth_bytes = self.depths.data
        self.flushes = 0

    @property
    def size_bytes(self) -> int:
        return len(self._view)

    @property
    def block_size(self) -> int:
        return self._block_size

    @property
    def read_only(self) -> bool:
        return self._read_only

    @property
    def data(self) -> memoryview:
        """All bytes of the disk, as they are now."""
        return self._view

    def read_singles(self, offsets: Sequence[int], outs: Sequence[memoryview]) -> bool:
        """See :class:`~crucible_emu.blockio.SinglesDevice`: all that there is is at hand."""
        view, block_size = self._view, self._block_size
        if not self._are_blocks(offsets):
            return False
        for offset, out in zip(offsets, outs):
            out[:] = view[offset : offset + block_size]
        return True

    def write_singles(self, offsets: Sequence[int], data: Sequence[memoryview]) -> bool:
        view, block_size = self._view, self._block_size
        if self._read_only or not self._are_blocks(offsets):
            return False
        for offset, block in zip(offsets, data):
            view[offset : offset + block_size] = block
            self._depth_bytes[offset // block_size] = 1
        return True

    def _are_blocks(self, offsets: Sequence[int]) -> bool:
        return all(offset % self._block_size == 0 and 0 <= offset < len(self._view) for offset in offsets)

    def submit(self, requests: list[Request], completed: Completed) -> None:
        view, block_size = self._view, self._block_size
        for request in requests:
            offset, length = request.offset, request.length
            end = offset + length
            if (offset | length) % block_size or end > len(view):
                request.error = errors.OffsetInvalid() if end > len(view) else errors.OffsetUnaligned()
            elif request.kind is Kind.READ:
                request.buffer[:] = view[offset:end]  # type: ignore[index]  # a READ has a buffer
                if request.owned is not None:
                    request.owned[:] = self.depths[offset // block_size : end // block_size] != 0
            elif request.kind is Kind.FLUSH:
                self.flushes += 1
            elif self._read_only:
                request.error = errors.ModifyingReadOnlyRegion()
            elif request.kind is Kind.WRITE:
                view[offset:end] = request.buffer  # type: ignore[assignment]  # a WRITE has a buffer
                if length == block_size:
                    self._depth_bytes[offset // block_size] = 1
                else:
                    self.depths[offset // block_size : end // block_size] = 1
            elif request.kind is Kind.WRITE_UNWRITTEN:
                self._write_unwritten(request)
            else:
                self._data[offset:end] = 0
                zeroed = request.kind is Kind.WRITE_ZEROES and request.no_hole
                self.depths[offset // block_size : end // block_size] = zeroed
        completed(requests)

    def _write_unwritten(self, request: Request) -> None:
        first, last = request.offset // self._block_size, (request.offset + request.length) // self._block_size
        unwritten = self.depths[first:last] == 0
        rows = np.frombuffer(request.buffer, np.uint8).reshape(-1, self._block_size)  # type: ignore[arg-type]
        self._data[request.offset : request.offset + request.length].reshape(rows.shape)[unwritten] = rows[unwritten]
        self.depths[first:last][unwritten] = 1

    async def wait_for_room(self) -> None:
        """There is always room: nothing is ever queued."""

    async def allocation(self, offset: int, length: int) -> list[Allocation]:
        first, last = offset // self._block_size, -(-(offset + length) // self._block_size)
        runs = equal_runs(self.depths[first:last])
        return [Allocation((stop - start) * self._block_size, depth) for start, stop, depth in runs]
