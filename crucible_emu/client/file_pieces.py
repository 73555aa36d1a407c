"""A local file in pieces, with a digest and without its holes: what a copy does in a thread.

What it is for: :class:`FileReader` reads a file from its start, :class:`FileWriter` writes one. Both block, so an
asynchronous copy calls them in a thread, and takes several pieces along each time: reading, digest and the search for
zeros of one piece are about 0.6 ms, a visit to a thread costs up to 0.5 ms.

What it guarantees: pieces come in order and without gaps, so the digest is that of the whole content. A hole is told
by its length and never read. What is written as a hole stays one: the writer's file begins empty.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass

from blake3 import blake3

from crucible_emu.client.copying import FILE_BLOCK_BYTES, HOLE_BYTES_MIN, data_runs

ZEROS = memoryview(bytes(1 << 20))

WRITTEN_BACK_BYTES = 16 << 20
KEPT_WINDOWS = 4
"""*Optimisation*: a file is sent on to its disk in windows of that many bytes while it grows, and a window is dropped
from the page cache that many windows later. Nobody is about to read it, and memory that was not used before is dear in
a virtual machine: a gigabyte was written in 2.7 to 8.9 s without this, and in 1.0 to 1.3 s with it."""


@dataclass(frozen=True, slots=True)
class Piece:
    """``length`` bytes from ``start`` on: the content in ``memory``, of which ``runs`` are not zeros, or a hole."""

    start: int
    length: int
    memory: memoryview | None = None
    runs: tuple[tuple[int, int], ...] = ()


class _Digest:
    def __init__(self) -> None:
        self._digest = blake3()

    def zeros(self, length: int) -> None:
        while length:
            count = min(length, len(ZEROS))
            self._digest.update(ZEROS[:count])
            length -= count

    def data(self, memory: memoryview) -> None:
        self._digest.update(memory)

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


class FileReader:
    """The first ``size_bytes`` of the file behind ``descriptor``, which stays open and belongs to the caller."""

    def __init__(self, descriptor: int, size_bytes: int) -> None:
        self._descriptor = descriptor
        self._size_bytes = size_bytes
        self._at = 0
        self._data_end = 0  # up to here there is no hole
        self._digest = _Digest()

    def next_pieces(self, memories: Sequence[memoryview]) -> list[Piece]:
        """As many pieces as there are ``memories``, each filled with data or left over for a hole; none at the end.

        Raises :class:`OSError`, also where the file has become shorter.
        """
        found: list[Piece] = []
        for memory in memories:
            if self._at >= self._size_bytes:
                break
            found.append(self._next(memory))
            self._at += found[-1].length
        return found

    def blake3(self) -> str:
        return self._digest.hexdigest()

    def _next(self, memory: memoryview) -> Piece:
        at, size = self._at, self._size_bytes
        if at >= self._data_end:
            # Rounded, so that what is left to the other side as zeros begins and ends with its blocks.
            data = max(at, self._seek(at, os.SEEK_DATA) // HOLE_BYTES_MIN * HOLE_BYTES_MIN)
            if data > at:
                self._digest.zeros(data - at)
                return Piece(at, data - at)
            hole = -(-self._seek(at, os.SEEK_HOLE) // HOLE_BYTES_MIN) * HOLE_BYTES_MIN
            self._data_end = min(max(hole, at + HOLE_BYTES_MIN), size)
        piece = memory[: min(len(memory), self._data_end - at)]
        filled = 0
        while filled < len(piece):
            count = os.preadv(self._descriptor, [piece[filled:]], at + filled)
            if not count:
                raise OSError(errno.EIO, "the file became shorter while it was copied")
            filled += count
        self._digest.data(piece)
        return Piece(at, len(piece), piece, tuple(data_runs(piece, HOLE_BYTES_MIN)))

    def _seek(self, at: int, whence: int) -> int:
        """Where the next data or hole begins; a file system that does not know has only data."""
        try:
            return os.lseek(self._descriptor, at, whence)
        except OSError as error:
            if error.errno == errno.ENXIO:  # a hole up to the end
                return self._size_bytes
            if error.errno in (errno.EINVAL, errno.ENOTSUP):
                return at if whence == os.SEEK_DATA else self._size_bytes
            raise


class FileWriter:
    """The content of the empty file behind ``descriptor``, which stays open and belongs to the caller."""

    def __init__(self, descriptor: int, size_bytes: int) -> None:
        self._descriptor = descriptor
        self._digest = _Digest()
        self._window = 0
        self.data_bytes = 0
        os.ftruncate(descriptor, size_bytes)

    def store(self, pieces: Sequence[Piece]) -> None:
        """Write the next pieces, zeros left out in whole blocks of a file system. Raises :class:`OSError`."""
        for piece in pieces:
            if piece.memory is None:
                self._digest.zeros(piece.length)
                continue
            self._digest.data(piece.memory)
            for first, last in data_runs(piece.memory, FILE_BLOCK_BYTES):
                self.data_bytes += last - first
                while first < last:
                    first += os.pwrite(self._descriptor, piece.memory[first:last], piece.start + first)
            self._send_on((piece.start + piece.length) // WRITTEN_BACK_BYTES)

    def _send_on(self, window: int) -> None:
        """Everything before ``window`` is written: have the kernel begin to write it, and forget what is older."""
        while self._window < window:
            for number in (self._window, self._window - KEPT_WINDOWS):
                if number >= 0:
                    start = number * WRITTEN_BACK_BYTES
                    os.posix_fadvise(self._descriptor, start, WRITTEN_BACK_BYTES, os.POSIX_FADV_DONTNEED)
            self._window += 1

    def blake3(self) -> str:
        return self._digest.hexdigest()
