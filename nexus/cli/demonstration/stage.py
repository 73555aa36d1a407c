"""The rack of the demonstration: up, one sled killed, down.

What it guarantees: nothing of it runs when the block is left, whatever ended it. Everything is done by the commands
that a person would type, as programs of their own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from crucible_emu.errors import RemoteError
from nexus.cli.access import of_rack
from nexus.cli.session import Session, session

SLEDS = 5
STEP = "1MiB"
NEXUS = (sys.executable, "-P", "-m", "nexus")
CRUCIBLE = (sys.executable, "-P", "-m", "crucible_emu")
DOWN_S_MAX = 60.0


async def run_program(words: tuple[str, ...]) -> dict[str, Any]:
    """What it says as JSON. Raises :class:`RemoteError` with its sentence."""
    done = await trio.run_process(list(words), capture_stdout=True, capture_stderr=True, check=False)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines() or ["it said nothing"]
        raise RemoteError(f"{' '.join(words[3:6])}: {said[-1].removeprefix('Error: ')}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@asynccontextmanager
async def rack_up(root: Path) -> AsyncIterator[None]:
    """A rack in ``root`` while the block lasts."""
    words = ("rack", "up", str(root), "--sleds", str(SLEDS), "--size-step", STEP, "--extent-size", STEP, "--json")
    try:
        await run_program(NEXUS + words)
        yield
    finally:
        with trio.move_on_after(DOWN_S_MAX, shield=True):
            # What it says of a rack that never came up is of no use to anybody.
            down = [*NEXUS, "rack", "down", str(root), "--json"]
            await trio.run_process(down, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)


@asynccontextmanager
async def speaking(root: Path) -> AsyncIterator[Session]:
    """A conversation with its Nexus."""
    async with session(of_rack(root)) as found:
        yield found


async def kill_sled(root: Path, serial: str) -> None:
    """SIGKILL of all that runs on it. It stays dead."""
    await run_program((*CRUCIBLE, "rack", "kill", serial, "--rack", str(root), "--json"))
