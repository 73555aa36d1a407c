"""What every test stands on: quiet logs (``log_check``), real programs (``real_clients``), Hypothesis profiles.

Two profiles: ``dev`` draws anew on every run, ``ci`` (with ``CI`` set) draws the same examples every time, so that a
red run is about the change and not about luck. Neither has a deadline: a shared machine of two cores stalls, and a
stall is not a fault. ``HYPOTHESIS_PROFILE`` names one by hand; ``long`` is the documented full run.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadFileScheduling

pytest_plugins = ["log_check", "real_clients"]

UNHURRIED = [HealthCheck.too_slow]
settings.register_profile("dev", deadline=None, suppress_health_check=UNHURRIED)
settings.register_profile("ci", deadline=None, suppress_health_check=UNHURRIED, derandomize=True, print_blob=True)
settings.register_profile("long", deadline=None, suppress_health_check=UNHURRIED, max_examples=5_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "dev"))

if sys.dont_write_bytecode:
    # Tests start hundreds of programs, and where no bytecode is kept each of them compiles the project anew. It is kept
    # in pytest's cache instead of beside the source; workers and programs inherit where.
    sys.pycache_prefix = os.environ["PYTHONPYCACHEPREFIX"] = str(Path(__file__).parents[1] / ".pytest_cache/bytecode")
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False

WORKER = os.environ.get("PYTEST_XDIST_WORKER", "gw0")
if WORKER != "gw0":
    # A rack that was killed comes back at its own ports: those must not be a rack's of another worker meanwhile.
    os.environ["CRUCIBLE_RACK_LOW_PORT"] = "10000"

SLOW = ("nexus", "rack", "sled", "volume", "cli", "agent", "bench", "pantry", "host", "sim")
"""Folders whose files take longest. They come first, so that of several workers none has a long one left at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: place for place, name in enumerate(SLOW)}
    items.sort(key=lambda item: order.get(item.path.parent.name, len(SLOW)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling:
    """``-n 2``: a file is one worker's, for its tests share what they set up; in the order of above."""
    config.option.loadscopereorder = False
    return LoadFileScheduling(config, log)
