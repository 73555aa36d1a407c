"""One Upstairs with its guest, as a history uses it: submits requests, and judges every answer.

What it guarantees: each request is answered at most once; what it is answered with must fit
:class:`~crucible_emu.sim.upstairs.registers.Registers`; and an error must have a cause, that is, too few replicas that
were in service, undisturbed, since the request began.
"""

from __future__ import annotations

from uuid import UUID

import numpy as np
import trio

from crucible_emu import errors
from crucible_emu.blockio import Kind, Request
from crucible_emu.geometry import RegionDefinition
from crucible_emu.sim.upstairs.downstairs import ModelDownstairs
from crucible_emu.sim.upstairs.network import ModelConnector
from crucible_emu.sim.upstairs.registers import Op, Outcome, PendingRead, Registers
from crucible_emu.sim.upstairs.storage import NEVER_WRITTEN, ZEROED, Storage, data_of, value_of
from crucible_emu.sim.upstairs.world import World
from crucible_emu.upstairs.actions import RepairNews
from crucible_emu.upstairs.core import UpstairsCore
from crucible_emu.upstairs.driver import FlushHandle, Upstairs
from crucible_emu.upstairs.guest import Guest
from crucible_emu.upstairs.members import Client, Identity
from crucible_emu.upstairs.rules import JobKind
from crucible_emu.upstairs.states import Mode, Phase, StopReason, UpstairsState

WRITES = (Kind.WRITE, Kind.WRITE_UNWRITTEN, Kind.WRITE_ZEROES)
NEVER_OUR_FAULT = (
    StopReason.BAD_NEGOTIATION_ORDER,
    StopReason.INCOMPATIBLE_VERSION,
    StopReason.INCOMPATIBLE_SESSION,
    StopReason.INCOMPATIBLE_SETTINGS,
)
"""Why no model Downstairs ever gives cause to be dropped: all of them keep to the protocol."""


class WatchedCore(UpstairsCore):
    """The core, watched where it takes decisions that a history must know of."""

    def __init__(self, identity: Identity, generation: int, definition: RegionDefinition, guest: GuestSide) -> None:
        self._guest_side = guest
        self._phases = [Phase.WAIT_CONNECT] * 3
        super().__init__(identity, generation, definition)

    def members_changed(self) -> None:
        super().members_changed()
        self._guest_side.members_changed()

    def all_were_away(self) -> None:
        super().all_were_away()
        self._guest_side.loss_may_be_reported = True

    def stop_client(self, client: Client, reason: StopReason) -> None:
        if reason in NEVER_OUR_FAULT:
            self._guest_side.world.violation(f"client {client.index} is dropped for {reason.value}, without a cause")
        super().stop_client(client, reason)


class Check:
    """One request under way."""

    __slots__ = ("began", "epoch", "kind", "number", "op", "owned", "read", "text")

    def __init__(self, side: GuestSide, kind: JobKind, text: str) -> None:
        self.kind = kind
        self.text = text
        self.began = side.world.next_event()
        self.number = side.registers.next_number()
        self.epoch = side.registers.epoch
        self.owned = side.owns_disk
        self.op: Op | None = None
        self.read: PendingRead | None = None


