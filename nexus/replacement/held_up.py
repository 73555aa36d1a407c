"""Who holds everybody up: a question about a graph, and nothing else (nexus.md §4.11, ``waiting``).

Somebody who waits for the lock of a volume waits for its holder, who may wait for the lock of another one. Whoever
waits for nobody and is waited for is where an operator has to look: all behind him go on when he does.

What it guarantees (*liveness*, of people): nobody who waits is left out. Where some wait for each other in a circle
there is nobody at the end of it; then the first of the circle, by id, is named for all of it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping


def held_up(waits: Iterable[tuple[str, str]]) -> list[tuple[str, tuple[str, ...]]]:
    """``waits``: pairs of who waits, and for whom. Who is at the end of it, with everybody that waits for him, also by
    way of others; whom most wait for comes first."""
    targets: dict[str, set[str]] = defaultdict(set)
    for waiter, holder in waits:
        if waiter != holder:
            targets[waiter].add(holder)
    found: dict[str, set[str]] = defaultdict(set)
    for waiter in sorted(targets):
        reached = _reached(waiter, targets)
        ends = {each for each in reached if each not in targets}
        # A circle: whoever of it is reached can be reached from himself.
        circle = {each for each in reached if each in _reached(each, targets)}
        for end in ends or {min(circle)}:
            if end != waiter:
                found[end].add(waiter)
    return sorted(
        ((end, tuple(sorted(behind))) for end, behind in found.items()), key=lambda each: (-len(each[1]), each[0])
    )


def _reached(start: str, targets: Mapping[str, set[str]]) -> set[str]:
    """Whom ``start`` waits for, directly or not; itself only where it waits for itself in a circle."""
    seen: set[str] = set()
    left = list(targets.get(start, ()))
    while left:
        each = left.pop()
        if each not in seen:
            seen.add(each)
            left += targets.get(each, ())
    return seen
