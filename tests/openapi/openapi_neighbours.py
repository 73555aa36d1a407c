"""The ways to the neighbours' rigs, for tests and for the fuzz as a program: importing this opens them."""

from __future__ import annotations

import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
NEIGHBOURS = ("downstairs", "upstairs", "volume", "nbd", "agent", "host", "nexus")
sys.path += [str(TESTS), *(str(TESTS / neighbour) for neighbour in NEIGHBOURS)]
