"""What operations of Nexus cost when there is much that they do not concern.

What it is for: a disk is made and deleted on a database that is empty but for the hardware, and on one with a crowd of
disks and snapshots (:mod:`bench.crowd`); agents that answer at once stand in for the real ones, so that what is left is
the control plane's own work. Listings are read a page at a time, in the beginning and at the end.

What is counted: on SQLite the steps of its virtual machine, which grow with the rows that a statement touches, on
PostgreSQL the rows that it fetched, by its own statistics; statements; and seconds. The two sizes take turns, round
after round, so that a busy moment of the machine hits both; medians are compared.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from itertools import count
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID

import httpx2
import trio
from sqlalchemy import event, text

from bench.crowd import BLOCK_SIZE, DISK_BYTES, PROJECT, Crowd
from crucible_emu.client.persistence import Persistence
from nexus.db import Database, DatabaseError, schema
from nexus.db.sagas import Leases, SagaStore
from nexus.objects.disks import disks_selected
from nexus.objects.lookups import Order, Slice, in_project, page
from nexus.objects.sources import Blank
from nexus.saga import Executor
from nexus.sagas.disk_create import DISK_CREATE
from nexus.sagas.disk_create import Params as DiskCreate
from nexus.sagas.volume_delete import VOLUME_DELETE
from nexus.sagas.volume_delete import Params as VolumeDelete
from nexus.services import Agents, Connections, Hosts, Pantries, World
from nexus.volumes import FairLocks

__all__ = ["DatabaseError", "measure", "run", "summary"]

STEPS_AT_ONCE = 100
"""How often SQLite is asked to say that it is still at work: the grain of the count."""
WARM_UP_ROUNDS = 2
LEASE_S = 3600.0
PAGE = 100
"""Disks of one page."""
FIRST_PAGE = "disks, first page"
PAGES = {FIRST_PAGE: None, "disks, page in the middle": "disk-005", "disks, last full page": "disk-009898"}
"""After which name each begins. An empty database has no disks to tell, so pages are compared with the first."""
NEXUS_ID = str(UUID(int=7))


@dataclass
class Cost:
    """Of one operation, a figure for each time that it was done. ``touched``: steps or rows, see the module."""

    seconds: list[float] = field(default_factory=list)
    touched: list[int] = field(default_factory=list)
    statements: list[int] = field(default_factory=list)

    def medians(self) -> dict[str, float]:
        return {
            "seconds": statistics.median(self.seconds),
            "touched": statistics.median(self.touched),
            "statements": statistics.median(self.statements),
        }


class InstantAgents(httpx2.AsyncBaseTransport):
    """Agents at every address: what is asked for is there, what is deleted is gone."""

    def __init__(self) -> None:
        self._regions: dict[str, dict[str, Any]] = {}
        self._ports = count(40_000)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        await trio.lowlevel.checkpoint()
        if request.method == "POST":
            wish = json.loads(await request.aread())
            made = {"state": "created", "port_number": next(self._ports) % 20_000 + 40_000, "read_only": False}
            return httpx2.Response(200, json=self._regions.setdefault(wish["id"], wish | made))
        region = self._regions[request.url.path.rsplit("/", 1)[1]]
        if request.method == "DELETE":
            region["state"] = "destroyed"
            return httpx2.Response(204)
        return httpx2.Response(200, json=region)


class Touched:
    """Counts what a database looks at."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._steps = 0
        if database.dialect == "sqlite":
            for engine in database.engines:
                event.listen(engine, "checkout", self._watch)
            database.close()  # What was kept is not watched; from here on connections are made anew.

    def _watch(self, connection: Any, record: Any, proxy: Any) -> None:
        connection.set_progress_handler(self._step, STEPS_AT_ONCE)

    def _step(self) -> int:
        self._steps += STEPS_AT_ONCE
        return 0

    async def count(self) -> int:
        if self._database.dialect == "sqlite":
            return self._steps
        await self._database.read(lambda c: c.execute(text("SELECT pg_stat_force_next_flush()")) and None)
        fetched = "SELECT sum(coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0)) FROM pg_stat_user_tables"
        return int(await self._database.read(lambda c: c.execute(text(fetched)).scalar_one()))


def blank_disk(disk_id: str, volume_id: str) -> DiskCreate:
    """What is asked for where disks are made one after the other."""
    return DiskCreate(
        disk_id=disk_id,
        volume_id=volume_id,
        project_id=PROJECT,
        name=f"new-{disk_id}",
        description="",
        size_bytes=DISK_BYTES,
        block_size=BLOCK_SIZE,
        source=Blank(),
    )


