"""What is run: a scenario, and what interferes with it at which moments; written so that it can be run again.

    delete-disk: disk-delete#DELETE_DISK_RECORD@after-effect=delete-copy; disk-delete#SPACE_ACCOUNT@before-effect=error

reads: in the scenario ``delete-disk``, when the saga ``disk-delete`` has done what its node DELETE_DISK_RECORD does and
has not written that down, a user deletes the copy; later the action of SPACE_ACCOUNT fails. Two interferences at
one moment happen in their order. ``saga*2#...`` means the second saga of that name in the run.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from nexus.saga.hooks import Point

BEFORE_EFFECT = "before-effect"
"""The node's start is written down, and its action has not begun: between these two a slow Nexus may stand still."""
POINTS = {
    Point.BEFORE_NODE: "before-node",
    Point.AFTER_EFFECT: "after-effect",
    Point.AFTER_RECORD: "after-record",
    Point.BEFORE_UNDO: "before-undo",
    Point.AFTER_UNDO_EFFECT: "after-undo-effect",
    Point.AFTER_UNDO: "after-undo",
}
NAMES = (*POINTS.values(), BEFORE_EFFECT)
_INTERFERENCE = re.compile(r"(?P<saga>[a-z-]+)(?:\*(?P<nth>\d+))?#(?P<label>.+)@(?P<point>[a-z-]+)=(?P<operation>\S+)")


@dataclass(frozen=True, slots=True, order=True)
class Moment:
    """A point of a node of the ``nth`` saga of its name."""

    saga: str
    label: str
    point: str
    nth: int = 1

    def __str__(self) -> str:
        which = self.saga if self.nth == 1 else f"{self.saga}*{self.nth}"
        return f"{which}#{self.label}@{self.point}"


@dataclass(frozen=True, slots=True, order=True)
class Interference:
    moment: Moment
    operation: str

    def __str__(self) -> str:
        return f"{self.moment}={self.operation}"


@dataclass(frozen=True, slots=True, order=True)
class Case:
    """One run."""

    scenario: str
    interferences: tuple[Interference, ...] = ()

    def __str__(self) -> str:
        return f"{self.scenario}: {'; '.join(map(str, self.interferences))}".rstrip(": ")

    def without(self, number: int) -> Case:
        """As this, with one interference less."""
        kept = tuple(each for place, each in enumerate(self.interferences) if place != number)
        return Case(self.scenario, kept)


def parse(text: str) -> Case:
    """What :meth:`Case.__str__` wrote. Raises :class:`ValueError`."""
    scenario, _, rest = text.partition(":")
    found = []
    for part in filter(None, (each.strip() for each in rest.split(";"))):
        match = _INTERFERENCE.fullmatch(part)
        if match is None or match["point"] not in NAMES:
            raise ValueError(f"{part!r} is no interference: write saga#NODE@point=operation, with a point of {NAMES}")
        moment = Moment(match["saga"], match["label"], match["point"], int(match["nth"] or 1))
        found.append(Interference(moment, match["operation"]))
    return Case(scenario.strip(), tuple(found))
