"""The NBD client of the door's tests speaks to served disks as well."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "nbd"))
