"""A file's bytes into a disk, and Ctrl-C in the middle of it."""

from __future__ import annotations

import io
import signal

import pytest
import trio
from blake3 import blake3

from nexus.client.external import BULK_WRITE_BYTES_MAX
from nexus.client.imports import import_blocks

BLOCK = 512


class Disk:
    """A disk that takes bulk writes; ``pieces`` by offset."""

    def __init__(self) -> None:
        self.pieces: dict[int, bytes] = {}

    async def disk_bulk_write_import(self, disk: str, offset: int, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self.pieces[offset] = data


async def test_zeros_are_not_sent_and_the_last_piece_fills_its_block() -> None:
    disk, done = Disk(), []
    data = b"x" * BULK_WRITE_BYTES_MAX + bytes(BULK_WRITE_BYTES_MAX) + b"y" * 100
    found = await import_blocks(disk, "id", io.BytesIO(data), BLOCK, done.append)  # type: ignore[arg-type]  # stands in
    assert (found.size_bytes, found.data_bytes) == (len(data), BULK_WRITE_BYTES_MAX + 100)
    assert found.blake3 == blake3(data).hexdigest() and sum(done) == len(data)
    last = 2 * BULK_WRITE_BYTES_MAX
    assert disk.pieces == {0: data[:BULK_WRITE_BYTES_MAX], last: b"y" * 100 + bytes(BLOCK - 100)}


def test_race_of_control_c_with_the_start_of_a_write() -> None:
    """Between the making of a task and its start it would leave what nobody awaits; so it waits for a checkpoint."""
    acquire = trio.Semaphore.acquire
    raised_at_once = True

    async def interrupted(self: trio.Semaphore) -> None:
        nonlocal raised_at_once
        await acquire(self)
        signal.raise_signal(signal.SIGINT)
        raised_at_once = False

    async def main() -> None:
        data = b"x" * (8 * BULK_WRITE_BYTES_MAX)
        await import_blocks(Disk(), "id", io.BytesIO(data), BLOCK, lambda _: None)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trio.Semaphore, "acquire", interrupted)
        with pytest.raises(BaseExceptionGroup) as caught:
            trio.run(main)
    assert caught.group_contains(KeyboardInterrupt)
    assert not raised_at_once
