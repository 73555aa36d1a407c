"""The command ``nexus`` where nothing has to run: help, refusals, and the files of a rack."""

from __future__ import annotations

import importlib
import json
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import typer

from crucible_emu import __version__
from crucible_emu.rack.document import parse
from nexus.cli import main as root
from nexus.cli import rack_files, rack_setup
from nexus.cli.access import DIRECTORY, FILE, Access, as_json, found_access
from nexus.cli.disk_data import disk_size
from nexus.cli.rack_files import Wanted
from nexus.client.asking import asked_for
from nexus.client.imports import padded

VARIABLES = ("NEXUS_RACK", "NEXUS_URL", "NEXUS_OPERATOR_URL", "NEXUS_TOKEN_FILE", "NEXUS_PROJECT", "CRUCIBLE_RACK")
NOBODY = "http://[::1]:9"
"""An address where nobody answers."""


@pytest.fixture(autouse=True)
def nothing_around(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def short() -> Iterator[Path]:
    """A directory whose name is short enough for a rack."""
    with TemporaryDirectory() as path:
        yield Path(path)


def run(capsys: Any, *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        root.main(list(map(str, arguments)))
    out, err = capsys.readouterr()
    return int(left.value.code or 0), out, err


def refusal(capsys: Any, *arguments: object, code: int = 2) -> str:
    found, out, err = run(capsys, *arguments)
    lines = [line for line in err.splitlines() if not line.startswith("Try '")]
    assert (found, out, len(lines)) == (code, "", 1), (found, out, err)
    assert lines[0].startswith("Error: ")
    return lines[0].removeprefix("Error: ")


def commands() -> list[tuple[str, ...]]:
    """Every command of the program."""
    found: list[tuple[str, ...]] = []
    for group in root.GROUPS:
        command = typer.main.get_command(importlib.import_module(f"nexus.cli.{group.replace('-', '_')}").app)
        found += [(group, name) for name in getattr(command, "commands", {})] or [(group,)]
    return found


def test_version(capsys: Any) -> None:
    assert run(capsys, "--version") == (0, f"nexus {__version__}\n", "")


def test_help_lists_the_groups(capsys: Any) -> None:
    code, out, _ = run(capsys, "--help")
    assert code == 0
    assert [name for name in root.GROUPS if name not in out] == []


def test_help_says_what_an_option_is_when_it_is_not_given(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    _, out, _ = run(capsys, "disk", "create", "--help")
    assert "[as what it is made from]" in out and "[the one around you, or NEXUS_RACK]" in out


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys; from nexus.cli import main\n"
        "try:\n    main.main(['--help'])\n"
        "except SystemExit:\n    pass\n"
        "print(sorted(set(sys.modules) & {'numpy', 'trio', 'sqlalchemy', 'pydantic'}))"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_every_command_has_help_and_prints_json(command: tuple[str, ...], capsys: Any) -> None:
    code, out, _ = run(capsys, *command, "--help")
    assert code == 0
    assert "--json" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("disc",), "No such command 'disc'"),
        (("disk", "create", "a"), "how large the disk shall be is not said: give --size"),
        (("disk", "create", "a", "--size", "much"), "'much' is not a size"),
        (("disk", "create", "a", "--size", "1GiB", "--block-size", "100"), "--block-size 100 is none that disks have"),
        (("disk", "create", "a", "--from-snapshot", "s", "--from-image", "i"), "a disk begins as one thing"),
        (("disk", "create", "a", "--from-image", "i", "--block-size", "512"), "leave --block-size out"),
        (("disk", "create", "a", "--size", "1GiB", "--read-only"), "a blank disk that nobody can write is of no use"),
        (("disk", "list"), "there is no Nexus here: go into its rack's directory, give --rack, or set NEXUS_RACK"),
        (("disk", "list", "--rack", "none"), "there is no rack with a Nexus in none: make one with nexus rack up none"),
        (("sled", "add", "s", "--host", "http://10.0.0.1:1"), "'http://10.0.0.1:1' is no address of a sled's service"),
        (("token", "create", "file"), "give --project or --operator"),
        (("token", "create", "file", "--project", "p", "--operator"), "give --project or --operator"),
        (("rack", "up"), "there is no Nexus here"),
        (("rack", "up", "--sleds", "3"), "a new rack needs a directory: nexus rack up DIR --sleds"),
        (("rack", "up", "new", "--sleds", "0"), "--sleds is 0: take 1 or more"),
        (("rack", "up", "new", "--sleds", "1", "--pantries", "2"), "2 pantries do not fit on 1 sleds"),
        (("rack", "up", "new", "--nexus", "2"), "several Nexus need one database that all of them reach"),
        (("rack", "up", "new", "--disk-size", "big"), "'big' is not a size"),
        (("rack", "down"), "there is no Nexus here"),
        (("run",), "where the database is, is to be said once"),
        (("run", "--database", "x", "--external", "0.0.0.0:1"), "0.0.0.0:1 can be reached from other machines"),
        (("run", "--database", "x", "--id", "me"), "--id me is no UUID"),
        (("run", "--database", "mysql://x", "--external", "[::1]:0"), "the database cannot be used: mysql"),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, tuple) else "",
)
def test_a_refusal_is_one_sentence(arguments: tuple[str, ...], words: str, capsys: Any) -> None:
    assert words in refusal(capsys, *arguments)
    assert not Path("new").exists()


