"""Whether a clone is what its snapshot was, before any volume names it: without I/O.

What it is for: a clone is a third good copy only if its bytes are right. Its agent says what it holds, extent by
extent; that is held against the snapshot's ledger, or, of a snapshot without one, against what the source holds.

What follows from a difference: with a ledger it is known who is wrong. Where the source differs, too, it is refused,
and another is cloned next time; where it does not, the copying went wrong, and may be done again from the same source.
Without a ledger nobody can say which of the two is right, and the source is refused all the same (*safety*: to keep
what is there and wait costs redundancy, to go on with wrong bytes costs data). A source that cannot be asked proves
nothing, and is not refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from nexus.verification import Holding, compared


class Verdict(Enum):
    """What the digests say. Only of ``SOUND`` may the clone be given to a volume."""

    SOUND = "sound"
    SOURCE_IS_NOT = "the source is not what the snapshot was"
    COPY_IS_NOT = "the copy is not what its source is"
    UNKNOWN = "nobody can say"


@dataclass(frozen=True, slots=True)
class Finding:
    """The verdict, and in a sentence what it comes from."""

    verdict: Verdict
    sentence: str


def is_sound(clone: Holding, ledger: Sequence[str] | None) -> bool:
    """Whether the ledger alone proves the clone: then nobody else has to be asked."""
    return ledger is not None and clone.problem is None and not compared([clone], ledger)


def judged(clone: Holding, source: Holding, ledger: Sequence[str] | None) -> Finding:
    """What is to be thought of a clone and its source. ``ledger``: the digests of the snapshot's extents, if known."""
    if is_sound(clone, ledger):
        return Finding(Verdict.SOUND, f"{clone.name} is what the ledger says")
    at_fault = source_fault(source, ledger)
    if at_fault is not None:
        return Finding(Verdict.SOURCE_IS_NOT, at_fault)
    if source.problem is not None:
        return Finding(Verdict.UNKNOWN, f"{clone.name} cannot be proved: {source.name}: {source.problem}")
    if clone.problem is not None:
        return Finding(Verdict.COPY_IS_NOT, f"{clone.name}: {clone.problem}")
    differences = compared([clone], [each or "" for each in source.extents], source.name)
    if not differences:
        return Finding(Verdict.SOUND, f"{clone.name} is what {source.name} is")
    if ledger is not None:
        return Finding(Verdict.COPY_IS_NOT, str(differences[0]))
    return Finding(Verdict.SOURCE_IS_NOT, f"{differences[0]}, and no ledger says which is right")


def source_fault(source: Holding, ledger: Sequence[str] | None) -> str | None:
    """What is wrong with a source, in a sentence; ``None`` where nothing is known to be."""
    if source.absent:
        return None
    if source.problem is not None:
        return f"{source.name}: {source.problem}"
    differences = [] if ledger is None else compared([source], ledger)
    return str(differences[0]) if differences else None
