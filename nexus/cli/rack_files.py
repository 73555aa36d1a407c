"""What ``nexus rack up`` writes into a rack's directory before anything runs.

``rack.toml`` is a rack file of ``crucible-emu`` with a service for each Nexus in it; below ``nexus/`` are the
operator's token, the address of the database, and where commands find all of it.

What it guarantees (*safety*): what is secret, tokens, a database's address and the keys in it, is where only its owner
can read, and in no command line and no rack file. A directory that was begun and not finished is finished by the next
``rack up``, because the rack file is written last.
"""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from crucible_emu.cli.rack import low_port_of_new_racks
from crucible_emu.cli.sizes import parse_size
from crucible_emu.errors import UsageError
from nexus.cli.access import DIRECTORY, OPERATOR_TOKEN
from nexus.cli.token import write_private

RACK_FILE = "rack.toml"
DATABASE_URL, DATABASE = "database.url", "nexus.db"
TOKEN_BYTES = 32
SLEDS, DISK_SIZE, PANTRIES = 4, "4GiB", 2
SLEDS_MAX, NEXUS_MAX = 64, 8
PORTS = ("external", "internal", "lockstep")
SOCKET_PATH_MAX = 107
"""What the kernel takes for the address of a unix socket. A host opens a disk at ``DIR/SLED/host/ID.sock``."""
LONGEST_SOCKET = len(f"/sled{SLEDS_MAX}/host/{uuid4()}.sock")


@dataclass(frozen=True, slots=True)
class Wanted:
    """A new rack. ``database``: the address of one that several Nexus can share, ``None`` for a file in the rack."""

    sleds: int = SLEDS
    disks_per_sled: int = 1
    disk_size: str = DISK_SIZE
    pantries: int = PANTRIES
    nexus: int = 1
    database: str | None = None
    extent_size: str | None = None
    size_step: str | None = None

    def check(self) -> None:
        """Raises :class:`UsageError`."""
        for name, least in (("sleds", 1), ("disks_per_sled", 1), ("pantries", 1), ("nexus", 1)):
            if getattr(self, name) < least:
                raise UsageError(f"--{name.replace('_', '-')} is {getattr(self, name)}: take {least} or more")
        if self.pantries > self.sleds:
            raise UsageError(f"{self.pantries} pantries do not fit on {self.sleds} sleds: take one for each at most")
        if self.sleds > SLEDS_MAX:
            raise UsageError(f"--sleds is {self.sleds}: take {SLEDS_MAX} at most")
        if self.nexus > NEXUS_MAX:
            raise UsageError(f"--nexus is {self.nexus}: take {NEXUS_MAX} at most")
        if self.nexus > 1 and (self.database is None or self.database.startswith("sqlite")):
            raise UsageError("several Nexus need one database that all of them reach: give --database postgresql://...")
        for text in (self.disk_size, self.extent_size, self.size_step):
            if text is not None:
                parse_size(text)


def write_files(root: Path, wanted: Wanted) -> None:
    """All files of a new rack. Raises :class:`OSError`, :class:`UsageError` for a place too deep for sockets."""
    most = SOCKET_PATH_MAX - LONGEST_SOCKET
    if len(os.fsencode(root)) > most:
        raise UsageError(f"{root} is too long a path for the sockets of disks: take one of at most {most} bytes")
    directory = root / DIRECTORY
    root.mkdir(parents=True, exist_ok=True)
    directory.mkdir(mode=0o700, exist_ok=True)  # the database in it holds the keys of disks
    url = wanted.database or f"sqlite:///{root / DIRECTORY / DATABASE}"
    for name, secret in ((OPERATOR_TOKEN, secrets.token_urlsafe(TOKEN_BYTES)), (DATABASE_URL, url)):
        (directory / name).unlink(missing_ok=True)
        write_private(directory / name, secret)
    write_whole(root / RACK_FILE, rack_file(wanted))


def rack_file(wanted: Wanted) -> str:
    """The rack file."""
    lines = [
        "# A rack with a Nexus, made by nexus rack up. What may stand here is in docs/rack.md.",
        f"disk_size = {json.dumps(wanted.disk_size)}",
        'nexus = "nexus0.internal"',
    ]
    low_port = low_port_of_new_racks()
    lines += [] if low_port is None else [f"low_port = {low_port}"]
    for number in range(wanted.sleds):
        lines += ["", "[[sled]]", f'name = "sled{number}"', f"disks = {wanted.disks_per_sled}"]
        lines += ["pantry = true"] if number < wanted.pantries else []
    for number in range(wanted.nexus):
        words = ",\n    ".join(
            " ".join(json.dumps(word) + "," for word in pair).rstrip(",") for pair in command(wanted)
        )
        lines += ["", "[[service]]", f'name = "nexus{number}"', f"ports = {json.dumps(PORTS)}"]
        lines += [f"command = [\n    {words},\n]"]
    return "\n".join(lines) + "\n"


def command(wanted: Wanted) -> list[tuple[str, ...]]:
    """The command line of one Nexus, in pairs of option and value. Its id is its own for good: what it was at when it
    was killed it goes on with as soon as it is back."""
    pairs = [
        # -P: what is called nexus where somebody stands is not what is meant; a rack's own directory has one.
        ("{python}", "-P", "-m", "nexus", "run"),
        ("--id", str(uuid4())),
        *((f"--{port}", f"{{{port}}}") for port in PORTS),
        ("--database-file", f"{{rack}}/{DIRECTORY}/{DATABASE_URL}"),
        ("--operator-token-file", f"{{rack}}/{DIRECTORY}/{OPERATOR_TOKEN}"),
    ]
    pairs += [("--extent-size", wanted.extent_size)] if wanted.extent_size is not None else []
    pairs += [("--size-step", wanted.size_step)] if wanted.size_step is not None else []
    return [*pairs, ("--json", "--until-eof")]


def write_whole(path: Path, text: str) -> None:
    """Put ``text`` there in one go: a reader sees all of it or what was there before."""
    growing = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with growing.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        growing.replace(path)
    finally:
        growing.unlink(missing_ok=True)
