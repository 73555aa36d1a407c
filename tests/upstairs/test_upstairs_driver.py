"""The shell around the Upstairs core: connections that come and go, timers on a mock clock, no socket."""

from __future__ import annotations

from itertools import pairwise
from typing import Any
from uuid import UUID

import pytest
import trio
from trio.testing import MockClock, memory_stream_pair, wait_all_tasks_blocked
from upstairs_rig import SESSION, UPSTAIRS, Replica

from crucible_emu import errors, wire
from crucible_emu.geometry import RegionDefinition
from crucible_emu.integrity import BlockContexts
from crucible_emu.upstairs.core import UpstairsCore
from crucible_emu.upstairs.driver import MEMORY_KEPT_S, RECONNECT_DELAY_S, Upstairs
from crucible_emu.upstairs.jobs import Job
from crucible_emu.upstairs.links import Port
from crucible_emu.upstairs.members import Identity
from crucible_emu.upstairs.rules import CLIENTS, JobKind
from crucible_emu.upstairs.states import Phase, UpstairsState
from crucible_emu.upstairs.tcp_link import (
    CONNECT_TIMEOUT_S,
    TcpAddress,
    TcpConnector,
    TcpLink,
)
from crucible_emu.wire import messages as m
from crucible_emu.wire.constants import PING_INTERVAL_S, RECEIVE_SILENCE_S_MAX

DEFINITION = RegionDefinition(512, 10, 4, UUID(int=9))


class FakeLink:
    """A link whose far end negotiates at once and does every job when it is told to."""

    def __init__(self, replica: Replica, port: Port) -> None:
        self.replica = replica
        self.port = port
        self.jobs: list[Job] = []
        self.replies: list[m.Message] = []

    def send(self, message: m.Message) -> None:
        self.replies += self.replica.negotiate(message)

    def send_job(self, job: Job, dependencies: list[list[int]]) -> bool:
        self.jobs.append(job)
        return self.replica.reachable

    def read_cached(self, start: int, count: int, out: memoryview) -> BlockContexts | None:
        return None

    def read_blocks_cached(self, blocks: list[int], outs: list[memoryview]) -> None:
        return None

    def written(self, start: int, count: int) -> None:
        return None


class FakeConnector:
    """Connects to a replica made of plain Python, or refuses so many times; remembers when it was asked to."""

    in_process = False

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self.target = f"replica {id(replica)}"
        self.times: list[float] = []
        self.refuses = 0
        self.link: FakeLink | None = None

    async def run(self, port: Port) -> str:
        self.times.append(trio.current_time())
        if self.refuses:
            self.refuses -= 1
            await trio.lowlevel.checkpoint()
            return "nobody there"
        self.link = FakeLink(self.replica, port)
        port.opened(self.link)
        while self.link.replies:
            replies, self.link.replies = self.link.replies, []
            port.received(replies)
            await trio.lowlevel.checkpoint()
        await trio.sleep_forever()
        return "cut off"


class Set:
    """An Upstairs over three fake connectors."""

    def __init__(self, **settings: Any) -> None:
        self.connectors = [FakeConnector(Replica(client, DEFINITION)) for client in CLIENTS]
        core = UpstairsCore(Identity(UPSTAIRS, SESSION), 1, DEFINITION)
        self.upstairs = Upstairs(core, list(self.connectors), **settings)

    def phases(self) -> list[Phase]:
        return [client.state.phase for client in self.upstairs.core.clients]


async def test_an_activation_given_up_before_a_connection_began_parks_every_client(
    nursery: trio.Nursery, expect_log: Any
) -> None:
    rig = Set()
    await nursery.start(rig.upstairs.run)
    core = rig.upstairs.core
    core.activate("somebody")
    rig.upstairs.perform()
    with expect_log("disk disabled"):
        core.abandon(errors.IoError("changed my mind"))
        rig.upstairs.perform()
    await wait_all_tasks_blocked()
    assert all(client.state.parked for client in core.clients)
    await rig.upstairs.activate()
    assert rig.phases() == [Phase.ACTIVE] * 3


