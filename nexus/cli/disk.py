"""``nexus disk``: make, fill, attach, read and delete disks.

What it guarantees: a command that makes something returns when it is there, or with one sentence and without it.
``import`` leaves no half-filled disk behind, whatever ends it but SIGKILL; ``export`` leaves the disk as it was found.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import typer

from crucible_emu.cli.sizes import format_size, parse_size
from crucible_emu.errors import UsageError
from nexus.api.external_documents import (
    BlankSource,
    Disk,
    DiskCreate,
    DiskSource,
    DistributedBackend,
    Image,
    ImageSource,
    SnapshotSource,
)
from nexus.cli import disk_data, disk_places
from nexus.cli.session import AsJson, Project, Rack, Session, all_of, converse, or_none
from nexus.cli.showing import done, print_json, show_many, show_one

app = typer.Typer(no_args_is_help=True)

BLOCK_SIZES = (512, 2048, 4096)
BLOCK_SIZE = 512

Name = Annotated[str, typer.Argument(metavar="NAME", help="What the disk is called.")]
Which = Annotated[str, typer.Argument(metavar="DISK", help="The disk, by name or id.")]
BlockSize = Annotated[int | None, typer.Option("--block-size", help=f"512, 2048 or 4096. [{BLOCK_SIZE}]")]
Description = Annotated[str, typer.Option("--description", help="Words for people.")]


@app.callback()
def group() -> None:
    """Disks: made blank, from a snapshot or an image, or of a file."""


@app.command()
def create(
    name: Name,
    size: Annotated[str | None, typer.Option(help="How large, such as 10GiB. \\[as what it is made from]")] = None,
    from_snapshot: Annotated[
        str | None, typer.Option("--from-snapshot", metavar="SNAPSHOT", help="Begin as this snapshot.")
    ] = None,
    from_image: Annotated[
        str | None, typer.Option("--from-image", metavar="IMAGE", help="Begin as this image.")
    ] = None,
    read_only: Annotated[bool, typer.Option("--read-only", help="And stay that: nobody can write.")] = False,
    block_size: BlockSize = None,
    description: Description = "",
    project: Project = None,
    rack: Rack = None,
    as_json: AsJson = False,
) -> None:
    """Make a disk, and return when it is there.

    [bold]Examples[/bold]

      nexus disk create scratch --size 10GiB

      nexus disk create copy --from-snapshot before-upgrade
    """
    if from_snapshot is not None and from_image is not None:
        raise UsageError("a disk begins as one thing: give --from-snapshot or --from-image")
    blank = from_snapshot is None and from_image is None
    if blank and size is None:
        raise UsageError("how large the disk shall be is not said: give --size")
    if blank and read_only:
        raise UsageError("a blank disk that nobody can write is of no use: give --from-snapshot or --from-image")
    if not blank and block_size is not None:
        raise UsageError("a copy has the blocks of what it is made from: leave --block-size out")
    size_bytes = None if size is None else parse_size(size)
    checked = _block_size(block_size)

    async def work(nexus: Session) -> Disk:
        source, source_bytes = await _source(nexus, from_snapshot, from_image, read_only, checked)
        wanted = size_bytes if size_bytes is not None else source_bytes
        assert wanted is not None
        backend = DistributedBackend(type="distributed", disk_source=source)
        body = DiskCreate(name=name, description=description, size=wanted, disk_backend=backend)
        return await nexus.external.disk_create(body, nexus.project)

    show_one(converse(work, rack, project), as_json=as_json)


def _block_size(given: int | None) -> Any:
    if given is not None and given not in BLOCK_SIZES:
        raise UsageError(f"--block-size {given} is none that disks have: take 512, 2048 or 4096")
    return BLOCK_SIZE if given is None else given


async def _source(
    nexus: Session, snapshot: str | None, image: str | None, read_only: bool, block_size: Any
) -> tuple[DiskSource, int | None]:
    """What the disk is made from, and how large that is."""
    if snapshot is not None:
        kept = await nexus.external.snapshot_view(snapshot, nexus.within(snapshot))
        return SnapshotSource(type="snapshot", snapshot_id=kept.id, read_only=read_only), kept.size
    if image is not None:
        found = await image_of(nexus, image)
        return ImageSource(type="image", image_id=found.id, read_only=read_only), found.size
    return BlankSource(type="blank", block_size=block_size), None


async def image_of(nexus: Session, image: str) -> Image:
    """The image of the project, or the silo's of that name."""
    within = nexus.within(image)
    found = None if within is None else await or_none(nexus.external.image_view(image, within))
    return found if found is not None else await nexus.external.image_view(image)


