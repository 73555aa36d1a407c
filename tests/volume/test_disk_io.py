"""A mirrored disk against a plain list of blocks: every kind of request, in this process and over TCP."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio
from disk_model import Model, Reopen, Submit, programs, run
from disk_rig import (
    KEY,
    Batch,
    digests,
    do,
    everything,
    flush,
    pattern,
    read,
    read_request,
    region_set,
    trim_request,
    until,
    write,
    write_request,
    zeroes_request,
)
from hypothesis import HealthCheck, given, settings, strategies

from crucible_emu import errors
from crucible_emu.blockio import Allocation, Kind, Request
from crucible_emu.downstairs.jobs import JobLimits
from crucible_emu.encryption import Cipher
from crucible_emu.region import Region
from crucible_emu.upstairs import guest as guest_module
from crucible_emu.upstairs import trains as trains_module
from crucible_emu.upstairs.guest import Guest
from crucible_emu.upstairs.tcp_link import TcpLink
from crucible_emu.volume import local_disk
from crucible_emu.volume.local_disk import open_disk, region_path

Program = list[Submit | Reopen]
Fresh = Callable[..., Path]

EXAMPLES = settings.default.max_examples if settings.default is not None else 100
"""Of the profile: a program takes 50 to 200 ms, so each property draws a fraction of them."""
FEW = settings(
    max_examples=max(15, EXAMPLES // 10),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
SHAPES = pytest.mark.parametrize(
    ("block_size", "encrypted"), [(512, False), (4096, False), (32768, False), (512, True), (4096, True)]
)


@contextmanager
def small_limits(block_size: int) -> Iterator[None]:
    """Every bound of the guest so low that small programs run into it: cut requests, trains, zeroes, admission."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(guest_module, "JOBS_IN_PROGRESS_MAX", 4)
        patch.setattr(guest_module, "BYTES_IN_PROGRESS_MAX", 8 * block_size)
        patch.setattr(guest_module, "TRANSFER_BYTES_MAX", 2 * block_size)
        patch.setattr(trains_module, "TRAIN_BYTES_MAX", 6 * block_size)
        patch.setattr(guest_module, "ZEROES_BYTES", 4 * block_size)
        patch.setattr(guest_module, "ALLOCATION_BLOCKS_MAX", 5)
        yield


@contextmanager
def cold_replicas() -> Iterator[None]:
    """Nothing is ever at hand: every read of a region waits for the device; and there is little room to stage."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Region, "read_cached", lambda self, start, count, out: None)
        real = Region.read_blocks_cached

        def nothing(self: Region, blocks: Any, outs: Any) -> Any:
            return real(self, blocks, outs)[0], list(range(len(blocks)))

        patch.setattr(Region, "read_blocks_cached", nothing)
        patch.setattr(Region, "open", partial(Region.open, staged_bytes_max=8 * 512))
        yield


async def run_locally(
    program: Program, directory: Path, block_size: int, encrypted: bool, piece: int = 1 << 30
) -> None:
    cipher = Cipher.from_base64(KEY) if encrypted else None
    try:
        model = Model(block_size, zero_piece_blocks=piece)
        await run(program, model, lambda: open_disk(directory, cipher=cipher))
    finally:
        shutil.rmtree(directory)


@SHAPES
@FEW
@given(program=programs)
async def test_a_disk_in_this_process_is_a_list_of_blocks(
    fresh_disk: Fresh, program: Program, block_size: int, encrypted: bool
) -> None:
    await run_locally(program, fresh_disk(block_size, encrypted), block_size, encrypted)


@FEW
@given(program=programs, encrypted=strategies.booleans())
async def test_limits_cut_requests_and_change_nothing(fresh_disk: Fresh, program: Program, encrypted: bool) -> None:
    with small_limits(512):
        await run_locally(program, fresh_disk(512, encrypted), 512, encrypted, piece=4)


@FEW
@given(program=programs)
async def test_replicas_that_must_wait_for_their_device_keep_the_order(fresh_disk: Fresh, program: Program) -> None:
    with cold_replicas():
        await run_locally(program, fresh_disk(512), 512, False)


@FEW
@given(program=programs)
async def test_limits_and_cold_replicas_together(fresh_disk: Fresh, program: Program) -> None:
    with cold_replicas(), small_limits(512):
        await run_locally(program, fresh_disk(512), 512, False, piece=4)


async def run_over_tcp(
    program: Program, directory: Path, block_size: int, encrypted: bool, piece: int = 1 << 30
) -> None:
    generation = 0
    key = KEY if encrypted else None
    try:
        async with region_set([region_path(directory, client) for client in range(3)]) as servers:

            def open_remote() -> Any:
                nonlocal generation
                generation += 1
                return servers.disk(generation, key=key)

            await run(program, Model(block_size, trims=False, zero_piece_blocks=piece), open_remote)
    finally:
        shutil.rmtree(directory)


@pytest.mark.parametrize(("block_size", "encrypted"), [(512, False), (4096, True), (32768, False)])
@settings(FEW, max_examples=max(8, EXAMPLES // 20))
@given(program=programs)
async def test_a_disk_over_tcp_is_a_list_of_blocks(
    fresh_disk: Fresh, program: Program, block_size: int, encrypted: bool
) -> None:
    await run_over_tcp(program, fresh_disk(block_size, encrypted), block_size, encrypted)


@settings(FEW, max_examples=max(8, EXAMPLES // 20))
@given(program=programs)
async def test_limits_cut_requests_over_tcp_and_change_nothing(fresh_disk: Fresh, program: Program) -> None:
    with small_limits(512):
        await run_over_tcp(program, fresh_disk(512), 512, False, piece=4)


# -- what the programs cannot show ------------------------------------------------------------------------------------


def crash_copy(directory: Path) -> Path:
    """What is left when the machine's processes end here and now: the files as they are."""
    copy = directory.with_name(directory.name + "-crashed")
    shutil.copytree(directory, copy)
    return copy