async def test_a_connection_that_waits_to_reconnect_is_closed_with_the_others(
    nursery: trio.Nursery, expect_log: Any, autojump_clock: MockClock
) -> None:
    """The takeover comes after one connection was lost and before its next one has begun."""
    rig = Set()
    await nursery.start(rig.upstairs.run)
    await rig.upstairs.activate()
    core = rig.upstairs.core
    expect_log("connection ended")
    expect_log("another Upstairs took over")
    expect_log("disk disabled")
    core.stopped(1, core.clients[1].connection_id, "cut off")
    rig.upstairs.perform()
    core.message(0, core.clients[0].connection_id, m.YouAreNoLongerActive(UPSTAIRS, SESSION, 9))
    rig.upstairs.perform()
    await wait_all_tasks_blocked()
    assert core.state is UpstairsState.DISABLED
    assert all(client.state.parked for client in core.clients)
    await rig.upstairs.activate(generation=10)
    assert rig.phases() == [Phase.ACTIVE] * 3


async def test_reconnecting_waits_its_delay_each_time(
    nursery: trio.Nursery, expect_log: Any, autojump_clock: MockClock
) -> None:
    rig = Set()
    rig.connectors[2].refuses = 3
    await nursery.start(rig.upstairs.run)
    expect_log("nobody there", at_least=3)
    await rig.upstairs.activate()
    times = rig.connectors[2].times
    assert [later - sooner for sooner, later in pairwise(times)] == [RECONNECT_DELAY_S] * 3


async def test_an_activation_that_takes_too_long_names_who_is_missing(
    nursery: trio.Nursery, expect_log: Any, autojump_clock: MockClock
) -> None:
    rig = Set()
    for client in (0, 2):
        rig.connectors[client].refuses = 100
    await nursery.start(rig.upstairs.run)
    expect_log("nobody there", at_least=2)
    expect_log("disk disabled")
    with pytest.raises(errors.IoError, match=r"within 25 s; waiting for replicas 0, 2$"):
        await rig.upstairs.activate(timeout_s=25)
    await wait_all_tasks_blocked()
    assert all(client.state.parked for client in rig.upstairs.core.clients)


