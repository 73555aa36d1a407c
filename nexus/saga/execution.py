"""What a saga's log means, and what comes next: the engine's core, without I/O, clock or randomness.

The life of a node is the table :data:`TRANSITIONS`, which the code runs and which refuses what it does not list.

What it guarantees: a node is started when everything that it waits for is done and nothing has failed. After a failure
nothing new is started; when what runs has come to an end, nodes are undone in reverse order, each when nobody who
waited for it is left. The state depends on the events alone, in their order; so after a crash the same log gives the
same next steps, of which those that were under way are done again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from nexus.saga.dag import Dag
from nexus.saga.events import Event, Kind


class NodeState(Enum):
    """How far a node is."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    UNDOING = "undoing"
    UNDONE = "undone"
    UNDO_FAILED = "undo failed"


class SagaState(Enum):
    """How far a saga is; STUCK waits for a person (nexus.md §0.5 rule 4)."""

    RUNNING = "running"
    UNWINDING = "unwinding"
    DONE = "done"
    UNWOUND = "unwound"
    STUCK = "stuck"


ENDED = frozenset({SagaState.DONE, SagaState.UNWOUND})

TRANSITIONS: dict[tuple[NodeState, Kind], NodeState] = {
    (NodeState.WAITING, Kind.STARTED): NodeState.RUNNING,
    # Started again by whoever took the saga over: it is not known how far the first one came.
    (NodeState.RUNNING, Kind.STARTED): NodeState.RUNNING,
    (NodeState.RUNNING, Kind.SUCCEEDED): NodeState.DONE,
    (NodeState.RUNNING, Kind.FAILED): NodeState.FAILED,
    (NodeState.DONE, Kind.UNDO_STARTED): NodeState.UNDOING,
    (NodeState.UNDOING, Kind.UNDO_STARTED): NodeState.UNDOING,
    (NodeState.UNDOING, Kind.UNDO_FINISHED): NodeState.UNDONE,
    (NodeState.UNDOING, Kind.UNDO_FAILED): NodeState.UNDO_FAILED,
    # An operator resumed the saga.
    (NodeState.UNDO_FAILED, Kind.UNDO_STARTED): NodeState.UNDOING,
}


class ImpossibleEvent(Exception):
    """The log says something that cannot have happened: it is damaged, or of another recipe."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a saga unwinds or is stuck."""

    label: str
    message: str
    kind: str


@dataclass(slots=True)
class Execution:
    """One saga as its log tells it. ``resumed``: an operator wants failed undos tried again."""

    dag: Dag
    states: dict[str, NodeState] = field(init=False)
    outputs: dict[str, Any] = field(default_factory=dict)
    failure: Failure | None = None
    undo_failure: Failure | None = None
    resumed: bool = False

    def __post_init__(self) -> None:
        self.states = dict.fromkeys(self.dag.labels, NodeState.WAITING)

    @classmethod
    def replayed(cls, dag: Dag, events: Iterable[Event]) -> Execution:
        """The state after ``events``. Raises :class:`ImpossibleEvent`."""
        execution = cls(dag)
        for event in events:
            execution.apply(event)
        return execution

    def after(self, event: Event) -> Execution:
        """The state that follows; this one stays. Raises :class:`ImpossibleEvent`."""
        following = replace(self, outputs=dict(self.outputs))
        following.states = dict(self.states)
        following.apply(event)
        return following

    def apply(self, event: Event) -> None:
        """Take one event in. Raises :class:`ImpossibleEvent`, and then nothing has changed."""
        before = self.states.get(event.label)
        if before is None:
            raise ImpossibleEvent(f"the log of a {self.dag.saga.name} names {event.label}, which is none of its nodes")
        after = TRANSITIONS.get((before, event.kind))
        if after is None:
            raise ImpossibleEvent(f"{event.label} is {before.value}: it cannot have {event.kind.value}")
        self.states[event.label] = after
        match event.kind:
            case Kind.SUCCEEDED:
                self.outputs[event.label] = event.data
            case Kind.FAILED:
                self.failure = self.failure or Failure(event.label, event.data["message"], event.data["kind"])
            case Kind.UNDO_FAILED:
                self.undo_failure = Failure(event.label, event.data["message"], event.data["kind"])
                self.resumed = False
            case Kind.UNDO_STARTED:
                self.undo_failure = None

    @property
    def state(self) -> SagaState:
        found = set(self.states.values())
        if self.failure is None:
            return SagaState.DONE if found <= {NodeState.DONE} else SagaState.RUNNING
        if NodeState.UNDO_FAILED in found and not self.resumed:
            return SagaState.STUCK
        return SagaState.UNWINDING if self._to_undo or NodeState.RUNNING in found else SagaState.UNWOUND

    @property
    def _to_undo(self) -> list[str]:
        """Nodes with an undo that is still to be done."""
        owing = {NodeState.DONE, NodeState.UNDOING, NodeState.UNDO_FAILED}
        return [label for label, state in self.states.items() if state in owing and self.dag.vertices[label].undo]

    def next_actions(self) -> list[str]:
        """Nodes to run now: what was under way, and what nothing holds back."""
        under_way = [label for label, state in self.states.items() if state is NodeState.RUNNING]
        if self.failure is not None:
            return under_way
        return under_way + [
            label
            for label, state in self.states.items()
            if state is NodeState.WAITING
            and all(self.states[each] is NodeState.DONE for each in self.dag.vertices[label].after)
        ]

    def next_undos(self) -> list[str]:
        """Nodes to undo now, in the order of the recipe; none while anything still runs, or while the saga is stuck."""
        if self.state is not SagaState.UNWINDING or NodeState.RUNNING in self.states.values():
            return []
        owing = set(self._to_undo)
        # Not in the order of a set, which is another one in each process: what is explored has to be the same again.
        return [label for label in self.states if label in owing and not self._is_needed(label, owing)]

    def _is_needed(self, label: str, owing: set[str]) -> bool:
        """Whether a node that is still to be undone waited for this one, directly or not."""
        return any(label in self.dag.ancestors(other) for other in owing if other != label)
