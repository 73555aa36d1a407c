"""Large writes that another process helps to encrypt: the order of the guest, whoever settles them, and bad ends."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from disk_rig import KEY as RIG_KEY
from disk_rig import (
    Batch,
    digests,
    flush,
    make_regions,
    pattern,
    read,
    region_set,
    served_on_sockets,
    trim_request,
    write,
    write_request,
    zeroes_request,
)

from crucible_emu import cipher_process, encryption, errors
from crucible_emu.cipher_process import CipherProcess, the_process
from crucible_emu.encryption import Cipher
from crucible_emu.upstairs import sealed_writes
from crucible_emu.upstairs.guest import Guest
from crucible_emu.volume.local_disk import create, open_disk, region_path

BLOCK = 4096
LARGE = 256 * 1024
SIZE = 4 * LARGE
KEY = bytes(range(32))


@pytest.fixture(autouse=True)
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[CipherProcess]:
    """The second process, ready from the first write on."""
    monkeypatch.setattr(cipher_process, "_started", [])
    monkeypatch.setattr(encryption, "STARTS_AFTER_BYTES", 0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    process = the_process(BLOCK)
    assert process is not None
    assert process._answers.poll(30_000) and process.ready
    yield process
    process._end()


@asynccontextmanager
async def opened(directory: Path, *, new: bool = True) -> AsyncIterator[Guest]:
    """A disk; when it is left, all three replicas hold the same."""
    if new:
        create(directory, SIZE, block_size=BLOCK, encrypted=True)
    async with open_disk(directory, cipher=Cipher(KEY, sharing=the_process)) as disk:
        yield disk
    assert len(digests([region_path(directory, client) for client in range(3)])) == 1


def begun(disk: Guest, seed: int = 1, offset: int = 0, **flags: bool) -> Batch:
    """A large write that is under way."""
    batch = Batch(disk, [write_request(offset, pattern(LARGE, seed), **flags)])
    assert batch.pending
    return batch


async def reads(disk: Guest) -> bytes:
    return await read(disk, 0, LARGE)


async def reads_one_block(disk: Guest) -> bytes:
    await read(disk, BLOCK, BLOCK)
    return await reads(disk)


async def writes_a_block(disk: Guest) -> bytes:
    await write(disk, BLOCK, pattern(BLOCK, 7))
    return await reads(disk)


async def writes_some_blocks(disk: Guest) -> bytes:
    await write(disk, BLOCK, pattern(3 * BLOCK, 7))
    return await reads(disk)


async def writes_as_much(disk: Guest) -> bytes:
    await write(disk, 0, pattern(LARGE, 7))
    return await reads(disk)


async def zeroes_a_block(disk: Guest) -> bytes:
    await Batch(disk, [zeroes_request(BLOCK, BLOCK)]).wait()
    return await reads(disk)


async def trims_a_block(disk: Guest) -> bytes:
    await Batch(disk, [trim_request(BLOCK, BLOCK)]).wait()
    return await reads(disk)


async def flushes(disk: Guest) -> bytes:
    await flush(disk)
    return await reads(disk)


def instead(offset: int, data: bytes) -> bytes:
    """What the large write left, but for these."""
    before = pattern(LARGE)
    return before[:offset] + data + before[offset + len(data) :]


LATER: list[tuple[Callable[[Guest], Awaitable[bytes]], bytes]] = [
    (reads, instead(0, b"")),
    (reads_one_block, instead(0, b"")),
    (flushes, instead(0, b"")),
    (writes_a_block, instead(BLOCK, pattern(BLOCK, 7))),
    (writes_some_blocks, instead(BLOCK, pattern(3 * BLOCK, 7))),
    (writes_as_much, pattern(LARGE, 7)),
    (zeroes_a_block, instead(BLOCK, bytes(BLOCK))),
    (trims_a_block, instead(BLOCK, bytes(BLOCK))),
]


@pytest.mark.parametrize(("later", "expected"), LATER, ids=lambda value: getattr(value, "__name__", ""))
async def test_nothing_that_comes_later_passes_a_write_that_is_being_encrypted(
    tmp_path: Path, later: Callable[[Guest], Awaitable[bytes]], expected: bytes
) -> None:
    async with opened(tmp_path / "disk") as disk:
        batch = begun(disk)
        assert await later(disk) == expected
        assert not batch.pending and batch.requests[0].error is None


async def test_single_blocks_are_not_done_at_once_while_a_write_is_being_encrypted(tmp_path: Path) -> None:
    async with opened(tmp_path / "disk") as disk:
        await write(disk, 0, pattern(LARGE, 2))
        block = memoryview(bytearray(BLOCK))
        assert disk.read_singles([0], [block]) and disk.write_singles([BLOCK], [block])
        batch = begun(disk)
        assert not disk.read_singles([0], [block]) and not disk.write_singles([BLOCK], [block])
        await batch.wait()
        assert disk.read_singles([0], [block]) and bytes(block) == pattern(LARGE)[:BLOCK]


async def test_each_is_written_when_the_next_begins_and_the_last_by_itself(tmp_path: Path) -> None:
    async with opened(tmp_path / "disk") as disk:
        batches: list[Batch] = []
        for seed in range(9):
            batches.append(begun(disk, seed, seed % 4 * LARGE))
            assert [batch.pending for batch in batches] == [0] * seed + [1]
        await batches[-1].wait()
        found = await read(disk, 0, SIZE)
        assert found == b"".join(pattern(LARGE, seed) for seed in (8, 5, 6, 7))


async def test_a_batch_of_large_and_small_keeps_its_order(tmp_path: Path) -> None:
    async with opened(tmp_path / "disk") as disk:
        small = write_request(BLOCK, pattern(BLOCK, 7))
        await Batch(disk, [write_request(0, pattern(LARGE)), small, write_request(LARGE, pattern(LARGE, 2))]).wait()
        assert await read(disk, 0, 2 * LARGE) == instead(BLOCK, pattern(BLOCK, 7)) + pattern(LARGE, 2)


async def test_with_fua_it_is_durable_when_it_is_completed(tmp_path: Path) -> None:
    async with opened(tmp_path / "disk") as disk:
        flushes_before = disk.upstairs.statistics.flushes
        await begun(disk, fua=True).wait()
        assert disk.upstairs.statistics.flushes == flushes_before + 1


@pytest.mark.parametrize("end", [signal.SIGSTOP, signal.SIGKILL])
async def test_race_of_the_end_of_the_other_process_with_a_write_that_nothing_follows(
    tmp_path: Path, started: CipherProcess, monkeypatch: pytest.MonkeyPatch, end: signal.Signals
) -> None:
    monkeypatch.setattr(cipher_process, "ANSWER_S_MAX", 0.01)
    monkeypatch.setattr(sealed_writes, "ANSWER_S_MAX", 0.01)
    async with opened(tmp_path / "disk") as disk:
        os.kill(started.pid, signal.SIGSTOP)
        batch = begun(disk)
        os.kill(started.pid, end)
        await batch.wait()
        assert started.gone
        assert await reads(disk) == pattern(LARGE)
        await write(disk, 0, pattern(LARGE, 2))
        assert await reads(disk) == pattern(LARGE, 2)


async def test_race_of_leaving_with_a_write_that_is_being_encrypted(tmp_path: Path) -> None:
    async with opened(tmp_path / "disk") as disk:
        batch = begun(disk)
    assert not batch.pending and batch.requests[0].error is None
    async with opened(tmp_path / "disk", new=False) as disk:
        assert await reads(disk) == pattern(LARGE)


async def test_race_of_the_end_of_service_with_a_write_that_is_being_encrypted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path / "disk") as disk:
        batch = begun(disk)
        with monkeypatch.context() as patched:
            patched.setattr(disk._core, "admission_error", lambda _: errors.UpstairsInactive())
            await batch.wait()
        assert isinstance(batch.requests[0].error, errors.UpstairsInactive)
        assert await reads(disk) == bytes(LARGE)


async def test_two_disks_share_the_process(tmp_path: Path) -> None:
    """The second one's question waits for the answer to the first; a third finds no room, and is written at once."""
    async with opened(tmp_path / "one") as one, opened(tmp_path / "two") as two, opened(tmp_path / "three") as three:
        first, second = begun(one, 1), begun(two, 2)
        third = Batch(three, [write_request(0, pattern(LARGE, 3))])
        assert not third.pending
        await second.wait()
        await first.wait()
        for seed, disk in ((1, one), (2, two), (3, three)):
            assert await reads(disk) == pattern(LARGE, seed)
        await begun(three, 4).wait()
        assert await reads(three) == pattern(LARGE, 4)


