"""Where a rack is, and who runs it.

What it is for: a rack is a directory. Its supervisor holds the lock in it as long as anything of the rack runs, and
answers on the unix socket in it.

What it guarantees: one supervisor at a time, however many are started at once: the lock is the kernel's (``flock``), is
inherited by the processes that must be gone first, and goes with the last of them whatever ends it. A socket file that
a dead supervisor left is removed only by who holds the lock. The socket is reached through a descriptor of its
directory, so the path may be longer than the 107 bytes that an address of a unix socket can hold.
"""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from crucible_emu.errors import UsageError

RACK_FILE, LOCK, SOCKET = "rack.toml", "lock", "control.sock"
VARIABLE = "CRUCIBLE_RACK"
POLL_S = 0.02


def find(given: Path | None, start: Path, environment: str | None) -> Path:
    """The rack's directory: ``given``, else what the environment names, else ``start`` or the next above it that holds
    a rack file. Raises :class:`UsageError` where there is no rack."""
    named = given if given is not None else Path(environment) if environment else None
    if named is not None:
        if not (named / RACK_FILE).is_file():
            raise UsageError(f"there is no rack in {named}: make one with crucible-emu rack up {named} --sleds 5")
        return named.absolute()
    for directory in (start.absolute(), *start.absolute().parents):
        if (directory / RACK_FILE).is_file():
            return directory
    raise UsageError(f"there is no rack here: go into its directory, name it, or set {VARIABLE}")


def lock(directory: Path) -> int | None:
    """The rack's lock as a descriptor, ``None`` where somebody holds it. Children of a fork hold it too."""
    descriptor = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def wait_for_lock(directory: Path, timeout_s: float) -> int | None:
    """The lock, as soon as it is free; ``None`` where it is not within ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    while (found := lock(directory)) is None and time.monotonic() < deadline:
        time.sleep(POLL_S)
    return found


@contextmanager
def socket_path(directory: Path) -> Iterator[str]:
    """A short path of the control socket, good while the block runs."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{SOCKET}"
    finally:
        os.close(descriptor)


def listen(directory: Path) -> socket.socket:
    """Listen on the control socket. The caller holds the lock, so what is there is nobody's."""
    (directory / SOCKET).unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    try:
        with socket_path(directory) as path:
            listener.bind(path)
            os.chmod(path, 0o600)
        listener.listen(64)
    except BaseException:
        listener.close()
        raise
    return listener


def connect(directory: Path) -> socket.socket | None:
    """A connection to the supervisor; ``None`` where none listens."""
    caller = socket.socket(socket.AF_UNIX)
    try:
        with socket_path(directory) as path:
            caller.connect(path)
    except (FileNotFoundError, ConnectionError):
        caller.close()
        return None
    except BaseException:
        caller.close()
        raise
    return caller


def sweep(directory: Path) -> list[Path]:
    """Remove the sockets that killed services have left; what was removed. The caller holds the lock."""
    removed = []
    for top, directories, files in os.walk(directory):
        # Regions hold thousands of files and no sockets.
        directories[:] = [name for name in directories if name not in ("regions", "logs")]
        for name in files:
            path = Path(top, name)
            if stat.S_ISSOCK(path.lstat().st_mode):
                path.unlink()
                removed.append(path)
    return removed
