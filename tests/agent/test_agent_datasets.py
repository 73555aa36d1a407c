"""Region directories: whole or not there, whatever interrupts their making and their end."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from agent_rig import A, wish
from interrupted_storage import InterruptedStorage, interrupted_everywhere

from crucible_emu.agent.datasets import Datasets
from crucible_emu.agent.documents import CreateRegion
from crucible_emu.region import snapshot
from crucible_emu.region.directory import read_definition
from crucible_emu.region.storage import OsStorage
from crucible_emu.region.verify import verify_region
from crucible_emu.region.view import RegionView

WISH = CreateRegion.model_validate(wish(A, extent_count=2, cert_pem="c", key_pem="k", root_pem="r"))
PAPERS = {"cert.pem": "c", "key.pem": "k", "root.pem": "r"}


def check_whole(path: Path) -> None:
    assert list(verify_region(RegionView.open(path))) == []
    assert {name: (path / name).read_text() for name in PAPERS} == PAPERS
    assert not (path / ".creating").exists()


@pytest.mark.parametrize("kill", [False, True], ids=["fails", "is killed"])
def test_making_interrupted_anywhere(tmp_path: Path, kill: bool) -> None:
    """There is no region, or a whole one; sweeping removes the rest; making it again is fine."""
    tried = 0

    def prepare() -> Path:
        Datasets(tmp_path).remove(A)
        return tmp_path

    def make(storage: InterruptedStorage, parent: Path) -> None:
        Datasets(parent, storage).make(WISH)  # type: ignore[arg-type]

    for parent in interrupted_everywhere(prepare, make, kill=kill):
        datasets = Datasets(parent)
        path = parent / "regions" / A
        if path.exists():
            check_whole(path)
        datasets.sweep()
        assert set(os.listdir(parent / "regions")) <= {A}
        assert datasets.held() <= {A}
        datasets.make(WISH)
        check_whole(path)
        tried += 1
    assert tried > 15


@pytest.mark.parametrize("kill", [False, True], ids=["fails", "is killed"])
def test_removal_interrupted_anywhere(tmp_path: Path, kill: bool) -> None:
    """The region is whole or gone; removing it again ends it."""

    def prepare() -> Path:
        Datasets(tmp_path).make(WISH)
        return tmp_path

    tried = 0
    for parent in interrupted_everywhere(
        prepare,
        lambda storage, found: Datasets(found, storage).remove(A),
        kill=kill,
    ):
        path = parent / "regions" / A
        if path.exists():
            check_whole(path)
        Datasets(parent).remove(A)
        assert os.listdir(parent / "regions") == []
        tried += 1
    assert tried >= 5


def test_sweep_leaves_what_is_somebodys(tmp_path: Path) -> None:
    datasets = Datasets(tmp_path)
    datasets.make(WISH)
    path = tmp_path / "regions" / A
    snapshot.take_snapshot(path, "monday", read_definition(OsStorage(), path))
    for name in (".making-tuesday", ".deleting-sunday"):
        (path / ".zfs" / "snapshot" / name).mkdir()
    for name in (f".making-{A}", f".removing-{A}"):
        (tmp_path / "regions" / name).mkdir()
    (tmp_path / "regions" / "notes.txt").touch()
    datasets.sweep()
    assert set(os.listdir(tmp_path / "regions")) == {A, "notes.txt"}
    assert os.listdir(path / ".zfs" / "snapshot") == ["monday"]
    assert [each.name for each in datasets.snapshots(A)] == ["monday"]


def test_ids_without_a_directory(tmp_path: Path) -> None:
    datasets = Datasets(tmp_path)
    datasets.remove("../..")
    assert datasets.path("../..") is None
    assert not datasets.exists("../..")
    assert datasets.snapshots("../..") == []
    assert datasets.snapshot("../..", "x") is None
    datasets.make(WISH)
    assert datasets.snapshot(A, "../../..") is None
    datasets.delete_snapshot(A, "../../..")
    check_whole(tmp_path / "regions" / A)


def test_making_over_what_is_there_starts_from_nothing(tmp_path: Path) -> None:
    datasets = Datasets(tmp_path)
    datasets.make(WISH)
    (tmp_path / "regions" / A / "old").touch()
    datasets.begin(WISH)
    assert datasets.held() == {A}
    assert not datasets.exists(A)
    datasets.make(WISH)
    assert not (tmp_path / "regions" / A / "old").exists()
