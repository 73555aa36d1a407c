"""What a Nexus has to be told before it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import SystemRandom

from crucible_emu.client.persistence import Persistence
from crucible_emu.client.retry import Backoff
from nexus.placement import Sizes
from nexus.saga import Saga
from nexus.saga.executor import Perform, perform_once
from nexus.saga.hooks import Hooks, no_hooks
from nexus.sagas import ALL_SAGAS

LEASE_S = 30.0
STOP_GRACE_S = 5.0


@dataclass(frozen=True)
class Conduct:
    """How one Nexus behaves, whatever it is in front of.

    ``nexus_id``: its name in the database; drawn where it is ``None``, and then what it leaves when it dies is taken
    over like any other's. ``lease_s``: for how long a silent Nexus is taken for living. ``periods_s``: of background
    tasks, by name, where they are not to be their own. ``stop_grace_s``: how long a clean stop waits for sagas to end;
    what has not ended then is others' at once. ``sagas``, ``hooks`` and ``perform`` are for tests and the explorer.
    """

    nexus_id: str | None = None
    lease_s: float = LEASE_S
    periods_s: Mapping[str, float] = field(default_factory=dict)
    stop_grace_s: float = STOP_GRACE_S
    sagas: Sequence[Saga] = ALL_SAGAS
    hooks: Hooks = no_hooks
    perform: Perform = perform_once


@dataclass(frozen=True)
class Settings:
    """``database_url`` as for :meth:`nexus.db.Database.open`. ``service_token``, ``service_tls_ca``: how agents,
    pantries and hosts beyond loopback are spoken to. ``sizes``: which disks there may be."""

    database_url: str = field(repr=False)
    service_token: str | None = field(default=None, repr=False)
    service_tls_ca: str | None = None
    sizes: Sizes = field(default_factory=Sizes)
    backoff: Backoff = field(default_factory=Backoff)
    conduct: Conduct = field(default_factory=Conduct)

    @property
    def persistence(self) -> Persistence:
        return Persistence(self.backoff, SystemRandom().random)
