"""What can go wrong between a client and the disk it talks to.

What it is for: both loops and the blocking client raise the same few kinds, so that a program tells them apart once. A
peer that breaks the protocol is a :class:`~crucible_emu.errors.RemoteError`; a person's wrong input is a
:class:`~crucible_emu.errors.UsageError`. The rest is here. All of it is an :class:`OSError`, because a program that
reads files already knows what to do with one.
"""

from __future__ import annotations

import errno
import os


class ConnectionLost(ConnectionError):
    """The connection ended while something was to be done over it; what was under way may or may not have happened."""


class ExportRefused(OSError):
    """The server answered that it does not serve this export to this client; the message has its sentence."""


class RequestFailed(OSError):
    """The server answered one request with an error. ``errno`` is its number, as of this system where that is known,
    and ``strerror`` its sentence. The connection is sound."""


def request_failed(number: int, sentence: str, name: str) -> RequestFailed:
    """The failure of a request called ``name``. A server that gives no sentence gets this system's."""
    return RequestFailed(number, f"{name}: {sentence or os.strerror(number)}")


def read_only(name: str) -> RequestFailed:
    """What a change of a read-only disk gets, before anything is sent."""
    return RequestFailed(errno.EPERM, f"{name} is not permitted: the disk is read-only")
