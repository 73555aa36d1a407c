"""The supervisor with a fork server that the test plays, on a clock of its own: what takes long takes no time."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from crucible_emu.rack import presence
from crucible_emu.rack.document import RackFile, Sled
from crucible_emu.rack.plan import services
from crucible_emu.rack.ports import Pool
from crucible_emu.rack.state import RackState
from crucible_emu.rack.supervisor import GRACE_S, READY_S_MAX, NotReady, Supervisor

RACK = RackFile((Sled("sled0"),))


class Forks:
    """The fork server's end of the socket."""

    def __init__(self, end: socket.socket) -> None:
        self.end = end
        self.end.setblocking(False)
        self.outputs: dict[str, int] = {}
        self.inputs: dict[str, int] = {}

    async def request(self) -> tuple[str, str, int]:
        """The next request: what to do, with which service, with which signal; a spawn is obeyed."""
        await trio.lowlevel.wait_readable(self.end)
        data, descriptors, _, _ = socket.recv_fds(self.end, 65536, 2)
        if not data:
            return "end", "", 0
        request = json.loads(data)
        if request["do"] == "spawn":
            self.inputs[request["name"]], self.outputs[request["name"]] = descriptors
            self.tell("spawned", request["name"], pid=1)
        return request["do"], request["name"], request.get("number", 0)

    def tell(self, event: str, name: str, **facts: Any) -> None:
        self.end.send(json.dumps({"event": event, "name": name, **facts}).encode())

    def ready(self, name: str) -> None:
        os.write(self.outputs[name], b'{"ready": true}\n')

    def ended(self, name: str, returncode: int) -> None:
        os.close(self.outputs.pop(name))
        os.close(self.inputs.pop(name))
        self.tell("ended", name, pid=1, returncode=returncode)

    def close(self) -> None:
        self.end.close()
        for ends in (self.outputs, self.inputs):
            while ends:
                os.close(ends.popitem()[1])


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[tuple[Supervisor, Forks]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    (tmp_path / "logs").mkdir()
    state = RackState({"sled0-disk0": 1, "sled0-host": 2}, {"sled0-disk0": Pool(1, 1)})
    forks = Forks(theirs)
    with ours:
        yield Supervisor(tmp_path, RACK, state, services(RACK, tmp_path), ours), forks
        forks.close()


async def test_who_does_not_end_is_killed(
    parts: tuple[Supervisor, Forks], autojump_clock: trio.testing.MockClock, expect_log: Any
) -> None:
    supervisor, forks = parts
    ready: list[dict[str, Any]] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(supervisor.run, ready.append)
        assert [await forks.request() for _ in range(2)] == [("spawn", "sled0-disk0", 0), ("spawn", "sled0-host", 0)]
        forks.ready("sled0-disk0")
        forks.ready("sled0-host")
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert [each["ready"] for each in ready] == [True]
        async with await trio.open_unix_socket(supervisor.root / presence.SOCKET) as caller:
            await caller.send_all(b'{"do": "down"}\n')
            assert json.loads(await caller.receive_some(65536))["rack"]["running"]
        began_s = trio.current_time()
        assert await forks.request() == ("signal", "sled0-host", signal.SIGTERM)
        with expect_log(r"services killed: they did not end in time"):
            killed = {await forks.request() for _ in range(2)}
        assert trio.current_time() - began_s == pytest.approx(GRACE_S)
        assert killed == {("signal", name, signal.SIGKILL) for name in ("sled0-disk0", "sled0-host")}
        forks.ended("sled0-host", -9)
        forks.ended("sled0-disk0", -9)
        assert await forks.request() == ("end", "", 0)
        forks.close()
    assert presence.connect(supervisor.root) is None


async def test_a_rack_that_is_never_ready_is_given_up(
    parts: tuple[Supervisor, Forks], autojump_clock: trio.testing.MockClock, expect_log: Any
) -> None:
    supervisor, forks = parts
    expect_log("rack not ready")
    began_s = trio.current_time()

    async def play() -> None:
        for _ in range(2):
            await forks.request()
        forks.ready("sled0-disk0")
        for name in ("sled0-host", "sled0-disk0"):
            assert await forks.request() == ("signal", name, signal.SIGTERM)
            forks.ended(name, 0)
        assert await forks.request() == ("end", "", 0)
        forks.close()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(play)
        with pytest.raises(NotReady, match="sled0-host did not become ready within 90 s"):
            await supervisor.run(lambda _: pytest.fail("it is not ready"))
    assert trio.current_time() - began_s == pytest.approx(READY_S_MAX)


async def test_a_crash_is_followed_by_a_start_after_a_while(
    parts: tuple[Supervisor, Forks], autojump_clock: trio.testing.MockClock, expect_log: Any
) -> None:
    supervisor, forks = parts
    ready: list[dict[str, Any]] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(supervisor.run, ready.append)
        for _ in range(2):
            await forks.request()
        forks.ready("sled0-host")
        waits_s = []
        for _ in range(3):
            began_s = trio.current_time()
            with expect_log(r"service ended .*returncode=1"):
                forks.ended("sled0-disk0", 1)
                assert await forks.request() == ("spawn", "sled0-disk0", 0)
            waits_s.append(trio.current_time() - began_s)
        assert waits_s == pytest.approx([0.25, 0.5, 1.0])
        forks.ready("sled0-disk0")
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert [service["restarts"] for service in ready[0]["services"]] == [3, 0]
        with expect_log("the fork server is gone"):
            forks.close()
            await trio.testing.wait_all_tasks_blocked(0.01)
    assert presence.connect(supervisor.root) is None
