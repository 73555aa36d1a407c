"""The fork server as a process of its own: what it forks, what it says, and what it leaves."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rack_rig import WAIT_S, gone, parent, wait_until

from crucible_emu.rack import forkserver

PROGRAM = Path(__file__).with_name("forks_alone.py")


class Forks:
    """A fork server, and the supervisor's end of its socket."""

    def __init__(self, folder: Path, grace_s: float) -> None:
        self.folder = folder
        self.ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.ours.settimeout(WAIT_S)
        environment = {**os.environ, "PYTHONPATH": str(PROGRAM.parents[2])}
        with theirs:
            self.process = subprocess.Popen([sys.executable, str(PROGRAM), str(grace_s)], stdin=theirs, env=environment)

    def spawn(self, name: str, *arguments: str) -> tuple[int, int, int]:
        """Have a service forked: its number, and our ends of its standard input and output."""
        their_input, our_input = os.pipe()
        our_output, their_output = os.pipe()
        request = {"do": "spawn", "name": name, "arguments": arguments, "log": str(self.folder / f"{name}.log")}
        socket.send_fds(self.ours, [json.dumps(request).encode()], [their_input, their_output])
        os.close(their_input)
        os.close(their_output)
        event = self.hear()
        assert (event["event"], event["name"]) == ("spawned", name)
        return event["pid"], our_input, our_output

    def signal(self, name: str, number: int) -> None:
        self.ours.send(json.dumps({"do": "signal", "name": name, "number": number}).encode())

    def hear(self) -> dict[str, Any]:
        event: dict[str, Any] = json.loads(self.ours.recv(65536))
        return event


@pytest.fixture
def forks(tmp_path: Path) -> Iterator[Forks]:
    found = Forks(tmp_path, grace_s=0.3)
    with found.ours:
        yield found
    assert found.process.wait(WAIT_S) == 0


def close(*descriptors: int) -> None:
    for each in descriptors:
        os.close(each)


def test_a_service_has_its_own_streams_and_nothing_else(forks: Forks) -> None:
    _, our_input, our_output = forks.spawn("one", "say")
    os.write(our_input, b"words")
    os.close(our_input)
    with open(our_output) as output:
        assert output.read() == "words [0, 1, 2] ['crucible-emu', 'say']\n"
    assert forks.hear()["returncode"] == 0
    assert (forks.folder / "one.log").read_text() == "for the log\n"


def test_how_a_service_ended_is_told(forks: Forks) -> None:
    for arguments, returncode in ((("exit", "3"), 3), (("exit", "0"), 0), (("raise",), 1)):
        pid, *ends = forks.spawn("one", *arguments)
        assert forks.hear() == {"event": "ended", "name": "one", "pid": pid, "returncode": returncode}
        close(*ends)
    assert "LookupError: what nobody foresaw" in (forks.folder / "one.log").read_text()
    assert forkserver.last_words(forks.folder / "one.log", 0) == "LookupError: what nobody foresaw"


def test_a_signal_right_after_the_fork_is_not_lost(forks: Forks) -> None:
    """The race: the fork server ignores SIGTERM, and so does its child until it has its own handlers."""
    ends: list[int] = []
    for _ in range(50):
        their_input, our_input = os.pipe()
        request = {"do": "spawn", "name": "one", "arguments": ["sleep"], "log": str(forks.folder / "one.log")}
        socket.send_fds(forks.ours, [json.dumps(request).encode()], [their_input, their_input])
        forks.signal("one", signal.SIGTERM)
        os.close(their_input)
        ends.append(our_input)
        assert forks.hear()["event"] == "spawned"
        assert forks.hear()["returncode"] == -signal.SIGTERM
    close(*ends)


def test_a_signal_to_whom_has_ended_goes_to_nobody(forks: Forks) -> None:
    _, *ends = forks.spawn("one", "exit", "0")
    assert forks.hear()["event"] == "ended"
    forks.signal("one", signal.SIGKILL)
    _, *others = forks.spawn("two", "exit", "5")
    assert forks.hear()["returncode"] == 5
    close(*ends, *others)


def test_what_does_not_end_with_its_supervisor_is_killed(tmp_path: Path) -> None:
    found = Forks(tmp_path, grace_s=0.3)
    with found.ours:
        pid, our_input, our_output = found.spawn("one", "deaf")
        assert os.read(our_output, 5) == b"deaf\n"
    assert found.process.wait(WAIT_S) == 0
    assert gone(pid)
    close(our_input, our_output)


def test_services_die_with_the_fork_server(tmp_path: Path) -> None:
    found = Forks(tmp_path, grace_s=600)
    with found.ours:
        pid, our_input, our_output = found.spawn("one", "deaf")
        assert os.read(our_output, 5) == b"deaf\n"
        assert parent(pid) == found.process.pid
        found.process.kill()
        wait_until(lambda: gone(pid))
        found.process.wait(WAIT_S)
    close(our_input, our_output)


def test_a_log_that_is_long_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "one.log"
    assert forkserver.prepare_log(log) == 0
    log.write_text("Error: before\nError: the last\n")
    assert forkserver.prepare_log(log) == log.stat().st_size
    assert forkserver.last_words(log, 0) == "the last"
    assert forkserver.last_words(log, log.stat().st_size) == ""
    monkeypatch.setattr(forkserver, "LOG_BYTES_MAX", 10)
    assert forkserver.prepare_log(log) == 0
    assert not log.exists() and (tmp_path / "one.log.1").exists()
    assert forkserver.last_words(log, 0) == ""
