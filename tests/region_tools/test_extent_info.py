"""``region info``: the text of the real extent-info, byte for byte."""

from __future__ import annotations

from pathlib import Path

import pytest
from region_builder import UUIDS, definition

from crucible_emu.errors import UsageError
from crucible_emu.region import extent_info
from crucible_emu.region.layout import ExtentLayout

DATA = Path(__file__).parent.parent / "data" / "region_tools"


def test_text_is_that_of_the_real_program():
    found = definition(512, 100, 3, UUIDS[9])
    assert (
        extent_info.as_text(Path("DIR"), found, (5, 17)) == (DATA / "extent_info_512x100_blocks_5-17.txt").read_text()
    )


def test_blocks_within_one_byte_of_the_bitmap():
    text = extent_info.as_text(Path("DIR"), definition(512, 100, 3), (8, 8))
    assert "=== Block 8 File Offsets ===" in text
    assert "Active Context Bits:  0x0000ed81 bits 0-0 (0 = Slot A, 1 = Slot B)" in text


def test_without_blocks_there_is_no_third_part():
    text = extent_info.as_text(Path("DIR"), definition(512, 100, 3))
    assert text.endswith("60845\n")
    assert "File Offsets" not in text


def test_json_has_the_offsets_of_the_text():
    found = extent_info.as_json(Path("DIR"), definition(512, 100, 3), (5, 17))
    assert found["extent_file_bytes"] == 60845
    assert [(part["start"], part["end"]) for part in found["sections"]] == [
        (0, 0xC7FF),
        (0xC800, 0xDABF),
        (0xDAC0, 0xED7F),
        (0xED80, 0xED8C),
        (0xED8D, 0xEDAC),
    ]
    blocks = found["blocks"]
    assert (blocks["data_start"], blocks["data_end"]) == (0xA00, 0x23FF)
    assert (blocks["slot_a_start"], blocks["slot_a_end"]) == (0xC8F0, 0xCB5F)
    assert (blocks["slot_b_start"], blocks["slot_b_end"]) == (0xDBB0, 0xDE1F)
    assert (blocks["bitmap_start"], blocks["bitmap_start_bit"]) == (0xED80, 5)
    assert (blocks["bitmap_end"], blocks["bitmap_end_bit"]) == (0xED82, 1)


@pytest.mark.parametrize(("text", "blocks"), [("0", (0, 0)), ("5-17", (5, 17)), ("99-99", (99, 99))])
def test_block_ranges(text, blocks):
    assert extent_info.parse_blocks(text, ExtentLayout(512, 100)) == blocks


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("x", "'x' is not a block or a range of blocks: write N or N-M"),
        ("1-2-3", "'1-2-3' is not a block or a range of blocks: write N or N-M"),
        ("-1", "'-1' is not a block or a range of blocks: write N or N-M"),
        ("7-5", "the range 7-5 ends before it starts: write the smaller block first"),
        ("0-100", "block 100 is outside the extent, whose blocks are 0 to 99"),
    ],
)
def test_wrong_block_ranges(text, sentence):
    with pytest.raises(UsageError) as caught:
        extent_info.parse_blocks(text, ExtentLayout(512, 100))
    assert str(caught.value) == sentence
