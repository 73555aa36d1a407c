"""``region verify``: every bad block is found and named, in a region and in a single file."""

from __future__ import annotations

import csv
import io
import runpy
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from region_builder import NONCE, TAG, ExtentFile, definition, patterned, save_region

from crucible_emu import errors
from crucible_emu.region import layout, verify
from crucible_emu.region.layout import ExtentLayout
from crucible_emu.region.view import RegionView

REFERENCE = Path(__file__).parents[3] / "shared" / "spec" / "disk_examples.py"


@pytest.fixture
def extent():
    """Ten blocks: five written, one of them twice and one sealed; flushed, then one written again."""
    found = ExtentFile(512, 10)
    for block in range(4):
        found.write(block, patterned(512, block))
    found.write(4, patterned(512, 4), (NONCE, TAG))
    found.write(0, patterned(512, 100))
    found.flush(5, 3)
    return found


@pytest.fixture
def path(tmp_path, extent):
    return save_region(tmp_path / "r", definition(512, 10, 2), [extent])


def failures(path):
    return list(verify.verify_region(RegionView.open(path)))


def damage(path, extent_id, offset, value=0xFF):
    file = layout.extent_path(path, extent_id)
    content = bytearray(file.read_bytes())
    content[offset] ^= value
    file.write_bytes(content)


class TestRegion:
    def test_sound_region_has_no_failures(self, path):
        assert failures(path) == []

    def test_progress_counts_every_block(self, path):
        done = []
        list(verify.verify_region(RegionView.open(path), done.append))
        assert sum(done) == 20

    def test_damaged_block_is_named(self, path):
        damage(path, 0, 3 * 512 + 7)
        (failure,) = failures(path)
        assert str(failure) == (
            f"validation failed for extent 0 (file {path}/00/000/000): block 3 has an active slot with mismatched hash"
        )
        assert failure.as_json()["blocks"] == [{"first": 3, "last": 3}]

    def test_all_damaged_blocks_are_counted(self, path):
        for block in (1, 2, 4, 9):
            damage(path, 0, block * 512)
        (failure,) = failures(path)
        assert failure.reason == "block 1 has an active slot with mismatched hash"
        assert failure.blocks == ((1, 3), (4, 5), (9, 10))
        assert str(failure).endswith("(and 3 more)")

    def test_data_without_a_context_is_named(self, path):
        damage(path, 1, 6 * 512)
        (failure,) = failures(path)
        assert failure.extent_id == 1
        assert failure.reason == "block 6 has an empty active slot, but contains non-zero data"

    def test_damaged_slot_is_named(self, path, extent):
        damage(path, 0, extent.layout.slot_offset(layout.SLOT_B, 2) + 12)
        (failure,) = failures(path)
        assert failure.reason == "block 2 has an active slot with mismatched hash"

    def test_slot_that_does_not_decode_fails_its_extent(self, path, extent):
        damage(path, 0, extent.layout.slot_offset(layout.SLOT_B, 2), 6)
        (failure,) = failures(path)
        assert failure.blocks == ()
        assert failure.reason == "a context slot cannot be decoded: tag for enum is not valid, found 7"

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (None, "No such file or directory"),
            (b"short", "file size 5 does not match expected"),
            (bytes(10 * 512 + 960 + 2 + 32), "has unknown tag 0"),
        ],
    )
    def test_extent_that_does_not_open_is_one_failure(self, path, content, reason):
        file = layout.extent_path(path, 0)
        file.unlink() if content is None else file.write_bytes(content)
        damage(path, 1, 0)
        first, second = failures(path)
        assert reason in first.reason
        assert second.extent_id == 1

    def test_dirty_extent_is_judged_by_the_recovery_rule(self, tmp_path, extent):
        extent.write(1, patterned(512, 50))
        assert extent.metadata.dirty
        path = save_region(tmp_path / "dirty", definition(512, 10, 1), [extent])
        assert failures(path) == []
        damage(path, 0, 512)
        (failure,) = failures(path)
        assert failure.reason == "block 1 has two slots, neither of which matches its data"

    def test_nothing_is_changed(self, path):
        before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
        failures(path)
        assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before


