"""A rack of real processes with stand-in services: started, looked at, killed, started again, ended; and what is left
when the processes that look after the others die."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlsplit

import pytest
from rack_rig import (
    command,
    end_by_force,
    gone,
    hello,
    nothing_left,
    outcome,
    parent,
    processes_of,
    rack,
    sentence,
    service,
    sockets_under,
    states,
    urls,
    wait_until,
)

ONE = ("--sleds", 1, "--pantries", 0)
"""An agent and a host: the least that is a rack."""


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "rack"
    yield path
    end_by_force(path)


def supervisor(root: Path) -> int:
    pid: int = rack("status", root)["pid"]
    return pid


def test_a_life_of_a_rack(root: Path) -> None:
    up = rack("up", root, "--sleds", 2, "--pantries", 1, "--disk-size", "1GiB")
    assert up["ready"] and up["running"]
    assert states(up) == dict.fromkeys(
        ("sled0-disk0", "sled1-disk0", "sled0-pantry", "sled0-host", "sled1-host"), "ready"
    )
    at = urls(up)
    assert hello(at["sled1-disk0"])[:3] == ["agent", "run", str(root / "sled1" / "disk0")]
    assert hello(at["sled1-disk0"])[-2:] == ["--capacity", "1GiB"]
    assert hello(at["sled0-pantry"])[:2] == ["pantry", "run"]
    assert rack("status", root) == up

    # A second start finds the one that runs, whether it is asked in the same words or in none.
    assert rack("up", root, "--sleds", 2) == up
    assert rack("up", cwd=root / "sled1") == up
    assert "rack.toml says otherwise about --sleds, --isolate" in sentence("up", root, "--sleds", 3, "--isolate")

    killed = rack("kill", root, 1)
    assert states(killed)["sled1-disk0"] == states(killed)["sled1-host"] == "killed"
    assert killed["sleds"] == [{"name": "sled0", "state": "ready"}, {"name": "sled1", "state": "killed"}]
    assert urls(killed) == at
    assert len(processes_of(root)) == 2 + 3
    with pytest.raises(URLError):
        hello(at["sled1-disk0"])
    assert rack("up", root)["ready"]  # what is dead on purpose is not what a rack waits for
    started = rack("start", "sled1", env={"CRUCIBLE_RACK": str(root)})
    assert states(started) == states(up) and urls(started) == at
    assert hello(at["sled1-host"])[0] == "host"

    code, out, err = outcome("down", "--rack", root)
    assert (code, out, err) == (0, f"The rack in {root} is down.\n", "")
    assert nothing_left(root)
    assert outcome("down", root) == (code, out, err)
    down = rack("status", root)
    assert not down["running"] and set(states(down).values()) == {"stopped"} and urls(down) == at
    assert "is not running: start it with crucible-emu rack up" in sentence("kill", root, 0)


def test_a_service_that_dies_comes_back_by_itself_at_its_own_address(root: Path) -> None:
    up = rack("up", root, *ONE)
    os.kill(service(up, "sled0-disk0")["pid"], signal.SIGKILL)
    wait_until(lambda: service(rack("status", root), "sled0-disk0")["restarts"] == 1)
    again = rack("up", root)
    assert again["ready"] and urls(again) == urls(up)
    assert service(again, "sled0-disk0")["pid"] != service(up, "sled0-disk0")["pid"]
    assert hello(urls(up)["sled0-disk0"])[0] == "agent"
    rack("down", root)


def test_sigkill_of_the_supervisor_leaves_nothing_and_the_next_start_finds_all(root: Path) -> None:
    up = rack("up", root, "--sleds", 2, "--pantries", 0)
    rack("kill", root, "sled1")
    os.kill(up["pid"], signal.SIGKILL)
    wait_until(lambda: not processes_of(root))
    assert sockets_under(root) == [root / "control.sock"]  # nobody was left who could have removed it
    assert not rack("status", root)["running"]
    again = rack("up", root)
    assert again["pid"] != up["pid"] and urls(again) == urls(up)
    assert [sled["state"] for sled in again["sleds"]] == ["ready", "killed"]
    rack("down", root)
    assert nothing_left(root)


def test_up_right_after_sigkill_waits_for_what_is_still_ending(root: Path) -> None:
    """The race: old services still have their ports and directories when the new supervisor wants them."""
    up = rack("up", root, *ONE)
    old = processes_of(root) - {up["pid"]}
    os.kill(up["pid"], signal.SIGKILL)
    again = rack("up", root)
    assert all(gone(pid) for pid in old)
    assert again["ready"] and urls(again) == urls(up)
    os.kill(again["pid"], signal.SIGKILL)
    rack("down", root)
    assert nothing_left(root)


def test_death_of_the_fork_server_ends_the_rack(root: Path) -> None:
    up = rack("up", root, *ONE)
    os.kill(parent(service(up, "sled0-disk0")["pid"]), signal.SIGKILL)
    wait_until(lambda: not processes_of(root))
    assert "the fork server is gone" in (root / "logs" / "supervisor.log").read_text()
    assert not rack("status", root)["running"]
    assert rack("up", root)["ready"]
    rack("down", root)
    assert nothing_left(root)


def test_down_twice_at_once_is_down_once(root: Path) -> None:
    """The race: the second comes while the first is being obeyed; it must not turn an orderly end into a sudden one."""
    rack("up", root, *ONE)
    both = [command("down", root) for _ in range(2)]
    assert [process.communicate(timeout=60) for process in both] == [(f"The rack in {root} is down.\n", "")] * 2
    assert nothing_left(root)
    said = (root / "logs" / "supervisor.log").read_text()
    assert '"state": "killing"' not in said and said.count('"state": "stopped"') == 2


def test_two_that_start_at_once_start_one_rack(root: Path) -> None:
    """The race: both find no rack, and both make one."""
    both = [command("up", root, *ONE, "--json") for _ in range(2)]
    said = [process.communicate(timeout=60) for process in both]
    assert [err for _, err in said] == ["", ""]
    assert [process.returncode for process in both] == [0, 0]
    assert json.loads(said[0][0])["pid"] == json.loads(said[1][0])["pid"]
    rack("down", root)
    assert nothing_left(root)


def test_what_a_service_has_started_dies_with_its_sled(root: Path) -> None:
    (root / "sled0" / "disk0").mkdir(parents=True)
    (root / "sled0" / "disk0" / "behaviour").write_text("parent")
    child = root / "sled0" / "disk0" / "child"
    rack("up", root, *ONE)
    first = int(child.read_text())
    assert not gone(first)
    rack("kill", root, 0)
    assert gone(first)
    rack("start", root, 0)
    second = int(child.read_text())
    os.kill(supervisor(root), signal.SIGKILL)
    rack("down", root)
    assert gone(second) and nothing_left(root)


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [("wrong", "the stand-in was told to find its input wrong"), ("crash", "it ended with 1; its log is ")],
)
def test_a_service_that_cannot_start_is_one_sentence(root: Path, behaviour: str, words: str) -> None:
    (root / "sled0" / "disk0").mkdir(parents=True)
    (root / "sled0" / "disk0" / "behaviour").write_text(behaviour)
    assert sentence("up", root, *ONE).startswith(f"sled0-disk0 did not become ready: {words}")
    assert nothing_left(root)
    (root / "sled0" / "disk0" / "behaviour").unlink()
    assert rack("up", root)["ready"]
    rack("down", root)


def test_a_port_that_somebody_else_has_is_one_sentence(root: Path) -> None:
    url = urls(rack("up", root, *ONE))["sled0-disk0"]
    rack("down", root)
    port = urlsplit(url).port
    with socket.socket(socket.AF_INET6) as somebody:
        somebody.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        somebody.bind(("::1", port))
        somebody.listen()
        assert sentence("up", root) == (
            f"sled0-disk0 cannot have its port {port} of ::1: address already in use; "
            "end the program that has it, or say --new-ports to give out others"
        )
        assert nothing_left(root)
        assert urls(rack("up", root, "--new-ports"))["sled0-disk0"] != url
    rack("down", root)


def test_a_directory_that_cannot_be_used_is_one_sentence(root: Path) -> None:
    root.mkdir()
    (root / "sled0").write_text("in the way")
    words = sentence("up", root, *ONE)
    assert words.startswith("the rack cannot be started: ") and "sled0" in words
    assert nothing_left(root)


def test_two_racks_do_not_share_ports_and_a_copy_is_refused(root: Path) -> None:
    other = root.with_name("other")
    first = service(rack("up", root, *ONE), "sled0-disk0")
    try:
        second = service(rack("up", other, *ONE), "sled0-disk0")
        assert abs(first["low_port"] - second["low_port"]) >= 1000
        rack("down", other)
        shutil.copy(root / "state.json", other)
        assert "sled0-disk0 belong to another rack that is running" in sentence("up", other)
    finally:
        end_by_force(other)
    rack("down", root)


def test_the_environment_says_where_the_ports_of_new_racks_begin(root: Path) -> None:
    wrong = {"CRUCIBLE_RACK_LOW_PORT": "low"}
    assert sentence("up", root, *ONE, env=wrong) == "CRUCIBLE_RACK_LOW_PORT is 'low': write a port, 1 to 65535"
    up = rack("up", root, *ONE, env={"CRUCIBLE_RACK_LOW_PORT": "15000"})
    assert 15000 <= service(up, "sled0-disk0")["low_port"] < 19000
    assert "low_port = 15000\n" in (root / "rack.toml").read_text()
    rack("down", root)


def test_foreground_ends_with_a_signal(root: Path) -> None:
    with command("up", root, *ONE, "--foreground") as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == f"The rack in {root} is ready.\n"
        assert rack("status", root)["pid"] == process.pid
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert process.stderr.read() == ""
    assert nothing_left(root)


def test_a_rack_file_with_a_sled_elsewhere(root: Path) -> None:
    file = root.with_name("given.toml")
    file.write_text(
        '[[sled]]\nname = "near"\ndisks = 0\n[[sled]]\nname = "far"\nagents = ["http://[::1]:1"]\n', encoding="utf-8"
    )
    up = rack("up", root, "--file", file)
    assert states(up) == {"near-host": "ready", "far-disk0": "elsewhere"} and up["ready"]
    assert states(rack("status", root)) == {"near-host": "ready", "far-disk0": "unreachable"}
    assert sentence("kill", root, "far") == "far is on another machine: kill or start it there"
    assert "there is no sled '7' on this machine: there is near" in sentence("kill", root, 7)
    rack("down", root)
    assert urls(rack("up", root, "--file", file)) == urls(up)
    rack("down", root)
    file.write_text('[[sled]]\nname = "new"\n')
    assert "describes another rack than" in sentence("up", root, "--file", file)


def test_a_long_path_holds_a_rack(root: Path) -> None:
    deep = root / ("d" * 60) / ("e" * 60)
    assert rack("up", deep, *ONE)["ready"]
    end = rack("down", deep)
    assert end["directory"] == str(deep) and nothing_left(deep)
