"""How a saga is written down: a recipe of nodes, each undo beside its action.

    DISK_DELETE = Saga(
        "disk-delete",
        Params,
        Node("DELETE_DISK_RECORD", delete_disk_record, undo=restore_disk_record),
        Node("SPACE_ACCOUNT", refund_space, undo=charge_space),
        SubSaga("DELETE_VOLUME", VOLUME_DELETE, params=volume_of_the_disk),
    )

What the rules are (nexus.md §0.5): nodes run one after the other, those of a :class:`Parallel` beside each other. An
action runs at least once and perhaps more often, with anything having happened in between. When one fails, its own undo
is not run; the undos of all nodes that ended are, in reverse order. So an action of several effects is preceded by a
node without an action that carries the undo. The output of an action is recorded as JSON and seen by later nodes under
the node's name.

What an action may raise: :class:`ActionFailed` is the expected failure, with a sentence for a person;
:class:`Interrupted` is none at all. Anything else is a defect, and unwinds the saga just as well.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pydantic import BaseModel

Json = Any
P = TypeVar("P", bound=BaseModel)


class ActionFailed(Exception):
    """An action cannot do what it is for, by design: the saga unwinds, and says this. ``kind`` is a word for machines
    that survives in the log (``conflict``, ``gone``, ``capacity``)."""

    def __init__(self, message: str, kind: str = "failed") -> None:
        super().__init__(message)
        self.kind = kind


class Interrupted(Exception):
    """Nobody knows whether an action or undo was done, or it could not even be tried: the database was lost in its
    middle. It has neither succeeded nor failed. *Safety*: a failed action is not undone, so one that may have happened
    must not be called failed; the saga is let go, and the node runs again when somebody goes on with it."""


@dataclass(frozen=True, slots=True)
class Context(Generic[P]):
    """What an action or undo is given. ``world``: the services of this Nexus (datastore, clients). ``outputs``: of the
    nodes before it in the same saga or sub-saga, by name."""

    saga_id: str
    params: P
    outputs: Mapping[str, Json]
    world: Any

    def output(self, name: str) -> Json:
        """What the node ``name`` recorded. Raises :class:`KeyError` where it is none of those before this one."""
        return self.outputs[name]


Action = Callable[[Context[Any]], Awaitable[Json]]
Undo = Callable[[Context[Any]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Node:
    """One step. Without an action it does nothing, and stands where its undo has to stand."""

    name: str
    action: Action | None = None
    undo: Undo | None = None


@dataclass(frozen=True, slots=True)
class SubSaga:
    """A whole saga as one step. ``params`` makes its parameters when its turn comes; they are recorded."""

    name: str
    saga: Saga
    params: Callable[[Context[Any]], Awaitable[BaseModel]]


class Parallel:
    """Branches that run beside each other: single steps, or lists of them that run in order."""

    def __init__(self, *branches: Step | list[Step]) -> None:
        self.branches = tuple(tuple(branch) if isinstance(branch, list) else (branch,) for branch in branches)


Step = Node | SubSaga | Parallel


class Saga:
    """A recipe under a name that the log knows. ``params``: the pydantic model of its parameters."""

    def __init__(self, name: str, params: type[BaseModel], *steps: Step) -> None:
        self.name = name
        self.params = params
        self.steps = steps
        names = list(_names(steps))
        twice = {each for each in names if names.count(each) > 1}
        if twice:
            raise ValueError(f"saga {name}: more than one node is called {', '.join(sorted(twice))}")

    def __repr__(self) -> str:
        return f"Saga({self.name!r})"


def _names(steps: tuple[Step, ...]) -> list[str]:
    found: list[str] = []
    for step in steps:
        if isinstance(step, Parallel):
            for branch in step.branches:
                found += _names(branch)
        else:
            found.append(step.name)
    return found
