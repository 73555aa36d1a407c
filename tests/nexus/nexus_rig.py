"""A rack in this process with real bytes: agents with regions on disk, a pantry, hosts, a database, and one Nexus.

HTTP goes over ASGI in memory, at addresses that nobody listens on; Downstairs listen on ``::1`` and are reached over
TCP. Disks are small: steps and extents of 64 KiB. Everything stays from one saga to the next, so a test that wants a
clean slate deletes what it made: :meth:`Plant.require_empty` says what is left.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any, TypeVar
from uuid import UUID

import httpx2
import trio
from sqlalchemy import Connection, Table, func, insert, select, update

from crucible_emu.agent import agent as agents_of
from crucible_emu.agent.agent import AgentOptions, running_agent
from crucible_emu.agent.api import agent_api
from crucible_emu.agent.core import PortPool
from crucible_emu.client.persistence import Persistence
from crucible_emu.client.retry import Backoff
from crucible_emu.host import Host, Settings, hosting
from crucible_emu.host import api as host_api
from crucible_emu.pantry.driver import Pantry
from crucible_emu.pantry.operations import api as pantry_api
from crucible_emu.service import application
from nexus.db import Database, schema
from nexus.placement import Sizes
from nexus.services import Agents, Connections, Hosts, Pantries, World
from nexus.volumes import FairLocks, invariants

T = TypeVar("T")
EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
EXTENT_BYTES = 64 * 1024
SIZES = Sizes(EXTENT_BYTES, EXTENT_BYTES, 1024 * EXTENT_BYTES)
CAPACITY_BYTES = 64 * 1024 * 1024
PORTS_PER_AGENT = 50
PORTS = 400
QUICK = Backoff(first_s=0.01, factor=1.5, longest_s=0.05)
"""Asking every 2 ms takes two thirds more processor time, most of it from who is waited for."""


@contextmanager
def claimed_ports() -> Iterator[int]:
    """The first of :data:`PORTS` ports that no other test on this machine has, and whose repair ports are free.

    Downstairs of all agents share ``::1``. A name in the kernel says that ports are taken; it goes with its process.
    """
    for low in (*range(5000, 8600, PORTS), *range(24000, 27600, PORTS)):
        claim = socket.socket(socket.AF_UNIX)
        with claim:
            try:
                claim.bind(f"\0ports-of-a-nexus-test-{low}")
            except OSError:
                continue
            yield low
            return
    raise AssertionError("all ports for tests are taken")


class Switchboard(httpx2.AsyncBaseTransport):
    """The network: an ASGI application at each port, or nobody."""

    def __init__(self) -> None:
        self._at: dict[int, httpx2.ASGITransport] = {}

    def connect(self, port: int, app: Any) -> None:
        self._at[port] = httpx2.ASGITransport(app=app)

    def cut(self, port: int) -> None:
        """Nobody answers there any more."""
        self._at.pop(port, None)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        there = self._at.get(request.url.port or 0)
        if there is None:
            await trio.lowlevel.checkpoint()
            raise httpx2.ConnectError(f"nobody listens at {request.url.host}", request=request)
        return await there.handle_async_request(request)


class Plant:
    """All of it. ``agents`` are :class:`crucible_emu.agent.Agent` by dataset id; ``sled_of`` says which sled each
    dataset is on; agents listen at :data:`AGENT_PORT` plus the number of their sled."""

    def __init__(self, database: Database, directory: Path) -> None:
        self.database = database
        self.directory = directory
        self.sockets: Path
        """Where hosts have the doors of disks: the path of a socket has to be short."""
        self.network = Switchboard()
        self._ids = count(1)
        self._ticks = count()
        self.random = Random(1)
        self.agents: dict[str, agents_of.Agent] = {}
        self.sled_of: dict[str, str] = {}
        self.disk_of: dict[str, str] = {}
        self.agent_port: dict[str, int] = {}
        self.hosts: dict[str, Host] = {}
        self.pantry: Pantry
        self.world: World
        self.silo_id = self.id()
        self.project_id = self.id()

    def id(self) -> str:
        return str(UUID(int=next(self._ids), version=4))

    def now(self) -> datetime:
        return EPOCH + timedelta(milliseconds=next(self._ticks))

    def run(self, body: Any, *args: Any, **kwargs: Any) -> Any:
        """One transaction, in this thread."""
        return self.database.transact_blocking(lambda connection: body(connection, *args, **kwargs))

    def add(self, table: Table, **values: Any) -> str:
        """A row; ``id`` and the timestamps are filled in. Its id."""
        for column in table.columns:
            if column.name in values or column.nullable:
                continue
            if column.name == "id":
                values["id"] = self.id()
            elif column.name in ("time_created", "time_modified", "time_collected"):
                values[column.name] = self.now()
        self.run(lambda c: c.execute(insert(table).values(**values)) and None)
        return str(values.get("id", ""))

    def set(self, table: Table, identity: str, **values: Any) -> None:
        """Change a row by hand."""
        self.run(lambda c: c.execute(update(table).where(table.c.id == identity).values(**values)) and None)

    def count(self, table: Table, *where: Any) -> int:
        found: int = self.run(lambda c: c.execute(select(func.count()).select_from(table).where(*where)).scalar_one())
        return found

    def findings(self) -> list[str]:
        """What the invariants have to say, when nothing is under way."""
        return [str(each) for each in self.run(lambda c: invariants.check(c, at_rest=True))]

    def expunge(self, dataset_id: str) -> None:
        """Declare the dataset's physical disk lost."""
        self.set(schema.physical_disk, self.disk_of[dataset_id], disk_policy="expunged")

    def silence(self, dataset_id: str) -> None:
        """The dataset's agent does not answer any more."""
        self.network.cut(self.agent_port[dataset_id])

    async def held(self) -> list[str]:
        """What agents hold that is not destroyed: regions, snapshots, running snapshots; in sentences."""
        found = []
        for dataset_id, agent in self.agents.items():
            for region in agent.regions():
                if region.state.value != "destroyed":
                    found.append(f"dataset {dataset_id}: region {region.id} is {region.state.value}")
                    holds = await agent.snapshots(region.id)
                    found += [f"dataset {dataset_id}: snapshot {each.name} of {region.id}" for each in holds.snapshots]
        return found

    async def require_empty(self) -> None:
        """*Nothing is left*: no region, volume, usage, lock, charge, nobody who waits, and nothing at any agent."""
        left = [
            f"{self.count(table)} rows in {table.name}"
            for table in (
                *(schema.region, schema.region_snapshot, schema.volume, schema.volume_resource_usage),
                *(schema.volume_repair, schema.volume_repair_queue, schema.virtual_provisioning_resource),
                *(schema.replacement_waiting, schema.survivor_decision, schema.volume_at_rest),
            )
            if self.count(table)
        ]
        used = self.run(lambda c: c.execute(select(func.sum(schema.crucible_dataset.c.size_used))).scalar_one())
        charged = schema.virtual_provisioning_collection.c.virtual_disk_bytes_provisioned
        if used:
            left.append(f"{used} bytes reserved on datasets")
        if self.run(lambda c: c.execute(select(func.sum(charged))).scalar_one()):
            left.append("something is charged to a collection")
        assert left + await self.held() + self.findings() == []


