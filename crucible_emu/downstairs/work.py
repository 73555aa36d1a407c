"""What the pure Downstairs asks of the world: pieces of work on a region, messages to send, connections to close.

A :class:`Work` is one thing to do with the region, made from one message (or from a promotion, which has none). The
core hands it out inside a :class:`Run` and gets it back with an *outcome*:

* what the message's answer carries (``None``, contexts and data, the three numbers of a closed extent),
* a :class:`~crucible_emu.errors.CrucibleError`: it failed,
* :data:`NO_ROOM`: nothing was done, the staging area has to be relieved first (writes only),
* :data:`DROPPED`: nothing was done and nobody waits for it any more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum, IntEnum
from typing import Any, Final

from crucible_emu.errors import CrucibleError, IoError
from crucible_emu.wire import messages as m


class Kind(IntEnum):
    """What is to be done with the region. Reads and writes come first, so that one comparison tells them apart."""

    READ = 0
    WRITE = 1
    WRITE_UNWRITTEN = 2
    EXTENT_VERSIONS = 3
    FLUSH = 4
    FLUSH_EXTENT = 5
    FLUSH_CLOSE = 6
    CLOSE = 7
    REOPEN = 8
    REPAIR = 9
    REOPEN_ALL = 10
    DESTAGE = 11
    BARRIER = 12
    NO_OP = 13
    WRITE_RUN = 14
    """Writes of single blocks that wait together; handed out only by what they waited for."""


class Sentinel(Enum):
    """Outcomes that are neither a value nor an error."""

    NO_ROOM = "no room in the staging area"
    DROPPED = "nobody waits for it any more"


NO_ROOM: Final = Sentinel.NO_ROOM
DROPPED: Final = Sentinel.DROPPED

WASTE_BYTES_MAX = 64 * 1024
"""A waiting write may keep this much memory alive besides its data."""
NOBODY: Final = -1
"""The connection id of work that no connection asked for."""


class Work:
    """One piece of work. ``message`` asked for it; ``job_id`` is ``None`` for what is not a job.

    ``start`` and ``count`` in blocks (reads and writes only), ``extent_id`` where one extent is meant. ``size_bytes``
    is what it holds in memory while outstanding. ``sequence``: order of arrival. ``abandoned``: the connection that
    asked is gone, so no one is told. ``relieved``: it had no room although the staging area was just emptied, so it
    runs regardless.
    """

    __slots__ = (
        "abandoned",
        "connection_id",
        "count",
        "extent_id",
        "job_id",
        "kind",
        "message",
        "relieved",
        "sequence",
        "size_bytes",
        "start",
    )

    def __init__(
        self,
        kind: Kind,
        connection_id: int,
        message: Any = None,
        job_id: int | None = None,
        start: int = 0,
        count: int = 0,
        size_bytes: int = 0,
        extent_id: int | None = None,
    ) -> None:
        self.kind = kind
        self.connection_id = connection_id
        self.message = message
        self.job_id = job_id
        self.start = start
        self.count = count
        self.size_bytes = size_bytes
        self.extent_id = extent_id
        self.sequence = 0
        self.abandoned = False
        self.relieved = False

    def __repr__(self) -> str:
        return f"Work({self.kind.name}, connection {self.connection_id}, job {self.job_id})"


@dataclass(slots=True)
class Send:
    """Send ``message`` to a connection, after everything sent to it before."""

    connection_id: int
    message: m.Message


@dataclass(slots=True)
class SendTrain:
    """As :class:`Send`, for several messages."""

    connection_id: int
    messages: list[m.Message]


@dataclass(slots=True)
class Close:
    """Write out what is queued for a connection, then close it. ``reason`` is for the log."""

    connection_id: int
    reason: str


@dataclass(slots=True)
class Run:
    """Do this, and report it through ``work_done`` exactly once. ``pause_s``: not before that time has passed."""

    work: Work
    pause_s: float = 0.0


@dataclass(slots=True)
class Abandon:
    """Nobody waits for this running work any more: stop it where that is possible, and report it all the same."""

    work: Work


@dataclass(slots=True)
class Resume:
    """A connection whose messages were refused for lack of room may be read again."""

    connection_id: int


Action = Send | SendTrain | Close | Run | Abandon | Resume


def outcome_of(function: Callable[..., Any], *arguments: Any) -> Any:
    """What ``function`` returns, or the error with which it failed."""
    try:
        return function(*arguments)
    except (CrucibleError, OSError) as error:
        return as_error(error)


def as_error(error: CrucibleError | OSError) -> CrucibleError:
    """The error in the words of the wire."""
    return error if isinstance(error, CrucibleError) else IoError(str(error))


def keep_little(work: Work) -> None:
    """*Safety* (memory): the data of a write that has to wait must not keep a whole receive buffer alive. (What cannot
    be written to is no such buffer, but a copy already, or memory of the peer, which is there anyway.)"""
    message = work.message
    if isinstance(message, m.BlockWrite) and not message.data.readonly:
        held = memoryview(message.data.obj).nbytes
        if held > WASTE_BYTES_MAX + 2 * len(message.data):
            work.message = replace(message, data=memoryview(bytes(message.data)))
