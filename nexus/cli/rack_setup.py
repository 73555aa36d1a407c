"""What makes a rack that runs known to its Nexus: sleds with what is on them, a silo, a project, a token.

What it guarantees: it may be done at every start. What is there already is found and left as it is, so a sled that was
expunged stays that, and a token that works is kept; what is new in the rack file is added.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from crucible_emu.cli.sizes import parse_size
from nexus.api.emulator_documents import ProjectAdd, SiloCreate, SledAdd, TokenCreate
from nexus.cli.access import DIRECTORY, TENANT_TOKEN
from nexus.cli.session import Session, all_of
from nexus.cli.sled import address_of, agent_at
from nexus.cli.token import write_private

SILO, PROJECT = "rack", "demo"


async def introduce(nexus: Session, rack: dict[str, Any], root: Path) -> None:
    """``rack`` is what ``crucible-emu rack up --json`` prints."""
    for body in sleds_of(rack["services"]):
        await nexus.emulator.sled_add(body)
    if not await all_of(nexus.emulator.silo_list()):
        await nexus.emulator.silo_create(SiloCreate(name=SILO, description="All of the rack."))
    projects = [each for each in await all_of(nexus.emulator.project_list()) if each.name == PROJECT]
    token = root / DIRECTORY / TENANT_TOKEN
    if not projects:
        projects = [await nexus.emulator.project_add(ProjectAdd(name=PROJECT, description="For a first look."))]
        token.unlink(missing_ok=True)  # one that opened a project of that name which is gone
    if not token.exists():
        given = await nexus.emulator.token_create(TokenCreate(role="tenant", project_id=projects[0].id))
        write_private(token, given.token)


def sleds_of(services: Iterable[dict[str, Any]]) -> list[SledAdd]:
    """The sleds of this machine that have a host, with what is on them."""
    sleds: dict[str, list[dict[str, Any]]] = {}
    for each in services:
        if each["sled"] is not None and each["state"] != "elsewhere":
            sleds.setdefault(each["sled"], []).append(each)
    return [_sled(name, found) for name, found in sleds.items() if any(each["kind"] == "host" for each in found)]


def _sled(name: str, services: list[dict[str, Any]]) -> SledAdd:
    urls = {each["kind"]: each["url"] for each in services if each["kind"] != "agent"}
    agents = [each for each in services if each["kind"] == "agent"]
    return SledAdd(
        serial=name,
        host=address_of(urls["host"]),
        pantry=address_of(urls["pantry"]) if "pantry" in urls else None,
        agents=tuple(agent_at(each["url"], parse_size(each["disk_size"]), each["name"]) for each in agents),
    )
