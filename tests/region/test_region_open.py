"""Opening: what is checked, what is said, what is left alone."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from region_rig import definition, read_all, read_rows, write

from crucible_emu import errors
from crucible_emu.errors import CrucibleError, UsageError
from crucible_emu.region import OsStorage, Region, SyncPolicy
from crucible_emu.region.layout import SLOT_A, SLOT_B, ExtentLayout, ExtentMetadata, extent_path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A region of three extents of 20 blocks; blocks 1, 2 and 25 written in flush 5; extents 0 and 1 clean."""
    with Region.create(tmp_path / "region", definition()) as region:
        write(region, [1, 2, 25], seed=1)
        region.flush(5, 3)
    return tmp_path / "region"


GEOMETRY = ExtentLayout(512, 20)


def patch(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def region_files(path: Path) -> dict[str, bytes]:
    return {str(each.relative_to(path)): each.read_bytes() for each in path.rglob("*") if each.is_file()}


def test_a_new_region_is_zeros_and_as_the_real_program_makes_it(tmp_path: Path) -> None:
    with Region.create(tmp_path / "region", definition(extents=2)) as region:
        rows, contexts = read_all(region)
        assert not rows.any() and not contexts.kind.any()
        assert [part.tolist() for part in region.extent_versions()] == [[0, 0], [0, 0], [False, False]]
    files = region_files(tmp_path / "region")
    assert set(files) == {"region.json", "00/000/000", "00/000/001"}
    # A fresh extent differs from zeros by its version alone (on-disk-format.md §2.4).
    extent = bytearray(GEOMETRY.file_bytes)
    extent[GEOMETRY.metadata_offset + 17] = 2
    assert files["00/000/000"] == files["00/000/001"] == extent
    assert files["region.json"] == definition(extents=2).dumps().encode()


def test_a_region_without_extents(tmp_path: Path) -> None:
    with Region.create(tmp_path / "region", definition(extents=0)) as region:
        region.flush(1, 1)
        assert len(region.extent_versions()[0]) == 0
        with pytest.raises(errors.OffsetInvalid):
            write(region, [0], seed=1)


def test_numbers_and_blocks_survive(path: Path) -> None:
    with Region.open(path) as region:
        generations, flushes, dirty = region.extent_versions()
        assert generations.tolist() == [3, 3, 0]
        assert flushes.tolist() == [5, 5, 0]
        assert not dirty.any()
        assert region.written(0, 60).nonzero()[0].tolist() == [1, 2, 25]


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda path: extent_path(path, 1).unlink(), "00/000/001 is missing, so the region in .* is not whole"),
        (lambda path: os.truncate(extent_path(path, 2), 5000), "extent 2: file size 5000 does not match expected"),
        (lambda path: os.truncate(extent_path(path, 0), 0), "extent 0: file size 0 does not match"),
        (lambda path: patch(extent_path(path, 0), GEOMETRY.file_bytes, b"x"), "does not match expected"),
        (lambda path: patch(extent_path(path, 0), GEOMETRY.metadata_offset + 17, b"\7"), "unknown tag 7.*knows 2"),
        (lambda path: patch(extent_path(path, 0), GEOMETRY.metadata_offset, b"\2"), "expected 0 or 1, found 2"),
        (lambda path: (path / "region.json").unlink(), "no region: it has no region.json"),
        (lambda path: (path / "region.json").write_text("{"), "region.json is not JSON"),
        (lambda path: (path / "region.json").write_text("[]"), "holds no JSON object"),
        (lambda path: (path / "region.json").write_text("{}"), 'region.json defines no usable region: member "block'),
        (lambda path: change_definition(path, database_read_version=2), "database_read_version is 2"),
        (lambda path: change_definition(path, extent_count=4), "00/000/003 is missing"),
        (lambda path: change_definition(path, extent_size={"value": 20, "shift": 12}), "shift 12 disagree"),
        (lambda path: change_definition(path, block_size=700), "take a power of two"),
    ],
)
@pytest.mark.parametrize("read_only", [False, True], ids=["rw", "ro"])
def test_damage_is_named(path: Path, damage: Callable[[Path], object], sentence: str, read_only: bool) -> None:
    damage(path)
    with pytest.raises((UsageError, CrucibleError), match=sentence) as caught:
        Region.open(path, read_only=read_only)
    assert "\n" not in str(caught.value)
    # The lock is free again: the next attempt fails for the same reason.
    with pytest.raises(type(caught.value), match=sentence):
        Region.open(path, read_only=read_only)


