"""The way to the rigs of whole disks, of images behind HTTP, and of commands."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path += [str(Path(__file__).parent.parent / neighbour) for neighbour in ("volume", "nbd", "cli", "region_tools")]
