"""A slice of the power cuts; the full run is ``python -m crucible_emu.sim.power_cut --cuts 10000``."""

from __future__ import annotations

import random

import numpy as np
import pytest
from region_rig import SIMULATED_REGION, definition, read_rows, write

from crucible_emu.region import Region, SyncPolicy
from crucible_emu.sim.disk import Persistence, SimulatedDisk
from crucible_emu.sim.power_cut import PowerCuts, Verdict, explore, main

GEOMETRIES = [(512, 200, 2), (512, 8192, 1), (4096, 40, 2), (32768, 10, 2)]


@pytest.mark.long
@pytest.mark.parametrize("model", Persistence)
def test_the_default_policy_survives_every_model(model: Persistence) -> None:
    summary = explore(150, SyncPolicy.STAGED, model, first_seed=1)
    assert summary.all_fine, summary.findings


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda geometry: f"{geometry[0]}x{geometry[1]}")
def test_the_default_policy_survives_on_every_geometry(geometry: tuple[int, int, int]) -> None:
    model = Persistence.PAGES if geometry[0] == 4096 else Persistence.SECTORS
    run = PowerCuts(5, SyncPolicy.STAGED, model, geometry, cuts_max=60)
    while run.cuts < 60:
        run.run()
    assert set(run.verdicts) == {Verdict.FINE}, run.findings


@pytest.mark.parametrize("policy", SyncPolicy)
@pytest.mark.parametrize("model", [Persistence.ORDERED, Persistence.COALESCED])
def test_every_policy_survives_where_order_is_kept(policy: SyncPolicy, model: Persistence) -> None:
    assert explore(80, policy, model).all_fine


def test_strict_survives_unordered_pages() -> None:
    assert explore(150, SyncPolicy.STRICT, Persistence.PAGES).all_fine


def test_ordered_flush_is_never_clean_but_wrong() -> None:
    summary = explore(400, SyncPolicy.ORDERED_FLUSH, Persistence.PAGES)
    assert summary.verdicts[Verdict.CLEAN_BUT_WRONG] == 0
    assert summary.verdicts[Verdict.DOES_NOT_OPEN] > 0, "one sync per flush does not cure everything"


def test_the_cuts_find_what_zfs_rules_do_not_cover() -> None:
    """On a file system without order the real program's rules are not enough: so these cuts can fail."""
    verdicts = explore(600, SyncPolicy.ZFS, Persistence.PAGES).verdicts
    assert verdicts[Verdict.DOES_NOT_OPEN] > 0
    assert verdicts[Verdict.BAD_BLOCKS_DIRTY] > 0
    assert verdicts[Verdict.CLEAN_BUT_WRONG] > 0


class LyingDisk(SimulatedDisk):
    """Its syncs of files do nothing."""

    def sync_files(self, descriptors: object) -> None:
        return


def test_the_cuts_find_a_disk_that_lies() -> None:
    verdicts = set()
    for seed in range(4):
        run = PowerCuts(seed, model=Persistence.PAGES, disk=LyingDisk(), cuts_max=100)
        run.run()
        verdicts |= set(run.verdicts)
    assert {Verdict.CLEAN_BUT_WRONG, Verdict.DOES_NOT_OPEN} <= verdicts


class ForgetfulDisk(SimulatedDisk):
    """Now and then it comes back as it was made, whatever was synced since."""

    def power_cut(self, rng: random.Random, model: Persistence) -> SimulatedDisk:
        if not hasattr(self, "first"):
            self.first = super().power_cut(rng, model)
        return self.first if rng.random() < 0.2 else super().power_cut(rng, model)


def test_the_cuts_find_flushed_blocks_that_are_lost() -> None:
    verdicts = set()
    for seed in range(6):
        run = PowerCuts(seed, disk=ForgetfulDisk(), cuts_max=100)
        run.run()
        verdicts |= set(run.verdicts)
    assert Verdict.LOST in verdicts


def test_runs_repeat() -> None:
    first, second = (PowerCuts(42) for _ in range(2))
    first.run()
    second.run()
    assert first.cuts > 20
    assert (first.verdicts, first.failures) == (second.verdicts, second.failures)


def test_the_command_says_what_it_found(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--cuts", "20", "--seed", "3"]) == 0
    assert "20 cuts in" in capsys.readouterr().out
    assert main(["--cuts", "300", "--policy", "zfs", "--model", "pages"]) == 1
    assert "bad blocks, extent dirty: before" in capsys.readouterr().out


def test_the_redo_file_is_beside_the_format() -> None:
    """Whoever does not know it, or loses it, has an ordinary region."""
    disk = SimulatedDisk()
    with Region.create(SIMULATED_REGION, definition(32768, 10, 2), storage=disk) as region:
        rows = write(region, [1, 2, 11], seed=1)
        region.flush(1, 1)
    assert disk.exists(SIMULATED_REGION / ".redo")
    disk.remove_tree(SIMULATED_REGION / ".redo")
    survivor = disk.power_cut(random.Random(0), Persistence.PAGES)
    with Region.open(SIMULATED_REGION, storage=survivor) as region:
        assert np.array_equal(read_rows(region, [1, 2, 11]), rows)
