"""The disk as a parameter: every file operation of a region goes through one object.

What it is for: code that must survive power cuts, full disks and failing devices has to be run against them. A test
hands in another :class:`Storage`: one that keeps files in memory and forgets what was not synced
(``crucible_emu.sim.disk``), one that fails the Nth call. The real one is :class:`OsStorage`.

What it guarantees: an operation does all of what it was asked or raises :class:`OSError`; short writes do not leak
out. ``sync_*`` return when what was written before is durable, and raise when that could not be learnt. Nothing here
knows what a region is.

Why one ``syncfs`` may stand for many ``fdatasync``: on the file systems named in :data:`SYNCFS_IS_DURABLE` it writes
back every file and flushes the device, and since Linux 5.8 it reports failed writes. It takes 0.6 ms for 32 dirty
files where 32 ``fdatasync`` take 5; but it also waits for everybody else's dirty data, so it is used only while there
is little of that.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Protocol

from crucible_emu.errors import IoError

Buffer = bytes | bytearray | memoryview

IOV_MAX = 1024
SYNCFS_FILES_MIN = 3
"""From this many files on one ``syncfs`` is cheaper than one ``fdatasync`` each (3 files: 0.25 ms against 0.35; 4: 0.29
against 0.58)."""
FOREIGN_DIRTY_BYTES_MAX = 64 * 1024 * 1024
"""More dirty data than this on the machine, and ``syncfs`` would wait for what is none of our business."""
DIRTY_BYTES_PER_FILE = 64 * 1024
"""What the machine writes back in the time of an ``fdatasync`` that has nothing to do: 0.12 ms at 0.5 GB/s."""
LOOK_AGAIN_AFTER_S = 0.1
"""Asking how much is dirty takes 0.1 ms, a tenth of what is decided by it."""
SYNCFS_IS_DURABLE = {0xEF53: "ext4", 0x9123683E: "btrfs", 0x2FC12FC1: "zfs", 0x01021994: "tmpfs"}
"""``statfs`` types on which ``syncfs`` leaves data on the device. XFS is not among them: it may skip the device's cache
when only block contents changed."""

_SYNC_FILE_RANGE_WRITE = 2
_REMEDIES = {
    errno.ENOSPC: "free some space on the file system and try again",
    errno.EDQUOT: "raise the quota or free some space, and try again",
    errno.EROFS: "the file system is mounted read-only: remount it, or open the region read-only",
    errno.EIO: "the device failed: check it, then repair or replace the region",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "the system is out of file descriptors: raise fs.file-max",
    errno.EACCES: "give this user access to it",
    errno.EPERM: "give this user access to it",
    errno.ENOENT: "restore it, or make the region anew",
}


def explain(error: OSError, doing: str, path: Path | str) -> IoError:
    """The error of the wire for a failed system call: one sentence with the path, the cause and what would help."""
    remedy = _REMEDIES.get(error.errno or 0)
    reason = error.strerror or str(error)
    return IoError(f"{doing} {path} failed: {reason}" + (f"; {remedy}" if remedy else ""))


class Storage(Protocol):
    """What a region asks of a disk. Descriptors are integers; offsets and lengths are bytes; failure is OSError."""

    def open(self, path: Path | str, flags: int, mode: int = 0o666) -> int: ...
    def close(self, descriptor: int) -> None: ...

    def pwrite(self, descriptor: int, data: Buffer, offset: int) -> None:
        """Write all of ``data``."""

    def pwritev(self, descriptor: int, parts: Sequence[Buffer], offset: int) -> None:
        """Write all of ``parts``, one after the other; any number of them."""

    def pread(self, descriptor: int, length: int, offset: int) -> bytes:
        """``length`` bytes, fewer only where the file ends."""
        ...

    def preadv(self, descriptor: int, parts: Sequence[memoryview], offset: int) -> int:
        """Fill ``parts``; the number of bytes read, less than their length only where the file ends."""
        ...

    def preadv_nowait(self, descriptor: int, parts: Sequence[memoryview], offset: int) -> int:
        """As :meth:`preadv` for what is in memory: -1 where the device would have to be waited for; may be short."""
        ...

    def fdatasync(self, descriptor: int) -> None: ...
    def fsync(self, descriptor: int) -> None: ...

    def sync_files(self, descriptors: Sequence[int]) -> None:
        """What was written to these files is durable when this returns."""

    def sync_at_once(self, directory: Path, count: int) -> bool:
        """*Optimisation* for ``count`` files below ``directory``: whether what was written to them is durable now.
        ``False`` where that would take longer than :meth:`sync_files` for all, or is not to be had."""
        ...

    def sync_tree(self, directory: Path) -> None:
        """Everything below ``directory``, names included, is durable when this returns."""

    def sync_directory(self, directory: Path) -> None:
        """The names in ``directory`` are durable when this returns."""

    def ftruncate(self, descriptor: int, length: int) -> None: ...

    def allocate(self, descriptor: int, offset: int, length: int) -> None:
        """Set space aside for what will be written there; until then it reads as zeros, or as the file's end."""
        ...

    def file_bytes(self, descriptor: int) -> int: ...
    def rename(self, source: Path, target: Path) -> None: ...
    def unlink(self, path: Path) -> None: ...
    def make_directories(self, path: Path) -> None:
        """Make the directory and its missing parents; one that is there already is fine."""

    def remove_tree(self, path: Path) -> None:
        """Remove a directory with all that is in it, or a file; nothing there is fine."""

    def names(self, directory: Path) -> list[str]:
        """What is in ``directory``; raises FileNotFoundError where it is not there."""
        ...

    def exists(self, path: Path) -> bool: ...

    def lock(self, directory: Path) -> int | None:
        """A descriptor that holds the advisory lock of ``directory`` until it is closed; None if somebody has it."""
        ...

    def free_bytes(self, path: Path) -> int:
        """Space that an ordinary user can still fill on the file system of ``path``."""
        ...


