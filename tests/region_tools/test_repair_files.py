"""Replacing an extent: checked before it happens, and the old or the new one after any interruption."""

from __future__ import annotations

import os
import shutil
from contextlib import closing
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from interrupted_storage import InterruptedStorage, interrupted_everywhere
from region_builder import ExtentFile, definition, patterned, save_region, save_sqlite_extent

from crucible_emu import errors
from crucible_emu.region import Region, layout, repair_files, verify
from crucible_emu.region.clone import LocalSource, copy_extent, run_now
from crucible_emu.region.layout import ExtentLayout, ExtentMetadata
from crucible_emu.region.repair_files import RAW, Download, FileType, offered_types, settle_leftovers
from crucible_emu.region.storage import OsStorage
from crucible_emu.region.view import RegionView

GEOMETRY = ExtentLayout(4096, 40)
DEFINITION = definition(4096, 40, 2)


def extent_with(*seeds, gen=1, flush=1):
    found = ExtentFile(4096, 40)
    for block, seed in enumerate(seeds):
        found.write(block, patterned(4096, seed))
    found.flush(flush, gen)
    return found


OLD, NEW = extent_with(1, 2, 3), extent_with(1, 20, 3, 4, flush=9)


@pytest.fixture
def target(tmp_path):
    return save_region(tmp_path / "target", DEFINITION, [OLD, OLD])


@pytest.fixture
def source(tmp_path):
    return save_region(tmp_path / "source", DEFINITION, [NEW, NEW])


def files_of(region, extent_id=0):
    """What stands beside the extent, by name; directories end with a slash."""
    extent = layout.extent_path(region, extent_id)
    return sorted(file.name + "/" * file.is_dir() for file in extent.parent.glob(f"{extent.name}*"))


def bytes_of(region, extent_id=0):
    return layout.extent_path(region, extent_id).read_bytes()


def repair(storage, target, source, cloning=False):
    run_now(copy_extent(storage, target, 0, GEOMETRY, LocalSource(OsStorage(), source), cloning=cloning))


def reopen(region):
    """What the next read-write open does."""
    return settle_leftovers(OsStorage(), region, 0, GEOMETRY, False)


