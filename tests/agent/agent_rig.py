"""An agent in this process behind its API, and a word or two with the Downstairs that it runs."""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx2
import trio
from downstairs_rig import ScriptedUpstairs, flush, read, write

from crucible_emu.agent import Agent, AgentOptions, PortPool, agent_api, running_agent
from crucible_emu.service import application
from crucible_emu.wire import messages as m

A, B, C = (f"{digit * 8}-0000-4000-8000-{digit * 12}" for digit in "abc")
"""Ids of regions."""
REGIONS = "/crucible/0/regions"
VERSION = {"api-version": "1.0.0"}
PARAMETERS: dict[str, Any] = {"block_size": 512, "extent_size": 8, "extent_count": 4, "encrypted": False}
POOL = PortPool(19000, 20)
ENOUGH_S = 30

_hosts = itertools.count(1)


def own_host() -> str:
    """A loopback address that no other test uses, so that every test may have the same ports."""
    number = (os.getpid() % 0x8000) << 8 | next(_hosts) % 0x100
    return f"127.{64 + (number >> 16)}.{number >> 8 & 0xFF}.{number & 0xFF}"


def wish(region_id: str, **changes: Any) -> dict[str, Any]:
    """The body of a POST."""
    return {"id": region_id, **PARAMETERS, **changes}


T = TypeVar("T")


async def until(look: Callable[[], Awaitable[T]], good: Callable[[T], bool], timeout_s: float = ENOUGH_S) -> T:
    """What ``look`` finds, as soon as it is ``good``."""
    with trio.fail_after(timeout_s):
        while True:
            found = await look()
            if good(found):
                return found
            await trio.sleep(0.005)


class Served:
    """An agent and its API."""

    def __init__(self, agent: Agent, http: httpx2.AsyncClient) -> None:
        self.agent = agent
        self.http = http
        self.host = agent.options.host

    async def ask(self, method: str, path: str, expect: int = 200, body: object = None) -> Any:
        """The JSON of the answer, which has the status ``expect``."""
        answer = await self.http.request(method, REGIONS + path, json=body, headers=VERSION)
        assert answer.status_code == expect, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json() if answer.content else None

    async def post(self, region_id: str, expect: int = 200, **changes: Any) -> Any:
        return await self.ask("POST", "", expect, wish(region_id, **changes))

    async def region(self, region_id: str) -> Any:
        return await self.ask("GET", f"/{region_id}")

    async def states(self) -> dict[str, str]:
        return {each["id"]: each["state"] for each in await self.ask("GET", "")}

    async def until(self, region_id: str, state: str) -> Any:
        """The region, as soon as it is in ``state``."""
        return await until(lambda: self.region(region_id), lambda found: found["state"] == state)

    async def made(self, region_id: str, **changes: Any) -> Any:
        """POST a region and wait for it."""
        await self.post(region_id, **changes)
        return await self.until(region_id, "created")

    async def removed(self, region_id: str) -> None:
        """DELETE a region and wait for its end."""
        await self.ask("DELETE", f"/{region_id}", 204)
        await self.until(region_id, "destroyed")

    async def run_of(self, region_id: str, name: str, state: str) -> Any:
        """The running snapshot, as soon as it is in ``state``."""

        async def look() -> Any:
            return (await self.ask("GET", f"/{region_id}/snapshots"))["running_snapshots"].get(name)

        return await until(look, lambda run: run is not None and run["state"] == state)

    async def run(self, region_id: str, name: str) -> Any:
        """Run a snapshot and wait for it."""
        await self.ask("POST", f"/{region_id}/snapshots/{name}/run")
        return await self.run_of(region_id, name, "created")

    @asynccontextmanager
    async def upstairs(self, region_id: str, generation: int = 1, **changes: Any) -> AsyncIterator[ScriptedUpstairs]:
        """A connection to the region's Downstairs, which takes jobs."""
        port = (await self.region(region_id))["port_number"]
        async with connected(self.host, port, generation, **changes) as upstairs:
            yield upstairs

    async def fill(self, region_id: str, fill: int, *, snapshot: str | None = None, generation: int = 1) -> None:
        """Write every block of a region and flush, with a snapshot or without."""
        async with self.upstairs(region_id, generation) as upstairs:
            count = PARAMETERS["extent_size"] * PARAMETERS["extent_count"]
            await upstairs.ask(write(1000, 0, count, fill), m.WriteAck)
            ack = await upstairs.ask(flush(1001, [1000], generation, generation, snapshot), m.FlushAck)
            assert ack.result is None

    async def digest(self, path: str) -> Any:
        """The digest of ``/id`` or ``/id/snapshots/name``, when it is there."""
        return await until(lambda: self.ask("GET", f"{path}/digest"), lambda found: found["state"] != "computing")


@asynccontextmanager
async def connected(host: str, port: int, generation: int = 1, **changes: Any) -> AsyncIterator[ScriptedUpstairs]:
    """A Downstairs at ``port`` that takes jobs; one that is only being started is waited for."""
    with trio.fail_after(ENOUGH_S):
        while True:
            try:
                stream = await trio.open_tcp_stream(host, port)
                break
            except OSError:
                await trio.sleep(0.02)
    async with stream:
        upstairs = ScriptedUpstairs(stream)
        await upstairs.activate(generation, **changes)
        yield upstairs


async def first_byte(host: str, port: int) -> int:
    """The first byte that a read-only Downstairs serves."""
    async with connected(host, port, read_only=True) as upstairs:
        answer = await upstairs.ask(read(1000, 0), m.ReadResponse)
        return int(bytes(answer.data)[0])


@asynccontextmanager
async def serving_agent(
    directory: Path, *, faithful: bool = False, lenient: bool = False, **options: Any
) -> AsyncIterator[Served]:
    """The agent of ``directory``, at work while the block runs."""
    options = {"host": own_host(), "pool": POOL} | options
    async with running_agent(directory, AgentOptions(**options)) as agent:
        app = application(agent_api(agent, faithful=faithful, lenient=lenient))
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://agent") as http:
            yield Served(agent, http)