def change_definition(path: Path, **members: object) -> None:
    file = path / "region.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **members}))


@pytest.mark.parametrize("place", ["nothing", "file", "file/below", "empty"])
def test_what_is_no_region(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=f"{place} is no region"):
        Region.open(tmp_path / place)


def test_a_dirty_extent_is_recovered_by_its_hashes(path: Path) -> None:
    with Region.open(path, policy=SyncPolicy.ZFS) as region:
        rows = write(region, [1, 3], seed=2)
    with Region.open(path) as region:
        assert region.extent_versions()[2].tolist() == [True, False, False]
        assert np.array_equal(read_rows(region, [1, 3]), rows)
        region.flush(6, 3)
        assert region.extent_versions()[1].tolist() == [6, 5, 0]


def test_a_dirty_extent_with_a_block_that_no_slot_fits_does_not_open(path: Path) -> None:
    with Region.open(path, policy=SyncPolicy.ZFS) as region:
        write(region, [1], seed=2)
    patch(extent_path(path, 0), 512, b"damage")
    with pytest.raises(errors.MissingContextSlot) as caught:
        Region.open(path)
    assert caught.value == errors.MissingContextSlot(1, 0)


def test_a_bad_slot_costs_its_block_only(path: Path) -> None:
    """In a clean extent slots are not looked at before they are needed (on-disk-format.md §2.8)."""
    patch(extent_path(path, 0), GEOMETRY.slot_offset(SLOT_B, 1), b"\x05")
    out = memoryview(bytearray(512))
    with Region.open(path) as region:
        for read in (region.read, region.read_cached):
            with pytest.raises(errors.BadContextSlot, match="found 5"):
                read(1, 1, out)
            contexts = read(2, 1, out)
            assert contexts is not None and contexts.kind[0]
    patch(extent_path(path, 0), GEOMETRY.metadata_offset, b"\1")
    with pytest.raises(errors.BadContextSlot):
        Region.open(path)


def test_a_read_only_open_changes_nothing(path: Path, expect_log: Callable[..., object]) -> None:
    for name in ("000.copy", "001.completed", "002.replace"):
        (path / "00/000" / name).mkdir()
        (path / "00/000" / name / "000").write_bytes(b"unfinished")
    before = region_files(path)
    expect_log("a repair is not finished.*extent=2")
    with Region.open(path, read_only=True) as region:
        assert region.written(0, 60).nonzero()[0].tolist() == [1, 2, 25]
        region.flush(9, 9)
        for change in (
            lambda: write(region, [0], seed=9),
            lambda: region.snapshot("one"),
            lambda: region.reopen_extent(0),
            lambda: region.write_unwritten(np.array([0]), np.zeros((1, 512), np.uint8), None),  # type: ignore[arg-type]
        ):
            with pytest.raises(errors.ModifyingReadOnlyRegion):
                change()
    assert region_files(path) == before


def test_a_read_only_region_with_a_dirty_extent_refuses_to_flush_it(path: Path) -> None:
    with Region.open(path, policy=SyncPolicy.ZFS) as region:
        write(region, [1], seed=2)
    with Region.open(path, read_only=True) as region:
        with pytest.raises(errors.ModifyingReadOnlyRegion):
            region.flush(9, 9)
        with pytest.raises(errors.ModifyingReadOnlyRegion):
            region.begin_flush_extent(0, 9, 9)
        work = region.begin_flush_extent(1, 9, 9)
        assert work.is_empty


def test_a_read_write_open_settles_what_a_repair_left(path: Path) -> None:
    other = path.with_name("other")
    with Region.create(other, definition()) as region:
        rows = write(region, [7], seed=7)
        region.flush(8, 4)
    directory = path / "00/000"
    (directory / "001.copy").mkdir()
    (directory / "000.replace").mkdir()
    (directory / "000.replace/000").write_bytes(extent_path(other, 0).read_bytes())
    with Region.open(path) as region:
        assert np.array_equal(read_rows(region, [7]), rows)
        assert region.extent_versions()[1].tolist() == [8, 5, 0]
    assert sorted(each.name for each in directory.iterdir()) == ["000", "001", "002"]


