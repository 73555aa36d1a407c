"""What can go wrong between a client and the disk or service it talks to.

What it is for: both loops and the blocking client raise the same few kinds, so that a program tells them apart once. A
peer that breaks the protocol is a :class:`~crucible_emu.errors.RemoteError`; a person's wrong input is a
:class:`~crucible_emu.errors.UsageError`. The rest is here. What a disk raises is an :class:`OSError`, because a program
that reads files already knows what to do with one; a service refuses with a status.
"""

from __future__ import annotations

import errno


class ConnectionLost(ConnectionError):
    """The connection ended while something was to be done over it; what was under way may or may not have happened."""


class ExportRefused(OSError):
    """The server answered that it does not serve this export to this client; the message has its sentence."""


class RequestFailed(OSError):
    """The server answered one request with an error. ``errno`` is its number, as of this system where that is known,
    and ``strerror`` its sentence. The connection is sound."""


def request_failed(number: int, sentence: str, name: str) -> RequestFailed:
    """The failure of a request called ``name``. A server may give no sentence."""
    return RequestFailed(number, f"{name}: {sentence or errno.errorcode.get(number, f'error {number}')}")


def read_only(name: str) -> RequestFailed:
    """What a change of a read-only disk gets, before anything is sent."""
    return RequestFailed(errno.EPERM, f"{name} is not permitted: the disk is read-only")


class ServiceError(Exception):
    """The service refused: ``status``, its sentence, perhaps its word for machines, and the id under which its log
    tells more (§0.1)."""

    def __init__(self, status: int, message: str, error_code: str | None = None, request_id: str | None = None) -> None:
        super().__init__(status, message, error_code, request_id)
        self.status = status
        self.message = message
        self.error_code = error_code
        self.request_id = request_id

    def __str__(self) -> str:
        code = f" ({self.error_code})" if self.error_code else ""
        request = f", request {self.request_id}" if self.request_id else ""
        return f"{self.message}{code}: status {self.status}{request}"


class ServiceUnreachable(Exception):
    """No answer came, or only the beginning of one; what was asked for may have happened."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(url, reason)
        self.url = url
        self.reason = reason

    def __str__(self) -> str:
        return f"no answer from {self.url}: {self.reason}"
