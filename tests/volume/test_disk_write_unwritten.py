"""Write-unwritten over the border of two extents, whatever was written there before."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import product
from pathlib import Path

import pytest
from disk_rig import digests, do, pattern, read, region_set, write, write_request

from crucible_emu.blockio import Kind
from crucible_emu.upstairs.guest import Guest
from crucible_emu.volume.local_disk import open_disk, region_path

BLOCK = 512
EXTENT = 8  # blocks


@asynccontextmanager
async def either(directory: Path, *, remote: bool) -> AsyncIterator[Guest]:
    """A disk over these regions, in this process or over TCP."""
    async with AsyncExitStack() as stack:
        if remote:
            paths = [region_path(directory, client) for client in range(3)]
            servers = await stack.enter_async_context(region_set(paths))
            yield await stack.enter_async_context(servers.disk())
        else:
            yield await stack.enter_async_context(open_disk(directory))


@pytest.mark.parametrize("remote", [False, True])
async def test_write_unwritten_over_an_extent_border(fresh_disk: Callable[..., Path], remote: bool) -> None:
    """Two blocks on each side of a border, of which any were written before: first, last, in the middle, all, none.
    Three of the sixteen ways fit on a disk; a plain write wins in the end."""
    ways = list(product([False, True], repeat=4))
    for first in range(0, len(ways), 3):
        directory = fresh_disk(BLOCK)
        async with either(directory, remote=remote) as disk:
            for border, written in zip((1, 2, 3), ways[first : first + 3]):
                start = border * EXTENT - 2
                for block in range(4):
                    if written[block]:
                        await write(disk, (start + block) * BLOCK, pattern(BLOCK, block))
                request = write_request(start * BLOCK, pattern(4 * BLOCK, 9))
                request.kind = Kind.WRITE_UNWRITTEN
                await do(disk, request)
                blocks = [
                    pattern(BLOCK, block) if written[block] else pattern(4 * BLOCK, 9)[block * BLOCK :][:BLOCK]
                    for block in range(4)
                ]
                assert await read(disk, start * BLOCK, 4 * BLOCK) == b"".join(blocks)
                assert await read(disk, (start - 1) * BLOCK, BLOCK) == bytes(BLOCK)
            await write(disk, (EXTENT - 2) * BLOCK, pattern(4 * BLOCK, 5))
            assert await read(disk, (EXTENT - 2) * BLOCK, 4 * BLOCK) == pattern(4 * BLOCK, 5)
        assert len(digests([region_path(directory, client) for client in range(3)])) == 1
