"""Big files that the page cache is not to keep: an extent that is fetched, checked once and put in place.

What it is for: the copies of a repair. They are as big as the disk, nobody is about to read them, and memory that was
not used before is dear in a virtual machine: 16 MiB through the page cache take 60 ms of a processor there, and 12
without it (docs/decisions.md).

What it guarantees: the promises of :class:`Storage`, whatever the file system says to ``O_DIRECT``: where it refuses
it, when opening or later, the same is done through the page cache. Data go through an aligned piece of memory here,
so callers need not align theirs; an offset that is no multiple of :data:`ALIGNMENT` is written through the page cache.
The end of a file is padded with zeros up to that multiple: who writes sets the length at the end, as
:class:`crucible_emu.region.repair_files.Receiver` does.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ParamSpec, TypeVar

from crucible_emu.region.storage import Buffer, OsStorage, Storage

P = ParamSpec("P")
T = TypeVar("T")

ALIGNMENT = 4096
PIECE_BYTES = 1 << 20
WORTH_IT_BYTES = 1 << 20
"""*Optimisation*: smaller files are gone from the cache before they matter, and cost a wait for the device each."""


def uncached(storage: Storage, file_bytes: int) -> Storage:
    """A way around the page cache for files of that size on the operating system's disk; else ``storage`` itself."""
    return UncachedStorage(storage) if isinstance(storage, OsStorage) and file_bytes >= WORTH_IT_BYTES else storage


class UncachedStorage(OsStorage):
    """Files of ``under`` around the page cache; one thread at a time."""

    def __init__(self, under: OsStorage) -> None:
        super().__init__()
        self._under = under
        self._memory = mmap.mmap(-1, PIECE_BYTES)
        self._buffer = memoryview(self._memory)

    def open(self, path: Path | str, flags: int, mode: int = 0o666) -> int:  # type: ignore[override]
        try:
            return self._under.open(path, flags | os.O_DIRECT, mode)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return self._under.open(path, flags, mode)

    def pwrite(self, descriptor: int, data: Buffer, offset: int) -> None:  # type: ignore[override]
        if offset % ALIGNMENT:
            _through_the_cache(descriptor)
            self._under.pwrite(descriptor, data, offset)
            return
        view = memoryview(data).cast("B")
        for start in range(0, len(view), PIECE_BYTES):
            piece = view[start : start + PIECE_BYTES]
            padded = -(-len(piece) // ALIGNMENT) * ALIGNMENT
            self._buffer[: len(piece)] = piece
            self._buffer[len(piece) : padded] = bytes(padded - len(piece))
            whole = self._buffer[:padded]
            _direct(descriptor, self._under.pwrite, descriptor, whole, offset + start)

    def preadv(self, descriptor: int, parts: Sequence[memoryview], offset: int) -> int:  # type: ignore[override]
        done = 0
        for part in parts:
            view = part.cast("B")
            while view:
                got = self._read(descriptor, view, offset + done)
                if not got:
                    return done
                done += got
                view = view[got:]
        return done

    def _read(self, descriptor: int, out: memoryview, offset: int) -> int:
        """Fill the beginning of ``out``; how much of it, 0 where the file ends."""
        skipped = offset % ALIGNMENT
        length = min(PIECE_BYTES, -(-(skipped + len(out)) // ALIGNMENT) * ALIGNMENT)
        got = _direct(descriptor, self._under.preadv, descriptor, [self._buffer[:length]], offset - skipped)
        got = max(0, min(got - skipped, len(out)))
        out[:got] = self._buffer[skipped : skipped + got]
        return got


def _direct(descriptor: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """``work`` around the page cache, and through it where the file system refuses that only now."""
    try:
        return work(*args, **kwargs)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        _through_the_cache(descriptor)
        return work(*args, **kwargs)


def _through_the_cache(descriptor: int) -> None:
    fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) & ~os.O_DIRECT)