class TestGeometry:
    @given(shift=st.integers(9, 15), blocks=st.integers(1, 5000))
    def test_the_right_geometry_is_always_among_the_guesses(self, shift, blocks):
        found = ExtentLayout(1 << shift, blocks)
        assert found in verify.guess_geometry(found.file_bytes)
        assert verify.guess_geometry(found.file_bytes, 1 << shift) == [found]

    def test_ambiguous_length_needs_the_block_size(self, tmp_path):
        assert ExtentLayout(16384, 10).file_bytes == ExtentLayout(512, 271).file_bytes
        ExtentFile(16384, 10).save(tmp_path / "extent")
        with pytest.raises(errors.UsageError, match=r"271 blocks of 512, 10 blocks of 16384.*--block-size"):
            verify.open_file(tmp_path / "extent")
        assert verify.open_file(tmp_path / "extent", 16384).layout.blocks == 10

    @pytest.mark.parametrize(
        ("content", "sentence"),
        [(b"", "too short"), (b"x" * 4096, "found 120"), (bytes(4096), "expected extent version 2, got 0")],
    )
    def test_foreign_files_are_told_apart(self, tmp_path, content, sentence):
        (tmp_path / "foreign").write_bytes(content)
        with pytest.raises(errors.BadMetadata, match=sentence):
            verify.open_file(tmp_path / "foreign")

    def test_truncated_extent_is_no_extent(self, tmp_path, extent):
        content = extent.content()
        (tmp_path / "cut").write_bytes(content[:100] + content[-32:])
        with pytest.raises(errors.BadMetadata, match="no extent of any block size has 132 bytes"):
            verify.open_file(tmp_path / "cut")


