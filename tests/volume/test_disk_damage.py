"""A replica whose files were damaged behind its back is found, named, and healed.

What a failing medium or a careless hand does: random bytes, zeros, a file that is too short, a file of last week.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from disk_rig import (
    digests,
    everything,
    failures,
    flush,
    make_regions,
    pattern,
    region_set,
    until,
    write,
)

from crucible_emu import errors
from crucible_emu.region import Region
from crucible_emu.region.layout import ExtentLayout, extent_path
from crucible_emu.upstairs.states import Phase

ExpectLog = Callable[..., Any]
BLOCK = 512
EXTENT_BLOCKS, EXTENTS = 8, 4
SIZE = BLOCK * EXTENT_BLOCKS * EXTENTS
DAMAGED_BLOCK = 2 * EXTENT_BLOCKS + 3
EXTENT = DAMAGED_BLOCK // EXTENT_BLOCKS


def patch(region: Path, offset: int, data: bytes) -> None:
    with extent_path(region, EXTENT).open("r+b") as file:
        file.seek(offset)
        file.write(data)


def random_bytes(region: Path) -> None:
    patch(region, DAMAGED_BLOCK % EXTENT_BLOCKS * BLOCK, pattern(BLOCK, 99))


def zeroed_block(region: Path) -> None:
    patch(region, DAMAGED_BLOCK % EXTENT_BLOCKS * BLOCK, bytes(BLOCK))


def swapped_blocks(region: Path) -> None:
    """Each of the two is a good block, in the place of the other."""
    file = extent_path(region, EXTENT).read_bytes()
    first, second = DAMAGED_BLOCK % EXTENT_BLOCKS * BLOCK, (DAMAGED_BLOCK % EXTENT_BLOCKS + 1) * BLOCK
    patch(region, first, file[second : second + BLOCK])
    patch(region, second, file[first : first + BLOCK])


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    return make_regions(tmp_path, blocks_per_extent=EXTENT_BLOCKS, extent_count=EXTENTS, count=4)


def whole(regions: list[Path]) -> None:
    assert [failures(region) for region in regions] == [[]] * len(regions)
    assert len(digests(regions)) == 1


async def fill(paths: list[Path], seed: int = 1, generation: int = 1) -> bytes:
    data = pattern(SIZE, seed)
    async with region_set(paths[:3]) as servers, servers.disk(generation) as disk:
        await write(disk, 0, data)
        await flush(disk)
    return data


@pytest.mark.parametrize("how", [random_bytes, zeroed_block, swapped_blocks], ids=lambda how: how.__name__)
@pytest.mark.parametrize("victim", [0, 1, 2])
async def test_damage_in_an_extent_is_named_by_verify_found_by_reading_and_healed(
    paths: list[Path], expect_log: ExpectLog, how: Callable[[Path], None], victim: int
) -> None:
    data = await fill(paths)
    how(paths[victim])
    found = failures(paths[victim])
    assert {failure.extent_id for failure in found} == {EXTENT}
    expect_log(f"damaged block client={victim}", at_least=0)
    expect_log(f"operation failed on a replica client={victim} job=Read", at_least=0)
    expect_log(f"healed block client={victim}", at_least=0)
    async with region_set(paths[:3]) as servers, servers.disk(2) as disk:
        # Every replica is asked for everything: which one a guest's read goes to depends on its extent.
        for client in range(3):
            for block in range(0, SIZE // BLOCK):
                out = memoryview(bytearray(BLOCK))
                await disk.read_blocks(block, 1, out, client)
                assert out == data[block * BLOCK : (block + 1) * BLOCK]
        assert disk.upstairs.statistics.damaged_reads >= 1
        await until(lambda: disk.healer.idle)
        assert disk.upstairs.statistics.healed_blocks == sum(failure.block_count for failure in found)
        await flush(disk)
    whole(paths[:3])


@pytest.mark.parametrize("victim", [0, 1, 2])
async def test_a_stale_copy_of_an_extent_is_replaced_at_activation(paths: list[Path], victim: int) -> None:
    """The file is whole and verifies, but it is last week's: its flush number says so."""
    await fill(paths, 1)
    old = extent_path(paths[victim], EXTENT).read_bytes()
    data = await fill(paths, 2, generation=2)
    extent_path(paths[victim], EXTENT).write_bytes(old)
    assert failures(paths[victim]) == []
    assert len(digests(paths[:3])) == 2
    async with region_set(paths[:3]) as servers, servers.disk(3) as disk:
        assert disk.upstairs.core.reconciled_extents == 1
        assert await everything(disk) == data
    whole(paths[:3])


@pytest.mark.parametrize("length", [0, 5 * BLOCK])
async def test_a_truncated_extent_is_named_and_its_replica_is_replaced(paths: list[Path], length: int) -> None:
    data = await fill(paths)
    with extent_path(paths[1], EXTENT).open("r+b") as file:
        file.truncate(length)
    with pytest.raises(errors.CrucibleError, match=f"extent {EXTENT}|{EXTENT:02X}$|00{EXTENT}"):
        Region.open(paths[1])
    async with region_set([paths[0], paths[3], paths[2]]) as servers, servers.disk(2) as disk:
        assert disk.upstairs.core.reconciled_extents == EXTENTS
        assert await everything(disk) == data
    whole([paths[0], paths[3], paths[2]])


def lost_with_its_context(region: Path) -> None:
    """Zeros without a context are a block that was never written: nothing about it is wrong by itself."""
    layout = ExtentLayout(BLOCK, EXTENT_BLOCKS)
    zeroed_block(region)
    for which in (0, 1):
        patch(region, layout.slot_offset(which, DAMAGED_BLOCK % EXTENT_BLOCKS), bytes(32))


def copy_of_another_extent(region: Path) -> None:
    """A good file under the wrong name."""
    shutil.copyfile(extent_path(region, EXTENT + 1), extent_path(region, EXTENT))


@pytest.mark.parametrize("how", [lost_with_its_context, copy_of_another_extent], ids=lambda how: how.__name__)
async def test_what_looks_whole_by_itself_is_found_by_comparing_and_healed_by_replacing(
    paths: list[Path], how: Callable[[Path], None]
) -> None:
    data = await fill(paths)
    how(paths[2])
    assert failures(paths[2]) == []
    assert len(digests(paths[:2])) == 1
    assert len(digests(paths[:3])) == 2, "the digests differ, and say which replica does"
    async with region_set(paths[:3]) as servers:
        servers.paths.append(paths[3])
        async with servers.disk(2) as disk:
            spare = await servers.start(3)
            disk.upstairs.replace_downstairs(servers.members[2].target, spare.target)
            await until(lambda: all(client.state.phase is Phase.ACTIVE for client in disk.upstairs.core.clients))
            assert await everything(disk) == data
    whole([paths[0], paths[1], paths[3]])
