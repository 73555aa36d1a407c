"""Which requests a workload makes, in which order (upstairs-volume.md §16.1): generators, without any disk.

What it is for: a generator yields *steps*. A step is a list of operations that are submitted together; an empty step
waits until everything submitted so far is done. Every read is checked by the runner, so a workload says only what is
read and when. Offsets and sizes come from the :class:`random.Random` that is given, so a seed repeats them.

:data:`WORKLOADS` names them all; what stops, starts or replaces something besides is a *scenario*.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

from crucible_emu.blockio import Kind
from crucible_emu.exercise.layout import Layout

CHUNK_BLOCKS = 256
"""Blocks of one request of fill and verify."""
RANDOM_BLOCKS_MAX = 10
LARGEST_BYTES = 1024 * 1024
"""The largest request that goes over the wire as one message in the real program (its MDTS)."""
DEPENDENT_LOOPS, DEPENDENT_OPERATIONS = 149, 200


class Operation(NamedTuple):
    """What is done to ``blocks`` blocks from ``first`` on."""

    kind: Kind
    first: int = 0
    blocks: int = 0


FLUSH = Operation(Kind.FLUSH)
Step = list[Operation]
DRAIN: Step = []
Steps = Iterator[Step]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a workload is told. ``count``: how often; ``io_blocks``: blocks per request where it is not random."""

    layout: Layout
    rng: Random
    count: int
    io_blocks: int = 1

    def somewhere(self, blocks: int) -> int:
        """A first block from which ``blocks`` fit."""
        return self.rng.randrange(self.layout.block_count - blocks + 1)

    def some_blocks(self, most: int) -> tuple[int, int]:
        """A random range of 1 to ``most`` blocks."""
        blocks = self.rng.randint(1, min(most, self.layout.block_count))
        return self.somewhere(blocks), blocks

    @property
    def largest(self) -> int:
        """Blocks of the largest request."""
        return max(1, min(LARGEST_BYTES // self.layout.block_size, self.layout.block_count))


def read(first: int, count: int) -> Operation:
    return Operation(Kind.READ, first, count)


def write(first: int, count: int) -> Operation:
    return Operation(Kind.WRITE, first, count)


def write_flush_read(first: int, count: int) -> Steps:
    """Each waits for the one before it."""
    yield from ([write(first, count)], DRAIN, [FLUSH], DRAIN, [read(first, count)], DRAIN)


def chunks(plan: Plan, kind: Kind, blocks: int) -> Steps:
    """The whole disk once, in order."""
    total = plan.layout.block_count
    for first in range(0, total, blocks):
        yield [Operation(kind, first, min(blocks, total - first))]


def one(plan: Plan) -> Steps:
    first = plan.somewhere(1)
    yield from ([write(first, 1)], DRAIN, [read(first, 1)], DRAIN, [FLUSH])


def fill(plan: Plan) -> Steps:
    yield from chunks(plan, Kind.WRITE, CHUNK_BLOCKS)
    yield DRAIN
    yield [FLUSH]


def fast_fill(plan: Plan) -> Steps:
    """One random block of each extent."""
    for first, count in plan.layout.extents:
        yield [write(first + plan.rng.randrange(count), 1)]
    yield DRAIN
    yield [FLUSH]


def verify(plan: Plan) -> Steps:
    yield from chunks(plan, Kind.READ, CHUNK_BLOCKS)


def rand_verify(plan: Plan) -> Steps:
    """Every block once, in random order and in pieces of ``io_blocks``."""
    firsts = list(range(0, plan.layout.block_count, plan.io_blocks))
    plan.rng.shuffle(firsts)
    for first in firsts:
        yield [read(first, min(plan.io_blocks, plan.layout.block_count - first))]


def mixed(flush_percent: int, write_percent: int) -> Callable[[Plan], Steps]:
    """So many per cent of flushes and of writes, the rest reads, up to :data:`RANDOM_BLOCKS_MAX` blocks each."""

    def steps(plan: Plan) -> Steps:
        for _ in range(plan.count):
            dice = plan.rng.randrange(100)
            if dice < flush_percent:
                yield [FLUSH]
                continue
            first, blocks = plan.some_blocks(RANDOM_BLOCKS_MAX)
            yield [write(first, blocks) if dice < flush_percent + write_percent else read(first, blocks)]

    return steps


def rand_read(plan: Plan) -> Steps:
    while True:
        yield [read(plan.somewhere(plan.io_blocks), plan.io_blocks)]


def rand_write(plan: Plan) -> Steps:
    while True:
        yield [write(plan.somewhere(plan.io_blocks), plan.io_blocks)]


def big(plan: Plan) -> Steps:
    """Every block by itself, in order."""
    for block in range(plan.layout.block_count):
        yield from write_flush_read(block, 1)


def biggest(plan: Plan) -> Steps:
    yield from chunks(plan, Kind.WRITE, plan.largest)
    yield DRAIN
    yield [FLUSH]
    yield DRAIN
    yield from chunks(plan, Kind.READ, plan.largest)


def span(plan: Plan) -> Steps:
    """Two blocks over the end of the first extent of each region set, and over each border between region sets."""
    for region_set in plan.layout.region_sets:
        if region_set.extent_count > 1:
            yield from write_flush_read(region_set.first + region_set.blocks_per_extent - 1, 2)
    for region_set in plan.layout.region_sets[:-1]:
        yield from write_flush_read(region_set.end - 1, 2)


def balloon(plan: Plan) -> Steps:
    """From every block on, every size."""
    total = plan.layout.block_count
    for first in range(total):
        for blocks in range(1, min(plan.largest, total - first) + 1):
            yield from write_flush_read(first, blocks)


def dep(plan: Plan) -> Steps:
    """Reads and writes that wait for one another, block by block, with nothing waited for but at the end."""
    total = plan.layout.block_count
    for loop in range(DEPENDENT_LOOPS):
        step = []
        for number in range(DEPENDENT_OPERATIONS):
            kind = Kind.WRITE if plan.rng.random() < 0.5 else Kind.READ
            step.append(Operation(kind, (loop + number) % total, 1))
        yield [*step, FLUSH]
    yield DRAIN


def wfr(plan: Plan) -> Steps:
    """Write, flush and read back a random range of up to 1 MiB."""
    for _ in range(plan.count):
        yield from write_flush_read(*plan.some_blocks(plan.largest))


def dirty(plan: Plan) -> Steps:
    """Writes that nobody flushes."""
    for _ in range(plan.count):
        yield [write(plan.somewhere(1), 1)]
    yield DRAIN


def repair(plan: Plan) -> Steps:
    """Random requests with no flush among the last; what is in flight at the end stays so."""
    unflushed = min(plan.count, max(10, plan.count // 3))
    yield from mixed(10, 40)(Plan(plan.layout, plan.rng, plan.count - unflushed))
    yield from mixed(0, 60)(Plan(plan.layout, plan.rng, unflushed))


def unwritten(plan: Plan) -> Steps:
    """Ranges of which only the never written blocks may change, then a look at all."""
    for _ in range(plan.count):
        first, blocks = plan.some_blocks(RANDOM_BLOCKS_MAX)
        yield [Operation(Kind.WRITE_UNWRITTEN, first, blocks), read(first, blocks)]
    yield DRAIN
    yield [FLUSH]
    yield DRAIN
    yield from verify(plan)


@dataclass(frozen=True, slots=True)
class Workload:
    """A row of :data:`WORKLOADS`. ``depth``: requests in flight where the caller does not say; ``abrupt``: it leaves
    without a flush or a goodbye; ``goes_on``: errors are counted and survived."""

    steps: Callable[[Plan], Steps]
    line: str
    count: int = 1
    depth: int = 8
    timed: bool = False
    abrupt: bool = False
    goes_on: bool = False
    writes: bool = True


WORKLOADS: dict[str, Workload] = {
    "one": Workload(one, "write, read and flush one random block"),
    "generic": Workload(mixed(10, 40), "one request at a time: flush, write or read up to 10 blocks", 500, depth=1),
    "generic-read": Workload(mixed(10, 0), "the same without writes", 500, depth=1, writes=False),
    "demo": Workload(mixed(10, 40), "the same, many at once", 300, depth=64),
    "yolo": Workload(mixed(1, 50), "many at once; errors are counted and survived", 500, depth=64, goes_on=True),
    "fill": Workload(fill, "write every block, flush, verify"),
    "fast-fill": Workload(fast_fill, "write one random block of each extent, flush"),
    "verify": Workload(verify, "read every block and compare it with the journal", writes=False),
    "rand-verify": Workload(rand_verify, "the same in random order", writes=False),
    "rand-read": Workload(rand_read, "random reads for --time seconds, with rates", depth=1, timed=True, writes=False),
    "rand-write": Workload(rand_write, "random writes for --time seconds, with rates", depth=1, timed=True),
    "big": Workload(big, "write, flush and read every block by itself"),
    "biggest": Workload(biggest, "write and read everything with the largest requests"),
    "span": Workload(span, "write, flush and read across each border"),
    "balloon": Workload(balloon, "from every block on, every size (takes long: keep the disk small)"),
    "dep": Workload(dep, "requests that depend on one another, 200 at a time", depth=2000),
    "wfr": Workload(wfr, "write, flush and read random ranges of up to 1 MiB", 10),
    "dirty": Workload(dirty, "write without a flush and leave at once", 10, abrupt=True),
    "repair": Workload(repair, "random requests, and leave with some of them in flight", 10, depth=64, abrupt=True),
    "unwritten": Workload(unwritten, "write only what was never written (needs --blank)", 100),
}
