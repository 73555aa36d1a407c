"""Scenarios run over the region sets of the tests of whole disks."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "volume"))
