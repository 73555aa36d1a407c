"""The safeguards that can be taken out: one row each, with what nexus.md §11.4 says that breaks.

A row names the one place in production code where a safeguard lives. The table is in the order of the numbers: R for
the safeguards of the races, W for what the real one gets wrong.
"""

from __future__ import annotations

import re

from nexus.explore.removal import Removal
from nexus.explore.safeguards.corrections import CORRECTIONS
from nexus.explore.safeguards.deletions import DELETIONS
from nexus.explore.safeguards.documents import DOCUMENTS
from nexus.explore.safeguards.replacements import REPLACEMENTS
from nexus.explore.safeguards.requests import REQUESTS
from nexus.explore.safeguards.weak_points import WEAK_POINTS


def _order(removal: Removal) -> tuple[str, int]:
    letter, number = re.match(r"([RW])(\d+)", removal.safeguard).groups()  # type: ignore[union-attr]
    return letter, int(number)


ROWS = REPLACEMENTS + DELETIONS + REQUESTS + DOCUMENTS + CORRECTIONS + WEAK_POINTS
REMOVALS: tuple[Removal, ...] = tuple(sorted(ROWS, key=_order))
"""What can be taken out."""
