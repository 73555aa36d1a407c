"""Taking a safeguard out, to see that something breaks: for tests alone, and nothing that production code knows.

Each removal names one place in production code, and what stands there instead while it is out. What it is put in for is
replaced everywhere: in every module that imported it, and in the nodes of every saga. When the block ends, all is as
before. *Load-bearing* means that the explorer finds what nexus.md §11.4 predicts.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from nexus.explore import run
from nexus.explore.removal import Instead, Removal
from nexus.explore.safeguards import REMOVALS
from nexus.saga.recipe import Node, Parallel, Saga, Step, SubSaga
from nexus.sagas import ALL_SAGAS


class UnknownSafeguard(KeyError):
    """There is no such removal."""

    def __str__(self) -> str:
        return f"there is no removal of {self.args[0]}: one of {', '.join(sorted(removals()))}"


def removals() -> dict[str, Removal]:
    """All of them, by safeguard."""
    return {each.safeguard: each for each in REMOVALS}


@contextmanager
def removed(safeguard: str) -> Iterator[Removal]:
    """Within, the safeguard is not there. Raises :class:`UnknownSafeguard`."""
    found = removals().get(safeguard)
    if found is None:
        raise UnknownSafeguard(safeguard)
    with ExitStack() as stack:
        run.prepare()
        stack.callback(run.forget_states)
        instead = found.instead if isinstance(found.instead, tuple) else (found.instead,) * len(found.where)
        for where, each in zip(found.where, instead, strict=True):
            stack.enter_context(_replaced(where, each))
        run.forget_states()
        yield found


@contextmanager
def _replaced(where: str, instead: Instead) -> Iterator[None]:
    alone, _, one = where.partition("!")
    if one:
        module = sys.modules[alone]
        with _attribute(module, one, instead(getattr(module, one))):
            yield
        return
    place, _, name = where.partition(":")
    if "." not in place:
        with _undo_removed(place, name):
            yield
        return
    module = sys.modules[place]
    owner_name, _, attribute = name.rpartition(".")
    if owner_name:
        owner = getattr(module, owner_name)
        with _attribute(owner, attribute, instead(getattr(owner, attribute))):
            yield
        return
    original = getattr(module, attribute)
    with ExitStack() as stack:
        new = instead(original)
        for each in [each for known, each in list(sys.modules.items()) if known.startswith("nexus.")]:
            for known, value in list(vars(each).items()):
                if value is original:
                    stack.enter_context(_attribute(each, known, new))
        for node in _nodes():
            for side in ("action", "undo"):
                if getattr(node, side) is original:
                    stack.enter_context(_frozen_attribute(node, side, new))
        yield


@contextmanager
def _attribute(owner: Any, name: str, new: Any) -> Iterator[None]:
    before = owner.__dict__[name]
    setattr(owner, name, new)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextmanager
def _frozen_attribute(owner: Any, name: str, new: Any) -> Iterator[None]:
    before = getattr(owner, name)
    object.__setattr__(owner, name, new)
    try:
        yield
    finally:
        object.__setattr__(owner, name, before)


@contextmanager
def _undo_removed(saga: str, node: str) -> Iterator[None]:
    with ExitStack() as stack:
        for each in _nodes(saga):
            if each.name == node:
                stack.enter_context(_frozen_attribute(each, "undo", None))
        yield


def _nodes(saga: str | None = None) -> list[Node]:
    found: list[Node] = []
    for each in ALL_SAGAS:
        if saga is None or each.name == saga:
            _collect(each, found)
    return found


def _collect(saga: Saga, found: list[Node]) -> None:
    def walk(steps: tuple[Step, ...]) -> None:
        for step in steps:
            if isinstance(step, Parallel):
                for branch in step.branches:
                    walk(branch)
            elif isinstance(step, SubSaga):
                _collect(step.saga, found)
            elif step not in found:
                found.append(step)

    walk(saga.steps)