class GuestSide:
    """An Upstairs, its guest, and what the guest waits for."""

    def __init__(
        self,
        world: World,
        registers: Registers,
        replicas: list[ModelDownstairs],
        generation: int,
        number: int,
        flush_interval_s: float,
    ) -> None:
        self.world = world
        self.registers = registers
        self.number = number
        self.replicas = list(replicas)
        """The Downstairs in the three places of the set."""
        self.owns_disk = False
        """Whether this is the Upstairs that was activated last."""
        self.was_activated = False
        """Whether the history has seen it active."""
        self.loss_may_be_reported = False
        """Whether the next flush may say that writes before it were lost."""
        self.waiting: dict[Check, None] = {}
        self.was_used = False
        self.scope = trio.CancelScope()
        self._scopes_of_requests: list[trio.CancelScope] = []
        self._ids = (UUID(int=1), UUID(int=0x5000 + number))
        self._served: list[Phase] = [Phase.WAIT_CONNECT] * 3
        self._in_repair = [0, 0, 0]
        """For each client, when it was last seen in live repair."""
        self.core: WatchedCore = WatchedCore(Identity(*self._ids), generation, world.definition, self)
        # By their size all of these small extents would be under way at once, and nothing lie beyond them.
        self.core.extents_ahead = world.rng.choice((1, 2, 4, None))
        self.connectors = [self.connector(replica) for replica in replicas]
        self.upstairs = Upstairs(
            self.core, list(self.connectors), flush_interval_s=flush_interval_s, connector_for=self._replacement
        )
        self.upstairs.on_repair = self._repair_news
        self.repair_begins = trio.Event()
        self.replay_begins = trio.Event()
        self.guest = Guest(self.upstairs)

    def __str__(self) -> str:
        return f"U{self.number}"

    def connector(self, replica: ModelDownstairs) -> ModelConnector:
        return ModelConnector(self.world, replica, *self._ids)

    def _replacement(self, client: int, target: str) -> ModelConnector:
        """The way to the Downstairs at ``target``, which now stands in the place of ``client``."""
        self.replicas[client] = next(each for each in self.world.downstairs if each.target == target)
        self.connectors[client] = self.connector(self.replicas[client])
        return self.connectors[client]

    def _repair_news(self, news: RepairNews) -> None:
        if news.what == "start":
            self.repair_begins.set()
        elif news.what == "finish":
            self.repair_begins = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until :attr:`scope` is cancelled, which is a crash."""
        with self.scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(self.upstairs.run)
                nursery.start_soon(self.guest.run)
                task_status.started()

    def crash(self) -> None:
        """The process is gone; nobody is answered any more."""
        for check in self.waiting:
            if check.read is not None:
                self.registers.end_read(check.read, None)
        self.waiting.clear()
        for scope in (self.scope, *self._scopes_of_requests):
            scope.cancel()

    def scope_of_requests(self) -> trio.CancelScope:
        """For a task that waits for this Upstairs: it ends with it."""
        self._scopes_of_requests.append(trio.CancelScope())
        return self._scopes_of_requests[-1]

    @property
    def state(self) -> UpstairsState:
        """That of the core; one that has crashed is in no state."""
        return UpstairsState.INITIALIZING if self.scope.cancel_called else self.core.state

    def all_active(self) -> bool:
        clients = self.core.clients
        return self.state is UpstairsState.ACTIVE and all(client.state.phase is Phase.ACTIVE for client in clients)

    def all_connected(self) -> bool:
        """Whether no connection has ended, at either end, be it that the core has not heard of it yet."""
        wires = [connector.wire for connector in self.connectors]
        return all(wire is not None and wire.near_open and wire.connection.open for wire in wires)

    def storages(self) -> list[Storage]:
        return [downstairs.storage for downstairs in self.world.downstairs]

    # -- what the core decides ----------------------------------------------------------------------------------------

    def members_changed(self) -> None:
        """Some client's state changed: nobody was in service undisturbed whose phase is another than before."""
        core = getattr(self, "core", None)
        if core is None:
            return
        for client, replica in zip(core.clients, self.replicas):
            if client.state.phase is not self._served[client.index]:
                if Phase.LIVE_REPAIR in (client.state.phase, self._served[client.index]):
                    self._in_repair[client.index] = self.world.next_event()
                self._served[client.index] = client.state.phase
                if client.state.phase is Phase.ACTIVE and client.state.mode is Mode.OFFLINE:
                    self.replay_begins.set()
                replica.in_trouble(by_upstairs=True)
                if self.world.trace is not None:
                    self.world.say(f"    {self} client {client.index} ({replica}): {client.state}")
        if core.state is UpstairsState.ACTIVE and core.accepting() == 0 and self.owns_disk:
            self.world.count("all replicas away")
            self.loss_may_be_reported = True
            self.registers.doubt(to_report=True)

    def repaired_since(self, check: Check) -> int:
        """How many replicas were under repair while a request was under way."""
        phases = [client.state.phase for client in self.core.clients]
        return sum(phase is Phase.LIVE_REPAIR or seen > check.began for phase, seen in zip(phases, self._in_repair))

    # -- requests -----------------------------------------------------------------------------------------------------

    def submit(self, plans: list[tuple[Kind, int, int, bool, int]]) -> None:
        """Submit requests in one call, each ``(kind, first block, blocks, fua, value)``; none in the one moment in
        which the Upstairs is active already and the history has not seen it yet."""
        if self.core.state is UpstairsState.ACTIVE and not self.was_activated:
            return
        requests = [self._request(*plan) for plan in plans]
        self.world.count("requests")
        self.guest.submit(requests, self._completed)

    def _request(self, kind: Kind, start: int, count: int, fua: bool, value: int) -> Request:
        size = self.guest.block_size
        buffer = owned = None
        text = f"{self} {kind.name} {start}+{count}{' fua' if fua else ''}"
        if kind is Kind.READ:
            check = Check(self, JobKind.READ, text)
            check.read = self.registers.begin_read(start, count)
            buffer, owned = memoryview(bytearray(b"\xee") * (count * size)), np.ones(count, np.bool_)
        elif kind is Kind.FLUSH:
            check = Check(self, JobKind.FLUSH, text)
        else:
            values = [ZEROED] * count if kind is Kind.WRITE_ZEROES else list(range(value, value + count))
            text += f" = {values}"
            check = Check(self, JobKind.FLUSH if fua else JobKind.WRITE, text)
            if self.owns_disk:
                outcome = Outcome.PENDING if fua else Outcome.DONE
                check.op = Op(check.number, outcome, unwritten=kind is Kind.WRITE_UNWRITTEN)
                self.registers.write(check.op, start, values)
            if kind is not Kind.WRITE_ZEROES:
                buffer = memoryview(bytearray(b"".join(data_of(each, size) for each in values)))
        self.world.say(text)
        self.waiting[check] = None
        return Request(kind, start * size, count * size, buffer, fua=fua, cookie=check, owned=owned)

    def snapshot(self) -> None:
        """A flush with a snapshot, which needs all three."""
        check = Check(self, JobKind.SNAPSHOT_FLUSH, f"{self} snapshot")
        self.world.say(check.text)
        self.waiting[check] = None
        error = self.core.admission_error(JobKind.SNAPSHOT_FLUSH)
        if error is not None:
            self._answered(check, error)
            return
        self.core.flush(FlushHandle(lambda error: self._answered(check, error)), "snap")
        self.upstairs.perform()

    def _completed(self, requests: list[Request]) -> None:
        if self.scope.cancel_called:
            return  # nobody is there any more
        for request in requests:
            check: Check = request.cookie
            if check.read is not None:
                self._end_read(check, request)
            self._answered(check, request.error)

    def _end_read(self, check: Check, request: Request) -> None:
        assert check.read is not None and request.buffer is not None and request.owned is not None
        values = None
        if request.error is None:
            values, size = [], self.guest.block_size
            for index, owned in enumerate(request.owned.tolist()):
                data = bytes(request.buffer[index * size : (index + 1) * size])
                try:
                    value = value_of(data)
                except ValueError:
                    self.world.violation(f"{check.text}: block {check.read.start + index} is torn")
                if not owned and value != ZEROED:
                    self.world.violation(f"{check.text}: block {check.read.start + index} has bytes and no owner")
                values.append(value if owned else NEVER_WRITTEN)
            if self.world.trace is not None:
                self.world.say(f"    {check.text}: {values}")
        self.registers.end_read(check.read, values)

    def _answered(self, check: Check, error: errors.CrucibleError | None) -> None:
        if self.scope.cancel_called:
            return
        if check not in self.waiting:
            self.world.violation(f"{check.text} is answered twice")
        del self.waiting[check]
        durable = check.kind in (JobKind.FLUSH, JobKind.SNAPSHOT_FLUSH)
        if error is not None:
            self.world.say(f"    {check.text}: {error}")
            self.world.count("errors to the guest")
            self._must_have_cause(check, error)
            if check.op is not None and check.kind is JobKind.WRITE:
                self.registers.refused(check.op)
            if durable and check.owned and check.epoch == self.registers.epoch:
                self.registers.reported()
        elif not check.owned and check.kind is not JobKind.WRITE:
            self.world.violation(f"{check.text} succeeds though another Upstairs has the disk")
        elif durable:
            # It may be answered in the same moment in which what came after it was given up.
            self.loss_may_be_reported = self.core._writes_lost
            if check.op is not None:
                check.op.outcome = Outcome.DONE
            self.world.say(f"    {check.text}: durable")
            # A replica under repair counts, though it holds only what was repaired (§6.4, §8.4).
            need = (3 if check.kind is JobKind.SNAPSHOT_FLUSH else 2) - self.repaired_since(check)
            self.registers.flushed(check.number, check.epoch, self.storages(), need)

    def _must_have_cause(self, check: Check, error: errors.CrucibleError) -> None:
        if self.core.state is not UpstairsState.ACTIVE:
            return
        need = {JobKind.READ: 1, JobKind.SNAPSHOT_FLUSH: 3}.get(check.kind, 2)
        if check.kind in (JobKind.FLUSH, JobKind.SNAPSHOT_FLUSH) and self.loss_may_be_reported:
            return
        steady = [
            replica
            for client, replica in zip(self.core.clients, self.replicas)
            if client.state.phase is Phase.ACTIVE and replica.trouble < check.began
        ]
        if len(steady) >= need:
            names = ", ".join(map(str, steady))
            self.world.violation(f"{check.text} fails although {names} served undisturbed: {error}")
