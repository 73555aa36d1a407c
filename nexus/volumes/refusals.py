"""Why an operation on a volume is not done: each a sentence with ids, never with a document.

What it guarantees: whoever raises one of these has changed nothing, for it leaves the transaction and undoes it; and it
is not tried again, unlike a transaction that only lost a race.

With :class:`~nexus.db.NotFound` and :class:`~nexus.db.Conflict` of the database these are all that volumes refuse with.
"""

from __future__ import annotations

from nexus.db import Conflict


class ResourceGone(Conflict):
    """A VCR names a read-only resource that was deleted, is being deleted, or was never known (R12, R26)."""


class TargetNotFound(Conflict):
    """The volume names neither the target that was to be replaced nor its replacement: somebody took the part of the
    volume away that named it. For an undo that is success (W32)."""


class BrokenInvariant(Exception):
    """The tables contradict each other: a defect. Nothing is changed, so that it can be looked at."""
