"""The power goes at any operation of a repair, a migration, a snapshot or a growth, on disks of every temper.

Where :mod:`interrupted_storage` stops a process, whose writes all stay, here everything that was not synced may be
lost or kept page by page. Each operation is cut several times, and the recovery from each cut is cut once more.
The full run: ``CRUCIBLE_EMU_CUTS_PER_STEP=100 python -m pytest tests/region_tools/test_tools_power_cuts.py``.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from region_builder import ExtentFile, definition, patterned, save_region, save_sqlite_extent

from crucible_emu.region import directory, layout, snapshot, verify
from crucible_emu.region.clone import LocalSource, copy_extent, run_now
from crucible_emu.region.layout import ExtentLayout, ExtentMetadata
from crucible_emu.region.repair_files import settle_leftovers
from crucible_emu.region.view import RegionView
from crucible_emu.sim.disk import Persistence, SimulatedDisk

pytestmark = pytest.mark.long

REGION = Path("/region")
GEOMETRY = ExtentLayout(4096, 20)
DEFINITION = definition(4096, 20, 2)
CUTS_PER_STEP = int(os.environ.get("CRUCIBLE_EMU_CUTS_PER_STEP", "4"))

every_model = pytest.mark.parametrize("model", list(Persistence), ids=lambda model: model.value)


def extent_with(*seeds, flush):
    found = ExtentFile(4096, 20)
    for block, seed in enumerate(seeds):
        found.write(block, patterned(4096, seed))
    found.flush(flush, 1)
    return found


OLD, NEW = extent_with(1, 2, 3, flush=1), extent_with(1, 20, 3, 4, flush=9)


def put(disk: SimulatedDisk, path: Path, content: bytes) -> None:
    disk.make_directories(path.parent)
    descriptor = disk.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    disk.pwrite(descriptor, content, 0)
    disk.fsync(descriptor)
    disk.close(descriptor)


def get(disk: SimulatedDisk, path: Path) -> bytes:
    return directory.read_file(disk, path)


def disk_with(region: Path, at: Path = REGION) -> SimulatedDisk:
    """A disk that holds, durably, what a directory on this machine holds."""
    disk = SimulatedDisk()
    for file in sorted(region.rglob("*")):
        if file.is_file():
            put(disk, at / file.relative_to(region), file.read_bytes())
    disk.sync_tree(Path("/"))
    return disk


def cuts(disk: SimulatedDisk, act: Callable[[], None], model: Persistence, seed: int) -> Iterator[SimulatedDisk]:
    """Run ``act`` on ``disk``; yields the disks that are left when the power goes before one of its operations."""
    rng = random.Random(f"{model.value} {seed}")
    survivors: list[SimulatedDisk] = []
    disk.before_change = lambda *_: survivors.extend(disk.power_cut(rng, model) for _ in range(CUTS_PER_STEP))
    act()
    disk.before_change = None
    survivors.append(disk.power_cut(rng, model))
    yield from survivors


def recovered(disk: SimulatedDisk, model: Persistence, seed: int) -> Iterator[SimulatedDisk]:
    """The disk after the next read-write open, and after one that was itself cut off and done again."""

    def reopen(some: SimulatedDisk) -> None:
        settle_leftovers(some, REGION, 0, GEOMETRY, False)

    second = random.Random(seed).choice(list(cuts(disk, lambda: reopen(disk), model, seed)))
    reopen(second)
    yield disk
    yield second


def sound(disk: SimulatedDisk) -> bool:
    return list(verify.verify_region(RegionView.open(REGION, disk))) == []


def siblings(disk: SimulatedDisk) -> list[str]:
    return sorted(disk.names(layout.extent_path(REGION, 0).parent))


@every_model
def test_repair(tmp_path, model):
    source = save_region(tmp_path / "source", DEFINITION, [NEW, NEW])
    disk = disk_with(save_region(tmp_path / "target", DEFINITION, [OLD, OLD]))
    for file in sorted(source.rglob("*")):
        if file.is_file():
            put(disk, Path("/source") / file.relative_to(source), file.read_bytes())
    disk.sync_tree(Path("/"))

    def repair() -> None:
        files = LocalSource(disk, Path("/source"))
        run_now(copy_extent(disk, REGION, 0, GEOMETRY, files, cloning=False))

    seen = []
    for number, survivor in enumerate(cuts(disk, repair, model, 0)):
        for left in recovered(survivor, model, number):
            assert siblings(left) == ["000", "001"]
            content = get(left, layout.extent_path(REGION, 0))
            assert content in (OLD.content(), NEW.content())
            assert sound(left)
            seen.append(content == NEW.content())
    assert {True, False} <= set(seen)
    assert seen[-1], "a repair that returned is durable"


@every_model
@pytest.mark.parametrize("dirty", [False, True], ids=["clean", "dirty"])
def test_migration(tmp_path, model, dirty):
    region = save_region(tmp_path / "r", DEFINITION)
    rows = np.zeros((20, 4096), np.uint8)
    for block in range(3):
        rows[block] = np.frombuffer(patterned(4096, block), np.uint8)
    contexts = [(block, patterned(4096, block), None) for block in range(3)]
    save_sqlite_extent(layout.extent_path(region, 0), rows, contexts, ExtentMetadata(dirty, 3, 5), log=True)
    disk = disk_with(region)
    wanted = disk_with(region)
    settle_leftovers(wanted, REGION, 0, GEOMETRY, False)
    final = get(wanted, layout.extent_path(REGION, 0))

    def migrate() -> None:
        settle_leftovers(disk, REGION, 0, GEOMETRY, False)

    for number, survivor in enumerate(cuts(disk, migrate, model, 1)):
        assert sound(survivor), "what a read-only open sees"
        for left in recovered(survivor, model, number):
            assert siblings(left) == ["000", "001"]
            assert get(left, layout.extent_path(REGION, 0)) == final


@every_model
def test_snapshot(tmp_path, model):
    disk = disk_with(save_region(tmp_path / "r", DEFINITION, [OLD, NEW]))

    def take(some: SimulatedDisk) -> Path:
        return snapshot.take_snapshot(REGION, "monday", DEFINITION, some)

    def content(some: SimulatedDisk) -> list[bytes]:
        target = REGION / ".zfs" / "snapshot" / "monday"
        return [get(some, layout.extent_path(target, extent)) for extent in range(2)]

    taken = False
    for survivor in cuts(disk, lambda: take(disk) and None, model, 2):
        taken = "monday" in snapshot.list_snapshots(REGION, survivor)
        if taken:
            assert content(survivor) == [OLD.content(), NEW.content()]
        take(survivor)
        assert content(survivor) == [OLD.content(), NEW.content()]
        assert survivor.names(REGION / ".zfs" / "snapshot") == ["monday"]
    assert taken, "a snapshot that was reported is durable"


@every_model
def test_growing(tmp_path, model):
    disk = disk_with(save_region(tmp_path / "r", definition(4096, 20, 1), [OLD]))
    count = 0
    for survivor in cuts(disk, lambda: directory.extend(disk, REGION, 3) and None, model, 3):
        count = RegionView.open(REGION, survivor).definition.extent_count
        assert count in (1, 3)
        assert sound(survivor)
        assert directory.extend(survivor, REGION, 3).extent_count == 3
        assert sound(survivor)
        assert get(survivor, layout.extent_path(REGION, 0)) == OLD.content()
    assert count == 3, "a growth that returned is durable"
