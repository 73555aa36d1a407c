"""An encrypted disk: blocks that fail on one replica, memory that is used again."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from disk_rig import Batch, damage, do, flush, pattern, read, read_request, until, write, write_request

from crucible_emu.blockio import Request
from crucible_emu.encryption import Cipher
from crucible_emu.integrity import verify_writes
from crucible_emu.upstairs.row_memory import RowMemory
from crucible_emu.upstairs.sealer import SLAB_BLOCKS_MIN, Sealer
from crucible_emu.volume.local_disk import create, open_disk, region_path

ExpectLog = Callable[..., Any]
BLOCK = 512
LARGE = 64 * BLOCK
CIPHER = Cipher(bytes(range(32)))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """An unwritten disk of four extents."""
    found = tmp_path / "disk"
    create(found, 4 * LARGE, block_size=BLOCK, blocks_per_extent=LARGE // BLOCK, encrypted=True)
    return found


@pytest.mark.parametrize(
    "reads",
    [
        [read_request(0, LARGE)],
        [read_request(at, BLOCK) for at in range(0, LARGE, BLOCK)],
        [read_request(at, BLOCK) for at in range(6 * BLOCK, 8 * BLOCK, BLOCK)],
    ],
    ids=["large", "many-singles", "two-singles"],
)
async def test_a_damaged_block_comes_from_another_replica_and_is_healed(
    directory: Path, reads: list[Request], expect_log: ExpectLog
) -> None:
    expect_log("damaged block client=0", at_least=1)
    expect_log("operation failed on a replica client=0 job=Read", at_least=0)
    expect_log("healed block client=0", at_least=0)
    data = pattern(LARGE)
    async with open_disk(directory, cipher=CIPHER) as disk:
        await write(disk, 0, data)
        await flush(disk)
        damage(region_path(directory, 0), 7)
        await Batch(disk, reads).wait()
        for request in reads:
            assert request.error is None
            assert bytes(request.buffer or b"") == data[request.offset : request.offset + request.length]
        await until(lambda: disk.healer.idle)
        assert disk.upstairs.statistics.healed_blocks == 1


async def test_writes_and_reads_that_come_together_keep_their_order(directory: Path) -> None:
    async with open_disk(directory, cipher=CIPHER) as disk:
        large, small = pattern(LARGE), pattern(BLOCK, seed=2)
        batch = Batch(
            disk,
            [write_request(0, large), read_request(0, BLOCK), write_request(0, small), read_request(0, 2 * BLOCK)],
        )
        await batch.wait()
        assert bytes(batch.requests[1].buffer or b"") == large[:BLOCK]
        assert bytes(batch.requests[3].buffer or b"") == small + large[BLOCK : 2 * BLOCK]


async def test_what_was_never_written_reads_as_zeros(directory: Path) -> None:
    async with open_disk(directory, cipher=CIPHER) as disk:
        await do(disk, write_request(0, b""), read_request(0, 0))
        assert await read(disk, 0, LARGE) == bytes(LARGE)


async def test_single_reads_of_what_was_written_and_of_what_never_was(directory: Path) -> None:
    async with open_disk(directory, cipher=CIPHER) as disk:
        await write(disk, BLOCK, pattern(BLOCK))
        for _flushed in (False, True):
            batch = Batch(disk, [read_request(at * BLOCK, BLOCK) for at in range(3)])
            await batch.wait()
            found = b"".join(bytes(request.buffer or b"") for request in batch.requests)
            assert found == bytes(BLOCK) + pattern(BLOCK) + bytes(BLOCK)
            await flush(disk)


@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("keeps_copies", [False, True])
def test_what_replicas_keep_is_not_written_over_by_the_next_write(blocks: int, keeps_copies: bool) -> None:
    sealer = Sealer(CIPHER, BLOCK, copies=RowMemory() if keeps_copies else None)
    payload = memoryview(pattern(blocks * BLOCK))
    rows, contexts = sealer.seal([payload])
    before = rows.copy()
    sealer.seal([payload])
    assert np.array_equal(rows, before) == keeps_copies  # or this would show nothing
    verify_writes(contexts, before)


def test_payloads_of_many_blocks_and_of_one_are_sealed_in_their_order() -> None:
    sealer = Sealer(CIPHER, BLOCK, copies=RowMemory())
    data = pattern((3 * SLAB_BLOCKS_MIN + 2) * BLOCK)
    cuts = pairwise([0, BLOCK, 4 * BLOCK, 5 * BLOCK, len(data)])
    rows, contexts = sealer.seal([memoryview(data)[start:stop] for start, stop in cuts])
    verify_writes(contexts, rows)
    assert CIPHER.decrypt_blocks(rows, contexts) is None
    assert rows.tobytes() == data
