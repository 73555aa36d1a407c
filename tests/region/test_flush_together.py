"""Flushes of several regions side by side, on real files: what each ends with, what they share, how one fails."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest
from region_rig import read_all, write

from crucible_emu import errors
from crucible_emu.geometry import RegionDefinition
from crucible_emu.region import Region
from crucible_emu.region.flush import StagedFlush
from crucible_emu.region.storage import OsStorage
from crucible_emu.region.together import may_go_together, run_together
from crucible_emu.sim.disk import SimulatedDisk

IN_MEMORY = Path("/dev/shm")


def made(path: Path) -> Region:
    return Region.create(path, RegionDefinition(512, 20, 3, UUID(int=7)))


@pytest.fixture
def regions(tmp_path: Path):
    found = [made(tmp_path / f"r{number}") for number in range(3)]
    yield found
    for region in found:
        region.close()


def begun(regions: list[Region], number: int) -> list[StagedFlush]:
    works = [region.begin_flush(number, 1) for region in regions]
    assert all(may_go_together(work) for work in works)
    return works  # type: ignore[return-value]


def on_disk(region: Region) -> dict[str, bytes]:
    return {str(path.relative_to(region.path)): path.read_bytes() for path in region.path.rglob("0*") if path.is_file()}


def test_flushes_side_by_side_end_as_each_does_by_itself(regions: list[Region], tmp_path: Path) -> None:
    alone = made(tmp_path / "alone")
    for number, blocks in enumerate([[0, 1, 25], [1, 59], [40]], 1):
        for region in (*regions, alone):
            write(region, blocks, seed=number)
        works = begun(regions, number)
        assert run_together(works) == [None, None, None]
        for region, work in zip(regions, works):
            region.finish_flush(work)
        alone.flush(number, 1)
    for region in regions:
        assert on_disk(region) == on_disk(alone)
        assert not region.extent_versions()[2].any()
    alone.close()


def test_one_sync_serves_all_three_in_each_of_three_phases(
    regions: list[Region], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, real = [], OsStorage.sync_groups

    def counted(storage: OsStorage, groups):
        calls.append([len(group) for group in groups])
        return real(storage, groups)

    monkeypatch.setattr(OsStorage, "sync_groups", counted)
    for region in regions:
        write(region, [0, 30], seed=1)
    works = begun(regions, 1)
    run_together(works)
    assert calls == [[2, 2, 2]] * 3
    for region, work in zip(regions, works):
        region.finish_flush(work)


@pytest.mark.parametrize("phase", [0, 1, 2])
def test_sync_that_fails_fails_its_own_flush_alone_and_the_next_makes_up_for_it(
    regions: list[Region], monkeypatch: pytest.MonkeyPatch, phase: int
) -> None:
    for region in regions:
        write(region, [0, 30], seed=1)
    works = begun(regions, 1)
    bad, real, synced = str(regions[1].path), os.fdatasync, []

    def failing(descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if path.startswith(bad):
            synced.append(path)
            if len(synced) > 2 * phase:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(OsStorage, "_syncfs_serves", lambda *_: False)
        patch.setattr(os, "fdatasync", failing)
        outcomes = run_together(works)
    assert [type(outcome) for outcome in outcomes] == [type(None), errors.IoError, type(None)]
    for region, work, outcome in zip(regions, works, outcomes):
        if outcome is None:
            region.finish_flush(work)
        else:
            region.abandon_flush(work)
    regions[1].flush(1, 1)
    assert on_disk(regions[0]) == on_disk(regions[2])
    assert np.array_equal(read_all(regions[1])[0], read_all(regions[0])[0])
    assert not regions[1].extent_versions()[2].any()


@pytest.mark.skipif(not IN_MEMORY.is_dir(), reason="there is no /dev/shm, so no second file system to write to")
def test_regions_on_two_file_systems_are_synced_each_on_its_own(
    regions: list[Region], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.stat(IN_MEMORY).st_dev == os.stat(tmp_path).st_dev:
        pytest.skip("/dev/shm is the file system of the temporary files")
    calls, real = [], OsStorage.sync_groups

    def counted(storage: OsStorage, groups):
        calls.append({os.fstat(descriptor).st_dev for group in groups for descriptor in group})
        return real(storage, groups)

    path = IN_MEMORY / f"crucible-together-{os.getpid()}"
    elsewhere = made(path)
    monkeypatch.setattr(OsStorage, "sync_groups", counted)
    try:
        both = [regions[0], elsewhere]
        for region in both:
            write(region, [5], seed=1)
        assert run_together(begun(both, 1)) == [None, None]
    finally:
        elsewhere.close()
        OsStorage.remove_tree(path)
    assert len(calls) == 6 and all(len(devices) == 1 for devices in calls)


def test_region_on_another_storage_goes_by_itself() -> None:
    region = Region.create(Path("/region"), RegionDefinition(512, 20, 3, UUID(int=7)), storage=SimulatedDisk())
    write(region, [1], seed=1)
    assert not may_go_together(region.begin_flush(1, 1))
    region.close()
