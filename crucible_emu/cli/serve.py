"""``crucible-emu serve``: a mirrored disk in a directory, behind NBD, in one command."""

from __future__ import annotations

import base64
import os
import secrets
import sys
from pathlib import Path
from typing import Annotated

import typer

from crucible_emu.blockio import BlockDevice
from crucible_emu.cipher_process import the_process
from crucible_emu.cli import serving, unflushed
from crucible_emu.cli.progress import Progress
from crucible_emu.cli.sizes import parse_extent_size, parse_size
from crucible_emu.control import observation
from crucible_emu.encryption import KEY_BYTES, Cipher
from crucible_emu.errors import CrucibleError, IoError, UsageError
from crucible_emu.geometry import BLOCK_SIZE_DEFAULT, GeometryError, check_block_size, size_for
from crucible_emu.volume import local_disk
from crucible_emu.volume.image import copy_in

app = typer.Typer()


@app.command()
def serve(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where the disk lives; made when absent.")],
    size: Annotated[str | None, typer.Option(help="Size of a new disk, such as 1GiB.")] = None,
    image: Annotated[Path | None, typer.Option(help="Fill a new disk with this raw image.")] = None,
    block_size: Annotated[str | None, typer.Option(help="Bytes per block of a new disk: 512 to 32768 [4096].")] = None,
    extent_size: Annotated[
        str | None, typer.Option(help="Extent size of a new disk: blocks, or bytes with a unit [at most 64MiB].")
    ] = None,
    encrypt: Annotated[
        Path | None,
        typer.Option(metavar="KEYFILE", help="Encrypt with the key in this file (base64); made with a new disk."),
    ] = None,
    nbd: Annotated[
        list[str] | None, typer.Option(metavar="URI", help=f"Where to serve; may be repeated. [{serving.DEFAULT_URI}]")
    ] = None,
    read_only: Annotated[bool, typer.Option("--read-only", help="Let no client write.")] = False,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate (PEM) for nbds addresses.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Key (PEM) of that certificate.")] = None,
    unflushed_memory: Annotated[str | None, unflushed.OPTION] = None,
    control: Annotated[str | None, serving.CONTROL] = None,
    notify: Annotated[str | None, serving.NOTIFY] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the ready line as JSON.")] = False,
) -> None:
    """Serve a disk of three mirrored regions below DIR over NBD.

    The disk is made when DIR is absent or empty, and opened when it is there. Ctrl-C flushes and leaves cleanly; after
    a crash the replicas are made equal before anybody gets to see the disk.

    [bold]Example[/bold]

      crucible-emu serve /tmp/disk --size 1GiB --nbd 'nbd+unix:///?socket=/tmp/disk.sock'

      qemu-img info 'nbd+unix:///?socket=/tmp/disk.sock'
    """
    door = serving.Door(tuple(nbd or (serving.DEFAULT_URI,)), read_only, tls_cert, tls_key, as_json)
    serving.check(door)
    observation.check(control, notify)
    staged_bytes_max = unflushed.staged_bytes_max(unflushed_memory)
    disk = local_disk.read_disk_file(directory)
    if disk is None:
        _make(directory, size, image, block_size, extent_size, encrypt)
    else:
        _check_existing(directory, disk, size, image, block_size, extent_size)
    length = 0 if image is None else image.stat().st_size
    cipher = None if encrypt is None else read_key(encrypt)
    door.facts["regions"] = [str(local_disk.region_path(directory, client)) for client in range(3)]

    async def main() -> None:
        async with observation.observing(control, notify) as door.observation:
            watch = door.observation.watch
            async with local_disk.open_disk(
                directory, cipher=cipher, fill_from=image, observe=watch, staged_bytes_max=staged_bytes_max
            ) as guest:
                if image is not None:
                    await _fill(guest, directory, image, length, shown=not as_json)
                await serving.serve_until_told(guest, door)

    serving.run(main)


async def _fill(guest: BlockDevice, directory: Path, image: Path, length: int, *, shown: bool) -> None:
    """Copy ``image`` into the new disk. One that is filled in part stays, marked as such: the same command goes on."""
    try:
        with Progress("Copying the image in", length, shown=shown) as progress:
            await copy_in(guest, image, progress)
    except CrucibleError as error:
        raise IoError(
            f"copying {image} in failed ({error}), so the disk in {directory} holds only a part of it: when what the "
            "warnings name is mended, give the same command again, or remove the directory"
        ) from None
    local_disk.mark_filled(directory)


def _make(
    directory: Path,
    size: str | None,
    image: Path | None,
    block_size: str | None,
    extent_size: str | None,
    encrypt: Path | None,
) -> None:
    """Make the disk that the options describe."""
    blocks_of = BLOCK_SIZE_DEFAULT if block_size is None else parse_size(block_size)
    try:
        check_block_size(blocks_of)
    except GeometryError as error:
        raise UsageError(str(error)) from None
    per_extent = None if extent_size is None else parse_extent_size(extent_size, blocks_of)
    if image is not None and not image.is_file():
        raise UsageError(f"the image {image} is not a file")
    if size is None and image is None:
        raise UsageError(f"there is no disk in {directory} yet: say how large it shall be with --size, or give --image")
    wanted = parse_size(size) if size is not None else 0
    if image is not None:
        length = image.stat().st_size
        if size is not None and wanted < length:
            raise UsageError(f"the image {image} has {length} bytes, more than --size {size}")
        if size is None:
            wanted = size_for(length, blocks_of, per_extent)
    if encrypt is not None and not encrypt.exists():
        make_key(encrypt)
    if encrypt is not None:
        read_key(encrypt)
    local_disk.create(
        directory,
        wanted,
        block_size=blocks_of,
        blocks_per_extent=per_extent,
        encrypted=encrypt is not None,
        fill_from=image,
    )


def _check_existing(
    directory: Path,
    disk: local_disk.DiskFile,
    size: str | None,
    image: Path | None,
    block_size: str | None,
    extent_size: str | None,
) -> None:
    """What was asked for must be what is there."""
    found = disk.definitions[0]
    if image is not None and disk.filling is None:
        raise UsageError(f"there is a disk in {directory} already: leave --image out, or give another directory")
    if size is not None and parse_size(size) != found.size_bytes:
        raise UsageError(f"the disk in {directory} has {found.size_bytes} bytes, not {size}: leave --size out")
    if block_size is not None and parse_size(block_size) != found.block_size:
        raise UsageError(f"the disk in {directory} has blocks of {found.block_size} bytes: leave --block-size out")
    if extent_size is not None and parse_extent_size(extent_size, found.block_size) != found.blocks_per_extent:
        raise UsageError(f"the disk in {directory} has {found.blocks_per_extent} blocks per extent")


def read_key(path: Path) -> Cipher:
    """The cipher for the key in ``path``. Raises :class:`UsageError`, which never shows the key."""
    try:
        return Cipher.from_base64(path.read_text(encoding="ascii"), sharing=the_process)
    except OSError as error:
        raise UsageError(f"cannot read the key file {path}: {(error.strerror or str(error)).lower()}") from None
    except ValueError as error:
        raise UsageError(f"the key file {path} is not usable: {error}") from None


def make_key(path: Path) -> None:
    """Make the new file ``path`` with a new key in it. Raises :class:`UsageError`."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise UsageError(f"cannot make the key file {path}: {(error.strerror or str(error)).lower()}") from None
    with os.fdopen(descriptor, "wb") as file:
        file.write(base64.b64encode(secrets.token_bytes(KEY_BYTES)) + b"\n")
    print(f"Made a new key in {path}: without it the disk cannot be read.", file=sys.stderr)
