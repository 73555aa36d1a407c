"""Flushes that go to the journal: what they promise, what a directory looks like meanwhile, what an open makes of
it."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from region_rig import definition, made_blocks, read_all, read_rows, write

from crucible_emu import errors
from crucible_emu.errors import UsageError
from crucible_emu.region import Region, journal
from crucible_emu.region.digest import region_digest
from crucible_emu.region.directory import (
    JOURNAL_NAME,
    JOURNALED_VERSION,
    extend,
    read_definition,
    read_marked_definition,
)
from crucible_emu.region.journal import RECORDS_MIN, read_records, record_bytes
from crucible_emu.region.journaled import JournaledFlush
from crucible_emu.region.storage import OsStorage
from crucible_emu.region.view import RegionView
from crucible_emu.sim.disk import SimulatedDisk

REGION = Path("/region")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "region"


def flush(region: Region, number: int) -> None:
    """A flush that goes to the journal."""
    work = region.begin_flush(number, 1, journal=True)
    assert isinstance(work, JournaledFlush)
    work.run()
    region.finish_flush(work)


def killed(region: Region) -> None:
    """As by SIGKILL: nothing is settled."""
    region.close()


def records(path: Path) -> list[tuple[int, list[int]]]:
    found = read_records(OsStorage(), path, read_definition(OsStorage(), path))
    return [(each.numbers[0], each.blocks.tolist()) for each in found]


def files(path: Path) -> dict[str, bytes]:
    return {str(each.relative_to(path)): each.read_bytes() for each in path.rglob("*") if each.is_file()}


# --- while it is there


def test_a_journaled_flush_makes_extents_clean_with_its_numbers(path: Path) -> None:
    with Region.create(path, definition()) as region:
        write(region, [0, 25], seed=1)
        flush(region, 7)
        generations, flushes, dirty = region.extent_versions()
        assert (generations.tolist(), flushes.tolist(), dirty.tolist()) == ([1, 1, 0], [7, 7, 0], [False] * 3)
        write(region, [1], seed=2)
        assert region.extent_versions()[2].tolist() == [True, False, False]
        assert not region.is_settled


def test_it_touches_no_extent(path: Path) -> None:
    with Region.create(path, definition()) as region:
        before = files(path / "00")
        write(region, [0, 25], seed=1)
        flush(region, 1)
        assert files(path / "00") == before
        assert records(path) == [(1, [0, 25])]


@pytest.mark.parametrize("sealed", [False, True])
def test_settled_it_is_what_a_flush_in_place_leaves(tmp_path: Path, sealed: bool) -> None:
    regions = [Region.create(tmp_path / name, definition(encrypted=sealed)) for name in ("journaled", "in place")]
    for number, blocks in enumerate([[0, 1, 25], [1, 59], [59]], 1):
        for region in regions:
            write(region, blocks, seed=number, sealed=sealed)
        flush(regions[0], number)
        regions[1].flush(number, 1)
    regions[0].settle()
    assert regions[0].is_settled
    digests = [region_digest(RegionView.open(region.path)) for region in regions]
    assert digests[0] == digests[1]
    versions = [[each.tolist() for each in region.extent_versions()] for region in regions]
    assert versions[0] == versions[1]
    assert set(files(regions[0].path)) == set(files(regions[1].path))
    for region in regions:
        region.close()


def test_the_real_program_refuses_the_directory_until_it_is_settled(path: Path) -> None:
    with Region.create(path, definition()) as region:
        plain = (path / "region.json").read_bytes()
        write(region, [3], seed=1)
        flush(region, 1)
        members = json.loads((path / "region.json").read_text())
        assert {members[f"database_{kind}_version"] for kind in ("read", "write")} == {JOURNALED_VERSION}
        region.settle()
        assert (path / "region.json").read_bytes() == plain
        assert not (path / JOURNAL_NAME).exists()


def test_a_snapshot_is_an_ordinary_directory(path: Path) -> None:
    with Region.create(path, definition()) as region:
        plain = (path / "region.json").read_bytes()
        write(region, [3], seed=1)
        flush(region, 1)
        with pytest.raises(errors.SnapshotFailed, match="lag behind the journal"):
            region.snapshot("one")
        work = region.begin_flush(2, 1)
        work.run()
        copy = region.snapshot("one")
        region.finish_flush(work)
    assert (copy / "region.json").read_bytes() == plain
    with Region.open(copy, read_only=True) as again:
        assert np.array_equal(read_rows(again, [3]), made_blocks(1, seed=1)[0])
        assert again.extent_versions()[1].tolist() == [1, 0, 0]


def test_who_only_looks_is_told_in_one_sentence(path: Path) -> None:
    with Region.create(path, definition()) as region:
        write(region, [3], seed=1)
        flush(region, 1)
    for look in (
        lambda: Region.open(path, read_only=True),
        lambda: region_digest(RegionView.open(path)),
        lambda: extend(OsStorage(), path, 5),
    ):
        with pytest.raises(UsageError, match=r"has flushes in its journal .* open it read-write once"):
            look()
    Region.open(path).close()
    with Region.open(path, read_only=True) as region:
        assert np.array_equal(read_rows(region, [3]), made_blocks(1, seed=1)[0])


def test_a_newer_version_of_a_journaled_block_is_read_and_the_journaled_one_survives_it(path: Path) -> None:
    region = Region.create(path, definition())
    old = write(region, [5], seed=1)
    flush(region, 1)
    new = write(region, [5], seed=2)
    assert np.array_equal(read_rows(region, [5]), new)
    killed(region)
    with Region.open(path) as again:
        assert np.array_equal(read_rows(again, [5]), old)
        assert not again.extent_versions()[2].any()


def test_settling_leaves_what_was_written_since_staged(path: Path) -> None:
    with Region.create(path, definition()) as region:
        old = write(region, [5, 6], seed=1)
        flush(region, 1)
        new = write(region, [5], seed=2)
        region.settle()
        assert np.array_equal(read_rows(region, [5, 6]), np.concatenate([new, old[1:]]))
        assert region.extent_versions()[2].tolist() == [True, False, False]
    with Region.open(path) as again:
        assert np.array_equal(read_rows(again, [5, 6]), old)


def test_closing_an_extent_brings_it_to_its_file(path: Path) -> None:
    with Region.create(path, definition()) as region:
        rows = write(region, [5], seed=1)
        flush(region, 3)
        assert region.close_extent(0) == (1, 3, False)
        assert region.is_settled
        region.reopen_extent(0)
        assert np.array_equal(read_rows(region, [5]), rows)


def test_a_flush_in_place_takes_the_journal_along(path: Path) -> None:
    with Region.create(path, definition()) as region:
        write(region, [0, 25], seed=1)
        flush(region, 1)
        write(region, [1], seed=2)
        region.flush(2, 1)
        assert records(path) == []
        assert region.extent_versions()[1].tolist() == [2, 1, 0]
        expected = read_all(region)[0]
    with Region.open(path) as again:
        assert np.array_equal(read_all(again)[0], expected)
        assert again.extent_versions()[1].tolist() == [2, 1, 0]


def test_an_extents_flush_takes_the_journal_along_and_leaves_the_rest(path: Path) -> None:
    with Region.create(path, definition()) as region:
        write(region, [0, 25], seed=1)
        flush(region, 1)
        write(region, [1, 26], seed=2)
        work = region.begin_flush_extent(0, 2, 1)
        work.run()
        region.finish_flush(work)
        _, flushes, dirty = region.extent_versions()
        assert (flushes.tolist(), dirty.tolist()) == ([2, 1, 0], [False, True, False])
        assert np.array_equal(read_rows(region, [0, 25]), made_blocks(2, seed=1)[0])


# --- what does not belong there


def test_a_large_flush_goes_in_place(path: Path) -> None:
    blocks = journal.JOURNAL_BYTES_MAX // RECORDS_MIN // 4096
    with Region.create(path, definition(4096, 2 * blocks, 2)) as region:
        write(region, list(range(blocks)), seed=1)
        work = region.begin_flush(1, 1, journal=True)
        assert not isinstance(work, JournaledFlush)
        work.run()
        region.finish_flush(work)


def test_a_full_journal_is_carried_out_and_begun_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = RECORDS_MIN * record_bytes(64, 4096)
    monkeypatch.setattr(journal, "JOURNAL_BYTES_MAX", size)
    kinds = []
    with Region.create(path, definition(4096, 64 * RECORDS_MIN, 1)) as region:
        for number in range(1, RECORDS_MIN + 3):
            write(region, list(range(64)) if number % 2 else list(range(64, 128)), seed=number)
            work = region.begin_flush(number, 1, journal=True)
            work.run()
            region.finish_flush(work)
            kinds.append(type(work).__name__)
        expected = read_all(region)[0]
    assert set(kinds) == {"JournaledFlush", "StagedFlush"} and kinds[-1] == "JournaledFlush"
    assert (path / JOURNAL_NAME).stat().st_size <= size
    with Region.open(path) as again:
        assert np.array_equal(read_all(again)[0], expected)


def test_nothing_goes_there_while_a_file_holds_what_no_flush_covers(path: Path) -> None:
    with Region.create(path, definition()) as region:
        write(region, [5], seed=1)
        work = region.begin_destage()
        work.run()
        region.finish_flush(work)
        write(region, [6], seed=2)
        work = region.begin_flush(1, 1, journal=True)
        assert not isinstance(work, JournaledFlush)
        work.run()
        region.finish_flush(work)
        assert not region.extent_versions()[2].any()


def test_a_flush_of_nothing_costs_nothing(path: Path) -> None:
    with Region.create(path, definition()) as region:
        assert region.begin_flush(1, 1, journal=True).is_empty
        assert region.is_settled


# --- what an open makes of it


def test_a_record_that_was_cut_off_was_never_promised(path: Path) -> None:
    region = Region.create(path, definition())
    rows = write(region, [5], seed=1)
    flush(region, 1)
    write(region, [5, 6], seed=2)
    flush(region, 2)
    killed(region)
    content = bytearray((path / JOURNAL_NAME).read_bytes())
    last = content.rindex(b"flushed\n")
    content[last + record_bytes(2, 512) - 4096 + 700] ^= 1
    (path / JOURNAL_NAME).write_bytes(content)
    assert records(path) == [(1, [5])]
    with Region.open(path) as again:
        assert np.array_equal(read_rows(again, [5]), rows)
        assert again.extent_versions()[1].tolist() == [1, 0, 0]


def test_records_of_an_earlier_life_of_the_file_are_not_carried_out(path: Path) -> None:
    region = Region.create(path, definition())
    for number in (1, 2, 3):
        write(region, [number], seed=number)
        flush(region, number)
    region.flush(4, 1)
    write(region, [1], seed=9)
    region.flush(5, 1)
    write(region, [2], seed=10)
    flush(region, 6)
    expected = read_all(region)[0]
    killed(region)
    assert records(path) == [(6, [2])], "where those of 2 and 3 follow still"
    with Region.open(path) as again:
        assert np.array_equal(read_all(again)[0], expected)


def test_an_extent_that_got_later_numbers_is_left_alone(path: Path) -> None:
    """Power went after its metadata had landed and before the journal was out of force."""
    region = Region.create(path, definition())
    write(region, [5, 25], seed=1)
    flush(region, 1)
    kept = files(path)
    new = write(region, [5], seed=2)
    region.flush(2, 1)
    killed(region)
    for name in (JOURNAL_NAME, "region.json", "00/000/001"):
        (path / name).write_bytes(kept[name])
    with Region.open(path) as again:
        assert again.extent_versions()[1].tolist() == [2, 1, 0]
        assert np.array_equal(read_rows(again, [5]), new)
        assert np.array_equal(read_rows(again, [25]), made_blocks(2, seed=1)[0][1:])


def test_an_extent_in_the_middle_of_a_flush_in_place_stays_dirty(path: Path) -> None:
    """It may hold blocks of a flush that nobody was told of: it must not pass for what the journal's numbers say."""
    region = Region.create(path, definition())
    old = write(region, [5], seed=1)
    flush(region, 1)
    write(region, [6], seed=2)
    work = region.begin_flush(2, 1)
    steps = work.steps()  # type: ignore[attr-defined]
    next(steps)
    next(steps)  # data is written, metadata is not
    steps.close()
    killed(region)
    with Region.open(path) as again:
        _, flushes, dirty = again.extent_versions()
        assert (flushes.tolist(), dirty.tolist()) == ([1, 0, 0], [True, False, False])
        assert np.array_equal(read_rows(again, [5]), old)


