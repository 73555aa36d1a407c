"""Carries out what the pure Downstairs decides, on a region.

What it is for: the core says ``Run``; here it is run. Writes and reads of what is in memory are done at once, on the
loop's thread, because handing them to anybody costs more than doing them. What waits for a device goes to a few
threads: reads that miss, flushes, copies of extents.

Writes that became ready together and touch different blocks go to the region in one call: their hashes are verified
and their rows stored by a handful of array operations. *Safety*: nothing is written whose hash was not verified, but
for an Upstairs in the same process, which computed the hash of the very memory that is written.

What it guarantees: each ``Run`` is reported to the core exactly once. Answers reach an outlet in the order in which
the core gave them, also when an outlet hands in new messages from inside a delivery.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import trio

from crucible_emu import errors
from crucible_emu.downstairs.core import Downstairs
from crucible_emu.downstairs.faults import FaultInjector
from crucible_emu.downstairs.flushes import Flushes
from crucible_emu.downstairs.read_grants import ReadGrants
from crucible_emu.downstairs.runs import Runs
from crucible_emu.downstairs.session import State
from crucible_emu.downstairs.settling import Settling
from crucible_emu.downstairs.together import FlushesTogether
from crucible_emu.downstairs.work import (
    DROPPED,
    NO_ROOM,
    Abandon,
    Action,
    Close,
    Kind,
    Resume,
    Run,
    Send,
    SendTrain,
    Work,
    as_error,
    outcome_of,
)
from crucible_emu.errors import CrucibleError
from crucible_emu.geometry import spans_to_blocks
from crucible_emu.integrity import BlockContexts, verify_writes
from crucible_emu.logs import get_logger
from crucible_emu.region import FlushWork, Region
from crucible_emu.wire import messages as m
from crucible_emu.wire.runs import RUNS

if TYPE_CHECKING:
    from crucible_emu.downstairs.repair_client import Sources

READ_THREADS = 4
INLINE_READ_BYTES_MAX = 2 * 1024 * 1024
"""Longer reads go to a thread even if all is in memory: 2 MiB take some 0.3 ms, in which nobody else is served."""
TRAIN_BYTES_MAX = 512 * 1024
"""Writes are put together up to this size: joining them is a copy, and much beside a write of 1 MiB (over three
processes 3.5 ms of processor time for each where such are joined, 2.75 where not)."""

LOCAL_TROUBLE = (
    errors.IoError,
    errors.SnapshotFailed,
    errors.MissingContextSlot,
    errors.BadMetadata,
    errors.BadContextSlot,
    errors.RepairRequestError,
    errors.RepairFilesInvalid,
    errors.RepairStreamError,
)

_WRITE, _WRITE_UNWRITTEN, _WRITE_RUN = Kind.WRITE, Kind.WRITE_UNWRITTEN, Kind.WRITE_RUN

log = get_logger(__name__)


class Outlet(Protocol):
    """Where the answers of one connection go."""

    trusted: bool
    """The peer is this process: hashes need no verification."""

    def deliver(self, messages: list[m.Message]) -> None:
        """Answers, in order. Must not block; may hand in new messages."""

    def close(self, reason: str) -> None:
        """Nothing will be delivered any more. Must not block."""

    def resume(self) -> None:
        """There is room for messages again."""


class Runner:
    """Runs one :class:`Downstairs` on one :class:`Region`. Everything happens on the loop's thread but for what
    :meth:`run` gives to threads of its own."""

    def __init__(
        self,
        region: Region,
        core: Downstairs,
        *,
        sources: Sources,
        injector: FaultInjector | None = None,
        together: FlushesTogether | None = None,
    ) -> None:
        self.region = region
        self.core = core
        self.injector = injector
        self.sources = sources
        self._outlets: dict[int, Outlet] = {}
        self._next_connection_id = 1
        self._actions: deque[Action] = deque()
        self._outbox: dict[int, list[m.Message]] = {}
        self._performing = False
        self._reads_in, self._reads_out = trio.open_memory_channel[Work](math.inf)  # bounded by the job limits
        # Bounded by the lane, which starts a flush and a repair at most.
        self._slow_in, self._slow_out = trio.open_memory_channel[tuple[Work, FlushWork | None]](math.inf)
        self._later: list[tuple[float, int, Work]] = []
        self._later_changed = trio.Event()
        self._repairs: dict[Work, trio.CancelScope] = {}
        self._held: list[Work] | None = None
        self._limiter = trio.CapacityLimiter(READ_THREADS + 2)
        self._flushes = Flushes(region, self._in_thread, trio.current_time, together)
        self._settling = Settling(region, self._flushes, self.relieve)
        self._sequence = 0
        self._runs = Runs(region, core)
        self.read_grants: ReadGrants | None = None
        """Who reads past this runner, where anybody may."""
        if region.shared is not None and injector is None:
            self.read_grants = ReadGrants(region, region.shared, core, lambda: self._held is not None)

    # Connections

    def connect(self, outlet: Outlet, repair_address: m.SocketAddress, *, in_order: bool = False) -> int:
        """Take up a connection; its number."""
        connection_id = self._next_connection_id
        self._next_connection_id += 1
        self._outlets[connection_id] = outlet
        self.core.opened(connection_id, repair_address, in_order)
        return connection_id

    def disconnect(self, connection_id: int) -> None:
        """The connection ended on the peer's side, or its outlet gives up."""
        if self._outlets.pop(connection_id, None) is not None:
            self._outbox.pop(connection_id, None)
            self._end_grants(connection_id)
            self._perform(self.core.closed(connection_id))

    def receive(self, connection_id: int, messages: list[m.Message], first: int = 0) -> int:
        """Take messages as :meth:`Downstairs.receive_train` does; how many were taken. If not all were, the outlet's
        ``resume`` tells when to offer the rest, unless offering it again at once succeeds. A run that something stands
        in the way of is replaced, in ``messages``, by what it consists of."""
        actions: list[Action] = []
        index, self._runs.read_bytes = first, 0
        while index < len(messages):
            message = messages[index]
            if type(message) in RUNS:
                direct = self.injector is None and self._held is None and not self._performing
                done = self._runs.do(connection_id, message) if direct else None
                if done is None:
                    messages[index : index + 1] = self._runs.split(connection_id, message)  # type: ignore[arg-type]
                else:
                    actions += done
                    index += 1
                continue
            stop = next((at for at in range(index + 1, len(messages)) if type(messages[at]) in RUNS), len(messages))
            taken, wanted = self.core.receive_train(connection_id, messages[index:stop])
            self._perform([*actions, *wanted])  # before a run is done at once: jobs run in order of arrival
            actions = []
            index += taken
            if index < stop:
                break
        self._perform(actions)
        self._relieve_after_runs()
        return index - first

    def _relieve_after_runs(self) -> None:
        if self._runs.wrote:
            self._runs.wrote = False
            if self.region.wants_destage():
                self.relieve()

    def may_write(self, connection_id: int) -> bool:
        """Whether the connection's session runs on a region that can be written."""
        return not self.region.read_only and self.core.state(connection_id) is State.RUNNING

    # Carrying actions out

    def _perform(self, actions: Sequence[Action]) -> None:
        self._actions.extend(actions)
        if self._performing:
            return  # called from a delivery: whoever delivers goes on with these
        self._performing = True
        try:
            while self._actions or self._outbox:
                while self._actions:
                    self._next_action()
                outbox, self._outbox = self._outbox, {}
                for connection_id, messages in outbox.items():
                    outlet = self._outlets.get(connection_id)
                    if outlet is not None:
                        outlet.deliver(messages)
        finally:
            self._performing = False

    def _next_action(self) -> None:
        action = self._actions.popleft()
        kind = type(action)
        if kind is Run:
            assert isinstance(action, Run)
            self._run(action)
        elif kind is Send:
            assert isinstance(action, Send)
            self._outbox.setdefault(action.connection_id, []).append(action.message)
        elif kind is SendTrain:
            assert isinstance(action, SendTrain)
            self._outbox.setdefault(action.connection_id, []).extend(action.messages)
        elif isinstance(action, Close):
            self._close(action)
        elif isinstance(action, Abandon):
            self._abandon(action.work)
        elif isinstance(action, Resume):
            outlet = self._outlets.get(action.connection_id)
            if outlet is not None:
                outlet.resume()

    def _end_grants(self, connection_id: int) -> None:
        """*Safety*: before anybody else is told that it is the writer."""
        if self.read_grants is not None:
            self.read_grants.connection_ended(connection_id)

    def _close(self, action: Close) -> None:
        self._end_grants(action.connection_id)
        outlet = self._outlets.pop(action.connection_id, None)
        messages = self._outbox.pop(action.connection_id, None)
        if outlet is not None:
            if messages:
                outlet.deliver(messages)
            outlet.close(action.reason)

    def _run(self, action: Run) -> None:
        work = action.work
        if action.pause_s:
            self._run_later(work, action.pause_s)
            return
        if self.injector is not None or self._held is not None:
            self._run_with_faults(work)
            return
        if work.kind is _WRITE or work.kind is _WRITE_UNWRITTEN:
            self._write(self._gather(work))
        elif work.kind is _WRITE_RUN:
            self._write_run(work)
        else:
            self._start(work)

    def _write_run(self, work: Work) -> None:
        self._perform(self._runs.do_held(work))
        self._relieve_after_runs()

    def _gather(self, first: Work) -> list[Work]:
        """``first`` and the writes that stand directly behind it and can go along."""
        works = [first]
        kind, connection_id, size_bytes = first.kind, first.connection_id, first.size_bytes
        actions = self._actions
        while actions:
            following = actions[0]
            if type(following) is not Run or following.pause_s:
                break
            work = following.work
            size_bytes += work.size_bytes
            if work.kind is not kind or work.connection_id != connection_id or size_bytes > TRAIN_BYTES_MAX:
                break
            works.append(work)
            actions.popleft()
        return works

    def _start(self, work: Work) -> None:
        """Do at once what can be done at once, hand over the rest."""
        kind = work.kind
        if kind is Kind.READ:
            self._read(work)
        elif kind is Kind.EXTENT_VERSIONS:
            self._at_once(work, self.region.extent_versions)
        elif kind is Kind.REOPEN_ALL:
            self._at_once(work, self.region.reopen_all_extents)
        elif kind is Kind.REOPEN:
            assert work.extent_id is not None
            self._at_once(work, self.region.reopen_extent, work.extent_id)
        elif kind is Kind.REPAIR:
            self._slow_in.send_nowait((work, None))
        else:
            self._begin(work)

    def _at_once(self, work: Work, function: Callable[..., Any], *arguments: Any) -> None:
        self._done(work, outcome_of(function, *arguments))

    def _done(self, work: Work, outcome: Any) -> None:
        if isinstance(outcome, CrucibleError):
            _report(work, outcome)
        self._perform(self.core.work_done(work, outcome))

    # Reads

    def _read(self, work: Work) -> None:
        size_bytes = work.count * self.region.definition.block_size
        if size_bytes <= INLINE_READ_BYTES_MAX:
            out = np.empty(size_bytes, np.uint8).data
            outcome = outcome_of(self.region.read_cached, work.start, work.count, out)
            if outcome is not None:
                self._done(work, (outcome, out) if isinstance(outcome, BlockContexts) else outcome)
                return
        self._reads_in.send_nowait(work)

    async def _read_slowly(self) -> None:
        async for work in self._reads_out:
            outcome: Any = DROPPED
            if not work.abandoned:
                out = np.empty(work.count * self.region.definition.block_size, np.uint8).data
                outcome = await self._in_thread(self.region.read, work.start, work.count, out)
                if isinstance(outcome, BlockContexts):
                    outcome = (outcome, out)
            self._done(work, outcome)

    async def _in_thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await trio.to_thread.run_sync(outcome_of, function, *arguments, limiter=self._limiter)

    # Writes

    def _write(self, works: list[Work]) -> None:
        """Write these, all of one connection and one kind, in order."""
        outlet = self._outlets.get(works[0].connection_id)
        trusted = outlet is not None and outlet.trusted
        if len(works) > 1 and _disjoint(works) and self._write_together(works, trusted):
            self._perform(self.core.train_written(works))
        else:
            outcomes: list[Any] = []
            for work in works:
                stalled = bool(outcomes) and outcomes[-1] is NO_ROOM  # those behind it wait too, in order
                outcomes.append(NO_ROOM if stalled else self._write_one(work, trusted))
            self._perform(self.core.works_done(works, outcomes))
        if self.region.wants_destage():
            self.relieve()

    def relieve(self) -> None:
        """The staging area is getting full: make room, unless that is under way already."""
        self._perform(self.core.relieve())

    def _write_together(self, works: list[Work], trusted: bool) -> bool:
        """One call for all of them; False if they have to be done one by one, which then finds out why."""
        blocks = spans_to_blocks([work.start for work in works], [work.count for work in works])
        if not self.region.has_room(len(blocks)):
            return False
        data = b"".join([work.message.data for work in works])
        contexts = BlockContexts.concatenate([work.message.contexts for work in works])
        try:
            self._store(works[0].kind, blocks, data, contexts, trusted)
        except (CrucibleError, OSError):
            return False
        return True

    def _write_one(self, work: Work, trusted: bool) -> Any:
        if not (self.region.has_room(work.count) or work.relieved):
            return NO_ROOM
        blocks = np.arange(work.start, work.start + work.count, dtype=np.int64)
        message = work.message
        outcome = outcome_of(self._store, work.kind, blocks, message.data, message.contexts, trusted)
        if isinstance(outcome, CrucibleError):
            _report(work, outcome)
        return outcome

    def _store(self, kind: Kind, blocks: Any, data: Any, contexts: BlockContexts, trusted: bool) -> None:
        rows = np.frombuffer(data, np.uint8).reshape(len(blocks), -1)
        if not trusted:
            verify_writes(contexts, rows)
        if kind is _WRITE:
            self.region.write(blocks, rows, contexts)
        else:
            self.region.write_unwritten(blocks, rows, contexts)

    # What takes time: flushes, closing, repair

    def _begin(self, work: Work) -> None:
        """Fix what a flush covers, now; its I/O goes to a thread, if there is any."""
        flush = outcome_of(self._flushes.begin, work)
        if isinstance(flush, CrucibleError):
            self._done(work, flush)
            return
        if work.kind is Kind.FLUSH:
            self._perform(self.core.flush_fixed(work))
        if self._flushes.is_quick(work, flush):
            outcome = self._flushes.finish_at_once(work, flush)
            if not flush.is_empty:
                self._settling.flushed()
            self._done(work, outcome)
        else:
            self._slow_in.send_nowait((work, flush))

    async def _work_slowly(self) -> None:
        async for work, flush in self._slow_out:
            if flush is not None:
                outcome = await self._flushes.finish(work, flush)
                self._settling.flushed()
            else:
                outcome = DROPPED if work.abandoned else await self._repair(work)
            self._done(work, outcome)

    async def _repair(self, work: Work) -> Any:
        assert work.extent_id is not None
        from crucible_emu.downstairs.repair_client import fetch_extent

        outcome: Any = DROPPED
        with trio.CancelScope() as scope:
            self._repairs[work] = scope
            try:
                await fetch_extent(self.region, work.extent_id, work.message.source_repair_address, self.sources)
                outcome = None
            except (CrucibleError, OSError) as error:
                outcome = as_error(error)
            finally:
                del self._repairs[work]
        return outcome

    def _abandon(self, work: Work) -> None:
        scope = self._repairs.get(work)
        if scope is not None:
            scope.cancel()

    # Faults, and work that is done later

    def _run_with_faults(self, work: Work) -> None:
        if self._held is not None:
            self._held.append(work)
            return
        assert self.injector is not None
        error = self.injector.error(work)
        if error is not None:
            self._perform(self.core.work_done(work, error))
            return
        delay_s = self.injector.delay_s(work)
        if delay_s:
            self._run_later(work, delay_s)
        else:
            self._run_now(work)

    def _run_now(self, work: Work) -> None:
        if work.abandoned and work.kind is not Kind.REOPEN_ALL:
            self._done(work, DROPPED)
        elif work.kind is _WRITE or work.kind is _WRITE_UNWRITTEN:
            self._write([work])
        else:
            self._start(work)

    def _run_later(self, work: Work, pause_s: float) -> None:
        self._sequence += 1
        heapq.heappush(self._later, (trio.current_time() + pause_s, self._sequence, work))
        self._later_changed.set()

    async def _run_what_is_due(self) -> None:
        while True:
            due = self._later[0][0] if self._later else math.inf
            if due <= trio.current_time():
                self._run_now(heapq.heappop(self._later)[2])
                continue
            with trio.move_on_at(due):
                self._later_changed = trio.Event()
                await self._later_changed.wait()

    @property
    def stalled(self) -> bool:
        return self._held is not None

    def stall(self) -> None:
        """From now on no work is begun: the machine seems to have stopped. For tests."""
        if self._held is None:
            self._held = []
            if self.read_grants is not None:
                self.read_grants.revoke()

    def unstall(self) -> None:
        """Go on, with what was held back first."""
        held, self._held = self._held, None
        for work in held or ():
            self._perform([Run(work)])

    # The shell's own tasks

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Do what takes time, until cancelled. A flush whose I/O has begun is finished first."""
        try:
            async with trio.open_nursery() as nursery:
                for _ in range(READ_THREADS):
                    nursery.start_soon(self._read_slowly)
                # The lane lets a repair run beside a flush, and nothing else beside either.
                nursery.start_soon(self._work_slowly)
                nursery.start_soon(self._work_slowly)
                nursery.start_soon(self._run_what_is_due)
                nursery.start_soon(self._settling.run)
                task_status.started()
        finally:
            self._abandon_what_is_queued()
            self._settling.at_last()

    def _abandon_what_is_queued(self) -> None:
        """A flush that waits for its thread will not get it any more; the region takes back what it would cover."""
        while True:
            try:
                _, flush = self._slow_out.receive_nowait()
            except trio.WouldBlock:
                return
            if flush is not None:
                self.region.abandon_flush(flush)


def _report(work: Work, error: CrucibleError) -> None:
    """Say that work failed: loudly where this machine is at fault, else as news."""
    say = log.warning if isinstance(error, LOCAL_TROUBLE) else log.info
    say("work failed", kind=work.kind.name, job=work.job_id, connection=work.connection_id, error=str(error))


def _disjoint(works: list[Work]) -> bool:
    """Whether no two of these writes touch the same block."""
    spans = sorted([(work.start, work.start + work.count) for work in works])
    return all(stop <= start for (_, stop), (start, _) in pairwise(spans))