async def test_the_automatic_flush_comes_one_interval_after_the_last_job(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    rig = Set(flush_interval_s=0.5)
    await nursery.start(rig.upstairs.run)
    await rig.upstairs.activate()
    core, links = rig.upstairs.core, [connector.link for connector in rig.connectors]
    core.write(core.new_job(JobKind.WRITE, [0], [1], 512, None))
    rig.upstairs.perform()
    await trio.sleep(2)
    for link in links:
        assert link is not None
        assert [job.kind for job in link.jobs] == [JobKind.WRITE, JobKind.FLUSH]
    assert not core.need_flush


async def test_memory_of_writes_is_kept_for_half_a_minute(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    rig = Set(flush_interval_s=0.5)
    await nursery.start(rig.upstairs.run)
    await rig.upstairs.activate()
    core, memory = rig.upstairs.core, rig.upstairs.row_memory
    memory.take(1 << 20)
    for _ in range(2):
        core.write(core.new_job(JobKind.WRITE, [0], [1], 512, None))
        rig.upstairs.perform()
        await trio.sleep(MEMORY_KEPT_S - 1)
        assert memory.idle_bytes == 1 << 20
    await trio.sleep(3)
    assert memory.idle_bytes == 0


# -- timers of a connection -------------------------------------------------------------------------------------------


class RecordingPort:
    def __init__(self) -> None:
        self.messages: list[m.Message] = []

    def opened(self, link: Any) -> None:
        self.link = link

    def received(self, messages: list[m.Message]) -> None:
        self.messages += messages


async def hear(stream: trio.abc.ReceiveStream, heard: list[tuple[float, m.Message]]) -> None:
    decoder = wire.Decoder()
    async for data in stream:
        heard += [(trio.current_time(), message) for message in decoder.receive(data)]


async def test_a_silent_downstairs_is_pinged_and_given_up(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    ours, theirs = memory_stream_pair()
    heard: list[tuple[float, m.Message]] = []
    nursery.start_soon(hear, theirs, heard)
    begun = trio.current_time()
    why = await TcpLink(ours, UPSTAIRS, SESSION).run(RecordingPort())  # type: ignore[arg-type]
    assert why == f"silent for {RECEIVE_SILENCE_S_MAX:.0f} s"
    assert trio.current_time() - begun == RECEIVE_SILENCE_S_MAX
    pings = [when - begun for when, message in heard if message == m.Ruok()]
    assert pings[:8] == [PING_INTERVAL_S * n for n in range(1, 9)]


async def test_any_message_is_a_sign_of_life(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    ours, theirs = memory_stream_pair()
    nursery.start_soon(hear, theirs, [])
    begun, port = trio.current_time(), RecordingPort()

    async def speak() -> None:
        for _ in range(5):
            await trio.sleep(RECEIVE_SILENCE_S_MAX - 1)
            await theirs.send_all(b"".join(wire.encode(m.Imok())))

    nursery.start_soon(speak)
    await TcpLink(ours, UPSTAIRS, SESSION).run(port)  # type: ignore[arg-type]
    assert port.messages == [m.Imok()] * 5
    assert trio.current_time() - begun == 5 * (RECEIVE_SILENCE_S_MAX - 1) + RECEIVE_SILENCE_S_MAX


async def test_half_a_message_is_no_sign_of_life(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    ours, theirs = memory_stream_pair()
    nursery.start_soon(hear, theirs, [])
    begun = trio.current_time()
    frame = b"".join(wire.encode(m.Imok()))

    async def dawdle() -> None:
        for index in range(len(frame) - 1):
            await trio.sleep(10)
            await theirs.send_all(frame[index : index + 1])

    nursery.start_soon(dawdle)
    assert "silent" in await TcpLink(ours, UPSTAIRS, SESSION).run(RecordingPort())  # type: ignore[arg-type]
    assert trio.current_time() - begun == RECEIVE_SILENCE_S_MAX
    nursery.cancel_scope.cancel()


async def test_connecting_takes_so_long_and_no_longer(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    async def never(*_: Any) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(trio, "open_tcp_stream", never)
    begun = trio.current_time()
    why = await TcpConnector(TcpAddress("192.0.2.1", 1), UPSTAIRS, SESSION).run(RecordingPort())
    assert why == "no answer from 192.0.2.1:1 within 10 s"
    assert trio.current_time() - begun == CONNECT_TIMEOUT_S


@pytest.mark.parametrize("address", [TcpAddress("127.0.0.1", 1), TcpAddress(path="/nowhere/socket")])
async def test_a_connection_that_cannot_be_made_says_why(address: TcpAddress) -> None:
    why = await TcpConnector(address, UPSTAIRS, SESSION).run(RecordingPort())
    assert why.startswith(f"cannot connect to {address}: ")


async def test_rubbish_costs_the_connection(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    ours, theirs = memory_stream_pair()
    nursery.start_soon(hear, theirs, [])
    await theirs.send_all(b"\xff" * 64)
    why = await TcpLink(ours, UPSTAIRS, SESSION).run(RecordingPort())  # type: ignore[arg-type]
    assert why.startswith("broke the protocol: ")


async def test_a_connection_closed_in_the_middle_of_a_message(nursery: trio.Nursery) -> None:
    ours, theirs = memory_stream_pair()
    await theirs.send_all(b"".join(wire.encode(m.Imok()))[:-1])
    await theirs.aclose()
    why = await TcpLink(ours, UPSTAIRS, SESSION).run(RecordingPort())  # type: ignore[arg-type]
    assert why.startswith("broke the protocol: ")
