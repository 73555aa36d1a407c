"""Replacing an extent by a copy of another replica's, so that a power cut at any moment leaves the old or the new.

The dance of on-disk-format.md §7.3 and §7.4, with the directories beside the extent file ``NNN``:

    NNN.copy/       the copy grows here; meaningless until it is whole
    NNN.replace/    the copy is whole, checked and durable; from now on the new extent is the true one
    NNN.completed/  NNN holds the new extent and is durable; only the directory is left to remove

What it guarantees: each step begins when the one before is durable, and the name of the directory says how far things
are; :func:`settle_leftovers` finishes or drops whatever an interruption left, any number of times. The real program
copies whatever it was sent over the old extent; here nothing is replaced by a copy that would not open or whose blocks
are not what their contexts say (:func:`check_copy`), neither when the copy arrives nor when a leftover is replayed.

A raw copy of a raw extent needs only the first step: when it is whole, checked and durable it is renamed over ``NNN``,
which holds the old extent or the new one at any moment; what is left is a ``NNN.copy`` that every program removes. The
real program copies over the file in place; this writes half as much, and a repair is bound by what it writes.

A copy is either raw (``NNN`` alone) or, when an old region is cloned, SQLite (``NNN`` and ``NNN.db``, perhaps with its
log). What it is decides what the extent becomes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from enum import Enum
from pathlib import Path
from types import TracebackType

import numpy as np

from crucible_emu import errors
from crucible_emu.logs import get_logger
from crucible_emu.region import layout, sqlite_extent
from crucible_emu.region.file_copy import PIECE_BYTES, copy_file, is_zero
from crucible_emu.region.layout import ExtentLayout
from crucible_emu.region.storage import Storage
from crucible_emu.region.uncached import UncachedStorage, uncached
from crucible_emu.region.verify import bad_blocks
from crucible_emu.region.view import CHUNK_BYTES, look_through, open_extent

log = get_logger(__name__)

EXTENT_MODE = 0o644
RUN_BYTES = 1 << 20
COPY, REPLACE, COMPLETED = ".copy", ".replace", ".completed"


class FileType(Enum):
    """A file of an extent, by its name in the repair service's URLs (§7.1); in the order of a download."""

    DATA = "data"
    DATABASE = "db"
    DATABASE_SHM = "db_shm"
    DATABASE_WAL = "db_wal"

    def name_of(self, extent: Path) -> str:
        """File name of this part of the extent whose data file is ``extent``: underscores become hyphens."""
        return extent.name if self is FileType.DATA else f"{extent.name}.{self.value.replace('_', '-')}"


RAW = (FileType.DATA,)
CLONEABLE = (RAW, (FileType.DATA, FileType.DATABASE), tuple(FileType))
"""What a source may offer to a clone; a repair takes nothing but :data:`RAW` (§7.3)."""


def sibling(extent: Path, suffix: str) -> Path:
    """``NNN.copy`` and so on, beside ``NNN``."""
    return extent.with_name(extent.name + suffix)


def present_files(storage: Storage, extent: Path) -> list[str]:
    """Names of the extent's files that exist, in the order in which the repair service lists them (§7.1)."""
    names = (kind.name_of(extent) for kind in FileType)
    return [name for name in names if storage.exists(extent.with_name(name))]


def offered_types(names: Iterable[str], extent: Path, *, cloning: bool) -> tuple[FileType, ...]:
    """What the source's list of file names means. Raises :class:`errors.RepairFilesInvalid`."""
    offered = sorted(names)
    for types in CLONEABLE if cloning else (RAW,):
        if offered == sorted(kind.name_of(extent) for kind in types):
            return types
    wanted = "one, two or four files of an extent" if cloning else f"only {extent.name}"
    raise errors.RepairFilesInvalid(f"expected {wanted}, got {', '.join(offered) or 'none'}")


