"""A mirrored disk as a file of bytes: random operations of any size and place, over several generations."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from random import Random

import pytest
from disk_rig import KEY, digests, region_set

from crucible_emu.upstairs.guest import Guest
from crucible_emu.volume.local_disk import open_disk, region_path
from crucible_emu.volume.pseudo_file import PseudoFile

SIZE = 32 * 512
ROUNDS, OPERATIONS = 4, 250


async def exercise(disk: Guest, model: bytearray, random: Random) -> None:
    """Reads and writes at random places, each read compared with the model."""
    file = PseudoFile(disk)
    for _ in range(OPERATIONS):
        offset = random.randrange(SIZE)
        length = random.randrange(min(SIZE - offset, 2000) + 1)
        file.seek(offset)
        if random.random() < 0.5:
            data = random.randbytes(length)
            await file.write(data)
            model[offset : offset + length] = data
        else:
            assert await file.read(length) == model[offset : offset + length]
    await file.flush()


@pytest.mark.parametrize("encrypted", [False, True])
@pytest.mark.parametrize("remote", [False, True])
async def test_a_thousand_operations_over_rising_generations(
    fresh_disk: Callable[..., Path], remote: bool, encrypted: bool
) -> None:
    directory = fresh_disk(512, encrypted and remote)
    paths = [region_path(directory, client) for client in range(3)]
    model, random = bytearray(SIZE), Random(f"{remote} {encrypted}")
    for round_number in range(ROUNDS):
        async with AsyncExitStack() as stack:
            if remote:
                servers = await stack.enter_async_context(region_set(paths))
                key = KEY if encrypted else None
                disk = await stack.enter_async_context(servers.disk(1 + 10 * round_number, key=key))
            else:
                disk = await stack.enter_async_context(open_disk(directory))
            file = PseudoFile(disk)
            assert await file.read(SIZE) == model, "what the round before has left"
            await exercise(disk, model, random)
    assert len(digests(paths)) == 1


@pytest.mark.parametrize(("offset", "length"), [(0, 512), (0, SIZE), (29, 5000), (647, 39), (511, 2), (SIZE - 1, 1)])
async def test_bytes_at_any_place_come_back(fresh_disk: Callable[..., Path], offset: int, length: int) -> None:
    """As copying tools use it: written through one opening, read through the next; the neighbours stay."""
    directory = fresh_disk(512)
    data = Random(offset).randbytes(length)
    async with open_disk(directory) as disk:
        file = PseudoFile(disk)
        await file.write(b"\x11" * SIZE)
        file.seek(offset)
        await file.write(data)
    async with open_disk(directory) as disk:
        assert await PseudoFile(disk).read(SIZE) == b"\x11" * offset + data + b"\x11" * (SIZE - offset - length)
