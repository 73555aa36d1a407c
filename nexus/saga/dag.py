"""A recipe as a graph: nodes with labels, what each waits for, and whose outputs it sees.

What it guarantees: labels are unique in the whole saga, sub-sagas included (``DELETE_VOLUME/DECREASE_COUNT``), and
depend on the recipe alone; so a log that speaks of labels means the same to the Nexus that takes it over. Nodes stand
in an order in which each comes after everything that it waits for.

A sub-saga becomes a node that records its parameters, its own nodes, and a node that ends it. What comes after it waits
for the last.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from nexus.saga.recipe import Action, Context, Node, Parallel, Saga, Step, SubSaga, Undo

BEGIN, END = "(params)", "(end)"


@dataclass(frozen=True, slots=True)
class Vertex:
    """One node of the graph. ``scope``: the label of the sub-saga that it belongs to, empty for the saga itself."""

    label: str
    name: str
    scope: str
    action: Action | None
    undo: Undo | None
    after: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Scope:
    """A saga or sub-saga of the graph; ``params_from``: the label whose output are its parameters, ``None`` for the
    outermost."""

    saga: Saga
    params_from: str | None


@dataclass(slots=True)
class Dag:
    """The graph of one saga."""

    saga: Saga
    vertices: dict[str, Vertex] = field(default_factory=dict)
    scopes: dict[str, Scope] = field(default_factory=dict)

    @classmethod
    def of(cls, saga: Saga) -> Dag:
        """The graph of ``saga``; always the same for the same recipe."""
        dag = cls(saga)
        dag.scopes[""] = Scope(saga, None)
        dag._sequence(saga.steps, "", ())
        return dag

    @property
    def labels(self) -> list[str]:
        """All labels, each after those that it waits for."""
        return list(self.vertices)

    def waiting_for(self, label: str) -> Iterator[str]:
        """The labels that wait for this one."""
        return (each.label for each in self.vertices.values() if label in each.after)

    def ancestors(self, label: str) -> set[str]:
        """Everything that is over when this node runs."""
        found: set[str] = set()
        ahead = list(self.vertices[label].after)
        while ahead:
            each = ahead.pop()
            if each not in found:
                found.add(each)
                ahead += self.vertices[each].after
        return found

    def context(self, label: str, saga_id: str, params: Any, outputs: dict[str, Any], world: Any) -> Context[Any]:
        """What the node is given: the parameters of its scope, and the outputs of the nodes before it there."""
        vertex = self.vertices[label]
        scope = self.scopes[vertex.scope]
        given = params if scope.params_from is None else outputs[scope.params_from]
        before = self.ancestors(label)
        seen = {
            each.name: outputs[each.label]
            for each in self.vertices.values()
            if each.scope == vertex.scope and each.label in before and each.label in outputs
        }
        return Context(saga_id, scope.saga.params.model_validate(given), seen, world)

    def _sequence(self, steps: tuple[Step, ...], scope: str, after: tuple[str, ...]) -> tuple[str, ...]:
        """Add ``steps`` one after the other; the labels that what follows waits for."""
        for step in steps:
            after = self._step(step, scope, after)
        return after

    def _step(self, step: Step, scope: str, after: tuple[str, ...]) -> tuple[str, ...]:
        match step:
            case Node():
                return self._add(step.name, step.name, scope, step.action, step.undo, after)
            case Parallel():
                ends = [self._sequence(branch, scope, after) for branch in step.branches]
                return tuple(label for end in ends for label in end)
            case SubSaga():
                return self._sub_saga(step, scope, after)

    def _sub_saga(self, step: SubSaga, scope: str, after: tuple[str, ...]) -> tuple[str, ...]:
        async def record(context: Context[Any]) -> Any:
            made = await step.params(context)
            assert isinstance(made, BaseModel)
            return made.model_dump(mode="json")

        begun = self._add(f"{step.name}{BEGIN}", f"{step.name}{BEGIN}", scope, record, None, after)
        inner = _join(scope, step.name)
        self.scopes[inner] = Scope(step.saga, begun[0])
        ended = self._sequence(step.saga.steps, inner, begun)
        return self._add(f"{step.name}{END}", step.name, scope, None, None, ended)

    def _add(
        self, tail: str, name: str, scope: str, action: Action | None, undo: Undo | None, after: tuple[str, ...]
    ) -> tuple[str, ...]:
        label = _join(scope, tail)
        assert label not in self.vertices
        self.vertices[label] = Vertex(label, name, scope, action, undo, after)
        return (label,)


def _join(scope: str, name: str) -> str:
    return f"{scope}/{name}" if scope else name
