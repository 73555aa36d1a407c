"""Programs of requests, and what a disk must answer to them: a plain list of blocks.

A program is a list of steps: a batch of requests, submitted in one call and waited for or not, or the end of the disk's
service and its next opening. The model applies every request at the moment it is submitted, which is what a disk
promises for reads and writes. A request to zero a large range takes effect piece by piece until it is completed: a read
that is submitted before may find what was there or zeros, block by block. A read that one replica fails is tried on
another, which may have gone on meanwhile: it may find what was submitted while it was on its way.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol

from disk_rig import Batch
from hypothesis import strategies as st

from crucible_emu import errors
from crucible_emu.blockio import BlockDevice, Kind, Request, SinglesDevice

BLOCKS = 32
"""Of the disk: 4 extents of 8."""


@dataclass(frozen=True)
class Op:
    """One request. ``count`` 0 is legal; ``astray``: somewhere that is not on the disk, or not on a block border."""

    kind: Kind
    start: int = 0
    count: int = 0
    fill: int = 1
    fua: bool = False
    no_hole: bool = False
    astray: int = 0


@dataclass(frozen=True)
class Submit:
    ops: list[Op]
    wait: bool = True


@dataclass(frozen=True)
class Reopen:
    """Leave service and come back."""


class Open(Protocol):
    """How a program gets its disk, again and again."""

    def __call__(self) -> AbstractAsyncContextManager[BlockDevice]: ...


spans = st.tuples(st.integers(0, BLOCKS - 1), st.integers(0, 12)).map(lambda s: (s[0], min(s[1], BLOCKS - s[0])))
wide_spans = st.tuples(st.integers(0, BLOCKS - 1), st.integers(1, BLOCKS)).map(
    lambda s: (s[0], min(s[1], BLOCKS - s[0]))
)
fills = st.integers(1, 255)
flags = st.booleans()
reads = st.builds(lambda span: Op(Kind.READ, *span), spans | wide_spans)
single_reads = st.builds(lambda start: Op(Kind.READ, start, 1), st.integers(0, BLOCKS - 1))
writes = st.builds(lambda span, fill, fua: Op(Kind.WRITE, *span, fill, fua), spans, fills, flags)
single_writes = st.builds(lambda start, fill: Op(Kind.WRITE, start, 1, fill), st.integers(0, BLOCKS - 1), fills)
zeroes = st.builds(
    lambda kind, span, fua, no_hole: Op(kind, *span, 0, fua, no_hole),
    st.sampled_from([Kind.WRITE_ZEROES, Kind.TRIM]),
    spans | wide_spans,
    flags,
    flags,
)
flushes = st.just(Op(Kind.FLUSH))
astray = st.builds(
    lambda kind, how: Op(kind, 0, 1, 9, astray=how),
    st.sampled_from([Kind.READ, Kind.WRITE, Kind.WRITE_ZEROES, Kind.TRIM]),
    st.integers(1, 4),
)
batches = st.builds(
    Submit,
    st.lists(reads | single_reads | writes | single_writes | zeroes | flushes | astray, min_size=1, max_size=12)
    | st.lists(single_reads | single_writes, min_size=4, max_size=24),
    flags,
)
programs = st.lists(batches | st.just(Reopen()), min_size=1, max_size=8)


@dataclass
class Model:
    """What is on the disk. ``trims``: whether a trim zeroes; it may also do nothing."""

    block_size: int
    trims: bool = True
    zero_piece_blocks: int = 1 << 30
    retries_reads: bool = False
    """Whether reads fail on a replica, so that a later write may overtake a read that is under way."""
    blocks: list[bytes] = field(default_factory=list)
    before_zeroes: dict[int, tuple[list[Request], bytes]] = field(default_factory=dict)
    """For each block with large zeroes on their way: the requests, and what was there before them."""
    expected: list[tuple[Request, list[set[bytes]]]] = field(default_factory=list)
    answered: dict[int, Request] = field(default_factory=dict)
    """The completed requests, by identity."""

    def __post_init__(self) -> None:
        self.blocks = [bytes(self.block_size)] * BLOCKS

    def request(self, op: Op) -> Request:
        """The request for ``op``, its effect applied."""
        offset, length = op.start * self.block_size, op.count * self.block_size
        end = BLOCKS * self.block_size
        if op.astray:
            offset, length = [
                (end, self.block_size),
                (end - self.block_size, 2 * self.block_size),
                (1, self.block_size),
                (0, self.block_size - 1),
            ][op.astray - 1]
        buffer = None
        if op.kind is Kind.WRITE:
            pieces = [self._content(op, index) for index in range(op.count)] or [b""]
            buffer = memoryview(bytearray(b"".join(pieces) if not op.astray else bytes([op.fill]) * length))
        elif op.kind is Kind.READ:
            buffer = memoryview(bytearray(b"\xee") * length)
        request = Request(op.kind, offset, length, buffer, fua=op.fua, no_hole=op.no_hole)
        if not op.astray:
            self._apply(op, request)
        return request

    def _content(self, op: Op, index: int) -> bytes:
        return bytes([op.fill, index]) * (self.block_size // 2)

    def _apply(self, op: Op, request: Request) -> None:
        span = range(op.start, op.start + op.count)
        if op.kind is Kind.READ:
            self.expected.append((request, [self._allowed(block) for block in span]))
        elif op.kind is Kind.WRITE:
            for index, block in enumerate(span):
                self._set(block, self._content(op, index))
                self.before_zeroes.pop(block, None)
        elif op.kind is Kind.WRITE_ZEROES or (op.kind is Kind.TRIM and self.trims):
            for block in span:
                if op.count > self.zero_piece_blocks:
                    self.before_zeroes.setdefault(block, ([], self.blocks[block]))[0].append(request)
                else:
                    self.before_zeroes.pop(block, None)
                self._set(block, bytes(self.block_size))

    def _set(self, block: int, content: bytes) -> None:
        self.blocks[block] = content
        if self.retries_reads:
            for request, allowed in self.expected:
                index = block - request.offset // self.block_size
                if id(request) not in self.answered and 0 <= index < len(allowed):
                    allowed[index].add(content)

    def _allowed(self, block: int) -> set[bytes]:
        pending = self.before_zeroes.get(block)
        return {self.blocks[block]} if pending is None else {self.blocks[block], pending[1]}

    def completed(self, requests: list[Request]) -> None:
        """These are done: what they zeroed is zeros from now on."""
        done = {id(request) for request in requests}
        self.answered |= {id(request): request for request in requests}
        for block, (pending, _) in list(self.before_zeroes.items()):
            if not done.isdisjoint(map(id, pending)):
                del self.before_zeroes[block]

    def check(self) -> None:
        """Every read found what it may find."""
        for request, allowed in self.expected:
            assert request.error is None, f"{request!r}: {request.error!r}"
            assert request.buffer is not None
            for index, choices in enumerate(allowed):
                found = bytes(request.buffer[index * self.block_size : (index + 1) * self.block_size])
                assert found in choices, (
                    f"{request!r}, block {request.offset // self.block_size + index}: found {found[:2].hex()}, "
                    f"allowed {[choice[:2].hex() for choice in choices]}"
                )
        self.expected.clear()
        self.answered.clear()


async def run(program: list[Submit | Reopen], model: Model, open_disk: Open) -> None:
    """Run ``program`` on the disk that ``open_disk`` opens; raises where it answers wrongly."""
    everything = Submit([Op(Kind.READ, 0, BLOCKS)])
    sessions: list[list[Submit]] = [[]]
    for step in program:
        if isinstance(step, Reopen):
            sessions.append([])
        else:
            sessions[-1].append(step)
    for session in [*sessions, [everything]]:
        outstanding: list[Batch] = []
        async with open_disk() as disk:
            for submit in session:
                await _submit(submit, model, disk, outstanding)
            for batch in outstanding:
                await _finish(batch, model)
            model.check()


async def _submit(step: Submit, model: Model, disk: BlockDevice, outstanding: list[Batch]) -> None:
    requests = [model.request(op) for op in step.ops]
    if not step.wait and _done_at_once(requests, model, disk):
        model.completed(requests)
        return
    batch = Batch(disk, requests)
    if step.wait:
        await _finish(batch, model)
    else:
        outstanding.append(batch)


def _done_at_once(requests: list[Request], model: Model, disk: BlockDevice) -> bool:
    """Do requests of single blocks as a door does where they are all alike; False where that is not the way."""
    kinds = {request.kind for request in requests}
    if not isinstance(disk, SinglesDevice) or kinds not in ({Kind.READ}, {Kind.WRITE}):
        return False
    if any(request.length != model.block_size or request.fua for request in requests):
        return False
    data = [request.buffer for request in requests if request.buffer is not None]
    do = disk.read_singles if Kind.READ in kinds else disk.write_singles
    return do([request.offset for request in requests], data)


async def _finish(batch: Batch, model: Model) -> None:
    for request in await batch.wait():
        aligned = not (request.offset | request.length) % model.block_size
        inside = aligned and request.offset + request.length <= BLOCKS * model.block_size
        if not inside:
            assert request.error == errors.OffsetInvalid(), f"{request!r} is astray: {request.error!r}"
        else:
            assert request.error is None, f"{request!r}: {request.error!r}"
    model.completed(batch.requests)
