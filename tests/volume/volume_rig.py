"""Volumes for tests: trees over devices in memory that complete when the test says so, and the model of such a tree.

A device here takes effect when a request is admitted, as devices promise, and holds its completion back; what a volume
defers to the loop's next turn is held back too. So a test decides about every order there can be, without a loop.

The model knows a block as the set of what it may hold: ``None`` is "never written", a number is a fill. The set has one
member, but where a scrub is under way: then an unwritten block may hold a copy of the parent's already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any

import numpy as np
from hypothesis import strategies as st

from crucible_emu.blockio import BlockDevice, Completed, Kind, Request
from crucible_emu.blockio_memory import MemoryDevice
from crucible_emu.errors import CrucibleError
from crucible_emu.volume.volume import Volume

BLOCK = 512


class Turns:
    """What was deferred; and completions that devices hold back."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], None]] = []
        self.inside = 0

    def defer(self, function: Callable[[], None]) -> None:
        self.waiting.append(function)

    def run(self, index: int = 0) -> None:
        self.waiting.pop(index)()

    def run_all(self) -> None:
        while self.waiting:
            self.run()


class SlowDevice:
    """``memory``, whose requests take effect when admitted and complete in a later turn; ``fail`` may give the error
    of a request in place of its effect. It must not be entered from inside of any completion of ``turns``."""

    def __init__(
        self, memory: MemoryDevice, turns: Turns, fail: Callable[[Request], CrucibleError | None] | None = None
    ) -> None:
        self.memory = memory
        self.turns = turns
        self.fail = fail
        self.batches: list[list[Request]] = []

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
        assert not self.turns.inside, "submit was called from inside of a completion"
        self.batches.append(list(requests))
        for request in requests:
            error = self.fail(request) if self.fail is not None else None
            if error is not None:
                request.error = error
            else:
                self.memory.submit([request], lambda _: None)

            def complete(request: Request = request) -> None:
                self.turns.inside += 1
                try:
                    completed([request])
                finally:
                    self.turns.inside -= 1

            self.turns.waiting.append(complete)

    async def wait_for_room(self) -> None:
        pass

    async def allocation(self, offset: int, length: int) -> Any:
        return await self.memory.allocation(offset, length)


# -- trees ------------------------------------------------------------------------------------------------------------


@dataclass
class Leaf:
    """Blocks: what each holds at first, ``None`` or a fill. ``slow``: completes later."""

    fills: list[int | None]
    slow: bool = False


@dataclass
class Node:
    """A volume: what it is made of."""

    sub_volumes: list[Leaf | Node]
    parent: Leaf | Node | None = None


Tree = Leaf | Node
fills = st.none() | st.integers(0, 255)
leaves = st.builds(Leaf, st.lists(fills, min_size=1, max_size=6), st.booleans())


def nodes(parts: st.SearchStrategy[Tree]) -> st.SearchStrategy[Node]:
    return st.builds(Node, st.lists(parts, min_size=1, max_size=3), st.none() | parts)


trees = nodes(st.recursive(leaves, nodes, max_leaves=6))
"""Volumes of any shape: sub-volumes and parents are memory or volumes, parents are shorter or longer."""


@dataclass
class Modelled:
    """A tree that was built, and what it must hold. ``blocks`` of a leaf: the alternatives of each block."""

    device: BlockDevice
    sub_volumes: list[Modelled] = field(default_factory=list)
    parent: Modelled | None = None
    blocks: list[set[int | None]] = field(default_factory=list)
    kind: str = "memory"
    """Of a leaf: zeroing and trimming make holes in memory, zero what was written in a region set of this process
    ("local"), and know of no holes in one over the network ("remote"), where a trim does nothing."""

    @property
    def is_leaf(self) -> bool:
        return not self.sub_volumes

    @property
    def count(self) -> int:
        return len(self.blocks) if self.is_leaf else sum(part.count for part in self.sub_volumes)

    @property
    def parent_blocks(self) -> int:
        return 0 if self.parent is None else min(self.parent.count, self.count)

    def leaves(self, block: int) -> tuple[Modelled, int, bool]:
        """Where a block lies: its leaf, the number there, and whether there is a parent below it on the way."""
        if self.is_leaf:
            return self, block, False
        below = block < self.parent_blocks
        for part in self.sub_volumes:
            if block < part.count:
                leaf, inside, over = part.leaves(block)
                return leaf, inside, over or below
            block -= part.count
        raise AssertionError("no such block")

    def view(self, block: int) -> set[int | None]:
        """What a read of the block may find."""
        if self.is_leaf:
            return set(self.blocks[block])
        at = block
        for part in self.sub_volumes:
            if at < part.count:
                found = part.view(at)
                break
            at -= part.count
        if None in found and block < self.parent_blocks:
            assert self.parent is not None
            found = (found - {None}) | self.parent.view(block)
        return found

    # -- changes --

    def write(self, block: int, fill: int) -> None:
        leaf, inside, _ = self.leaves(block)
        leaf.blocks[inside] = {fill}

    def write_unwritten(self, block: int, fill: int) -> None:
        leaf, inside, _ = self.leaves(block)
        leaf.blocks[inside] = {fill if was is None else was for was in leaf.blocks[inside]}

    def zero(self, block: int, no_hole: bool) -> None:
        leaf, inside, over_parent = self.leaves(block)
        if no_hole or over_parent or leaf.kind == "remote":
            leaf.blocks[inside] = {0}
        else:
            leaf.make_hole(inside)

    def trim(self, block: int) -> None:
        leaf, inside, over_parent = self.leaves(block)
        if not over_parent and leaf.kind != "remote":
            leaf.make_hole(inside)

    def make_hole(self, inside: int) -> None:
        if self.kind == "memory":
            self.blocks[inside] = {None}
        else:
            self.blocks[inside] = {None if fill is None else 0 for fill in self.blocks[inside]}

    # -- a scrub --

    def scrub_begins(self) -> None:
        """From now on an unwritten block may hold the copy already."""
        for block in range(self.parent_blocks):
            leaf, inside, _ = self.leaves(block)
            if None in leaf.blocks[inside]:
                leaf.blocks[inside] |= {0 if copy is None else copy for copy in self.view(block)}

    def scrub_ends(self) -> None:
        """The parent is let go: every block that it has holds something."""
        for block in range(self.parent_blocks):
            leaf, inside, _ = self.leaves(block)
            leaf.blocks[inside].discard(None)
        self.parent = None


