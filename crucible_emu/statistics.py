"""What a component has done, in one shape for all of them.

What it is for: components count in plain mutable fields, because they count on the path of a block. Whoever looks gets
a :class:`Snapshot`: frozen, named, and sorted into what only grows (*counters*), what goes up and down (*levels*), and
counters with a label (*tables*), which is all that a metrics endpoint, a status page or a test wants to know.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Numbers of one ``component`` at one moment. ``tables``: by the name of the numbers and that of their label."""

    component: str
    counters: Mapping[str, int]
    levels: Mapping[str, int] = field(default_factory=dict)
    tables: Mapping[tuple[str, str], Mapping[str, int]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """All of it as one plain document."""
        return {**self.counters, **self.levels, **{name: dict(table) for (name, _), table in self.tables.items()}}


def snapshot_of(
    component: str,
    counted: Any,
    *,
    levels: frozenset[str] = frozenset(),
    tables: Mapping[tuple[str, str], Mapping[str, int]] | None = None,
) -> Snapshot:
    """The whole numbers among the fields of the data class ``counted``; ``levels`` names those that may fall."""
    numbers = {each.name: getattr(counted, each.name) for each in fields(counted)}
    numbers = {name: number for name, number in numbers.items() if isinstance(number, int)}
    return Snapshot(
        component,
        {name: number for name, number in numbers.items() if name not in levels},
        {name: number for name, number in numbers.items() if name in levels},
        tables or {},
    )
