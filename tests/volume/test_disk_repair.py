"""Replicas that come back, fall behind, are repaired or replaced while the disk is in use."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from disk_rig import (
    KEY,
    Batch,
    damage,
    digests,
    everything,
    failures,
    flush,
    make_regions,
    pattern,
    read,
    read_request,
    region_set,
    until,
    write,
    write_request,
)

from crucible_emu import errors
from crucible_emu.blockio import Kind, Request
from crucible_emu.downstairs.local import LocalDownstairs
from crucible_emu.region import Region
from crucible_emu.upstairs.guest import Guest
from crucible_emu.upstairs.local_link import LocalConnector
from crucible_emu.upstairs.replacement import ReplaceResult
from crucible_emu.upstairs.states import Phase
from crucible_emu.volume.local_disk import open_disk, region_path

Fresh = Callable[..., Path]
ExpectLog = Callable[..., Any]
SHAPES = pytest.mark.parametrize(
    ("block_size", "extent_count", "encrypted"),
    [(512, 4, False), (512, 4, True), (4096, 6, False), (32768, 3, True), (512, 1, False)],
)


def all_active(disk: Guest) -> bool:
    return all(client.state.phase is Phase.ACTIVE for client in disk.upstairs.core.clients)


class Writer:
    """A guest that writes random spans and now and then flushes or reads, and knows what must be on the disk."""

    def __init__(self, disk: Guest, seed: int) -> None:
        self.disk = disk
        self.random = random.Random(seed)
        self.content = bytearray(disk.size_bytes)
        self.turns = 0

    async def turn(self) -> None:
        disk, size = self.disk, self.disk.block_size
        blocks = disk.size_bytes // size
        requests = []
        spans = [
            (block, 1) for block in self.random.sample(range(blocks), min(8, blocks))
        ]  # which go a way of their own
        if self.random.random() < 0.5:
            starts = [self.random.randrange(blocks) for _ in range(self.random.randint(1, 8))]
            spans = [(start, self.random.randint(1, min(20, blocks - start))) for start in starts]
        for start, count in spans:
            data = self.random.randbytes(count * size)
            requests.append(write_request(start * size, data))
            self.content[start * size : (start + count) * size] = data
        if self.random.random() < 0.3:
            requests.append(Request(Kind.FLUSH))
        start = self.random.randrange(blocks)
        requests.append(read_request(start * size, size))
        done = await Batch(disk, requests).wait()
        assert [request.error for request in done if request.error] == []
        assert done[-1].buffer == self.content[start * size : (start + 1) * size]
        self.turns += 1

    async def until(self, condition: Callable[[], bool], turns_min: int = 0) -> None:
        """Write on until the condition holds."""
        wanted = self.turns + turns_min
        with trio.fail_after(60):
            while not condition() or self.turns < wanted:
                await self.turn()
                await trio.lowlevel.checkpoint()


def whole(paths: list[Path]) -> None:
    assert len(digests(paths)) == 1
    for path in paths:
        assert failures(path) == []


@SHAPES
async def test_a_replica_that_lost_what_a_barrier_retired_is_repaired_while_the_guest_writes(
    tmp_path: Path, expect_log: ExpectLog, block_size: int, extent_count: int, encrypted: bool
) -> None:
    paths = make_regions(tmp_path, block_size=block_size, extent_count=extent_count, encrypted=encrypted)
    expect_log("connection ended")
    key = KEY if encrypted else None
    async with region_set(paths) as servers, servers.disk(key=key) as disk:
        core, guest = disk.upstairs.core, Writer(disk, 1)
        await guest.until(lambda: True, turns_min=3)
        await servers.members[1].stop()
        await until(lambda: len(core.readers) == 2)
        core.can_replay = False  # as after a barrier
        await guest.until(lambda: not core.clients[1].state.accepts_io, turns_min=3)
        await servers.start(1, port=servers.members[1].port)
        await guest.until(lambda: all_active(disk), turns_min=5)
        assert core.clients[1].live_repair_completed == 1
        assert core.clients[1].extents_repaired + core.clients[1].extents_confirmed == extent_count
        assert await everything(disk) == guest.content
    whole(paths)


async def test_a_replica_that_owes_too_much_is_repaired(tmp_path: Path, expect_log: ExpectLog) -> None:
    paths = make_regions(tmp_path, blocks_per_extent=64)
    expect_log("connection ended")
    async with region_set(paths) as servers, servers.disk() as disk:
        core = disk.upstairs.core
        await servers.members[2].stop()
        await until(lambda: len(core.readers) == 2)
        for turn in range(11):
            await Batch(disk, [write_request(n % 64 * 512, pattern(512, turn * 100 + n)) for n in range(100)]).wait()
        await until(lambda: not core.clients[2].state.accepts_io)
        await servers.start(2, port=servers.members[2].port)
        await until(lambda: all_active(disk))
        assert core.clients[2].live_repair_completed == 1
    whole(paths)


@pytest.mark.parametrize("lost", [0, 1, 2])
async def test_a_downstairs_that_was_killed_is_sent_what_it_lost(
    tmp_path: Path, expect_log: ExpectLog, lost: int
) -> None:
    """Its un-flushed writes were in memory and are gone; the Upstairs has them. Where a flush was under way, it is
    repaired instead of replayed to."""
    paths = make_regions(tmp_path)
    expect_log("connection ended")
    async with region_set(paths) as servers, servers.disk() as disk:
        guest = Writer(disk, lost)
        await guest.until(lambda: True, turns_min=5)
        await servers.members[lost].stop()
        await guest.until(lambda: len(disk.upstairs.core.readers) == 2, turns_min=5)
        await servers.start(lost, port=servers.members[lost].port)
        await guest.until(lambda: all_active(disk), turns_min=5)
        assert await everything(disk) == guest.content
    whole(paths)


@SHAPES
async def test_a_downstairs_is_replaced_while_the_guest_writes(
    tmp_path: Path, expect_log: ExpectLog, block_size: int, extent_count: int, encrypted: bool
) -> None:
    paths = make_regions(tmp_path, block_size=block_size, extent_count=extent_count, encrypted=encrypted, count=4)
    key = KEY if encrypted else None
    async with region_set(paths[:3]) as servers, servers.disk(key=key) as disk:
        servers.paths.append(paths[3])
        spare = await servers.start(3)
        old = servers.members[0].target
        guest = Writer(disk, 7)
        await guest.until(lambda: True, turns_min=5)
        replace = disk.upstairs.replace_downstairs
        assert replace("127.0.0.1:9", "127.0.0.1:10") is ReplaceResult.MISSING
        assert replace(old, spare.target) is ReplaceResult.STARTED
        assert replace(old, spare.target) is ReplaceResult.STARTED_ALREADY
        with pytest.raises(errors.ReplaceRequestInvalid, match="downstairs 0 is"):
            replace(servers.members[1].target, "127.0.0.1:10")
        await guest.until(lambda: all_active(disk), turns_min=5)
        assert replace(old, spare.target) is ReplaceResult.COMPLETED_ALREADY
        with pytest.raises(errors.ReplaceRequestInvalid, match="are in use"):
            replace(servers.members[1].target, spare.target)
        assert await everything(disk) == guest.content
    whole(paths[1:])


async def test_a_source_with_a_damaged_block_is_refused_and_another_one_asked(
    tmp_path: Path, expect_log: ExpectLog
) -> None:
    """A repair verifies what it fetches before it replaces anything."""
    paths = make_regions(tmp_path, count=4)
    async with region_set(paths[:3]) as servers, servers.disk() as disk:
        await write(disk, 0, pattern(disk.size_bytes))
    damage(paths[2], 9)
    expect_log("connection ended", at_least=0)
    expect_log("replica faulted client=0")
    expect_log("live repair aborted extent=1")
    expect_log("operation failed on a replica client=0 job=ExtentLiveRepair")
    expect_log("work failed", at_least=1)
    expect_log("damaged block client=2", at_least=1)
    expect_log("operation failed on a replica client=2 job=Read", at_least=1)
    async with region_set(paths[:3]) as servers:
        servers.paths.append(paths[3])
        async with servers.disk(2) as disk:
            spare = await servers.start(3)
            disk.upstairs.replace_downstairs(servers.members[0].target, spare.target)
            await until(lambda: all_active(disk))
            assert await everything(disk) == pattern(disk.size_bytes)
            await disk.read_blocks(9, 1, memoryview(bytearray(512)), 2)
            await until(lambda: disk.healer.idle)
            await flush(disk)
    whole(paths[1:])


async def test_a_downstairs_that_never_comes_is_replaced_before_activation(
    tmp_path: Path, expect_log: ExpectLog
) -> None:
    paths = make_regions(tmp_path, count=4)
    async with region_set(paths[:3]) as servers:
        async with servers.disk() as disk:
            await write(disk, 0, pattern(4096))
        upstairs = servers.upstairs(5)
        await servers.members[1].stop()
        servers.paths.append(paths[3])
        spare = await servers.start(3)
        expect_log("connection ended", at_least=1)
        async with trio.open_nursery() as nursery:
            await nursery.start(upstairs.run)
            nursery.start_soon(upstairs.activate)
            await until(lambda: upstairs.core.clients[0].state.phase is Phase.WAIT_QUORUM)
            assert upstairs.replace_downstairs(servers.members[1].target, spare.target) is ReplaceResult.STARTED
            await until(lambda: upstairs.active)
            guest = Guest(upstairs)
            assert await read(guest, 0, 4096) == pattern(4096)
            await flush(guest)
            await upstairs.deactivate()
            nursery.cancel_scope.cancel()
    whole([paths[0], paths[2], paths[3]])


@pytest.mark.parametrize("victim", ["the one under repair", "the source", "the third"])
async def test_a_replica_lost_in_the_middle_of_a_live_repair(
    tmp_path: Path, expect_log: ExpectLog, victim: str
) -> None:
    paths = make_regions(tmp_path, extent_count=12)
    expect_log("connection ended", at_least=2)
    expect_log("live repair aborted", at_least=0)
    expect_log("replica faulted", at_least=0)
    async with region_set(paths) as servers, servers.disk() as disk:
        core, guest = disk.upstairs.core, Writer(disk, 3)
        await guest.until(lambda: True, turns_min=5)
        await servers.members[0].stop()
        await until(lambda: len(core.readers) == 2)
        core.can_replay = False
        core.extents_ahead = 2
        await guest.until(lambda: not core.clients[0].state.accepts_io)
        await servers.start(0, port=servers.members[0].port)
        await guest.until(lambda: core.repair is not None and core.repair.extent_id >= 3)
        assert core.repair is not None
        lost = {"the one under repair": 0, "the source": core.repair.source.index, "the third": 1}[victim]
        servers.members[lost].server.drop_connections()
        if victim == "the source":
            await until(lambda: all_active(disk))  # one healthy replica is left meanwhile, so writes are refused
        await guest.until(lambda: all_active(disk) and core.repair is None, turns_min=3)
        assert await everything(disk) == guest.content
    whole(paths)


async def test_a_disk_that_is_left_in_the_middle_of_a_live_repair_is_made_equal_when_it_is_opened(
    tmp_path: Path, expect_log: ExpectLog
) -> None:
    paths = make_regions(tmp_path, extent_count=12)
    expect_log("connection ended")
    expect_log("live repair aborted")
    expect_log("replica faulted")
    async with region_set(paths) as servers:
        async with servers.disk() as disk:
            core, guest = disk.upstairs.core, Writer(disk, 5)
            await guest.until(lambda: True, turns_min=5)
            await servers.members[2].stop()
            await until(lambda: len(core.readers) == 2)
            core.can_replay = False
            core.extents_ahead = 2
            await guest.until(lambda: not core.clients[2].state.accepts_io)
            await servers.start(2, port=servers.members[2].port)
            await guest.until(lambda: core.repair is not None and core.repair.extent_id >= 3)
        async with servers.disk(9) as again:
            assert await everything(again) == guest.content
    whole(paths)


async def test_a_replica_in_this_process_whose_medium_failed_once_is_repaired(
    fresh_disk: Fresh, expect_log: ExpectLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = fresh_disk()
    expect_log("work failed", at_least=1)
    expect_log("operation failed on a replica client=1", at_least=1)
    expect_log("replica faulted client=1")
    async with open_disk(directory) as disk:
        disk.upstairs.reconnect_delay_s = 0.01
        guest = Writer(disk, 11)
        await guest.until(lambda: True, turns_min=4)
        core = disk.upstairs.core
        real = Region.write
        broken = region_path(directory, 1)

        def write_fails_there(self: Region, *arguments: Any, **more: Any) -> Any:
            if self.path == broken:
                raise errors.IoError("the medium is worn out")
            return real(self, *arguments, **more)

        with monkeypatch.context() as patch:
            patch.setattr(Region, "write", write_fails_there)
            await guest.until(lambda: core.clients[1].state.phase is not Phase.ACTIVE)
        await guest.until(lambda: all_active(disk), turns_min=5)
        assert core.clients[1].live_repair_completed == 1
        assert await everything(disk) == guest.content
    whole([region_path(directory, client) for client in range(3)])


async def test_a_replica_in_this_process_is_replaced_by_an_empty_region(fresh_disk: Fresh, tmp_path: Path) -> None:
    directory = fresh_disk()
    (spare,) = make_regions(tmp_path / "spare", count=1)
    # The Downstairs ends before its region is closed, and leaves no journal behind.
    with Region.open(spare) as region:
        async with trio.open_nursery() as nursery:
            downstairs = LocalDownstairs(region)
            await nursery.start(downstairs.run)
            async with open_disk(directory) as disk:
                disk.upstairs.reconnect_delay_s = 0.01
                who = disk.upstairs.core.identity
                disk.upstairs._connector_for = lambda client, target: LocalConnector(
                    downstairs, who.upstairs_id, who.session_id
                )
                guest = Writer(disk, 13)
                await guest.until(lambda: True, turns_min=4)
                old = disk.upstairs.core.clients[2].target
                assert disk.upstairs.replace_downstairs(old, str(spare)) is ReplaceResult.STARTED
                await guest.until(lambda: all_active(disk), turns_min=5)
                assert await everything(disk) == guest.content
            nursery.cancel_scope.cancel()
    whole([region_path(directory, 0), region_path(directory, 1), spare])
