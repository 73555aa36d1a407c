"""A service of the rack file that is any other program: its command line, and the ports that are kept for it.

What it is for: whoever stands above the data plane, a control plane for one, is started, watched, started again and
ended with the rack, without the rack knowing what it is. It is asked three things: to print a line of JSON with
``"ready": true`` when it can be reached, to end in order at SIGTERM, and to end when its standard input ends.

What it guarantees: a word of a command names only what there is to put in: ``{rack}``, the rack's directory,
``{python}``, the Python that runs the rack, and ``{NAME}``, the address ``ip:port`` of the port ``NAME``. A port keeps
its number as those of all services do.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crucible_emu.errors import UsageError

NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}", re.ASCII)
PLACE = re.compile(r"\{([^{}]*)\}")
SETTINGS = ("name", "command", "ports")
GIVEN = ("rack", "python")
SERVICES_MAX, PORTS_MAX = 16, 8


@dataclass(frozen=True, slots=True)
class Command:
    """A program, by its words as written."""

    name: str
    command: tuple[str, ...]
    ports: tuple[str, ...] = ()

    @property
    def port_names(self) -> tuple[str, ...]:
        """The names of its ports among those of the whole rack."""
        return tuple(f"{self.name}.{port}" for port in self.ports)


def parse_command(table: Mapping[str, Any], index: int) -> Command:
    """One table ``[[service]]``. Raises :class:`UsageError`."""
    where = f"service {index}"
    for setting in table:
        if setting not in SETTINGS:
            raise UsageError(f"{where}: {setting!r} is no setting: there are {', '.join(SETTINGS)}")
    name = table.get("name")
    if not isinstance(name, str) or NAME.fullmatch(name) is None:
        raise UsageError(f"{where}: name is {name!r}: take lower-case letters, digits and dashes, 32 at most")
    where = f"service {name!r}"
    words, ports = _texts(table, "command", where), _texts(table, "ports", where)
    if not words or not words[0]:
        raise UsageError(f"{where}: its command is empty: write the program and its arguments")
    for port in ports:
        if NAME.fullmatch(port) is None or port in GIVEN or ports.count(port) > 1:
            raise UsageError(f"{where}: {port!r} names no port: take lower-case letters, and each name once")
    if len(ports) > PORTS_MAX:
        raise UsageError(f"{where}: {len(ports)} ports are more than {PORTS_MAX}")
    for place in (place for word in words for place in PLACE.findall(word)):
        if place not in (*GIVEN, *ports):
            raise UsageError(f"{where}: {{{place}}} stands for nothing: there are {', '.join((*GIVEN, *ports))}")
    return Command(name, words, ports)


def _texts(table: Mapping[str, Any], name: str, where: str) -> tuple[str, ...]:
    value = table.get(name, [])
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise UsageError(f"{where}: {name} is {value!r}: write a list of texts")
    return tuple(value)


def check_commands(services: Sequence[Command], sleds: Sequence[str], nexus: str | None) -> None:
    """What only the whole document can have wrong. Raises :class:`UsageError`."""
    names = [each.name for each in services]
    if len(names) > SERVICES_MAX:
        raise UsageError(f"{len(names)} services are more than {SERVICES_MAX}")
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"two services are named {name!r}: give each its own name")
        if any(name == sled or name.startswith(f"{sled}-") for sled in sleds):
            raise UsageError(f"service {name!r} is named as what a sled has: take another name")
    ports = [port for each in services for port in each.port_names]
    if nexus is not None and "/" not in nexus and nexus not in ports:
        raise UsageError(
            f"nexus is {nexus!r}: write a URL, such as http://[fd00::7]:12221, or SERVICE.PORT of a service"
        )


def words(program: Command, address: str, ports: Mapping[str, int], root: Path) -> list[str]:
    """The command line; ``ports`` by their names among those of the whole rack."""
    given = {"rack": str(root), "python": sys.executable}
    given |= {name: f"{address}:{ports[full]}" for name, full in zip(program.ports, program.port_names)}
    return [PLACE.sub(lambda place: given[place[1]], word) for word in program.command]