def test_two_processes_do_not_open_one_region_read_write(path: Path) -> None:
    program = "import sys; from crucible_emu.region import Region; Region.open(sys.argv[1]).close()"
    with Region.open(path):
        with pytest.raises(UsageError, match="is open read-write elsewhere"):
            Region.open(path)
        Region.open(path, read_only=True).close()
        found = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=False)
        assert found.returncode != 0 and "is open read-write elsewhere" in found.stderr
    assert subprocess.run([sys.executable, "-c", program, str(path)], check=False).returncode == 0


def test_a_torn_big_block_is_put_in_place_by_a_read_write_open(
    tmp_path: Path, expect_log: Callable[..., object]
) -> None:
    with Region.create(tmp_path / "region", definition(8192, 10, 1)) as region:
        rows = write(region, [3], seed=1)
        work = region.begin_destage()
        with pytest.raises(errors.IoError), failing_once("ftruncate"):
            work.run()
        region.abandon_flush(work)
    assert (tmp_path / "region/.redo").stat().st_size > 8192
    patch(extent_path(tmp_path / "region", 0), 3 * 8192 + 4096, bytes(4096))
    extent = extent_path(tmp_path / "region", 0)
    patch(
        extent,
        ExtentLayout(8192, 10).slot_offset(SLOT_A, 3),
        extent.read_bytes()[ExtentLayout(8192, 10).slot_offset(SLOT_B, 3) :][:48],
    )
    patch(extent, ExtentLayout(8192, 10).slot_offset(SLOT_A, 3) + 1, b"\1" * 8)
    patch(extent, ExtentLayout(8192, 10).slot_offset(SLOT_A, 3) + 10, b"\1" * 8)
    expect_log("open the region read-write once")
    with pytest.raises(errors.MissingContextSlot):
        Region.open(tmp_path / "region", read_only=True)
    with Region.open(tmp_path / "region") as region:
        assert np.array_equal(read_rows(region, [3]), rows)


@contextmanager
def failing_once(operation: str) -> Iterator[None]:
    """The operating system's files fail at the next ``operation``."""
    with pytest.MonkeyPatch.context() as patching:

        def fail(*_: object) -> None:
            patching.undo()
            raise OSError(errno.EIO, "simulated failure")

        patching.setattr(OsStorage, operation, staticmethod(fail))
        yield


def test_a_closed_region_is_not_touched_any_more(path: Path) -> None:
    region = Region.open(path)
    write(region, [5], seed=1)
    region.close()
    region.close()
    before = region_files(path)
    out = memoryview(bytearray(512))
    for use in (lambda: region.read(1, 1, out), lambda: region.flush(9, 9)):
        with pytest.raises(RuntimeError, match="was closed"):
            use()
    assert region_files(path) == before


def test_create_refuses_what_is_in_the_way(path: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds a region already"):
        Region.create(path, definition())
    (path / "region.json").unlink()
    before = region_files(path)
    with pytest.raises(UsageError, match=r"has no region.json but holds extents"):
        Region.create(path, definition())
    assert region_files(path) == before
    with pytest.raises(errors.IoError, match="making the region"):
        Region.create(path / "00/000/000/below", definition())


def test_create_keeps_what_the_agent_put_there(tmp_path: Path) -> None:
    path = tmp_path / "region"
    path.mkdir()
    (path / "cert.pem").write_text("a certificate")
    Region.create(path, definition()).close()
    assert (path / "cert.pem").read_text() == "a certificate"


def test_create_starts_over_where_making_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "region"
    (path / "00/000").mkdir(parents=True)
    (path / "00/000/001").write_bytes(b"half")
    (path / ".creating").touch()
    with pytest.raises(UsageError, match="making it was cut off, make it again"):
        Region.open(path)
    with Region.create(path, definition()) as region:
        assert not read_all(region)[0].any()


def test_an_unreadable_definition_is_an_io_error(path: Path) -> None:
    class NoReading(OsStorage):
        @staticmethod
        def pread(descriptor: int, length: int, offset: int) -> bytes:
            raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(errors.IoError, match=r"reading .*region.json failed.*the device failed"):
        Region.open(path, storage=NoReading())


def test_metadata_records_are_whole(path: Path) -> None:
    stored = extent_path(path, 0).read_bytes()
    assert ExtentMetadata.unpack(stored[-32:]) == ExtentMetadata(False, 3, 5)
    assert stored[GEOMETRY.slot_offset(SLOT_A, 1) : GEOMETRY.slot_offset(SLOT_A, 3)].strip(b"\0") == b""
