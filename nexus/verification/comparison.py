"""Who of those that must hold the same holds something else: without I/O.

Each extent is judged by itself. With a ledger the ledger is right. Without one the replicas are asked what they think
of each other: where more than half agree, the others differ; where nobody has a majority, all of them are named, for
nobody can say who is right.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Holding:
    """What one copy holds: a digest per extent. ``problem``: why that is not known; there are no digests then.
    ``absent``: nobody could be asked, which says nothing of the copy."""

    name: str
    extents: tuple[str | None, ...] = ()
    problem: str | None = None
    absent: bool = False


@dataclass(frozen=True, slots=True)
class Difference:
    """An extent that is not what it must be, on the copies ``names``."""

    extent: int
    names: tuple[str, ...]
    against: str

    def __str__(self) -> str:
        return f"extent {self.extent} of {', '.join(self.names)} differs from {self.against}"


NOBODY = "every other copy, and no majority says which is right"


def compared(
    holdings: Sequence[Holding], ledger: Sequence[str] | None = None, ledger_name: str = "the ledger"
) -> list[Difference]:
    """Where the copies differ, extent after extent. A copy whose digests are not known is not compared."""
    known = [each for each in holdings if each.problem is None]
    extent_count = max([len(each.extents) for each in known] + [0 if ledger is None else len(ledger)], default=0)
    found = []
    for extent in range(extent_count):
        said = {each.name: each.extents[extent] if extent < len(each.extents) else None for each in known}
        if ledger is not None:
            right = ledger[extent] if extent < len(ledger) else None
            against = ledger_name
        else:
            right, against = _majority(list(said.values()))
        wrong = tuple(name for name, digest in said.items() if digest is None or digest != right)
        if wrong:
            found.append(Difference(extent, wrong, against))
    return found


def _majority(digests: list[str | None]) -> tuple[str | None, str]:
    """What more than half say, and what that is called."""
    (digest, count), *_ = Counter(digests).most_common(1)
    if count * 2 > len(digests):
        return digest, "what most copies hold"
    return None, NOBODY
