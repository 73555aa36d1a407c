"""SIGKILL an agent at random instants while it is asked for everything at once; start it again, and compare.

    python tests/agent/kill_agent.py --kills 200

Three clients at a time create regions, clone them from another agent's running snapshot, write them and take
snapshots, run snapshots, stop them, and delete all of it. Each request that was answered must hold after the restart;
one that was under way may hold or not. When the agent has nothing left to do,

* the listing is what was asked for, no record is *failed*, and every port is the one that was first answered;
* no two records ever have one port;
* each region and snapshot is whole: its Downstairs answers, a clone equals its source, a snapshot holds what was
  flushed with it (by their digests);
* nothing else lies in the agent's directory.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import agent_neighbours  # noqa: F401  opens the ways to the neighbours
import httpx2
import numpy as np
import trio
from agent_rig import PARAMETERS, POOL, REGIONS, VERSION, connected, own_host, serving_agent, until, wish
from disk_rig import until as until_true
from downstairs_rig import flush, write

from crucible_emu.geometry import RegionDefinition
from crucible_emu.integrity import BlockContexts, hash_blocks
from crucible_emu.region import Region
from crucible_emu.region.digest import region_digest
from crucible_emu.region.view import RegionView
from crucible_emu.wire import messages as m
from crucible_emu.wire.constants import REPAIR_PORT_OFFSET

IN_MEMORY = Path("/dev/shm")
"""Where files cost no syncs, so that more happens in a life: a process is killed here, and no machine."""
CLIENTS = 3
LIVE_MAX = 6
REQUESTS_MAX, DELAY_S_MAX = 30, 0.05
SETTLE_S = 60
SOURCE, SOURCE_FILL = "5eed5eed-0000-4000-8000-000000000001", 77
BLOCKS = PARAMETERS["extent_size"] * PARAMETERS["extent_count"]
GONE = (httpx2.TransportError, OSError, AssertionError, trio.BrokenResourceError)
"""What a client sees of an agent that is killed; the scripted Upstairs asserts that nobody hangs up on it."""


class Violation(Exception):
    """The agent broke its word."""


@dataclass(eq=False)
class SnapshotModel:
    """What is known of a snapshot: the ways in which it may be found, and those in which its run may be."""

    fill: int
    possible: set[str]
    run: set[str] = field(default_factory=lambda: {"none"})
    run_port: int | None = None


@dataclass(eq=False)
class RegionModel:
    """What is known of a region: the states in which it may be found."""

    id: str
    clone: bool
    possible: set[str]
    port: int | None = None
    busy: bool = False
    generation: int = 0
    snapshots: dict[str, SnapshotModel] = field(default_factory=dict)


class World:
    """The agent's directory, what it was asked for, and the clients that ask."""

    def __init__(self, directory: Path, source: str, seed: int, *, isolate: bool) -> None:
        self.directory = directory
        self.source = source
        self.rng = random.Random(seed)
        self.isolate = isolate
        self.host = own_host()
        self.url = ""
        # One for all lives: making one reads the machine's certificates, which takes longer than most requests.
        self.http = httpx2.AsyncClient(headers=VERSION, timeout=SETTLE_S)
        self.regions: dict[str, RegionModel] = {}
        self.ports: dict[tuple[str, str | None], int] = {}
        self.begun = 0
        """How many things were asked for."""
        self.counts: dict[str, int] = {}
        self.killed = trio.Event()
        self._numbers = itertools.count(1)

    # Asking

    async def ask(self, method: str, path: str, body: object = None) -> httpx2.Response:
        return await self.http.request(method, self.url + REGIONS + path, json=body)

    async def get(self, path: str) -> Any:
        answer = await self.ask("GET", path)
        if answer.status_code != 200:
            raise Violation(f"GET {path} was answered {answer.status_code}: {answer.text}")
        return answer.json()

    async def listing(self) -> dict[str, Any]:
        """All regions by id, each with its snapshots and runs; ports are checked on the way."""
        found = {}
        for region in await self.get(""):
            found[region["id"]] = {"snapshots": [], "running_snapshots": {}} | region
            # What was found destroyed once stays as it is, and its snapshots are all gone.
            known = self.regions.get(region["id"])
            if region["state"] != "destroyed" or known is None or known.possible != {"destroyed"}:
                found[region["id"]].update(await self.get(f"/{region['id']}/snapshots"))
        self.check_ports(found)
        return found

    def check_ports(self, found: dict[str, Any]) -> None:
        taken: dict[int, tuple[str, str | None]] = {}
        for region in found.values():
            runs = [((run["id"], run["name"]), run) for run in region["running_snapshots"].values()]
            for key, record in [((region["id"], None), region), *runs]:
                port, state = record["port_number"], record["state"]
                if self.ports.setdefault(key, port) != port:
                    raise Violation(f"{key} had port {self.ports[key]}, and now has {port}")
                if state != "destroyed" and taken.setdefault(port, key) != key:
                    raise Violation(f"port {port} belongs to {taken[port]} and to {key}")
                if state == "failed":
                    raise Violation(f"{key} failed")

    # What clients do. Whatever is about to be asked becomes possible first, and is certain when it was answered.

    async def client(self) -> None:
        while True:
            await trio.lowlevel.checkpoint()
            choice = self.choose()
            if choice is None:
                await trio.sleep(0.005)
                continue
            name, region, action = choice
            if region is not None:
                region.busy = True
            self.begun += 1
            await action()
            self.counts[name] = self.counts.get(name, 0) + 1
            if region is not None:
                region.busy = False

    def choose(self) -> tuple[str, RegionModel | None, Callable[[], Any]] | None:
        """Something that can be asked now; regions that somebody is busy with are left alone."""
        live = [each for each in self.regions.values() if each.possible != {"destroyed"}]
        options: list[tuple[str, RegionModel | None, Callable[[], Any]]] = []
        if len(live) < LIVE_MAX:
            options += [("create", None, self.create), ("clone", None, lambda: self.create(clone=True))]
        for region in live:
            if region.busy or region.possible != {"created"}:
                continue
            there = {name: each for name, each in region.snapshots.items() if each.possible == {"there"}}
            if not region.clone and len(there) < 2:
                options.append(("snapshot", region, functools.partial(self.snapshot, region)))
            for name, each in there.items():
                arguments = (region, name, each)
                if each.run == {"none"}:
                    options.append(("run", region, functools.partial(self.run, *arguments)))
                if each.run == {"created"}:
                    options.append(("stop", region, functools.partial(self.stop, *arguments)))
                if each.run in ({"none"}, {"destroyed"}):
                    options.append(("delete snapshot", region, functools.partial(self.unsnapshot, *arguments)))
            if not there:
                options.append(("delete", region, functools.partial(self.delete, region)))
        return self.rng.choice(options) if options else None

    async def create(self, *, clone: bool = False) -> None:
        region = RegionModel(f"{next(self._numbers):08x}-0000-4000-8000-000000000000", clone, {"absent", "created"})
        region.busy = True
        self.regions[region.id] = region
        body = wish(region.id, source=self.source) if clone else wish(region.id)
        answer = await self.ask("POST", "", body)
        self.expect(answer, 200)
        region.port = self.ports[region.id, None] = answer.json()["port_number"]
        region.possible = {"created"}
        if self.rng.random() < 0.3:
            await self.delete(region, may_clone=True)
        else:
            await self.wait_for(region.id, "created")
        region.busy = False

    async def delete(self, region: RegionModel, *, may_clone: bool = False) -> None:
        region.possible = {"created", "destroyed"}
        answer = await self.ask("DELETE", f"/{region.id}")
        if may_clone and region.clone and answer.status_code == 503:
            region.possible = {"created"}
            await self.wait_for(region.id, "created")
            return
        self.expect(answer, 204)
        region.possible = {"destroyed"}
        await self.wait_for(region.id, "destroyed")

    async def wait_for(self, region_id: str, state: str) -> None:
        await until(lambda: self.get(f"/{region_id}"), lambda found: found["state"] == state, timeout_s=SETTLE_S)

    async def snapshot(self, region: RegionModel) -> None:
        fill, name = self.rng.randrange(1, 256), f"s{next(self._numbers)}"
        assert region.port is not None
        region.generation += 1
        async with connected(self.host, region.port, region.generation) as upstairs:
            await upstairs.ask(write(1000, 0, BLOCKS, fill), m.WriteAck)
            region.snapshots[name] = SnapshotModel(fill, {"absent", "there"})
            number = region.generation
            ack = await upstairs.ask(flush(1001, [1000], number, number, name), m.FlushAck)
            if ack.result is not None:
                raise Violation(f"snapshot {name} of {region.id}: {ack.result}")
        region.snapshots[name].possible = {"there"}

    async def run(self, region: RegionModel, name: str, snapshot: SnapshotModel) -> None:
        snapshot.run = {"none", "created"}
        answer = await self.ask("POST", f"/{region.id}/snapshots/{name}/run")
        self.expect(answer, 200)
        snapshot.run = {"created"}
        self.ports[region.id, name] = answer.json()["port_number"]
        await self.wait_for_run(region.id, name, "created")

    async def stop(self, region: RegionModel, name: str, snapshot: SnapshotModel) -> None:
        snapshot.run = {"created", "destroyed"}
        self.expect(await self.ask("DELETE", f"/{region.id}/snapshots/{name}/run"), 204)
        snapshot.run = {"destroyed"}
        await self.wait_for_run(region.id, name, "destroyed")

    async def wait_for_run(self, region_id: str, name: str, state: str) -> None:
        await until(
            lambda: self.get(f"/{region_id}/snapshots"),
            lambda found: found["running_snapshots"][name]["state"] == state,
            timeout_s=SETTLE_S,
        )

    async def unsnapshot(self, region: RegionModel, name: str, snapshot: SnapshotModel) -> None:
        snapshot.possible = {"absent", "there"}
        self.expect(await self.ask("DELETE", f"/{region.id}/snapshots/{name}"), 204)
        snapshot.possible = {"absent"}

    @staticmethod
    def expect(answer: httpx2.Response, status: int) -> None:
        if answer.status_code != status:
            raise Violation(f"{answer.request.method} {answer.request.url}: {answer.status_code} {answer.text}")

    # Comparing

    async def compare(self) -> None:
        """Let the agent settle, and hold what is found against what is possible; from now on that is certain."""
        found = await until(self.listing, lambda found: not self.unsettled(found), timeout_s=SETTLE_S)
        if extra := found.keys() - self.regions.keys():
            raise Violation(f"nobody asked for {sorted(extra)}")
        for region in list(self.regions.values()):
            region.busy = False
            state = found[region.id]["state"] if region.id in found else "absent"
            if state not in region.possible:
                raise Violation(f"region {region.id} is {state}, and may be {sorted(region.possible)}")
            if state == "absent":
                del self.regions[region.id]
                continue
            region.possible = {state}
            region.port = found[region.id]["port_number"]
            if state == "created":
                await self.compare_snapshots(region, found[region.id])
                await self.look_into(region)
            else:
                region.snapshots.clear()
        self.check_files()

    @staticmethod
    def unsettled(found: dict[str, Any]) -> list[str]:
        waits = ("requested", "tombstoned")
        regions = [region["id"] for region in found.values() if region["state"] in waits]
        runs = [run for region in found.values() for run in region["running_snapshots"].values()]
        return regions + [f"{run['id']}@{run['name']}" for run in runs if run["state"] in waits]

    async def compare_snapshots(self, region: RegionModel, found: dict[str, Any]) -> None:
        listed = {each["name"] for each in found["snapshots"]}
        runs = {name: run["state"] for name, run in found["running_snapshots"].items()}
        if extra := listed - region.snapshots.keys():
            raise Violation(f"nobody took {sorted(extra)} of {region.id}")
        for name, snapshot in list(region.snapshots.items()):
            state, run = "there" if name in listed else "absent", runs.get(name, "none")
            if state not in snapshot.possible or run not in snapshot.run:
                raise Violation(
                    f"snapshot {name} of {region.id} is {state} and its run {run}, they may be "
                    f"{sorted(snapshot.possible)} and {sorted(snapshot.run)}"
                )
            snapshot.possible, snapshot.run = {state}, {run}
            if state == "absent":
                del region.snapshots[name]
            else:
                await self.expect_digest(f"/{region.id}/snapshots/{name}", snapshot.fill)

    async def look_into(self, region: RegionModel) -> None:
        """Its Downstairs answers, for the right region; a clone holds what its source does."""
        assert region.port is not None
        region.generation += 1
        async with connected(self.host, region.port, region.generation, read_only=region.clone):
            pass
        definition = RegionView.open(self.directory / "regions" / region.id).definition
        if definition != RegionDefinition(
            PARAMETERS["block_size"], PARAMETERS["extent_size"], PARAMETERS["extent_count"], UUID(region.id)
        ):
            raise Violation(f"region {region.id} is another: {definition}")
        if region.clone:
            await self.expect_digest(f"/{region.id}", SOURCE_FILL)

    async def expect_digest(self, path: str, fill: int) -> None:
        status = await until(lambda: self.get(f"{path}/digest"), lambda found: found["state"] != "computing")
        if status["digest"] != digest_of(fill):
            raise Violation(f"{path} does not hold what was written: {status}")

    def check_files(self) -> None:
        """Nothing half-made, nothing left over."""
        names = {path.name for path in self.directory.iterdir()} - ({"services"} if self.isolate else set())
        if names - {"crucible.json"} != {"regions"}:
            raise Violation(f"in the agent's directory: {sorted(names)}")
        live = {each.id for each in self.regions.values() if each.possible == {"created"}}
        names = {path.name for path in (self.directory / "regions").iterdir()}
        if names != live:
            raise Violation(f"region directories {sorted(names ^ live)} are leaked or missing")
        for region_id in live:
            taken = self.directory / "regions" / region_id / ".zfs" / "snapshot"
            names = {path.name for path in taken.iterdir()} if taken.exists() else set()
            if names != self.regions[region_id].snapshots.keys():
                raise Violation(f"snapshot directories of {region_id}: {sorted(names)}")

    # Lives

    def start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "crucible_emu", "agent", "run", str(self.directory)]
        command += ["--listen", f"{self.host}:0", "--low-port", str(POOL.low), "--ports", "60", "--json", "--until-eof"]
        if self.isolate:
            command.append("--isolate")
        agent = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert agent.stdout is not None
        line = agent.stdout.readline()
        if not line:
            raise Violation("the agent did not start again")
        self.url = json.loads(line)["url"]
        return agent

    async def one_life(self, requests: int, delay_s: float) -> None:
        """Start, compare, ask for this and that, and kill it so long after so many requests: in the middle of it."""
        agent = await trio.to_thread.run_sync(self.start)
        self.killed = trio.Event()
        try:
            await self.compare()
            async with trio.open_nursery() as nursery:
                for _ in range(CLIENTS):
                    nursery.start_soon(self.until_killed)
                enough = self.begun + requests
                await until_true(lambda: self.begun >= enough)
                await trio.sleep(delay_s)  # the load under which it is killed
                self.killed.set()
                agent.kill()
                nursery.cancel_scope.cancel()
        finally:
            _end(agent)

    async def until_killed(self) -> None:
        try:
            await self.client()
        except GONE:
            # The kill may be seen here before it is seen there. An agent that lives has no excuse.
            if not self.killed.is_set():
                raise

    async def delete_everything(self) -> None:
        """An end in order; nothing of any region may be left."""
        agent = await trio.to_thread.run_sync(self.start)
        try:
            await self.compare()
            for region in self.regions.values():
                if region.possible == {"destroyed"}:
                    continue
                for name, snapshot in list(region.snapshots.items()):
                    if snapshot.run == {"created"}:
                        await self.stop(region, name, snapshot)
                    await self.unsnapshot(region, name, snapshot)
                await self.delete(region)
            await self.compare()
            agent.terminate()
            if (code := await trio.to_thread.run_sync(agent.wait)) != 0:
                raise Violation(f"told to end, the agent ended with {code}")
        finally:
            _end(agent)


