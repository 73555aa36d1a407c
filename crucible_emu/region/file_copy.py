"""Copying extent files: shared where the file system can, sparse where it cannot, never linked.

What it guarantees: the target has the length and the bytes of the source, and holes where the source reads as zeros.
It is a file of its own, so that writing one never changes the other; a hard link would. The caller syncs.

On the operating system's files a reflink is tried first (``FICLONE``: btrfs, XFS, bcachefs, ZFS), which copies nothing
and takes no space. Where there is none, and on any other storage, data is copied in pieces of 64 KiB: a file that was
filled in big pieces makes later overwrites of 4 KiB several times slower (large folios in the page cache).
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from crucible_emu.region.storage import OsStorage, Storage

FICLONE = 0x40049409
PIECE_BYTES = 64 * 1024
_ZEROS = bytes(PIECE_BYTES)
_NO_REFLINK = {errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.EPERM, errno.ENOSYS}


def copy_file(storage: Storage, source: Path, target: Path) -> None:
    """Make ``target`` a copy of ``source``, in place where it exists already. Raises :class:`OSError`."""
    reader = storage.open(source, os.O_RDONLY)
    try:
        writer = storage.open(target, os.O_RDWR | os.O_CREAT)
        try:
            copy_contents(storage, reader, writer)
        finally:
            storage.close(writer)
    finally:
        storage.close(reader)


def copy_contents(storage: Storage, reader: int, writer: int) -> None:
    """The same between open files; everything in ``writer`` is replaced. The caller syncs ``writer``."""
    size = storage.file_bytes(reader)
    storage.ftruncate(writer, 0)
    if isinstance(storage, OsStorage) and _reflink(reader, writer):
        return
    storage.ftruncate(writer, size)
    for start, stop in _data_segments(storage, reader, size):
        for offset in range(start, stop, PIECE_BYTES):
            piece = storage.pread(reader, min(PIECE_BYTES, stop - offset), offset)
            if not is_zero(piece):
                storage.pwrite(writer, piece, offset)


def is_zero(piece: bytes | memoryview) -> bool:
    """Whether up to 64 KiB are all zeros."""
    return piece == _ZEROS if len(piece) == PIECE_BYTES else piece == _ZEROS[: len(piece)]


def _reflink(reader: int, writer: int) -> bool:
    try:
        fcntl.ioctl(writer, FICLONE, reader)
    except OSError as error:
        if error.errno not in _NO_REFLINK:
            raise
        return False
    return True


def _data_segments(storage: Storage, reader: int, size: int) -> Iterator[tuple[int, int]]:
    """Half-open ranges that hold data; the whole file where nobody knows better."""
    if not isinstance(storage, OsStorage):
        yield 0, size
        return
    offset = 0
    while offset < size:
        try:
            start = os.lseek(reader, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # holes up to the end
                return
            raise
        offset = os.lseek(reader, start, os.SEEK_HOLE)
        yield start, min(offset, size)
