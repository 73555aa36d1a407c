"""Every service of a rack with its command line.

What it is for: the rack file says which sleds there are, the state which ports were given out; together they say how
each process is started. A service is started by the same command as a person would use, ``crucible-emu agent run ...``.

What it guarantees: the same rack file and state give the same command lines, so a service that is started again finds
its own directory and answers at its own URL. Each service ends with its standard input (``--until-eof``). A service of
the rack file that is any other program (kind ``command``) is asked to do the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from crucible_emu.rack import command, ports
from crucible_emu.rack.command import Command
from crucible_emu.rack.document import RackFile
from crucible_emu.rack.ports import Pool
from crucible_emu.rack.state import RackState

LOGS = "logs"
COMMAND = "command"
"""The kind of a service that is any program."""


@dataclass(frozen=True, slots=True)
class Planned:
    """One service. ``directory`` is where its data lies; a pantry has none. ``disk_size`` as in the rack file; a
    ``program`` is what is not of this distribution, and is on no sled."""

    name: str
    kind: str
    sled: str
    disk: int | None = None
    disk_size: str | None = None
    directory: Path | None = None
    program: Command | None = None

    @property
    def port_names(self) -> tuple[str, ...]:
        """Under which names the state keeps its HTTP ports."""
        return (self.name,) if self.program is None else self.program.port_names


def services(rack: RackFile, root: Path) -> list[Planned]:
    """The services of this machine, agents first: whoever attaches a disk needs them."""
    agents = [
        Planned(
            f"{sled.name}-disk{disk}",
            "agent",
            sled.name,
            disk,
            sled.disk_size or rack.disk_size,
            root / sled.name / f"disk{disk}",
        )
        for sled in rack.here
        for disk in range(sled.disks)
    ]
    pantries = [Planned(f"{sled.name}-pantry", "pantry", sled.name) for sled in rack.here if sled.pantry]
    hosts = [
        Planned(f"{sled.name}-host", "host", sled.name, directory=root / sled.name / "host")
        for sled in rack.here
        if sled.host
    ]
    programs = [Planned(each.name, COMMAND, "", program=each) for each in rack.services]
    return [*agents, *pantries, *programs, *hosts]


def wanted_pools(
    rack: RackFile,
    planned: list[Planned],
    state: RackState,
    refused: frozenset[int] = frozenset(),
    system: range = ports.NONE,
) -> dict[str, Pool]:
    """A pool for each agent: what ``state`` has, and new ones apart from those for whoever has none; ``refused`` and
    ``system`` as for :func:`~crucible_emu.rack.ports.place`."""
    agents = [each.name for each in planned if each.kind == "agent"]
    kept = {name: state.pools[name] for name in agents if name in state.pools}
    new = [name for name in agents if name not in kept]
    count = rack.ports_per_agent or ports.ports_each(len(agents))
    placed = ports.place(len(new), count, state.pools.values(), low=rack.low_port, refused=refused, system=system)
    return {**kept, **dict(zip(new, placed))}


def url(each: Planned, rack: RackFile, state: RackState) -> str | None:
    """Where it answers, at the first of its ports; ``None`` where it has none, or none yet."""
    return next((_url(name, rack, state) for name in each.port_names), None)


def urls(each: Planned, rack: RackFile, state: RackState) -> dict[str, str | None]:
    """Where it answers at each of its ports that the rack file names."""
    return {name.rpartition(".")[2]: _url(name, rack, state) for name in each.port_names if each.program is not None}


def _url(name: str, rack: RackFile, state: RackState) -> str | None:
    port = state.http_ports.get(name)
    scheme = "http" if rack.tls_cert is None else "https"
    return None if port is None else f"{scheme}://{bracketed(rack.address)}:{port}"


def _nexus(rack: RackFile, state: RackState) -> str | None:
    """Whom hosts tell: as it is written, or at the port of a service of this rack."""
    return rack.nexus if rack.nexus is None or "/" in rack.nexus else _url(rack.nexus, rack, state)


def log_path(root: Path, name: str) -> Path:
    return root / LOGS / f"{name}.log"


def bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def command_line(each: Planned, rack: RackFile, state: RackState, root: Path) -> list[str]:
    """The arguments of ``crucible-emu`` that start it; of a program its whole command line."""
    if each.program is not None:
        return command.words(each.program, bracketed(rack.address), state.http_ports, root)
    arguments = [each.kind, "run", *([] if each.directory is None else [str(each.directory)])]
    arguments += ["--listen", f"{bracketed(rack.address)}:{state.http_ports[each.name]}", "--json", "--until-eof"]
    if each.kind == "agent":
        pool = state.pools[each.name]
        arguments += ["--low-port", str(pool.low), "--ports", str(pool.count)]
        arguments += [] if each.disk_size is None else ["--capacity", each.disk_size]
        arguments += ["--isolate"] if rack.isolate else []
    if each.kind == "host" and (nexus := _nexus(rack, state)) is not None:
        arguments += ["--nexus", nexus]
    arguments += [f"--{name}" for name in ("faithful", "lenient") if getattr(rack, name)]
    for option in ("tls_cert", "tls_key", "token_file"):
        path = getattr(rack, option)
        if path is not None:
            arguments += [f"--{option.replace('_', '-')}", str(root / path)]
    return arguments