class Download:
    """A copy on its way in (§7.3): ``with Download(...) as download:``, then receive each file, then commit.

    Leaving the block without :meth:`commit` removes what arrived, so that another attempt can follow at once.
    """

    def __init__(self, storage: Storage, region: Path, extent_id: int, geometry: ExtentLayout) -> None:
        self._storage = storage
        self._bulk = uncached(storage, geometry.file_bytes)
        self._extent_id = extent_id
        self._geometry = geometry
        self.extent = layout.extent_path(region, extent_id)
        self.directory = sibling(self.extent, COPY)
        self._committed = False

    def __enter__(self) -> Download:
        for path in (sibling(self.extent, REPLACE), self.directory):
            if self._storage.exists(path):
                raise errors.IoError(f"{path} already exists: a repair of this extent is not finished, reopen it first")
        self._storage.make_directories(self.directory)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._committed:
            return
        try:
            self._storage.remove_tree(self.directory)
        except OSError as failure:
            # The next open removes it; what matters now is why the download failed.
            log.warning("repair leftovers stay", directory=str(self.directory), reason=failure.strerror)

    def receive(self, kind: FileType) -> Receiver:
        """The file to write the bytes of ``kind`` into: ``with download.receive(kind) as file``."""
        return Receiver(self._bulk, self.directory / kind.name_of(self.extent))

    def commit(self) -> None:
        """Check the copy, make it durable, declare it whole: steps 6 and 7. The source was asked again before.

        Reads and hashes the whole copy. Raises :class:`errors.RepairFilesInvalid`.
        """
        check_copy(self._bulk, self.directory, self._extent_id, self._geometry)
        self._storage.sync_directory(self.directory)
        self._storage.rename(self.directory, sibling(self.extent, REPLACE))
        self._committed = True
        self._storage.sync_directory(self.extent.parent)

    def may_be_moved(self, types: Sequence[FileType]) -> bool:
        """Whether the copy, of these types, may take the extent's place by a rename: nothing of the old format is in
        it or beside the extent."""
        return tuple(types) == RAW and present_files(self._storage, self.extent) == [self.extent.name]

    def move_into_place(self) -> None:
        """Check the copy, whose file is durable, and put it in place of the extent by one rename.

        *Optimisation*: nothing is written twice. An interruption leaves the old extent or the new one, whole, and a
        ``NNN.copy`` that every program removes when it opens the region.
        """
        check_copy(self._bulk, self.directory, self._extent_id, self._geometry)
        self._storage.rename(self.directory / self.extent.name, self.extent)
        self._committed = True
        self._storage.sync_directory(self.extent.parent)
        self._storage.remove_tree(self.directory)
        self._storage.sync_directory(self.extent.parent)


class Receiver:
    """A file that grows by :meth:`write`, in pieces of any size; zeros become holes. :meth:`finish` makes it durable,
    in any thread; leaving the block closes it.

    What arrives is collected, so that it is written in whole pieces at multiples of their size.
    """

    def __init__(self, storage: Storage, path: Path) -> None:
        self._storage = storage
        self._path = path
        self._held = memoryview(bytearray(RUN_BYTES))
        self._held_bytes = 0
        # Through the page cache each write is a piece: bigger ones make later overwrites slow (file_copy's essay).
        self._run_bytes = RUN_BYTES if isinstance(storage, UncachedStorage) else PIECE_BYTES
        self.size_bytes = 0

    def __enter__(self) -> Receiver:
        self._descriptor = self._storage.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, EXTENT_MODE)
        return self

    def write(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data)
        while view:
            piece = view[: RUN_BYTES - self._held_bytes]
            self._held[self._held_bytes : self._held_bytes + len(piece)] = piece
            self._held_bytes += len(piece)
            self.size_bytes += len(piece)
            view = view[len(piece) :]
            if self._held_bytes == RUN_BYTES:
                self._spill()

    def _spill(self) -> None:
        """Write what is collected, except for its zeros."""
        base = self.size_bytes - self._held_bytes
        begin = 0
        for start in range(0, self._held_bytes, PIECE_BYTES):
            end = min(start + PIECE_BYTES, self._held_bytes)
            zero = is_zero(self._held[start:end])
            if zero or end - begin >= self._run_bytes or end == self._held_bytes:
                stop = start if zero else end
                if begin < stop:
                    self._storage.pwrite(self._descriptor, self._held[begin:stop], base + begin)
                begin = end
        self._held_bytes = 0

    def finish(self) -> None:
        """Nothing more comes: set the length and sync. Raises :class:`OSError`."""
        self._spill()
        self._storage.ftruncate(self._descriptor, self.size_bytes)
        self._storage.fsync(self._descriptor)

    def __exit__(self, *_: object) -> None:
        self._storage.close(self._descriptor)