def test_nobody_answers(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXUS_URL", NOBODY)
    assert refusal(capsys, "disk", "list", code=1).startswith(f"no answer from {NOBODY}: ")
    for arguments in (("sled", "list"), ("disk", "attach", "a"), ("disk", "export", "a", "b"), ("check",)):
        assert "set NEXUS_OPERATOR_URL" in refusal(capsys, *arguments)


def test_what_no_document_allows_is_not_sent(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXUS_URL", NOBODY)
    monkeypatch.setenv("NEXUS_OPERATOR_URL", NOBODY)
    assert refusal(capsys, "disk", "create", "Big", "--size", "1GiB").startswith("name: a name is up to 63 letters")
    assert refusal(capsys, "project", "create", "x" * 64).startswith("name: ")
    assert "write URL=SIZE" in refusal(capsys, "sled", "add", "s", "--host", "http://[::1]:1", "--agent", "x")


def test_a_token_that_others_may_read_is_refused(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    token = Path("token")
    token.write_text("a-token-of-some-length\n")
    token.chmod(0o644)
    monkeypatch.setenv("NEXUS_URL", NOBODY)
    monkeypatch.setenv("NEXUS_TOKEN_FILE", str(token))
    assert (
        refusal(capsys, "disk", "list")
        == "others may read the token in token: take that from them with chmod 600 token"
    )


def test_export_replaces_no_file(capsys: Any, tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.write_text("precious")
    assert "say --force to replace it" in refusal(capsys, "disk", "export", "a", there)
    assert there.read_text() == "precious"


# -- a rack's files ---------------------------------------------------------------------------------------------------


def test_a_place_too_deep_for_sockets(capsys: Any) -> None:
    said = refusal(capsys, "rack", "up", "x" * 100)
    assert said.endswith("is too long a path for the sockets of disks: take one of at most 53 bytes")
    assert not Path("x" * 100).exists()


def test_files_of_a_new_rack(short: Path) -> None:
    made = short / "rack"
    rack_files.write_files(made, Wanted(sleds=3, pantries=1, size_step="64KiB", extent_size="64KiB"))
    document = parse((made / "rack.toml").read_text())
    assert [sled.name for sled in document.here] == ["sled0", "sled1", "sled2"]
    assert [sled.pantry for sled in document.here] == [True, False, False]
    (service,) = document.services
    assert document.nexus in service.port_names
    secrets = {path.name for path in (made / DIRECTORY).iterdir()}
    assert secrets == {"operator.token", "database.url"}
    for name in secrets:
        path = made / DIRECTORY / name
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert path.read_text().strip() not in (made / "rack.toml").read_text()


def test_a_directory_with_something_else_is_left_alone(tmp_path: Path, capsys: Any) -> None:
    other, plain = tmp_path / "other", tmp_path / "plain"
    for path, name in ((other, "letter.txt"), (plain, "rack.toml")):
        path.mkdir()
        (path / name).write_text("[[sled]]\n")
    assert refusal(capsys, "rack", "up", other) == f"{other} is not empty: take another directory"
    assert "holds a rack without a Nexus" in refusal(capsys, "rack", "up", plain)
    assert [path.name for path in other.iterdir()] == ["letter.txt"]


def test_access_is_found_around_and_named(tmp_path: Path) -> None:
    rack, deep = tmp_path / "rack", tmp_path / "rack" / "sled0" / "disk0"
    deep.mkdir(parents=True)
    (rack / DIRECTORY).mkdir()
    wanted = Access(("http://[::1]:1",), ("http://[::1]:2",), "demo", size_step_bytes=65536)
    (rack / DIRECTORY / FILE).write_text(as_json(wanted))
    for found in (
        found_access(None, deep, {}),
        found_access(rack, tmp_path, {}),
        found_access(None, tmp_path, {"NEXUS_RACK": str(rack)}),
    ):
        assert (found.external, found.operator, found.project) == (wanted.external, wanted.operator, "demo")
        assert found.size_step_bytes == 65536
    named = found_access(None, deep, {"NEXUS_URL": "https://n", "NEXUS_PROJECT": "p", "NEXUS_TOKEN_FILE": "t"})
    assert (named.external, named.operator, named.project, named.token_file) == (("https://n",), (), "p", Path("t"))


def test_sleds_are_introduced_with_all_that_is_on_them() -> None:
    services = [
        {
            "name": "a-disk0",
            "kind": "agent",
            "sled": "a",
            "state": "ready",
            "url": "http://[::1]:1",
            "disk_size": "1MiB",
        },
        {"name": "a-host", "kind": "host", "sled": "a", "state": "ready", "url": "http://[::1]:2"},
        {"name": "a-pantry", "kind": "pantry", "sled": "a", "state": "ready", "url": "http://[::1]:3"},
        {"name": "nexus0", "kind": "command", "sled": None, "state": "ready", "url": "http://[::1]:4"},
        {"name": "far-host", "kind": "host", "sled": "far", "state": "elsewhere", "url": "http://[fd00::7]:5"},
    ]
    (sled,) = rack_setup.sleds_of(services)
    assert json.loads(sled.model_dump_json(exclude_defaults=True)) == {
        "serial": "a",
        "host": {"ip": "::1", "port": 2},
        "pantry": {"ip": "::1", "port": 3},
        "agents": [{"ip": "::1", "port": 1, "size_bytes": 1 << 20, "serial": "a-disk0"}],
    }


# -- small things -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("file", "step", "disk"), [(0, 10, 10), (1, 10, 10), (10, 10, 10), (11, 10, 20)])
def test_a_disk_is_as_large_as_its_file_needs(file: int, step: int, disk: int) -> None:
    assert disk_size(file, step) == disk


def test_queries_and_last_blocks() -> None:
    assert asked_for("/v1/disks", project="a&b", limit=None) == "/v1/disks?project=a%26b"
    assert asked_for("/v1/disks") == "/v1/disks"
    assert padded(b"x" * 513, 512) == b"x" * 513 + bytes(511)
    assert padded(b"x" * 512, 512) == b"x" * 512
