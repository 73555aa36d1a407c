"""Live repair: replicas that missed something get it, extent by extent, while guests go on (upstairs-volume.md §8).

What it is for: a replica comes back that cannot be replayed to, or a new one was put in place of another. Every extent
is closed on all replicas, compared, fetched from a healthy one (the *source*) where it differs, and opened again. What
guests write meanwhile to extents that are done, or under way, goes to all replicas; to those beyond, only to the
healthy ones, for it will be fetched.

How one extent goes: four jobs with consecutive ids N to N+3.

==========  =====  ==========================  ====================================================================
stage       id     waits for                   does
==========  =====  ==========================  ====================================================================
*closing*   N      what touches the extent     flush and close it; answer its generation, flush number and dirtiness
*fetching*  N+1    N                           fetch it where it differs from the source; nothing elsewhere
*settling*  N+2    N+1                         nothing: it makes every replica wait until the fetching is over
*opening*   N+3    N+2                         open it again; sent first of all, because guests' jobs wait for it
==========  =====  ==========================  ====================================================================

After the last extent comes a flush; when it is final the repaired replicas are as good as the others.

Why it is safe: the four jobs are ordinary jobs to the dependency tracker, a writer of the whole extent under the id
N+3, so nothing of a guest runs on an extent that is closed. No job of a guest spans the border between what is repaired
and what is not, because while a repair runs writes are cut at extent borders (:meth:`LiveRepair.split`); the real
program reserves job ids for the extents ahead instead. When a replica fails in the middle, the rest of the four jobs
are sent as no-ops, for others may wait for their ids, and the repair begins anew when the replica is back.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

from crucible_emu.upstairs.actions import RepairNews
from crucible_emu.upstairs.jobs import Job
from crucible_emu.upstairs.rules import WRITES, Dispatch, JobKind, dispatch
from crucible_emu.upstairs.states import ClientEvent, Phase, StopReason, UpstairsState
from crucible_emu.wire import messages as m

if TYPE_CHECKING:
    from crucible_emu.upstairs.core import UpstairsCore
    from crucible_emu.upstairs.members import Client

Versions = tuple[int, int, bool]
"""Generation, flush number and dirtiness of one extent on one replica."""


class Stage(Enum):
    """What the repair waits for; the order is that of the table above."""

    CLOSING = "closing"
    FETCHING = "fetching"
    SETTLING = "settling"
    OPENING = "opening"
    FINAL_FLUSH = "final flush"


class LiveRepair:
    """One run over all extents. ``clients``: those under repair; ``source``: whom they fetch from."""

    def __init__(self, core: UpstairsCore, number: int, source: Client, clients: list[Client]) -> None:
        assert core.definition is not None
        self._core = core
        self.number = number
        self.source = source
        self.clients = clients
        self.extent_count = core.definition.extent_count
        self.blocks_per_extent = core.definition.blocks_per_extent
        self.extent_id = -1
        self.ids = range(0)
        self.stage = Stage.OPENING
        self.aborted = False
        self._versions: dict[int, Versions] = {}
        self._awaited: Job | None = None
        self._opening: Job | None = None

    # -- what guests' jobs ask ----------------------------------------------------------------------------------------

    def reaches(self, job: Job) -> bool:
        """Whether the clients under repair are sent ``job``: not a write beyond the extent under way (§8.4)."""
        return job.kind not in WRITES or job.starts[0] // self.blocks_per_extent <= self.extent_id

    def split(self, spans: list[tuple[int, int]]) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Cut spans of blocks (start, count) at extent borders: those up to the extent under way, and those beyond."""
        near: list[tuple[int, int]] = []
        beyond: list[tuple[int, int]] = []
        size = self.blocks_per_extent
        for start, count in spans:
            end = start + count
            while start < end:
                extent_id = start // size
                stop = min(end, (extent_id + 1) * size)
                (near if extent_id <= self.extent_id else beyond).append((start, stop - start))
                start = stop
        return near, beyond

    def limited_flush(self, job: Job, client: Client) -> m.Flush:
        """A flush as a client under repair gets it: of the extents that it has (§8.4)."""
        who, dependencies = self._core.identity, self._core.pruned_dependencies(job, client.index)[0]
        ids = (who.upstairs_id, who.session_id, job.first_id, tuple(dependencies))
        return m.Flush(*ids, job.flush_number, job.gen_number, job.snapshot, max(self.extent_id, 0))

    # -- the run ------------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Start with the first extent."""
        members = tuple(client.index for client in self.clients)
        self._core.report("info", "live repair begins", clients=list(members), source=self.source.index)
        self._tell("start", 0)
        self._next_extent()

    def closed(self, client: int, versions: Versions) -> None:
        """A replica has closed the extent under way and says what it holds."""
        self._versions[client] = versions

    def advance(self) -> None:
        """Go on as far as what is awaited is final; a step may be final as soon as it is sent."""
        core = self._core
        while core.repair is self and self._awaited is not None:
            if not self.aborted and self._must_abort(self._awaited):
                self._abort()
            if not self._awaited.complete:
                return
            self._next_stage()

    def _must_abort(self, step: Job) -> bool:
        """Whether the repair cannot go on as it began (§8.7)."""
        return (
            step.error is not None
            or self._core.state is not UpstairsState.ACTIVE
            or self.source.state.phase is not Phase.ACTIVE
            or any(client.state.phase is not Phase.LIVE_REPAIR for client in self.clients)
        )

    def _next_stage(self) -> None:
        close_id, fetch_id, settle_id, _ = self.ids if self.ids else (0, 0, 0, 0)
        match self.stage:
            case Stage.CLOSING:
                self.stage = Stage.FETCHING
                self._awaited = self._fetch(fetch_id, close_id)
            case Stage.FETCHING:
                self.stage = Stage.SETTLING
                self._awaited = self._submit(JobKind.EXTENT_NO_OP, settle_id, [fetch_id])
            case Stage.SETTLING:
                self.stage = Stage.OPENING
                self._awaited = self._opening
            case Stage.OPENING:
                if self.aborted or self.extent_id + 1 == self.extent_count:
                    self.stage = Stage.FINAL_FLUSH
                    self.ids = range(0)
                    self._awaited = self._core.submit_flush(None)
                else:
                    self._next_extent()
            case Stage.FINAL_FLUSH:
                self._finish()

    def _next_extent(self) -> None:
        core = self._core
        self.extent_id += 1
        self._versions.clear()
        self.stage = Stage.CLOSING
        first_id = core.next_job_id
        core.next_job_id += 4
        self.ids = range(first_id, first_id + 4)
        self._tell("progress", self.extent_id)
        dependencies: list[int] = []
        if core.identity.remote:
            first = self.extent_id * self.blocks_per_extent
            end = first + self.blocks_per_extent
            dependencies = core.tracker.block(first_id + 3, first, end, core.jobs.live)
        self._opening = self._submit(JobKind.EXTENT_REOPEN, first_id + 3, [first_id + 2])
        flush_number, core.next_flush = core.next_flush, core.next_flush + 1
        self._awaited = self._submit(JobKind.EXTENT_CLOSE, first_id, dependencies, flush_number=flush_number)

    def _fetch(self, job_id: int, close_id: int) -> Job:
        """Fetch the extent for those that hold another one than the source; confirm it for the others (§8.2)."""
        needing: frozenset[int] = frozenset()
        if not self.aborted:
            wanted = self._versions.get(self.source.index)
            for client in self.clients:
                held = self._versions.get(client.index)
                if held is None or held[2] or wanted is None or held[:2] != wanted[:2]:
                    needing |= {client.index}
                    client.extents_repaired += 1
                else:
                    client.extents_confirmed += 1
        return self._submit(JobKind.EXTENT_REPAIR, job_id, [close_id], needing=needing)

    def _submit(
        self,
        kind: JobKind,
        job_id: int,
        dependencies: list[int],
        *,
        needing: frozenset[int] = frozenset(),
        flush_number: int = 0,
    ) -> Job:
        core = self._core
        job = Job(kind, job_id, [self.extent_id], [0], 0)
        job.dependencies = [dependencies]
        job.flush_number, job.gen_number = flush_number, core.generation
        targets = []
        for client in core.clients:
            if dispatch(client.state) is Dispatch.SEND:
                job.in_progress[client.index] = job.full
                targets.append(client)
            else:
                job.skipped[client.index] = job.full
        core.jobs.add(job)
        for client in targets:
            core.send(client.index, self._message(job, client, needing))
        if not targets:
            core.check(job)
        return job

    def _message(self, job: Job, client: Client, needing: frozenset[int]) -> m.Message:
        core = self._core
        dependencies = tuple(core.pruned_dependencies(job, client.index)[0])
        ids = (core.identity.upstairs_id, core.identity.session_id, job.first_id, dependencies)
        match job.kind:
            case JobKind.EXTENT_REOPEN:
                return m.ExtentLiveReopen(*ids, self.extent_id)
            case JobKind.EXTENT_CLOSE if client.state.phase is Phase.LIVE_REPAIR:
                return m.ExtentLiveClose(*ids, self.extent_id)
            case JobKind.EXTENT_CLOSE:
                return m.ExtentLiveFlushClose(*ids, self.extent_id, job.flush_number, job.gen_number)
            case JobKind.EXTENT_REPAIR if client.index in needing and self.source.repair_address is not None:
                return m.ExtentLiveRepair(*ids, self.extent_id, self.source.index, self.source.repair_address)
            case _:
                return m.ExtentLiveNoOp(*ids)

    # -- the end ------------------------------------------------------------------------------------------------------

    def dropped(self) -> None:
        """The disk goes out of use in the middle of the run: whoever heard of its beginning hears of its end."""
        if not self.aborted:
            self._count_abort()
        self._tell("finish", self.extent_id + 1)

    def _count_abort(self) -> None:
        self.aborted = True
        for client in self._core.clients:
            client.live_repair_aborted += 1

    def _abort(self) -> None:
        """Give up on the clients under repair, and go on with no-ops: others may wait for the ids (§8.7)."""
        self._count_abort()
        self._core.repairs_failed += 1
        self._core.report("warning", "live repair aborted", extent=self.extent_id, number=self.number)
        for client in self.clients:
            if client.state.phase is Phase.LIVE_REPAIR:
                self._core.stop_client(client, StopReason.FAILED_LIVE_REPAIR)

    def _finish(self) -> None:
        core = self._core
        core.repair = None
        self._tell("finish", self.extent_id + 1)
        if not self.aborted:
            core.repairs_failed = 0
            for client in self.clients:
                if client.state.phase is Phase.LIVE_REPAIR:
                    client.live_repair_completed += 1
                    core.move(client, ClientEvent.LIVE_REPAIR_FINISHED)
            core.report("info", "live repair done", clients=[client.index for client in self.clients])
        core.check_live_repair()

    def _tell(self, what: str, current: int) -> None:
        members = tuple(client.index for client in self.clients)
        self._core.notify(RepairNews(what, "live", self.number, members, current, self.extent_count, self.aborted))
