"""Where the regions of run-many are, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from crucible_emu.errors import UsageError
from crucible_emu.integrity import BlockContexts, hash_blocks
from crucible_emu.region import Region
from crucible_emu.supervisor.layout import definitions, make_regions, newest_generation, places, uuid_of


def test_one_directory_three_or_one_for_each(tmp_path: Path) -> None:
    one = places([tmp_path], 4, 8810)
    assert [each.region for each in one] == [tmp_path / str(port) for port in (8810, 8820, 8830, 8840)]
    disks = [tmp_path / name for name in "abc"]
    assert [each.region.parent.name for each in places(disks, 6, 8810)] == list("abcabc")
    four = [tmp_path / name for name in "abcd"]
    assert [(each.region.parent.name, each.port) for each in places(four, 4, 100, 1)] == [
        ("a", 100),
        ("b", 101),
        ("c", 102),
        ("d", 103),
    ]


def test_counts_and_ports_that_do_not_fit(tmp_path: Path) -> None:
    for directories, count, base, step, words in (
        ([tmp_path] * 2, 3, 8810, 10, "2 directories were given for 3 regions: give one, 3, or one per region"),
        ([tmp_path], 0, 8810, 10, "at least 1"),
        ([tmp_path], 3, 61530, 10, "ports 61530 to 61550 are not all usable"),
        ([tmp_path], 3, 8810, 0, "a port step of 0"),
    ):
        with pytest.raises(UsageError, match=words):
            places(directories, count, base, step)


def test_uuids_carry_the_port() -> None:
    assert str(uuid_of(8810)) == "12345678-0000-0000-0000-000000008810"


def test_regions_are_made_once_and_again_only_with_cleanup(tmp_path: Path) -> None:
    wanted = places([tmp_path], 3, 8810)
    with pytest.raises(UsageError, match="say --create"):
        definitions(wanted)
    make_regions(wanted, block_size=512, blocks_per_extent=4, extent_count=2)
    assert [each.uuid for each in definitions(wanted)] == [uuid_of(each.port) for each in wanted]
    with pytest.raises(UsageError, match="say --cleanup"):
        make_regions(wanted)
    make_regions(wanted, block_size=512, blocks_per_extent=4, extent_count=3, encrypted=True, cleanup=True)
    assert {(each.extent_count, each.encrypted) for each in definitions(wanted)} == {(3, True)}


def test_nothing_but_a_region_is_ever_deleted(tmp_path: Path) -> None:
    wanted = places([tmp_path], 3, 8810)
    (tmp_path / "8820").mkdir()
    (tmp_path / "8820" / "letters.txt").write_text("mine")
    with pytest.raises(UsageError, match="exists and is no region"):
        make_regions(wanted, cleanup=True)
    assert not (tmp_path / "8810").exists()
    assert (tmp_path / "8820" / "letters.txt").read_text() == "mine"


def test_regions_that_are_there_are_taken_as_they_are(tmp_path: Path) -> None:
    mine = [tmp_path / f"r{index}" for index in range(3)]
    for path, place in zip(mine, places([tmp_path], 3, 8810)):
        make_regions([type(place)(0, path, place.port)], block_size=512, blocks_per_extent=4, extent_count=2)
    found = places(mine, 3, 9000)
    assert [each.region for each in found] == mine
    assert len(definitions(found)) == 3
    with pytest.raises(UsageError, match="named twice"):
        places([mine[0]] * 3, 3, 9000)


def test_regions_of_different_kinds_are_refused(tmp_path: Path) -> None:
    wanted = places([tmp_path], 3, 8810)
    make_regions(wanted[:2], block_size=512, blocks_per_extent=4, extent_count=2)
    make_regions(wanted[2:], block_size=512, blocks_per_extent=4, extent_count=2, encrypted=True)
    with pytest.raises(UsageError, match="same geometry and encryption"):
        definitions(wanted)


def test_newest_generation_is_over_all_regions(tmp_path: Path) -> None:
    wanted = places([tmp_path], 3, 8810)
    make_regions(wanted, block_size=512, blocks_per_extent=4, extent_count=2)
    assert newest_generation(wanted) == 0
    with Region.open(wanted[1].region) as region:
        _write_and_flush(region, generation=7)
    assert newest_generation(wanted) == 7


def _write_and_flush(region: Region, generation: int) -> None:
    rows = np.ones((1, region.definition.block_size), np.uint8)
    region.write(np.array([0], np.int64), rows, BlockContexts.plain(hash_blocks(rows)))
    region.flush(1, generation)