def build(tree: Tree, turns: Turns | None = None, **settings: Any) -> Modelled:
    """The tree as devices, and its model. Slow leaves only with ``turns``; ``settings`` are those of a volume."""
    if isinstance(tree, Leaf):
        memory = MemoryDevice(len(tree.fills) * BLOCK, BLOCK)
        for block, fill in enumerate(tree.fills):
            if fill is not None:
                memory.data[block * BLOCK : (block + 1) * BLOCK] = bytes([fill]) * BLOCK
                memory.depths[block] = 1
        slow = tree.slow and turns is not None
        return Modelled(
            SlowDevice(memory, turns) if slow and turns is not None else memory, blocks=[{fill} for fill in tree.fills]
        )
    sub_volumes = [build(part, turns, **settings) for part in tree.sub_volumes]
    parent = None if tree.parent is None else build(tree.parent, turns, **settings)
    volume = Volume(BLOCK, [part.device for part in sub_volumes], None if parent is None else parent.device, **settings)
    return Modelled(volume, sub_volumes, parent)


# -- requests against the model ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Op:
    """One request: a share of the disk, so that it fits any tree."""

    kind: Kind
    start: int
    count: int
    fill: int
    flag: bool


ops = st.builds(
    Op, st.sampled_from(list(Kind)), st.integers(0, 63), st.integers(0, 20), st.integers(0, 255), st.booleans()
)
batches = st.lists(ops, min_size=1, max_size=8)


class Outstanding:
    """Requests that were submitted, with what their reads may find; every one must be reported once."""

    def __init__(self, tree: Modelled) -> None:
        self.tree = tree
        self.pending: dict[int, tuple[Request, list[set[int | None]]]] = {}

    def submit(self, wanted: list[Op]) -> list[Request]:
        if isinstance(self.tree.device, Volume) and not self.tree.device.parent_end:
            self.tree.scrub_ends()
        requests = [self._request(op) for op in wanted]
        self.tree.device.submit(requests, self._completed)
        return requests

    def _request(self, op: Op) -> Request:
        tree = self.tree
        start = op.start % tree.count
        count = 0 if op.kind is Kind.FLUSH else min(op.count, tree.count - start)
        request = Request(op.kind, start * BLOCK, count * BLOCK)
        span = range(start, start + count)
        allowed: list[set[int | None]] = []
        if op.kind is Kind.READ:
            request.buffer = memoryview(bytearray(b"\xee" * (count * BLOCK)))
            if op.flag:
                request.owned = np.zeros(count, np.bool_)
                request.owned[::2] = True  # what nobody sets shows
            allowed = [tree.view(block) for block in span]
        elif op.kind in (Kind.WRITE, Kind.WRITE_UNWRITTEN):
            request.buffer = memoryview(bytearray(bytes([op.fill]) * (count * BLOCK)))
            request.fua = op.flag and op.kind is Kind.WRITE
        elif op.kind is Kind.WRITE_ZEROES:
            request.no_hole = op.flag
        for block in span:
            if op.kind is Kind.WRITE:
                tree.write(block, op.fill)
            elif op.kind is Kind.WRITE_UNWRITTEN:
                tree.write_unwritten(block, op.fill)
            elif op.kind is Kind.WRITE_ZEROES:
                tree.zero(block, op.flag)
            elif op.kind is Kind.TRIM:
                tree.trim(block)
        self.pending[id(request)] = (request, allowed)
        return request

    def _completed(self, requests: list[Request]) -> None:
        for request in requests:
            _, allowed = self.pending.pop(id(request))
            assert request.error is None, request
            assert request.buffer is not None or request.kind not in (Kind.READ, Kind.WRITE)
            for index, choices in enumerate(allowed):
                self._check(request, index, choices)

    def _check(self, request: Request, index: int, choices: set[int | None]) -> None:
        assert request.buffer is not None
        found = bytes(request.buffer[index * BLOCK : (index + 1) * BLOCK])
        owned = True if request.owned is None else bool(request.owned[index])
        right = {bytes([fill or 0]) * BLOCK for fill in choices if request.owned is None or owned == (fill is not None)}
        assert found in right, f"{request!r}, block {index}: {found[:1]!r}, owned {owned}, may be {choices}"


def shuffled(turns: Turns, seed: int) -> Iterator[int]:
    """Numbers of waiting turns, drawn by ``seed``, as long as some wait."""
    random = Random(seed)
    while turns.waiting:
        yield random.randrange(len(turns.waiting))