def test_a_mark_without_a_journal_is_taken_back(path: Path) -> None:
    """Power went between the two."""
    region = Region.create(path, definition())
    plain = (path / "region.json").read_bytes()
    write(region, [5], seed=1)
    flush(region, 1)
    killed(region)
    (path / JOURNAL_NAME).unlink()
    Region.open(path).close()
    assert (path / "region.json").read_bytes() == plain


def test_a_foreign_journal_is_not_carried_out(tmp_path: Path) -> None:
    donor = Region.create(tmp_path / "donor", definition())
    write(donor, [5], seed=1)
    flush(donor, 1)
    killed(donor)
    other = definition()
    with Region.create(tmp_path / "other", type(other)(512, 20, 3, type(other.uuid)(int=5))) as region:
        before = read_all(region)[0].copy()
    (tmp_path / "other" / JOURNAL_NAME).write_bytes((tmp_path / "donor" / JOURNAL_NAME).read_bytes())
    with Region.open(tmp_path / "other") as region:
        assert np.array_equal(read_all(region)[0], before)


# --- when the disk fails


def failing(disk: SimulatedDisk, operation: str, name: str) -> Callable[[], None]:
    """From now on this operation on files of this name fails; call the result to end that."""

    def fail(done: str, path: str) -> None:
        if done == operation and path.endswith(name):
            raise OSError(errno.EIO, "simulated failure")

    disk.before_change = fail

    def end() -> None:
        disk.before_change = lambda *_: None

    return end