def _require(connection: Connection) -> None:
    invariants.require(connection)


@asynccontextmanager
async def plant(
    directory: Path, database: Database, *, sleds: int = 4, checked: bool = True, **agent_options: Any
) -> AsyncIterator[Plant]:
    """``sleds`` sleds with an agent and a host each, and one pantry, with their rows in ``database``; one silo with one
    project. With ``checked`` every transaction is checked against the invariants."""
    rack = Plant(database, directory)
    async with AsyncExitStack() as stack:
        low = stack.enter_context(claimed_ports())
        rack.sockets = Path(stack.enter_context(TemporaryDirectory(prefix="nexus-")))
        for number in range(sleds):
            pool = PortPool(low + number * PORTS_PER_AGENT, PORTS_PER_AGENT)
            await stack.enter_async_context(_sled(rack, number, {"pool": pool} | agent_options))
        nursery = await stack.enter_async_context(trio.open_nursery())
        rack.pantry = Pantry(reconnect_delay_s=0.02)
        await nursery.start(rack.pantry.run)
        rack.network.connect(17900, application(pantry_api(rack.pantry)))
        rack.add(schema.pantry, sled_id=next(iter(rack.sled_of.values())), ip="::1", port=17900)
        rack.add(schema.silo, id=rack.silo_id, name="silo", description="")
        rack.add(schema.project, id=rack.project_id, silo_id=rack.silo_id, name="project", description="")
        connections = await stack.enter_async_context(Connections(transport=rack.network))
        rack.world = world_of(rack, connections)
        if checked:
            database.after_body = _require
        yield rack
        database.after_body = None
        nursery.cancel_scope.cancel()


def world_of(rack: Plant, connections: Connections) -> World:
    """What a Nexus in front of this rack is given."""
    database, persistence = rack.database, Persistence(QUICK, rack.random.random)
    return World(
        database,
        Agents(database, connections, persistence, rack.now),
        Pantries(database, connections, persistence),
        Hosts(database, connections, persistence),
        FairLocks(),
        rack.now,
        rack.id,
        rack.random.randbytes,
        SIZES,
    )


@asynccontextmanager
async def _sled(rack: Plant, number: int, agent_options: dict[str, Any]) -> AsyncIterator[None]:
    agent_port, host_port = 17000 + number, 17500 + number
    sled_id = rack.add(
        schema.sled,
        rack_id=rack.id(),
        serial_number=f"sled{number}",
        part_number="emulated",
        revision=1,
        ip="::1",
        port=host_port,
        sled_policy="in_service",
        sled_state="active",
    )
    hardware = {"vendor": "emulated", "serial": f"disk{number}", "model": "file", "variant": "u2"}
    disk_id = rack.add(schema.physical_disk, sled_id=sled_id, disk_policy="in_service", disk_state="active", **hardware)
    pool_id = rack.add(schema.zpool, sled_id=sled_id, physical_disk_id=disk_id, control_plane_storage_buffer=0)
    rack.add(schema.inv_zpool, id=pool_id, sled_id=sled_id, total_size=CAPACITY_BYTES)
    dataset_id = rack.add(
        schema.crucible_dataset, pool_id=pool_id, ip="::1", port=agent_port, size_used=0, no_provision=False
    )
    async with (
        running_agent(rack.directory / f"sled{number}" / "disk", AgentOptions(**agent_options)) as agent,
        hosting(Settings(rack.sockets / str(number), reconnect_delay_s=0.02, scrub_delay_s=None)) as host,
    ):
        rack.network.connect(agent_port, application(agent_api(agent)))
        rack.network.connect(host_port, application(host_api(host)))
        rack.agents[dataset_id], rack.hosts[sled_id] = agent, host
        rack.sled_of[dataset_id], rack.disk_of[dataset_id] = sled_id, disk_id
        rack.agent_port[dataset_id] = agent_port
        yield
