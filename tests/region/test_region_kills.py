"""A slice of the kills; the full run is ``python -m crucible_emu.sim.process_kill --kills 100``."""

from __future__ import annotations

from pathlib import Path

import pytest

from crucible_emu.region import SyncPolicy
from crucible_emu.sim.process_kill import Killing, main


@pytest.mark.long
@pytest.mark.parametrize("block_size", [4096, 32768])
def test_nothing_flushed_is_lost_and_nothing_is_torn(block_size: int, tmp_path: Path) -> None:
    killing = Killing(tmp_path / "region", block_size, SyncPolicy.STAGED, seed=11)
    for _ in range(2):
        killing.kill_once()
    assert killing.report.failures == []
    assert killing.report.kills == 2 and killing.report.steps > 2


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--kills", "1", "--block-size", "512", "--policy", "zfs"]) == 0
    assert "512 byte blocks: 1 kills" in capsys.readouterr().out
