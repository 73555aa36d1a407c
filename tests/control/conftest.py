"""The ways to the neighbours' rigs: scripted replicas, disks over loopback, commands."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path += [str(Path(__file__).parent.parent / neighbour) for neighbour in ("upstairs", "volume", "nbd", "cli")]