class TestRepair:
    def test_extent_becomes_that_of_the_source_byte_for_byte(self, target, source):
        mode = layout.extent_path(target, 0).stat().st_mode
        repair(OsStorage(), target, source)
        assert bytes_of(target) == NEW.content()
        assert bytes_of(target, 1) == OLD.content()
        assert files_of(target) == ["000"]
        assert layout.extent_path(target, 0).stat().st_mode == mode

    def test_holes_arrive_as_holes(self, tmp_path):
        found = definition(4096, 4096, 1)
        geometry = ExtentLayout(4096, 4096)
        for name in ("source", "target"):
            with closing(Region.create(tmp_path / name, found)):
                pass
        source = LocalSource(OsStorage(), tmp_path / "source")
        run_now(copy_extent(OsStorage(), tmp_path / "target", 0, geometry, source, cloning=False))
        assert os.stat(layout.extent_path(tmp_path / "target", 0)).st_blocks * 512 < 1 << 19

    def test_order_of_the_steps(self, target, source):
        storage = InterruptedStorage()
        repair(storage, target, source)
        named = [step for step in storage.steps if step != "pwrite"]
        assert named == [
            "make_directories",  # 000.copy
            "create 000",
            "ftruncate",
            "fsync",
            "rename",  # over the extent
            "sync_directory",
            "remove_tree",  # 000.copy
            "sync_directory",
        ]

    @pytest.mark.parametrize("kill", [False, True], ids=["fails", "is killed"])
    def test_interrupted_anywhere_the_next_open_finds_the_old_or_the_new(self, target, source, tmp_path, kill):
        numbers = count()

        def prepare():
            copy = tmp_path / f"copy{next(numbers)}"
            shutil.copytree(target, copy)
            return copy

        outcomes = []
        for copy in interrupted_everywhere(prepare, lambda storage, path: repair(storage, path, source), kill=kill):
            declared = "000.replace/" in files_of(copy) or "000.completed/" in files_of(copy)
            if not declared and bytes_of(copy) != NEW.content():
                assert bytes_of(copy) == OLD.content(), "nothing changes before the copy is whole"
            reopen(copy)
            assert files_of(copy) == ["000"]
            assert bytes_of(copy) in (OLD.content(), NEW.content())
            if declared:
                assert bytes_of(copy) == NEW.content()
            outcomes.append(bytes_of(copy) == NEW.content())
        assert outcomes == sorted(outcomes), "once it is new it stays new"
        assert True in outcomes
        assert False in outcomes

    @pytest.mark.parametrize("kill", [False, True], ids=["fails", "is killed"])
    def test_interrupted_replay_is_replayed(self, target, source, tmp_path, kill):
        shutil.copytree(layout.extent_path(source, 0).parent, tmp_path / "kept")
        numbers = count()

        def prepare():
            copy = tmp_path / f"copy{next(numbers)}"
            shutil.copytree(target, copy)
            replace = layout.extent_path(copy, 0).with_name("000.replace")
            replace.mkdir()
            (replace / "000").write_bytes(NEW.content())
            for leftover in ("000.copy", "000.completed"):
                replace.with_name(leftover).mkdir()
                (replace.with_name(leftover) / "000").write_bytes(b"half")
            return copy

        def act(storage, path):
            settle_leftovers(storage, path, 0, GEOMETRY, False)

        for copy in interrupted_everywhere(prepare, act, kill=kill):
            reopen(copy)
            assert bytes_of(copy) == NEW.content()
            assert files_of(copy) == ["000"]

    def test_failed_download_can_be_repeated_at_once(self, target, source):
        with pytest.raises(OSError):
            repair(InterruptedStorage(3), target, source)
        assert files_of(target) == ["000"]
        repair(OsStorage(), target, source)
        assert bytes_of(target) == NEW.content()

    def test_leftovers_of_a_download_that_cannot_be_removed_are_logged(self, target, source, expect_log):
        class Stuck(InterruptedStorage):
            def __getattr__(self, name):
                if name == "remove_tree" and self.reached:
                    raise OSError(5, "Input/output error")
                return super().__getattr__(name)

        with expect_log("repair leftovers stay"), pytest.raises(OSError):
            repair(Stuck(3), target, source)
        assert "000.copy/" in files_of(target)

    @pytest.mark.parametrize("leftover", ["000.copy", "000.replace"])
    def test_an_unfinished_repair_must_be_settled_first(self, target, source, leftover):
        layout.extent_path(target, 0).with_name(leftover).mkdir()
        with pytest.raises(errors.IoError, match=f"{leftover} already exists"):
            repair(OsStorage(), target, source)
        assert bytes_of(target) == OLD.content()
        assert f"{leftover}/" in files_of(target)

    def test_repaired_extent_opens(self, target, source):
        with closing(Region.open(target)) as region:
            region.close_extent(0)
            repair(OsStorage(), target, source)
            region.reopen_extent(0)
            out = bytearray(4096)
            region.read(1, 1, out)
            assert out == patterned(4096, 20)
            assert region.extent_versions()[1].tolist() == [9, 1]


class SourceOf:
    """A source whose files are given as bytes."""

    def __init__(self, files, *, ready=True, breaks_after=None):
        self.contents = files
        self.is_ready = ready
        self.breaks_after = breaks_after

    async def files(self, extent_id):
        return [kind.name_of(path_of(extent_id)) for kind in self.contents]

    async def stream(self, extent_id, kind):
        content = self.contents[kind]
        for start in range(0, len(content), 1000):
            if self.breaks_after is not None and start > self.breaks_after:
                raise errors.RepairStreamError("the connection closed")
            yield content[start : start + 1000]

    async def ready(self, extent_id):
        return self.is_ready


def path_of(extent_id):
    return layout.extent_path(Path("region"), extent_id)


def receive(target, source, cloning=False):
    run_now(copy_extent(OsStorage(), target, 0, GEOMETRY, source, cloning=cloning))


def damaged(content, offset, value=0xFF):
    return content[:offset] + bytes([content[offset] ^ value]) + content[offset + 1 :]


DIRTY_LOST = extent_with(1, 2, 3)
DIRTY_LOST.write(0, patterned(4096, 7))
DIRTY_LOST.rows[0] = 1


