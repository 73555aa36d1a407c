"""Memory for the data of writes on their way to other processes, used again.

What it is for: a write's data are kept until every replica has them and a flush or barrier has retired the job, which
is up to 64 MiB at a time, and as much again may be on its way. All of it is freed at once, and the allocator gives it
back to the system. Memory that was never touched costs a page fault per 4 KiB, on a virtual machine up to 15 µs each: 1
to 2 ms of processor time for each MiB that a guest wrote. So what is large is kept here for the next write.

Where it is *shared*, it is cut from one file of memory, which a Downstairs on this machine may map, to be told where
data lie instead of being sent them (:mod:`writes_by_reference`).

What it guarantees: memory is handed out again only after the last array and view over it are gone; whoever holds one,
a queue of a connection for instance, need not know of this. What another process may still look into is held like that
until that process has said that it does not, or is gone (:meth:`RowMemory.hold`). At most :data:`IDLE_BYTES_MAX` lie
idle, and none of it once nothing has been written for a while (:meth:`RowMemory.trim`).
"""

from __future__ import annotations

import mmap
import weakref
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from crucible_emu.integrity import Rows
from crucible_emu.region.memory import SharedFile, reserve

LARGE_BYTES = 128 * 1024
"""Smaller pieces are left to the allocator, which keeps those itself."""
IDLE_BYTES_MAX = 160 * 1024 * 1024
SHARED_BYTES = IDLE_BYTES_MAX
"""Size of the shared file; what finds no room in it is private."""


class Onlooker(Protocol):
    """Another process that was let look."""

    def has_left(self) -> bool:
        """Whether it does not look any more."""
        ...

    def close(self) -> None:
        """Nobody will ask again."""
        ...


class _Piece(NamedTuple):
    """``capacity`` bytes of ``memory`` from ``offset`` on; ``shared``: of which file, if they are of one."""

    memory: memoryview
    offset: int
    capacity: int
    shared: SharedPieces | None = None


class SharedPieces:
    """The shared file, and how far it has been cut into pieces."""

    def __init__(self) -> None:
        self.file = SharedFile("crucible-writes")
        self._reserved = reserve(SHARED_BYTES, np.uint8, dense=True, within=self.file)
        self.file.seal()
        self._memory = self._reserved.array.data
        self._address = _address(self._reserved.array)
        self._cut = self._free_bytes = 0
        self._free: dict[int, list[int]] = {}

    def cut(self, capacity: int) -> _Piece | None:
        """A piece that nobody has, as long as there are any."""
        free = self._free.get(capacity)
        if free:
            self._free_bytes -= capacity
            return _Piece(self._memory, free.pop(), capacity, self)
        offset = self._cut
        if offset + capacity > SHARED_BYTES:
            return None
        self._cut += capacity
        return _Piece(self._memory, offset, capacity, self)

    def release(self, piece: _Piece) -> None:
        """Give the memory of a piece that nobody has back to the system."""
        self._reserved.release(piece.offset, piece.capacity)
        self._free.setdefault(piece.capacity, []).append(piece.offset)
        self._free_bytes += piece.capacity
        if self._free_bytes == self._cut:  # then it may be cut otherwise
            self._free.clear()
            self._cut = self._free_bytes = 0

    def offset_of(self, rows: Rows) -> int | None:
        """Where in the file ``rows`` begin, if all of them lie in it."""
        offset = _address(rows) - self._address
        return offset if 0 <= offset <= SHARED_BYTES - rows.nbytes and rows.flags.c_contiguous else None


class RowMemory:
    """Gives out memory, for one thread."""

    def __init__(self) -> None:
        self.idle_bytes = 0
        self._idle: dict[int, list[_Piece]] = {}
        self.shares = False
        """Whether others can be let look into what is given out."""
        self._shared: SharedPieces | None = None
        self._held: list[tuple[Onlooker, Sequence[Rows]]] = []

    def take(self, size_bytes: int) -> npt.NDArray[np.uint8]:
        """uint8[size_bytes] with any content; page-aligned where it is large."""
        if size_bytes < LARGE_BYTES:
            return np.empty(size_bytes, np.uint8)
        self._let_go_of_what_nobody_looks_into()
        capacity = 1 << (size_bytes - 1).bit_length()
        idle = self._idle.get(capacity)
        if idle:
            self.idle_bytes -= capacity
            piece = idle.pop()
        else:
            piece = self._new_piece(capacity)
        flat = np.frombuffer(piece.memory, np.uint8, size_bytes, piece.offset)
        # Every array and view over it refers to this one, so it goes last.
        weakref.finalize(flat, self._give_back, piece).atexit = False
        return flat

    def copy(self, rows: Rows) -> Rows:
        """The same rows in memory from here."""
        copied = self.take(rows.nbytes).reshape(rows.shape)
        copied[:] = rows
        return copied

    def _new_piece(self, capacity: int) -> _Piece:
        if self.shares:
            if self._shared is None:
                self._shared = SharedPieces()
            piece = self._shared.cut(capacity)
            if piece is not None:
                return piece
        return _Piece(memoryview(mmap.mmap(-1, capacity)), 0, capacity)

    def _give_back(self, piece: _Piece) -> None:
        if piece.shared is not self._shared or self.idle_bytes + piece.capacity > IDLE_BYTES_MAX:
            return  # beside a shared file only its own pieces are kept
        self.idle_bytes += piece.capacity
        self._idle.setdefault(piece.capacity, []).append(piece)

    def trim(self) -> None:
        """Give what lies idle back to the system."""
        self._let_go_of_what_nobody_looks_into()
        idle, self._idle = self._idle, {}
        self.idle_bytes = 0
        for pieces in idle.values():
            for piece in pieces:
                if piece.shared is not None:
                    piece.shared.release(piece)

    # -- what others look into ----------------------------------------------------------------------------------------

    def share(self) -> None:
        """From now on give out what other processes can be let look into."""
        if not self.shares:
            self.trim()
            self.shares = True

    @property
    def shared_file(self) -> SharedFile | None:
        """The file that another process may map, once something lies in it."""
        return None if self._shared is None else self._shared.file

    def offset_of(self, rows: Rows) -> int | None:
        """Where in that file ``rows`` begin, if all of them lie in it."""
        return None if self._shared is None else self._shared.offset_of(rows)

    def hold(self, onlooker: Onlooker, rows: Sequence[Rows]) -> None:
        """Keep ``rows`` for as long as ``onlooker`` may look into them; close it then."""
        self._held.append((onlooker, rows))

    def _let_go_of_what_nobody_looks_into(self) -> None:
        held, self._held = self._held, []
        for onlooker, rows in held:
            if onlooker.has_left():
                onlooker.close()
            else:
                self._held.append((onlooker, rows))

    def close(self) -> None:
        """Everything that was given out is let go of when the last who has it does, and none of it comes back here."""
        for onlooker, _ in self._held:
            onlooker.close()
        self._held.clear()
        self._idle.clear()
        self.idle_bytes = 0
        if self._shared is not None:
            self._shared.file.close()
            self._shared = None


def _address(array: npt.NDArray[np.uint8]) -> int:
    return int(array.__array_interface__["data"][0])
