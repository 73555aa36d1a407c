"""A mirror of three files as a plugin of nbdkit: what a user writes who has an hour and knows Python.

What it is for: ``nbdkit python bench/mirror_plugin.py dir=FOLDER`` serves the files ``r0``, ``r1`` and ``r2`` of the
folder as one disk. nbdkit, in C, speaks the protocol; each request is one call from it. It is run by nbdkit's own
interpreter, so it stands alone: the standard library and nothing else.

What it guarantees: a write is answered when all three files have it, a flush when all three are synchronised. What it
does not: no hashes, and after a crash nothing makes the three equal again.
"""

from __future__ import annotations

import os
from pathlib import Path

import nbdkit

API_VERSION = 2
FILES = ("r0", "r1", "r2")

folder: Path | None = None
descriptors: list[int] = []


def thread_model() -> int:
    """Requests side by side: positional reads and writes share nothing, and meanwhile others may run."""
    return int(nbdkit.THREAD_MODEL_PARALLEL)


def config(key: str, value: str) -> None:
    global folder
    if key != "dir":
        raise RuntimeError(f"unknown parameter {key}: the only one is dir=FOLDER")
    folder = Path(value)


def get_ready() -> None:
    if folder is None:
        raise RuntimeError("dir=FOLDER is missing: where r0, r1 and r2 are")
    descriptors.extend(os.open(folder / name, os.O_RDWR) for name in FILES)


def open(readonly: bool) -> int:
    return 1


def get_size(handle: int) -> int:
    return min(os.fstat(descriptor).st_size for descriptor in descriptors)


def pread(handle: int, buffer: memoryview, offset: int, flags: int) -> None:
    view = memoryview(buffer)
    while view:
        done = os.preadv(descriptors[0], [view], offset)
        if not done:
            raise OSError("a file became shorter")
        view, offset = view[done:], offset + done


def pwrite(handle: int, buffer: memoryview, offset: int, flags: int) -> None:
    for descriptor in descriptors:
        view, at = memoryview(buffer), offset
        while view:
            done = os.pwrite(descriptor, view, at)
            view, at = view[done:], at + done


def flush(handle: int, flags: int) -> None:
    for descriptor in descriptors:
        os.fdatasync(descriptor)