class TestFile:
    def judge(self, extent, path):
        extent.save(path)
        file = verify.open_file(path, extent.layout.block_size)
        return file, list(verify.verify_file(file, chunk_blocks=4))

    def test_summary_line(self, tmp_path):
        found = ExtentFile(512, 100)
        found.flush(5, 3)
        found.metadata = layout.ExtentMetadata(False, 3, 5, bonus_sync_count=1)
        file, _ = self.judge(found, tmp_path / "extent")
        assert file.summary() == (
            "bs:512 bytes  bc:   100  dirty:false gen:3 flush_number:     5 ext_ver:2 bonus_sync:1 defrag:0"
        )

    def test_csv_has_the_columns_of_the_real_program(self, tmp_path, extent):
        file, seen = self.judge(extent, tmp_path / "extent")
        comment, header = file.csv_head()
        assert comment == (
            f"# file:{tmp_path}/extent bs:512 bytes  bc:10  dirty:false gen:3 flush_number:5 ext_ver:2 "
            "bonus_sync:0 defrag:0"
        )
        text = "\n".join([header, *(row for part in seen for row in file.csv_rows(part))])
        rows = list(csv.DictReader(io.StringIO(text)))
        assert [row["block"] for row in rows] == [str(block) for block in range(10)]
        hashes = [str(int(verify.hash_blocks(extent.rows[block : block + 1])[0])) for block in range(10)]
        assert rows[0] == {
            "file": f"{tmp_path}/extent",
            "block": "0",
            "dirty": "false",
            "status": "ok",
            "slot_a_result": "HashMatch",
            "slot_a_flush_id": "0",
            "slot_a_hash": hashes[0],
            "slot_b_result": "SlotHashMismatch",
            "slot_b_flush_id": "0",
            "slot_b_hash": rows[0]["slot_b_hash"],
            "selected_slot": "true",
            "data_hash": hashes[0],
            "all_zeros": "false",
        }
        assert (rows[1]["slot_a_result"], rows[1]["slot_a_hash"]) == ("EmptySlotWithNonzeroData", "")
        assert (rows[1]["slot_b_result"], rows[1]["selected_slot"]) == ("HashMatch", "false")
        assert rows[4]["slot_b_hash"] == hashes[4]
        assert (rows[9]["slot_a_result"], rows[9]["all_zeros"]) == ("BlockEmpty", "true")

    def test_error_of_a_clean_file_names_the_selected_slot_first(self, tmp_path, extent):
        extent.rows[1, 0] ^= 1
        file, seen = self.judge(extent, tmp_path / "extent")
        assert file.describe(seen[0], 1) == (
            "Error at block      1:  slot B [selected]: Err(SlotHashMismatch), flush id: 0"
            " | slot A [deselected]: Err(EmptySlotWithNonzeroData)"
        )

    def test_success_of_a_clean_file(self, tmp_path, extent):
        file, seen = self.judge(extent, tmp_path / "extent")
        assert file.describe(seen[2], 1) == (
            "Success at block 9:  slot A [selected]: Ok(BlockEmpty) | slot B [deselected]: Ok(BlockEmpty)"
            "  Block is all zeros"
        )

    def test_dirty_file_needs_one_fitting_slot(self, tmp_path, extent):
        extent.write(1, patterned(512, 50))
        extent.rows[2, 0] ^= 1
        extent.slots[layout.SLOT_A][2] = extent.slots[layout.SLOT_B][1]
        file, seen = self.judge(extent, tmp_path / "extent")
        assert np.flatnonzero(np.concatenate([part.bad for part in seen])).tolist() == [2]
        assert file.describe(seen[0], 2) == (
            "Error at block 2:  slot A: SlotHashMismatch, flush id: 0 | slot B: SlotHashMismatch, flush id: 0"
        )
        assert file.describe(seen[0], 1) == (
            "Success at block 1:  slot A: Ok(HashMatch), flush id: 5 | slot B: Err(SlotHashMismatch), flush id: 0"
        )

    def test_slot_that_does_not_decode_is_located(self, tmp_path, extent):
        extent.slots[layout.SLOT_B][6, 0] = 9
        with pytest.raises(errors.BadContextSlot, match="found 9, in slot B of blocks 4 to 7 of"):
            self.judge(extent, tmp_path / "extent")

    def test_a_name_with_a_comma_is_quoted(self, tmp_path, extent):
        file, seen = self.judge(extent, tmp_path / 'a,"b"')
        assert next(file.csv_rows(seen[0])).startswith(f'"{tmp_path}/a,""b""",0,')

    @pytest.mark.skipif(not REFERENCE.exists(), reason="the reference model of the format is not at hand")
    @given(
        seed=st.integers(0, 2**32),
        size=st.sampled_from([512, 4096]),
        dirty=st.booleans(),
        damaged=st.lists(st.integers(0, 40 * 64), max_size=3),
    )
    def test_verdicts_are_those_of_the_reference_model(self, tmp_path_factory, seed, size, dirty, damaged):
        reference = runpy.run_path(str(REFERENCE))
        rng = np.random.default_rng(seed)
        extent = ExtentFile(size, 8)
        for block in rng.integers(0, 8, 12).tolist():
            extent.write(block, rng.bytes(size), (NONCE, TAG) if rng.random() < 0.3 else None)
        if not dirty:
            extent.flush(9, 2)
        content = bytearray(extent.content())
        for place in damaged:
            content[place % extent.layout.data_bytes] ^= 0x55
        path = tmp_path_factory.mktemp("raw") / "extent"
        path.write_bytes(content)
        block_size, blocks, metadata, bad = reference["verify_raw"](path, size)
        file = verify.open_file(path, size)
        assert (file.layout.block_size, file.layout.blocks) == (block_size, blocks)
        assert (file.metadata.dirty, file.metadata.flush_number) == (metadata["dirty"], metadata["flush"])
        found = np.concatenate([part.bad for part in verify.verify_file(file)])
        assert np.flatnonzero(found).tolist() == bad.tolist()
