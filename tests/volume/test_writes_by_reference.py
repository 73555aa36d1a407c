"""Large writes whose data stay where they are: every replica has them, and nobody changes them too early. Here all are
in one process; ``test_reads_across_processes`` storms real ones."""

from __future__ import annotations

import gc
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from disk_rig import (
    KEY,
    digests,
    do,
    everything,
    failures,
    flush,
    make_regions,
    pattern,
    region_set,
    served_on_sockets,
    until,
    write,
    write_request,
)

from crucible_emu.blockio import Kind, Request
from crucible_emu.downstairs import read_grants_service
from crucible_emu.upstairs.guest import Guest
from crucible_emu.upstairs.row_memory import LARGE_BYTES
from crucible_emu.upstairs.states import Phase
from crucible_emu.volume import local_disk

ExpectLog = Callable[..., Any]
BLOCK, PER_EXTENT, EXTENTS = 4096, 32, 4
SIZE = BLOCK * PER_EXTENT * EXTENTS
pytestmark = pytest.mark.usefixtures("asks_again_soon")


def regions(folder: Path, *, encrypted: bool = False) -> list[Path]:
    return make_regions(
        folder, block_size=BLOCK, blocks_per_extent=PER_EXTENT, extent_count=EXTENTS, encrypted=encrypted
    )


def referred(disk: Guest) -> int:
    return disk.upstairs.statistics.writes_by_reference


async def by_reference(disk: Guest, replicas: int = 3) -> None:
    """Write until what is written goes to so many replicas without its data."""
    with trio.fail_after(30):
        while True:
            before = referred(disk)
            await write(disk, 0, pattern(LARGE_BYTES))
            await settled(disk)
            if referred(disk) == before + replicas:
                return


async def settled(disk: Guest) -> None:
    await until(lambda: not any(disk.upstairs.core.jobs.jobs_in_progress))


async def only_the_second_has_not_answered(disk: Guest) -> None:
    jobs = disk.upstairs.core.jobs
    await until(lambda: [bool(count) for count in jobs.jobs_in_progress] == [False, True, False])


@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "encrypted"])
async def test_what_was_referred_to_is_on_all_replicas(tmp_path: Path, sockets: Path, key: str | None) -> None:
    paths = regions(tmp_path, encrypted=key is not None)
    async with served_on_sockets(paths, sockets) as servers, servers.disk(key=key) as disk:
        await by_reference(disk)
        before, content = referred(disk), bytearray(pattern(LARGE_BYTES) + bytes(SIZE - LARGE_BYTES))
        for turn in range(20):
            offset, length = turn % 5 * 3 * BLOCK, LARGE_BYTES + turn % 4 * BLOCK
            content[offset : offset + length] = pattern(length, turn)
            await write(disk, offset, pattern(length, turn))
            if turn % 7 == 3:
                await flush(disk)
        assert await everything(disk) == content
        assert referred(disk) == before + 20 * 3
    assert len(digests(paths)) == 1 and [failures(path) for path in paths] == [[], [], []]


async def test_who_came_another_way_is_sent_the_data(tmp_path: Path, sockets: Path) -> None:
    paths = regions(tmp_path)
    async with served_on_sockets(paths, sockets, clients=(0, 2)) as servers, servers.disk() as disk:
        await by_reference(disk, replicas=2)
        await write(disk, 5 * BLOCK, pattern(LARGE_BYTES, 2))
        assert await everything(disk) == pattern(LARGE_BYTES)[: 5 * BLOCK] + pattern(LARGE_BYTES, 2) + bytes(
            SIZE - LARGE_BYTES - 5 * BLOCK
        )
    assert len(digests(paths)) == 1


async def put_in_place(disk: Guest, offset: int, data: bytes) -> bool:
    """Write from the disk's own memory, as a door does; whether there was such."""
    memory = disk.payload_memory(len(data))
    if memory is None:
        return False
    memory[:] = data
    await do(disk, Request(Kind.WRITE, offset, len(data), memory))
    return True


async def test_what_lies_in_the_disks_own_memory_is_not_copied(tmp_path: Path, sockets: Path) -> None:
    paths = regions(tmp_path)
    async with served_on_sockets(paths, sockets) as servers, servers.disk() as disk:
        assert disk.payload_memory(LARGE_BYTES - 1) is None
        await by_reference(disk)
        before = referred(disk)
        for turn in range(5):
            assert await put_in_place(disk, turn * BLOCK, pattern(LARGE_BYTES, turn))
        assert referred(disk) == before + 5 * 3
        memory = disk.payload_memory(LARGE_BYTES)
        assert memory is not None
        memory[:] = pattern(LARGE_BYTES, 9)
        both = [Request(Kind.WRITE, 0, LARGE_BYTES, memory), write_request(LARGE_BYTES, pattern(BLOCK, 10))]
        await do(disk, *both)  # as one train, which is a copy
        wanted = pattern(LARGE_BYTES, 9) + pattern(BLOCK, 10) + pattern(LARGE_BYTES, 4)[-3 * BLOCK :]
        assert await everything(disk) == wanted + bytes(SIZE - len(wanted))
    assert len(digests(paths)) == 1 and [failures(path) for path in paths] == [[], [], []]


