"""The copy bench: its sums by hand, and a small run with real programs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bench.copying import NBDCOPY, OURS_AIO, Copy, run, summary


def test_ratios_are_of_one_round_and_medians_of_all() -> None:
    copies = [
        Copy(number, direction, name, seconds * slow, 0.5)
        for number, slow in ((1, 1.0), (2, 10.0), (3, 2.0))
        for direction in ("in", "out")
        for name, seconds in ((OURS_AIO, 1.2), (NBDCOPY, 1.0))
    ]
    first, second = summary(copies, 100)
    assert first == (
        "copy in: asyncio 2.40 s (42 MiB/s, 0.50 s of CPU), nbdcopy 2.00 s (50 MiB/s, 0.50 s of CPU), "
        "median ratio of the rounds 1.20"
    )
    assert second.startswith("copy out: ")


@pytest.mark.real_client
def test_a_small_run(require_program: Callable[[str], str], tmp_path: Path) -> None:
    for program in ("fio", "nbdcopy"):
        require_program(program)
    copies = run(tmp_path, 16, 2)
    assert [(copy.round, copy.direction, copy.program) for copy in copies] == [
        *((1, direction, name) for direction in ("in", "out") for name in (OURS_AIO, NBDCOPY)),
        *((2, direction, name) for direction in ("in", "out") for name in (NBDCOPY, OURS_AIO)),
    ]
    assert all(copy.seconds > 0 and copy.cpu_seconds > 0 for copy in copies)
