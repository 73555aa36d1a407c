"""The ways to the neighbours' rigs: scripted Upstairs, interrupted disks, commands."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path += [
    str(Path(__file__).parent.parent / neighbour)
    for neighbour in ("downstairs", "region_tools", "volume", "nbd", "cli")
]
