"""What a background task is (nexus.md §4).

A task looks at what the database says is to be done, does it or starts sagas for it, and answers with a status for
people. It remembers nothing that matters: several Nexus run the same tasks beside each other, each may die at any
moment, and what one leaves undone the next activation finds again. An error about one thing is noted in the status, and
the task goes on with the next.
"""

from __future__ import annotations

from typing import Any, Protocol

from nexus.db import DatabaseError
from nexus.saga import ActionFailed

Status = dict[str, Any]
"""A JSON object; its members are those of nexus.md §4's table."""


class Task(Protocol):
    """``name``: what operators call it. ``period_s``: how long after an activation has ended the next begins by
    itself."""

    @property
    def name(self) -> str: ...

    @property
    def description(self) -> str: ...

    @property
    def period_s(self) -> float: ...

    async def activate(self) -> Status:
        """Look once, and do what is to be done."""
        ...


def told(error: Exception) -> str:
    """What a status says of an error. *Safety*: only of errors whose words are made for people; those of any other
    might quote what nobody may read."""
    if isinstance(error, (ActionFailed, DatabaseError)):
        return str(error)
    return f"failed unexpectedly: {type(error).__name__}"
