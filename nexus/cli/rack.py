"""``nexus rack``: a rack with a Nexus on this machine, from one command.

What it guarantees: ``rack up`` returns when disks can be made, or with one sentence. It may be said any number of
times, and after the sudden death of anything: what is there is kept, what is missing is made. ``rack down`` returns
when no process of the rack is left.

How: the rack is one of ``crucible-emu rack``, whose supervisor looks after each Nexus as after everything else; this
command writes its rack file, has it started, and introduces it to Nexus.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any

import trio
import typer

from crucible_emu.cli.sizes import parse_size
from crucible_emu.errors import RemoteError, UsageError
from nexus.cli import rack_files, rack_setup
from nexus.cli.access import (
    DIRECTORY,
    FILE,
    RACK_VARIABLE,
    SIZE_STEP_BYTES,
    Access,
    find_rack,
    of_rack,
)
from nexus.cli.access import (
    as_json as access_as_json,
)
from nexus.cli.rack_files import RACK_FILE, Wanted
from nexus.cli.session import AsJson, session
from nexus.cli.showing import print_json, print_table

app = typer.Typer(no_args_is_help=True)

PROGRAM = (sys.executable, "-P", "-m", "crucible_emu", "rack")
USAGE_EXIT = 2
COLUMNS = ("name", "kind", "sled", "state", "url")

Directory = Annotated[Path | None, typer.Argument(metavar="[DIR]", help="The rack's directory.")]


@app.callback()
def group() -> None:
    """A rack with a Nexus on this machine."""


@app.command()
def up(
    directory: Directory = None,
    sleds: Annotated[int | None, typer.Option(help=f"How many sleds; for a new rack. [{rack_files.SLEDS}]")] = None,
    disks_per_sled: Annotated[int | None, typer.Option(help="Pretended physical disks of a sled. [1]")] = None,
    disk_size: Annotated[
        str | None, typer.Option(help=f"What a physical disk can hold. [{rack_files.DISK_SIZE}]")
    ] = None,
    pantries: Annotated[int | None, typer.Option(help=f"How many sleds have a pantry. [{rack_files.PANTRIES}]")] = None,
    nexus: Annotated[int | None, typer.Option("--nexus", help="How many Nexus. [1]")] = None,
    database: Annotated[
        str | None, typer.Option(metavar="URL", help="postgresql://..., for several Nexus. \\[a file of SQLite]")
    ] = None,
    extent_size: Annotated[str | None, typer.Option(help="Extents of disks, for small disks. [64MiB]")] = None,
    size_step: Annotated[str | None, typer.Option(help="Disks are multiples of this. [1GiB]")] = None,
    as_json: AsJson = False,
) -> None:
    """Start a rack with a Nexus, and return when disks can be made. Whatever it needs lies in DIR, and survives.

    [bold]Examples[/bold]

      nexus rack up /tmp/rack --sleds 5

      cd /tmp/rack && nexus disk create first --size 1GiB

      nexus rack down
    """
    given = {
        "sleds": sleds,
        "disks_per_sled": disks_per_sled,
        "disk_size": disk_size,
        "pantries": pantries,
        "nexus": nexus,
        "database": database,
        "extent_size": extent_size,
        "size_step": size_step,
    }
    root = _root(directory, {name: value for name, value in given.items() if value is not None})
    rack = crucible_rack("up", root)
    access = _access(rack, root)
    rack_files.write_whole(root / DIRECTORY / FILE, access_as_json(access))

    async def introduce() -> None:
        # As an operator: the user's token may be yet to come.
        async with session(replace(of_rack(root), token_file=None)) as found:
            await rack_setup.introduce(found, rack, root)

    trio.run(introduce)
    _print(rack, as_json)


def _root(directory: Path | None, given: dict[str, Any]) -> Path:
    """The rack's directory, with its files in it. Raises :class:`UsageError`."""
    named = directory or (Path(os.environ[RACK_VARIABLE]) if os.environ.get(RACK_VARIABLE) else None)
    if named is None:
        if given:
            raise UsageError(f"a new rack needs a directory: nexus rack up DIR --{next(iter(given)).replace('_', '-')}")
        return find_rack(None, Path.cwd(), None)
    root = named.absolute()
    ours = (root / DIRECTORY / rack_files.DATABASE_URL).exists()
    if (root / RACK_FILE).exists():
        if not ours:
            raise UsageError(f"{root} holds a rack without a Nexus: take another directory")
        if given:
            options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise UsageError(f"{root} holds a rack already: leave {options} out, or edit {root / RACK_FILE}")
        return root
    if root.exists() and not ours and any(root.iterdir()):
        raise UsageError(f"{root} is not empty: take another directory")
    wanted = Wanted(**given)
    if "pantries" not in given:
        small = {each.name: getattr(wanted, each.name) for each in fields(wanted)}
        wanted = Wanted(**small | {"pantries": max(1, min(wanted.pantries, wanted.sleds))})
    wanted.check()
    rack_files.write_files(root, wanted)
    return root


