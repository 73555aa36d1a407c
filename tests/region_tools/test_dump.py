"""``region dump``: the three texts of the real program, and what decides the exit code."""

from __future__ import annotations

import hashlib

import pytest
from region_builder import NONCE, TAG, ExtentFile, definition, patterned, save_region

from crucible_emu.errors import UsageError
from crucible_emu.region import dump, layout
from crucible_emu.region.layout import ExtentMetadata

RED, GREEN, BLUE, CLEAR = "\x1b[31m", "\x1b[32m", "\x1b[34m", "\x1b[0m"


def with_metadata(*metadata: ExtentMetadata) -> list[ExtentFile]:
    extents = []
    for found in metadata:
        extent = ExtentFile(512, 100)
        extent.metadata = found
        extents.append(extent)
    return extents


@pytest.fixture
def mirrors(tmp_path):
    """Three directories whose third extent differs in its flush numbers."""
    paths = []
    for index in range(3):
        extents = with_metadata(
            ExtentMetadata(False, 3, 5), ExtentMetadata(False, 3, 5), ExtentMetadata(True, 2, 10 + index)
        )
        paths.append(save_region(tmp_path / f"r{index}", definition(512, 100, 3), extents))
    return dump.open_regions(paths)


class TestSummary:
    def test_text_without_colours(self, mirrors):
        found = dump.summarise(mirrors)
        assert list(found.lines()) == [
            "EXT  BLOCKS GEN0 GEN1 GEN2  FL0 FL1 FL2  D0 D1 D2 DIFF",
            "  0 000-099    3    3    3    5   5   5   F  F  F",
            "  1 100-199    3    3    3    5   5   5   F  F  F",
            "  2 200-299    2    2    2   10  11  12   T  T  T <---",
            "Max gen: 3,  Max flush: 12",
        ]
        assert found.different

    def test_colours_mark_what_lags_behind(self, mirrors):
        lines = list(dump.summarise(mirrors).lines(colour=True))
        assert lines[0] == "EXT  BLOCKS GEN0 GEN1 GEN2  FL0 FL1 FL2  D0 D1 D2"
        assert lines[3] == (
            f"  2 200-299 {GREEN}   2 {GREEN}   2 {GREEN}   2{CLEAR}  {RED} 10 {RED} 11 {GREEN} 12{CLEAR} "
            f"  {RED}T  {RED}T  {RED}T{CLEAR}"
        )

    def test_only_differences_fixes_the_widths_at_the_first_row_shown(self, mirrors):
        assert list(dump.summarise(mirrors).lines(only_differences=True)) == [
            "EXT  BLOCKS GEN0 GEN1 GEN2  FL0 FL1 FL2  D0 D1 D2 DIFF",
            "  2 200-299    2    2    2   10  11  12   T  T  T <---",
            "Max gen: 3,  Max flush: 12",
        ]

    def test_wide_numbers_widen_their_columns(self, tmp_path):
        extents = with_metadata(ExtentMetadata(False, 12345, 1234567), ExtentMetadata(False, 1, 1))
        path = save_region(tmp_path / "wide", definition(512, 100, 2), extents)
        assert list(dump.summarise(dump.open_regions([path])).lines()) == [
            "EXT  BLOCKS   GEN0       FL0  D0 DIFF",
            "  0 000-099  12345   1234567   F",
            "  1 100-199      1         1   F",
            "Max gen: 12345,  Max flush: 1234567",
        ]

    def test_equal_directories_are_no_difference(self, tmp_path):
        paths = [save_region(tmp_path / name, definition(512, 100, 2)) for name in ("a", "b")]
        found = dump.summarise(dump.open_regions(paths))
        assert not found.different
        assert found.problems == []
        assert list(found.lines(only_differences=True)) == ["Max gen: 0,  Max flush: 0"]

    def test_extent_that_cannot_be_read_is_named_and_the_rest_shown(self, mirrors):
        path = layout.extent_path(mirrors[1].path, 1)
        path.write_bytes(b"not an extent")
        found = dump.summarise(mirrors)
        assert "  1 column 1 bad " in list(found.lines())
        assert found.problems == [
            f"extent 1 of {mirrors[1].path} cannot be read: the extent's metadata cannot be decoded: "
            "extent 1: file size 13 does not match expected 60845"
        ]

    def test_extent_beyond_one_directory_is_bad(self, tmp_path):
        paths = [save_region(tmp_path / f"r{count}", definition(512, 100, count)) for count in (2, 3)]
        lines = list(dump.summarise(dump.open_regions(paths)).lines())
        assert "  2 column 0 bad " in lines

    def test_json(self, mirrors):
        found = dump.summarise(mirrors).as_json(only_differences=True)
        assert found["different"] is True
        (extent,) = found["extents"]
        assert (extent["extent"], extent["first_block"], extent["last_block"]) == (2, 200, 299)
        assert [row["flush_number"] for row in extent["metadata"]] == [10, 11, 12]


