"""Mutated frames at a Downstairs that also serves a healthy Upstairs.

The suite runs a slice. The full run of 100,000 connections, by hand, from the project's folder (some ten minutes)::

    python tests/downstairs/downstairs_fuzz.py 100000 [SEED]

Each case is a connection with a correct dialogue (negotiation, then jobs and reconciliation steps of every kind) of
which some bytes are changed, cut out, doubled or put elsewhere. Two servers take turns: a read-only one, whose healthy
Upstairs reads beside the mutants all the time, and a read-write one, where the mutants take over from the healthy
Upstairs, which takes over in turn and checks that every flushed block is old or new and whole. Whatever comes, no
server may end, fail the healthy one, or keep memory.
"""

from __future__ import annotations

import contextlib
import logging
import random
import resource
import sys
import tempfile
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import trio
from downstairs_rig import (
    BLOCK,
    barrier,
    connected,
    contexts_of,
    definition,
    flush,
    hello,
    payload,
    promote,
    read,
    serving,
    write,
)

from crucible_emu.downstairs.server import DownstairsServer
from crucible_emu.integrity import open_blocks
from crucible_emu.region import Region
from crucible_emu.wire import encode
from crucible_emu.wire import messages as m

MUTANT = (UUID(int=1), UUID(int=2))
NOWHERE = m.SocketAddress("127.0.0.1", 1)
PATIENCE_S = 5.0
CASES_PER_CHECK = 50
MEMORY_GROWTH_MAX = 96 << 20
EXTENTS = 4


def dialogue(chance: random.Random, read_only: bool, generation: int) -> list[bytes]:
    """What a correct Upstairs might say, frame by frame."""
    ids = MUTANT
    job = chance.choice([1000, 0, 2**63])
    number = lambda: chance.choice([0, 1, 5, 31, 32, 2**32, 2**64 - 1])  # noqa: E731  # short, and used once a line
    extent = lambda: chance.randrange(EXTENTS + 2)  # noqa: E731
    deps = lambda: tuple(chance.choice([(), (job,), (job, job + 1), (999,)]))  # noqa: E731
    makers = [
        lambda: write(job, chance.randrange(40), chance.randrange(4), chance.randrange(256), deps(), ids=ids),
        lambda: write(job, chance.randrange(40), 1, 7, deps(), kind=m.WriteUnwritten, ids=ids),
        lambda: m.ReadRequest(*ids, job, deps(), chance.randrange(40), chance.choice([0, 1, 3, 2**40])),
        lambda: m.Flush(
            *ids, job, deps(), number(), number(), chance.choice([None, "s"]), chance.choice([None, extent()])
        ),
        lambda: m.Barrier(*ids, job, deps()),
        lambda: m.ExtentLiveClose(*ids, job, deps(), extent()),
        lambda: m.ExtentLiveFlushClose(*ids, job, deps(), extent(), number(), number()),
        lambda: m.ExtentLiveReopen(*ids, job, deps(), extent()),
        lambda: m.ExtentLiveRepair(*ids, job, deps(), extent(), 0, NOWHERE),
        lambda: m.ExtentLiveNoOp(*ids, job, deps()),
        lambda: m.ExtentClose(number(), extent()),
        lambda: m.ExtentReopen(number(), extent()),
        lambda: m.ExtentFlush(number(), extent(), 0, number(), number()),
        lambda: m.ExtentRepair(number(), extent(), 0, NOWHERE, (1, 2)),
        m.Ruok,
        lambda: m.Imok(),
    ]
    said: list[m.Message] = [hello(*ids, generation=generation, read_only=read_only), promote(*ids, generation)]
    said += [m.RegionInfoPlease(), chance.choice([m.ExtentVersionsPlease(), m.LastFlush(chance.choice([None, job]))])]
    for _ in range(chance.randrange(8)):
        said.append(chance.choice(makers)())  # type: ignore[operator]
        job += 1
    if chance.random() < 0.2:
        chance.shuffle(said)
    return [b"".join(encode(message)) for message in said]


def mutated(frames: list[bytes], chance: random.Random) -> bytes:
    """The frames as one stream with a few places changed; now and then none is."""
    kind = chance.randrange(8)
    if kind == 0:
        frames = [*frames, *chance.choices(frames, k=2)]
    found = bytearray(b"".join(frames))
    # Most mutants should get past the negotiation, which is the first 300 bytes or so.
    low = 0 if chance.random() < 0.3 else min(300, len(found) - 1)
    for _ in range(chance.randrange(4)):
        at = chance.randrange(low, len(found))
        if kind in (1, 2, 3):
            found[at] = chance.choice([0, 1, 255, chance.randrange(256)])
        elif kind == 4:
            del found[at : at + chance.randrange(1, 40)]
        elif kind == 5:
            found[at:at] = found[at : at + chance.randrange(1, 40)]
        elif kind == 6:
            found[at : at + 8] = chance.choice([2**64 - 1, 2**32, 100 << 20, 3]).to_bytes(8, "little")
        low = min(low, max(0, len(found) - 1))
        if not found:
            break
    return bytes(found[: chance.randrange(len(found) + 1)]) if kind == 7 else bytes(found)


