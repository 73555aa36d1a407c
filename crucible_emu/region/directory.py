"""The region directory: ``region.json`` and the extent files, made, checked and found (on-disk-format.md §1).

What it guarantees: a directory with a ``region.json`` is a whole region. The real program writes that file first and
the extents after it, so that a crash in between leaves a region which promises more than there is (§1.4); here it is
written last, after everything else is durable. Until then ``.creating`` marks the directory as unfinished: making the
region again there starts over, and files that nobody marked are never overwritten.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

from crucible_emu.errors import UsageError
from crucible_emu.geometry import DATABASE_VERSION, GeometryError, RegionDefinition
from crucible_emu.logs import get_logger
from crucible_emu.region import layout
from crucible_emu.region.layout import ExtentLayout, ExtentMetadata
from crucible_emu.region.storage import Storage, explain

log = get_logger(__name__)

DEFINITION_NAME = "region.json"
JOURNALED_VERSION = 1001
"""In ``region.json`` while flushes may be in the journal that are not in the extents: the real program refuses it."""
JOURNAL_NAME = ".journal"
_VERSIONS = ("database_read_version", "database_write_version")
CREATING_NAME = ".creating"
_TEMPORARY_NAME = ".tmp-region.json"
EXTENTS_PER_DIRECTORY = 4096
HEX_DIGITS = frozenset("0123456789ABCDEF")


class Unsettled(UsageError):
    """Somebody wants to look at extents that lag behind their journal."""


def is_unsettled(storage: Storage, region: Path) -> bool:
    """Whether flushes may be in the journal that are not in the extents."""
    return storage.exists(region / JOURNAL_NAME)


def refuse_unsettled(storage: Storage, region: Path) -> None:
    """Raises :class:`Unsettled` where flushes may be in the journal that are not in the extents."""
    if is_unsettled(storage, region):
        raise Unsettled(
            f"the region in {region} has flushes in its journal that are not in its extents yet: wait until whoever "
            "serves it has been quiet for a moment, or open it read-write once if nobody does"
        )


def read_definition(storage: Storage, region: Path) -> RegionDefinition:
    """The definition in ``region.json``. Raises :class:`UsageError` where ``region`` is no region."""
    return read_marked_definition(storage, region)[0]


def read_marked_definition(storage: Storage, region: Path) -> tuple[RegionDefinition, bool]:
    """The same, and whether it is marked: there may be a journal."""
    path = region / DEFINITION_NAME
    try:
        members = json.loads(read_file(storage, path))
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"{region} is no region: {_what_is_missing(storage, region)}") from None
    except OSError as error:
        raise explain(error, "reading", path) from error
    except ValueError as error:
        raise UsageError(f"{path} is not JSON ({error}): restore it from a replica's directory") from error
    if not isinstance(members, dict):
        raise UsageError(f"{path} holds no JSON object: restore it from a replica's directory")
    journaled = all(members.get(name) == JOURNALED_VERSION for name in _VERSIONS)
    if journaled:
        members |= dict.fromkeys(_VERSIONS, DATABASE_VERSION)
    try:
        return RegionDefinition.from_json(members), journaled
    except GeometryError as error:
        raise UsageError(f"{path} defines no usable region: {error}") from error


def _what_is_missing(storage: Storage, region: Path) -> str:
    if storage.exists(region / CREATING_NAME):
        return "making it was cut off, make it again"
    if storage.exists(region):
        return f"it has no {DEFINITION_NAME}"
    return "there is nothing of that name"


def read_file(storage: Storage, path: Path) -> bytes:
    """All bytes of a small file. Raises OSError."""
    descriptor = storage.open(path, os.O_RDONLY)
    try:
        return storage.pread(descriptor, storage.file_bytes(descriptor), 0)
    finally:
        storage.close(descriptor)


def write_definition(storage: Storage, region: Path, definition: RegionDefinition, *, journaled: bool = False) -> None:
    """Write ``region.json`` so that it is the old one or the new one at any moment. Raises OSError."""
    temporary = region / _TEMPORARY_NAME
    text = definition.dumps()
    if journaled:
        text = json.dumps(definition.as_json() | dict.fromkeys(_VERSIONS, JOURNALED_VERSION), indent=2) + "\n"
    write_file(storage, temporary, text.encode())
    storage.rename(temporary, region / DEFINITION_NAME)
    storage.sync_directory(region)


def write_file(storage: Storage, path: Path, data: bytes) -> None:
    """Make or overwrite a small file, durably but for its name. Raises OSError."""
    descriptor = storage.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        storage.pwrite(descriptor, data, 0)
        storage.fsync(descriptor)
    finally:
        storage.close(descriptor)


def create(storage: Storage, region: Path, definition: RegionDefinition) -> bool:
    """Make the region's files; on failure nothing of them stays. Whether the directory itself is new.

    Raises :class:`UsageError` where something is in the way, :class:`errors.IoError` where the disk fails.
    """
    try:
        _check_place(storage, region)
        made_directory = not storage.exists(region)
        storage.make_directories(region)
    except OSError as error:
        raise explain(error, "making the region", region) from error
    try:
        write_file(storage, region / CREATING_NAME, b"")
        storage.sync_directory(region)
        _create_extents(storage, region, definition)
        storage.sync_tree(region)
        write_definition(storage, region, definition)
        storage.unlink(region / CREATING_NAME)
        storage.sync_directory(region)
        storage.sync_directory(region.parent)
    except OSError as error:
        undo(storage, region, made_directory)
        raise explain(error, "making the region", region) from error
    return made_directory


def _check_place(storage: Storage, region: Path) -> None:
    if storage.exists(region / DEFINITION_NAME):
        raise UsageError(f"{region} holds a region already: choose another directory, or delete it first")
    if not storage.exists(region) or storage.exists(region / CREATING_NAME):
        return
    found = list(filter(_is_extent_directory, storage.names(region)))
    if found:
        raise UsageError(
            f"{region} has no {DEFINITION_NAME} but holds extents ({min(found)}/): "
            "restore that file, or choose another directory"
        )


def extend(storage: Storage, region: Path, extent_count: int) -> RegionDefinition:
    """Add extents of zeros to a region that nobody has open, until there are ``extent_count``; its new definition.

    The extents are durable before ``region.json`` promises them (the real program does it the other way round, §1.4).
    What an interrupted call left lies beyond the last extent, where nothing reads it; it is used by the next call.
    Raises :class:`UsageError` for fewer extents than there are or where a foreign file is in the way,
    :class:`errors.IoError` where the disk fails.
    """
    definition = read_definition(storage, region)
    refuse_unsettled(storage, region)
    if extent_count < definition.extent_count:
        raise UsageError(f"{region} will not shrink from {definition.extent_count} to {extent_count} extents")
    extended = replace(definition, extent_count=extent_count)
    if extended == definition:
        return definition
    try:
        for extent_id in range(definition.extent_count, extent_count):
            path = layout.extent_path(region, extent_id)
            if storage.exists(path) and not _is_fresh(storage, path, definition):
                raise UsageError(f"{path} is in the way: it is no extent of this region, move it elsewhere")
        _create_extents(storage, region, extended, definition.extent_count)
        storage.sync_tree(region)
        write_definition(storage, region, extended)
    except OSError as error:
        raise explain(error, "extending the region", region) from error
    return extended


def _is_fresh(storage: Storage, path: Path, definition: RegionDefinition) -> bool:
    """Whether the file is an extent to which nothing was ever flushed, or one that was never finished."""
    geometry = ExtentLayout(definition.block_size, definition.blocks_per_extent)
    descriptor = storage.open(path, os.O_RDONLY)
    try:
        fresh = _fresh_tail(geometry)
        return storage.pread(descriptor, geometry.file_bytes, geometry.bitmap_offset) in (b"", bytes(len(fresh)), fresh)
    finally:
        storage.close(descriptor)


def _fresh_tail(geometry: ExtentLayout) -> bytes:
    """Bitmap and metadata of an extent of zeros."""
    return bytes(geometry.bitmap_bytes) + ExtentMetadata(False, 0, 0).pack()


def _create_extents(storage: Storage, region: Path, definition: RegionDefinition, first: int = 0) -> None:
    geometry = ExtentLayout(definition.block_size, definition.blocks_per_extent)
    tail = _fresh_tail(geometry)
    for extent_id in range(first, definition.extent_count):
        if extent_id % EXTENTS_PER_DIRECTORY == 0:
            storage.make_directories(layout.extent_path(region, extent_id).parent)
        descriptor = storage.open(
            layout.extent_name(str(region), extent_id), os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666
        )
        try:
            storage.ftruncate(descriptor, geometry.file_bytes)
            storage.pwrite(descriptor, tail, geometry.bitmap_offset)
        finally:
            storage.close(descriptor)


def undo(storage: Storage, region: Path, made_directory: bool) -> None:
    """Remove what :func:`create` made, as far as the disk lets us.

    The definition goes first: from then on there is no region, and a directory that has one is a whole region.
    """
    try:
        for name in (DEFINITION_NAME, _TEMPORARY_NAME):
            storage.remove_tree(region / name)
        if made_directory:
            storage.remove_tree(region)
        else:
            for name in storage.names(region) if storage.exists(region) else ():
                if name == CREATING_NAME or _is_extent_directory(name):
                    storage.remove_tree(region / name)
    except OSError as error:
        log.warning("an unfinished region stays", directory=str(region), reason=error.strerror)


def _is_extent_directory(name: str) -> bool:
    return len(name) == 2 and set(name) <= HEX_DIGITS


def take_lock(storage: Storage, region: Path) -> int:
    """The advisory lock that keeps a second process from opening the region read-write, as a descriptor.

    The real program neither takes nor honours it. Raises :class:`UsageError` where somebody has it.
    """
    try:
        descriptor = storage.lock(region)
    except OSError as error:
        raise explain(error, "locking the region", region) from error
    if descriptor is None:
        raise UsageError(f"the region in {region} is open read-write elsewhere: stop that, or open it read-only")
    return descriptor


def names_beside_extents(storage: Storage, region: Path, extent_count: int) -> dict[int, list[str]]:
    """Extents beside which there is more than their file (a repair's directories, a database), and its names.

    *Optimisation*: one look at each directory instead of five at each extent.
    """
    found: dict[int, list[str]] = {}
    for first in range(0, extent_count, EXTENTS_PER_DIRECTORY):
        parent = layout.extent_path(region, first).parent
        try:
            names = storage.names(parent)
        except FileNotFoundError:
            continue  # opening the first of its extents says that it is missing
        except OSError as error:
            raise explain(error, "looking into", parent) from error
        for name in names:
            stem, dot, _ = name.partition(".")
            if dot and len(stem) == 3 and set(stem) <= HEX_DIGITS:
                extent_id = first + int(stem, 16)
                if extent_id < extent_count:
                    found.setdefault(extent_id, []).append(name)
    return found
