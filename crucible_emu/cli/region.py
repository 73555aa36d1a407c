"""``crucible-emu region``: make, fill, look at and check region directories, without anything running.

Each command reads its arguments, calls one function of :mod:`crucible_emu.region` and prints what came back: text for
a person, or JSON with ``--json``. Results go to standard output, progress and warnings to standard error. Whatever
makes something makes it under another name first, so that a failure leaves nothing behind.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, BinaryIO, NoReturn
from uuid import UUID, uuid4

import typer

from crucible_emu.cli.new_paths import new_directory, new_file
from crucible_emu.cli.progress import Progress
from crucible_emu.cli.sizes import format_size, parse_extent_size, parse_size
from crucible_emu.errors import UsageError
from crucible_emu.geometry import EXTENT_BYTES_DEFAULT, RegionDefinition, cut_into_extents, size_for
from crucible_emu.region import clone as cloning
from crucible_emu.region import digest as digests
from crucible_emu.region import dump as dumping
from crucible_emu.region import extent_info, transfer
from crucible_emu.region import verify as verifying
from crucible_emu.region.layout import extent_path
from crucible_emu.region.region import Region
from crucible_emu.region.repair_files import leftovers
from crucible_emu.region.view import RegionView

app = typer.Typer(no_args_is_help=True, help="Make, fill, look at and check region directories.")

RegionArgument = Annotated[Path, typer.Argument(metavar="DIR", help="A region directory, or a snapshot of one.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Sparse = Annotated[bool, typer.Option("--sparse", help="Leave blocks of zeros unwritten; they read as zeros anyway.")]


def show(lines: Iterable[str]) -> None:
    for line in lines:
        print(line)


def show_json(document: Any) -> None:
    print(json.dumps(document, indent=2))


def warn(sentence: str) -> None:
    print(f"Warning: {sentence}", file=sys.stderr)


def fail(sentence: str) -> NoReturn:
    """The command did its work, and what it found is not what it should be."""
    sys.stdout.flush()
    print(f"Error: {sentence}", file=sys.stderr)
    raise typer.Exit(1)


def look_at(directory: Path) -> RegionView:
    """A view of the region; says on standard error what an interrupted repair left in it."""
    region = RegionView.open(directory)
    for extent_id in range(region.definition.extent_count):
        names = [name for name in leftovers(region.storage, extent_path(directory, extent_id)) if "replace" in name]
        if names:
            warn(f"a repair of extent {extent_id} of {directory} was cut off ({names[0]}): serving it finishes that")
    return region


# ------------------------------------------------------------------------------------------------------------ making


@app.command()
def create(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where to make it; absent, or an empty directory.")],
    size: Annotated[str | None, typer.Option(help="Size of the disk in it, such as 1GiB.")] = None,
    block_size: Annotated[str, typer.Option(help="Bytes per block: a power of two from 512 to 32KiB.")] = "4KiB",
    extent_size: Annotated[
        str | None,
        typer.Option(help="Extent size: a bare number counts blocks, 64MiB means bytes; by default at most 64MiB."),
    ] = None,
    extent_count: Annotated[int | None, typer.Option(min=1, help="Number of extents, instead of --size.")] = None,
    uuid: Annotated[UUID | None, typer.Option(help="UUID of the region; by default a random one.")] = None,
    encrypted: Annotated[bool, typer.Option("--encrypted", help="Clients must bring a key.")] = False,
    image: Annotated[
        Path | None, typer.Option("--import", metavar="FILE", help="Fill it with this raw image; grows to hold it.")
    ] = None,
    sparse: Sparse = False,
    as_json: AsJson = False,
) -> None:
    """Make a region: the directory that one Downstairs serves.

    Three regions of the same size make one mirrored disk. Nothing is left behind when it fails.

    [bold]Examples[/bold]

      crucible-emu region create /tmp/r0 --size 1GiB

      crucible-emu region create /tmp/r0 --block-size 512 --extent-size 100 --extent-count 15

      crucible-emu region create /tmp/r0 --import disk.raw --sparse
    """
    image_bytes = None if image is None else image_size(image)
    definition = _definition(size, block_size, extent_size, extent_count, image_bytes, uuid or uuid4(), encrypted)
    if image is not None and encrypted:
        raise UsageError("an encrypted region takes no plain image: leave out --import, and copy it through a client")
    imported = None
    with new_directory(directory) as growing, Region.create(growing, definition) as region:
        if image is not None:
            imported = _import_into(region, image, sparse, as_json)
    facts = {"directory": str(directory), **definition.as_json(), "size_bytes": definition.size_bytes}
    if as_json:
        show_json(facts if imported is None else {**facts, "imported": _imported_json(imported)})
        return
    print(
        f"Made {directory}: {format_size(definition.size_bytes)} in {definition.extent_count} extents of "
        f"{definition.blocks_per_extent} blocks of {definition.block_size} bytes, UUID {definition.uuid}"
    )
    if imported is not None:
        print(_imported_text(imported))


def _definition(
    size: str | None,
    block_size: str,
    extent_size: str | None,
    extent_count: int | None,
    image_bytes: int | None,
    uuid: UUID,
    encrypted: bool,
) -> RegionDefinition:
    """The region that the options of ``create`` describe. Raises :class:`UsageError` or GeometryError."""
    block_bytes = parse_size(block_size)
    RegionDefinition(block_bytes, 1, 0, uuid, encrypted)  # says what is wrong with the block size itself
    per_extent = None if extent_size is None else parse_extent_size(extent_size, block_bytes)
    if size is not None and extent_count is not None:
        raise UsageError("--size and --extent-count both say how large the region is: give one of them")
    if size is not None:
        size_bytes = parse_size(size)
    elif extent_count is not None:
        per_extent = per_extent or max(1, EXTENT_BYTES_DEFAULT // block_bytes)
        size_bytes = extent_count * per_extent * block_bytes
    elif image_bytes is not None:
        size_bytes = size_for(image_bytes, block_bytes, per_extent)
    else:
        raise UsageError("how large shall the region be? Say --size 1GiB, --extent-count, or --import an image")
    if per_extent is None:
        per_extent, count = cut_into_extents(size_bytes, block_bytes)
    else:
        extent_bytes = RegionDefinition(block_bytes, per_extent, 0, uuid, encrypted).extent_bytes
        count, rest = divmod(size_bytes, extent_bytes)
        if rest or not count:
            raise UsageError(
                f"{size} is not a whole number of extents of {format_size(extent_bytes)}: "
                f"take {format_size((count + 1) * extent_bytes)}, or another --extent-size"
            )
    definition = RegionDefinition(block_bytes, per_extent, count, uuid, encrypted)
    if image_bytes is not None and definition.size_bytes < image_bytes:
        count = transfer.extents_needed(image_bytes, definition)
    return RegionDefinition(block_bytes, per_extent, count, uuid, encrypted)


def image_size(image: Path) -> int:
    """Length of an image in bytes. Raises :class:`UsageError` where it has none, such as a pipe."""
    with open(image, "rb") as file:
        if not file.seekable():
            raise UsageError(f"{image} is a stream: an image must be a file or a block device")
        return file.seek(0, os.SEEK_END)


def _import_into(region: Region, image: Path, sparse: bool, silent: bool) -> transfer.Imported:
    with open(image, "rb") as file, Progress("Importing", image_size(image), shown=not silent) as progress:
        return transfer.import_image(region, file, sparse=sparse, progress=progress)


def _imported_json(imported: transfer.Imported) -> dict[str, int]:
    return {
        "read_bytes": imported.read_bytes,
        "written_blocks": imported.written_blocks,
        "skipped_blocks": imported.skipped_blocks,
    }


def _imported_text(imported: transfer.Imported) -> str:
    skipped = f", {imported.skipped_blocks} blocks of zeros left unwritten" if imported.skipped_blocks else ""
    return f"Imported {imported.read_bytes} bytes into {imported.written_blocks} blocks{skipped}"


@app.command("import")
def import_(
    directory: RegionArgument,
    image: Annotated[Path, typer.Argument(metavar="FILE", help="A raw disk image.")],
    sparse: Sparse = False,
    as_json: AsJson = False,
) -> None:
    """Write a raw disk image into a region.

    The region grows when the image is larger. Do the same to all three regions of a disk: an Upstairs makes them equal
    to one of them.

    [bold]Example[/bold]

      crucible-emu region import /tmp/r0 disk.raw
    """
    size_bytes = image_size(image)
    grown = transfer.grow_for(directory, size_bytes)
    with Region.open(directory) as region:
        imported = _import_into(region, image, sparse, as_json)
    if as_json:
        show_json({"directory": str(directory), "extent_count": grown.extent_count, **_imported_json(imported)})
    else:
        print(_imported_text(imported))


@app.command()
def export(
    directory: RegionArgument,
    image: Annotated[str, typer.Argument(metavar="FILE", help="The raw image to make; - for standard output.")],
    skip: Annotated[int, typer.Option(min=0, help="Blocks to leave out at the start.")] = 0,
    count: Annotated[int, typer.Option(min=0, help="Blocks to export; 0 means all that follow.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE where it exists.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write the disk in a region to a raw image.

    Holes stay holes.

    [bold]Examples[/bold]

      crucible-emu region export /tmp/r0 disk.raw

      crucible-emu region export /tmp/r0 - --count 1 | hexdump -C
    """
    region = look_at(directory)
    if region.definition.encrypted:
        warn(f"{directory} is encrypted: what is exported is ciphertext")
    total = (count or max(0, region.definition.total_blocks - skip)) * region.definition.block_size
    with Progress("Exporting", total, shown=not as_json) as progress:
        if image == "-":
            if as_json:
                raise UsageError("--json and the image cannot both go to standard output: name a file")
            transfer.export_image(region, sys.stdout.buffer, skip_blocks=skip, count_blocks=count, progress=progress)
            return
        done = _export_to(region, Path(image), skip, count, force, progress)
    if as_json:
        show_json({"directory": str(directory), "file": image, "exported_bytes": done})
    else:
        print(f"Exported {done} bytes to {image}")