def _end(agent: subprocess.Popen[bytes]) -> None:
    agent.kill()
    agent.wait()
    for pipe in (agent.stdin, agent.stdout):
        if pipe is not None:
            pipe.close()


@functools.cache
def digest_of(fill: int) -> str:
    """The digest of a region of the tests' shape whose every byte is ``fill``."""
    with tempfile.TemporaryDirectory() as folder:
        shape = (PARAMETERS["block_size"], PARAMETERS["extent_size"], PARAMETERS["extent_count"])
        path = Path(folder) / "region"
        with Region.create(path, RegionDefinition(*shape, UUID(int=1))) as region:
            rows = np.full((BLOCKS, PARAMETERS["block_size"]), fill, np.uint8)
            region.write(np.arange(BLOCKS, dtype=np.int64), rows, BlockContexts.plain(hash_blocks(rows)))
            region.flush(1, 1)
        return region_digest(RegionView.open(path)).region


@asynccontextmanager
async def clone_source(directory: Path) -> AsyncIterator[str]:
    """Another agent, which nobody kills, and the repair address of a running snapshot of it."""
    async with serving_agent(directory) as served:
        await served.made(SOURCE)
        await served.fill(SOURCE, SOURCE_FILL, snapshot="source")
        run = await served.run(SOURCE, "source")
        yield f"{served.host}:{run['port_number'] + REPAIR_PORT_OFFSET}"


