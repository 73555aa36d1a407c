"""``nexus sled``: the computers of the rack."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit
from uuid import UUID

import typer

from crucible_emu.cli.sizes import parse_size
from crucible_emu.errors import UsageError
from nexus.api.emulator_documents import AddressOnSled, AgentOnSled, SledAdd, SledEntry
from nexus.cli.session import AsJson, Rack, Session, all_of, converse
from nexus.cli.showing import show_many, show_one

app = typer.Typer(no_args_is_help=True)

AGENT_FORM = "URL=SIZE"


@app.callback()
def group() -> None:
    """Sleds: where disks, agents, pantries and hosts are. For operators."""


@app.command("list")
def list_(rack: Rack = None, as_json: AsJson = False) -> None:
    """Show all sleds."""
    found = converse(lambda nexus: all_of(nexus.emulator.sled_list()), rack, operator=True)
    columns = {
        "serial": lambda sled: sled.serial,
        "policy": lambda sled: sled.policy,
        "state": lambda sled: sled.state,
        "disks": lambda sled: sled.physical_disks,
        "host": lambda sled: sled.host,
        "pantry": lambda sled: sled.pantry,
        "id": lambda sled: sled.id,
    }
    show_many(found, columns, as_json=as_json)


@app.command()
def add(
    serial: Annotated[str, typer.Argument(metavar="SERIAL", help="What is written on the sled.")],
    host: Annotated[str, typer.Option("--host", metavar="URL", help="Its host.")],
    agent: Annotated[
        list[str] | None,
        typer.Option("--agent", metavar=AGENT_FORM, help="An agent, and how large its disk is; may be repeated."),
    ] = None,
    pantry: Annotated[str | None, typer.Option("--pantry", metavar="URL", help="Its pantry, if it has one.")] = None,
    rack: Rack = None,
    as_json: AsJson = False,
) -> None:
    """Add a sled, or what is new on one. Said again it changes nothing.

    [bold]Example[/bold]

      nexus sled add sled7 --host 'http://[fd00::7]:12400' --agent 'http://[fd00::7]:17000=8GiB'
    """
    host_address, pantry_address = address_of(host), None if pantry is None else address_of(pantry)

    async def work(nexus: Session) -> SledEntry:
        agents = tuple(_agent(text, f"{serial}-disk{number}") for number, text in enumerate(agent or ()))
        body = SledAdd(serial=serial, host=host_address, pantry=pantry_address, agents=agents)
        return await nexus.emulator.sled_add(body)

    show_one(converse(work, rack, operator=True), as_json=as_json)


def _agent(text: str, serial: str) -> AgentOnSled:
    url, separator, size = text.rpartition("=")
    if not separator:
        raise UsageError(f"--agent {text} does not say how large the disk is: write {AGENT_FORM}")
    return agent_at(url, parse_size(size), serial)


def agent_at(url: str, size_bytes: int, serial: str) -> AgentOnSled:
    """An agent, and the disk under it. Raises :class:`UsageError` for what is no URL."""
    address = address_of(url)
    return AgentOnSled(ip=address.ip, port=address.port, size_bytes=size_bytes, serial=serial)


def address_of(url: str) -> AddressOnSled:
    """Where the service at ``url`` listens. Raises :class:`UsageError`."""
    try:
        parts = urlsplit(url)
        ip, port = parts.hostname, parts.port
    except ValueError:
        ip, port = None, None
    if ip is None or ":" not in ip or not port:
        raise UsageError(f"'{url}' is no address of a sled's service: write http://[IPv6]:port")
    return AddressOnSled(ip=ip, port=port)


@app.command()
def expunge(
    sled: Annotated[str, typer.Argument(metavar="SLED", help="The sled, by serial or id.")],
    rack: Rack = None,
    as_json: AsJson = False,
) -> None:
    """Say that a sled is lost for good, with all that is on it. This cannot be taken back."""

    async def work(nexus: Session) -> SledEntry:
        return await nexus.emulator.sled_expunge(await sled_id(nexus, sled))

    show_one(converse(work, rack, operator=True), as_json=as_json)


async def sled_id(nexus: Session, wanted: str) -> UUID:
    """Of the sled with this serial or id. Raises :class:`UsageError` where there is none."""
    for sled in await all_of(nexus.emulator.sled_list()):
        if wanted in (sled.serial, str(sled.id)):
            return sled.id
    raise UsageError(f"there is no sled '{wanted}': nexus sled list shows all")