class TestChecks:
    @pytest.mark.parametrize(
        ("content", "sentence"),
        [
            (b"", "file size 0 does not match expected"),
            (NEW.content()[:-1], "does not match expected"),
            (NEW.content() + b"\0", "does not match expected"),
            (bytes(GEOMETRY.file_bytes), "has unknown tag 0"),
            (damaged(NEW.content(), GEOMETRY.metadata_offset, 2), "invalid u8 while decoding bool"),
            (damaged(NEW.content(), GEOMETRY.slot_offset(1, 2), 6), "tag for enum is not valid, found 7"),
            (damaged(NEW.content(), 4096 * 2), "block 2 is not what its context says"),
            (damaged(NEW.content(), 4096 * 39), "block 39 is not what its context says"),
            (DIRTY_LOST.content(), "block 0 is not what its context says"),
        ],
    )
    def test_copy_that_would_do_harm_is_refused(self, target, content, sentence):
        with pytest.raises(errors.RepairFilesInvalid, match=sentence):
            receive(target, SourceOf({FileType.DATA: content}))
        assert bytes_of(target) == OLD.content()
        assert files_of(target) == ["000"]

    @pytest.mark.parametrize(
        "content", [b"", NEW.content()[:-1], damaged(NEW.content(), 4096)], ids=["empty", "truncated", "damaged"]
    )
    def test_leftover_that_would_do_harm_is_refused_on_open(self, target, content):
        replace = layout.extent_path(target, 0).with_name("000.replace")
        replace.mkdir()
        (replace / "000").write_bytes(content)
        for _ in range(2):
            with pytest.raises(errors.RepairFilesInvalid, match=r"000\.replace"):
                Region.open(target)
            assert bytes_of(target) == OLD.content()

    def test_empty_leftover_is_refused_on_open(self, target):
        layout.extent_path(target, 0).with_name("000.replace").mkdir()
        with pytest.raises(errors.RepairFilesInvalid, match=r"000\.replace/000 is missing"):
            reopen(target)
        assert bytes_of(target) == OLD.content()

    def test_dirty_copy_that_recovers_is_welcome(self, target):
        dirty = extent_with(1, 2, 3)
        dirty.write(0, patterned(4096, 7))
        receive(target, SourceOf({FileType.DATA: dirty.content()}))
        assert bytes_of(target) == dirty.content()

    def test_source_that_is_no_longer_ready(self, target):
        with pytest.raises(errors.RepairRequestError, match="was opened at the source"):
            receive(target, SourceOf({FileType.DATA: NEW.content()}, ready=False))
        assert files_of(target) == ["000"]
        assert bytes_of(target) == OLD.content()

    def test_broken_stream(self, target):
        with pytest.raises(errors.RepairStreamError):
            receive(target, SourceOf({FileType.DATA: NEW.content()}, breaks_after=50_000))
        assert files_of(target) == ["000"]
        assert bytes_of(target) == OLD.content()

    @pytest.mark.parametrize(
        ("names", "cloning", "types"),
        [
            (["001"], False, RAW),
            (["001"], True, RAW),
            (["001.db", "001"], True, (FileType.DATA, FileType.DATABASE)),
            (["001.db-wal", "001", "001.db", "001.db-shm"], True, tuple(FileType)),
        ],
    )
    def test_offers_that_are_taken(self, names, cloning, types):
        assert offered_types(names, path_of(1), cloning=cloning) == types

    @pytest.mark.parametrize(
        ("names", "cloning"),
        [
            ([], False),
            (["001", "001.db"], False),
            (["000"], False),
            (["001", "001"], False),
            (["../001"], False),
            ([], True),
            (["001.db"], True),
            (["001", "001.db", "001.db-wal"], True),
            (["001", "001.db", "001.db-shm", "001.db-wal", "x"], True),
        ],
    )
    def test_offers_that_are_refused(self, names, cloning):
        with pytest.raises(errors.RepairFilesInvalid):
            offered_types(names, path_of(1), cloning=cloning)


