"""Mutated bytes against a server that also serves a healthy client.

The suite runs a slice. The full run of 100,000 cases, by hand, from the project's folder (about ten minutes)::

    python tests/nbd/nbd_fuzz.py 100000 [SEED]

Each case is a connection: a correct dialogue (handshake and requests of every kind) of which some bytes are changed,
cut out, doubled or put elsewhere. Whatever comes, the server must neither fail nor keep memory, and the healthy client
must read back what it wrote.
"""

from __future__ import annotations

import random
import resource
import sys
from pathlib import Path

import trio
from nbd_door import Door, door
from nbd_plain_client import BASE, DEPTH, PlainClient, client_flags, contexts, go, option, request

from crucible_emu.blockio_memory import MemoryDevice
from crucible_emu.nbd import Export
from crucible_emu.nbd import protocol as p

C = p.Command
SIZE = 1 << 20
OPTIONS = [
    option(p.Option.LIST),
    option(p.Option.STRUCTURED_REPLY),
    option(99, b"abc"),
    contexts("fuzzed", [BASE, DEPTH]),
    contexts("fuzzed", ["base:", "qemu:"], p.Option.LIST_META_CONTEXT),
    go("fuzzed", [0, 1, 2, 3], p.Option.INFO),
    go("none"),
]
PATIENCE_S = 5
CASES_PER_CHECK = 100
MEMORY_GROWTH_MAX = 64 << 20


def dialogue(chance: random.Random) -> bytes:
    """What a correct client might say, in one go."""
    said = [client_flags(chance.choice([0, 1, 2, 3]))]
    said += chance.sample(OPTIONS, chance.randrange(len(OPTIONS) + 1))
    said.append(go("fuzzed") if chance.random() < 0.8 else option(p.Option.EXPORT_NAME, b"fuzzed"))
    for cookie in range(chance.randrange(12)):
        command = chance.choice(list(C)[:2] + list(C)[3:])
        length = chance.choice([0, 1, 512, 4096, 65536, 100_000])
        data = bytes(length) if command == C.WRITE else b""
        flags = chance.choice([0, 0, 0, 1, 2, 4, 8, 16])
        said.append(request(command, chance.randrange(SIZE), length, cookie=cookie, flags=flags, data=data))
    said.append(request(C.DISC, cookie=0) if chance.random() < 0.5 else b"")
    return b"".join(said)


def mutated(data: bytes, chance: random.Random) -> bytes:
    """``data`` with a few places changed."""
    found = bytearray(data)
    for _ in range(chance.choice([0, 1, 1, 2, 5])):
        at = chance.randrange(len(found) + 1)
        span = chance.choice([1, 1, 2, 4, 8, 28])
        match chance.randrange(5):
            case 0:
                found[at : at + span] = chance.randbytes(span)
            case 1:
                del found[at : at + span]
            case 2:
                found[at:at] = chance.randbytes(span)
            case 3:
                found[at:at] = found[at : at + span]
            case _:
                found[at : at + 4] = chance.choice([b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\1"])
    return bytes(found)


async def attack(here: Door, data: bytes, chance: random.Random) -> None:
    """One connection that says ``data`` and leaves; replies are read, or not."""
    client = here.knock()
    try:
        with trio.move_on_after(PATIENCE_S) as patience:
            async with trio.open_nursery() as nursery:
                if chance.random() < 0.8:
                    nursery.start_soon(_listen, client)
                await client.stream.send_all(data)
                if chance.random() < 0.5:
                    await client.stream.send_eof()  # type: ignore[attr-defined]
                nursery.cancel_scope.cancel()
        if patience.cancelled_caught:
            raise TimeoutError(f"the server took nothing for {PATIENCE_S} s: {data[:200]!r}")
    except* (trio.BrokenResourceError, trio.ClosedResourceError):
        pass
    finally:
        client.stream.socket.close()  # type: ignore[attr-defined]
        here.streams.remove(client.stream)  # type: ignore[arg-type]


async def _listen(client: PlainClient) -> None:
    while await client.stream.receive_some(65536):
        pass


async def fuzz(cases: int, seed: int) -> None:
    """Run ``cases``; raises when the server fails, the healthy client reads something else, or memory grows."""
    chance = random.Random(seed)
    exports = {"fuzzed": Export(MemoryDevice(SIZE, 512)), "healthy": Export(MemoryDevice(SIZE, 512))}
    async with door(exports) as here:
        healthy = await here.connect("healthy")
        before = 0
        for case in range(cases):
            await attack(here, mutated(dialogue(chance), chance), chance)
            if case % CASES_PER_CHECK == 0:
                await check_health(healthy, chance)
                used = resident_bytes()
                if case == CASES_PER_CHECK:
                    before = used
                elif before and used > before + MEMORY_GROWTH_MAX:
                    raise MemoryError(f"memory grew from {before} to {used} bytes in {case} cases")
        await check_health(healthy, chance)
        while here.server.statistics.connections_open > 1:
            await trio.testing.wait_all_tasks_blocked()


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


async def check_health(healthy: PlainClient, chance: random.Random) -> None:
    offset, data = chance.randrange(SIZE - 4096), chance.randbytes(4096)
    await healthy.write(offset, data)
    if await healthy.read(offset, 4096) != data:
        raise AssertionError("the healthy client read something else than it wrote")


if __name__ == "__main__":
    count, start = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(1 << 32)
    print(f"{count} cases, seed {start}")
    trio.run(fuzz, count, start)
    print("done: the server took all of them")
