"""Snapshots by copying: whole or not there, independent of the region, served like any region."""

from __future__ import annotations

import os
from contextlib import closing

import numpy as np
import pytest
from interrupted_storage import InterruptedStorage, interrupted_everywhere
from region_builder import ExtentFile, definition, patterned, save_region, save_sqlite_extent

from crucible_emu.errors import SnapshotFailed
from crucible_emu.integrity import BlockContexts, hash_blocks
from crucible_emu.region import Region, layout, snapshot
from crucible_emu.region.digest import region_digest
from crucible_emu.region.layout import ExtentMetadata
from crucible_emu.region.view import RegionView

DEFINITION = definition(4096, 100, 3)


def content(path):
    """Files below ``path`` by their names in it, without its own snapshots."""
    found = {str(file.relative_to(path)): file for file in sorted(path.rglob("*")) if file.is_file()}
    return {name: file.read_bytes() for name, file in found.items() if not name.startswith(".zfs")}


@pytest.fixture
def region(tmp_path):
    extent = ExtentFile(4096, 100)
    for block in (0, 1, 50, 99):
        extent.write(block, patterned(4096, block))
    extent.flush(3, 1)
    path = save_region(tmp_path / "r", DEFINITION, [extent])
    (path / "cert.pem").write_text("certificate")
    return path


def take(path, name="monday", storage=None):
    return snapshot.take_snapshot(path, name, DEFINITION, storage)


def test_snapshot_is_a_copy_of_what_a_region_needs(region):
    for suffix in ("copy", "replace", "completed"):
        (region / "00" / "000" / f"001.{suffix}").mkdir()
        (region / "00" / "000" / f"001.{suffix}" / "001").write_bytes(b"half")
    (region / "seed.db").write_bytes(b"of no use")
    found = take(region)
    assert found == region / ".zfs" / "snapshot" / "monday"
    names = ["00/000/000", "00/000/001", "00/000/002", "cert.pem", "region.json"]
    assert content(found) == {name: (region / name).read_bytes() for name in names}


def test_snapshot_opens_read_only_and_has_the_same_contents(region):
    found = take(region)
    with closing(Region.open(found, read_only=True)) as opened:
        out = bytearray(4096)
        opened.read(50, 1, out)
        assert out == patterned(4096, 50)
    assert region_digest(RegionView.open(found)) == region_digest(RegionView.open(region))


def test_snapshot_does_not_change_with_the_region(region):
    found = take(region)
    before = content(found)
    file = layout.extent_path(region, 0)
    with file.open("r+b") as extent:  # in place, as a region writes
        extent.write(b"changed")
    assert content(found) == before
    assert file.stat().st_nlink == 1
    assert layout.extent_path(found, 0).stat().st_nlink == 1


def test_holes_stay_holes(tmp_path):
    with closing(Region.create(tmp_path / "r", definition(4096, 4096, 2))) as region:
        rows = np.frombuffer(patterned(4096, 1), np.uint8)[None, :]
        region.write(np.array([2048]), rows, BlockContexts.plain(hash_blocks(rows)))
        region.flush(1, 1)
        found = region.snapshot("monday")
    used = sum(os.stat(layout.extent_path(found, extent)).st_blocks * 512 for extent in (0, 1))
    assert used < 1 << 20, "two extents of 16 MiB with one block in them"


def test_asking_again_changes_nothing(region):
    found = take(region)
    before = content(found)
    layout.extent_path(region, 0).unlink()
    assert take(region) == found
    assert content(found) == before


def test_old_extents_are_copied_as_they_are(tmp_path):
    path = save_region(tmp_path / "r", definition(512, 10, 1))
    rows = np.zeros((10, 512), np.uint8)
    save_sqlite_extent(
        layout.extent_path(path, 0), rows, [(0, bytes(512), None)], ExtentMetadata(False, 1, 1), log=True
    )
    found = snapshot.take_snapshot(path, "old", definition(512, 10, 1))
    assert content(found) == content(path)
    assert "00/000/000.db-wal" in content(found)


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "a/b", "/etc", ".hidden", "a\0b", "a b", "é", "x" * 201, "-r", ":x", "a\n"],
)
def test_names_that_lead_elsewhere_are_refused(region, name):
    before = sorted(region.rglob("*"))
    with pytest.raises(SnapshotFailed, match="cannot name a snapshot"):
        take(region, name)
    with pytest.raises(SnapshotFailed, match="cannot name a snapshot"):
        snapshot.delete_snapshot(region, name)
    assert sorted(region.rglob("*")) == before


@pytest.mark.parametrize("name", ["1", "_", "a.b", "x:y-z", "5f3c2a1e-0000-4000-8000-123456789abc", "x" * 200])
def test_names_that_zfs_takes(region, name):
    assert take(region, name).name == name


@pytest.mark.parametrize("kill", [False, True], ids=["fails", "is killed"])
def test_interrupted_anywhere_there_is_none_or_a_whole_one(region, tmp_path, kill):
    wanted = content(region)

    def prepare():
        for name in snapshot.list_snapshots(region):
            snapshot.delete_snapshot(region, name)
        return region

    tried = 0
    for path in interrupted_everywhere(prepare, lambda storage, path: take(path, storage=storage), kill=kill):
        found = path / ".zfs" / "snapshot" / "monday"
        assert snapshot.list_snapshots(path) in ([], ["monday"])
        if found.exists():
            assert content(found) == wanted
        assert content(take(path)) == wanted
        assert [name for name in os.listdir(found.parent) if name.startswith(".")] == []
        tried += 1
    assert tried > 20


def test_full_disk_leaves_no_space_taken(region):
    with pytest.raises(SnapshotFailed, match="Input/output error"):
        take(region, storage=InterruptedStorage(20))
    assert os.listdir(region / ".zfs" / "snapshot") == []


def test_leftovers_that_cannot_be_removed_are_logged(region, expect_log):
    class Stuck(InterruptedStorage):
        def __getattr__(self, name):
            if name == "remove_tree" and self.reached:
                raise OSError(5, "Input/output error")
            return super().__getattr__(name)

    with expect_log("snapshot leftovers stay"), pytest.raises(SnapshotFailed):
        take(region, storage=Stuck(20))


def test_list_and_delete(region):
    assert snapshot.list_snapshots(region) == []
    for name in ("b", "a"):
        take(region, name)
    assert snapshot.list_snapshots(region) == ["a", "b"]
    snapshot.delete_snapshot(region, "a")
    snapshot.delete_snapshot(region, "a")
    assert snapshot.list_snapshots(region) == ["b"]
    assert os.listdir(region / ".zfs" / "snapshot") == ["b"]


def test_what_exists_is_made_durable_before_it_is_promised(region):
    """Somebody renamed it and was killed before that was synced."""
    take(region)
    storage = InterruptedStorage()
    take(region, storage=storage)
    assert storage.steps == ["sync_directory"]
    snapshot.delete_snapshot(region, "monday")
    storage = InterruptedStorage()
    snapshot.delete_snapshot(region, "monday", storage)
    assert storage.steps == ["remove_tree", "sync_directory"]


def test_sweep_removes_what_was_interrupted(region):
    snapshot.sweep(region)
    take(region)
    for name in (".making-tuesday", ".deleting-sunday"):
        (region / ".zfs" / "snapshot" / name).mkdir()
    snapshot.sweep(region)
    assert os.listdir(region / ".zfs" / "snapshot") == ["monday"]
