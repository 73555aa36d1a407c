"""The file that keeps a rack's state, ``state.json`` in its directory.

What it guarantees: the file is whole at any instant, also after SIGKILL or a power cut: it is written beside, synced
and renamed.
"""

from __future__ import annotations

import os
from pathlib import Path

from crucible_emu.errors import UsageError
from crucible_emu.rack.state import RackState, from_json

NAME = "state.json"


def load(directory: Path) -> RackState:
    """What was saved in ``directory``; an empty state where nothing was. Raises :class:`UsageError`."""
    path = directory / NAME
    try:
        return from_json(path.read_text())
    except FileNotFoundError:
        return RackState()
    except ValueError as error:
        raise UsageError(
            f"{path} cannot be read ({error}): restore it, or delete it and have every service get new ports"
        ) from None


def save(directory: Path, state: RackState) -> None:
    """Make ``state`` durable. The caller holds the rack's lock."""
    write_whole(directory / NAME, state.to_json())


def write_whole(path: Path, text: str) -> None:
    """Put ``text`` at ``path``, all or nothing, and durable when this returns."""
    growing = path.with_name(f".{path.name}.part")
    with growing.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.rename(growing, path)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