async def one_case(server: DownstairsServer, data: bytes) -> None:
    """Say ``data`` on a connection of its own, hear whatever comes, leave."""
    stream = await trio.open_tcp_stream(server.address.host, server.address.port)
    with contextlib.suppress(trio.BrokenResourceError):
        async with stream:
            with trio.fail_after(PATIENCE_S):
                await stream.send_all(data)
                await stream.send_eof()
                while await stream.receive_some(1 << 16):
                    pass


async def check_read_write(server: DownstairsServer, generation: int) -> None:
    """The healthy Upstairs takes over: every extent opens, every block is whole, a write goes through."""
    async with connected(server) as upstairs:
        with trio.fail_after(PATIENCE_S):
            await upstairs.activate(generation)
            total = server.region.definition.total_blocks
            await upstairs.say(
                write(1, 3, 1, generation), read(2, 0, total, (1,)), flush(3, (1,), generation, generation)
            )
            await upstairs.hear(m.WriteAck)
            response = await upstairs.hear(m.ReadResponse)
            rows = np.frombuffer(response.data, np.uint8).reshape(total, BLOCK).copy()
            assert open_blocks(rows, response.blocks, None) is None
            assert bytes(rows[3]) == payload(1, generation)
            assert (await upstairs.hear(m.FlushAck)).result is None


async def read_beside(server: DownstairsServer, reads: list[int]) -> None:
    """The healthy reader of the read-only region, until cancelled."""
    async with connected(server) as upstairs:
        await upstairs.activate(0, read_only=True)
        job = 1000
        while True:
            await upstairs.say(read(job, 0, 8), barrier(job + 1, (job,)))
            with trio.fail_after(PATIENCE_S):
                response = await upstairs.hear(m.ReadResponse)
                await upstairs.hear(m.BarrierAck)
            assert response.data == payload(8, 9)
            reads.append(job)
            job += 2


async def settled(server: DownstairsServer, connections: int) -> None:
    """Wait until only the healthy connections are left and nothing runs."""
    with trio.fail_after(PATIENCE_S):
        while len(server._connections) > connections or not server.core.lane.idle:
            await trio.lowlevel.checkpoint()
    assert len(server.core._connections) == connections
    assert len(server.runner._outlets) == connections


def make_regions(directory: Path) -> tuple[Region, Region]:
    """A read-write region, and a read-only one of which extent 0 holds nines."""
    made = Region.create(directory / "ro", definition(extents=EXTENTS))
    made.write(np.arange(8), np.full((8, BLOCK), 9, np.uint8), contexts_of(payload(8, 9)))
    made.flush(1, 1)
    made.close()
    return Region.create(directory / "rw", definition(extents=EXTENTS)), Region.open(directory / "ro", read_only=True)


async def fuzz(cases: int, seed: int, directory: Path, report: Any = lambda _done: None) -> int:
    """Run ``cases`` connections; how often the healthy reader read meanwhile. Raises where a server fails."""
    chance = random.Random(seed)
    read_write, read_only = make_regions(directory)
    reads: list[int] = []
    generation = 2
    base = 0
    with read_write, read_only:
        async with serving(read_write) as one, serving(read_only) as two, trio.open_nursery() as nursery:
            nursery.start_soon(read_beside, two, reads)
            for case in range(cases):
                server = (one, two)[case % 2]
                await one_case(server, mutated(dialogue(chance, server is two, generation), chance))
                if case % CASES_PER_CHECK == CASES_PER_CHECK - 1 or case == cases - 1:
                    await settled(one, 0)
                    generation += 1
                    await check_read_write(one, generation)
                    await settled(one, 0)
                    generation += 1
                    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
                    base = base or grown
                    assert grown - base < MEMORY_GROWTH_MAX
                    report(case + 1)
            nursery.cancel_scope.cancel()
    return len(reads)


def main() -> None:
    cases = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(1 << 32)
    print(f"{cases} cases, seed {seed}")
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as directory:
        reads = trio.run(fuzz, cases, seed, Path(directory), lambda done: print(f"\r{done}", end="", flush=True))
    print(f"\nall survived; the healthy reader read {reads} times")


if __name__ == "__main__":
    main()
