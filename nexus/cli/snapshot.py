"""``nexus snapshot``: keep what a disk holds at one moment."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

import typer

from crucible_emu.cli.sizes import format_size
from nexus.api.external_documents import Snapshot, SnapshotCreate
from nexus.cli.session import AsJson, Project, Rack, Session, all_of, converse
from nexus.cli.showing import done, show_many, show_one

app = typer.Typer(no_args_is_help=True)

Which = Annotated[str, typer.Argument(metavar="SNAPSHOT", help="The snapshot, by name or id.")]


@app.callback()
def group() -> None:
    """Snapshots: what disks held at one moment, for good."""


@app.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What the snapshot is called.")],
    disk: Annotated[str, typer.Option("--disk", metavar="DISK", help="Of this disk, by name or id.")],
    description: Annotated[str, typer.Option("--description", help="Words for people.")] = "",
    project: Project = None,
    rack: Rack = None,
    as_json: AsJson = False,
) -> None:
    """Take a snapshot of a disk, in use or not, and return when it is there.

    [bold]Example[/bold]

      nexus snapshot create before-upgrade --disk scratch
    """

    async def work(nexus: Session) -> Snapshot:
        body = SnapshotCreate(name=name, description=description, disk=disk)
        return await nexus.external.snapshot_create(body, nexus.project)

    show_one(converse(work, rack, project), as_json=as_json)


@app.command("list")
def list_(project: Project = None, rack: Rack = None, as_json: AsJson = False) -> None:
    """Show the snapshots of the project."""
    found = converse(lambda nexus: all_of(nexus.external.snapshot_list(nexus.project)), rack, project)
    columns = {
        "name": lambda snapshot: snapshot.name,
        "state": lambda snapshot: snapshot.state,
        "size": lambda snapshot: format_size(snapshot.size),
        "taken": lambda snapshot: snapshot.time_created,
        "disk id": lambda snapshot: snapshot.disk_id,
        "id": lambda snapshot: snapshot.id,
    }
    show_many(found, columns, as_json=as_json)


@app.command()
def show(snapshot: Which, project: Project = None, rack: Rack = None, as_json: AsJson = False) -> None:
    """Show one snapshot."""
    found = converse(lambda nexus: nexus.external.snapshot_view(snapshot, nexus.within(snapshot)), rack, project)
    show_one(found, as_json=as_json)


@app.command()
def delete(snapshot: Which, project: Project = None, rack: Rack = None, as_json: AsJson = False) -> None:
    """Delete a snapshot, and return when it is gone. Disks and images that were made of it stay."""

    async def work(nexus: Session) -> UUID:
        found = await nexus.external.snapshot_view(snapshot, nexus.within(snapshot))
        await nexus.external.snapshot_delete(str(found.id))
        return found.id

    gone = converse(work, rack, project)
    done(f"Snapshot {snapshot} is deleted.", {"deleted": str(gone)}, as_json=as_json)
