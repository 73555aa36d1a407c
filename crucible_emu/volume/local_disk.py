"""A disk in a directory: three regions side by side, opened in one process.

    DIR/disk.json             identity, generation, and what the regions are
    DIR/region-0  -1  -2      the three replicas, ordinary region directories

What it is for: one command gives a mirrored disk on one machine. The regions are the real thing: each can be looked at,
verified, exported or served by a Downstairs of its own.

What it guarantees: creation is written down before it begins (``created: false``, with all uuids), so a directory that
was half-made when the power went is finished by the next open instead of being refused. The generation is raised
and durable before the disk goes into service, so it is above everything that any replica has stored.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import numpy as np

from crucible_emu.downstairs.local import LocalDownstairs
from crucible_emu.downstairs.together import FlushesTogether
from crucible_emu.encryption import Cipher
from crucible_emu.errors import UsageError
from crucible_emu.geometry import (
    BLOCK_SIZE_DEFAULT,
    GeometryError,
    RegionDefinition,
    check_block_size,
    cut_into_extents,
)
from crucible_emu.integrity import ENCRYPTED, NONCE_BYTES, TAG_BYTES, BlockContexts
from crucible_emu.region import STAGED_BYTES_MAX, Region
from crucible_emu.region.directory import DEFINITION_NAME
from crucible_emu.upstairs.core import UpstairsCore
from crucible_emu.upstairs.driver import Upstairs
from crucible_emu.upstairs.guest import Guest
from crucible_emu.upstairs.links import Connector
from crucible_emu.upstairs.local_link import LocalConnector
from crucible_emu.upstairs.members import Identity
from crucible_emu.upstairs.rules import CLIENTS
from crucible_emu.volume.in_service import Observe, in_service
from crucible_emu.volume.kept_running import kept_running

DISK_FILE = "disk.json"
KEY_CHECK_BYTES = 16


def region_path(directory: Path, client: int) -> Path:
    """Where replica ``client`` lives."""
    return directory / f"region-{client}"


@dataclass(frozen=True, slots=True)
class DiskFile:
    """What ``disk.json`` says. ``definitions`` of the three regions differ in their uuid only. ``filling`` names the
    image whose copying in has begun and has not ended. ``key_check`` is a block sealed with the key of an encrypted
    disk, made when that is opened for the first time."""

    id: UUID
    generation: int
    created: bool
    definitions: tuple[RegionDefinition, ...]
    filling: str | None = None
    key_check: str | None = None

    def dumps(self) -> str:
        members = {
            "id": str(self.id),
            "generation": self.generation,
            "created": self.created,
            "filling": self.filling,
            "key_check": self.key_check,
            "regions": [definition.as_json() for definition in self.definitions],
        }
        return json.dumps(members, indent=2) + "\n"

    @classmethod
    def loads(cls, text: str, source: Path) -> DiskFile:
        """Raises :class:`UsageError` that names ``source``."""
        try:
            members: dict[str, Any] = json.loads(text)
            found = cls(
                UUID(members["id"]),
                int(members["generation"]),
                bool(members["created"]),
                tuple(RegionDefinition.from_json(region) for region in members["regions"]),
                members.get("filling"),
                members.get("key_check"),
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UsageError(f"{source} is not the file of a disk: {error!r}") from None
        if len(found.definitions) != len(CLIENTS):
            raise UsageError(f"{source} names {len(found.definitions)} regions, a disk has {len(CLIENTS)}")
        return found


def read_disk_file(directory: Path) -> DiskFile | None:
    """The disk in ``directory``, ``None`` where there is none yet. Raises :class:`UsageError`."""
    path = directory / DISK_FILE
    try:
        return DiskFile.loads(path.read_text(encoding="utf-8"), path)
    except FileNotFoundError:
        pass
    except NotADirectoryError:
        raise UsageError(f"{directory} is no directory: give an empty or a new one, or that of a disk") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: {error}") from None
    if directory.exists() and any(directory.iterdir()):
        raise UsageError(f"{directory} is not empty and holds no {DISK_FILE}: give an empty or a new directory")
    return None


def _write_disk_file(directory: Path, disk: DiskFile) -> None:
    """Replace ``disk.json`` durably: either the old one or the new one is there, whatever happens."""
    path, fresh = directory / DISK_FILE, directory / f".{DISK_FILE}.new"
    try:
        with fresh.open("w", encoding="utf-8") as file:
            file.write(disk.dumps())
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        with contextlib.suppress(OSError):
            fresh.unlink()
        raise UsageError(f"cannot write {path}: {(error.strerror or str(error)).lower()}") from None


def mark_filled(directory: Path) -> None:
    """The image is in, completely and durably."""
    disk = read_disk_file(directory)
    if disk is not None:
        _write_disk_file(directory, replace(disk, filling=None))


def create(
    directory: Path,
    size_bytes: int,
    *,
    block_size: int = BLOCK_SIZE_DEFAULT,
    blocks_per_extent: int | None = None,
    encrypted: bool = False,
    fill_from: Path | None = None,
) -> DiskFile:
    """Make an unwritten disk in ``directory``, which is new or empty; ``fill_from`` will be copied in before it is
    used (then call :func:`mark_filled`). Raises :class:`UsageError`."""
    try:
        check_block_size(block_size)
        if blocks_per_extent is None:
            blocks_per_extent, extent_count = cut_into_extents(size_bytes, block_size)
        else:
            # Checked on its own first: with a size of zero there is nothing to divide by.
            extent_bytes = RegionDefinition(block_size, blocks_per_extent, 0, uuid4()).extent_bytes
            extent_count, rest = divmod(size_bytes, extent_bytes)
            if rest or extent_count < 1:
                raise UsageError(
                    f"size {size_bytes} is not a whole number of extents of {blocks_per_extent} blocks of "
                    f"{block_size} bytes: take a multiple of {block_size * blocks_per_extent}"
                )
        definitions = tuple(
            RegionDefinition(block_size, blocks_per_extent, extent_count, uuid4(), encrypted) for _ in CLIENTS
        )
    except GeometryError as error:
        raise UsageError(str(error)) from None
    if read_disk_file(directory) is not None:
        raise UsageError(f"{directory} holds a disk already")
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make the directory {directory}: {(error.strerror or str(error)).lower()}") from None
    disk = DiskFile(uuid4(), 0, False, definitions, None if fill_from is None else str(fill_from.resolve()))
    _write_disk_file(directory, disk)
    return _finish_creation(directory, disk)


def _finish_creation(directory: Path, disk: DiskFile) -> DiskFile:
    """Make the regions that are not there yet; a region has its definition only when it is whole."""
    for client, definition in enumerate(disk.definitions):
        path = region_path(directory, client)
        if not (path / DEFINITION_NAME).exists():
            Region.create(path, definition).close()
    disk = replace(disk, created=True)
    _write_disk_file(directory, disk)
    return disk


def _key_check(cipher: Cipher) -> str:
    """A block of zeros sealed with the key: nonce, tag and ciphertext, base64."""
    sealed, contexts = cipher.encrypt_blocks(np.zeros((1, KEY_CHECK_BYTES), np.uint8))
    assert contexts.nonce is not None and contexts.tag is not None
    return base64.b64encode(contexts.nonce.tobytes() + contexts.tag.tobytes() + sealed.tobytes()).decode("ascii")


def _key_fits(cipher: Cipher, key_check: str) -> bool:
    """Whether the key opens that block. *Safety*: blocks written with two keys are lost to both."""
    try:
        stored = np.frombuffer(base64.b64decode(key_check, validate=True), np.uint8)
        nonce, tag, sealed = np.split(stored[None, :].copy(), [NONCE_BYTES, NONCE_BYTES + TAG_BYTES], axis=1)
    except (ValueError, TypeError):
        return False
    contexts = BlockContexts(np.full(1, ENCRYPTED, np.uint8), np.zeros(1, np.uint64), nonce, tag)
    return sealed.shape[1] == KEY_CHECK_BYTES and cipher.decrypt_blocks(np.ascontiguousarray(sealed), contexts) is None


@contextlib.contextmanager
def _open_regions(directory: Path, disk: DiskFile, staged_bytes_max: int) -> Iterator[list[Region]]:
    with contextlib.ExitStack() as stack:
        regions = []
        for client, definition in enumerate(disk.definitions):
            region = Region.open(region_path(directory, client), staged_bytes_max=staged_bytes_max)
            stack.callback(region.close)
            if region.definition != definition:
                raise UsageError(
                    f"{region.path} is region {region.definition.uuid}, not {definition.uuid} as {DISK_FILE} says: "
                    "put the right directory back"
                )
            regions.append(region)
        yield regions


@asynccontextmanager
async def open_disk(
    directory: Path,
    *,
    cipher: Cipher | None = None,
    fill_from: Path | None = None,
    observe: Observe | None = None,
    staged_bytes_max: int = STAGED_BYTES_MAX,
) -> AsyncIterator[Guest]:
    """The disk in ``directory``, in service inside the block; its replicas are made equal first where they differ.

    ``staged_bytes_max`` bounds the memory of each replica for un-flushed blocks. Leaving the block flushes. Raises
    :class:`UsageError`, :class:`~crucible_emu.errors.CrucibleError`.
    """
    disk = read_disk_file(directory)
    if disk is None:
        raise UsageError(f"{directory} holds no disk")
    if disk.filling is not None and fill_from is None:
        raise UsageError(
            f"the disk in {directory} holds only a part of {disk.filling}, because copying it in was interrupted: "
            f"give --image {disk.filling} to do it again, or remove the directory"
        )
    encrypted = disk.definitions[0].encrypted
    if encrypted and cipher is None:
        raise UsageError(f"the disk in {directory} is encrypted: give its key")
    if cipher is not None and not encrypted:
        raise UsageError(f"the disk in {directory} is not encrypted: leave the key out")
    if cipher is not None and disk.key_check is not None and not _key_fits(cipher, disk.key_check):
        raise UsageError(f"the key is not the one that the disk in {directory} was written with: give that one")
    if not disk.created:
        disk = _finish_creation(directory, disk)
    with _open_regions(directory, disk, staged_bytes_max) as regions:
        stored = max(int(region.extent_versions()[0].max(initial=0)) for region in regions)
        if cipher is not None and disk.key_check is None:
            disk = replace(disk, key_check=_key_check(cipher))
        disk = replace(disk, generation=max(disk.generation, stored) + 1)
        _write_disk_file(directory, disk)
        identity = Identity(disk.id, uuid4(), encrypted, remote=False)
        together = FlushesTogether()
        downstairs = [LocalDownstairs(region, together=together) for region in regions]
        connectors: list[Connector] = [
            LocalConnector(one, identity.upstairs_id, identity.session_id) for one in downstairs
        ]
        core = UpstairsCore(identity, disk.generation, disk.definitions[0])
        upstairs = Upstairs(core, connectors, cipher=cipher)
        if observe is not None:
            observe(upstairs, None)
        async with kept_running(*(one.run for one in downstairs)), in_service(upstairs) as guest:
            yield guest
