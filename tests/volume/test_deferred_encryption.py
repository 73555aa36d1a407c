"""An encrypted disk whose large requests are encrypted and decrypted beside the loop: what comes when, what fails."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio
from disk_rig import Batch, damage, do, flush, pattern, read, read_request, until, write, write_request

from crucible_emu import errors
from crucible_emu.blockio import Kind, Request
from crucible_emu.integrity import Cipher, verify_writes
from crucible_emu.upstairs import sealer as sealer_module
from crucible_emu.upstairs.crew import Divisible, Done
from crucible_emu.volume.local_disk import create, open_disk, region_path

ExpectLog = Callable[..., Any]
BLOCK = 512
LARGE = sealer_module.DEFERRED_BYTES_MIN
CIPHER = Cipher(bytes(range(32)))


class SlowCrew:
    """Does nothing until it is told to; then, on the loop's thread, what it is told to."""

    width = 2

    def __init__(self) -> None:
        self.waiting: list[tuple[Divisible, Done]] = []

    def start(self, work: Divisible, share: int, done: Done) -> None:
        assert 0 < share <= work.count
        self.waiting.append((work, done))

    def finish(self, index: int = 0, error: BaseException | None = None) -> None:
        work, done = self.waiting.pop(index)
        if error is None:
            # In two pieces, the later one first: shares know no order.
            middle = work.count // 2
            work.run(middle, work.count)
            work.run(0, middle)
        done(error)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> SlowCrew:
    found = SlowCrew()
    monkeypatch.setattr(sealer_module, "crew", lambda: found)
    return found


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """An unwritten disk of four extents, each as long as a large request."""
    found = tmp_path / "disk"
    create(found, 4 * LARGE, block_size=BLOCK, blocks_per_extent=LARGE // BLOCK, encrypted=True)
    return found


async def test_whatever_comes_behind_a_deferred_write_waits_for_it(directory: Path, slow: SlowCrew) -> None:
    async with open_disk(directory, cipher=CIPHER) as disk:
        large, small = pattern(LARGE), pattern(BLOCK, seed=2)
        batch = Batch(disk, [write_request(0, large), read_request(0, BLOCK)])
        behind = Batch(disk, [write_request(0, small), read_request(0, 2 * BLOCK), Request(Kind.FLUSH)])
        assert (batch.pending, behind.pending) == (2, 3)
        slow.finish()
        await batch.wait()
        await behind.wait()
        assert bytes(batch.requests[1].buffer or b"") == large[:BLOCK]
        assert bytes(behind.requests[1].buffer or b"") == small + large[BLOCK : 2 * BLOCK]
        assert all(request.error is None for request in (*batch.requests, *behind.requests))


async def test_writes_that_are_encrypted_in_another_order_are_stored_in_theirs(directory: Path, slow: SlowCrew) -> None:
    async with open_disk(directory, cipher=CIPHER) as disk:
        first, second = (Batch(disk, [write_request(0, pattern(LARGE, seed=seed))]) for seed in (1, 2))
        slow.finish(1)
        assert (first.pending, second.pending) == (1, 1)
        slow.finish(0)
        assert (first.pending, second.pending) == (0, 0)
        assert await read(disk, 0, BLOCK) == pattern(LARGE, seed=2)[:BLOCK]


async def test_what_came_before_a_large_write_in_a_batch_does_not_wait(directory: Path, slow: SlowCrew) -> None:
    async with open_disk(directory, cipher=CIPHER) as disk:
        requests = [read_request(0, BLOCK), write_request(LARGE, pattern(LARGE)), read_request(LARGE, BLOCK)]
        batch = Batch(disk, requests)
        assert batch.order == requests[:1]
        slow.finish()
        assert batch.order == requests


async def test_small_writes_that_come_together_are_one_train(directory: Path, slow: SlowCrew) -> None:
    async with open_disk(directory, cipher=CIPHER) as disk:
        data = pattern(LARGE)
        count = LARGE // BLOCK
        requests = [write_request(at * BLOCK, data[at * BLOCK : (at + 1) * BLOCK]) for at in range(count)]
        batch = Batch(disk, requests)
        assert (batch.pending, len(slow.waiting)) == (count, 1)
        slow.finish()
        assert batch.pending == 0
        whole = Batch(disk, [read_request(0, LARGE)])
        slow.finish()
        assert bytes(whole.requests[0].buffer or b"") == data


async def test_a_deferred_read_gives_what_was_there_when_it_was_asked_for(directory: Path, slow: SlowCrew) -> None:
    async with open_disk(directory, cipher=CIPHER) as disk:
        batch = Batch(disk, [write_request(0, pattern(LARGE))])
        slow.finish()
        reading = Batch(disk, [read_request(0, LARGE)])
        await write(disk, 0, pattern(BLOCK, seed=2))
        assert (batch.pending, reading.pending) == (0, 1)
        slow.finish()
        assert bytes(reading.requests[0].buffer or b"") == pattern(LARGE)


async def test_a_door_is_told_to_wait_when_much_is_on_its_way(
    directory: Path, slow: SlowCrew, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealer_module, "WAITING_BYTES_MAX", 2 * LARGE)
    async with open_disk(directory, cipher=CIPHER) as disk:
        first = Batch(disk, [write_request(0, pattern(LARGE))])
        await disk.wait_for_room()  # one alone does not keep the next from coming
        second = Batch(disk, [write_request(LARGE, pattern(LARGE))])
        with trio.move_on_after(0) as full:
            await disk.wait_for_room()
        assert full.cancelled_caught
        async with trio.open_nursery() as nursery:
            nursery.start_soon(disk.wait_for_room)
            await trio.testing.wait_all_tasks_blocked()
            slow.finish()
        assert (first.pending, second.pending) == (0, 1)
        slow.finish()


async def test_an_error_of_the_cipher_is_the_writes(directory: Path, slow: SlowCrew) -> None:
    async with open_disk(directory, cipher=CIPHER) as disk:
        batch = Batch(disk, [write_request(0, pattern(LARGE)), read_request(0, BLOCK)])
        slow.finish(error=MemoryError())
        assert isinstance(batch.requests[0].error, errors.IoError)
        assert batch.requests[1].error is None
        assert bytes(batch.requests[1].buffer or b"") == bytes(BLOCK)


async def test_a_damaged_block_of_a_deferred_read_comes_from_another_replica(
    directory: Path, slow: SlowCrew, expect_log: ExpectLog
) -> None:
    expect_log("damaged block client=0", at_least=1)
    expect_log("operation failed on a replica client=0 job=Read", at_least=0)
    expect_log("healed block client=0", at_least=0)
    async with open_disk(directory, cipher=CIPHER) as disk:
        written = Batch(disk, [write_request(0, pattern(LARGE))])
        slow.finish()
        await written.wait()
        await flush(disk)
        damage(region_path(directory, 0), 7)
        reading = Batch(disk, [read_request(0, LARGE)])
        slow.finish()
        await reading.wait()
        assert reading.requests[0].error is None
        assert bytes(reading.requests[0].buffer or b"") == pattern(LARGE)
        await until(lambda: disk.healer.idle)
        assert disk.upstairs.statistics.healed_blocks == 1


async def test_many_small_reads_that_come_together_are_decrypted_together(
    directory: Path, slow: SlowCrew, expect_log: ExpectLog
) -> None:
    expect_log("damaged block client=0", at_least=1)
    expect_log("operation failed on a replica client=0 job=Read", at_least=0)
    expect_log("healed block client=0", at_least=0)
    async with open_disk(directory, cipher=CIPHER) as disk:
        data, count = pattern(LARGE), LARGE // BLOCK
        written = Batch(disk, [write_request(0, data)])
        slow.finish()
        await written.wait()
        await flush(disk)
        damage(region_path(directory, 0), 7)
        reading = Batch(disk, [read_request(at * BLOCK, BLOCK) for at in range(count)])
        few = Batch(disk, [read_request(0, BLOCK)])
        assert (reading.pending, few.pending) == (count, 0)
        slow.finish()
        await reading.wait()
        assert b"".join(bytes(request.buffer or b"") for request in reading.requests) == data
        assert all(request.error is None for request in reading.requests)
        await until(lambda: disk.healer.idle)
        assert disk.upstairs.statistics.healed_blocks == 1


async def test_a_read_that_the_cipher_fails_to_look_at_is_asked_for_again(
    directory: Path, slow: SlowCrew, expect_log: ExpectLog
) -> None:
    expect_log("damaged block client=0", at_least=1)
    async with open_disk(directory, cipher=CIPHER) as disk:
        written = Batch(disk, [write_request(0, pattern(LARGE))])
        slow.finish()
        await written.wait()
        reading = Batch(disk, [read_request(0, LARGE)])
        slow.finish(error=MemoryError())
        await reading.wait()
        assert bytes(reading.requests[0].buffer or b"") == pattern(LARGE)
        await until(lambda: disk.healer.idle)
        assert disk.upstairs.statistics.healed_blocks == 0


async def test_a_large_read_of_what_was_never_written_is_not_deferred(directory: Path, slow: SlowCrew) -> None:
    async with open_disk(directory, cipher=CIPHER) as disk:
        assert await read(disk, 0, LARGE) == bytes(LARGE)
        assert slow.waiting == []


async def test_a_request_of_no_length_is_fine(directory: Path) -> None:
    async with open_disk(directory, cipher=CIPHER) as disk:
        await do(disk, write_request(0, b""), read_request(0, 0))


@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("keeps_copies", [False, True])
def test_what_replicas_keep_is_not_written_over_by_the_next_write(blocks: int, keeps_copies: bool) -> None:
    sealer = sealer_module.Sealer(CIPHER, BLOCK, keeps_copies=keeps_copies)
    sealed = sealer.seal([write_request(0, pattern(blocks * BLOCK))])
    rows, contexts = sealer.take(sealed)
    before = rows.copy()
    sealer.give_back(sealed)
    again = sealer.seal([write_request(0, pattern(blocks * BLOCK))])
    assert again.slab is sealed.slab  # or this would show nothing
    assert np.array_equal(rows, before) == keeps_copies
    verify_writes(contexts, before)
