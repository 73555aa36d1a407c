"""The driver of run-many over real processes (small stand-ins for a Downstairs), and its control API."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID

import httpx2
import pytest
import trio

from crucible_emu.errors import UsageError
from crucible_emu.geometry import RegionDefinition
from crucible_emu.supervisor import Fleet, Member, ProcessState
from crucible_emu.supervisor.control import ROUTES, Control, serving
from crucible_emu.supervisor.driver import Launch, Supervisor
from crucible_emu.supervisor.fleet import Changed
from crucible_emu.supervisor.layout import Place, uuid_of

STAND_IN = """
import json, sys
print(json.dumps({"ready": True}), flush=True)
sys.stdin.read()
"""
OPENAPI = json.loads((Path(__file__).parent.parent / "data" / "dsc_control_paths.json").read_text())


class Rig:
    """A running supervisor and a client of its control API."""

    def __init__(self, supervisor: Supervisor, http: httpx2.AsyncClient, changes: list[Changed]) -> None:
        self.supervisor = supervisor
        self.fleet = supervisor.fleet
        self.http = http
        self.changes = changes

    async def get(self, path: str) -> Any:
        answer = await self.http.get(path)
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-request-id"]
        return answer.json()

    async def post(self, path: str) -> None:
        answer = await self.http.post(path)
        assert (answer.status_code, answer.content) == (204, b"")

    async def until(self, *states: str) -> None:
        """Wait until the members are in these states."""
        with trio.fail_after(30):
            await self.supervisor.until(lambda: [each.state.value for each in self.fleet.members] == list(states))


@asynccontextmanager
async def rig(folder: Path, script: str = STAND_IN, count: int = 3, seed: int = 0) -> AsyncIterator[Rig]:
    places = [Place(cid, folder / str(8810 + 10 * cid), 8810 + 10 * cid) for cid in range(count)]
    changes: list[Changed] = []
    fleet = Fleet([Member(place.cid, place.port, uuid_of(place.port)) for place in places], Random(seed))
    launch = Launch((sys.executable, "-c", script), "127.0.0.1", folder)
    supervisor = Supervisor(fleet, places, launch, changes.append)
    definition = RegionDefinition(4096, 100, 15, UUID(int=1))
    control = Control(supervisor, definition, volume_request=lambda: {"type": "volume"})
    async with serving(control, "127.0.0.1:0") as url, trio.open_nursery() as nursery:
        await nursery.start(supervisor.run)
        async with httpx2.AsyncClient(base_url=url, trust_env=False) as http:
            yield Rig(supervisor, http, changes)
        supervisor.shut_down()


async def test_every_get_of_the_api(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        await it.until("running", "running", "running")
        assert await it.get("/allrunning") is True
        assert await it.get("/allstopped") is False
        assert await it.get("/state/cid/0") == "running"
        pid = await it.get("/pid/cid/1")
        assert pid == it.fleet.members[1].pid
        os.kill(pid, 0)
        assert await it.get("/port/cid/2") == 8830
        assert await it.get("/uuid/cid/2") == "12345678-0000-0000-0000-000000008830"
        assert await it.get("/regioncount") == 3
        assert await it.get("/regioninfo") == {"block_size": 4096, "blocks_per_extent": 100, "extent_count": 15}
        assert await it.get("/readonly") is False
        assert await it.get("/vcr") == {"type": "volume"}
        assert [(each["cid"], each["state"], each["halted"]) for each in await it.get("/members")] == [
            (cid, "running", False) for cid in range(3)
        ]


async def test_stop_start_and_restart(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        await it.until("running", "running", "running")
        first = await it.get("/pid/cid/0")
        await it.post("/stop/cid/0")
        await it.until("exit", "running", "running")
        assert await it.get("/pid/cid/0") is None
        await it.post("/start/cid/0")
        await it.until("running", "running", "running")
        await it.post("/stop/all")
        await it.until("exit", "exit", "exit")
        assert await it.get("/allstopped") is True
        await it.post("/start/all")
        await it.until("running", "running", "running")
        assert await it.get("/pid/cid/0") != first


async def test_automatic_restart_gives_another_process(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        await it.until("running", "running", "running")
        before = await it.get("/pid/cid/1")
        await it.post("/enablerestart/all")
        await it.post("/disablerestart/cid/0")
        await it.post("/stop/all")
        await it.until("exit", "running", "running")
        assert await it.get("/pid/cid/1") != before
        await it.post("/disablerestart/all")
        await it.post("/enablerestart/cid/2")
        assert [each.auto_restart for each in it.fleet.members] == [False, False, True]


async def test_stop_rand_and_random_stops(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        await it.until("running", "running", "running")
        await it.post("/stop/rand")
        with trio.fail_after(30):
            await it.supervisor.until(lambda: [m.state for m in it.fleet.members].count(ProcessState.EXIT) == 1)
        await it.post("/randomstop/min/0")
        await it.post("/randomstop/max/1")
        await it.post("/randomstop/enable")
        with trio.fail_after(30):
            await it.supervisor.until(lambda: it.fleet.all_stopped)
        await it.post("/randomstop/disable")
        assert not it.fleet.random_stop.enabled


async def test_a_halted_process_is_there_and_goes_on(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        await it.until("running", "running", "running")
        pid = await it.get("/pid/cid/0")
        await it.post("/signal/cid/0/stop")
        with trio.fail_after(10):
            while process_state(pid) != "T":
                await trio.lowlevel.checkpoint()
        assert await it.get("/state/cid/0") == "running"
        await it.post("/signal/cid/0/cont")
        with trio.fail_after(10):
            while process_state(pid) == "T":
                await trio.lowlevel.checkpoint()
        await it.post("/signal/cid/1/term")
        await it.until("running", "exit", "running")
        await it.post("/signal/cid/2/kill")
        await it.until("running", "exit", "exit")


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def process_state(pid: int) -> str:
    """The letter of the kernel: T is stopped by a signal."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