async def lives(folder: Path, kills: int, seed: int, *, isolate: bool, say: Callable[[str], None]) -> World:
    """Raises :class:`Violation`."""
    async with clone_source(folder / "source") as source:
        world = World(folder / "agent", source, seed, isolate=isolate)
        for number in range(kills):
            await world.one_life(world.rng.randrange(REQUESTS_MAX), world.rng.uniform(0.0, DELAY_S_MAX))
            say(f"kill {number + 1}: {len(world.regions)} regions known")
        await world.delete_everything()
        await world.http.aclose()
        return world


def run(kills: int, seed: int, *, isolate: bool = False, say: Callable[[str], None] = lambda _: None) -> World:
    """``kills`` lives of one agent, and an end in order. Raises :class:`Violation` with what led to it."""
    with tempfile.TemporaryDirectory(dir=IN_MEMORY if os.access(IN_MEMORY, os.W_OK) else None) as folder:

        async def main() -> World:
            return await lives(Path(folder), kills, seed, isolate=isolate, say=say)

        return trio.run(main)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--isolate", action="store_true", help="Downstairs as child processes of the agent")
    parser.add_argument("--verbose", action="store_true")
    arguments = parser.parse_args()
    say: Callable[[str], None] = print if arguments.verbose else lambda _: None
    world = run(arguments.kills, arguments.seed, isolate=arguments.isolate, say=say)
    done = ", ".join(f"{count} x {name}" for name, count in sorted(world.counts.items()))
    print(f"{arguments.kills} kills: 0 violations ({done})")


if __name__ == "__main__":
    main()
