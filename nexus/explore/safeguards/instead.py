"""What stands in the place of a safeguard that is taken out: the kinds that several rows use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def answers(value: Any) -> Callable[[Any], Any]:
    """In its place stands what always gives ``value``."""
    return lambda original: lambda *args, **kwargs: value


def idle(original: Any) -> Any:
    async def activate(self: Any) -> dict[str, Any]:
        return {}

    return activate


async def does_nothing(*args: Any) -> None:
    """Does nothing, whatever it is given."""


def without_results(name: str) -> Callable[[Any], Any]:
    """The set of results without those that begin so."""
    return lambda original: frozenset(each for each in original if not each.name.startswith(name))