async def test_requests_that_make_no_sense(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        for method, path, status, words in (
            ("GET", "/state/cid/3", 400, "there is no Downstairs 3"),
            ("GET", "/pid/cid/minus", 400, "is no number"),
            ("GET", "/pid/cid/-1", 400, "is no number"),
            ("POST", "/stop/cid/99", 400, "there is no Downstairs 99"),
            ("POST", "/randomstop/max/0", 400, "for random stops: take"),
            ("POST", "/signal/cid/0/hup", 400, "take one of stop, cont, kill, term"),
            ("GET", "/nothing", 404, "Not Found"),
            ("GET", "/shutdown", 405, "Method Not Allowed"),
        ):
            answer = await it.http.request(method, path)
            assert answer.status_code == status
            body = answer.json()
            assert words in body["message"]
            assert body["request_id"] == answer.headers["x-request-id"]


async def test_shutdown_ends_every_process_in_order(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        await it.until("running", "running", "running")
        pids = [each.pid for each in it.fleet.members]
        await it.post("/shutdown")
        await it.until("exit", "exit", "exit")
        assert [each.returncode for each in it.fleet.members] == [-signal.SIGTERM] * 3
    for pid in pids:
        assert pid is not None
        assert not alive(pid)


async def test_a_process_that_fails_is_not_started_again(tmp_path: Path) -> None:
    async with rig(tmp_path, "import sys; sys.exit('Error: the disk is on fire')", count=1) as it:
        await it.until("failed")
        assert it.fleet.members[0].returncode == 1
        assert (tmp_path / "downstairs-8810.txt").read_text() == "Error: the disk is on fire\n"


async def test_a_program_that_is_not_there_is_an_error(tmp_path: Path, expect_log: Any) -> None:
    expect_log("downstairs not started")
    place = Place(0, tmp_path / "8810", 8810)
    fleet = Fleet([Member(0, 8810, uuid_of(8810))], Random(0))
    launch = Launch((str(tmp_path / "no-such-program"),), "127.0.0.1", tmp_path)
    supervisor = Supervisor(fleet, [place], launch, lambda change: None)
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run)
        with trio.fail_after(30):
            await supervisor.until(lambda: fleet.members[0].state is ProcessState.ERROR)
        supervisor.shut_down()


async def test_a_process_that_does_not_hear_sigterm_is_killed_in_the_end(
    tmp_path: Path, expect_log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crucible_emu.supervisor.driver.GRACE_S", 0.2)
    expect_log("downstairs killed: it did not end in time")
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)" + STAND_IN
    async with rig(tmp_path, deaf, count=1) as it:
        await it.until("running")
        pid = it.fleet.members[0].pid
    assert not alive(pid)


async def test_an_address_that_is_taken_is_one_sentence(tmp_path: Path) -> None:
    async with rig(tmp_path, count=1) as it:
        taken = f"127.0.0.1:{it.http.base_url.port}"
        with pytest.raises(UsageError, match="the control API cannot listen on"):
            async with serving(Control(it.supervisor, RegionDefinition(512, 1, 1, UUID(int=1))), taken):
                pytest.fail("two listen there")


def test_the_api_has_every_path_of_the_real_one() -> None:
    ours = {f"{method} {path}" for method, path, _ in ROUTES}
    assert set(OPENAPI) <= ours
    assert ours - set(OPENAPI) == {"POST /signal/cid/{cid}/{name}", "GET /members", "GET /vcr"}
