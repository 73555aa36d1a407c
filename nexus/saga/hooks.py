"""Where tests and the explorer reach in between (nexus.md §9.1): four points around each action, two around each undo.

What it guarantees: at a point nothing of the saga runs, and a hook may take its time, run anything else, or raise: to
raise :class:`Crash` is to be dead from that instant, as after SIGKILL. In production the hooks do nothing.
"""

from __future__ import annotations

from enum import Enum
from typing import Protocol


class Point(Enum):
    """When a hook is called."""

    BEFORE_NODE = "before node"
    AFTER_EFFECT = "after effect, before record"
    AFTER_RECORD = "after record"
    BEFORE_UNDO = "before undo"
    AFTER_UNDO_EFFECT = "after undo, before record"
    AFTER_UNDO = "after undo"


class Crash(BaseException):
    """This Nexus is dead: nothing is recorded, nothing is undone."""


class Hooks(Protocol):
    async def __call__(self, point: Point, saga_id: str, label: str) -> None:
        """The saga is at ``point`` of its node ``label``."""


async def no_hooks(point: Point, saga_id: str, label: str) -> None:
    """Nobody looks."""
