"""What every test stands on: quiet logs (``log_check``), real programs (``real_clients``), Hypothesis profiles.

Two profiles: ``dev`` draws anew on every run, ``ci`` (with ``CI`` set) draws the same examples every time, so that a
red run is about the change and not about luck. Neither has a deadline: a shared machine of two cores stalls, and a
stall is not a fault. ``HYPOTHESIS_PROFILE`` names one by hand; ``long`` is the documented full run.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

pytest_plugins = ["log_check", "real_clients"]

SLOW = [HealthCheck.too_slow]
settings.register_profile("dev", deadline=None, suppress_health_check=SLOW)
settings.register_profile("ci", deadline=None, suppress_health_check=SLOW, derandomize=True, print_blob=True)
settings.register_profile("long", deadline=None, suppress_health_check=SLOW, max_examples=5_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "dev"))
