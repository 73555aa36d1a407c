"""The host's directory: sockets of its disks, and a note of which instances run.

What it is for: a virtual machine does not survive its host. After a SIGKILL nothing is started again; what can be done
is to clear away what the dead process left, and to tell which instances were lost. For that, ``host.json`` holds the
instances of the running process: ids and names, nothing secret.

What it guarantees: one process has the directory at a time. The note is replaced as a whole, so that whenever the
process is killed it is the old or the new one. Only sockets that nobody answers at are removed, and nothing but
sockets. A note that cannot be read costs a warning, never the start.
"""

from __future__ import annotations

import fcntl
import os
import socket
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from crucible_emu.errors import UsageError
from crucible_emu.host.documents import LostInstance
from crucible_emu.logs import get_logger

NOTE, LOCK = "host.json", "host.lock"
SOCKET_SUFFIX = ".sock"

log = get_logger(__name__)


class _Note(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    instances: tuple[LostInstance, ...]


@contextmanager
def held(directory: Path) -> Iterator[None]:
    """The directory, made where it is absent, and ours while the block runs. Raises :class:`UsageError`."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UsageError(f"{directory} cannot be the host's directory: {reason}") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"{directory} is in use by another host: stop it, or give another directory") from None
        yield
    finally:
        os.close(descriptor)


def clear(directory: Path) -> tuple[LostInstance, ...]:
    """Remove what a process that was killed left here; the instances that ended with it."""
    stale = [path for path in sorted(directory.glob(f"*{SOCKET_SUFFIX}")) if _is_stale(path)]
    for path in stale:
        path.unlink(missing_ok=True)
    lost = _read_note(directory / NOTE)
    if stale or lost:
        log.warning(
            "the last process of this host was killed: its instances do not run any more",
            instances=[str(each.id) for each in lost],
            sockets_removed=len(stale),
        )
    return lost


def _is_stale(path: Path) -> bool:
    if not stat.S_ISSOCK(path.lstat().st_mode):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as knock:
        knock.setblocking(False)
        try:
            knock.connect(os.fspath(path))
        except ConnectionRefusedError:
            return True
        except OSError:
            return False  # somebody who is busy, or a name that is too long to have been ours
    return False


def _read_note(path: Path) -> tuple[LostInstance, ...]:
    try:
        return _Note.model_validate_json(path.read_bytes()).instances
    except FileNotFoundError:
        return ()
    except (OSError, ValidationError) as error:
        reason = "it is damaged" if isinstance(error, ValidationError) else (error.strerror or str(error)).lower()
        log.warning("the note of the last process cannot be read", path=str(path), reason=reason)
        return ()


def write_note(directory: Path, instances: Iterable[LostInstance]) -> None:
    """Note that these would be lost if this process were killed now; no note where there are none."""
    note = _Note(instances=tuple(instances))
    path, growing = directory / NOTE, directory / f"{NOTE}.new"
    try:
        if not note.instances:
            path.unlink(missing_ok=True)
            return
        growing.write_text(note.model_dump_json(indent=2) + "\n")
        os.replace(growing, path)
    except OSError as error:
        # *Optimisation* of a person's time: the disks work without it.
        log.warning("the note of running instances cannot be written", path=str(path), reason=str(error))
