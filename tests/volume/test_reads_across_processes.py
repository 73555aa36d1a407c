"""Three Downstairs processes, one Upstairs here: a guest overwrites and reads the same blocks, one by one and many at
once, while they are flushed, carried from the journal to the extents, and one Downstairs is killed.

A read must give what was on the disk when it was submitted, whichever way it takes; where a replica was lost meanwhile
and another one asked instead, it may be what was written since. ``READS_TURNS=20000`` makes it a long run; the default
is a slice of a few seconds.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from disk_rig import DISK, KEY, Batch, digests, failures, make_regions, read_request, until, write_request

from crucible_emu.blockio import Kind, Request
from crucible_emu.region.directory import JOURNAL_NAME
from crucible_emu.upstairs import asking
from crucible_emu.upstairs.driver import Upstairs
from crucible_emu.upstairs.guest import Guest
from crucible_emu.upstairs.states import Phase
from crucible_emu.volume.construction import build
from crucible_emu.volume.in_service import in_service
from crucible_emu.volume.vcr import CrucibleOpts, RegionRequest

ExpectLog = Callable[..., Any]
BLOCK, PER_EXTENT, EXTENTS = 4096, 64, 6
BLOCKS = PER_EXTENT * EXTENTS
TURNS = int(os.environ.get("READS_TURNS", "300"))
BATCHES_MAX = 6
END_S = 30


class Processes:
    """A Downstairs process for each of three regions, each behind a unix socket."""

    def __init__(self, folder: Path, *, encrypted: bool) -> None:
        self.sockets = Path(tempfile.mkdtemp(prefix="reads-"))
        self.encrypted = encrypted
        self.paths = make_regions(
            folder, block_size=BLOCK, blocks_per_extent=PER_EXTENT, extent_count=EXTENTS, encrypted=encrypted
        )
        self.running = [self.begin(client) for client in range(3)]
        for process in self.running:
            self.ready(process)

    def begin(self, client: int) -> subprocess.Popen[str]:
        words = [sys.executable, "-m", "crucible_emu", "downstairs", "run", str(self.paths[client]), "--json"]
        words += ["--port", "0", "--repair-port", "0", "--unix", str(self.sockets / f"s{client}")]
        return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)

    @staticmethod
    def ready(process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["ready"]

    def end(self, client: int, which: signal.Signals) -> None:
        process = self.running[client]
        process.send_signal(which)
        assert process.stdout is not None
        with process.stdout:
            process.wait(END_S)

    def upstairs(self) -> Upstairs:
        opts = CrucibleOpts(
            id=DISK,
            target=tuple(str(self.sockets / f"s{client}") for client in range(3)),
            key=KEY if self.encrypted else None,
        )
        request = RegionRequest(
            type="region",
            block_size=BLOCK,
            blocks_per_extent=PER_EXTENT,
            extent_count=EXTENTS,
            opts=opts,
            gen=1,
        )
        return build(request, reconnect_delay_s=0.05)


@pytest.fixture(params=[False, True], ids=["plain", "encrypted"])
def processes(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Processes]:
    made = Processes(tmp_path, encrypted=request.param)
    yield made
    for process in made.running:
        process.kill()
        process.wait(END_S)
        assert process.stdout is not None
        process.stdout.close()
    for name in os.listdir(made.sockets):
        os.unlink(made.sockets / name)
    made.sockets.rmdir()


class Overwriting:
    """A guest that writes, reads and flushes at random, many at a time, and knows what each read must give."""

    def __init__(self, disk: Guest, seed: int) -> None:
        self.disk = disk
        self.random = random.Random(seed)
        self.history = [[bytes(BLOCK)] for _ in range(BLOCKS)]
        self.under_way: list[tuple[Batch, list[list[int]], list[int]]] = []
        self.written = 0

    @property
    def content(self) -> list[bytes]:
        return [versions[-1] for versions in self.history]

    async def turn(self) -> None:
        """Some requests in one batch, most of one block; the oldest batches are waited for and compared."""
        self._read_at_once()
        draw = self.random
        requests: list[Request] = []
        versions: list[list[int]] = []
        hot = draw.randrange(BLOCKS - 8)
        kind = draw.choice(["write", "read", "read", "both"])
        for _ in range(draw.choice([1, 1, 4, 16, 40])):
            block = draw.randrange(hot, hot + 8) if draw.random() < 0.5 else draw.randrange(BLOCKS)
            if kind == "write" or (kind == "both" and draw.random() < 0.5):
                count = 1 if draw.random() < 0.95 else draw.randint(2, min(100, BLOCKS - block) + 1)
                block = min(block, BLOCKS - count)
                requests.append(write_request(block * BLOCK, self._new_content(block, count)))
            else:
                count = 1 if draw.random() < 0.8 else draw.randint(2, min(100, BLOCKS - block) + 1)
                block = min(block, BLOCKS - count)
                requests.append(read_request(block * BLOCK, count * BLOCK))
            versions.append([len(self.history[each]) - 1 for each in range(block, block + count)])
        if draw.random() < 0.05:
            requests.append(Request(Kind.FLUSH))
            versions.append([])
        readers = list(self.disk.upstairs.core.readers)
        self.under_way.append((Batch(self.disk, requests), versions, readers))
        self._read_at_once()
        await self.wait(draw.choice([0, 0, 2, BATCHES_MAX]))

    def _new_content(self, block: int, count: int) -> bytes:
        for each in range(block, block + count):
            self.written += 1
            self.history[each].append(self.written.to_bytes(8, "little") * (BLOCK // 8))
        return b"".join(self.history[each][-1] for each in range(block, block + count))

    def _read_at_once(self) -> None:
        """As the door does; where it succeeds, it is the newest, whatever is under way."""
        blocks = self.random.sample(range(BLOCKS), self.random.choice([1, 8]))
        outs = [memoryview(bytearray(BLOCK)) for _ in blocks]
        if self.disk.read_singles([block * BLOCK for block in blocks], outs):
            assert outs == [self.history[block][-1] for block in blocks]

    async def wait(self, batches_max: int) -> None:
        while len(self.under_way) > batches_max:
            batch, versions, readers = self.under_way.pop(0)
            for request, submitted in zip(await batch.wait(), versions):
                assert request.error is None
                if request.kind is not Kind.READ:
                    continue
                assert request.buffer is not None
                for index, version in enumerate(submitted):
                    since = self.history[request.offset // BLOCK + index][version:]
                    if readers == self.disk.upstairs.core.readers:
                        del since[1:]
                    found = request.buffer[index * BLOCK : (index + 1) * BLOCK]
                    assert found in since, f"block {index} of a read at {request.offset} is not what was there"


async def carried_out(processes: Processes) -> None:
    """No replica has a journal: a while after the last flush, all is in the extents."""
    await until(lambda: not any(os.path.exists(path / JOURNAL_NAME) for path in processes.paths))


async def test_overwritten_blocks_are_read_rightly(
    processes: Processes, expect_log: ExpectLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "ASK_AGAIN_S", 0.05)
    expect_log("connection ended client=1")
    expect_log("cannot connect|replica is too far behind", at_least=0)
    seed = 0 if os.environ.get("CI") else random.randrange(2**32)
    print(f"seed {seed}")
    async with in_service(processes.upstairs(), timeout_s=30) as disk:
        guest, core = Overwriting(disk, seed), disk.upstairs.core
        for number in range(TURNS):
            await guest.turn()
            if number == TURNS // 3:
                await guest.wait(0)
                await disk.flush()
                await carried_out(processes)
            if number == TURNS // 2:
                processes.end(1, signal.SIGKILL)  # with batches under way
        before = disk.upstairs.statistics.snapshot().counters
        assert before["reads_at_hand"] > 0 and before["writes_by_reference"] > 0
        processes.running[1] = processes.begin(1)
        await trio.to_thread.run_sync(processes.ready, processes.running[1])
        await until(lambda: all(client.state.phase is Phase.ACTIVE for client in core.clients))
        for _ in range(TURNS // 4):
            await guest.turn()
        await guest.wait(0)
        found = disk.upstairs.statistics.snapshot().counters
        assert all(found[name] > before[name] for name in ("reads_at_hand", "writes_by_reference"))
        assert disk.upstairs.statistics.damaged_reads == 0
        everything = Batch(disk, [read_request(block * BLOCK, BLOCK) for block in range(BLOCKS)])
        assert [request.buffer for request in await everything.wait()] == guest.content
    for client in range(3):
        processes.end(client, signal.SIGTERM)
        assert processes.running[client].returncode == 0
    assert len(digests(processes.paths)) == 1
    assert [failures(path) for path in processes.paths] == [[], [], []]