class Plane:
    """A Nexus on one database."""

    def __init__(self, database: Database, executor: Executor, random: Random) -> None:
        self._database, self._executor, self._random = database, executor, random
        self._touched = Touched(database)
        self.costs: dict[str, Cost] = {}

    def _id(self) -> str:
        return str(UUID(bytes=self._random.randbytes(16), version=4))

    async def _measure(self, name: str, work: Callable[[], Awaitable[Any]]) -> None:
        touched, statements = await self._touched.count(), self._database.statistics().statements
        began = time.perf_counter()
        await work()
        seconds = time.perf_counter() - began
        statements = self._database.statistics().statements - statements
        cost = self.costs.setdefault(name, Cost())
        cost.seconds.append(seconds)
        cost.statements.append(statements)
        cost.touched.append(await self._touched.count() - touched)

    async def round(self) -> None:
        """Make a disk, and delete its volume."""
        disk_id, volume_id = self._id(), self._id()
        wish = blank_disk(disk_id, volume_id)
        await self._measure("disk create", lambda: self._executor.run(DISK_CREATE, wish))
        await self._measure(
            "volume delete", lambda: self._executor.run(VOLUME_DELETE, VolumeDelete(volume_id=volume_id))
        )
        for name, after in PAGES.items():
            await self._measure(name, partial(self._page, after))

    async def _page(self, after: str | None) -> None:
        """A page of disks by name."""
        wanted = Slice(PAGE, Order.NAME_ASCENDING, after)
        query = disks_selected().where(in_project(schema.disk, PROJECT))
        await self._database.read(lambda c: page(c, query, schema.disk, wanted))


@asynccontextmanager
async def plane(url: str, *, disks: int, snapshots: int) -> AsyncIterator[Plane]:
    """A Nexus on a new database with a crowd in it."""
    with Database.open(url) as database:
        await trio.to_thread.run_sync(lambda: Crowd(database).build(disks=disks, snapshots=snapshots))
        random = Random(disks)
        await Leases(database, LEASE_S).register(NEXUS_ID)
        async with Connections(transport=InstantAgents()) as connections, trio.open_nursery() as nursery:
            world = world_of(database, connections, random)
            sagas = [DISK_CREATE, VOLUME_DELETE]
            executor = Executor(nursery, SagaStore(database), sagas, world, NEXUS_ID, new_id=world.new_id)
            yield Plane(database, executor, random)
            nursery.cancel_scope.cancel()


def world_of(database: Database, connections: Connections, random: Random) -> World:
    """What sagas are given, with ids drawn by ``random``, the same on each run."""

    def now() -> datetime:
        return datetime.now(UTC)

    def new_id() -> str:
        return str(UUID(bytes=random.randbytes(16), version=4))

    persistence = Persistence()
    return World(
        database,
        Agents(database, connections, persistence, now),
        Pantries(database, connections, persistence),
        Hosts(database, connections, persistence),
        FairLocks(),
        now,
        new_id,
        random.randbytes,
    )


async def measure(urls: tuple[str, str], *, disks: int, snapshots: int, rounds: int) -> dict[str, Any]:
    """Costs on an empty database and on a crowded one, at the two ``urls``, and their ratios."""
    async with AsyncExitStack() as stack:
        empty = await stack.enter_async_context(plane(urls[0], disks=0, snapshots=0))
        crowded = await stack.enter_async_context(plane(urls[1], disks=disks, snapshots=snapshots))
        for number in range(WARM_UP_ROUNDS + rounds):
            for each in (empty, crowded):
                await each.round()
                if number < WARM_UP_ROUNDS:
                    each.costs.clear()
        found: dict[str, Any] = {"disks": disks, "snapshots": snapshots, "rounds": rounds, "operations": {}}
        first = crowded.costs[FIRST_PAGE]
        for name, cost in empty.costs.items():
            alone, beside = (first if name in PAGES else cost).medians(), crowded.costs[name].medians()
            ratios = {figure: beside[figure] / value for figure, value in alone.items()}
            found["operations"][name] = {"empty": alone, "crowded": beside, "ratio": ratios}
        return found


def run(urls: tuple[str, str] | None, disks: int, snapshots: int, rounds: int) -> dict[str, Any]:
    """As :func:`measure`; without ``urls`` on two SQLite databases in files of a temporary directory."""
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        files = (f"sqlite:///{Path(directory)}/empty.db", f"sqlite:///{Path(directory)}/crowded.db")
        return trio.run(partial(measure, urls or files, disks=disks, snapshots=snapshots, rounds=rounds))


def summary(found: dict[str, Any]) -> list[str]:
    """The figures in lines for a person."""
    lines = [
        f"beside {found['disks']:,} disks and {found['snapshots']:,} snapshots, medians of {found['rounds']} rounds"
    ]
    for name, costs in found["operations"].items():
        alone, beside, ratio = costs["empty"], costs["crowded"], costs["ratio"]
        compared = "for the first" if name in PAGES else "alone"
        lines.append(
            f"  {name}: {alone['seconds'] * 1000:.1f} ms {compared}, {beside['seconds'] * 1000:.1f} ms beside them "
            f"({ratio['seconds']:.2f}); touched {alone['touched']:,.0f} and {beside['touched']:,.0f} "
            f"({ratio['touched']:.2f}) in {beside['statements']:.0f} statements"
        )
    return lines