@app.command("import")
def import_(
    name: Name,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What it shall hold: a raw image.")],
    size: Annotated[str | None, typer.Option(help="How large. \\[the file, and up to a whole step]")] = None,
    snapshot: Annotated[
        str | None, typer.Option("--snapshot", metavar="NAME", help="Take a snapshot of this name when it is filled.")
    ] = None,
    block_size: BlockSize = None,
    description: Description = "",
    project: Project = None,
    rack: Rack = None,
    as_json: AsJson = False,
) -> None:
    """Make a disk of a file, and return when every byte is in it. Tells the BLAKE3 of the file.

    [bold]Example[/bold]

      nexus disk import debian debian.img --snapshot debian-as-it-came
    """
    wanted = disk_data.Wanted(name, description, None if size is None else parse_size(size), _block_size(block_size))

    async def work(nexus: Session) -> disk_data.Filled:
        return await disk_data.fill(nexus, wanted, file, snapshot, shown=not as_json)

    filled = converse(work, rack, project)
    if as_json:
        facts = {"size_bytes": filled.came_to.size_bytes, "data_bytes": filled.came_to.data_bytes}
        facts_of_file = {**facts, "blake3": filled.came_to.blake3}
        print_json({"disk": filled.disk.model_dump(mode="json"), "file": facts_of_file})
        return
    sent = f"{format_size(filled.came_to.size_bytes)}, {format_size(filled.came_to.data_bytes)} of them not zero"
    print(f"Imported {file} as disk {name}: {sent}; blake3 {filled.came_to.blake3}", flush=True)


@app.command()
def export(
    disk: Which,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to.")],
    force: Annotated[bool, typer.Option("--force", help="Replace FILE.")] = False,
    project: Project = None,
    rack: Rack = None,
    as_json: AsJson = False,
) -> None:
    """Write what a disk holds into a file, and tell its BLAKE3. A disk that no instance has gets one meanwhile."""
    if file.exists() and not force:
        raise UsageError(f"{file} exists: choose another name, or say --force to replace it")
    place = converse(lambda nexus: disk_places.place(nexus, disk, None), rack, project, operator=True)
    try:
        copied = disk_data.copy_out(place.uri, file, place.disk.size, shown=not as_json)
    finally:
        if place.new:
            converse(lambda nexus: disk_places.leave(nexus, str(place.disk.id)), rack, project)
    facts = {"size_bytes": copied.size_bytes, "data_bytes": copied.data_bytes, "blake3": copied.blake3}
    sentence = f"Exported disk {place.disk.name} to {file}: {format_size(copied.size_bytes)}; blake3 {copied.blake3}"
    done(sentence, {"disk": place.disk.model_dump(mode="json"), "file": facts}, as_json=as_json)


@app.command("list")
def list_(project: Project = None, rack: Rack = None, as_json: AsJson = False) -> None:
    """Show the disks of the project."""
    found = converse(lambda nexus: all_of(nexus.external.disk_list(nexus.project)), rack, project)
    columns = {
        "name": lambda disk: disk.name,
        "state": lambda disk: disk.state.state,
        "size": lambda disk: format_size(disk.size),
        "block": lambda disk: disk.block_size,
        "read-only": lambda disk: disk.read_only,
        "id": lambda disk: disk.id,
    }
    show_many(found, columns, as_json=as_json)


@app.command()
def show(disk: Which, project: Project = None, rack: Rack = None, as_json: AsJson = False) -> None:
    """Show one disk."""
    found = converse(lambda nexus: nexus.external.disk_view(disk, nexus.within(disk)), rack, project)
    show_one(found, as_json=as_json)


@app.command()
def delete(disk: Which, project: Project = None, rack: Rack = None, as_json: AsJson = False) -> None:
    """Delete a disk, and return when it is gone. Snapshots and images of it stay."""

    async def work(nexus: Session) -> UUID:
        found = await nexus.external.disk_view(disk, nexus.within(disk))
        await nexus.external.disk_delete(str(found.id))
        return found.id

    gone = converse(work, rack, project)
    done(f"Disk {disk} is deleted.", {"deleted": str(gone)}, as_json=as_json)


@app.command()
def attach(
    disk: Which,
    instance: Annotated[
        str | None,
        typer.Option("--instance", metavar="NAME", help="To this one, made where absent. \\[named as the disk]"),
    ] = None,
    project: Project = None,
    rack: Rack = None,
    as_json: AsJson = False,
) -> None:
    """Attach a disk to an instance, start that, and print where the disk is: an NBD address for any client.

    [bold]Example[/bold]

      qemu-img info $(nexus disk attach scratch)
    """
    # Where the hosts are, only operators are told.
    place = converse(lambda nexus: disk_places.place(nexus, disk, instance), rack, project, operator=True)
    facts = {"uri": place.uri, "instance": place.instance, "disk": place.disk.model_dump(mode="json")}
    done(place.uri, facts, as_json=as_json)


@app.command()
def detach(disk: Which, project: Project = None, rack: Rack = None, as_json: AsJson = False) -> None:
    """Stop the instance that has the disk, and take the disk from it. What was flushed is in the disk."""
    found = converse(lambda nexus: disk_places.leave(nexus, disk), rack, project)
    done(f"Disk {disk} is detached.", {"disk": found.model_dump(mode="json")}, as_json=as_json)
