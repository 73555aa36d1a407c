"""The Trio shell around the Upstairs core: connections, timers, and the actions carried out.

What it is for: one task per connection runs a connector; whatever it reports goes into the core at once, and what the
core wants done is done at once, in a plain loop (:meth:`Upstairs.perform`). No task, channel or lock per request.

Why it is safe: everything here runs on the loop's thread, and the core is never entered twice: a link that reports
something while actions are being carried out only queues more actions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import trio
import xxhash

from crucible_emu import errors
from crucible_emu.encryption import Cipher
from crucible_emu.integrity import BlockContexts, open_blocks
from crucible_emu.logs import get_logger
from crucible_emu.upstairs import actions, negotiation
from crucible_emu.upstairs.core import UpstairsCore
from crucible_emu.upstairs.delay import NO_DELAYS, delays_us, matters
from crucible_emu.upstairs.jobs import Job
from crucible_emu.upstairs.links import Connector, GatheringLink, Link, PacedLink
from crucible_emu.upstairs.read_train import Finished, ReadTrain
from crucible_emu.upstairs.replacement import ReplaceResult
from crucible_emu.upstairs.row_memory import RowMemory
from crucible_emu.upstairs.states import Phase, UpstairsState
from crucible_emu.upstairs.statistics import UpstairsStatistics
from crucible_emu.wire import messages as m
from crucible_emu.wire.runs import AckRun, ReadResponseRun

RECONNECT_DELAY_S = 10.0
FLUSH_INTERVAL_S = 0.5
WRITES_HELD_S = 0.004
MEMORY_KEPT_S = 30.0
"""Memory of writes is kept for the next ones until there was no job for so long."""
UNREADABLE = (errors.BadContextSlot, errors.MissingContextSlot)
"""What a replica answers with that cannot read its own context of a block: as damaged as the block itself."""
NEGOTIATED = (Phase.WAIT_QUORUM, Phase.RECONCILE, Phase.ACTIVE)
"""Where a replica has said everything that an activation wants to know of it."""

log = get_logger(__name__)


class ReadHandle:
    """A read on its way: ``out`` receives the data, ``contexts`` what replica ``client`` said of each block."""

    __slots__ = ("_out", "answered", "client", "contexts")

    def __init__(self, out: memoryview, answered: Callable[[ReadHandle, errors.CrucibleError | None], None]) -> None:
        self._out = out
        self.answered = answered
        self.contexts: BlockContexts | None = None
        self.client: int | None = None

    def out(self, position: int) -> memoryview:
        """Where the data go; such a job has one operation."""
        return self._out

    def verified(self, position: int, contexts: BlockContexts, client: int) -> None:
        """The data are in their place and right; ``answered`` follows."""
        self.contexts = contexts
        self.client = client


class FlushHandle:
    """A flush on its way."""

    __slots__ = ("answered",)

    def __init__(self, answered: Callable[[errors.CrucibleError | None], None]) -> None:
        self.answered = answered


class _Waiter:
    """Somebody who awaits an activation or deactivation."""

    __slots__ = ("done", "error")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.error: errors.CrucibleError | None = None

    async def wait(self) -> None:
        await self.done.wait()
        if self.error is not None:
            raise self.error


@dataclass(slots=True)
class Damage:
    """A replica answered a read with bytes that are not what they should be."""

    client: int
    start: int
    count: int
    error: errors.CrucibleError


class Upstairs:
    """One region set, ready to be driven: start :meth:`run` in a nursery, then :meth:`activate`.

    ``connectors``: the ways to the three Downstairs, in client order. ``cipher`` where the region is encrypted.
    ``connector_for``: makes the way to a Downstairs that is put in place of another, from client and address.
    """

    def __init__(
        self,
        core: UpstairsCore,
        connectors: list[Connector],
        *,
        cipher: Cipher | None = None,
        flush_interval_s: float = FLUSH_INTERVAL_S,
        reconnect_delay_s: float = RECONNECT_DELAY_S,
        connector_for: Callable[[int, str], Connector] | None = None,
    ) -> None:
        if len(connectors) != len(core.clients):
            raise errors.UsageError(f"a region set has {len(core.clients)} Downstairs, {len(connectors)} were given")
        self.core = core
        self.cipher = cipher
        self.flush_interval_s = flush_interval_s
        self.reconnect_delay_s = reconnect_delay_s
        self.in_process = all(connector.in_process for connector in connectors)
        self.statistics = UpstairsStatistics()
        self.row_memory = RowMemory()
        """For the data of writes that replicas keep; given back after :data:`MEMORY_KEPT_S`."""
        self.links: list[Link | None] = [None, None, None]
        self.on_progress: Callable[[], None] | None = None
        self.on_damage: Callable[[Damage], None] | None = None
        self.on_repair: Callable[[actions.RepairNews], None] | None = None
        self.on_stopped: Callable[[int, str], None] | None = None
        """Told the client and the reason when a connection has ended, before the core is."""
        self.delays_us: tuple[int, ...] = NO_DELAYS
        self.connectors = connectors
        self._connector_for = connector_for
        for client, connector in zip(core.clients, connectors):
            client.target = connector.target
        self._scopes: dict[int, tuple[int, trio.CancelScope]] = {}
        self._nursery: trio.Nursery | None = None
        self._performing = False
        self._gathering = False
        self._writes_held = trio.Event()
        self._gathering_links: list[GatheringLink | None] = [None, None, None]

    # -- life ---------------------------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Drive the Upstairs until cancelled. Deactivate first, or what was not flushed is lost."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._flush_when_idle)
                nursery.start_soon(self._hurry_writes)
                task_status.started()
                self.perform()
                await trio.sleep_forever()
        finally:
            self.row_memory.close()

    async def activate(self, generation: int | None = None, timeout_s: float | None = None) -> None:
        """Bring the disk into service. Raises the reason where that cannot be; with ``timeout_s``, gives up then."""
        waiter = _Waiter()
        self.core.activate(waiter, generation)
        self.perform()
        with _deadline(timeout_s) as scope:
            await waiter.wait()
        if scope.cancelled_caught:
            missing = [str(client.index) for client in self.core.clients if client.state.phase not in NEGOTIATED]
            waits_for = f"waiting for replicas {', '.join(missing)}" if missing else "the replicas are being made equal"
            error = errors.IoError(f"no activation within {timeout_s:g} s; {waits_for}")
            self.core.abandon(error)
            self.perform()
            raise error

    async def deactivate(self) -> None:
        """Flush what is not durable and close all connections."""
        waiter = _Waiter()
        self.core.deactivate(waiter)
        self.perform()
        await waiter.wait()

    def replace_downstairs(self, old: str, new: str) -> ReplaceResult:
        """Put the Downstairs at address ``new`` in place of the one at ``old`` (§9); it is repaired while the disk is
        in use. Raises :class:`errors.ReplaceRequestInvalid`."""
        if self._connector_for is None:
            raise errors.ReplaceRequestInvalid("this disk was not told how to reach other Downstairs")
        result = self.core.replace_downstairs(old, new)
        if result is ReplaceResult.STARTED:
            client = next(client.index for client in self.core.clients if client.target == new)
            self.connectors[client] = self._connector_for(client, new)
        self.perform()
        return result

    @property
    def active(self) -> bool:
        return self.core.state is UpstairsState.ACTIVE

    async def _flush_when_idle(self) -> None:
        """The automatic flush: one interval without a new job (§6.9)."""
        seen, idle_s = self.core.next_job_id, 0.0
        while True:
            await trio.sleep(self.flush_interval_s)
            idle = self.core.next_job_id == seen
            if idle and self.core.need_flush:
                self.core.idle_flush()
                self.perform()
                idle = False
            idle_s = idle_s + self.flush_interval_s if idle else 0.0
            if idle_s >= MEMORY_KEPT_S:
                self.row_memory.trim()
            seen = self.core.next_job_id

    # -- carrying out -------------------------------------------------------------------------------------------------

    def perform(self) -> None:
        """Carry out what the core wants done. Entered again from within, it leaves the rest to the outer call."""
        if self._performing:
            return
        self._performing = True
        try:
            while True:
                wanted = self.core.take_actions()
                if not wanted:
                    break
                for action in wanted:
                    self._DO[type(action)](self, action)
        finally:
            self._performing = False
        if not self.in_process:
            self._keep_in_step()
            if not self._gathering:
                self._send_off()
        if self.on_progress is not None:
            self.on_progress()

    def gather(self) -> None:
        """From now on, until :meth:`send_off`, what goes to other processes only collects."""
        self._gathering = True

    def send_off(self) -> None:
        """Send what has collected, in one piece to each replica."""
        if self._gathering:
            self._gathering = False
            self._send_off()

    def _send_off(self) -> None:
        for link in self._gathering_links:
            if link is not None and link.send_off():
                self._writes_held.set()  # until :meth:`_hurry_writes` has sent it

    def holds_writes(self, size_bytes: int) -> bool:
        """Whether writes of so many bytes, were they sent now, would be held back on each connection. Then whatever
        waits, a job that is open to more among it, is sent before long."""
        if self._performing:
            return False
        for link in self._gathering_links:
            if link is None or not link.holds(size_bytes):
                return False
        self._writes_held.set()
        return True

    async def _hurry_writes(self) -> None:
        """*Liveness*: writes that nobody waits for are not held back for longer than this."""
        while True:
            await self._writes_held.wait()
            await trio.sleep(WRITES_HELD_S)
            self.perform()  # what is still open to further writes becomes a job
            for link in self._gathering_links:
                if link is not None:
                    link.hurry()
            self._writes_held = trio.Event()

    def _keep_in_step(self) -> None:
        """Slow the connections of the faster replicas down where the slowest falls behind (§6.14)."""
        jobs = self.core.jobs
        if self.delays_us is NO_DELAYS and not matters(jobs.jobs_in_progress, jobs.bytes_in_progress):
            return
        # Those that may be read from are those that are active.
        delays = delays_us(jobs.jobs_in_progress, jobs.bytes_in_progress, self.core.readers)
        if delays == self.delays_us:
            return
        self.delays_us = delays if any(delays) else NO_DELAYS
        links: list[object] = [*self.links]
        for link, delay_us in zip(links, delays):
            if isinstance(link, PacedLink):
                link.delay_us = delay_us

    def _send(self, action: actions.Send) -> None:
        link = self.links[action.client]
        if link is None:
            return  # The connection is gone; its end is on the way and will skip the job.
        item = action.item
        if isinstance(item, Job):
            core = self.core
            dependencies = core.pruned_dependencies(item, action.client) if core.identity.remote else []
            if link.send_job(item, dependencies):
                core.done(item, action.client, item.full)
        else:
            link.send(item)

    def _connect(self, action: actions.Connect) -> None:
        if self._nursery is None:
            raise RuntimeError("the Upstairs is not running: start run() in a nursery first")
        # Known before its task begins, so that a hang-up in between is not lost.
        scope = trio.CancelScope()
        self._scopes[action.client] = (action.connection_id, scope)
        self._nursery.start_soon(self._connection, action, scope)

    def _hangup(self, action: actions.Hangup) -> None:
        connection_id, scope = self._scopes[action.client]
        if connection_id == action.connection_id:
            self.links[action.client] = self._gathering_links[action.client] = None
            scope.cancel()

    def _answer(self, action: actions.Answer) -> None:
        handle = action.handle
        if isinstance(handle, ReadHandle):
            handle.answered(handle, action.error)
        elif isinstance(handle, FlushHandle | ReadTrain):
            handle.answered(action.error)
        elif isinstance(handle, _Waiter):
            handle.error = action.error
            handle.done.set()

    def _tell(self, action: actions.RepairNews) -> None:
        if self.on_repair is not None:
            self.on_repair(action)

    def _report(self, action: actions.Report) -> None:
        getattr(log, action.level)(action.event, **action.fields)

    _DO: dict[type, Callable[[Upstairs, Any], None]] = {
        actions.Send: _send,
        actions.Connect: _connect,
        actions.Hangup: _hangup,
        actions.Answer: _answer,
        actions.Report: _report,
        actions.RepairNews: _tell,
    }

    # -- connections --------------------------------------------------------------------------------------------------

    async def _connection(self, action: actions.Connect, scope: trio.CancelScope) -> None:
        """One connection from its delay to its end; reports the end exactly once."""
        client, connection_id = action.client, action.connection_id
        why = "closed by us"
        with scope:
            if action.again:
                await trio.sleep(self.reconnect_delay_s)
            why = await self.connectors[client].run(_Port(self, client, connection_id))
        self.links[client] = self._gathering_links[client] = None
        if self.on_stopped is not None:
            self.on_stopped(client, why)
        self.core.stopped(client, connection_id, why)
        self.perform()

    def opened(self, client: int, connection_id: int, link: Link) -> None:
        """A connection is open."""
        self.links[client] = link
        gathers = link if isinstance(link, GatheringLink) else None
        if gathers is not None:
            gathers.gathers = True
            gathers.may_refer_to(self.row_memory, self.statistics)
        self._gathering_links[client] = gathers
        negotiation.connected(self.core, client, connection_id)
        self.perform()

    def received(self, client: int, connection_id: int, messages: list[m.Message]) -> None:
        """Messages came in, oldest first."""
        core = self.core
        for message in messages:
            kind = type(message)
            if kind is ReadResponseRun:
                self._read_responses(client, connection_id, message)  # type: ignore[arg-type]  # what its type says
            elif kind is AckRun:
                negotiation.acknowledged(core, client, connection_id, message)  # type: ignore[arg-type]
            elif kind is m.ReadResponse:
                self._read_response(client, connection_id, message)  # type: ignore[arg-type]
            else:
                core.message(client, connection_id, message)
        self.perform()

    def _read_responses(self, client: int, connection_id: int, run: ReadResponseRun) -> None:
        """Answers to reads of one block each. What is not as it should be is looked at message by message."""
        core, finished = self.core, Finished()
        proven = self._proven(run) if core.hears(client, connection_id, run) else None
        if proven is None:
            for message in run.messages():
                self._read_response(client, connection_id, message)  # type: ignore[arg-type]  # they are responses
            return
        job: Job | None = None
        bit = mask = 0
        for position, data in enumerate(proven):
            job_id = run.job_ids[position]
            if job is None or not job.contains(job_id):
                self._settle(job, client, mask)
                job, mask = core.jobs.find(job_id), 0
            if job is not None and type(job.handle) is ReadTrain:
                bit = 1 << (job_id - job.first_id)
                waited_for = job.in_progress[client] & bit & ~mask
                if data is not None and waited_for and job.handle.take(job_id - job.first_id, data, finished):
                    mask |= bit
                    continue
            self._settle(job, client, mask)
            job, mask = None, 0
            self._read_response(client, connection_id, run.message(position))
        self._settle(job, client, mask)
        finished.report()

    def _proven(self, run: ReadResponseRun) -> list[memoryview | bytes | None] | None:
        """The data for the guest, ``None`` for what is not right; or for all, where it is not of the disk's kind."""
        cipher = self.cipher
        if (cipher is None) != (run.seals is None):
            return None
        if cipher is None or run.seals is None:
            digest = xxhash.xxh64_intdigest
            return [data if digest(data) == wanted else None for data, wanted in zip(run.data, run.hashes)]
        return list(map(cipher.opened, run.data, run.seals))

    def _settle(self, job: Job | None, client: int, mask: int) -> None:
        if job is not None and mask:
            self.core.done(job, client, mask)

    def _read_response(self, client: int, connection_id: int, message: m.ReadResponse) -> None:
        job = self.core.expected_read(client, connection_id, message)
        if job is None:
            return
        position = message.job_id - job.first_id
        mask, start, length = 1 << position, job.starts[position], job.lengths[position]
        if isinstance(message.blocks, errors.CrucibleError):
            if isinstance(message.blocks, UNREADABLE):
                self.damaged(Damage(client, start, length, message.blocks))
            self.core.failed(job, client, mask, message.blocks)
            return
        handle: ReadHandle | ReadTrain = job.handle
        out = handle.out(position)
        if out is None:  # another replica was quicker
            self.core.done(job, client, mask)
            return
        if len(message.data) != len(out) or len(message.blocks) != length:
            self.core.failed(job, client, mask, errors.IoError("the replica answered with another length"))
            return
        out[:] = message.data
        error = self.verify(out, message.blocks)
        if error is None:
            handle.verified(position, message.blocks, client)
            self.core.done(job, client, mask)
        else:
            self.damaged(Damage(client, start, length, error))
            self.core.failed(job, client, mask, error)

    def verify(self, out: memoryview, contexts: BlockContexts) -> errors.CrucibleError | None:
        """Check (and decrypt in place) what a replica gave; the error of the first bad block."""
        rows = np.frombuffer(out, np.uint8).reshape(len(contexts), -1)
        return open_blocks(rows, contexts, self.cipher)

    def damaged(self, damage: Damage) -> None:
        """A replica gave bad bytes: count it, say so, and have it healed."""
        self.statistics.damaged_reads += 1
        log.warning(
            "damaged block",
            client=damage.client,
            start=damage.start,
            count=damage.count,
            error=str(damage.error),
        )
        if self.on_damage is not None:
            self.on_damage(damage)


class _Port:
    """Connects one connection's reports with its Upstairs."""

    __slots__ = ("_client", "_connection_id", "_upstairs")

    def __init__(self, upstairs: Upstairs, client: int, connection_id: int) -> None:
        self._upstairs = upstairs
        self._client = client
        self._connection_id = connection_id

    def opened(self, link: Link) -> None:
        self._upstairs.opened(self._client, self._connection_id, link)

    def received(self, messages: list[m.Message]) -> None:
        self._upstairs.received(self._client, self._connection_id, messages)


def _deadline(timeout_s: float | None) -> trio.CancelScope:
    return trio.CancelScope() if timeout_s is None else trio.move_on_after(timeout_s)
