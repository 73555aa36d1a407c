"""``nexus physical-disk``: the disks in the sleds."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

import typer

from crucible_emu.cli.sizes import format_size
from crucible_emu.errors import UsageError
from nexus.api.emulator_documents import PhysicalDiskEntry
from nexus.cli.session import AsJson, Rack, Session, all_of, converse
from nexus.cli.showing import show_many, show_one

app = typer.Typer(no_args_is_help=True)


@app.callback()
def group() -> None:
    """Physical disks: each with an agent, in a sled. For operators."""


@app.command("list")
def list_(rack: Rack = None, as_json: AsJson = False) -> None:
    """Show all physical disks, and how full they are."""
    found = converse(lambda nexus: all_of(nexus.emulator.physical_disk_list()), rack, operator=True)
    columns = {
        "serial": lambda disk: disk.serial,
        "policy": lambda disk: disk.policy,
        "state": lambda disk: disk.state,
        "size": lambda disk: None if disk.size_bytes is None else format_size(disk.size_bytes),
        "used": lambda disk: None if disk.size_used is None else format_size(disk.size_used),
        "agent": lambda disk: disk.agent,
        "id": lambda disk: disk.id,
    }
    show_many(found, columns, as_json=as_json)


@app.command()
def expunge(
    disk: Annotated[str, typer.Argument(metavar="DISK", help="The physical disk, by serial or id.")],
    rack: Rack = None,
    as_json: AsJson = False,
) -> None:
    """Say that a physical disk is lost for good. This cannot be taken back."""

    async def work(nexus: Session) -> PhysicalDiskEntry:
        return await nexus.emulator.physical_disk_expunge(await _id(nexus, disk))

    show_one(converse(work, rack, operator=True), as_json=as_json)


async def _id(nexus: Session, wanted: str) -> UUID:
    for disk in await all_of(nexus.emulator.physical_disk_list()):
        if wanted in (disk.serial, str(disk.id)):
            return disk.id
    raise UsageError(f"there is no physical disk '{wanted}': nexus physical-disk list shows all")
