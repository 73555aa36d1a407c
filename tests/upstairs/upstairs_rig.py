"""A scripted region set: the Upstairs core and three replicas made of plain Python, no I/O, no clock.

The rig carries out the core's actions and lets a test decide when a replica answers, what it answers, and when its
connection ends.
"""

from __future__ import annotations

from collections import deque
from uuid import UUID

import numpy as np

from crucible_emu import errors
from crucible_emu.geometry import RegionDefinition
from crucible_emu.upstairs import actions, negotiation
from crucible_emu.upstairs.core import UpstairsCore
from crucible_emu.upstairs.jobs import Job
from crucible_emu.upstairs.members import Identity
from crucible_emu.upstairs.rules import CLIENTS, JobKind
from crucible_emu.wire import messages as m

UPSTAIRS = UUID(int=1)
SESSION = UUID(int=2)


LIVE = (m.ExtentLiveClose, m.ExtentLiveFlushClose, m.ExtentLiveRepair, m.ExtentLiveNoOp, m.ExtentLiveReopen, m.Flush)
"""Jobs that the core sends as messages: those of a live repair, and flushes that leave out extents."""


class Replica:
    """One Downstairs as the core sees it: negotiates at once, keeps jobs until the test answers them."""

    def __init__(self, index: int, definition: RegionDefinition) -> None:
        self.definition = RegionDefinition(
            definition.block_size,
            definition.blocks_per_extent,
            definition.extent_count,
            UUID(int=100 + index),
            definition.encrypted,
        )
        count = definition.extent_count
        self.gen = np.zeros(count, np.uint64)
        self.flush = np.zeros(count, np.uint64)
        self.dirty = np.zeros(count, np.bool_)
        self.reachable = True
        self.jobs: deque[Job] = deque()
        self.seen: list[m.Message] = []
        self.repairs: list[m.Message] = []
        self.answers_repairs = True
        self.live: deque[m.JobRequest] = deque()
        self.lived: list[m.JobRequest] = []
        self.completed: set[int] = set()

    def repaired_from(self, source: Replica, extent_id: int) -> None:
        """Have of this extent what ``source`` has."""
        for mine, theirs in ((self.gen, source.gen), (self.flush, source.flush), (self.dirty, source.dirty)):
            mine[extent_id] = theirs[extent_id]

    def negotiate(self, message: m.Message) -> list[m.Message]:
        match message:
            case m.HereIAm():
                return [m.YesItsMe(13, m.SocketAddress("127.0.0.1", 4000))]
            case m.PromoteToActive():
                return [m.YouAreNowActive(message.upstairs_id, message.session_id, message.generation)]
            case m.RegionInfoPlease():
                return [m.RegionInfo(self.definition)]
            case m.ExtentVersionsPlease():
                return [m.ExtentVersions(self.gen.copy(), self.flush.copy(), self.dirty.copy())]
            case m.ExtentFlush() | m.ExtentClose() | m.ExtentRepair() | m.ExtentReopen():
                self.repairs.append(message)
                return [m.RepairAckId(message.repair_id)] if self.answers_repairs else []
        return []


