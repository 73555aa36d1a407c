"""Disks to copy: making one takes many syncs, copying a small one none."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
from disk_model import BLOCKS

from crucible_emu.volume import local_disk


@pytest.fixture(scope="session")
def fresh_disk(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``fresh_disk(block_size, encrypted)`` is the directory of an unwritten disk of four extents of eight blocks."""
    folder = tmp_path_factory.mktemp("disks")
    numbers = count()

    def fresh(block_size: int = 512, encrypted: bool = False) -> Path:
        template = folder / f"template-{block_size}-{encrypted}"
        if not template.exists():
            local_disk.create(
                template, BLOCKS * block_size, block_size=block_size, blocks_per_extent=8, encrypted=encrypted
            )
        directory = folder / f"disk-{next(numbers)}"
        shutil.copytree(template, directory)
        return directory

    return fresh