def replicas(directory: Path) -> list[Path]:
    return [region_path(directory, client) for client in range(3)]


def depths(found: list[Allocation]) -> list[tuple[int, int]]:
    return [(run.length, run.depth) for run in found]


async def test_a_batch_that_waits_is_not_overtaken_by_the_next(fresh_disk: Fresh) -> None:
    async with region_set(replicas(fresh_disk())) as servers, servers.disk() as disk:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(guest_module, "JOBS_IN_PROGRESS_MAX", 2)
            for member in servers.members:
                member.server.runner.stall()
            full = Batch(disk, [write_request(512 * 8, pattern(512)), write_request(512 * 9, pattern(512))])
            first = Batch(disk, [write_request(0, pattern(512, 1)), write_request(0, pattern(512, 2))])
            second = Batch(disk, [read_request(0, 512)])
            assert (full.pending, first.pending, second.pending) == (0, 2, 1)
            for member in servers.members:
                member.server.runner.unstall()
            (answer,) = await second.wait()
            assert first.pending == 0
            assert answer.buffer == pattern(512, 2)


async def test_zeroes_behind_a_write_that_waits_come_over_it(fresh_disk: Fresh) -> None:
    """Nobody has written the block yet when the zeroes are admitted; the write waits behind a slow read."""
    with cold_replicas():
        async with open_disk(fresh_disk()) as disk:
            await do(
                disk,
                read_request(0, 4096),
                write_request(512, pattern(512)),
                zeroes_request(0, 1024),
                write_request(2048, pattern(512)),
                trim_request(2048, 512),
            )
            assert await read(disk, 0, 4096) == bytes(4096)


async def test_a_write_into_a_range_that_is_being_zeroed_stays(fresh_disk: Fresh) -> None:
    with small_limits(512):
        async with open_disk(fresh_disk()) as disk:
            await write(disk, 0, pattern(32 * 512))
            zeroes = Batch(disk, [zeroes_request(512, 30 * 512), trim_request(512, 30 * 512, fua=True)])
            later = Batch(disk, [write_request(20 * 512, pattern(1024, 2)), read_request(20 * 512, 1024)])
            assert zeroes.pending == 2
            assert later.requests[1].buffer == pattern(1024, 2), "and is there at once"
            await zeroes.wait()
            expected = pattern(32 * 512)[:512] + bytes(30 * 512) + pattern(32 * 512)[-512:]
            expected = expected[: 20 * 512] + pattern(1024, 2) + expected[22 * 512 :]
            assert await everything(disk) == expected