def journaled_flush_fails(disk: SimulatedDisk, region: Region, flush_number: int, where: tuple[str, str]) -> None:
    """Because this operation on this file does."""
    end = failing(disk, *where)
    work = region.begin_flush(flush_number, 1, journal=True)
    with pytest.raises(errors.IoError, match="writing the journal"):
        work.run()
    region.abandon_flush(work)
    end()


@pytest.mark.parametrize("operation", ["pwrite", "sync"])
def test_a_flush_whose_journal_fails_is_done_in_place_by_the_next(operation: str) -> None:
    disk = SimulatedDisk()
    region = Region.create(REGION, definition(), storage=disk)
    write(region, [5], seed=1)
    flush(region, 1)
    write(region, [6], seed=2)
    journaled_flush_fails(disk, region, 2, (operation, JOURNAL_NAME))
    again = region.begin_flush(3, 1, journal=True)
    assert not isinstance(again, JournaledFlush)
    again.run()
    region.finish_flush(again)
    assert region.is_settled
    assert np.array_equal(read_rows(region, [5, 6]), np.concatenate([made_blocks(1, seed=s)[0] for s in (1, 2)]))
    write(region, [7], seed=3)
    flush(region, 4)


@pytest.mark.parametrize(
    ("operation", "name"), [("rename", "region.json"), ("sync", "/region"), ("create", JOURNAL_NAME)]
)
def test_a_journal_that_cannot_be_made_leaves_an_ordinary_directory(operation: str, name: str) -> None:
    """And the next flush does what it would have done; after that there may be one."""
    disk = SimulatedDisk()
    region = Region.create(REGION, definition(), storage=disk)
    rows = write(region, [5], seed=1)
    journaled_flush_fails(disk, region, 1, (operation, name))
    assert not region.is_settled
    region.flush(2, 1)
    assert region.is_settled
    assert not disk.exists(REGION / JOURNAL_NAME) and not read_marked_definition(disk, REGION)[1]
    assert np.array_equal(read_rows(region, [5]), rows)
    write(region, [6], seed=2)
    flush(region, 3)


