"""All that an action, a background task or a route of one Nexus is given.

Clock, identity and randomness come in from outside, like the services: with a seed, a whole rack replays.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime

from sqlalchemy import Connection

from nexus.db import Database
from nexus.placement import Sizes
from nexus.services.agents import Agents
from nexus.services.hosts import Hosts
from nexus.services.pantries import Pantries
from nexus.volumes import RepairLocks


@dataclass(frozen=True, slots=True)
class World:
    """``now`` is UTC with its time zone. ``new_id`` draws UUIDs, ``draw_bytes`` so many random bytes (keys)."""

    database: Database
    agents: Agents
    pantries: Pantries
    hosts: Hosts
    locks: RepairLocks
    now: Callable[[], datetime]
    new_id: Callable[[], str]
    draw_bytes: Callable[[int], bytes]
    sizes: Sizes = field(default_factory=Sizes)

    def guarded(self, ask: Callable[[Connection], None]) -> World:
        """The same, for who may lose the right to change anything: each transaction runs ``ask`` first."""
        return replace(self, database=self.database.guarded(ask))
