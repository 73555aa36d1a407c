"""Old extents with an SQLite database: read as they are, migrated so that no interruption loses anything."""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing
from itertools import count

import numpy as np
import pytest
from interrupted_storage import interrupted_everywhere
from region_builder import NONCE, TAG, definition, lcg_bytes, patterned, save_region, save_sqlite_extent

from crucible_emu import errors
from crucible_emu.integrity import EMPTY, ENCRYPTED, PLAIN
from crucible_emu.region import Region, layout, repair_files, sqlite_extent, verify
from crucible_emu.region.layout import ExtentLayout, ExtentMetadata
from crucible_emu.region.storage import OsStorage
from crucible_emu.region.view import RegionView

GEOMETRY = ExtentLayout(512, 10)

MIGRATED_SLOTS = bytes.fromhex(
    "0151d4cdfcf8112c390051d4cdfcf8112c390000000000000000000000000000"
    "00000000000000000000000000000000015a99854fc8bea0d5005a99854fc8be"
    "a0d5000000000000000000000000000000000000000000000000000000000000"
    "01d7fae59a05612c03018445904663dc05fe29d6bf02653d15a7f86ce50c0b26"
    "02ef7fb3b9746077a5da63be8e020000"
)
"""Slots A of blocks 0 to 2 as the real program wrote them when it migrated such an extent (on-disk-format.md A.3)."""
MIGRATED_TAIL = bytes.fromhex("0000 01 0300000000000000 0500000000000000 02000000 00000000 00000000 000000")


def example():
    """The extent of A.3: three blocks whose data comes from the generator of the format's description."""
    first, _ = lcg_bytes(7, 1024)
    third, state = lcg_bytes(11, 512)
    nonce, state = lcg_bytes(state, 12)
    tag, _ = lcg_bytes(state, 16)
    rows = np.zeros((10, 512), np.uint8)
    rows[:3] = np.frombuffer(first + third, np.uint8).reshape(3, 512)
    contexts = [(0, first[:512], None), (1, first[512:], None), (2, third, (nonce, tag))]
    return rows, contexts, ExtentMetadata(True, 3, 5)


@pytest.fixture(params=[False, True], ids=["database", "write-ahead log"])
def region(request, tmp_path):
    """A region of one extent in the old format, its rows in the database or in the log of a crashed program."""
    path = save_region(tmp_path / "r", definition(512, 10, 1))
    save_sqlite_extent(layout.extent_path(path, 0), *example(), log=request.param)
    return path


def files(path):
    """Names and contents of the files of the first extent."""
    return {file.name: file.read_bytes() for file in layout.extent_path(path, 0).parent.iterdir()}


def settle(storage, path):
    repair_files.settle_leftovers(storage, path, 0, GEOMETRY, False)


def test_migration_writes_the_bytes_of_the_real_program(region):
    settle(OsStorage(), region)
    found = files(region)
    assert list(found) == ["000"]
    content = found["000"]
    assert content[:5120] == example()[0].tobytes()
    assert content[0x1400 : 0x1400 + 144] == MIGRATED_SLOTS
    assert not any(content[0x1400 + 144 : 0x17C0])
    assert content[0x17C0:] == MIGRATED_TAIL


def test_looking_reads_the_contexts_and_changes_nothing(region):
    before = files(region)
    with RegionView.open(region).extent(0) as extent:
        blocks = extent.look(0, 10)
        assert extent.metadata == ExtentMetadata(True, 3, 5, ext_version=1)
    assert blocks.contexts.kind.tolist() == [PLAIN, PLAIN, ENCRYPTED] + [EMPTY] * 7
    assert blocks.contexts.hash[0].tobytes() == MIGRATED_SLOTS[1:9]
    assert blocks.contexts.nonce[2].tobytes().hex() == "8445904663dc05fe29d6bf02"
    assert blocks.contexts.tag[2].tobytes().hex() == "653d15a7f86ce50c0b2602ef7fb3b974"
    assert (blocks.rows == example()[0]).all()
    assert list(verify.verify_region(RegionView.open(region))) == []
    assert files(region) == before


def test_region_opens_read_only_without_migrating(region):
    before = files(region)
    with closing(Region.open(region, read_only=True)) as opened:
        out = bytearray(3 * 512)
        contexts = opened.read(0, 3, out)
        assert bytes(out) == example()[0][:3].tobytes()
        assert contexts.kind.tolist() == [PLAIN, PLAIN, ENCRYPTED]
    assert files(region) == before


def test_region_migrates_when_it_opens_read_write(region):
    with closing(Region.open(region)) as opened:
        assert [versions.tolist() for versions in opened.extent_versions()] == [[3], [5], [True]]
    assert list(files(region)) == ["000"]


def test_reading_makes_no_file_beside_the_extent(region):
    directory = layout.extent_path(region, 0).parent
    before = directory.stat().st_mtime_ns
    assert list(verify.verify_region(RegionView.open(region))) == []
    assert directory.stat().st_mtime_ns == before


