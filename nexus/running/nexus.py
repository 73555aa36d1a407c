"""One Nexus: its lease, its sagas, its background tasks.

What it is for: :func:`running_nexus` is what ``nexus run`` and the servers stand on; :func:`nexus_over` is the same
over a world that is there already, for tests, and for several Nexus in one process.

What it guarantees: the lease is registered before the first saga, so no saga ever belongs to somebody unknown. What the
dead have left is taken over before anybody is served, and again with every activation of ``saga_recovery``. A clean
stop lets sagas end, for a while, and then gives the lease back: what is left is others' at once. Death at any instant
(a cancelled scope, a killed process) gives nothing back; the lease runs out, and then it is the same. Both are safe for
the reason that taking over is: a node may run again, and the fence stops whoever was only slow.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from secrets import token_bytes
from uuid import uuid4

import trio

from crucible_emu.logs import get_logger
from nexus.db import Database, DatabaseError
from nexus.db.sagas import Leases, SagaStore
from nexus.running.settings import Conduct, Settings
from nexus.saga import Executor, Fenced, SagaFailed, SagaStuck
from nexus.services import Agents, Connections, Hosts, Pantries, World
from nexus.tasks import Scheduler, all_tasks
from nexus.tasks.saga_recovery import SagaRecovery
from nexus.volumes import FairLocks

HEARTBEATS_PER_LEASE = 3

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Nexus:
    """A Nexus that runs. ``store`` lists its sagas and everybody's, ``leases`` who is alive."""

    id: str
    world: World
    executor: Executor
    tasks: Scheduler
    store: SagaStore
    leases: Leases


@asynccontextmanager
async def running_nexus(settings: Settings) -> AsyncIterator[Nexus]:
    """Open the database and be a Nexus, until the block is left. Raises what :meth:`nexus.db.Database.open` does."""
    with Database.open(settings.database_url) as database:
        connections = Connections(token=settings.service_token, tls_ca=settings.service_tls_ca)
        async with connections:
            world = world_of(settings, database, connections)
            async with nexus_over(world, settings.conduct) as nexus:
                yield nexus


@asynccontextmanager
async def nexus_over(world: World, conduct: Conduct) -> AsyncIterator[Nexus]:
    """As :func:`running_nexus`, over ``world``."""
    leases = Leases(world.database, conduct.lease_s)
    store = SagaStore(world.database)
    nexus_id = conduct.nexus_id or world.new_id()
    await leases.register(nexus_id)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_keep_lease, leases, nexus_id)
        executor = Executor(
            nursery,
            store,
            conduct.sagas,
            world,
            nexus_id,
            new_id=world.new_id,
            hooks=conduct.hooks,
            perform=conduct.perform,
        )
        # Before anybody is served: what was begun is gone on with first.
        await SagaRecovery(executor, leases).activate()
        tasks = Scheduler(all_tasks(world, executor, leases), world.now, periods_s=conduct.periods_s)
        tasks_scope = trio.CancelScope()
        nursery.start_soon(_run_tasks, tasks, tasks_scope)
        log.info("nexus runs", nexus=nexus_id)
        yield Nexus(nexus_id, world, executor, tasks, store, leases)
        tasks_scope.cancel()
        await _let_sagas_end(executor, conduct.stop_grace_s)
        nursery.cancel_scope.cancel()
    await leases.retire(nexus_id)
    log.info("nexus stopped", nexus=nexus_id)


def world_of(settings: Settings, database: Database, connections: Connections) -> World:
    """What actions are given by a Nexus that is set up so."""

    def now() -> datetime:
        return datetime.now(UTC)

    persistence = settings.persistence
    return World(
        database,
        Agents(database, connections, persistence, now),
        Pantries(database, connections, persistence),
        Hosts(database, connections, persistence),
        FairLocks(),
        now,
        lambda: str(uuid4()),
        token_bytes,
        settings.sizes,
    )


async def _keep_lease(leases: Leases, nexus_id: str) -> None:
    """*Liveness*: whoever lives keeps its sagas."""
    while True:
        await trio.sleep(leases.lease_seconds / HEARTBEATS_PER_LEASE)
        try:
            if not await leases.heartbeat(nexus_id):
                # It stood still, or the database was away. What others took meanwhile is theirs.
                log.warning("lease ran out, registered anew", nexus=nexus_id)
                await leases.register(nexus_id)
        except DatabaseError as error:
            log.warning("lease not renewed", nexus=nexus_id, reason=str(error))


async def _run_tasks(tasks: Scheduler, scope: trio.CancelScope) -> None:
    with scope:
        await tasks.run()


async def _let_sagas_end(executor: Executor, grace_s: float) -> None:
    with trio.move_on_after(grace_s):
        while executor.in_hand:
            with suppress(SagaFailed, SagaStuck, Fenced):
                await executor.wait(executor.in_hand[0])