class OsStorage:
    """The operating system's files."""

    _durable_by_device: ClassVar[dict[int, bool]] = {}
    """Whether ``syncfs`` may be believed on a device, as far as anybody in this process has found out."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._syncfs_reports = _kernel_version() >= (5, 8) and hasattr(self._libc, "syncfs")
        self._looked_at = -LOOK_AGAIN_AFTER_S
        self._little_dirty = False

    open = staticmethod(os.open)
    close = staticmethod(os.close)
    fdatasync = staticmethod(os.fdatasync)
    fsync = staticmethod(os.fsync)
    ftruncate = staticmethod(os.ftruncate)
    rename = staticmethod(os.rename)
    unlink = staticmethod(os.unlink)
    names = staticmethod(os.listdir)
    exists = staticmethod(os.path.lexists)

    @staticmethod
    def pwrite(descriptor: int, data: Buffer, offset: int) -> None:
        written = os.pwrite(descriptor, data, offset)
        if written != len(data):
            _write_rest(descriptor, memoryview(data).cast("B"), written, offset)

    @staticmethod
    def pwritev(descriptor: int, parts: Sequence[Buffer], offset: int) -> None:
        for index in range(0, len(parts), IOV_MAX):
            some = parts[index : index + IOV_MAX]
            length = sum(map(len, some))
            written = os.pwritev(descriptor, some, offset)
            if written != length:
                _write_rest(descriptor, memoryview(b"".join(some)), written, offset)
            offset += length

    @staticmethod
    def pread(descriptor: int, length: int, offset: int) -> bytes:
        data = os.pread(descriptor, length, offset)
        while 0 < len(data) < length:
            more = os.pread(descriptor, length - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    @staticmethod
    def preadv(descriptor: int, parts: Sequence[memoryview], offset: int) -> int:
        done = os.preadv(descriptor, parts, offset)
        return done if done == sum(map(len, parts)) or done == 0 else _read_rest(descriptor, parts, done, offset)

    @staticmethod
    def preadv_nowait(descriptor: int, parts: Sequence[memoryview], offset: int) -> int:
        try:
            return os.preadv(descriptor, parts, offset, os.RWF_NOWAIT)
        except BlockingIOError:
            return -1
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            # tmpfs and others keep no promise about waiting; there the plain read is what there is.
            return os.preadv(descriptor, parts, offset)

    def sync_files(self, descriptors: Sequence[int]) -> None:
        (failure,) = self.sync_groups([descriptors])
        if failure is not None:
            raise failure

    def sync_groups(self, groups: Sequence[Sequence[int]]) -> list[OSError | None]:
        """:meth:`sync_files` of several groups of files, all on one file system, at once; what became of each group.

        *Safety*: a file tells of a failed write once and to one who asks, so each group learns of its own files, and
        after its first failure none of them is asked.
        """
        files = [descriptor for group in groups for descriptor in group]
        if len(files) >= SYNCFS_FILES_MIN and self._syncfs_serves(files[0]) and self._syncfs(files[0]):
            return [None] * len(groups)
        if len(files) > 1:
            # Starts the writing of all before waiting for one: 2.3 ms against 5.1 for 32 files. *Optimisation*: its
            # result says nothing, fdatasync is what decides.
            for descriptor in files:
                self._libc.sync_file_range(descriptor, ctypes.c_int64(0), ctypes.c_int64(0), _SYNC_FILE_RANGE_WRITE)
        return [_sync_each(group) for group in groups]

    def sync_at_once(self, directory: Path, count: int) -> bool:
        if count < SYNCFS_FILES_MIN or _dirty_bytes() > max(FOREIGN_DIRTY_BYTES_MAX, count * DIRTY_BYTES_PER_FILE):
            return False
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            return self._syncfs_durable(descriptor) and self._syncfs(descriptor)
        finally:
            os.close(descriptor)

    def sync_tree(self, directory: Path) -> None:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            if self._syncfs_durable(descriptor) and self._syncfs(descriptor):
                return
        finally:
            os.close(descriptor)
        for parent, _, files in os.walk(directory):
            for name in files:
                self._sync_path(os.path.join(parent, name))
            self._sync_path(parent)

    def sync_directory(self, directory: Path) -> None:
        self._sync_path(str(directory))

    @staticmethod
    def allocate(descriptor: int, offset: int, length: int) -> None:
        os.posix_fallocate(descriptor, offset, length)

    @staticmethod
    def file_bytes(descriptor: int) -> int:
        return os.fstat(descriptor).st_size

    @staticmethod
    def make_directories(path: Path) -> None:
        os.makedirs(path, exist_ok=True)

    @staticmethod
    def remove_tree(path: Path) -> None:
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        except FileNotFoundError:
            return

    @staticmethod
    def lock(directory: Path) -> int | None:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    @staticmethod
    def free_bytes(path: Path) -> int:
        found = os.statvfs(path)
        return found.f_bavail * found.f_frsize

    @staticmethod
    def _sync_path(path: str) -> None:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _syncfs(self, descriptor: int) -> bool:
        """Whether it succeeded. When it did not, the failure may be that of a file which is not ours: ask each file.

        *Safety*: and go on asking each. A file system tells of a failure once; a later ``syncfs`` would succeed, and
        hide which file it was. That holds for every region on it, whoever asked first.
        """
        succeeded = bool(self._libc.syncfs(descriptor) == 0)
        if not succeeded:
            self._durable_by_device[os.fstat(descriptor).st_dev] = False
        return succeeded

    def _syncfs_serves(self, descriptor: int) -> bool:
        """*Optimisation*: whether ``syncfs`` is right here and not slowed down by others' data."""
        if not self._syncfs_durable(descriptor):
            return False
        now = time.monotonic()
        if now - self._looked_at > LOOK_AGAIN_AFTER_S:
            self._looked_at = now
            self._little_dirty = _dirty_bytes() < FOREIGN_DIRTY_BYTES_MAX
        return self._little_dirty

    def _syncfs_durable(self, descriptor: int) -> bool:
        """*Safety*: whether ``syncfs`` keeps the promise of ``fdatasync`` on this file system."""
        if not self._syncfs_reports:
            return False
        device = os.fstat(descriptor).st_dev
        known = self._durable_by_device.get(device)
        if known is None:
            record = ctypes.create_string_buffer(256)  # struct statfs begins with the type, a long
            failed = self._libc.fstatfs(descriptor, record)
            kind = ctypes.c_long.from_buffer(record).value & 0xFFFFFFFF
            known = self._durable_by_device[device] = failed == 0 and kind in SYNCFS_IS_DURABLE
        return known


def _sync_each(descriptors: Sequence[int]) -> OSError | None:
    """File by file; the first failure, which ends it."""
    try:
        for descriptor in descriptors:
            os.fdatasync(descriptor)
    except OSError as failure:
        return failure
    return None


def _read_rest(descriptor: int, parts: Sequence[memoryview], done: int, offset: int) -> int:
    start = 0
    for part in parts:
        while start <= done < start + len(part):
            got = os.preadv(descriptor, [part[done - start :]], offset + done)
            if got == 0:
                return done
            done += got
        start += len(part)
    return done


def _write_rest(descriptor: int, data: memoryview, written: int, offset: int) -> None:
    while written < len(data):
        more = os.pwrite(descriptor, data[written:], offset + written)
        if more == 0:
            raise OSError(errno.EIO, "the file takes no more bytes")
        written += more


def _kernel_version() -> tuple[int, ...]:
    numbers = os.uname().release.split("-")[0].split(".")[:2]
    return tuple(int(number) for number in numbers if number.isdigit())


def _dirty_bytes() -> int:
    """Data of the whole machine that waits to be written back."""
    with open("/proc/meminfo", "rb") as meminfo:
        lines = meminfo.read().split(b"\n")
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith((b"Dirty:", b"Writeback:")))