class TestLeftovers:
    @pytest.mark.parametrize("suffix", ["copy", "completed"])
    def test_read_write_open_removes(self, target, suffix):
        leftover = layout.extent_path(target, 0).with_name(f"000.{suffix}")
        leftover.mkdir()
        (leftover / "000").write_bytes(b"half")
        assert reopen(target) == [f"000.{suffix}"]
        assert files_of(target) == ["000"]
        assert bytes_of(target) == OLD.content()

    def test_read_only_open_touches_nothing(self, target, expect_log):
        expect_log("a repair is not finished; the extent is shown as it is extent=0")
        for suffix in ("copy", "completed", "replace"):
            leftover = layout.extent_path(target, 0).with_name(f"000.{suffix}")
            leftover.mkdir()
            (leftover / "000").write_bytes(NEW.content())
        before = files_of(target)
        found = settle_leftovers(OsStorage(), target, 0, GEOMETRY, True)
        assert sorted(found) == ["000.completed", "000.copy", "000.replace"]
        with closing(Region.open(target, read_only=True)):
            pass
        assert files_of(target) == before
        assert bytes_of(target) == OLD.content()

    def test_nothing_left_over_changes_nothing(self, target):
        assert reopen(target) == []
        assert bytes_of(target) == OLD.content()

    def test_missing_extent_is_restored_by_a_replay(self, target):
        layout.extent_path(target, 0).unlink()
        replace = layout.extent_path(target, 0).with_name("000.replace")
        replace.mkdir()
        (replace / "000").write_bytes(NEW.content())
        reopen(target)
        assert bytes_of(target) == NEW.content()


class TestOldExtents:
    """What a copy is decides what the extent becomes."""

    @pytest.fixture
    def old_source(self, tmp_path):
        path = save_region(tmp_path / "old", DEFINITION)
        rows = np.zeros((40, 4096), np.uint8)
        rows[0] = np.frombuffer(patterned(4096, 5), np.uint8)
        contexts = [(0, patterned(4096, 5), None)]
        save_sqlite_extent(layout.extent_path(path, 0), rows, contexts, ExtentMetadata(False, 1, 1), log=True)
        return path

    def test_clone_of_an_old_extent_is_an_old_extent(self, target, old_source):
        repair(OsStorage(), target, old_source, cloning=True)
        assert files_of(target) == ["000", "000.db", "000.db-shm", "000.db-wal"]
        assert bytes_of(target) == bytes_of(old_source)
        assert list(verify.verify_region(RegionView.open(target))) == []
        with RegionView.open(target).extent(0) as extent:
            assert extent.metadata.ext_version == 1
            assert extent.look(0, 2).contexts.kind.tolist() == [2, 0]

    def test_raw_copy_over_an_old_extent_makes_it_raw(self, source, old_source):
        repair(OsStorage(), old_source, source, cloning=True)
        assert files_of(old_source) == ["000"]
        assert bytes_of(old_source) == NEW.content()

    def test_repair_takes_no_old_extent(self, target, old_source):
        with pytest.raises(errors.RepairFilesInvalid, match="expected only 000"):
            repair(OsStorage(), target, old_source)
        assert bytes_of(target) == OLD.content()

    @pytest.mark.parametrize("kill", [False, True], ids=["fails", "is killed"])
    @pytest.mark.parametrize("direction", ["old over raw", "raw over old"])
    def test_interrupted_anywhere(self, source, old_source, tmp_path, kill, direction):
        origin, start = (old_source, source) if direction == "old over raw" else (source, old_source)
        numbers = count()

        def prepare():
            copy = tmp_path / f"copy{next(numbers)}"
            shutil.copytree(start, copy)
            return copy

        def content(path):
            with RegionView.open(path).extent(0) as extent:
                found = extent.look(0, 40)
                return found.rows.tobytes(), found.contexts.kind.tobytes(), found.contexts.hash.tobytes()

        allowed = [content(source), content(old_source)]
        act = lambda storage, path: repair(storage, path, origin, cloning=True)  # noqa: E731
        for copy in interrupted_everywhere(prepare, act, kill=kill):
            reopen(copy)
            assert files_of(copy) == ["000"], "an open migrates what is old"
            assert content(copy) in allowed
            assert list(verify.verify_region(RegionView.open(copy))) == []


def test_receiver_takes_pieces_of_any_size(tmp_path):
    region = save_region(tmp_path / "r", DEFINITION)
    content = NEW.content()
    with Download(OsStorage(), region, 0, GEOMETRY) as download:
        with download.receive(FileType.DATA) as file:
            start = 0
            for size in [1, 0, 3, 65536, 65537, len(content)]:
                file.write(memoryview(content)[start : start + size])
                start += size
            file.finish()
        assert (download.directory / "000").read_bytes() == content
        download.commit()
    repair_files.replace(OsStorage(), region, 0, GEOMETRY)
    assert bytes_of(region) == content


def test_a_second_process_cannot_download_into_the_same_place(target):
    with Download(OsStorage(), target, 0, GEOMETRY) as first:
        with pytest.raises(errors.IoError, match="already exists"), Download(OsStorage(), target, 0, GEOMETRY):
            pass
        assert first.directory.is_dir()
