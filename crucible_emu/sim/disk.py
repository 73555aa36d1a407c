"""A disk in memory that knows which of its bytes would survive a power cut.

What it is for: :class:`SimulatedDisk` is a :class:`~crucible_emu.region.storage.Storage` like the operating system's,
but every write is remembered until a sync makes it durable. So a test can cut the power at any operation, under any
idea of what a file system does with unsynced writes, and look at the disk that is left; it can let any operation fail;
and a simulated rack needs no real files.

What it guarantees: everything is decided by the caller's random generator; no clock, no real I/O. :meth:`power_cut`
leaves this disk alone and returns another one, so that a single run can be cut at every operation.

The models (:class:`Persistence`) go from kind to hostile. They agree on what a sync promises, and differ in what may
have reached the disk without one:

    ORDERED      the writes up to some moment, in the order of their making (ZFS, as upstream assumes)
    COALESCED    the same, but an early write may carry newer bytes of its range with it (ZFS's log records)
    PAGES        of each 4 KiB page any version since the last sync of its file (ext4, xfs, most others)
    SECTORS      the same for each 512 bytes: a device that tears pages

Names (create, rename, remove) become durable in order, at the latest with the sync of a directory.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from crucible_emu.region.storage import Buffer

PAGE_BYTES = 4096
SECTOR_BYTES = 512


class Persistence(Enum):
    """What may be on the disk beyond what was synced; see the module."""

    ORDERED = "ordered"
    COALESCED = "coalesced"
    PAGES = "pages"
    SECTORS = "sectors"


@dataclass(slots=True)
class _Change:
    """A write (``data`` at ``offset``), or a new length (``data`` None). ``number`` orders all changes of the disk."""

    number: int
    offset: int
    data: bytes | None


@dataclass(slots=True, eq=False)
class _File:
    """``seen`` is what reads return; ``durable`` what a sync left; ``pending`` the way from one to the other."""

    seen: bytearray = field(default_factory=bytearray)
    durable: bytearray = field(default_factory=bytearray)
    pending: list[_Change] = field(default_factory=list)

    def sync(self) -> None:
        if self.pending:
            self.durable = _applied(self.durable, self.pending)
            self.pending = []


@dataclass(slots=True, eq=False)
class _Handle:
    path: str
    file: _File | None
    writable: bool
    holds_lock: bool = False


_Names = dict[str, _File | None]
"""Path to file; ``None`` is a directory."""

Hook = Callable[[str, str], None]
"""Called before an operation, with its name and path; may raise OSError."""


class SimulatedDisk:
    """See the module. Tests cut power and let operations fail through two hooks: ``before_change``, called before each
    operation that changes or syncs something, and ``before_read``, before each that opens or reads.

    ``cold``: nothing is in memory, a read without waiting finds nothing. ``space_bytes``: what is said to be free.
    ``forgets_failed_syncs``: when the hook makes
    a sync fail, what it would have written is never written, although reads still return it and a later sync succeeds:
    what Linux does (*fsyncgate*). ``partial_writes``: a write that the hook makes fail leaves some of its pages, how
    many this generator says.
    """

    def __init__(self) -> None:
        self._names: _Names = {"/": None}
        self._durable_names: _Names = {"/": None}
        self._name_changes: list[_Names] = []
        self._handles: dict[int, _Handle] = {}
        self._locked: set[str] = set()
        self._next_handle = 3
        self._changes = 0
        self.before_change: Hook | None = None
        self.before_read: Hook | None = None
        self.cold = False
        self.space_bytes = 1 << 40
        self.forgets_failed_syncs = True
        self.partial_writes: random.Random | None = None

    # --- the power

    def power_cut(self, rng: random.Random, model: Persistence) -> SimulatedDisk:
        """The disk as it comes back after the power went now: what was durable, and what ``model`` adds to it."""
        survivor = SimulatedDisk()
        versions = [self._durable_names, *self._name_changes]
        names = rng.choice(versions)
        pending = {change.number for file in names.values() if file is not None for change in file.pending}
        stop = rng.choice([0, *sorted(pending)])
        survivor._names = {
            path: None if file is None else _fresh(_survived(file, rng, model, stop)) for path, file in names.items()
        }
        survivor._durable_names = dict(survivor._names)
        return survivor

    # --- Storage

    def open(self, path: Path | str, flags: int, mode: int = 0o666) -> int:
        name = os.path.normpath(str(path))
        if flags & os.O_CREAT and name not in self._names:
            self._require_directory(os.path.dirname(name))
            self._changing("create", name)
            self._rename_step({**self._names, name: _File()})
        elif flags & os.O_EXCL and flags & os.O_CREAT:
            raise _error(errno.EEXIST, name)
        self._reading("open", name)
        if name not in self._names:
            raise _error(errno.ENOENT, name)
        handle = _Handle(name, self._names[name], flags & os.O_ACCMODE != os.O_RDONLY)
        if handle.file is None and handle.writable:
            raise _error(errno.EISDIR, name)
        self._next_handle += 1
        self._handles[self._next_handle] = handle
        if flags & os.O_TRUNC and handle.file is not None and handle.file.seen:
            self.ftruncate(self._next_handle, 0)
        return self._next_handle

    def close(self, descriptor: int) -> None:
        handle = self._handles.pop(descriptor, None)
        if handle is None:
            raise _error(errno.EBADF, str(descriptor))
        if handle.holds_lock:
            self._locked.discard(handle.path)

    def pwrite(self, descriptor: int, data: Buffer, offset: int) -> None:
        handle, file = self._writable(descriptor)
        try:
            self._changing("pwrite", handle.path)
        except OSError:
            if self.partial_writes is not None:
                # What was copied before the failure: whole pages, for a page is the unit in which that goes on.
                ends = range(PAGE_BYTES - offset % PAGE_BYTES, len(data), PAGE_BYTES)
                self._apply(file, offset, bytes(data)[: self.partial_writes.choice([0, *ends])])
            raise
        self._apply(file, offset, bytes(data))

    def pwritev(self, descriptor: int, parts: Sequence[Buffer], offset: int) -> None:
        # One change per part: the kernel may write back between any two of them.
        for part in parts:
            self.pwrite(descriptor, part, offset)
            offset += len(part)

    def pread(self, descriptor: int, length: int, offset: int) -> bytes:
        return bytes(self._readable(descriptor).seen[offset : offset + length])

    def preadv(self, descriptor: int, parts: Sequence[memoryview], offset: int) -> int:
        done = 0
        seen = self._readable(descriptor).seen
        for part in parts:
            some = seen[offset + done : offset + done + len(part)]
            part[: len(some)] = some
            done += len(some)
        return done

    def preadv_nowait(self, descriptor: int, parts: Sequence[memoryview], offset: int) -> int:
        return -1 if self.cold else self.preadv(descriptor, parts, offset)

    def fdatasync(self, descriptor: int) -> None:
        handle = self._handle(descriptor)
        if handle.file is None:
            self.sync_directory(Path(handle.path))
        else:
            self._sync(handle.path, [handle.file])

    fsync = fdatasync

    def sync_files(self, descriptors: Sequence[int]) -> None:
        for descriptor in descriptors:
            self.fdatasync(descriptor)

    def sync_at_once(self, directory: Path, count: int) -> bool:
        return False  # file by file, so that each sync is a moment at which the power may go

    def sync_tree(self, directory: Path) -> None:
        files = [file for path, file in self._names.items() if file is not None and _below(path, str(directory))]
        self._sync(str(directory), files)
        self._commit_names()

    def sync_directory(self, directory: Path) -> None:
        self._require_directory(str(directory))
        self._sync(str(directory), [])
        self._commit_names()

    def ftruncate(self, descriptor: int, length: int) -> None:
        handle, file = self._writable(descriptor)
        self._changing("ftruncate", handle.path)
        self._apply(file, length, None)

    def allocate(self, descriptor: int, offset: int, length: int) -> None:
        """Nothing is there before it is written, as with a file system that only promises the space."""
        handle, _ = self._writable(descriptor)
        self._changing("allocate", handle.path)

    def file_bytes(self, descriptor: int) -> int:
        return len(self._file(descriptor).seen)

    def rename(self, source: Path, target: Path) -> None:
        old, new = str(source), str(target)
        if old not in self._names:
            raise _error(errno.ENOENT, old)
        self._changing("rename", new)
        moved = {new + path[len(old) :]: file for path, file in self._names.items() if _below(path, old)}
        self._rename_step({**{path: f for path, f in self._names.items() if not _below(path, old)}, **moved})

    def unlink(self, path: Path) -> None:
        if str(path) not in self._names:
            raise _error(errno.ENOENT, str(path))
        self._changing("unlink", str(path))
        self._rename_step({name: file for name, file in self._names.items() if name != str(path)})

    def make_directories(self, path: Path) -> None:
        missing = [str(each) for each in (path, *path.parents) if str(each) not in self._names]
        if missing:
            self._changing("mkdir", str(path))
            self._rename_step({**self._names, **dict.fromkeys(reversed(missing))})

    def remove_tree(self, path: Path) -> None:
        if str(path) in self._names:
            self._changing("remove", str(path))
            self._rename_step({name: file for name, file in self._names.items() if not _below(name, str(path))})

    def names(self, directory: Path) -> list[str]:
        self._require_directory(str(directory))
        self._reading("list", str(directory))
        return [os.path.basename(name) for name in self._names if os.path.dirname(name) == str(directory) != name]

    def exists(self, path: Path) -> bool:
        return str(path) in self._names

    def lock(self, directory: Path) -> int | None:
        name = str(directory)
        if name in self._locked:
            return None
        descriptor = self.open(name, os.O_RDONLY)
        self._handles[descriptor].holds_lock = True
        self._locked.add(name)
        return descriptor

    def free_bytes(self, path: Path) -> int:
        return self.space_bytes

    def open_files(self) -> list[str]:
        """Paths of what is open now."""
        return [handle.path for handle in self._handles.values()]

    # --- the machinery

    def _changing(self, operation: str, path: str) -> None:
        if self.before_change is not None:
            self.before_change(operation, path)

    def _reading(self, operation: str, path: str) -> None:
        if self.before_read is not None:
            self.before_read(operation, path)

    def _readable(self, descriptor: int) -> _File:
        self._reading("read", self._handle(descriptor).path)
        return self._file(descriptor)

    def _apply(self, file: _File, offset: int, data: bytes | None) -> None:
        self._changes += 1
        change = _Change(self._changes, offset, data)
        file.pending.append(change)
        _apply(file.seen, change)

    def _sync(self, path: str, files: Sequence[_File]) -> None:
        try:
            self._changing("sync", path)
        except OSError:
            if self.forgets_failed_syncs:
                for file in files:
                    file.pending = []
            raise
        for file in files:
            file.sync()

    def _rename_step(self, names: _Names) -> None:
        self._names = names
        self._name_changes.append(names)

    def _commit_names(self) -> None:
        self._durable_names, self._name_changes = self._names, []

    def _handle(self, descriptor: int) -> _Handle:
        handle = self._handles.get(descriptor)
        if handle is None:
            raise _error(errno.EBADF, str(descriptor))
        return handle

    def _file(self, descriptor: int) -> _File:
        handle = self._handle(descriptor)
        if handle.file is None:
            raise _error(errno.EISDIR, handle.path)
        return handle.file

    def _writable(self, descriptor: int) -> tuple[_Handle, _File]:
        handle = self._handle(descriptor)
        if handle.file is None or not handle.writable:
            raise _error(errno.EBADF, handle.path)
        return handle, handle.file

    def _require_directory(self, name: str) -> None:
        if self._names.get(name, name) is not None:
            raise _error(errno.ENOENT if name not in self._names else errno.ENOTDIR, name)


def _error(code: int, path: str) -> OSError:
    return OSError(code, os.strerror(code), path)


def _below(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def _apply(content: bytearray, change: _Change) -> None:
    if change.data is None:
        if change.offset < len(content):
            del content[change.offset :]
        else:
            content.extend(bytes(change.offset - len(content)))
        return
    if len(content) < change.offset:
        content.extend(bytes(change.offset - len(content)))
    content[change.offset : change.offset + len(change.data)] = change.data


def _applied(content: bytearray, changes: Sequence[_Change]) -> bytearray:
    found = bytearray(content)
    for change in changes:
        _apply(found, change)
    return found


def _fresh(content: bytearray) -> _File:
    return _File(bytearray(content), content)


def _survived(file: _File, rng: random.Random, model: Persistence, stop: int) -> bytearray:
    """What is left of a file. ``stop``: the last change, of the whole disk, that an ordered disk has kept."""
    if not file.pending:
        return bytearray(file.durable)
    if model is Persistence.ORDERED:
        return _applied(file.durable, [change for change in file.pending if change.number <= stop])
    if model is Persistence.COALESCED:
        return _coalesced(file, stop)
    return _scattered(file, rng, PAGE_BYTES if model is Persistence.PAGES else SECTOR_BYTES)


def _coalesced(file: _File, stop: int) -> bytearray:
    newest = file.seen
    found = bytearray(file.durable)
    for change in file.pending:
        if change.number <= stop:
            data = (
                change.data if change.data is None else bytes(newest[change.offset : change.offset + len(change.data)])
            )
            _apply(found, _Change(change.number, change.offset, data))
    return found


def _scattered(file: _File, rng: random.Random, unit: int) -> bytearray:
    """Each unit as of a moment of its own between the last sync and now."""
    length = len(rng.choice([file.durable, file.seen]))
    versions = _versions(file, unit)
    found = bytearray(file.durable[:length].ljust(length, b"\0"))
    for number, contents in versions.items():
        start = number * unit
        stop = min(start + unit, length)
        if start < stop:
            found[start:stop] = rng.choice(contents)[: stop - start].ljust(stop - start, b"\0")
    return found


def _versions(file: _File, unit: int) -> dict[int, list[bytes]]:
    """By unit: its content at the last sync, and after each pending change that touched it."""
    content = bytearray(file.durable)
    found: dict[int, list[bytes]] = {}
    for change in file.pending:
        before = len(content)
        touched = range(
            min(before, change.offset) // unit,
            (max(before, change.offset) if change.data is None else change.offset + len(change.data) - 1) // unit + 1,
        )
        for number in touched:
            found.setdefault(number, [bytes(content[number * unit : (number + 1) * unit])])
        _apply(content, change)
        for number in touched:
            found[number].append(bytes(content[number * unit : (number + 1) * unit]))
    return found
