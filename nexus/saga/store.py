"""What the executor asks of a database, and a model of it in memory.

What it guarantees: an event is in the log when :meth:`Store.append` returns, and only if the saga still belongs to who
writes it. The *fence* is a number that grows whenever a saga changes hands; a Nexus that lost one finds out at its next
record, and stops. *Safety*: of two that execute one saga at most one can get beyond the node that it is in, and what
the other does there changes no row: each transaction of an action asks for the fence first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from nexus.saga.events import Event
from nexus.saga.execution import SagaState
from nexus.saga.recipe import Interrupted


class Fenced(Interrupted):
    """The saga belongs to another Nexus now."""


@dataclass(frozen=True, slots=True)
class SagaRecord:
    """A saga's row. ``labels``: the nodes of its graph when it was made, to notice a recipe that has changed."""

    id: str
    name: str
    params: Any
    labels: tuple[str, ...]
    state: SagaState
    executor_id: str
    fence: int = 0


class Store(Protocol):
    """Durable sagas. Each call is one transaction."""

    async def create(self, record: SagaRecord) -> None:
        """Write the row; once this returns the saga is found and finished by somebody, whatever happens."""

    async def append(self, saga_id: str, fence: int, event: Event, state: SagaState) -> None:
        """Add a row to the log, and set the saga's state. Raises :class:`Fenced`."""

    async def set_state(self, saga_id: str, fence: int, state: SagaState) -> None:
        """Set the saga's state alone. Raises :class:`Fenced`."""

    async def load(self, saga_id: str) -> tuple[SagaRecord, Sequence[Event]]:
        """The row and its log, in order. Raises :class:`KeyError`."""
        ...

    async def unfinished(self, executor_id: str) -> Sequence[SagaRecord]:
        """What ``executor_id`` has to finish: its sagas that are running or unwinding."""
        ...

    async def adopt(self, record: SagaRecord, executor_id: str) -> SagaRecord | None:
        """Take the saga over, if it is still as in ``record``; the row as it is then, with a higher fence."""
        ...

    def world_of(self, record: SagaRecord, world: Any) -> Any:
        """What the actions of this saga are given: ``world``, in which no transaction is committed once the saga has
        gone over to another. It raises :class:`Fenced` then."""
        ...


class MemoryStore:
    """Sagas in memory, for tests and the explorer; it outlives executors as a database does."""

    def __init__(self) -> None:
        self.records: dict[str, SagaRecord] = {}
        self.logs: dict[str, list[Event]] = {}

    async def create(self, record: SagaRecord) -> None:
        self.records.setdefault(record.id, record)
        self.logs.setdefault(record.id, [])

    async def append(self, saga_id: str, fence: int, event: Event, state: SagaState) -> None:
        await self.set_state(saga_id, fence, state)
        self.logs[saga_id].append(event)

    async def set_state(self, saga_id: str, fence: int, state: SagaState) -> None:
        record = self.records[saga_id]
        if record.fence != fence:
            raise Fenced(f"saga {saga_id} has gone over to {record.executor_id}")
        self.records[saga_id] = replace(record, state=state)

    async def load(self, saga_id: str) -> tuple[SagaRecord, Sequence[Event]]:
        return self.records[saga_id], tuple(self.logs[saga_id])

    async def unfinished(self, executor_id: str) -> Sequence[SagaRecord]:
        going_on = {SagaState.RUNNING, SagaState.UNWINDING}
        return [each for each in self.records.values() if each.executor_id == executor_id and each.state in going_on]

    async def adopt(self, record: SagaRecord, executor_id: str) -> SagaRecord | None:
        found = self.records[record.id]
        if (found.executor_id, found.fence) != (record.executor_id, record.fence):
            return None
        self.records[record.id] = replace(found, executor_id=executor_id, fence=found.fence + 1)
        return self.records[record.id]

    def world_of(self, record: SagaRecord, world: Any) -> Any:
        return world
