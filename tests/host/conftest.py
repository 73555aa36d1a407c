"""The ways to the neighbours' rigs: disks over loopback, an NBD client, a receiver of notices, commands."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path += [str(Path(__file__).parent.parent / neighbour) for neighbour in ("volume", "nbd", "control", "cli")]
