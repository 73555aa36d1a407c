"""What a soak remembers of every block, and what a reader may find there. Pure.

Every write has a number of its own, its *token*, and the bytes of a block follow from token and place: who reads a
block knows which write it was, and a block of another disk, of another place or of another time is found out. Token 0
is a block that nobody wrote: zeros.

A :class:`Cell` is one block of one moment: the tokens that may be in it, one of them. Most cells hold one token. They
hold more in two cases: the machine under a guest died after writes that no flush was answered for, each of which may be
there or not; or a snapshot was taken while a guest wrote. The bytes of a cell do not change, so whoever reads it first
knows it from then on: disks made from a snapshot share its cells, and all have to find the same.

What it guarantees: a mismatch that is told is one. Where it cannot be known what a block holds, every token that it may
be is allowed, and no other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count

from blake3 import blake3

TOKEN_BYTES = 8


@dataclass(eq=False, slots=True)
class Cell:
    """One block of one moment, and which of ``tokens`` it is."""

    tokens: set[int]


BLANK = Cell({0})


class Tokens:
    """Gives each write its number."""

    def __init__(self) -> None:
        self._numbers = count(1)

    def next(self) -> int:
        return next(self._numbers)


def block_of(token: int, block: int, block_bytes: int) -> bytes:
    """What the write ``token`` puts into a block."""
    if token == 0:
        return bytes(block_bytes)
    mark = token.to_bytes(TOKEN_BYTES, "little")
    return mark + blake3(mark + block.to_bytes(TOKEN_BYTES, "little")).digest(length=block_bytes - TOKEN_BYTES)


@dataclass(eq=False, slots=True)
class Frozen:
    """What a snapshot or an image holds."""

    block_bytes: int
    cells: list[Cell]


@dataclass(eq=False, slots=True)
class Window:
    """A snapshot that is being taken: each block is as it was at some moment of this."""

    block_bytes: int
    cells: list[Cell]

    def may_be(self, block: int, tokens: set[int]) -> None:
        self.cells[block] = Cell(self.cells[block].tokens | tokens)

    def frozen(self) -> Frozen:
        """When it is known to be taken."""
        return Frozen(self.block_bytes, self.cells)


@dataclass(eq=False, slots=True)
class Memory:
    """A disk with one client, who asks for one thing at a time.

    ``cells``: as of the last flush. ``since``: what was written after it, by block, the oldest first. ``sent``: the
    blocks of the write that is not answered yet.
    """

    block_bytes: int
    cells: list[Cell]
    since: dict[int, list[int]] = field(default_factory=dict)
    sent: range = range(0)
    windows: list[Window] = field(default_factory=list)

    @classmethod
    def blank(cls, size_bytes: int, block_bytes: int) -> Memory:
        return cls(block_bytes, [BLANK] * (size_bytes // block_bytes))

    @classmethod
    def of(cls, frozen: Frozen) -> Memory:
        """A disk made from a snapshot or an image."""
        return cls(frozen.block_bytes, list(frozen.cells))

    @property
    def blocks(self) -> int:
        return len(self.cells)

    # -- the client -----------------------------------------------------------------------------------------------

    def write(self, first: int, blocks: int, token: int) -> bytes:
        """What is to be sent; :meth:`answered` when it is acknowledged."""
        self.sent = range(first, first + blocks)
        for block in self.sent:
            self.since.setdefault(block, []).append(token)
            for window in self.windows:
                window.may_be(block, {token})
        return b"".join(block_of(token, block, self.block_bytes) for block in self.sent)

    def answered(self) -> None:
        self.sent = range(0)

    def flushed(self) -> None:
        """A flush is answered: the last writes stay, whatever dies."""
        for block, tokens in self.since.items():
            self.cells[block] = Cell({tokens[-1]})
        self.since.clear()

    def lost(self) -> None:
        """What had the disk in service died: of what was not flushed any may be there, or none."""
        for block, tokens in self.since.items():
            may_be = self.cells[block].tokens | set(tokens)
            self.cells[block] = Cell(may_be)
            for window in self.windows:
                window.may_be(block, may_be)
        self.since.clear()
        self.answered()

    def read(self, first: int, data: bytes) -> Iterator[str]:
        """A sentence for every block of ``data`` that is not what it may be."""
        size = self.block_bytes
        for number in range(len(data) // size):
            block, found = first + number, data[number * size : (number + 1) * size]
            token = int.from_bytes(found[:TOKEN_BYTES], "little")
            written = self.since.get(block)
            allowed = self.cells[block].tokens if written is None else {written[-1]}
            if found != block_of(token, block, size):
                yield f"block {block} holds what nobody wrote there: {found[:16].hex()}…, not {sorted(allowed)}"
            elif token not in allowed:
                yield f"block {block} holds write {token}, not {sorted(allowed)}"
            elif written is None:
                allowed.intersection_update({token})

    # -- snapshots ------------------------------------------------------------------------------------------------

    def window(self) -> Window:
        """A snapshot is asked for."""
        cells = list(self.cells)
        for block, tokens in self.since.items():
            cells[block] = Cell(cells[block].tokens | set(tokens) if block in self.sent else {tokens[-1]})
        made = Window(self.block_bytes, cells)
        self.windows.append(made)
        return made

    def close(self, window: Window) -> None:
        """It is taken, or given up."""
        self.windows.remove(window)
