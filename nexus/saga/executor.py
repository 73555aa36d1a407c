"""Running sagas: the Trio shell around :class:`~nexus.saga.execution.Execution`.

What it guarantees: an action runs only after its start is in the log, and what comes after it only after its end is; so
whoever reads the log later knows what may have happened and does the rest. Every row carries the fence under which this
Nexus got the saga: when the saga has gone over to another, the next row is refused and it is let go without a word. So
is every transaction of an action that comes too late: what a Nexus does that stood still changes nothing.

A database that cannot be reached costs nothing but time: the saga is let go as well, and :meth:`Executor.recover`,
which a background task calls, goes on with it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import trio
from pydantic import BaseModel

from crucible_emu.logs import get_logger
from nexus.saga.dag import Dag, Vertex
from nexus.saga.events import Event, Kind, refuse_secrets
from nexus.saga.execution import ENDED, Execution, Failure, ImpossibleEvent, SagaState
from nexus.saga.hooks import Crash, Hooks, Point, no_hooks
from nexus.saga.recipe import ActionFailed, Context, Interrupted, Saga
from nexus.saga.store import Fenced, SagaRecord, Store

UNEXPECTED = "unexpected"
Work = Callable[[Context[Any]], Awaitable[Any]]
Perform = Callable[[Work, Vertex, Context[Any]], Awaitable[Any]]

log = get_logger(__name__)


class SagaFailed(Exception):
    """A saga came to its end undone. ``label`` is the node that failed, ``kind`` its word for machines."""

    def __init__(self, saga_id: str, failure: Failure) -> None:
        super().__init__(failure.message)
        self.saga_id, self.label, self.kind = saga_id, failure.label, failure.kind


class SagaStuck(Exception):
    """An undo failed: the saga waits for a person, and what it has locked stays locked."""

    def __init__(self, saga_id: str, failure: Failure) -> None:
        super().__init__(failure.message)
        self.saga_id, self.label, self.kind = saga_id, failure.label, failure.kind


async def perform_once(work: Work, vertex: Vertex, context: Context[Any]) -> Any:
    """What an executor does with an action or undo; tests put repetitions and failures in its place."""
    return await work(context)


@dataclass(slots=True)
class _Run:
    """One saga that this executor has in hand."""

    record: SagaRecord
    execution: Execution
    busy: set[str] = field(default_factory=set)
    ended: trio.Event = field(default_factory=trio.Event)
    wake: trio.Event = field(default_factory=trio.Event)
    recording: trio.Lock = field(default_factory=trio.Lock)

    @property
    def outcome(self) -> Failure | None:
        return self.execution.undo_failure or self.execution.failure


class Executor:
    """Runs the sagas of one Nexus, ``executor_id``, inside ``nursery``.

    ``sagas``: every recipe that may be asked for or found in the log. ``world``: what actions are given.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        store: Store,
        sagas: Iterable[Saga],
        world: Any,
        executor_id: str,
        *,
        new_id: Callable[[], str],
        hooks: Hooks = no_hooks,
        perform: Perform = perform_once,
    ) -> None:
        self._nursery = nursery
        self._store = store
        self._sagas = {saga.name: saga for saga in sagas}
        self._dags = {name: Dag.of(saga) for name, saga in self._sagas.items()}
        self._world = world
        self._new_id = new_id
        self._hooks = hooks
        self._perform = perform
        self._runs: dict[str, _Run] = {}
        self._claimed: set[str] = set()
        self.executor_id = executor_id

    # -- what others ask for ------------------------------------------------------------------------------------------

    async def start(self, saga: Saga, params: BaseModel, saga_id: str | None = None) -> str:
        """Write the saga down and run it on its own; its id. When this returns it will be finished by somebody."""
        dag = self._dags[saga.name]
        given = params.model_dump(mode="json")
        refuse_secrets(given, "params")
        record = SagaRecord(
            saga_id or self._new_id(), saga.name, given, tuple(dag.labels), SagaState.RUNNING, self.executor_id
        )
        with self._claiming(record.id):
            await self._store.create(record)
            self._take_in_hand(record, Execution(dag))
        return record.id

    async def run(self, saga: Saga, params: BaseModel) -> Mapping[str, Any]:
        """As :meth:`start`, and wait for the end; the outputs of its nodes, by label. Raises :class:`SagaFailed`,
        :class:`SagaStuck`."""
        return await self.wait(await self.start(saga, params))

    async def wait(self, saga_id: str) -> Mapping[str, Any]:
        """The outputs of a saga that this executor runs, when it has ended. Raises as :meth:`run`."""
        run = self._runs.get(saga_id)
        if run is not None:
            await run.ended.wait()
            execution = run.execution
        else:
            record, events = await self._store.load(saga_id)
            execution = Execution.replayed(self._dags[record.name], events)
        match execution.state:
            case SagaState.DONE:
                return execution.outputs
            case SagaState.UNWOUND:
                assert execution.failure is not None
                raise SagaFailed(saga_id, execution.failure)
            case SagaState.STUCK:
                assert execution.undo_failure is not None
                raise SagaStuck(saga_id, execution.undo_failure)
        raise Fenced(f"saga {saga_id} is not run by this Nexus any more")

    async def recover(self) -> list[str]:
        """Go on with whatever belongs to this Nexus and is not being run: after a restart, or when the database was
        away. The ids."""
        found = [record for record in await self._store.unfinished(self.executor_id) if self._is_free(record.id)]
        return [record.id for record in found if await self._go_on(record)]

    async def take_over(self, executor_id: str) -> list[str]:
        """Go on with what the Nexus ``executor_id``, which is dead, has left. The ids of what others did not get."""
        taken = []
        for record in await self._store.unfinished(executor_id):
            adopted = await self._store.adopt(record, self.executor_id)
            if adopted is not None and await self._go_on(adopted):
                log.info("saga taken over", saga=record.id, name=record.name, from_executor=executor_id)
                taken.append(record.id)
        return taken

    async def resume(self, saga_id: str) -> None:
        """Try the failed undos of a stuck saga again. Raises :class:`KeyError`; does nothing where it is not stuck."""
        record, events = await self._store.load(saga_id)
        execution = Execution.replayed(self._dags[record.name], events)
        if execution.state is not SagaState.STUCK:
            return
        if not self._is_free(saga_id):
            return
        with self._claiming(saga_id):
            adopted = await self._store.adopt(record, self.executor_id)
            if adopted is not None:
                execution.resumed = True
                await self._store.set_state(saga_id, adopted.fence, SagaState.UNWINDING)
                self._take_in_hand(adopted, execution)

    @property
    def in_hand(self) -> list[str]:
        """The ids of the sagas that are being run."""
        return list(self._runs)

    # -- one saga -----------------------------------------------------------------------------------------------------

    def _is_free(self, saga_id: str) -> bool:
        return saga_id not in self._runs and saga_id not in self._claimed

    @contextmanager
    def _claiming(self, saga_id: str) -> Iterator[None]:
        """*Safety*: between a saga's row and its run the database is waited for. Who looks for sagas that nobody runs
        finds the row in that moment; run twice under one fence, its log would say what cannot have happened."""
        self._claimed.add(saga_id)
        try:
            yield
        finally:
            self._claimed.discard(saga_id)

    async def _go_on(self, record: SagaRecord) -> bool:
        """Take it in hand as its log says, unless that was done meanwhile; whether it was free for that."""
        if not self._is_free(record.id):
            return False
        with self._claiming(record.id):
            dag = self._dags.get(record.name)
            if dag is None or tuple(dag.labels) != record.labels:
                await self._give_up(record, "its recipe is not the one that it was made from")
                return True
            found, events = await self._store.load(record.id)
            if (found.executor_id, found.fence) != (record.executor_id, record.fence) or found.state in ENDED:
                return False
            try:
                execution = Execution.replayed(dag, events)
            except ImpossibleEvent as error:
                await self._give_up(found, str(error))
                return True
            # An operator may have resumed it before this Nexus, or the one before it, died.
            execution.resumed = found.state is SagaState.UNWINDING
            self._take_in_hand(found, execution)
            return True

    async def _give_up(self, record: SagaRecord, why: str) -> None:
        log.error("saga cannot be gone on with", saga=record.id, name=record.name, reason=why)
        await self._store.set_state(record.id, record.fence, SagaState.STUCK)

    def _take_in_hand(self, record: SagaRecord, execution: Execution) -> None:
        run = _Run(record, execution)
        self._runs[record.id] = run
        self._nursery.start_soon(self._run, run)

    async def _run(self, run: _Run) -> None:
        record = run.record
        try:
            async with trio.open_nursery() as nursery:
                while run.busy or run.execution.state not in ENDED | {SagaState.STUCK}:
                    self._start_what_is_next(run, nursery)
                    run.wake = trio.Event()
                    await run.wake.wait()
            await self._record_the_end(run)
        except* Fenced:
            log.info("saga let go: another Nexus has it", saga=record.id, name=record.name)
        except* Crash:
            raise
        except* Exception as group:  # noqa: BLE001 - the log is as it was; recover goes on from there
            log.warning("saga let go", saga=record.id, name=record.name, reason=str(group.exceptions[0]))
        finally:
            del self._runs[record.id]
            run.ended.set()

    def _start_what_is_next(self, run: _Run, nursery: trio.Nursery) -> None:
        for label in run.execution.next_actions():
            if label not in run.busy:
                run.busy.add(label)
                nursery.start_soon(self._node, run, label, partial(self._act, run, label))
        for label in run.execution.next_undos():
            if label not in run.busy:
                run.busy.add(label)
                nursery.start_soon(self._node, run, label, partial(self._undo, run, label))

    async def _node(self, run: _Run, label: str, work: Callable[[], Awaitable[None]]) -> None:
        await work()
        run.busy.discard(label)
        run.wake.set()

    async def _act(self, run: _Run, label: str) -> None:
        record, vertex = run.record, run.execution.dag.vertices[label]
        await self._hooks(Point.BEFORE_NODE, record.id, label)
        if not await self._record_start(run, Event(label, Kind.STARTED)):
            return
        output: Any = None
        failure: dict[str, str] | None = None
        if vertex.action is not None:
            try:
                output = await self._perform(vertex.action, vertex, self._context(run, label))
                refuse_secrets(output, label)
            except Interrupted:
                raise
            except Exception as error:  # noqa: BLE001 - whatever it is, the saga has to unwind
                failure = self._failure(record, label, error)
        await self._hooks(Point.AFTER_EFFECT, record.id, label)
        succeeded = failure is None
        await self._record(run, Event(label, Kind.SUCCEEDED if succeeded else Kind.FAILED, failure or output))
        await self._hooks(Point.AFTER_RECORD, record.id, label)

    async def _undo(self, run: _Run, label: str) -> None:
        record, vertex = run.record, run.execution.dag.vertices[label]
        assert vertex.undo is not None
        await self._hooks(Point.BEFORE_UNDO, record.id, label)
        if not await self._record_start(run, Event(label, Kind.UNDO_STARTED)):
            return
        failure: dict[str, str] | None = None
        try:
            await self._perform(vertex.undo, vertex, self._context(run, label))
        except Interrupted:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, a person has to look at it
            failure = self._failure(record, label, error)
            log.error("saga stuck: an undo failed", saga=record.id, name=record.name, node=label, **failure)
        await self._hooks(Point.AFTER_UNDO_EFFECT, record.id, label)
        await self._record(run, Event(label, Kind.UNDO_FINISHED if failure is None else Kind.UNDO_FAILED, failure))
        await self._hooks(Point.AFTER_UNDO, record.id, label)

    def _context(self, run: _Run, label: str) -> Context[Any]:
        world = self._store.world_of(run.record, self._world)
        return run.execution.dag.context(label, run.record.id, run.record.params, run.execution.outputs, world)

    def _failure(self, record: SagaRecord, label: str, error: Exception) -> dict[str, str]:
        if isinstance(error, ActionFailed):
            return {"message": str(error), "kind": error.kind}
        # The words of an unexpected error are nobody's promise: they might quote what must not be written down.
        log.warning("saga node failed unexpectedly", saga=record.id, name=record.name, node=label, exc_info=error)
        return {"message": f"{label} failed: {type(error).__name__}", "kind": UNEXPECTED}

    async def _record(self, run: _Run, event: Event) -> None:
        """Into the log first, then into the state that decides what comes next.

        *Safety*: one at a time. Branches end while another's row is being written, and each has to start from what the
        one before it left.
        """
        async with run.recording:
            await self._write(run, event)

    async def _record_start(self, run: _Run, event: Event) -> bool:
        """As :meth:`_record`, if the node is still one to begin with; whether it is.

        *Safety*: between the decision to start it and this row another branch may have failed. Whatever this node
        builds on would be undone while it runs.
        """
        async with run.recording:
            execution = run.execution
            if event.label not in (*execution.next_actions(), *execution.next_undos()):
                return False
            await self._write(run, event)
            return True

    async def _write(self, run: _Run, event: Event) -> None:
        ahead = run.execution.after(event)
        await self._store.append(run.record.id, run.record.fence, event, ahead.state)
        run.execution = ahead

    async def _record_the_end(self, run: _Run) -> None:
        """A saga without an undo to do after its failure ends by no event."""
        await self._store.set_state(run.record.id, run.record.fence, run.execution.state)
