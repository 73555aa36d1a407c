"""What it is to take a safeguard out: one row of :mod:`nexus.explore.safeguards`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Instead = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Removal:
    """``where``: the place, as ``module:name`` (replaced wherever it is imported), ``module!name`` (there alone),
    ``module:Class.name``, or ``saga:NODE`` for a node's undo. ``instead`` gets what is there, and gives what is to be.
    ``breaks``: what the specification predicts. ``predicted``: cases that are tried first, ``scenarios``: all of whose
    cases are then. ``covered``: why nothing breaks, where that is known."""

    safeguard: str
    what: str
    where: tuple[str, ...]
    instead: Instead | tuple[Instead, ...]
    breaks: str
    scenarios: tuple[str, ...] = ()
    predicted: tuple[str, ...] = ()
    covered: str = ""