async def test_zeroes_leave_unwritten_blocks_unwritten(fresh_disk: Fresh) -> None:
    directory = fresh_disk()
    async with open_disk(directory) as disk:
        await write(disk, 4 * 512, pattern(2 * 512))
        await do(
            disk, zeroes_request(0, 16 * 512), trim_request(0, 16 * 512), zeroes_request(20 * 512, 512, no_hole=True)
        )
        assert await everything(disk) == bytes(32 * 512)
        written = [(4 * 512, 0), (2 * 512, 1), (14 * 512, 0), (512, 1), (11 * 512, 0)]
        assert depths(await disk.allocation(0, disk.size_bytes)) == written
        assert depths(await disk.allocation(5 * 512, 1024)) == [(512, 1), (512, 0)]
    for region in replicas(directory):
        with Region.open(region, read_only=True) as stored:
            assert stored.written(0, 32).nonzero()[0].tolist() == [4, 5, 20]


async def test_trim_over_tcp_changes_nothing_and_zeroes_write(fresh_disk: Fresh) -> None:
    async with region_set(replicas(fresh_disk())) as servers, servers.disk() as disk:
        await write(disk, 512, pattern(1024))
        await do(disk, trim_request(0, 32 * 512), zeroes_request(4 * 512, 512))
        assert await read(disk, 0, 2048) == bytes(512) + pattern(1024) + bytes(512)
        assert depths(await disk.allocation(0, 32 * 512)) == [
            *((512, 0), (1024, 1), (512, 0), (512, 1), (27 * 512, 0)),
        ]


