"""The ways to the neighbours' rigs, and a server for clients on asyncio."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parent.parent
sys.path += [str(TESTS / neighbour) for neighbour in ("nbd", "agent", "downstairs", "region_tools", "volume", "cli")]

from nbd_door import Running, running  # noqa: E402

from crucible_emu.blockio import BlockDevice  # noqa: E402
from crucible_emu.nbd import Export  # noqa: E402


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """``serve(device)`` puts the device behind our own NBD server, in a thread, until the test ends."""
    with ExitStack() as stack:

        def start(device: BlockDevice, *, read_only: bool = False, **settings: Any) -> Running:
            exports = {"": Export(device, read_only=read_only, description="a disk of a test")}
            return stack.enter_context(running(exports, tmp_path / "nbd.sock", **settings))

        yield start