@pytest.fixture
def blocks(tmp_path):
    """Three directories of one extent of ten blocks: block 1 differs in data and context in the last, block 2 in
    the context alone, block 3 in all three, block 4 differs between the first and the two others."""
    paths = []
    contents = {
        1: (1, 1, 2),
        3: (1, 2, 3),
        4: (1, 2, 2),
        5: (1, 2, 1),
    }
    for index in range(3):
        extent = ExtentFile(512, 10)
        extent.write(0, patterned(512, 9))
        for block, seeds in contents.items():
            extent.write(block, patterned(512, seeds[index]))
        extent.write(2, patterned(512, 4), (NONCE, TAG if index < 2 else NONCE + TAG[:4]))
        extent.flush(10 + index, 2)
        extent.metadata = ExtentMetadata(index == 0, 2, 10 + index)
        paths.append(save_region(tmp_path / f"r{index}", definition(512, 10, 1), [extent]))
    return dump.open_regions(paths)


class TestExtent:
    def test_letters_of_data_and_contexts(self, blocks):
        found = dump.compare_extent(blocks, 0)
        assert list(found.lines()) == [
            "           Extent 0",
            "GEN             2        2        2 ",
            "FLUSH_ID       10       11       12 ",
            "DIRTY           D                   ",
            "",
            "BLOCK  D0 D1 D2  C0 C1 C2 DIFF ",
            "000   A  A  A   A  A  A     ",
            "001   A  A  C   A  A  C <---",
            "002   A  A  A   A  A  C <---",
            "003   A  B  C   A  B  C <---",
            "004   A  B  B   A  B  B <---",
            "005   A  B  A   A  B  A <---",
            *(f"00{block}   A  A  A   A  A  A     " for block in range(6, 10)),
        ]
        assert found.different

    def test_only_differences_has_no_last_column(self, blocks):
        lines = list(dump.compare_extent(blocks, 0).lines(only_differences=True))
        assert lines[5:] == [
            "BLOCK  D0 D1 D2  C0 C1 C2",
            "001   A  A  C   A  A  C",
            "002   A  A  A   A  A  C",
            "003   A  B  C   A  B  C",
            "004   A  B  B   A  B  B",
            "005   A  B  A   A  B  A",
        ]

    def test_colours_of_the_letters(self, blocks):
        lines = list(dump.compare_extent(blocks, 0).lines(colour=True))
        row = f"  {GREEN}A{CLEAR}  {BLUE}B{CLEAR}  {RED}C{CLEAR}"
        assert lines[9] == f"003 {row} {row} <---"

    def test_two_directories(self, blocks):
        lines = list(dump.compare_extent(blocks[:2], 0).lines())
        assert lines[5] == "BLOCK  D0 D1  C0 C1 DIFF "
        assert lines[7] == "001   A  A   A  A     "
        assert lines[9] == "003   A  B   A  B <---"

    def test_block_numbers_count_through_the_region(self, tmp_path):
        paths = [save_region(tmp_path / name, definition(512, 100, 3)) for name in ("a", "b")]
        lines = list(dump.compare_extent(dump.open_regions(paths), 2).lines())
        assert lines[6].startswith("200 ")
        assert lines[-1].startswith("299 ")

    def test_empty_and_plain_zeros_differ_in_the_context_alone(self, tmp_path):
        written = ExtentFile(512, 10)
        written.write(0, bytes(512))
        paths = [
            save_region(tmp_path / "a", definition(512, 10, 1)),
            save_region(tmp_path / "b", definition(512, 10, 1), [written]),
        ]
        found = dump.compare_extent(dump.open_regions(paths), 0)
        assert found.as_json(only_differences=True)["blocks"] == [
            {"block": 0, "different": True, "data": "AA", "contexts": "AB"}
        ]

    def test_block_without_a_fitting_context_is_a_problem(self, blocks):
        path = layout.extent_path(blocks[0].path, 0)
        content = bytearray(path.read_bytes())
        geometry = blocks[0].layout
        content[geometry.slot_offset(0, 0) : geometry.slot_offset(0, 1)] = content[
            geometry.slot_offset(1, 0) : geometry.slot_offset(1, 1)
        ]
        content[0] ^= 1
        path.write_bytes(content)
        found = dump.compare_extent(blocks, 0)
        assert len(found.problems) == 1
        assert "block 0 of extent 0" in found.problems[0]

    @pytest.mark.parametrize(
        ("count", "extent", "sentence"),
        [
            (1, 0, "Need more than one region directory to compare data"),
            (3, 1, "Requested extent 1 is a higher index than valid (1)"),
            (3, -1, "Requested extent -1 is a higher index than valid (1)"),
        ],
    )
    def test_wrong_requests(self, blocks, count, extent, sentence):
        with pytest.raises(UsageError) as caught:
            dump.compare_extent(blocks[:count], extent)
        assert str(caught.value) == sentence


