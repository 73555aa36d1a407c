"""A slice of ``fuzz_services.py``: every service answers whatever it is sent, as its document says."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from fuzz_services import fuzz
from fuzz_worlds import WORLDS

EXAMPLES = 60


@pytest.mark.long
@pytest.mark.parametrize("service", WORLDS)
def test_a_slice_of_the_fuzz(service: str, tmp_path: Path) -> None:
    seed = 0 if os.environ.get("CI") else random.randrange(2**32)
    report = fuzz(service, EXAMPLES, seed, tmp_path)
    assert report.examples >= EXAMPLES
    assert not report.defects, "\n".join(report.lines())
