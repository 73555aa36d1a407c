"""The ways to the neighbours' rigs: Downstairs, scripted replicas, disks over loopback."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path += [str(Path(__file__).parent.parent / neighbour) for neighbour in ("downstairs", "upstairs", "volume")]
