"""Making a file or a directory that appears under its name only when it is whole.

What it guarantees: until the block is left without an error there is nothing of that name; what failed or was
interrupted leaves nothing but, after a SIGKILL, a name that begins with a dot and ends in ``.part``. The finished thing
is durable before it gets its name.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from crucible_emu.errors import UsageError


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """Yields the path of a directory to be made, which becomes ``path``; that may exist if it is empty."""
    path = path.absolute()
    if path.exists() and not path.is_dir():
        raise UsageError(f"{path} exists and is not a directory: choose another name")
    if path.is_dir() and any(path.iterdir()):
        raise UsageError(f"{path} exists and is not empty: choose another name, or delete it first")
    path.parent.mkdir(parents=True, exist_ok=True)
    _require_writable(path.parent)
    growing = _beside(path)
    try:
        yield growing
        os.rename(growing, path)  # takes the place of an empty directory
        _sync(path.parent)
    except BaseException:
        shutil.rmtree(growing, ignore_errors=True)
        raise


@contextmanager
def new_file(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yields the path of a file to be made, which becomes ``path``; that may exist with ``overwrite``."""
    path = path.absolute()
    if path.is_dir():
        raise UsageError(f"{path} is a directory: name a file")
    if path.exists() and not overwrite:
        raise UsageError(f"{path} exists: choose another name, or say --force to replace it")
    _require_writable(path.parent)
    growing = _beside(path)
    try:
        yield growing
        _sync(growing)
        os.rename(growing, path)
        _sync(path.parent)
    except BaseException:
        growing.unlink(missing_ok=True)
        raise


def _require_writable(directory: Path) -> None:
    """So that the error names the directory, not what would have grown in it. Raises :class:`OSError`."""
    effective = os.access in os.supports_effective_ids
    for mode, code in ((os.F_OK, errno.ENOENT), (os.W_OK | os.X_OK, errno.EACCES)):
        if not os.access(directory, mode, effective_ids=effective):
            raise OSError(code, os.strerror(code), str(directory))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
