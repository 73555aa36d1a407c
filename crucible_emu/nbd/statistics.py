"""What a server counted since it began: plain numbers, for a status page or a test."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from crucible_emu.nbd.protocol import Command
from crucible_emu.statistics import Snapshot, snapshot_of


@dataclass(slots=True)
class Statistics:
    """Counts of one server.

    ``requests`` that were answered, by command number, refusals included. ``errors`` by name: a ``CrucibleError``'s
    class, a refusal's errno, ``RemoteError`` for broken protocol, ``disconnected`` for lost connections.
    ``batches[n]``: batches of 2^(n-1) to 2^n - 1 requests to the device.
    """

    connections: int = 0
    connections_open: int = 0
    connections_refused: int = 0
    tls_connections: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    requests: Counter[int] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    batches: list[int] = field(default_factory=lambda: [0] * 16)

    def snapshot(self) -> Snapshot:
        """The same with names for commands and sizes for batches."""
        known = {int(command): command.name for command in Command}
        requests: Counter[str] = Counter()
        for number, count in self.requests.items():
            requests[known.get(number, "unknown")] += count
        tables = {
            ("requests", "command"): dict(sorted(requests.items())),
            ("errors", "error"): dict(sorted(self.errors.items())),
            ("batches", "size"): {f"<{1 << n}": count for n, count in enumerate(self.batches) if count},
        }
        return snapshot_of("nbd", self, levels=frozenset({"connections_open"}), tables=tables)