class Rig:
    """The core, its replicas, and what it answered."""

    def __init__(
        self,
        definition: RegionDefinition | None = None,
        *,
        generation: int = 1,
        remote: bool = True,
        read_only: bool = False,
    ) -> None:
        self.definition = definition or RegionDefinition(512, 10, 4, UUID(int=9))
        self.core = UpstairsCore(
            Identity(UPSTAIRS, SESSION, self.definition.encrypted, read_only, remote), generation, self.definition
        )
        self.core.extents_ahead = 1  # one after the other is what a person can follow
        self.replicas = [Replica(client, self.definition) for client in CLIENTS]
        self.answers: dict[object, errors.CrucibleError | None] = {}
        self.reports: list[actions.Report] = []
        self.news: list[actions.RepairNews] = []
        self.reconnecting: list[actions.Connect] = []
        for client in self.core.clients:
            client.target = f"127.0.0.1:{4000 + client.index}"
        self.hung_up: list[int] = []
        self._running = False
        self.live_ids: set[int] = set()

    def run(self) -> None:
        """Carry out actions until there are none; called from within, leave them to the call further out."""
        if self._running:
            return
        self._running = True
        try:
            self._run()
        finally:
            self._running = False

    def _run(self) -> None:
        while wanted := self.core.take_actions():
            for action in wanted:
                match action:
                    case actions.Connect(again=False):
                        self.connect(action)
                    case actions.Connect():
                        self.reconnecting.append(action)
                    case actions.Send():
                        self.deliver(action)
                    case actions.Hangup():
                        self.hung_up.append(action.client)
                        self.replicas[action.client].jobs.clear()
                        self.replicas[action.client].live.clear()
                        self.core.stopped(action.client, action.connection_id, "asked to")
                    case actions.Answer():
                        assert action.handle not in self.answers, f"{action.handle} is answered twice"
                        self.answers[action.handle] = action.error
                    case actions.Report():
                        self.reports.append(action)
                    case actions.RepairNews():
                        self.news.append(action)

    def connect(self, action: actions.Connect) -> None:
        if self.replicas[action.client].reachable:
            negotiation.connected(self.core, action.client, action.connection_id)

    def reconnect(self) -> None:
        """The reconnect delay has passed."""
        waiting, self.reconnecting = self.reconnecting, []
        for action in waiting:
            self.connect(action)
        self.run()

    def deliver(self, action: actions.Send) -> None:
        replica = self.replicas[action.client]
        if isinstance(action.item, Job):
            replica.jobs.append(action.item)
            return
        if isinstance(action.item, LIVE):
            replica.live.append(action.item)
            self.live_ids.add(action.item.job_id)
            if replica.answers_repairs:
                self.answer_live(action.client)
            return
        replica.seen.append(action.item)
        for reply in replica.negotiate(action.item):
            self.core.message(action.client, self.core.clients[action.client].connection_id, reply)

    def answer_live(self, client: int, error: errors.CrucibleError | None = None) -> None:
        """Replica ``client`` does the live-repair jobs that wait for nothing any more."""
        replica = self.replicas[client]
        again = True
        while again:
            again = False
            for message in list(replica.live):
                needed = {
                    job_id
                    for job_id in message.dependencies
                    if job_id in self.live_ids or self.core.is_of_repair(job_id)
                }
                if needed <= replica.completed and message in replica.live:
                    replica.live.remove(message)
                    replica.lived.append(message)
                    replica.completed.add(message.job_id)
                    again = True
                    self._answer_live(client, message, error)

    def _answer_live(self, client: int, message: m.JobRequest, error: errors.CrucibleError | None) -> None:
        replica, ids = self.replicas[client], (UPSTAIRS, SESSION, message.job_id)
        reply: m.Message
        match message:
            case m.ExtentLiveClose() | m.ExtentLiveFlushClose():
                extent_id = message.extent_id
                if isinstance(message, m.ExtentLiveFlushClose) and replica.dirty[extent_id]:
                    replica.flush[extent_id], replica.gen[extent_id] = message.flush_number, message.gen_number
                    replica.dirty[extent_id] = False
                found = (int(replica.gen[extent_id]), int(replica.flush[extent_id]), bool(replica.dirty[extent_id]))
                reply = m.ExtentLiveCloseAck(*ids, error or found)
            case m.ExtentLiveRepair():
                if error is None:
                    replica.repaired_from(self.replicas[message.source_client_id], message.extent_id)
                reply = m.ExtentLiveRepairAckId(*ids, error)
            case m.Flush():
                reply = m.FlushAck(*ids, error)
            case _:
                reply = m.ExtentLiveAckId(*ids, error)
        self.core.message(client, self.core.clients[client].connection_id, reply)
        self.run()

    def activate(self, handle: object = "activate", generation: int | None = None) -> None:
        self.core.activate(handle, generation)
        self.run()

    def active(self) -> Rig:
        self.activate()
        assert self.answers.pop("activate") is None
        return self

    def drop(self, client: int, why: str = "connection reset") -> None:
        """The connection of ``client`` ends without our asking."""
        self.replicas[client].jobs.clear()
        self.replicas[client].live.clear()
        self.core.stopped(client, self.core.clients[client].connection_id, why)
        self.run()

    def fault(self, client: int) -> None:
        """A job of ``client`` fails, so that it must be repaired before it is of any use."""
        job = self.write()
        self.replicas[client].jobs.remove(job)
        self.core.failed(job, client, job.full, errors.IoError("the medium is worn out"))
        self.run()

    def write(self, start: int = 0, length: int = 1) -> Job:
        job = self.core.new_job(JobKind.WRITE, [start], [length], length * self.definition.block_size, None)
        self.core.write(job)
        self.run()
        return job

    def read(self, handle: object, start: int = 0, client: int | None = None) -> Job:
        job = self.core.new_job(JobKind.READ, [start], [1], self.definition.block_size, handle)
        self.core.read(job, self.core.reader(start) if client is None else client)
        self.run()
        return job

    def flush(self, handle: object, snapshot: str | None = None) -> None:
        self.core.flush(handle, snapshot)
        self.run()

    def answer(self, client: int, error: errors.CrucibleError | None = None) -> Job:
        """Replica ``client`` finishes its oldest job."""
        job = self.replicas[client].jobs.popleft()
        if error is None:
            self.core.done(job, client, job.full)
        else:
            self.core.failed(job, client, job.full, error)
        self.run()
        return job

    def answer_all(self) -> None:
        """Every replica finishes everything that it was sent."""
        for client in CLIENTS:
            while self.replicas[client].jobs:
                self.answer(client)

    def dependencies(self, job: Job, client: int = 0) -> list[int]:
        return self.core.pruned_dependencies(job, client)[0]
