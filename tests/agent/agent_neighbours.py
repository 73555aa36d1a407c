"""The ways to the neighbours' rigs, for tests and for the program that kills agents: importing this opens them."""

from __future__ import annotations

import sys
from pathlib import Path

TESTS = Path(__file__).parent.parent
sys.path += [str(TESTS / neighbour) for neighbour in ("downstairs", "region_tools", "volume", "nbd", "cli")]