async def test_a_request_with_no_room_in_the_process_follows_one_that_is_being_encrypted(
    tmp_path: Path, started: CipherProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path / "disk") as disk:
        batch = begun(disk)
        monkeypatch.setattr(started, "room", LARGE // BLOCK)
        await write(disk, BLOCK, pattern(LARGE + BLOCK, 2))
        assert not batch.pending
        assert await reads(disk) == instead(BLOCK, pattern(LARGE - BLOCK, 2))


@pytest.mark.parametrize("at_hand", [False, True], ids=["tcp", "shared-memory"])
async def test_replicas_elsewhere_get_what_was_sealed_before_its_memory_is_used_again(
    tmp_path: Path, at_hand: bool
) -> None:
    """They keep what they are given until they have answered; meanwhile the next two writes are sealed."""
    paths = make_regions(tmp_path, block_size=BLOCK, blocks_per_extent=64, extent_count=4, encrypted=True)
    serving = served_on_sockets(paths, tmp_path) if at_hand else region_set(paths)
    async with serving as servers, servers.disk(key=RIG_KEY) as disk:
        batches = [begun(disk, seed, seed % 4 * LARGE) for seed in range(9)]
        await batches[-1].wait()
        assert await read(disk, 0, SIZE) == b"".join(pattern(LARGE, seed) for seed in (8, 5, 6, 7))
        await flush(disk)
    assert len(digests(paths)) == 1
