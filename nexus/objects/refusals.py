"""What users are told when something cannot be done: one sentence, and one of a few words for machines.

Volumes, placement and the database refuse with errors of their own. Under :func:`told_to_users` they come out as
:class:`~nexus.saga.ActionFailed` of one of the kinds here, in a saga's action and in a route alike; so a user reads the
same whether the refusal came before the saga or in its middle. None of the sentences quotes what is in a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from nexus.db import Conflict, NotFound
from nexus.placement import InsufficientCapacity, InvalidSize
from nexus.saga import ActionFailed

INVALID_REQUEST = "invalid_request"
OBJECT_ALREADY_EXISTS = "object_already_exists"
NOT_FOUND = "not_found"
CONFLICT = "conflict"
CAPACITY = "capacity"
UNAVAILABLE = "unavailable"
GONE = "gone"


def invalid_request(sentence: str) -> ActionFailed:
    """The request cannot be fulfilled whatever happens; it says what would be right."""
    return ActionFailed(sentence, INVALID_REQUEST)


def not_found(what: str, identity: str) -> ActionFailed:
    """There is no such thing, or not any more."""
    return ActionFailed(f"there is no {what} {identity}", NOT_FOUND)


def already_exists(what: str, name: str) -> ActionFailed:
    """Somebody else's thing has that name."""
    return ActionFailed(f"there is a {what} called {name!r} already", OBJECT_ALREADY_EXISTS)


@contextmanager
def told_to_users() -> Iterator[None]:
    """What the layers below refuse with, as :class:`~nexus.saga.ActionFailed`."""
    try:
        yield
    except NotFound as error:
        raise ActionFailed(str(error), NOT_FOUND) from error
    except Conflict as error:
        raise ActionFailed(str(error), CONFLICT) from error
    except InsufficientCapacity as error:
        # The detail is for operators; a tenant is not told what a rack is made of.
        raise ActionFailed(InsufficientCapacity.EXTERNAL, CAPACITY) from error
    except InvalidSize as error:
        raise ActionFailed(str(error), INVALID_REQUEST) from error
