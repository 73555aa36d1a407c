"""Reads past the process of a replica: the newest bytes, or none. Here all are in one process, but for the storm."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import trio
from disk_rig import (
    KEY,
    Batch,
    RegionSet,
    digests,
    do,
    failures,
    flush,
    make_regions,
    pattern,
    read,
    read_request,
    served_on_sockets,
    until,
    write,
    write_request,
)

from crucible_emu.blockio import Kind, Request
from crucible_emu.region import Region
from crucible_emu.region.layout import extent_path
from crucible_emu.upstairs.guest import Guest
from crucible_emu.upstairs.links import SingleReadsLink
from crucible_emu.upstairs.live_repair import LiveRepair
from crucible_emu.upstairs.states import Phase

ExpectLog = Callable[..., Any]
BLOCK, BLOCKS, PER_EXTENT = 512, 32, 8
pytestmark = pytest.mark.usefixtures("asks_again_soon")


def link(disk: Guest, client: int) -> SingleReadsLink:
    found = disk.upstairs.links[client]
    assert isinstance(found, SingleReadsLink)
    return found


def settled(disk: Guest) -> bool:
    return not any(disk.upstairs.core.jobs.changes_in_progress)


async def at_hand(disk: Guest, clients: tuple[int, ...] = (0, 1, 2)) -> None:
    """Read until each of these replicas is read past its process, and knows all of its blocks."""
    with trio.fail_after(30):
        while not all(link(disk, client).reads_at_hand for client in clients):
            for block in range(BLOCKS):
                await read(disk, block * BLOCK, BLOCK)
    for block in range(BLOCKS):
        await read(disk, block * BLOCK, BLOCK)
    await read(disk, 0, BLOCKS * BLOCK)
    await until(lambda: settled(disk))


async def all_past(disk: Guest, content: bytes) -> None:
    """Every block is read past the processes, one by one and together, and is what it must be."""
    await until(lambda: settled(disk))
    statistics = disk.upstairs.statistics
    before = statistics.reads_at_hand
    for block in range(BLOCKS):
        assert await read(disk, block * BLOCK, BLOCK) == content[block * BLOCK : (block + 1) * BLOCK]
    requests = [read_request(block * BLOCK, BLOCK) for block in range(BLOCKS)]
    batch = Batch(disk, requests)
    assert batch.pending == 0
    assert b"".join(bytes(request.buffer or b"") for request in requests) == content
    whole = Batch(disk, [read_request(0, BLOCKS * BLOCK)])
    assert whole.pending == 0 and whole.requests[0].buffer == content
    assert statistics.reads_at_hand == before + 2 * BLOCKS + 1


async def quiet(disk: Guest, servers: RegionSet) -> None:
    """Nothing is under way, on no replica."""
    jobs = disk.upstairs.core.jobs
    await until(lambda: not any(jobs.jobs_in_progress))
    await until(lambda: not any(member.region.flush_under_way for member in servers.members))


def destage(region: Region) -> None:
    work = region.begin_destage()
    work.run()
    region.finish_flush(work)


@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "encrypted"])
async def test_the_newest_bytes_wherever_they_are(tmp_path: Path, sockets: Path, key: str | None) -> None:
    """Never written, staged, staged again, flushed, in the journal, in the files, and staged over that."""
    paths = make_regions(tmp_path, encrypted=key is not None)
    content = bytearray(BLOCKS * BLOCK)
    async with served_on_sockets(paths, sockets) as servers, servers.disk(key=key) as disk:

        async def put(blocks: range, seed: int) -> None:
            data = [pattern(BLOCK, seed + block) for block in blocks]
            await do(disk, *(write_request(block * BLOCK, each) for block, each in zip(blocks, data)))
            for block, each in zip(blocks, data):
                content[block * BLOCK : (block + 1) * BLOCK] = each

        await at_hand(disk)
        await all_past(disk, content)
        await put(range(0, BLOCKS, 2), 1)
        await all_past(disk, content)
        await put(range(0, BLOCKS, 3), 100)
        await all_past(disk, content)
        await flush(disk)
        await all_past(disk, content)
        await quiet(disk, servers)
        for member in servers.members:
            destage(member.region)
        await all_past(disk, content)
        await put(range(5, 20), 200)
        await all_past(disk, content)
        found = servers.members[0].server.statistics()
        assert found["readers_past_this_process"] == 1
    assert len(digests(paths)) == 1 and [failures(path) for path in paths] == [[], [], []]


async def test_a_read_behind_a_write_that_nobody_has_acknowledged(tmp_path: Path, sockets: Path) -> None:
    """Race: the replica has not even received the write. The read of its block goes behind it; one of another block
    need not."""
    paths = make_regions(tmp_path)
    async with served_on_sockets(paths, sockets) as servers, servers.disk() as disk:
        await write(disk, 0, pattern(BLOCKS * BLOCK))
        await at_hand(disk)
        for seed in (2, 3):
            written = Batch(disk, [write_request(BLOCK, pattern(BLOCK, seed))])
            behind = Batch(disk, [read_request(BLOCK, BLOCK)])
            beside = Batch(disk, [read_request(2 * BLOCK, BLOCK)])
            out = memoryview(bytearray(BLOCK))
            across = Batch(disk, [read_request(0, 3 * BLOCK), read_request(2 * BLOCK, 5 * BLOCK)])
            assert not disk.read_singles([BLOCK], [out]) and disk.read_singles([2 * BLOCK], [out])
            assert (written.pending, behind.pending, beside.pending, across.pending) == (0, 1, 0, 1)
            (request,) = await behind.wait()
            assert request.buffer == pattern(BLOCK, seed)
            (request, past) = await across.wait()
            whole = pattern(BLOCKS * BLOCK)
            assert request.buffer == whole[:BLOCK] + pattern(BLOCK, seed) + whole[2 * BLOCK : 3 * BLOCK]
            assert past.buffer == whole[2 * BLOCK : 7 * BLOCK]
            assert beside.requests[0].buffer == pattern(BLOCKS * BLOCK)[2 * BLOCK : 3 * BLOCK]
            await until(lambda: settled(disk))


async def test_beside_a_live_repair_any_change_under_way_is_a_reason_to_ask(tmp_path: Path, sockets: Path) -> None:
    """Its jobs change whole extents, and do not stand where those of blocks do."""
    paths = make_regions(tmp_path)
    async with served_on_sockets(paths, sockets) as servers, servers.disk() as disk:
        core = disk.upstairs.core
        written = Batch(disk, [write_request(BLOCK, pattern(BLOCK))])
        assert core.settled(0, [2]) and not core.settled(0, [1, 2])
        core.repair = cast(LiveRepair, object())
        assert not core.settled(0, [2])
        core.repair = None
        await written.wait()
        await until(lambda: settled(disk))
        assert core.settled(0, [1, 2])


async def test_a_flush_under_way_is_no_reason_to_ask(tmp_path: Path, sockets: Path) -> None:
    paths = make_regions(tmp_path)
    async with served_on_sockets(paths, sockets) as servers, servers.disk() as disk:
        await write(disk, 0, pattern(BLOCKS * BLOCK))
        await at_hand(disk)
        flushed = Batch(disk, [Request(Kind.FLUSH)])
        found = Batch(disk, [read_request(0, BLOCK)])
        assert (flushed.pending, found.pending) == (1, 0)
        assert found.requests[0].buffer == pattern(BLOCKS * BLOCK)[:BLOCK]
        await flushed.wait()


async def test_who_was_superseded_reads_nothing_more(tmp_path: Path, sockets: Path, expect_log: ExpectLog) -> None:
    """Race: the first Upstairs still holds its grants when the second is told that it is active."""
    paths = make_regions(tmp_path)
    expect_log("another Upstairs took over")
    expect_log("disk disabled")
    async with served_on_sockets(paths, sockets) as servers, servers.disk() as disk:
        await write(disk, 0, pattern(BLOCKS * BLOCK))
        await flush(disk)
        await at_hand(disk)
        await flush(disk)
        epochs = [member.region.shared.epoch for member in servers.members if member.region.shared]
        links = [link(disk, client) for client in range(3)]
        out = [memoryview(bytearray(BLOCK))]
        assert all(each.read_singles([0], out) for each in links)
        async with servers.disk(2) as other:
            found = [member.region.shared.epoch for member in servers.members if member.region.shared]
            assert all(new > old for new, old in zip(found, epochs))
            assert [each.read_singles([0], out) for each in links] == [None, None, None]
            await at_hand(other)
            await all_past(other, pattern(BLOCKS * BLOCK))
            assert not any(each.reads_at_hand for each in links)


async def test_a_live_repair_ends_grants_and_new_ones_follow(
    tmp_path: Path, sockets: Path, expect_log: ExpectLog
) -> None:
    paths = make_regions(tmp_path)
    expect_log("connection ended")
    async with served_on_sockets(paths, sockets) as servers, servers.disk() as disk:
        core = disk.upstairs.core
        await write(disk, 0, pattern(BLOCKS * BLOCK))
        await at_hand(disk)
        shared = servers.members[0].region.shared
        assert shared is not None
        before = shared.epoch
        await servers.members[1].stop()
        await until(lambda: len(core.readers) == 2)
        core.can_replay = False  # as after a barrier
        await write(disk, 0, pattern(BLOCKS * BLOCK, 2))
        await until(lambda: not core.clients[1].state.accepts_io)
        assert await read(disk, 9 * BLOCK, BLOCK) == pattern(BLOCKS * BLOCK, 2)[9 * BLOCK : 10 * BLOCK]
        await servers.start(1, unix_path=str(sockets / "s1"), share=True)
        await until(lambda: all(client.state.phase is Phase.ACTIVE for client in core.clients))
        assert core.clients[1].live_repair_completed == 1
        assert shared.epoch > before  # the source closed its extents, too
        await at_hand(disk)
        await all_past(disk, pattern(BLOCKS * BLOCK, 2))
    assert len(digests(paths)) == 1


async def test_an_extent_that_is_closed_ends_the_grant(tmp_path: Path, sockets: Path) -> None:
    """Race: its file is another one before anybody has heard of that."""
    paths = make_regions(tmp_path)
    async with served_on_sockets(paths, sockets) as servers, servers.disk() as disk:
        await write(disk, 0, pattern(BLOCKS * BLOCK))
        await at_hand(disk)
        await flush(disk)
        await quiet(disk, servers)
        region, client = servers.members[1].region, link(disk, 1)
        region.close_extent(1)
        assert client.read_singles([PER_EXTENT], [memoryview(bytearray(BLOCK))]) is None
        assert not client.reads_at_hand
        region.reopen_extent(1)
        await at_hand(disk)
        await all_past(disk, pattern(BLOCKS * BLOCK))


async def test_a_downstairs_that_seems_to_have_stopped_is_not_read_past(tmp_path: Path, sockets: Path) -> None:
    paths = make_regions(tmp_path)
    async with served_on_sockets(paths, sockets) as servers, servers.disk() as disk:
        await write(disk, 0, pattern(BLOCKS * BLOCK))
        await at_hand(disk)
        runner = servers.members[0].server.runner
        runner.stall()
        waiting = Batch(disk, [read_request(0, BLOCK)])
        assert waiting.pending == 1 and not link(disk, 0).reads_at_hand
        runner.unstall()
        assert (await waiting.wait())[0].buffer == pattern(BLOCK)
        await at_hand(disk)


async def test_a_torn_row_is_read_the_ordinary_way_and_is_no_damage(tmp_path: Path, sockets: Path) -> None:
    """Race: the row is written while it is copied. It is whole again when the message arrives."""
    paths = make_regions(tmp_path)
    async with served_on_sockets(paths, sockets) as servers, servers.disk() as disk:
        await write(disk, 0, pattern(BLOCKS * BLOCK))
        await at_hand(disk)
        staging = servers.members[1].region._staging
        row = staging.rows[int(staging.row_of_block[PER_EXTENT])]
        assert staging.row_of_block[PER_EXTENT] != 0
        wanted = memoryview(pattern(BLOCKS * BLOCK))[PER_EXTENT * BLOCK :]
        for count in (1, 3):
            row[7] ^= 0x5A
            torn = Batch(disk, [read_request(PER_EXTENT * BLOCK, count * BLOCK)])
            row[7] ^= 0x5A
            assert torn.pending == 1
            (request,) = await torn.wait()
            assert request.buffer == wanted[: count * BLOCK]
        assert disk.upstairs.statistics.damaged_reads == 0


@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "encrypted"])
async def test_damage_on_the_medium_is_found_and_healed(
    tmp_path: Path, sockets: Path, expect_log: ExpectLog, key: str | None
) -> None:
    paths = make_regions(tmp_path, encrypted=key is not None)
    async with served_on_sockets(paths, sockets) as servers, servers.disk(key=key) as disk:
        await write(disk, 0, pattern(BLOCKS * BLOCK))
        await at_hand(disk)
        await flush(disk)
        await quiet(disk, servers)
        destage(servers.members[1].region)
        file = os.open(extent_path(paths[1], 1), os.O_RDWR)
        os.pwrite(file, b"spoilt", 5)
        os.close(file)
        expect_log("damaged block client=1")
        expect_log("operation failed on a replica client=1 job=Read")
        expect_log("healed block client=1 block=8")
        wanted = pattern(BLOCKS * BLOCK)[PER_EXTENT * BLOCK : (PER_EXTENT + 1) * BLOCK]
        assert await read(disk, PER_EXTENT * BLOCK, BLOCK) == wanted
        assert disk.upstairs.statistics.damaged_reads >= 1
        await until(lambda: disk.upstairs.statistics.healed_blocks > 0 and disk.healer.idle)
        await all_past(disk, pattern(BLOCKS * BLOCK))


async def test_replicas_that_do_not_share_are_asked_for_every_block(tmp_path: Path, sockets: Path) -> None:
    """No socket beside theirs, as with any other program: everything goes the way of messages."""
    paths = make_regions(tmp_path)
    async with served_on_sockets(paths, sockets, share=False) as servers, servers.disk() as disk:
        await write(disk, 0, pattern(BLOCKS * BLOCK))
        for block in range(BLOCKS):
            assert await read(disk, block * BLOCK, BLOCK) == pattern(BLOCKS * BLOCK)[block * BLOCK :][:BLOCK]
        assert not any(link(disk, client).reads_at_hand for client in range(3))
        assert disk.upstairs.statistics.reads_at_hand == 0
        assert not any(name.endswith(".reads") for name in os.listdir(sockets))


async def test_no_descriptor_and_no_socket_is_left(tmp_path: Path, sockets: Path) -> None:
    paths = make_regions(tmp_path)

    async def use() -> None:
        async with served_on_sockets(paths, sockets) as servers:
            for generation in (1, 2):
                async with servers.disk(generation + uses) as disk:
                    await write(disk, 0, pattern(BLOCKS * BLOCK))
                    await flush(disk)
                    await at_hand(disk)
                    await all_past(disk, pattern(BLOCKS * BLOCK))

    uses = 0
    await use()
    gc.collect()  # memory that was mapped, and the descriptor with it, goes with the last who knows of it
    before = sorted(os.listdir("/proc/self/fd"))
    uses = 2
    await use()
    gc.collect()
    assert sorted(os.listdir("/proc/self/fd")) == before
    assert not os.listdir(sockets)