async def test_allocation_may_cover_less_but_never_nothing(fresh_disk: Fresh) -> None:
    with small_limits(512):
        async with (
            open_disk(fresh_disk()) as local,
            region_set(replicas(fresh_disk())) as servers,
            servers.disk() as remote,
        ):
            for disk in (local, remote):
                await write(disk, 3 * 512, pattern(512))
                at, found = 0, []
                while at < disk.size_bytes:
                    runs = await disk.allocation(at, disk.size_bytes - at)
                    assert runs and all(before.depth != after.depth for before, after in pairwise(runs))
                    found += [run.depth for run in runs for _ in range(run.length // 512)]
                    at += sum(run.length for run in runs)
                assert found == [0, 0, 0, 1] + [0] * 28


@pytest.mark.parametrize("kind", [Kind.WRITE, Kind.WRITE_ZEROES, Kind.TRIM])
async def test_fua_means_durable(fresh_disk: Fresh, kind: Kind) -> None:
    directory = fresh_disk()
    async with open_disk(directory) as disk:
        await write(disk, 0, pattern(1024))
        await flush(disk)
        buffer = memoryview(bytearray(pattern(512, 2))) if kind is Kind.WRITE else None
        await do(disk, Request(kind, 512, 512, buffer, fua=True))
        copy = crash_copy(directory)
        await write(disk, 0, pattern(512, 3))
    expected = pattern(512, 2) if kind is Kind.WRITE else bytes(512)
    async with open_disk(copy) as disk:
        assert await read(disk, 0, 1024) == pattern(1024)[:512] + expected


@pytest.mark.parametrize("staged_mib", [1, 16])
async def test_what_has_no_room_in_memory_is_written_out_before_anybody_flushes(
    tmp_path: Path, staged_mib: int
) -> None:
    local_disk.create(tmp_path / "disk", 16 << 20)
    async with open_disk(tmp_path / "disk", staged_bytes_max=staged_mib << 20) as disk:
        data = pattern(8 << 20)
        for at in range(0, len(data), 1 << 20):
            await write(disk, at, data[at : at + (1 << 20)])
        await flush(disk)  # behind all of them, and so behind what made room for them
        destages = [connector.snapshots()[0].as_dict()["destages"] for connector in disk.upstairs.connectors]
        assert [count > 0 for count in destages] == [staged_mib == 1] * 3
        assert await read(disk, 0, len(data)) == data


async def test_what_was_flushed_survives_a_crash_and_replicas_are_equal(fresh_disk: Fresh) -> None:
    directory = fresh_disk()
    async with open_disk(directory) as disk:
        await write(disk, 0, pattern(8 * 512))
        await flush(disk)
        await write(disk, 0, pattern(512, 2))
        copy = crash_copy(directory)
    async with open_disk(copy) as disk:
        found = await read(disk, 0, 8 * 512)
        assert found[512:] == pattern(8 * 512)[512:] and found[:512] in (pattern(512), pattern(512, 2))
    assert len(digests(replicas(copy))) == 1


async def test_flushes_that_come_together_share_one(fresh_disk: Fresh) -> None:
    async with open_disk(fresh_disk()) as disk:
        statistics = disk.upstairs.statistics
        await write(disk, 0, pattern(512))
        batches = [Batch(disk, [Request(Kind.FLUSH), write_request(512, pattern(512), fua=True)]) for _ in range(40)]
        assert all(batch.pending for batch in batches)
        for batch in batches:
            assert all(request.error is None for request in await batch.wait())
        assert statistics.flushes == 2, "the first, and one for all that came while it ran"


async def test_the_automatic_flush_comes_when_nothing_happens(fresh_disk: Fresh) -> None:
    directory = fresh_disk()
    async with open_disk(directory) as disk:
        await write(disk, 0, pattern(512))
        await until(lambda: not disk.upstairs.core.need_flush and not len(disk.upstairs.core.jobs))
        copy = crash_copy(directory)
        assert disk.upstairs.statistics.flushes == 0, "nobody asked for one"
    async with open_disk(copy) as disk:
        assert await read(disk, 0, 512) == pattern(512)


MEGABYTE = 1 << 20


@pytest.mark.parametrize("remote", [False, True])
async def test_large_requests(tmp_path: Path, remote: bool) -> None:
    """32 MiB in one write, 64 MiB of zeroes over it, small requests between; the replicas end equal."""
    local_disk.create(tmp_path, 80 * MEGABYTE, block_size=4096)
    async with AsyncExitStack() as stack:
        if remote:
            servers = await stack.enter_async_context(region_set(replicas(tmp_path)))
            disk = await stack.enter_async_context(servers.disk())
        else:
            disk = await stack.enter_async_context(open_disk(tmp_path))
        data = pattern(32 * MEGABYTE)
        small = pattern(4096, 5)
        requests = [write_request(3 * 4096, data), write_request(0, small), read_request(3 * 4096, len(data))]
        await do(disk, *requests)
        assert requests[2].buffer == data
        zeroes = Batch(disk, [zeroes_request(MEGABYTE, 64 * MEGABYTE, fua=True, no_hole=True)])
        await do(disk, read_request(0, 4096), write_request(40 * MEGABYTE, small))
        assert zeroes.pending, "small requests do not wait for it"
        await zeroes.wait()
        assert await read(disk, 0, 80 * MEGABYTE) == b"".join(
            [
                small,
                bytes(2 * 4096),
                data[: MEGABYTE - 3 * 4096],
                bytes(39 * MEGABYTE),
                small,
                bytes(40 * MEGABYTE - 4096),
            ]
        )
    assert len(digests(replicas(tmp_path))) == 1


async def test_a_stalled_replica_holds_the_guest_back_and_memory_is_bounded(fresh_disk: Fresh) -> None:
    """Two replicas go on; the guest may be ahead of the third by so much and no more."""
    jobs_max, tiny = 40, JobLimits(jobs_max=8, bytes_max=16 * 1024)
    async with region_set(replicas(fresh_disk(4096)), limits={2: tiny}) as servers, servers.disk() as disk:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(guest_module, "JOBS_IN_PROGRESS_MAX", jobs_max)
            stalled = servers.members[2].server.runner
            stalled.stall()
            batches = [
                Batch(
                    disk,
                    [
                        write_request(n % 32 * 4096, pattern(4096, n)),
                        write_request((n + 1) % 32 * 4096, pattern(4096, n + 1)),
                    ],
                )
                for n in range(100)
            ]
            waiting = sum(batch.pending > 0 for batch in batches)
            assert waiting == 100 - jobs_max // 2
            jobs = disk.upstairs.core.jobs
            await until(lambda: jobs.jobs_in_progress[0] == jobs.jobs_in_progress[1] == 0)
            assert jobs.jobs_in_progress[2] == jobs_max
            assert sum(batch.pending > 0 for batch in batches) == waiting
            assert held_bytes(disk.upstairs.links[2]) <= jobs_max * (4096 + 512)
            with trio.move_on_after(0) as impatient:
                await disk.wait_for_room()
            assert impatient.cancelled_caught
            stalled.unstall()
            for batch in batches:
                assert all(request.error is None for request in await batch.wait())
            await disk.wait_for_room()
            last = {n % 32: pattern(4096, n) for n in range(101)}
            assert await everything(disk) == b"".join(last[block] for block in range(32))
    assert len(digests([member.region.path for member in servers.members])) == 1


def held_bytes(link: Any) -> int:
    """What waits in this process to be sent on a TCP link."""
    assert isinstance(link, TcpLink)
    return sum(len(buffer) for buffer in link._queue)


@pytest.mark.parametrize("kind", [Kind.READ, Kind.WRITE, Kind.WRITE_ZEROES, Kind.TRIM])
@pytest.mark.parametrize(
    ("offset", "length"),
    [(32 * 512, 512), (31 * 512, 1024), (0, 33 * 512), (2**62, 512), (-512, 512), (1, 512), (0, 511), (2**63, 2**20)],
)
async def test_a_request_beyond_the_end_is_refused_and_its_neighbours_are_not(
    fresh_disk: Fresh, kind: Kind, offset: int, length: int
) -> None:
    async with open_disk(fresh_disk()) as disk:
        buffer = memoryview(bytearray(min(length, 1 << 20))) if kind in (Kind.READ, Kind.WRITE) else None
        astray = Request(kind, offset, length, buffer)
        around = [write_request(0, pattern(512)), astray, write_request(512, pattern(512, 2))]
        await Batch(disk, around).wait()
        assert astray.error == errors.OffsetInvalid()
        assert around[0].error is None and around[2].error is None
        assert await everything(disk) == pattern(512) + pattern(512, 2) + bytes(30 * 512)


async def test_empty_requests_are_done_at_once(fresh_disk: Fresh) -> None:
    async with open_disk(fresh_disk()) as disk:
        batch = Batch(disk, [write_request(0, b""), read_request(512, 0), zeroes_request(0, 0), trim_request(16384, 0)])
        assert batch.pending == 0
        assert all(request.error is None for request in batch.requests)
        await do(disk, write_request(0, b"", fua=True))


@asynccontextmanager
async def either(directory: Path, *, remote: bool) -> AsyncIterator[Guest]:
    """A disk over these regions, in this process or over TCP."""
    async with AsyncExitStack() as stack:
        if remote:
            servers = await stack.enter_async_context(
                region_set([region_path(directory, client) for client in range(3)])
            )
            yield await stack.enter_async_context(servers.disk())
        else:
            yield await stack.enter_async_context(open_disk(directory))


@pytest.mark.parametrize("remote", [False, True])
async def test_reads_say_which_blocks_were_ever_written(fresh_disk: Fresh, remote: bool) -> None:
    async with either(fresh_disk(), remote=remote) as disk:
        await write(disk, 512, pattern(1024))
        for start, count in ((0, 4), (1, 1), (3, 1)):
            request = read_request(start * 512, count * 512)
            request.owned = np.full(count, start % 2 == 0)
            await do(disk, request)
            assert request.owned.tolist() == [block in (1, 2) for block in range(start, start + count)]
            assert request.buffer is not None
            assert bytes(request.buffer) == (bytes(512) + pattern(1024) + bytes(512))[start * 512 :][: count * 512]


@pytest.mark.parametrize("remote", [False, True])
async def test_write_unwritten_leaves_what_was_written(fresh_disk: Fresh, remote: bool) -> None:
    async with either(fresh_disk(), remote=remote) as disk:
        await write(disk, 512, pattern(512, 1))
        request = write_request(0, pattern(4 * 512, 2))
        request.kind = Kind.WRITE_UNWRITTEN
        await do(disk, request)
        assert await read(disk, 0, 2048) == pattern(2048, 2)[:512] + pattern(512, 1) + pattern(2048, 2)[1024:]