def _access(rack: dict[str, Any], root: Path) -> Access:
    """Where the Nexus of a running rack are."""
    found = [each["urls"] for each in rack["services"] if {"external", "lockstep"} <= each["urls"].keys()]
    if not found:
        raise UsageError(f"{root / RACK_FILE} names no Nexus any more: put its [[service]] back")
    return Access(
        tuple(urls["external"] for urls in found),
        tuple(urls["lockstep"] for urls in found),
        rack_setup.PROJECT,
        size_step_bytes=_size_step(root),
    )


def _size_step(root: Path) -> int:
    """As the rack file says it."""
    import tomllib

    services = tomllib.loads((root / RACK_FILE).read_text()).get("service", [])
    for words in (each["command"] for each in services):
        if "--size-step" in words[:-1]:
            return parse_size(words[words.index("--size-step") + 1])
    return SIZE_STEP_BYTES


@app.command()
def status(directory: Directory = None, as_json: AsJson = False) -> None:
    """Show every service of the rack with its state and URL."""
    _print(crucible_rack("status", _found(directory)), as_json)


@app.command()
def down(directory: Directory = None, as_json: AsJson = False) -> None:
    """End the rack in order, and return when nothing of it runs. What it holds stays for the next rack up."""
    root = _found(directory)
    rack = crucible_rack("down", root)
    if as_json:
        print_json(rack)
    else:
        print(f"The rack in {root} is down.", flush=True)


def _found(directory: Path | None) -> Path:
    """The directory of a rack that ``rack up`` has at least begun."""
    if directory is not None and (directory / DIRECTORY).is_dir() and (directory / RACK_FILE).is_file():
        return directory.absolute()
    return find_rack(directory, Path.cwd(), os.environ.get(RACK_VARIABLE))


def crucible_rack(what: str, root: Path) -> dict[str, Any]:
    """What ``crucible-emu rack`` says of the rack when it has done ``what``.

    A program of its own, for it forks, which only a process with one thread may do. Raises :class:`UsageError` with its
    sentence.
    """
    done = subprocess.run(
        [*PROGRAM, what, str(root), "--json"], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode == 0:
        found: dict[str, Any] = json.loads(done.stdout)
        return found
    said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1].removeprefix("Error: ")
    sentence = said.replace("crucible-emu rack", "nexus rack")
    if done.returncode == USAGE_EXIT:
        raise UsageError(sentence)
    raise RemoteError(sentence)


def _print(rack: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(rack)
        return
    what = "ready" if rack["ready"] else "running, and not all of it is ready" if rack["running"] else "not running"
    print(f"The rack in {rack['directory']} is {what}.")
    rows: list[tuple[str, ...]] = [tuple(str(each[name] or "-") for name in COLUMNS) for each in rack["services"]]
    print_table(COLUMNS, rows)
