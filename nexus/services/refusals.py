"""What a saga may hear from a service in place of an answer.

Both are :class:`~nexus.saga.ActionFailed`: the saga unwinds and its user reads the sentence. Neither ever quotes a
request, which may hold a key.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from crucible_emu.client.failures import ServiceError
from crucible_emu.client.persistence import ServiceGone
from crucible_emu.client.regions import UnexpectedState
from crucible_emu.errors import RemoteError
from nexus.saga import ActionFailed

GONE = "gone"
REFUSED = "refused"


class Gone(ActionFailed):
    """The service will never answer: its disk, sled or record is out of service."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} is gone for good", GONE)


class ServiceRefused(ActionFailed):
    """The service answered, and not with what was asked for. ``status`` is ``None`` where no status said so."""

    def __init__(self, what: str, reason: str, status: int | None = None) -> None:
        super().__init__(f"{what}: {reason}", REFUSED)
        self.status = status


@contextmanager
def told_of(what: str) -> Iterator[None]:
    """What a client raises about ``what``, in the words of a saga."""
    try:
        yield
    except ServiceGone as error:
        raise Gone(what) from error
    except ServiceError as error:
        raise ServiceRefused(what, error.message, error.status) from error
    except (UnexpectedState, RemoteError) as error:
        raise ServiceRefused(what, str(error)) from error
