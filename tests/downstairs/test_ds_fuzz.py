"""A slice of the fuzzing run; the whole is the command in downstairs_fuzz.py."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from downstairs_fuzz import fuzz


@pytest.mark.long
@pytest.mark.parametrize("seed", [1, 2])
async def test_mutated_frames_harm_nobody_else(seed: int, tmp_path: Path, expect_log: Any) -> None:
    """A slice; the full run is ``python tests/downstairs/downstairs_fuzz.py 100000``."""
    expect_log("work failed", at_least=0)  # repairs from nowhere
    reads = await fuzz(int(os.environ.get("DOWNSTAIRS_FUZZ_CASES", "250")), seed, tmp_path)
    assert reads > 10
