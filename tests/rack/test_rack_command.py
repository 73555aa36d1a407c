"""Services of the rack file that are any other program."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from rack_rig import end_by_force, nothing_left, processes_of, rack, sentence, service, states, wait_until

from crucible_emu.errors import UsageError
from crucible_emu.rack import plan
from crucible_emu.rack.command import Command
from crucible_emu.rack.document import RackFile, parse, to_toml
from crucible_emu.rack.state import RackState

PROGRAM = str(Path(__file__).with_name("any_program.py"))
SLED = '[[sled]]\nname = "a"\ndisks = 0\n'


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "rack"
    yield path
    end_by_force(path)


def document(*words: str, nexus: str = "control.http") -> str:
    quoted = ", ".join(f'"{word}"' for word in words)
    return f'nexus = "{nexus}"\n{SLED}[[service]]\nname = "control"\ncommand = [{quoted}]\nports = ["http", "more"]\n'


def test_a_program_is_a_service_like_others(root: Path, tmp_path: Path) -> None:
    """Started with its ports, shown, started again when it is killed, ended with the rack; its ports stay."""
    file = tmp_path / "file.toml"
    file.write_text(document("{python}", PROGRAM, "{rack}", "{http}", "{more}"))
    up = rack("up", root, "--file", file)
    shown = service(up, "control")
    assert (shown["kind"], shown["sled"], shown["state"]) == ("command", None, "ready")
    assert shown["urls"].keys() == {"http", "more"} and shown["url"] == shown["urls"]["http"]
    command = Path("/proc", str(shown["pid"]), "cmdline").read_text().split("\0")[2:-1]
    assert command == [str(root), *(url.removeprefix("http://") for url in shown["urls"].values())]
    assert "control" not in [sled["name"] for sled in up["sleds"]]
    os.kill(shown["pid"], signal.SIGKILL)
    wait_until(lambda: service(rack("status", root), "control")["restarts"] == 1)
    wait_until(lambda: set(states(rack("status", root)).values()) == {"ready"})
    supervisor = rack("status", root)["pid"]
    os.kill(supervisor, signal.SIGKILL)
    wait_until(lambda: not processes_of(root))
    assert service(rack("up", root), "control")["urls"] == shown["urls"]
    rack("down", root)
    assert nothing_left(root)


def test_a_program_that_cannot_be_run_is_one_sentence(root: Path, tmp_path: Path) -> None:
    file = tmp_path / "file.toml"
    file.write_text(document("no-such-program-anywhere"))
    said = sentence("up", root, "--file", file)
    assert said == "control did not become ready: no-such-program-anywhere cannot be run: no such file or directory"
    assert nothing_left(root)


def test_it_is_written_and_read_again() -> None:
    found = parse(document("{python}", "-m", "thing", "{http}"))
    assert found.services == (Command("control", ("{python}", "-m", "thing", "{http}"), ("http", "more")),)
    assert parse(to_toml(found)) == found


def test_hosts_tell_the_service_that_is_named() -> None:
    found: RackFile = parse(document("thing"))
    state = RackState({"a-host": 4000, "control.http": 4001, "control.more": 4002})
    host = next(each for each in plan.services(found, Path("/r")) if each.kind == "host")
    line = plan.command_line(host, found, state, Path("/r"))
    assert line[line.index("--nexus") + 1] == "http://[::1]:4001"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("service = 1\n" + SLED, "service is no list of tables"),
        (SLED + "[[service]]\n", "service 0: name is None: take lower-case letters"),
        (SLED + '[[service]]\nname = "x"\n', "service 'x': its command is empty"),
        (SLED + '[[service]]\nname = "x"\ncommand = "y"\n', "command is 'y': write a list of texts"),
        (SLED + '[[service]]\nname = "x"\ncommand = ["y"]\nshell = true\n', "'shell' is no setting: there are name"),
        (SLED + '[[service]]\nname = "x"\ncommand = ["{z}"]\n', "{z} stands for nothing: there are rack, python"),
        (SLED + '[[service]]\nname = "x"\ncommand = ["y"]\nports = ["rack"]\n', "'rack' names no port"),
        (SLED + '[[service]]\nname = "x"\ncommand = ["y"]\nports = ["p", "p"]\n', "'p' names no port"),
        (SLED + '[[service]]\nname = "a-host"\ncommand = ["y"]\n', "'a-host' is named as what a sled has"),
        (SLED + '[[service]]\nname = "x"\ncommand = ["y"]\n' * 2, "two services are named 'x'"),
        (document("thing", nexus="control.none"), "nexus is 'control.none': write a URL"),
    ],
)
def test_refusals_name_the_service(text: str, said: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse(text)
    assert said in str(refused.value)