def _export_to(region: RegionView, path: Path, skip: int, count: int, force: bool, progress: Progress) -> int:
    def run(out: BinaryIO, sparse: bool) -> int:
        return transfer.export_image(
            region, out, skip_blocks=skip, count_blocks=count, sparse=sparse, progress=progress
        )

    if path.exists() and not path.is_file() and not path.is_dir():
        with open(path, "wb") as out:  # a device or a pipe is written where it is
            return run(out, False)
    with new_file(path, overwrite=force) as growing, open(growing, "xb") as out:
        done = run(out, True)
        out.flush()
        return done


@app.command()
def clone(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="The region to copy, which nobody may be writing; or IP:PORT of a repair service."
        ),
    ],
    target: Annotated[Path, typer.Argument(metavar="DIR", help="The region to make; absent or empty.")],
    snapshot: Annotated[str | None, typer.Option(help="Copy this snapshot of SOURCE.")] = None,
    uuid: Annotated[UUID | None, typer.Option(help="UUID of the clone; by default a random one.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="DIR is a region of the same shape: replace its contents.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Copy a region, or a snapshot of one, from a directory or from the repair service of a read-only Downstairs.

    Every block is checked on the way.

    [bold]Example[/bold]

      crucible-emu region clone /tmp/r0 /tmp/r0-copy --snapshot monday

      crucible-emu region clone 192.0.2.7:7810 /tmp/r0-copy
    """
    address = None if Path(source).exists() else service_address(source)
    if address is not None:
        if snapshot is not None:
            raise UsageError("--snapshot is for a directory: run the snapshot and give the address of its service")
        definition = _clone_over_network(address, target, uuid, overwrite, silent=as_json)
        _say_cloned(source, target, definition, as_json)
        return
    origin = look_at(cloning.source_directory(Path(source), snapshot))
    extent_bytes = origin.definition.extent_bytes
    with cloning.unwritten(origin), Progress("Cloning", origin.definition.size_bytes, shown=not as_json) as progress:
        if overwrite:
            if uuid is not None:
                raise UsageError("--uuid is for a new region: with --overwrite the clone keeps the UUID that it has")
            existing = RegionView.open(target)
            with cloning.unwritten(existing):
                cloning.clone_over(origin, existing, lambda: progress(extent_bytes))
            definition = existing.definition
        else:
            definition = cloning.clone_definition(origin.definition, uuid or uuid4())
            with new_directory(target) as growing:
                cloning.clone_new(origin, growing, definition, lambda: progress(extent_bytes))
    _say_cloned(str(origin.path), target, definition, as_json)


def _say_cloned(source: str, target: Path, definition: RegionDefinition, as_json: bool) -> None:
    if as_json:
        show_json({"source": source, "directory": str(target), **definition.as_json()})
    else:
        print(f"Cloned {source} to {target}, UUID {definition.uuid}")


def service_address(text: str) -> tuple[str, int] | None:
    """The address in ``ip:port`` or ``[ip]:port``; ``None`` where ``text`` does not look like one."""
    host, colon, port = text.rpartition(":")
    if not colon or "/" in text or not (port.isascii() and port.isdecimal()) or not 0 < int(port) < 65536:
        return None
    try:
        return str(ip_address(host.removeprefix("[").removesuffix("]"))), int(port)
    except ValueError:
        return None


def _clone_over_network(
    address: tuple[str, int], target: Path, uuid: UUID | None, overwrite: bool, *, silent: bool
) -> RegionDefinition:
    """Copy the region at ``address``; a new one appears only when it is whole."""
    import trio  # here, because only this command needs the network and what comes with it

    from crucible_emu.downstairs import network_clone
    from crucible_emu.wire.messages import SocketAddress

    if overwrite and uuid is not None:
        raise UsageError("--uuid is for a new region: with --overwrite the clone keeps the UUID that it has")

    async def copy() -> RegionDefinition:
        async with network_clone.open_source(SocketAddress(*address)) as source:
            found = source.definition
            with Progress("Cloning", found.size_bytes, shown=not silent) as progress:
                if overwrite:
                    existing = RegionView.open(target)
                    with cloning.unwritten(existing):
                        await network_clone.clone_from(source, target, lambda: progress(found.extent_bytes))
                    return existing.definition
                definition = cloning.clone_definition(found, uuid or uuid4())
                with new_directory(target) as growing:
                    Region.create(growing, definition).close()
                    await network_clone.clone_from(source, growing, lambda: progress(found.extent_bytes))
                return definition

    return trio.run(copy)


# ----------------------------------------------------------------------------------------------------------- looking


@app.command()
def info(
    directory: RegionArgument,
    blocks: Annotated[
        str | None, typer.Option("-b", "--blocks", metavar="N|N-M", help="Also where these blocks of an extent lie.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what a region is and how its extent files are laid out.

    [bold]Example[/bold]

      crucible-emu region info /tmp/r0 -b 5-17
    """
    region = RegionView.open(directory)
    wanted = None if blocks is None else extent_info.parse_blocks(blocks, region.layout)
    if as_json:
        show_json(extent_info.as_json(directory, region.definition, wanted))
    else:
        print(extent_info.as_text(directory, region.definition, wanted), end="")


@app.command()
def dump(
    directories: Annotated[list[Path], typer.Argument(metavar="DIR...", help="One to three directories of one disk.")],
    extent: Annotated[int | None, typer.Option("-e", "--extent", help="Compare every block of this extent.")] = None,
    block: Annotated[int | None, typer.Option("-b", "--block", help="Compare this block of the region.")] = None,
    only_differences: Annotated[
        bool, typer.Option("-o", "--only-show-differences", help="Show only what differs.")
    ] = False,
    colour: Annotated[
        bool | None, typer.Option("--color/--no-color", help="Colours; by default on a terminal.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show every extent's numbers, and compare replicas.

    Takes up to three directories of one disk. Exits with 1 where extents differ.

    [bold]Examples[/bold]

      crucible-emu region dump /tmp/r0 /tmp/r1 /tmp/r2

      crucible-emu region dump /tmp/r0 /tmp/r1 -e 3 -o
    """
    if extent is not None and block is not None:
        raise UsageError("-e and -b ask for different things: give one of them")
    regions = dumping.open_regions(directories)
    found: dumping.Summary | dumping.ExtentComparison | dumping.BlockComparison
    if block is not None:
        found, sentence = dumping.compare_block(regions, block), None
    elif extent is not None:
        found, sentence = dumping.compare_extent(regions, extent), "Difference found!"
    else:
        found, sentence = dumping.summarise(regions), "Difference in extent metadata found!"
    if as_json:
        show_json(found.as_json(only_differences=only_differences))
    else:
        coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ if colour is None else colour
        show(found.lines(only_differences=only_differences, colour=coloured))
    problems = [] if isinstance(found, dumping.BlockComparison) else found.problems
    for problem in problems:
        warn(problem)
    if found.different and sentence is not None:
        fail(sentence)
    if problems:
        fail("not everything could be read")


@app.command()
def verify(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="A region directory; with --raw a single extent file.")
    ],
    raw: Annotated[bool, typer.Option("--raw", help="DIR is one extent file; needs no region.json.")] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="With --raw: also show the good blocks.")] = False,
    csv: Annotated[bool, typer.Option("--csv", help="With --raw: one row per block, for a spreadsheet.")] = False,
    block_size: Annotated[
        str | None, typer.Option(help="With --raw: the block size, where the length does not tell.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check every block against its stored hash.

    Exits with 1 where one is wrong. Needs no key and changes nothing.

    [bold]Examples[/bold]

      crucible-emu region verify /tmp/r0

      crucible-emu region verify --raw /tmp/r0/00/000/003 --csv
    """
    if raw:
        if (verbose, csv, as_json).count(True) > 1:
            raise UsageError("--verbose, --csv and --json are three forms of the same answer: choose one")
        _verify_raw(directory, verbose, csv, as_json, None if block_size is None else parse_size(block_size))
        return
    if verbose or csv or block_size is not None:
        raise UsageError("--verbose, --csv and --block-size go with --raw")
    if directory.is_file():
        raise UsageError(f"{directory} is a file: say --raw to check a single extent file")
    region = look_at(directory)
    definition = region.definition
    with Progress("Verifying", definition.size_bytes, shown=not as_json) as progress:
        failures = list(verifying.verify_region(region, lambda blocks: progress(blocks * definition.block_size)))
    if as_json:
        show_json({"directory": str(directory), "sound": not failures, "failures": [f.as_json() for f in failures]})
    else:
        show(str(failure) for failure in failures)
    if failures:
        fail("Region failed to verify")
    if not as_json:
        print(f"{directory} is sound: {definition.extent_count} extents, {definition.total_blocks} blocks")


def _verify_raw(path: Path, verbose: bool, csv: bool, as_json: bool, block_size: int | None) -> None:
    file = verifying.open_file(path, block_size)
    bad: list[int] = []
    if csv:
        show(file.csv_head())
    elif not as_json:
        print(file.summary())
    for seen in verifying.verify_file(file):
        failing = seen.bad.nonzero()[0].tolist()
        bad += [seen.first + index for index in failing]
        if csv:
            show(file.csv_rows(seen))
        elif not as_json:
            show(file.describe(seen, index) for index in (range(len(seen.bad)) if verbose else failing))
    if as_json:
        show_json({"file": str(path), "sound": not bad, **file.as_json(), "bad_blocks": bad})
    if bad:
        fail(f"verification failed: {len(bad)} of {file.layout.blocks} blocks in {path} are bad")


@app.command()
def digest(
    directory: RegionArgument,
    volume: Annotated[
        bool, typer.Option("--volume", help="Digest of the disk's bytes: what b3sum says of an export.")
    ] = False,
    extents: Annotated[bool, typer.Option("--extents", help="Also the digest of each extent.")] = False,
    as_json: AsJson = False,
) -> None:
    """Name the contents of a region.

    Healthy replicas of one disk have the same digest. It covers data and contexts, not slot choice, flush numbers or
    UUID.

    [bold]Examples[/bold]

      crucible-emu region digest /tmp/r0

      crucible-emu region digest --volume /tmp/r0
    """
    if volume and extents:
        raise UsageError("--volume and --extents ask for different things: give one of them")
    region = look_at(directory)
    with Progress("Reading", region.definition.size_bytes, shown=not as_json) as progress:
        parts: tuple[str, ...] = ()
        if volume:
            whole = digests.volume_digest(region, progress)
        else:
            found = digests.region_digest(region, progress)
            whole, parts = found.region, found.extents if extents else ()
    if as_json:
        kind = "volume" if volume else "region"
        show_json({"directory": str(directory), f"{kind}_digest": whole, **({"extents": parts} if extents else {})})
        return
    print(f"{whole}  {directory}")
    show(f"{part}  extent {extent_id}" for extent_id, part in enumerate(parts))
