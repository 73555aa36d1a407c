"""Copying whole extents from another replica: the procedure of repair and of clone, and clones of local directories.

What it is for: a repair overwrites one extent with that of a mirror, a clone overwrites all of them with those of a
read-only region (on-disk-format.md §4.8, §7.3). Where the files come from is a :class:`RepairSource`: an HTTP client
of a repair service, or :class:`LocalSource`, a directory on this machine.

What it guarantees: :func:`copy_extent` replaces an extent by a checked copy or leaves it as it was (see
:mod:`crucible_emu.region.repair_files`). A source is asked whether it is still ready *after* the bytes arrived: a
source that began to write meanwhile has spoilt them.

There is one procedure, a coroutine. A network source waits in it; a local one waits for nothing, so that
:func:`run_now` can run it without an event loop. What takes long and is not the network (a sync, hashing a whole
extent) goes through the parameter ``in_thread``.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import replace as replace_fields
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar
from uuid import UUID

from crucible_emu import errors
from crucible_emu.geometry import RegionDefinition
from crucible_emu.region import layout, snapshot
from crucible_emu.region.directory import read_definition
from crucible_emu.region.file_copy import copy_file
from crucible_emu.region.layout import ExtentLayout
from crucible_emu.region.repair_files import (
    Download,
    FileType,
    check_copy,
    offered_types,
    present_files,
    replace,
)
from crucible_emu.region.storage import OsStorage, Storage
from crucible_emu.region.view import RegionView

STREAM_BYTES = 1 << 20

Result = TypeVar("Result")
InThread = Callable[[Callable[[], None]], Awaitable[None]]
"""Runs a function that takes long, such as ``trio.to_thread.run_sync``."""


class RepairSource(Protocol):
    """Where the files of extents come from: the routes of the repair service (§7.1)."""

    async def files(self, extent_id: int) -> Sequence[str]:
        """Names of the extent's files. Raises :class:`errors.RepairRequestError`."""
        ...

    def stream(self, extent_id: int, kind: FileType) -> AsyncGenerator[bytes, None]:
        """A file's bytes. Raises :class:`errors.RepairRequestError` or :class:`errors.RepairStreamError`."""
        ...

    async def ready(self, extent_id: int) -> bool:
        """Whether the extent does not change: its region is read-only or it is closed."""
        ...


def check_compatible(source: RegionDefinition, target: RegionDefinition) -> None:
    """Whether ``target`` can become a clone of ``source``: all but the UUID is equal, and the UUID is not.

    Raises :class:`errors.RegionIncompatible` with the name of the first field that differs. The database versions
    are equal in every definition that could be read.
    """
    for field, name in (
        ("block_size", "block_size"),
        ("blocks_per_extent", "extent_size"),
        ("extent_count", "extent_count"),
        ("encrypted", "encrypted"),
    ):
        if getattr(source, field) != getattr(target, field):
            raise errors.RegionIncompatible(name)
    if source.uuid == target.uuid:
        raise errors.RegionIncompatible("UUIDs are the same")


async def _at_once(work: Callable[[], None]) -> None:
    work()


async def copy_extent(
    storage: Storage,
    region: Path,
    extent_id: int,
    geometry: ExtentLayout,
    source: RepairSource,
    *,
    cloning: bool,
    in_thread: InThread = _at_once,
) -> None:
    """Overwrite the extent, which must be closed, with that of ``source`` (§7.3, §7.4).

    Raises :class:`errors.RepairFilesInvalid`, :class:`errors.RepairRequestError`, :class:`errors.RepairStreamError`,
    :class:`errors.IoError` for an earlier repair that is not finished, or :class:`OSError`. Until the copy is whole
    the extent is untouched and what arrived is removed; afterwards an interruption leaves the new extent, or a
    ``NNN.replace`` which the next read-write open finishes.
    """
    with Download(storage, region, extent_id, geometry) as download:
        types = offered_types(await source.files(extent_id), download.extent, cloning=cloning)
        for kind in types:
            with download.receive(kind) as file:
                # A full disk must not leave the request hanging until somebody collects it.
                async with aclosing(source.stream(extent_id, kind)) as pieces:
                    async for piece in pieces:
                        await in_thread(partial(file.write, piece))
                await in_thread(file.finish)
        if not await source.ready(extent_id):
            raise errors.RepairRequestError(f"extent {extent_id} was opened at the source while it was copied")
        if download.may_be_moved(types):
            await in_thread(download.move_into_place)
            return
        await in_thread(download.commit)
    await in_thread(lambda: replace(storage, region, extent_id, geometry))


