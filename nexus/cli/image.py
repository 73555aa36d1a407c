"""``nexus image``: make images of snapshots, for many disks."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

import typer

from crucible_emu.cli.sizes import format_size
from nexus.api.external_documents import Image, ImageCreate, SnapshotOfImage
from nexus.cli.disk import image_of
from nexus.cli.session import AsJson, Project, Rack, Session, all_of, converse
from nexus.cli.showing import done, show_many, show_one

app = typer.Typer(no_args_is_help=True)

Which = Annotated[str, typer.Argument(metavar="IMAGE", help="The image, by name or id.")]
OfSilo = Annotated[bool, typer.Option("--silo", help="Of the whole silo, for all its projects.")]


@app.callback()
def group() -> None:
    """Images: what new disks begin as."""


@app.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What the image is called.")],
    snapshot: Annotated[str, typer.Option("--snapshot", metavar="SNAPSHOT", help="Of this one, by name or id.")],
    os: Annotated[str, typer.Option("--os", help="Which system is in it, such as debian.")] = "unknown",
    version: Annotated[str, typer.Option("--version", help="Which version of that.")] = "0",
    description: Annotated[str, typer.Option("--description", help="Words for people.")] = "",
    of_silo: OfSilo = False,
    project: Project = None,
    rack: Rack = None,
    as_json: AsJson = False,
) -> None:
    """Make an image of a snapshot. It takes no room of its own, and stays when the snapshot goes.

    [bold]Example[/bold]

      nexus image create debian --snapshot debian-as-it-came --os debian --version 13
    """

    async def work(nexus: Session) -> Image:
        source = await nexus.external.snapshot_view(snapshot, nexus.within(snapshot))
        body = ImageCreate(
            name=name,
            description=description,
            os=os,
            version=version,
            source=SnapshotOfImage(type="snapshot", id=source.id),
        )
        return await nexus.external.image_create(body, None if of_silo else nexus.project)

    show_one(converse(work, rack, project), as_json=as_json)


@app.command("list")
def list_(of_silo: OfSilo = False, project: Project = None, rack: Rack = None, as_json: AsJson = False) -> None:
    """Show the images of the project."""
    found = converse(lambda nexus: all_of(nexus.external.image_list(None if of_silo else nexus.project)), rack, project)
    columns = {
        "name": lambda image: image.name,
        "os": lambda image: image.os,
        "version": lambda image: image.version,
        "size": lambda image: format_size(image.size),
        "block": lambda image: image.block_size,
        "id": lambda image: image.id,
    }
    show_many(found, columns, as_json=as_json)


@app.command()
def show(image: Which, project: Project = None, rack: Rack = None, as_json: AsJson = False) -> None:
    """Show one image."""
    show_one(converse(lambda nexus: image_of(nexus, image), rack, project), as_json=as_json)


@app.command()
def delete(image: Which, project: Project = None, rack: Rack = None, as_json: AsJson = False) -> None:
    """Delete an image, and return when it is gone. Disks that were made of it stay."""

    async def work(nexus: Session) -> UUID:
        found = await image_of(nexus, image)
        await nexus.external.image_delete(str(found.id))
        return found.id

    gone = converse(work, rack, project)
    done(f"Image {image} is deleted.", {"deleted": str(gone)}, as_json=as_json)
