"""What a copy, a clone or a repair is held against: the files of a directory, copied and synced by what Python has."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path


def copy_seconds(source: Path, target: Path) -> float:
    """Seconds to copy a region's files, without its snapshots, and have them on the disk; the copy is removed."""
    began = time.monotonic()
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(".zfs"))
    for path in target.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
    took = time.monotonic() - began
    shutil.rmtree(target)
    return took