class TestSeveralRows:
    """Between two flushes a block has one row per content that it had."""

    def save(self, tmp_path, stored, contents, dirty):
        rows = np.zeros((10, 512), np.uint8)
        rows[0] = np.frombuffer(stored, np.uint8)
        path = save_region(tmp_path / "r", definition(512, 10, 1))
        contexts = [(0, data, None) for data in contents]
        save_sqlite_extent(layout.extent_path(path, 0), rows, contexts, ExtentMetadata(dirty, 1, 1))
        return path

    def kind(self, path):
        with RegionView.open(path).extent(0) as extent:
            return extent.look(0, 10).contexts.kind.tolist()[0]

    @pytest.mark.parametrize("dirty", [False, True])
    def test_the_row_that_fits_is_taken(self, tmp_path, dirty):
        old, new = patterned(512, 1), patterned(512, 2)
        path = self.save(tmp_path, new, [old, new], dirty)
        assert self.kind(path) == PLAIN
        settle(OsStorage(), path)
        assert self.kind(path) == PLAIN
        assert list(verify.verify_region(RegionView.open(path))) == []

    def test_without_a_fit_the_block_is_empty(self, tmp_path):
        path = self.save(tmp_path, patterned(512, 3), [patterned(512, 1), patterned(512, 2)], True)
        assert self.kind(path) == EMPTY

    def test_a_single_row_is_believed_when_reading(self, tmp_path):
        path = self.save(tmp_path, patterned(512, 3), [patterned(512, 1)], True)
        assert self.kind(path) == PLAIN

    @pytest.mark.parametrize(("dirty", "kind"), [(True, EMPTY), (False, PLAIN)])
    def test_a_single_row_is_pruned_by_the_migration_of_a_dirty_extent(self, tmp_path, dirty, kind):
        path = self.save(tmp_path, patterned(512, 3), [patterned(512, 1)], dirty)
        settle(OsStorage(), path)
        with RegionView.open(path).extent(0) as extent:
            slots = extent.slots(layout.SLOT_A, 0, 1)
        assert layout.unpack_slots(slots).kind.tolist() == [kind]


class TestInterruptedMigration:
    @pytest.mark.parametrize("kill", [False, True], ids=["fails", "is killed"])
    def test_at_every_step_the_next_open_finishes_it(self, region, tmp_path, kill):
        numbers = count()

        def prepare():
            copy = tmp_path / f"copy{next(numbers)}"
            shutil.copytree(region, copy)
            return copy

        tried = 0
        for copy in interrupted_everywhere(prepare, settle, kill=kill):
            view = RegionView.open(copy)
            assert list(verify.verify_region(view)) == [], "readable in between"
            settle(OsStorage(), copy)
            assert list(files(copy)) == ["000"]
            assert files(copy)["000"][0x1400:0x1490] == MIGRATED_SLOTS
            assert files(copy)["000"][0x17C0:] == MIGRATED_TAIL
            tried += 1
        assert tried >= 10

    def test_logs_without_a_database_are_removed(self, tmp_path):
        path = save_region(tmp_path / "r", definition(512, 10, 1))
        for log in sqlite_extent.log_paths(layout.extent_path(path, 0)):
            log.write_bytes(b"left over")
        settle(OsStorage(), path)
        assert list(files(path)) == ["000"]


class TestForeignDatabases:
    def read(self, region):
        with RegionView.open(region).extent(0):
            raise AssertionError("it opened")

    def change(self, region, statement, *values):
        with closing(sqlite3.connect(sqlite_extent.database_path(layout.extent_path(region, 0)))) as connection:
            connection.execute(statement, values)
            connection.commit()

    def test_no_database(self, region):
        for log in sqlite_extent.log_paths(layout.extent_path(region, 0)):
            log.unlink(missing_ok=True)
        sqlite_extent.database_path(layout.extent_path(region, 0)).write_bytes(b"SQLite format 3?" * 300)
        with pytest.raises(errors.BadMetadata, match="is not the database of an extent"):
            self.read(region)

    @pytest.mark.parametrize(
        ("statement", "kind", "sentence"),
        [
            ("DELETE FROM metadata WHERE name = 'dirty'", errors.BadMetadata, "no number 'dirty'"),
            ("UPDATE metadata SET value = 7 WHERE name = 'ext_version'", errors.BadMetadata, "ext_version 7"),
            ("UPDATE metadata SET value = 2 WHERE name = 'dirty'", errors.BadMetadata, "dirty 2"),
            ("DROP TABLE block_context", errors.BadMetadata, "no such table"),
            ("UPDATE block_context SET block = 10 WHERE block = 2", errors.BadContextSlot, "block 10"),
            ("UPDATE block_context SET nonce = x'00' WHERE block = 2", errors.BadContextSlot, "block 2"),
            ("UPDATE block_context SET hash = 'x' WHERE block = 1", errors.BadContextSlot, "block 1"),
        ],
    )
    def test_what_cannot_be_decoded(self, region, statement, kind, sentence):
        self.change(region, statement)
        with pytest.raises(kind, match=sentence):
            self.read(region)
        before = files(region)["000"]
        with pytest.raises(kind):
            settle(OsStorage(), region)
        assert files(region)["000"] == before

    def test_a_row_without_a_tag_is_plain(self, tmp_path):
        path = save_region(tmp_path / "r", definition(512, 10, 1))
        rows = np.zeros((10, 512), np.uint8)
        save_sqlite_extent(
            layout.extent_path(path, 0), rows, [(0, bytes(512), (NONCE, TAG))], ExtentMetadata(False, 1, 1)
        )
        self.change(path, "UPDATE block_context SET tag = NULL")
        with RegionView.open(path).extent(0) as extent:
            assert extent.look(0, 1).contexts.kind.tolist() == [PLAIN]

    def test_data_file_of_a_wrong_length(self, region):
        os.truncate(layout.extent_path(region, 0), 5119)
        with pytest.raises(errors.BadMetadata, match="file size 5119 does not match expected 5120"):
            self.read(region)
