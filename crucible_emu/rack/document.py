"""The rack file: which sleds a rack has, here and on other machines.

What it is for: ``rack.toml`` in the rack's directory says what the rack is. ``rack up --sleds 5`` writes one; a person
may write it. It looks like this::

    disk_size = "4GiB"            # what each pretended physical disk can hold
    address = "::1"               # where the services of this machine listen
    low_port = 19000              # the first Downstairs port

    [[sled]]
    name = "sled0"
    disks = 2                     # an agent for each
    pantry = true

    [[sled]]
    name = "sled1"                # on another machine: not started here, only looked at by rack status
    agents = ["http://[fd00::7]:17000"]
    host = "http://[fd00::7]:12400"

    [[service]]
    name = "nexus0"               # any other program: started, watched and ended with the rack
    command = ["{python}", "-m", "nexus", "run", "--external", "{external}"]
    ports = ["external"]          # each kept for it, and put into its command

What it guarantees: a document that was accepted can be run: names are apart and fit for directories, a sled is either
here or elsewhere, addresses and URLs can be parsed. What is not known is refused, because a misspelt setting that is
passed over is found out much later. Each refusal is one sentence that names the setting.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from crucible_emu.errors import UsageError
from crucible_emu.rack import ports
from crucible_emu.rack.command import Command, check_commands, parse_command

SLEDS_MAX, DISKS_MAX, AGENTS_MAX = 64, 32, 128
DISK_SIZE = "4GiB"
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Sled:
    """A sled of this machine: ``disks`` agents, and a pantry and a host where wanted. ``disk_size`` as written."""

    name: str
    disks: int = 1
    disk_size: str | None = None
    pantry: bool = False
    host: bool = True


@dataclass(frozen=True, slots=True)
class SledElsewhere:
    """A sled of another machine, by the URLs of its services."""

    name: str
    agents: tuple[str, ...] = ()
    pantry: str | None = None
    host: str | None = None


@dataclass(frozen=True, slots=True)
class RackFile:
    """A whole rack. Paths are as written: relative ones are relative to the rack's directory."""

    sleds: tuple[Sled | SledElsewhere, ...]
    disk_size: str = DISK_SIZE
    address: str = "::1"
    low_port: int = ports.LOW_PORT
    ports_per_agent: int | None = None
    isolate: bool = False
    faithful: bool = False
    lenient: bool = False
    nexus: str | None = None  # a URL, or SERVICE.PORT of a service of this rack
    tls_cert: str | None = None
    tls_key: str | None = None
    token_file: str | None = None
    ca_file: str | None = None
    services: tuple[Command, ...] = ()

    @property
    def here(self) -> tuple[Sled, ...]:
        return tuple(each for each in self.sleds if isinstance(each, Sled))

    @property
    def elsewhere(self) -> tuple[SledElsewhere, ...]:
        return tuple(each for each in self.sleds if isinstance(each, SledElsewhere))


def simple(
    sleds: int,
    *,
    disks_per_sled: int = 1,
    pantries: int = 2,
    disk_size: str = DISK_SIZE,
    isolate: bool = False,
    low_port: int = ports.LOW_PORT,
) -> RackFile:
    """A rack of like sleds; the first ``pantries`` have a pantry each. Raises :class:`UsageError`."""
    if not 0 <= pantries <= sleds:
        raise UsageError(f"{pantries} pantries do not fit on {sleds} sleds: take one for each sled at most")
    _between("--sleds", sleds, 1, SLEDS_MAX)
    _between("--disks-per-sled", disks_per_sled, 1, DISKS_MAX)
    made = tuple(Sled(f"sled{index}", disks_per_sled, pantry=index < pantries) for index in range(sleds))
    return _whole(RackFile(made, disk_size, isolate=isolate, low_port=low_port))


def _between(name: str, value: int, least: int, most: int) -> int:
    if not least <= value <= most:
        raise UsageError(f"{name} is {value}: take {least} to {most}")
    return value


