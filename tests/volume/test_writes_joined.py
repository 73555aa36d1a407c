"""Writes that would only be held back are sent as one job, over real sockets: nothing of them is lost or late."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from disk_rig import (
    KEY,
    Batch,
    digests,
    everything,
    failures,
    make_regions,
    pattern,
    read_request,
    region_set,
    until,
    write_request,
)

from crucible_emu.blockio import Kind, Request
from crucible_emu.upstairs.guest import Guest
from crucible_emu.upstairs.jobs import Job
from crucible_emu.upstairs.states import Phase

ExpectLog = Callable[..., Any]
BLOCK, BLOCKS = 512, 32


def put(disk: Guest, block: int, seed: int) -> bytes:
    """One write, by itself, as a guest that waits for each sends them."""
    data = pattern(BLOCK, seed)
    written = Batch(disk, [write_request(block * BLOCK, data)])
    assert written.pending == 0, "a write is acknowledged when it is admitted"
    return data


def writes(disk: Guest) -> list[Job]:
    return [job for job in disk.upstairs.core.jobs if job.blocks is None and job.size_bytes]


@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "encrypted"])
async def test_writes_that_would_be_held_back_become_one_job(tmp_path: Path, key: str | None) -> None:
    paths = make_regions(tmp_path, encrypted=key is not None)
    async with region_set(paths) as servers, servers.disk(key=key) as disk:
        content = bytearray(BLOCKS * BLOCK)
        for seed, block in enumerate([4, 5, 9, 30, 5, 6]):
            content[block * BLOCK : (block + 1) * BLOCK] = put(disk, block, seed)
        jobs = writes(disk)
        assert [job.starts for job in jobs] == [[4, 5, 9, 30], [5, 6]]
        assert [job.gathered is None for job in jobs] == [True, False]
        assert await everything(disk) == content
        await until(lambda: not any(disk.upstairs.core.jobs.jobs_in_progress))
        assert all(job.gathered is None for job in jobs)
    assert len(digests(paths)) == 1 and [failures(path) for path in paths] == [[], [], []]


async def test_an_open_job_is_sent_though_nobody_asks_for_it(tmp_path: Path) -> None:
    paths = make_regions(tmp_path)
    async with region_set(paths) as servers, servers.disk() as disk:
        wanted = [put(disk, block, block) for block in range(6)]
        assert writes(disk)[-1].gathered is not None
        await until(lambda: all(member.region.statistics().blocks_written == 6 for member in servers.members))
        assert (await everything(disk))[: 6 * BLOCK] == b"".join(wanted)


async def test_the_guest_may_use_its_memory_again(tmp_path: Path) -> None:
    """Race: the memory has other data before the job is sent."""
    paths = make_regions(tmp_path)
    async with region_set(paths) as servers, servers.disk() as disk:
        memory = bytearray(BLOCK)
        for block in range(5):
            memory[:] = pattern(BLOCK, block)
            assert disk.write_singles([block * BLOCK], [memoryview(memory)])
        memory[:] = bytes(BLOCK)
        assert (await everything(disk))[: 5 * BLOCK] == b"".join(pattern(BLOCK, block) for block in range(5))


async def test_a_flush_covers_an_open_job(tmp_path: Path) -> None:
    """Race: flush, read and write of a block that is in a job which was not sent."""
    paths = make_regions(tmp_path)
    async with region_set(paths) as servers, servers.disk() as disk:
        for block in range(4):
            put(disk, block, block)
        flushed = Batch(disk, [Request(Kind.FLUSH)])
        later = put(disk, 2, 99)
        found = Batch(disk, [read_request(BLOCK, 3 * BLOCK)])
        assert (flushed.pending, found.pending) == (1, 1)
        kinds = [(job.kind.value, job.starts) for job in disk.upstairs.core.jobs]
        assert kinds[:2] == [("Write", [0, 1, 2, 3]), ("Flush", [0])]
        (request,) = await found.wait()
        assert request.buffer == pattern(BLOCK, 1) + later + pattern(BLOCK, 3)
        await flushed.wait()


@pytest.mark.parametrize("seed", range(6))
async def test_a_replica_is_lost_while_a_job_is_open(tmp_path: Path, seed: int, expect_log: ExpectLog) -> None:
    """Race: the connection ends between the writes that are one job; what was acknowledged is on all three again."""
    paths = make_regions(tmp_path)
    draw = random.Random(seed)
    expect_log("connection ended", at_least=0)
    expect_log("cannot connect|replica is too far behind", at_least=0)
    async with region_set(paths) as servers, servers.disk() as disk:
        content = bytearray(BLOCKS * BLOCK)
        core = disk.upstairs.core
        for turn in range(12):
            for number in range(draw.randint(1, 12)):
                block = draw.randrange(BLOCKS)
                content[block * BLOCK : (block + 1) * BLOCK] = put(disk, block, turn * 100 + number)
            if turn % 4 == 1:
                await servers.members[1].stop()
            elif turn % 4 == 3:
                await until(lambda: core.clients[1].state.phase is not Phase.ACTIVE)  # it may not have been noticed yet
                await servers.start(1, port=servers.members[1].port)
                await until(lambda: all(client.state.phase is Phase.ACTIVE for client in core.clients))
            elif draw.random() < 0.5:
                await disk.flush()
        assert await everything(disk) == content
    assert len(digests(paths)) == 1 and [failures(path) for path in paths] == [[], [], []]
