"""Disks to copy (making one takes many syncs, copying a small one none), and the ways to the neighbours' rigs."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest
from disk_model import BLOCKS

from crucible_emu.upstairs import asking
from crucible_emu.volume import local_disk

sys.path += [str(Path(__file__).parent.parent / neighbour) for neighbour in ("nbd", "cli", "region_tools")]

IN_MEMORY = Path("/dev/shm")
"""Where files cost no syncs. The tests that copy disks kill no machine, so nothing in them needs a real device."""


@pytest.fixture(scope="session")
def fresh_disk() -> Iterator[Callable[..., Path]]:
    """``fresh_disk(block_size, encrypted)`` is the directory of an unwritten disk of four extents of eight blocks."""
    usable = IN_MEMORY.is_dir() and os.access(IN_MEMORY, os.W_OK)
    folder = Path(tempfile.mkdtemp(prefix="crucible-disks-", dir=IN_MEMORY if usable else None))
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

    try:
        yield fresh
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def asks_again_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """An Upstairs that was refused something beside a connection asks again at once."""
    monkeypatch.setattr(asking, "ASK_AGAIN_S", 0.01)


@pytest.fixture
def sockets() -> Iterator[Path]:
    """A folder with a short path, for the path of a unix socket is short."""
    with tempfile.TemporaryDirectory(prefix="sockets-") as folder:
        yield Path(folder)