def run_now(procedure: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine that waits for nothing to its end. Raises :class:`RuntimeError` where it does wait."""
    try:
        procedure.send(None)
    except StopIteration as finished:
        result: Result = finished.value
        return result
    procedure.close()
    raise RuntimeError("this procedure waits for something and needs an event loop")


class LocalSource:
    """A region directory on this machine; the caller sees to it that nobody writes to it."""

    def __init__(self, storage: Storage, region: Path) -> None:
        self._storage = storage
        self._region = region

    async def files(self, extent_id: int) -> Sequence[str]:
        return present_files(self._storage, layout.extent_path(self._region, extent_id))

    async def stream(self, extent_id: int, kind: FileType) -> AsyncGenerator[bytes, None]:
        extent = layout.extent_path(self._region, extent_id)
        descriptor = self._storage.open(extent.with_name(kind.name_of(extent)), os.O_RDONLY)
        try:
            size = self._storage.file_bytes(descriptor)
            for offset in range(0, size, STREAM_BYTES):
                yield self._storage.pread(descriptor, min(STREAM_BYTES, size - offset), offset)
        finally:
            self._storage.close(descriptor)

    async def ready(self, extent_id: int) -> bool:
        return True


def source_directory(region: Path, snapshot_name: str | None) -> Path:
    """The directory to clone: the region itself or one of its snapshots. Raises :class:`errors.UsageError`."""
    if snapshot_name is None:
        return region
    read_definition(OsStorage(), region)  # a wrong region is the better complaint
    directory = snapshot.snapshot_path(region, snapshot_name)
    if not directory.is_dir():
        known = ", ".join(snapshot.list_snapshots(region)) or "none"
        raise errors.UsageError(f"{region} has no snapshot {snapshot_name!r}; its snapshots are: {known}")
    return directory


@contextmanager
def unwritten(region: RegionView) -> Iterator[None]:
    """Nobody has the region open read-write inside this block. Raises :class:`errors.UsageError` where somebody has.

    *Safety*: a directory that is being written has no one moment that could be copied.
    """
    lock = region.storage.lock(region.path)
    if lock is None:
        raise errors.UsageError(
            f"the region in {region.path} is open read-write elsewhere: stop that process, or use a snapshot of it"
        )
    try:
        yield
    finally:
        region.storage.close(lock)


def clone_definition(source: RegionDefinition, uuid: UUID) -> RegionDefinition:
    """The definition of a new clone: that of its source under another UUID."""
    return replace_fields(source, uuid=uuid)


def clone_over(source: RegionView, target: RegionView, progress: Callable[[], None] = lambda: None) -> None:
    """Overwrite every extent of ``target``, which nobody has open, with that of ``source``; progress per extent.

    Raises what :func:`check_compatible` and :func:`copy_extent` raise. Interrupted, it leaves some extents old and some
    new: such a region is no clone until it has been repeated.
    """
    check_compatible(source.definition, target.definition)
    storage = target.storage
    files = LocalSource(source.storage, source.path)
    for extent_id in range(target.definition.extent_count):
        run_now(copy_extent(storage, target.path, extent_id, target.layout, files, cloning=True))
        progress()


def clone_new(
    source: RegionView, target: Path, definition: RegionDefinition, progress: Callable[[], None] = lambda: None
) -> None:
    """Make the region ``definition`` in the empty directory ``target`` out of the extents of ``source``.

    The extent files are reflinked where the file system can and checked like any copy. Nothing is there that could be
    lost, so there is no dance: the caller throws the directory away when this raises.
    """
    check_compatible(source.definition, definition)
    storage: Storage = OsStorage()
    for extent_id in range(definition.extent_count):
        original = layout.extent_path(source.path, extent_id)
        copy = layout.extent_path(target, extent_id)
        storage.make_directories(copy.parent)
        for name in present_files(source.storage, original):
            copy_file(storage, original.with_name(name), copy.with_name(name))
        check_copy(storage, copy.parent, extent_id, source.layout)
        progress()
    (target / "region.json").write_text(definition.dumps())
    storage.sync_tree(target)
