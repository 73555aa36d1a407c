"""The rigs of the neighbours: commands as processes, an image server, real clients."""

import sys
from pathlib import Path

sys.path += [str(Path(__file__).parent.parent / neighbour) for neighbour in ("nbd", "cli", "volume", "region_tools")]
