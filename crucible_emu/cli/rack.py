"""``crucible-emu rack``: agents, pantries and hosts of a rack on one machine, from one command.

What it guarantees: ``rack up`` returns when every service can be reached, or with one sentence and nothing running. A
rack that runs is not started twice; a command that finds it stopped says so. ``rack down`` returns when no process of
the rack is left, and may be said any number of times.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from crucible_emu.cli.sizes import parse_size
from crucible_emu.errors import UsageError
from crucible_emu.rack import asking, presence, state_file
from crucible_emu.rack.description import ELSEWHERE, describe
from crucible_emu.rack.document import RackFile, differences, parse, simple, to_toml
from crucible_emu.rack.forkserver import GRACE_S
from crucible_emu.rack.ports import PORT_MAX

app = typer.Typer(no_args_is_help=True)

SERVICES = tuple(f"crucible_emu.cli.{name}" for name in ("agent", "pantry", "host"))
"""The modules of the services' commands."""
DOWN_S_MAX = GRACE_S + 45.0
JOIN_S = 0.25
LOW_PORT_VARIABLE = "CRUCIBLE_RACK_LOW_PORT"

Rack = Annotated[
    Path | None,
    typer.Option("--rack", metavar="DIR", help="The rack's directory. \\[the one around you, or CRUCIBLE_RACK]"),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the rack as one JSON object.")]
Directory = Annotated[Path | None, typer.Argument(metavar="[DIR]", help="The rack's directory.")]
SledOfRack = Annotated[
    list[str], typer.Argument(metavar="[DIR] SLED", help="The sled, by name or number; before it the rack's directory.")
]


@app.callback()
def group() -> None:
    """A rack on this machine: sleds with agents and hosts, and pantries."""


@app.command()
def up(
    directory: Directory = None,
    sleds: Annotated[int | None, typer.Option(help="How many sleds; for a new rack.")] = None,
    disks_per_sled: Annotated[int | None, typer.Option(help="Pretended physical disks of a sled. [1]")] = None,
    disk_size: Annotated[str | None, typer.Option(help="What a disk can hold. [4GiB]")] = None,
    pantries: Annotated[int | None, typer.Option(help="How many sleds have a pantry. [2]")] = None,
    isolate: Annotated[bool | None, typer.Option("--isolate", help="Every Downstairs is a process of its own.")] = None,
    file: Annotated[Path | None, typer.Option(metavar="TOML", help="Make the rack that this file describes.")] = None,
    new_ports: Annotated[
        bool, typer.Option("--new-ports", help="Give out new HTTP ports: somebody else has the old ones.")
    ] = False,
    foreground: Annotated[bool, typer.Option("--foreground", help="Stay, and end the rack with Ctrl-C.")] = False,
    rack: Rack = None,
    as_json: AsJson = False,
) -> None:
    """Start a rack, and return when it is ready. Whatever it needs lies in DIR, and survives.

    A new rack is made from the options, or from a rack file; one that is there comes back as it was: the same ports,
    the same regions, and killed sleds stay dead. The rack file, DIR/rack.toml, may be edited while the rack is down.

    [bold]Examples[/bold]

      crucible-emu rack up /tmp/rack --sleds 5 --disk-size 4GiB

      crucible-emu rack kill /tmp/rack sled2

      crucible-emu rack start /tmp/rack sled2

      crucible-emu rack down /tmp/rack
    """
    wanted = {
        "--sleds": sleds,
        "--disks-per-sled": disks_per_sled,
        "--disk-size": disk_size,
        "--pantries": pantries,
        "--isolate": isolate,
    }
    given: dict[str, object] = {name: value for name, value in wanted.items() if value is not None}
    root, document, new = _wanted_rack(_named(directory, rack), given, file)
    root.mkdir(parents=True, exist_ok=True)
    lock = _lock_or_join(root)
    if isinstance(lock, dict):
        _print(lock, as_json)
        return
    if new:
        state_file.write_whole(root / presence.RACK_FILE, to_toml(document))
    _start(root, document, lock, new_ports=new_ports, foreground=foreground, as_json=as_json)


def _start(root: Path, document: RackFile, lock: int, *, new_ports: bool, foreground: bool, as_json: bool) -> None:
    from crucible_emu.rack import launch

    programs = launch.Programs(run_service, SERVICES)
    if not foreground:
        _print(launch.in_background(root, document, programs, lock, new_ports=new_ports), as_json)
        return

    def ready(rack: dict[str, Any]) -> None:
        _print(rack, as_json)
        if not as_json:
            print("Ctrl-C ends the rack in order.", flush=True)

    launch.supervise(root, document, programs, lock, ready, new_ports=new_ports, log_level="warning")


def run_service(arguments: list[str]) -> None:
    """The command of a service, in a process of its own."""
    from crucible_emu.cli.main import main

    main(arguments)


@app.command()
def status(directory: Directory = None, rack: Rack = None, as_json: AsJson = False) -> None:
    """Show every service of the rack with its state and URL; services on other machines are asked."""
    root = _find(_named(directory, rack))
    document = _read(root / presence.RACK_FILE)
    try:
        found = asking.ask(root, {"do": "status"})
    except asking.NotRunning:
        found = describe(root, document, state_file.load(root))
    others = [each for each in found["services"] if each["state"] == ELSEWHERE]
    if others:
        import trio

        from crucible_emu.rack import reach

        trio.run(reach.look, document, root, others)
    _print(found, as_json)


@app.command()
def kill(sled: SledOfRack, rack: Rack = None, as_json: AsJson = False) -> None:
    """Let a sled die at once (SIGKILL), with all that runs on it. It stays dead until rack start."""
    target = _target(sled, rack)
    _print(asking.ask(target.root, {"do": "kill", "sled": target.sled}), as_json)


@app.command()
def start(sled: SledOfRack, rack: Rack = None, as_json: AsJson = False) -> None:
    """Start what does not run of a sled, and return when it is ready."""
    target = _target(sled, rack)
    _print(asking.ask(target.root, {"do": "start", "sled": target.sled}), as_json)


@app.command()
def down(directory: Directory = None, rack: Rack = None, as_json: AsJson = False) -> None:
    """End the rack in order, and return when nothing of it runs. What it holds stays for the next rack up."""
    root = _find(_named(directory, rack))
    try:
        asking.ask(root, {"do": "down"})
    except asking.NotRunning:
        pass  # perhaps its supervisor is dead and its services are still ending: the lock tells
    lock = presence.wait_for_lock(root, DOWN_S_MAX)
    if lock is None:
        raise UsageError(f"the rack in {root} did not end within {DOWN_S_MAX:.0f} s: look into its logs")
    presence.sweep(root)
    document = describe(root, _read(root / presence.RACK_FILE), state_file.load(root))
    os.close(lock)
    if as_json:
        _print(document, as_json)
    else:
        print(f"The rack in {root} is down.", flush=True)


# -- which rack -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Target:
    """A sled of a rack."""

    root: Path
    sled: str


def _named(directory: Path | None, rack: Path | None) -> Path | None:
    """The directory that was given, in one way or the other. Raises :class:`UsageError`."""
    if directory is not None and rack is not None and directory.absolute() != rack.absolute():
        raise UsageError(f"two racks are named, {directory} and {rack}: name one")
    return directory if directory is not None else rack


def _find(given: Path | None) -> Path:
    return presence.find(given, Path.cwd(), os.environ.get(presence.VARIABLE))


def _target(words: list[str], rack: Path | None) -> Target:
    if len(words) > 2:
        raise UsageError(f"{len(words)} words were given: give a sled, and before it the rack's directory if need be")
    directory = Path(words[0]) if len(words) == 2 else None
    return Target(_find(_named(directory, rack)), words[-1])


def _wanted_rack(named: Path | None, given: dict[str, object], file: Path | None) -> tuple[Path, RackFile, bool]:
    """Where the rack is, what it is, and whether it is new. Raises :class:`UsageError`."""
    if given and file is not None:
        raise UsageError(f"{file} says what the rack is: leave {', '.join(given)} out")
    environment = os.environ.get(presence.VARIABLE)
    if not given and file is None:
        root = presence.find(named, Path.cwd(), environment)
        return root, _read(root / presence.RACK_FILE), False
    if named is None and not environment:
        raise UsageError("a new rack needs a directory: crucible-emu rack up DIR --sleds 5")
    root = (named or Path(environment or "")).absolute()
    there = root / presence.RACK_FILE
    if file is not None:
        wanted = _read(file)
        if there.exists() and file.absolute() != there and _read(there) != wanted:
            raise UsageError(f"{there} describes another rack than {file}: edit the former, or take another directory")
        return root, wanted, not there.exists()
    if there.exists():
        found = _read(there)
        other = differences(given, found)
        if other:
            raise UsageError(f"{there} says otherwise about {', '.join(other)}: leave that out, or edit the file")
        return root, found, False
    return root, _new_rack(given), True


def _new_rack(given: dict[str, Any]) -> RackFile:
    if "--sleds" not in given:
        raise UsageError("how many sleds a new rack has is not said: give --sleds, or a --file that describes it")
    sleds: int = given["--sleds"]
    settings = {name.removeprefix("--").replace("-", "_"): value for name, value in given.items() if name != "--sleds"}
    settings.setdefault("pantries", max(0, min(2, sleds)))
    parse_size(settings.setdefault("disk_size", "4GiB"))
    low_port = low_port_of_new_racks()
    return simple(sleds, **settings | ({} if low_port is None else {"low_port": low_port}))


def low_port_of_new_racks() -> int | None:
    """What the environment says of the first Downstairs port: racks that come and go beside each other keep out of
    each other's way for good. Raises :class:`UsageError`."""
    text = os.environ.get(LOW_PORT_VARIABLE)
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= PORT_MAX:
        raise UsageError(f"{LOW_PORT_VARIABLE} is {text!r}: write a port, 1 to {PORT_MAX}")
    return int(text)


def _read(path: Path) -> RackFile:
    """The rack file at ``path``. Raises :class:`UsageError`, whose sentence names the file."""
    try:
        text = path.read_text()
    except UnicodeDecodeError:
        raise UsageError(f"{path} is no text: a rack file is TOML in UTF-8") from None
    try:
        return parse(text, parse_size)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def _lock_or_join(root: Path) -> int | dict[str, Any]:
    """The rack's lock; or where the rack runs, its description when it is ready. Raises :class:`UsageError`."""

    lock = presence.lock(root)
    # A supervisor that starts has the lock before it answers, and one that ended has it a little longer.
    for _ in range(int(DOWN_S_MAX / JOIN_S)):
        if lock is not None:
            return lock
        try:
            return asking.ask(root, {"do": "up"})
        except asking.NotRunning:
            lock = presence.wait_for_lock(root, JOIN_S)
    raise UsageError(f"somebody holds the lock of the rack in {root} and does not answer: look into its logs")


# -- what is said -----------------------------------------------------------------------------------------------------

COLUMNS = ("name", "kind", "sled", "state", "url")


def _print(rack: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(rack), flush=True)
        return
    rows = [tuple(str(each[column] or "-") for column in COLUMNS) for each in rack["services"]]
    widths = [max(len(row[index]) for row in [COLUMNS, *rows]) for index in range(len(COLUMNS))]
    what = "ready" if rack["ready"] else "running, and not all of it is ready" if rack["running"] else "not running"
    dead = [sled["name"] for sled in rack["sleds"] if sled["state"] == "killed"]
    but = f"; dead until somebody starts them: {', '.join(dead)}" if dead else ""
    print(f"The rack in {rack['directory']} is {what}{but}.")
    for row in (tuple(column.upper() for column in COLUMNS), *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    for each in rack["services"]:
        if each["said"] and each["state"] != "ready":
            print(f"{each['name']} ended: {each['said']}")
    sys.stdout.flush()