@pytest.mark.parametrize("why", ["encrypted", "over TCP", "in this process"])
async def test_where_data_are_copied_anyway_any_memory_is_as_good(
    tmp_path: Path, sockets: Path, why: str, fresh_disk: Callable[..., Path]
) -> None:
    if why == "encrypted":
        paths = regions(tmp_path, encrypted=True)
        async with served_on_sockets(paths, sockets) as servers, servers.disk(key=KEY) as disk:
            assert disk.payload_memory(LARGE_BYTES) is None
    elif why == "over TCP":
        async with region_set(regions(tmp_path)) as servers, servers.disk() as disk:
            assert disk.payload_memory(LARGE_BYTES) is None
    else:
        async with local_disk.open_disk(fresh_disk()) as disk:
            assert disk.payload_memory(LARGE_BYTES) is None


async def test_where_nobody_looks_nothing_is_referred_to(tmp_path: Path, sockets: Path) -> None:
    paths = regions(tmp_path)
    async with served_on_sockets(paths, sockets, share=False) as servers, servers.disk() as disk:
        for turn in range(5):
            await write(disk, 0, pattern(LARGE_BYTES, turn))
            await settled(disk)
        assert referred(disk) == 0 and await everything(disk) == pattern(LARGE_BYTES, 4) + bytes(SIZE - LARGE_BYTES)


async def test_memory_stays_as_it_is_while_a_replica_that_was_lost_may_look(
    tmp_path: Path, sockets: Path, expect_log: ExpectLog
) -> None:
    """Race: the connection is gone, the disk goes on, and the Downstairs still has the write before it."""
    expect_log("connection ended client=1")
    paths = regions(tmp_path)
    async with served_on_sockets(paths, sockets) as servers, servers.disk() as disk:
        await by_reference(disk)
        await flush(disk)
        memory, lost = disk.upstairs.row_memory, servers.members[1].server
        lost.runner.stall()
        await write(disk, 0, pattern(LARGE_BYTES, 2))
        core = disk.upstairs.core
        await only_the_second_has_not_answered(disk)
        gc.collect()
        assert memory.shared_file is not None
        lost.drop_connections()
        await until(lambda: disk.upstairs.links[1] is None)
        held = [rows for _, each in memory._held for rows in each]
        assert [bytes(rows) for rows in held] == [pattern(LARGE_BYTES, 2)]
        core.can_replay = False  # it will be repaired, and the others go on without it
        for turn in range(3, 12):
            await write(disk, 0, pattern(LARGE_BYTES, turn))
        assert [bytes(rows) for rows in held] == [pattern(LARGE_BYTES, 2)]
        del held
        lost.runner.unstall()
        await until(lambda: all(client.state.phase is Phase.ACTIVE for client in core.clients))
        gc.collect()
        await by_reference(disk)
        assert not memory._held
        assert await everything(disk) == pattern(LARGE_BYTES) + bytes(SIZE - LARGE_BYTES)
    assert len(digests(paths)) == 1


async def test_a_replica_that_comes_back_is_sent_again_what_it_missed(
    tmp_path: Path, sockets: Path, expect_log: ExpectLog
) -> None:
    """Race: a Downstairs ends with writes before it that refer to memory; the next connection knows none yet."""
    expect_log("connection ended client=1")
    paths = regions(tmp_path)
    async with served_on_sockets(paths, sockets) as servers, servers.disk() as disk:
        await by_reference(disk)
        servers.members[1].server.runner.stall()
        for turn in range(2, 6):
            await write(disk, turn * BLOCK, pattern(LARGE_BYTES, turn))
        await servers.members[1].stop()
        await until(lambda: disk.upstairs.links[1] is None)
        await servers.start(1, unix_path=str(sockets / "s1"), share=True)
        core = disk.upstairs.core
        await until(lambda: all(client.state.phase is Phase.ACTIVE for client in core.clients))
        await settled(disk)
        assert core.clients[1].live_repair_completed == 0
        found = await everything(disk)
        await by_reference(disk)
        assert found[5 * BLOCK :] == pattern(LARGE_BYTES, 5) + bytes(SIZE - LARGE_BYTES - 5 * BLOCK)
    assert len(digests(paths)) == 1


async def test_a_downstairs_that_speaks_where_it_should_not_is_shown_nothing_more(
    tmp_path: Path, sockets: Path, expect_log: ExpectLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it may look into stays as it is."""
    expect_log("no writes by reference: it broke the protocol", at_least=3)
    peers: list[socket.socket] = []
    monkeypatch.setattr(read_grants_service, "close_with", lambda _, fd: peers.append(socket.socket(fileno=fd)))
    paths = regions(tmp_path)
    async with served_on_sockets(paths, sockets) as servers, servers.disk() as disk:
        await by_reference(disk)
        servers.members[1].server.runner.stall()
        await write(disk, 0, pattern(LARGE_BYTES, 2))
        await only_the_second_has_not_answered(disk)
        for peer in peers:
            peer.send(b"!")
        memory = disk.upstairs.row_memory
        await until(lambda: bool(memory._held))
        assert [bytes(rows) for _, each in memory._held for rows in each] == [pattern(LARGE_BYTES, 2)]
        before = referred(disk)
        servers.members[1].server.runner.unstall()
        await write(disk, 0, pattern(LARGE_BYTES, 3))
        assert await everything(disk) == pattern(LARGE_BYTES, 3) + bytes(SIZE - LARGE_BYTES)
        assert referred(disk) == before
        for peer in peers:
            peer.close()
    assert len(digests(paths)) == 1
