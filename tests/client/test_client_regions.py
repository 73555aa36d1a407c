"""The waits of a control plane: against a real agent, and against records in every state."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from agent_rig import A, B, Served, serving_agent, wish
from trio.testing import MockClock

from crucible_emu.agent import agent_api
from crucible_emu.agent.documents import CreateRegion, State
from crucible_emu.client import regions
from crucible_emu.client.agent import AgentClient
from crucible_emu.client.failures import ServiceError
from crucible_emu.client.persistence import Persistence
from crucible_emu.client.regions import DELETE, ENSURE, STOP, UnexpectedState, Verdict
from crucible_emu.client.retry import Backoff
from crucible_emu.service import application

SOON = Persistence(Backoff(0.005, longest_s=0.02))
WISH = CreateRegion(**wish(A))


@asynccontextmanager
async def agent_at(directory: Path) -> AsyncIterator[tuple[AgentClient, Served]]:
    async with serving_agent(directory) as served:
        transport = httpx2.ASGITransport(app=application(agent_api(served.agent)))
        async with AgentClient("http://agent", transport=transport) as agent:
            yield agent, served


async def test_a_regions_life(tmp_path: Path) -> None:
    async with agent_at(tmp_path) as (agent, served):
        region = await regions.ensure_region(agent, WISH, SOON)
        assert region.state is State.CREATED
        assert await regions.ensure_region(agent, WISH, SOON) == region
        assert await agent.region_list() == [region]
        await served.fill(A, 7, snapshot="snap")
        assert (await agent.region_get_snapshot(A, "snap")).name == "snap"
        running = await regions.run_snapshot(agent, A, "snap", SOON)
        assert (running.state, running.id, running.name) == (State.CREATED, A, "snap")
        digest = await SOON.wait_for(lambda: agent.snapshot_digest(A, "snap"), lambda found: found.state == "done")
        assert digest.digest is not None
        with pytest.raises(ServiceError):
            await regions.delete_region(agent, A, SOON)
        await regions.stop_snapshot(agent, A, "snap", SOON)
        await regions.delete_snapshot(agent, A, "snap", SOON)
        await regions.delete_snapshot(agent, A, "snap", SOON)
        assert (await agent.region_get_snapshots(A)).snapshots == []
        await regions.delete_region(agent, A, SOON)
        await regions.delete_region(agent, A, SOON)
        await regions.delete_region(agent, B, SOON)
        with pytest.raises(UnexpectedState, match=f"region {A} is destroyed"):
            await regions.ensure_region(agent, WISH, SOON)
        with pytest.raises(ServiceError, match="404"):
            await regions.run_snapshot(agent, B, "snap", SOON)


def record(state: State) -> dict[str, Any]:
    return wish(A) | {"state": state.value, "port_number": 19000, "read_only": False}


class Scripted:
    """An agent whose record is in these states, one after the other; ``asked`` are the requests."""

    def __init__(self, *states: State | int) -> None:
        self._states = list(states)
        self.asked: list[str] = []

    def client(self) -> AgentClient:
        return AgentClient("http://agent", transport=httpx2.MockTransport(self._answer))

    def _answer(self, request: httpx2.Request) -> httpx2.Response:
        self.asked.append(request.method)
        if request.method == "DELETE":
            return httpx2.Response(204)
        state = self._states.pop(0)
        if isinstance(state, int):
            return httpx2.Response(state, json={"message": "no", "request_id": "1"})
        if request.url.path.endswith("/run"):
            running = {"id": A, "name": "s", "port_number": 1, "state": state.value}
            return httpx2.Response(200, json=running)
        if request.url.path.endswith("/snapshots"):
            running = {"id": A, "name": "s", "port_number": 1, "state": state.value}
            return httpx2.Response(200, json={"snapshots": [], "running_snapshots": {"s": running}})
        return httpx2.Response(200, json=record(state))


@pytest.mark.parametrize("table", [ENSURE, DELETE, STOP])
def test_every_state_has_a_meaning(table: dict[State, Verdict]) -> None:
    assert set(table) == set(State)
    assert list(table.values()).count(Verdict.DONE) == 1


@pytest.mark.parametrize("state", [State.TOMBSTONED, State.DESTROYED, State.FAILED])
async def test_a_region_that_can_never_be_is_not_waited_for(state: State, autojump_clock: MockClock) -> None:
    script = Scripted(State.REQUESTED, 503, State.REQUESTED, state)
    async with script.client() as agent:
        with pytest.raises(UnexpectedState, match=state.value):
            await regions.ensure_region(agent, WISH)
    assert script.asked == ["POST"] * 4


async def test_a_region_whose_deletion_fails_is_deleted_again(autojump_clock: MockClock) -> None:
    script = Scripted(State.CREATED, State.TOMBSTONED, State.FAILED, State.TOMBSTONED, State.DESTROYED)
    async with script.client() as agent:
        await regions.delete_region(agent, A)
    assert script.asked == ["GET", "DELETE", "GET", "GET", "DELETE", "GET", "GET"]


@pytest.mark.parametrize(
    ("states", "sentence"),
    [
        ((State.CREATED, State.CREATED), "is created"),
        ((State.CREATED, State.REQUESTED), "is requested"),
        ((State.CREATED, State.TOMBSTONED, 404), "is gone"),
    ],
)
async def test_a_deleted_region_that_lives_is_a_contradiction(
    states: tuple[State | int, ...], sentence: str, autojump_clock: MockClock
) -> None:
    async with Scripted(*states).client() as agent:
        with pytest.raises(UnexpectedState, match=sentence):
            await regions.delete_region(agent, A)


async def test_a_silent_agent_is_waited_for_in_the_middle_of_a_deletion(autojump_clock: MockClock) -> None:
    script = Scripted(503, State.CREATED, 503, State.TOMBSTONED, 503, State.DESTROYED)
    async with script.client() as agent:
        await regions.delete_region(agent, A)
    assert script.asked == ["GET", "GET", "DELETE", "GET", "GET", "GET", "GET"]


@pytest.mark.parametrize("state", [State.REQUESTED, State.CREATED, State.FAILED])
async def test_a_stopped_snapshot_that_runs_is_a_contradiction(state: State, autojump_clock: MockClock) -> None:
    async with Scripted(State.TOMBSTONED, state).client() as agent:
        with pytest.raises(UnexpectedState, match=state.value):
            await regions.stop_snapshot(agent, A, "s")