@pytest.mark.parametrize("phase", [1, 2, 3])
def test_carrying_it_out_may_fail_and_is_done_again(phase: int) -> None:
    disk = SimulatedDisk()
    region = Region.create(REGION, definition(), storage=disk)
    rows = write(region, [5, 25], seed=1)
    flush(region, 1)
    syncs = 0

    def fail(done: str, path: str) -> None:
        nonlocal syncs
        syncs += done == "sync" and "/00/" in path
        if syncs == 2 * phase - 1:
            raise OSError(errno.EIO, "simulated failure")

    disk.before_change = fail
    with pytest.raises(errors.IoError):
        region.settle()
    disk.before_change = lambda *_: None
    assert not region.is_settled
    assert not region.extent_versions()[2].any(), "flushed is flushed"
    newer = write(region, [6], seed=2)
    region.flush(2, 1)
    assert np.array_equal(read_rows(region, [5, 6, 25]), np.concatenate([rows[:1], newer, rows[1:]]))
    assert region.extent_versions()[1].tolist() == [2, 1, 0]
    region.close()
    with Region.open(REGION, storage=disk) as again:
        assert again.extent_versions()[1].tolist() == [2, 1, 0]
        assert np.array_equal(read_rows(again, [5, 6, 25]), np.concatenate([rows[:1], newer, rows[1:]]))