def _whole(rack: RackFile) -> RackFile:
    """What only the whole document can have wrong."""
    names = [sled.name for sled in rack.sleds]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"two sleds are named {name!r}: give each its own name")
    agents = sum(sled.disks for sled in rack.here)
    if agents > AGENTS_MAX:
        raise UsageError(f"{agents} disks on one machine are more than {AGENTS_MAX}: take fewer sleds or disks")
    if (rack.tls_cert is None) != (rack.tls_key is None):
        raise UsageError("TLS needs both files: give tls_cert and tls_key")
    check_commands(rack.services, names, rack.nexus)
    count = ports.ports_each(agents) if rack.ports_per_agent is None else rack.ports_per_agent
    ports.place(agents, count, low=rack.low_port)
    return rack


# -- from TOML --------------------------------------------------------------------------------------------------------


def parse(text: str, check_size: Callable[[str], object] = str) -> RackFile:
    """The rack that ``text`` describes. ``check_size`` raises :class:`UsageError` for what is no size, as this does
    for everything else."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"this is not TOML: {str(error)[:1].lower()}{str(error)[1:]}") from None
    table = Table(document, "", check_size)
    sleds = document.pop("sled", None)
    if not isinstance(sleds, list) or not sleds or not all(isinstance(each, dict) for each in sleds):
        raise UsageError("it names no sled: write a table [[sled]] for each")
    services = document.pop("service", [])
    if not isinstance(services, list) or not all(isinstance(each, dict) for each in services):
        raise UsageError("service is no list of tables: write a table [[service]] for each")
    if len(sleds) > SLEDS_MAX:
        raise UsageError(f"{len(sleds)} sleds are more than {SLEDS_MAX}")
    values: dict[str, Any] = {
        "disk_size": table.size("disk_size"),
        "address": table.address("address"),
        "low_port": table.number("low_port", 1, ports.PORT_MAX),
        "ports_per_agent": table.number("ports_per_agent", 1, ports.REPAIR_PORT_OFFSET),
        **{name: table.take(name, bool, "true or false") for name in ("isolate", "faithful", "lenient")},
        "nexus": table.url_or_port("nexus"),
        **{name: table.text(name) for name in ("tls_cert", "tls_key", "token_file", "ca_file")},
        "services": tuple(parse_command(each, index) for index, each in enumerate(services)),
    }
    table.end()
    found = tuple(_sled(Table(each, f"sled {index}: ", check_size), index) for index, each in enumerate(sleds))
    return _whole(RackFile(found, **{name: value for name, value in values.items() if value is not None}))


def _sled(table: Table, index: int) -> Sled | SledElsewhere:
    name = table.text("name") or f"sled{index}"
    if NAME.fullmatch(name) is None:
        raise UsageError(f"sled {index}: name is {name!r}: take lower-case letters, digits and dashes, 32 at most")
    table.where = f"sled {name!r}: "
    agents = table.take("agents", list, "a list of URLs")
    values = {"pantry": table.values.get("pantry"), "host": table.values.get("host")}
    if agents is None and not any(isinstance(value, str) for value in values.values()):
        sled = Sled(
            name,
            disks=1 if (disks := table.number("disks", 0, DISKS_MAX)) is None else disks,
            disk_size=table.size("disk_size"),
            pantry=bool(table.take("pantry", bool, "true or false")),
            host=table.take("host", bool, "true or false") is not False,
        )
        table.end()
        return sled
    if "disks" in table.values:
        raise UsageError(f"{table.where}disks are of this machine and URLs of another: give one or the other")
    urls = [table.checked_url("agents", each) for each in agents or ()]
    elsewhere = SledElsewhere(name, tuple(urls), table.url("pantry"), table.url("host"))
    table.end()
    return elsewhere


@dataclass(slots=True)
class Table:
    """A table of the document, taken apart name by name; what is left at the :meth:`end` is refused."""

    values: dict[str, Any]
    where: str
    check_size: Callable[[str], object]
    known: list[str] = field(default_factory=list)

    def take(self, name: str, kind: type, words: str) -> Any:
        """The value of ``name``, ``None`` where it is not given. Raises :class:`UsageError`."""
        self.known.append(name)
        value = self.values.pop(name, None)
        if value is not None and type(value) is not kind:
            raise UsageError(f"{self.where}{name} is {value!r}: write {words}")
        return value

    def text(self, name: str) -> str | None:
        value: str | None = self.take(name, str, "a text in quotes")
        if value == "":
            raise UsageError(f"{self.where}{name} is empty: leave it out or fill it in")
        return value

    def number(self, name: str, least: int, most: int) -> int | None:
        value: int | None = self.take(name, int, "a number")
        return None if value is None else _between(f"{self.where}{name}", value, least, most)

    def size(self, name: str) -> str | None:
        value = self.text(name)
        if value is not None:
            try:
                self.check_size(value)
            except UsageError as error:
                raise UsageError(f"{self.where}{name}: {error}") from None
        return value

    def address(self, name: str) -> str | None:
        value = self.text(name)
        try:
            return None if value is None else str(ip_address(value))
        except ValueError:
            raise UsageError(f"{self.where}{name} is {value!r}: write an IP address, such as ::1") from None

    def url(self, name: str) -> str | None:
        value = self.text(name)
        return None if value is None else self.checked_url(name, value)

    def url_or_port(self, name: str) -> str | None:
        """A URL, or the name of a port of a service of this rack."""
        value = self.text(name)
        return value if value is None or "/" not in value else self.checked_url(name, value)

    def checked_url(self, name: str, value: object) -> str:
        try:
            parts = urlsplit(value if isinstance(value, str) else "")
            good = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
        except ValueError:
            good = False
        if not good:
            raise UsageError(f"{self.where}{name} is {value!r}: write a URL, such as http://[fd00::7]:17000")
        return str(value).rstrip("/")

    def end(self) -> None:
        for name in self.values:
            raise UsageError(f"{self.where}{name!r} is no setting: there are {', '.join(self.known)}")


# -- to TOML ----------------------------------------------------------------------------------------------------------


def to_toml(rack: RackFile) -> str:
    """The document as text; :func:`parse` of it is ``rack`` again."""
    plain = RackFile(())
    lines = ["# A rack of crucible-emu. What is not given has its default."]
    lines += _settings(rack, but=("sleds", "services"), always=("disk_size", "address", "low_port"), plain=plain)
    for sled in rack.sleds:
        lines += ["", "[[sled]]"]
        if isinstance(sled, Sled):
            lines += _settings(sled, always=("name", "disks"), plain=Sled(""))
        else:
            lines += _settings(sled, always=("name", "agents"), plain=SledElsewhere(""))
    for service in rack.services:
        lines += ["", "[[service]]", *_settings(service, always=("name", "command"), plain=Command("", ()))]
    return "\n".join(lines) + "\n"


def _settings(of: Any, *, plain: Any, always: tuple[str, ...], but: tuple[str, ...] = ()) -> list[str]:
    given = {name: getattr(of, name) for name in of.__dataclass_fields__ if name not in but}
    return [
        f"{name} = {_written(value)}"
        for name, value in given.items()
        if name in always or value != getattr(plain, name)
    ]


def _written(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return f"[{', '.join(map(_written, value))}]"
    if isinstance(value, str):
        return '"' + "".join(_escaped(character) for character in value) + '"'
    return str(value)


def _escaped(character: str) -> str:
    if character in '"\\':
        return f"\\{character}"
    return character if character.isprintable() else f"\\U{ord(character):08x}"


def differences(wanted: Mapping[str, object], found: RackFile) -> list[str]:
    """Which of the settings that somebody asked for are other ones in ``found``; by the names of their options."""
    here = found.here
    actual: dict[str, object] = {
        "--sleds": len(found.sleds),
        "--disks-per-sled": {sled.disks for sled in here},
        "--pantries": sum(bool(sled.pantry) for sled in found.sleds),
        "--disk-size": found.disk_size,
        "--isolate": found.isolate,
    }
    return [
        name
        for name, value in wanted.items()
        if (actual[name] != {value} if isinstance(actual[name], set) else actual[name] != value)
    ]