class TestBlock:
    def test_plain_block_that_differs(self, blocks):
        found = dump.compare_block(blocks, 3)
        digests = [hashlib.sha256(patterned(512, seed)).hexdigest() for seed in (1, 2, 3)]
        lines = list(found.lines())
        assert lines[:8] == [
            "Extent 0 Block in extent 3  Actual block 3",
            "",
            f"  DATA  SHA256{' ' * 58}  VER",
            f"------  {'-' * 64}  ---",
            f"     0  {digests[0]}   A ",
            f"     1  {digests[1]}   B ",
            f"     2  {digests[2]}   C ",
            "",
        ]
        assert lines[8] == f"NONCES  {'0':^24} {'1':^24} {'2':^24}  DIFF "
        assert lines[9] == f"------  {'-' * 24} {'-' * 24} {'-' * 24} ----- "
        assert lines[10] == ""
        assert lines[11] == f"  TAGS  {'0':^32} {'1':^32} {'2':^32}  DIFF "
        hashes = [row for row in lines if row.startswith("     0  ")][-1]
        assert hashes.endswith(" <--- ")
        assert found.different

    def test_hash_is_shown_in_the_order_of_its_bytes(self, tmp_path):
        extent = ExtentFile(512, 10)
        extent.write(0, b"\x01" * 512)
        paths = [save_region(tmp_path / name, definition(512, 10, 1), [extent]) for name in ("a", "b")]
        found = dump.compare_block(dump.open_regions(paths), 0)
        assert found.hashes == [(8717892996238908351).to_bytes(8, "little").hex()] * 2
        assert not found.different

    def test_sealed_block_shows_nonce_and_tag_and_no_hash(self, blocks):
        found = dump.compare_block(blocks, 2)
        assert found.nonces == [NONCE.hex()] * 3
        assert found.tags == [TAG.hex(), TAG.hex(), (NONCE + TAG[:4]).hex()]
        assert found.hashes == [None, None, None]
        lines = list(found.lines(only_differences=True))
        assert lines[2] == f"NONCES  {'0':^24} {'1':^24} {'2':^24} "
        assert lines[4] == f"     0  {NONCE.hex()} {NONCE.hex()} {NONCE.hex()} "
        assert lines[8] == f"     0  {TAG.hex()} {TAG.hex()} {(NONCE + TAG[:4]).hex()}  <--- "
        assert not any("DATA" in line or "HASHES" in line for line in lines)

    def test_equal_block_shows_nothing_with_only_differences(self, blocks):
        lines = list(dump.compare_block(blocks, 0).lines(only_differences=True))
        assert lines == ["Extent 0 Block in extent 0  Actual block 0", ""]

    def test_block_beyond_the_last(self, blocks):
        with pytest.raises(UsageError, match="Requested block 10 > max block 9"):
            dump.compare_block(blocks, 10)


def test_directories_of_other_geometry_cannot_be_compared(tmp_path):
    paths = [save_region(tmp_path / f"r{blocks}", definition(512, blocks, 1)) for blocks in (10, 20)]
    with pytest.raises(UsageError, match="blocks_per_extent is 10 and 20"):
        dump.open_regions(paths)


def test_four_directories_are_too_many(tmp_path):
    with pytest.raises(UsageError, match="4 directories"):
        dump.open_regions([tmp_path] * 4)


def test_dumping_changes_nothing(blocks):
    def state():
        return {path: path.read_bytes() for path in blocks[0].path.rglob("*") if path.is_file()}

    before = state()
    (blocks[0].path / "00" / "000" / "000.copy").mkdir()
    dump.summarise(blocks)
    dump.compare_extent(blocks, 0)
    dump.compare_block(blocks, 3)
    assert state() == before
    assert (blocks[0].path / "00" / "000" / "000.copy").is_dir()
