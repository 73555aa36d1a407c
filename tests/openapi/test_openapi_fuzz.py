"""A slice of ``fuzz_services.py``: every service answers whatever it is sent, as its document says."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fuzz_nexus import NEXUS_WORLDS
from fuzz_services import WORLDS, fuzz
from fuzz_sled import SLED_WORLDS

EXAMPLES = 60


@pytest.mark.long
@pytest.mark.parametrize("service", WORLDS)
def test_a_slice_of_the_fuzz(service: str, tmp_path: Path, expect_log: Callable[..., Any]) -> None:
    """The full run: ``python tests/openapi/fuzz_services.py --examples 2000``."""
    if service in SLED_WORLDS or service in NEXUS_WORLDS:
        expect_log(".", at_least=0)  # what is asked for here fails, and is told; errors are the fuzz's to judge
    seed = 0 if os.environ.get("CI") else random.randrange(2**32)
    report = fuzz(service, EXAMPLES, seed, tmp_path)
    assert report.examples >= EXAMPLES
    assert not report.defects, "\n".join(report.lines())
