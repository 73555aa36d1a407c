"""A file into a new disk, and a disk into a file.

What it guarantees: :func:`fill` returns when the disk holds the file and is ready for use; what is wrong or interrupted
before that takes the unfinished disk away again. The file of a :func:`copy_out` appears under its name when it is
whole.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from crucible_emu.cli.progress import Progress
from crucible_emu.client.failures import ServiceError, ServiceUnreachable
from crucible_emu.errors import UsageError
from crucible_emu.logs import get_logger
from nexus.api.external_documents import Disk, DiskCreate, DistributedBackend, FinalizeDisk, ImportingBlocksSource
from nexus.api.members import BlockSize
from nexus.cli.session import Session
from nexus.client.imports import Imported, import_blocks

if TYPE_CHECKING:
    from crucible_emu.client.copying import Copied

TAKE_AWAY_S_MAX = 60.0

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Wanted:
    """The disk to be made. ``size_bytes``: ``None`` for what the file needs."""

    name: str
    description: str
    size_bytes: int | None
    block_size: BlockSize


@dataclass(frozen=True, slots=True)
class Filled:
    """The disk, and what its filling came to."""

    disk: Disk
    came_to: Imported


def disk_size(file_bytes: int, step_bytes: int) -> int:
    """The smallest size of a disk that holds so many bytes."""
    return max(1, -(-file_bytes // step_bytes)) * step_bytes


async def fill(nexus: Session, wanted: Wanted, file: Path, snapshot: str | None, *, shown: bool) -> Filled:
    """Make the disk of ``file``, and where asked for a snapshot of it. Raises :class:`UsageError` for a file that does
    not fit."""
    with file.open("rb") as source:
        file_bytes = source.seek(0, os.SEEK_END)
        source.seek(0)
        size_bytes = wanted.size_bytes or disk_size(file_bytes, nexus.access.size_step_bytes)
        if file_bytes > size_bytes:
            raise UsageError(f"{file} has {file_bytes} bytes and the disk {size_bytes}: give a --size that holds it")
        blank = ImportingBlocksSource(type="importing_blocks", block_size=wanted.block_size)
        body = DiskCreate(
            name=wanted.name,
            description=wanted.description,
            size=size_bytes,
            disk_backend=DistributedBackend(type="distributed", disk_source=blank),
        )
        disk = await nexus.external.disk_create(body, nexus.project)
        name = str(disk.id)
        try:
            await nexus.external.disk_bulk_write_import_start(name)
            with Progress(f"importing {file.name}", file_bytes, shown=shown) as progress:
                came_to = await import_blocks(nexus.external, name, source, disk.block_size, progress)
            await nexus.external.disk_bulk_write_import_stop(name)
            await nexus.external.disk_finalize_import(name, FinalizeDisk(snapshot_name=snapshot))
        except BaseException:
            await _take_away(nexus, name)
            raise
    return Filled(await nexus.external.disk_view(name), came_to)


async def _take_away(nexus: Session, disk: str) -> None:
    """Delete an unfinished disk, as far as that can be done: an import is stopped and finished first."""
    steps: tuple[Callable[[], Awaitable[None]], ...] = (
        lambda: nexus.external.disk_bulk_write_import_stop(disk),
        lambda: nexus.external.disk_finalize_import(disk, FinalizeDisk()),
        lambda: nexus.external.disk_delete(disk),
    )
    refused: Exception | None = None
    with trio.move_on_after(TAKE_AWAY_S_MAX, shield=True) as scope:
        for step in steps:
            try:
                await step()
                refused = None
            except (ServiceError, ServiceUnreachable) as error:
                refused = error  # a step that has nothing to do is refused; whether all went well the last one says
    if refused is not None or scope.cancelled_caught:
        log.warning("an unfinished disk is left", disk=disk, reason=str(refused or "no answer in time"))


def copy_out(uri: str, file: Path, size_bytes: int, *, shown: bool) -> Copied:
    """All bytes of the disk at ``uri``, in ``file``."""
    from crucible_emu.client import sync  # here, because numpy stands behind it

    with Progress(f"exporting to {file.name}", size_bytes, shown=shown) as progress, sync.open(uri) as disk:
        before = 0

        def tell(done_bytes: int, _: int) -> None:
            nonlocal before
            progress(done_bytes - before)
            before = done_bytes

        return disk.copy_out(file, progress=tell)
