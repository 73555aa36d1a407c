"""What of a rack survives: the ports that were given out once, and the sleds that were killed.

What it is for: a control plane writes down the URLs of agents and pantries, and an agent the ports of its Downstairs;
so each service comes back where it was.

What it guarantees: a port in it is never changed by a rack that runs; one that nobody can have any more is given up
only when a person says so. What was not written by :meth:`RackState.to_json` is refused, not guessed at.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from crucible_emu.rack.ports import Pool

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