def check_copy(storage: Storage, directory: Path, extent_id: int, geometry: ExtentLayout) -> None:
    """*Safety*: nothing replaces an extent before it passed here.

    The files in ``directory`` must be an extent of that geometry which opens (length, version, metadata, context
    slots, and a context for every block if it is dirty) and whose every block is what its context says.
    Raises :class:`errors.RepairFilesInvalid`.
    """
    path = directory / layout.extent_path(Path(), extent_id).name
    try:
        extent = open_extent(storage, path, extent_id, geometry)
    except FileNotFoundError:
        raise errors.RepairFilesInvalid(f"{path} is missing") from None
    except errors.CrucibleError as error:
        raise errors.RepairFilesInvalid(f"{path}: {error}") from error
    try:
        for blocks in look_through(extent, 0, geometry.blocks, max(1, CHUNK_BYTES // geometry.block_size)):
            bad = bad_blocks(blocks)
            if bad.any():
                block = blocks.first + int(np.argmax(bad))
                raise errors.RepairFilesInvalid(f"{path}: block {block} is not what its context says")
    except (errors.BadContextSlot, errors.IoError) as error:
        raise errors.RepairFilesInvalid(f"{path}: {error}") from error
    finally:
        extent.close()


def replace(storage: Storage, region: Path, extent_id: int, geometry: ExtentLayout) -> None:
    """Put the copy in ``NNN.replace`` in place of the extent (§7.4); may be repeated from its start.

    Raises :class:`errors.RepairFilesInvalid`, and then nothing was touched.
    """
    extent = layout.extent_path(region, extent_id)
    source = sibling(extent, REPLACE)
    check_copy(storage, source, extent_id, geometry)
    _overwrite(storage, source / extent.name, extent)
    database = source / FileType.DATABASE.name_of(extent)
    if storage.exists(database):
        _overwrite(storage, database, sqlite_extent.database_path(extent))
    else:
        # What marks the old format goes last of all, after the raw file is durable.
        storage.remove_tree(sqlite_extent.database_path(extent))
    for path in sqlite_extent.log_paths(extent):
        if storage.exists(source / path.name):
            _overwrite(storage, source / path.name, path)
        else:
            storage.remove_tree(path)
    storage.sync_directory(extent.parent)
    completed = sibling(extent, COMPLETED)
    storage.remove_tree(completed)
    storage.rename(source, completed)
    storage.sync_directory(extent.parent)
    storage.remove_tree(completed)
    storage.sync_directory(extent.parent)


def _replay(storage: Storage, region: Path, extent_id: int, geometry: ExtentLayout) -> None:
    try:
        replace(storage, region, extent_id, geometry)
    except errors.RepairFilesInvalid as error:
        raise errors.RepairFilesInvalid(
            f"{error.detail}; it was left by a repair that was cut off, and cannot replace the extent: "
            "remove it if the extent itself verifies, else replace this region"
        ) from error


def _overwrite(storage: Storage, source: Path, target: Path) -> None:
    copy_file(storage, source, target)
    descriptor = storage.open(target, os.O_RDWR)
    try:
        storage.fsync(descriptor)
    finally:
        storage.close(descriptor)


def leftovers(storage: Storage, extent: Path) -> list[str]:
    """Names of what an interrupted repair left beside ``extent``."""
    found = (sibling(extent, suffix) for suffix in (COPY, COMPLETED, REPLACE))
    return [path.name for path in found if storage.exists(path)]


def settle_leftovers(
    storage: Storage, region: Path, extent_id: int, geometry: ExtentLayout, read_only: bool
) -> Sequence[str]:
    """What an open does before it looks at the extent (§1.5 steps 1 to 5); the names of the leftovers it found.

    Read-write: interrupted downloads go, interrupted replacements are finished, an SQLite extent becomes a raw one.
    Read-only: nothing is touched, because nothing needs it: a repair may be under way in another process.
    Raises :class:`errors.RepairFilesInvalid` for a replacement that must not happen, and what :func:`migrate` raises.
    """
    extent = layout.extent_path(region, extent_id)
    found = leftovers(storage, extent)
    if read_only:
        return found
    for suffix in (COPY, COMPLETED):
        if extent.name + suffix in found:
            storage.remove_tree(sibling(extent, suffix))
    if extent.name + REPLACE in found:
        _replay(storage, region, extent_id, geometry)
    if storage.exists(sqlite_extent.database_path(extent)):
        sqlite_extent.migrate(storage, extent, geometry)
    else:
        sqlite_extent.remove_logs(storage, extent)
    return found
