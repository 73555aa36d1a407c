"""What a database may refuse, in sentences for people. No message quotes what stands in a row, for that may be secret.

Errors of a transaction's own body pass through as they are; these are the ones that the database layer itself raises.
Those of which nobody can say that the transaction was refused interrupt a saga, and do not fail it.
"""

from __future__ import annotations

from nexus.saga import Interrupted


class DatabaseError(Exception):
    """The common base."""


class Contention(DatabaseError, Interrupted):
    """The transaction lost against others as often as it may be tried. Nothing of it happened."""


class Unreachable(DatabaseError, Interrupted):
    """The database does not answer. Nothing of the transaction happened."""


class OutcomeUnknown(DatabaseError, Interrupted):
    """The database was lost while it was asked to commit: whether the transaction happened is not known. What is done
    again must recognise itself, as every action of a saga does."""


class SchemaUnknown(DatabaseError):
    """The database has a schema that this version of Nexus does not know."""


class NotFound(DatabaseError):
    """There is no row with this id."""

    def __init__(self, what: str, key: str) -> None:
        super().__init__(f"there is no {what} {key}")
        self.what, self.key = what, key


class Conflict(DatabaseError):
    """The row is not in a state in which this may be done (nexus.md §0.4). ``state`` and ``operating_saga_id``: how it
    is found to be."""

    def __init__(self, message: str, *, state: str | None = None, operating_saga_id: str | None = None) -> None:
        super().__init__(message)
        self.state, self.operating_saga_id = state, operating_saga_id
