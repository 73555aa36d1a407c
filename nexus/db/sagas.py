"""Sagas in the database, and which Nexus is alive (nexus.md §0.5).

:class:`SagaStore` is what ``nexus.saga`` asks of a database. Each call is one transaction; an event and the state that
it leads to are written together, and only under the fence that is in the row at that moment. *Safety*: of two that
execute one saga at most one can write.

:class:`Leases` says who is alive. A Nexus registers before its first saga and renews its lease for as long as it lives.
A saga that is not finished and whose Nexus has no lease belongs to a dead one, and whoever lives takes it over.
*Liveness* only: a lease that ran out while its Nexus lived costs that Nexus its sagas, which the fence tells it, and
nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol, runtime_checkable

from sqlalchemy import Connection, Row, bindparam, delete, exists, func, insert, select, update
from sqlalchemy import text as sql

from nexus.db.database import Body, Database
from nexus.db.schema import nexus_instance, saga, saga_event
from nexus.db.schema.sagas import UNFINISHED
from nexus.db.transitions import insert_if_absent
from nexus.saga import Fenced, SagaRecord, SagaState
from nexus.saga.events import Event, Kind

Clock = Callable[[Connection], datetime]
GOING_ON = sql(UNFINISHED)
"""Running or unwinding, in the words of the index of such sagas: SQLite uses it for these only."""


_CLOCK = select(func.clock_timestamp())


def database_clock(connection: Connection) -> datetime:
    """Now, by the clock that all processes of one database share: PostgreSQL's, or for SQLite that of the machine."""
    if connection.dialect.name == "postgresql":
        found: datetime = connection.execute(_CLOCK).scalar_one()
        return found.astimezone(UTC)
    return datetime.now(UTC)


# Every event of every saga takes these two. Made once: to make them costs twice what it costs to run them.
_APPEND = insert(saga_event)
_ADVANCE = (
    update(saga)
    .where(saga.c.id == bindparam("of"), saga.c.fence == bindparam("under"))
    .values(
        state=bindparam("to"),
        event_count=saga.c.event_count + bindparam("more"),
        time_modified=bindparam("now"),
    )
    .returning(saga.c.event_count)
)
_FENCE = select(saga.c.fence).where(saga.c.id == bindparam("of"))
# And these every activation of the tasks, or every start of a Nexus.
_UNFINISHED_OF = select(saga).where(saga.c.executor_id == bindparam("executor"), GOING_ON).order_by(saga.c.id)
_REGISTER = insert(nexus_instance)
_RETIRE = delete(nexus_instance).where(nexus_instance.c.id == bindparam("of"))
_ALIVE = exists().where(nexus_instance.c.id == saga.c.executor_id, nexus_instance.c.time_expires > bindparam("now"))
_DEAD = select(saga.c.executor_id).distinct().where(GOING_ON, ~_ALIVE).order_by(saga.c.executor_id)
_FORGET_DEAD = (
    delete(nexus_instance)
    .where(
        nexus_instance.c.time_expires <= bindparam("now"),
        ~exists().where(saga.c.executor_id == nexus_instance.c.id, GOING_ON),
    )
    .returning(nexus_instance.c.id)
)


@runtime_checkable
class Guarded(Protocol):
    """What actions are given, if its transactions can be made to ask something first."""

    def guarded(self, ask: Body[None]) -> Any:
        """The same, where each transaction runs ``ask`` before its body, and ends with what it raises."""


