"""Failures on purpose, for who tests a control plane against an agent (apis-and-tools.md §8.1).

What it guarantees: a failure takes the way of a real one: the record ends in the state in which the real agent would
leave it, and the log says that it was asked for.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from crucible_emu.errors import UsageError


class Failing(Enum):
    """What shall fail."""

    CREATE = "create"
    DELETE = "delete"
    RUN = "run"


class OnPurpose(UsageError):
    """Somebody wanted this to fail."""


@dataclass(frozen=True, slots=True)
class Failures:
    """``failing``: work that always fails; ``slow_s``: seconds that every piece of work waits before it begins."""

    failing: frozenset[Failing] = frozenset()
    slow_s: float = 0.0

    @classmethod
    def named(cls, names: Iterable[str], slow_s: float) -> Failures:
        """Out of words of the command line. Raises :class:`UsageError`."""
        known = ", ".join(each.value for each in Failing)
        found = set()
        for name in names:
            try:
                found.add(Failing(name))
            except ValueError:
                raise UsageError(f"{name!r} is nothing that can be made to fail: take one of {known}") from None
        if not 0 <= slow_s <= 3600:
            raise UsageError(f"{slow_s} is no time to be slow for: take 0 to 3600 seconds")
        return cls(frozenset(found), slow_s)

    def strike(self, what: Failing) -> None:
        """Raises :class:`OnPurpose` where ``what`` shall fail."""
        if what in self.failing:
            raise OnPurpose(f"this agent was told to let every {what.value} fail")
