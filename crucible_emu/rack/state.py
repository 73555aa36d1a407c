"""What of a rack survives: the ports that were given out once, and the sleds that were killed.

What it is for: a control plane writes down the URLs of agents and pantries, and an agent the ports of its Downstairs;
so each service comes back where it was. ``state.json`` in the rack's directory holds that.

What it guarantees: the file is whole at any instant, also after SIGKILL or a power cut: it is written beside, synced
and renamed. A port in it is never changed by a rack that runs; one that nobody can have any more is given up only when
a person says so.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

from crucible_emu.errors import UsageError
from crucible_emu.rack.ports import Pool

NAME = "state.json"
FORMAT = 1


@dataclass(slots=True)
class RackState:
    """``http_ports`` and ``pools`` by the name of the service, ``killed`` sleds by name."""

    http_ports: dict[str, int] = field(default_factory=dict)
    pools: dict[str, Pool] = field(default_factory=dict)
    killed: set[str] = field(default_factory=set)

    def to_json(self) -> str:
        document = {
            "format": FORMAT,
            "http_ports": self.http_ports,
            "pools": {name: [pool.low, pool.count] for name, pool in self.pools.items()},
            "killed": sorted(self.killed),
        }
        return json.dumps(document, indent=2) + "\n"


def from_json(text: str) -> RackState:
    """Raises :class:`ValueError` for what :meth:`RackState.to_json` cannot have written."""
    document = json.loads(text)
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ValueError(f"it is not of format {FORMAT}")
    try:
        found = RackState(
            {str(name): int(port) for name, port in document["http_ports"].items()},
            {str(name): Pool(int(low), int(count)) for name, (low, count) in document["pools"].items()},
            {str(name) for name in document["killed"]},
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None
    if not all(0 < port < 65536 for port in found.http_ports.values()):
        raise ValueError("a port is none")
    return found


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