def _dump(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class SagaStore:
    """Durable sagas over ``database``; a :class:`nexus.saga.Store`. ``clock`` dates the rows."""

    database: Database
    clock: Clock = database_clock

    async def create(self, record: SagaRecord) -> None:
        """Write the row, unless the saga is there already."""

        def body(connection: Connection) -> None:
            now = self.clock(connection)
            row = {
                "id": record.id,
                "name": record.name,
                "params": _dump(record.params),
                "labels": _dump(record.labels),
                "state": record.state.value,
                "executor_id": record.executor_id,
                "fence": record.fence,
                "event_count": 0,
                "time_created": now,
                "time_modified": now,
            }
            insert_if_absent(connection, saga, row)

        await self.database.transact(body)

    async def append(self, saga_id: str, fence: int, event: Event, state: SagaState) -> None:
        """Add a row to the log, and set the saga's state. Raises :class:`~nexus.saga.Fenced`."""

        def body(connection: Connection) -> None:
            now = self.clock(connection)
            count = _advance(connection, saga_id, fence, state, now, events=1)
            row = {
                "saga_id": saga_id,
                "number": count - 1,
                "label": event.label,
                "kind": event.kind.value,
                "data": None if event.data is None else _dump(event.data),
                "time": now,
            }
            connection.execute(_APPEND, row)

        await self.database.transact(body)

    async def set_state(self, saga_id: str, fence: int, state: SagaState) -> None:
        """Set the saga's state alone. Raises :class:`~nexus.saga.Fenced`."""

        def body(connection: Connection) -> None:
            _advance(connection, saga_id, fence, state, self.clock(connection), events=0)

        await self.database.transact(body)

    async def load(self, saga_id: str) -> tuple[SagaRecord, Sequence[Event]]:
        """The row and its log, in order. Raises :class:`KeyError`."""

        def body(connection: Connection) -> tuple[SagaRecord, Sequence[Event]]:
            row = connection.execute(select(saga).where(saga.c.id == saga_id)).one_or_none()
            if row is None:
                raise KeyError(saga_id)
            rows = select(saga_event).where(saga_event.c.saga_id == saga_id).order_by(saga_event.c.number)
            return _record(row), tuple(map(_event, connection.execute(rows)))

        return await self.database.read(body)

    async def unfinished(self, executor_id: str) -> Sequence[SagaRecord]:
        """The sagas of ``executor_id`` that are running or unwinding, by id."""

        def body(connection: Connection) -> Sequence[SagaRecord]:
            return tuple(map(_record, connection.execute(_UNFINISHED_OF, {"executor": executor_id})))

        return await self.database.read(body)

    async def adopt(self, record: SagaRecord, executor_id: str) -> SagaRecord | None:
        """Take the saga over, if it still belongs to who has it in ``record``; the row as it is then."""

        def body(connection: Connection) -> SagaRecord | None:
            taken = (
                update(saga)
                .where(
                    saga.c.id == record.id,
                    saga.c.executor_id == record.executor_id,
                    saga.c.fence == record.fence,
                )
                .values(executor_id=executor_id, fence=record.fence + 1, time_modified=self.clock(connection))
            )
            if connection.execute(taken).rowcount != 1:
                return None
            return _record(connection.execute(select(saga).where(saga.c.id == record.id)).one())

        return await self.database.transact(body)

    def world_of(self, record: SagaRecord, world: Any) -> Any:
        """See :class:`nexus.saga.store.Store`. *Safety*: the fence is read in the transaction that it guards, so that
        whoever takes the saga over comes either before it, which is refused then, or after it, and sees what it did."""
        if not isinstance(world, Guarded):
            return world

        def ask(connection: Connection) -> None:
            fence = connection.execute(_FENCE, {"of": record.id}).scalar_one_or_none()
            if fence != record.fence:
                raise Fenced(f"saga {record.id} has gone over to another Nexus")

        return world.guarded(ask)

    async def page(
        self, *, limit: int, after: SagaRecord | None = None, state: SagaState | None = None
    ) -> Sequence[SagaRecord]:
        """Up to ``limit`` sagas by id, those that follow ``after``; for listings, so in one page's time."""

        def body(connection: Connection) -> Sequence[SagaRecord]:
            wanted = select(saga).order_by(saga.c.id).limit(limit)
            if after is not None:
                wanted = wanted.where(saga.c.id > after.id)
            if state is not None:
                wanted = wanted.where(saga.c.state == state.value)
            return tuple(map(_record, connection.execute(wanted)))

        return await self.database.read(body)


def _advance(connection: Connection, saga_id: str, fence: int, state: SagaState, now: datetime, *, events: int) -> int:
    """Write the state under ``fence``; the number of events then."""
    values = {"of": saga_id, "under": fence, "to": state.value, "more": events, "now": now}
    count: int | None = connection.execute(_ADVANCE, values).scalar_one_or_none()
    if count is not None:
        return count
    holder = connection.execute(select(saga.c.executor_id).where(saga.c.id == saga_id)).scalar_one_or_none()
    if holder is None:
        raise KeyError(saga_id)
    raise Fenced(f"saga {saga_id} has gone over to {holder}")


def _record(row: Row[Any]) -> SagaRecord:
    return SagaRecord(
        row.id,
        row.name,
        json.loads(row.params),
        tuple(json.loads(row.labels)),
        SagaState(str(row.state)),
        row.executor_id,
        row.fence,
    )


def _event(row: Row[Any]) -> Event:
    return Event(row.label, Kind(str(row.kind)), None if row.data is None else json.loads(row.data))


@dataclass(frozen=True, slots=True)
class Instance:
    """A Nexus process. Alive while ``time_expires`` is to come."""

    id: str
    time_started: datetime
    time_heartbeat: datetime
    time_expires: datetime


@dataclass(frozen=True, slots=True)
class Leases:
    """Who is alive. A lease runs out ``lease_seconds`` after it was last renewed."""

    database: Database
    lease_seconds: float
    clock: Clock = database_clock

    async def register(self, instance_id: str) -> Instance:
        """A Nexus starts, or starts again under the same id, and then its sagas are its own still."""

        def body(connection: Connection) -> Instance:
            now = self.clock(connection)
            started = Instance(instance_id, now, now, now + timedelta(seconds=self.lease_seconds))
            connection.execute(_RETIRE, {"of": instance_id})
            connection.execute(_REGISTER, _columns(started))
            return started

        return await self.database.transact(body)

    async def heartbeat(self, instance_id: str) -> bool:
        """Renew the lease. ``False``: it had run out, and its sagas may be others' by now; it must register anew."""

        def body(connection: Connection) -> bool:
            now = self.clock(connection)
            renewed = (
                update(nexus_instance)
                .where(nexus_instance.c.id == instance_id, nexus_instance.c.time_expires > now)
                .values(time_heartbeat=now, time_expires=now + timedelta(seconds=self.lease_seconds))
            )
            return connection.execute(renewed).rowcount == 1

        return await self.database.transact(body)

    async def retire(self, instance_id: str) -> None:
        """A Nexus ends, or a dead one has nothing left: forget it. What it has not finished is others' at once."""

        def body(connection: Connection) -> None:
            connection.execute(_RETIRE, {"of": instance_id})

        await self.database.transact(body)

    async def instances(self) -> Sequence[Instance]:
        """All that registered and did not retire, by id."""

        def body(connection: Connection) -> Sequence[Instance]:
            rows = connection.execute(select(nexus_instance).order_by(nexus_instance.c.id))
            return tuple(Instance(row.id, row.time_started, row.time_heartbeat, row.time_expires) for row in rows)

        return await self.database.read(body)

    async def dead_instances(self) -> Sequence[str]:
        """Who has unfinished sagas and no lease, whether it ran out or never was."""

        def body(connection: Connection) -> Sequence[str]:
            return tuple(connection.scalars(_DEAD, {"now": self.clock(connection)}))

        return await self.database.read(body)

    async def forget_dead(self) -> Sequence[str]:
        """Forget who is dead and has nothing left to be taken over; their ids. One that comes back meanwhile is kept:
        the same statement looks whether it is dead."""

        def body(connection: Connection) -> Sequence[str]:
            return tuple(sorted(connection.scalars(_FORGET_DEAD, {"now": self.clock(connection)})))

        return await self.database.transact(body)


def _columns(instance: Instance) -> dict[str, Any]:
    return {name: getattr(instance, name) for name in Instance.__slots__}
