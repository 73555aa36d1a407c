"""Snapshots without ZFS: ``<region>/.zfs/snapshot/<name>/``, a copy that a Downstairs can serve read-only.

What it is for: the real system takes a ZFS snapshot as part of a flush and serves its hidden directory. Here the same
directory is made by copying (on-disk-format.md §5.3): ``region.json``, the pem files and every extent, reflinked where
the file system can, else sparse. A real Downstairs serves it too, and takes one that exists as done.

What it guarantees: a directory of that name is a whole snapshot and durable. It grows under another name, is synced,
then renamed, then the names are synced; whatever a crash leaves has a name that begins with a dot, which no snapshot
has, and is removed by the next attempt. Asking again for a name that exists changes nothing.

What the caller owes: no extent file changes meanwhile. A region calls it at the end of a flush, before it admits
another write. Repair directories (``.copy``, ``.replace``, ``.completed``) are not copied: on a read-only file system
nobody could remove them.
"""

from __future__ import annotations

import re
from pathlib import Path

from crucible_emu.errors import SnapshotFailed
from crucible_emu.geometry import RegionDefinition
from crucible_emu.logs import get_logger
from crucible_emu.region import layout, sqlite_extent
from crucible_emu.region.file_copy import copy_file
from crucible_emu.region.storage import OsStorage, Storage

log = get_logger(__name__)

SNAPSHOTS = Path(".zfs") / "snapshot"
PEM_FILES = ("cert.pem", "key.pem", "root.pem")
NAME_CHARACTERS_MAX = 200
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]*", re.ASCII)
_MAKING, _DELETING = ".making-", ".deleting-"


def check_name(name: str) -> None:
    """Raises :class:`SnapshotFailed` for a name that ZFS would not take or that leads out of the directory."""
    if _NAME.fullmatch(name) is None or len(name) > NAME_CHARACTERS_MAX:
        raise SnapshotFailed(
            f"{name!r} cannot name a snapshot: take up to {NAME_CHARACTERS_MAX} letters, digits and _ . : -, "
            "not beginning with a dot, colon or hyphen"
        )


def snapshot_path(region: Path, name: str) -> Path:
    """The directory of a snapshot, whether it exists or not. Raises :class:`SnapshotFailed` for a bad name."""
    check_name(name)
    return region / SNAPSHOTS / name


def list_snapshots(region: Path, storage: Storage | None = None) -> list[str]:
    """Names of the snapshots of a region, sorted."""
    storage = storage or OsStorage()
    try:
        names = storage.names(region / SNAPSHOTS)
    except FileNotFoundError:
        return []
    return sorted(name for name in names if not name.startswith("."))


def take_snapshot(region: Path, name: str, definition: RegionDefinition, storage: Storage | None = None) -> Path:
    """Take the snapshot ``name``, or find that it was taken; its directory.

    Raises :class:`SnapshotFailed`, which says why; nothing of that name is there then.
    """
    storage = storage or OsStorage()
    target = snapshot_path(region, name)
    making = target.with_name(_MAKING + name)
    try:
        if storage.exists(target):
            # *Safety*: whoever made it may have been killed before its name was durable.
            storage.sync_directory(target.parent)
            return target
        storage.remove_tree(making)
        storage.make_directories(making)
        for directory in (region, region / SNAPSHOTS.parent):
            storage.sync_directory(directory)
        _copy_region(storage, region, making, definition.extent_count)
        storage.sync_tree(making)
        storage.rename(making, target)
        storage.sync_directory(target.parent)
    except OSError as error:
        _remove_attempt(storage, making)
        raise SnapshotFailed(f"{target}: {error.strerror or error}") from error
    return target


def _remove_attempt(storage: Storage, making: Path) -> None:
    """Give the space of a failed attempt back. *Optimisation*: the next attempt would do it too."""
    try:
        storage.remove_tree(making)
    except OSError as error:
        log.warning("snapshot leftovers stay", directory=str(making), reason=error.strerror)


def _copy_region(storage: Storage, region: Path, target: Path, extent_count: int) -> None:
    for name in ("region.json", *PEM_FILES):
        if storage.exists(region / name):
            copy_file(storage, region / name, target / name)
    for extent_id in range(extent_count):
        source, copy = layout.extent_path(region, extent_id), layout.extent_path(target, extent_id)
        storage.make_directories(copy.parent)
        copy_file(storage, source, copy)
        database = sqlite_extent.database_path(source)
        if storage.exists(database):
            for part in (database, *sqlite_extent.log_paths(source)):
                if storage.exists(part):
                    copy_file(storage, part, copy.with_name(part.name))


def delete_snapshot(region: Path, name: str, storage: Storage | None = None) -> None:
    """Delete a snapshot; one that is not there is fine. Nobody ever sees a half of it under its name."""
    storage = storage or OsStorage()
    target = snapshot_path(region, name)
    deleting = target.with_name(_DELETING + name)
    try:
        storage.remove_tree(deleting)
        if storage.exists(target):
            storage.rename(target, deleting)
            storage.sync_directory(target.parent)
            storage.remove_tree(deleting)
        elif storage.exists(target.parent):
            # *Safety*: it may have been renamed away by somebody who was killed before that was durable.
            storage.sync_directory(target.parent)
    except OSError as error:
        raise SnapshotFailed(f"{target} could not be deleted: {error.strerror or error}") from error


def sweep(region: Path, storage: Storage | None = None) -> None:
    """Remove what interrupted calls left, while nobody takes or deletes a snapshot of the region; afterwards every
    snapshot that is found is there for good. Raises :class:`OSError`."""
    storage = storage or OsStorage()
    try:
        names = storage.names(region / SNAPSHOTS)
    except (FileNotFoundError, NotADirectoryError):
        return
    for name in names:
        if name.startswith((_MAKING, _DELETING)):
            storage.remove_tree(region / SNAPSHOTS / name)
    storage.sync_directory(region / SNAPSHOTS)
