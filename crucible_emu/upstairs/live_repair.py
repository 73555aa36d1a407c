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

Several extents are under way at a time, :func:`extents_ahead` says how many (*optimisation*: while one is fetched the
next is closed, and where extents are small and equal the way to the replicas and back is all that they take). Only one
is ever fetched: a Downstairs does no two repairs at once, and a flush must not wait for both.
After the last extent comes a flush; when it is final the repaired replicas are as good as the others.

Why it is safe: the four jobs are ordinary jobs to the dependency tracker, a writer of the whole extent under the id
N+3, so nothing of a guest runs on an extent that is closed. No job of a guest spans the border between what is repaired
and what is not, because while a repair runs writes are cut at extent borders (:meth:`LiveRepair.split`); the real
program reserves job ids for the extents ahead instead. When a replica fails in the middle, the rest of the four jobs
are sent as no-ops, for others may wait for their ids, and the repair begins anew when the replica is back.
"""

from __future__ import annotations

from collections.abc import Iterator
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


UNDER_WAY_MIN, UNDER_WAY_MAX = 2, 16
UNDER_WAY_BYTES = 32 << 20


class Stage(Enum):
    """What the repair waits for; the order is that of the table above."""

    CLOSING = "closing"
    FETCHING = "fetching"
    SETTLING = "settling"
    OPENING = "opening"


class ExtentRepair:
    """One extent under way. ``ids``: those of its four jobs; ``awaited``: the job that its stage waits for;
    ``versions``: what the replicas said when they closed it; ``needing``: the clients that fetch it."""

    def __init__(self, extent_id: int, first_job_id: int) -> None:
        self.extent_id = extent_id
        self.ids = range(first_job_id, first_job_id + 4)
        self.stage = Stage.CLOSING
        self.opening: Job | None = None
        self.awaited: Job | None = None
        self.versions: dict[int, Versions] = {}
        self.needing: frozenset[int] = frozenset()


def extents_ahead(extent_bytes: int) -> int:
    """How many extents are under way at a time. What is under way makes guests' reads wait, so it is bounded in bytes
    as well as in number."""
    return max(UNDER_WAY_MIN, min(UNDER_WAY_MAX, UNDER_WAY_BYTES // extent_bytes))


class LiveRepair:
    """One run over all extents. ``clients``: those under repair; ``source``: whom they fetch from; ``under_way``: the
    extents that were begun and are not open again, in order; ``extent_id``: the last one that was begun."""

    def __init__(self, core: UpstairsCore, number: int, source: Client, clients: list[Client]) -> None:
        assert core.definition is not None
        self._core = core
        self.number = number
        self.source = source
        self.clients = clients
        self.extent_count = core.definition.extent_count
        self.blocks_per_extent = core.definition.blocks_per_extent
        self.ahead = core.extents_ahead or extents_ahead(self.blocks_per_extent * core.definition.block_size)
        self.extent_id = -1
        self.under_way: list[ExtentRepair] = []
        self.aborted = False
        self._final_flush: Job | None = None

    # -- what guests' jobs ask ----------------------------------------------------------------------------------------

    def owns(self, job_id: int) -> bool:
        """Whether ``job_id`` is one of the four of an extent under way."""
        return any(job_id in extent.ids for extent in self.under_way)

    def reaches(self, job: Job) -> bool:
        """Whether the clients under repair are sent ``job``: not a write beyond the extents begun (§8.4)."""
        return job.kind not in WRITES or job.starts[0] // self.blocks_per_extent <= self.extent_id

    def split(self, spans: list[tuple[int, int]]) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Cut spans of blocks (start, count) at extent borders: those of extents that were begun, and those beyond."""
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
        self._begin_extents()

    def closed(self, extent_id: int, client: int, versions: Versions) -> None:
        """A replica has closed an extent under way and says what it holds."""
        for extent in self.under_way:
            if extent.extent_id == extent_id:
                extent.versions[client] = versions

    def advance(self) -> None:
        """Go on as far as what is awaited is final; a step may be final as soon as it is sent."""
        while self._core.repair is self and self._one_step():
            pass

    def _one_step(self) -> bool:
        """Let the first extent that can go on do so; after all of them, the final flush. Whether anything went on."""
        if not self.aborted and self._must_abort():
            self._abort()
        for extent in self.under_way:
            if extent.awaited is not None and extent.awaited.complete and self._may_go_on(extent):
                self._next_stage(extent)
                return True
        if self._final_flush is not None and self._final_flush.complete:
            self._finish()
            return True
        return False

    @property
    def _awaited(self) -> Iterator[Job]:
        if self._final_flush is not None:
            yield self._final_flush
        for extent in self.under_way:
            if extent.awaited is not None:
                yield extent.awaited

    def _may_go_on(self, extent: ExtentRepair) -> bool:
        """Not where it would be fetched beside another."""
        if extent.stage is not Stage.CLOSING:
            return True
        extent.needing = self._needing(extent)
        return not extent.needing or not any(other.needing for other in self.under_way if other.stage is Stage.FETCHING)

    def _must_abort(self) -> bool:
        """Whether the repair cannot go on as it began (§8.7)."""
        return (
            self._core.state is not UpstairsState.ACTIVE
            or self.source.state.phase is not Phase.ACTIVE
            or any(client.state.phase is not Phase.LIVE_REPAIR for client in self.clients)
            or any(step.error is not None for step in self._awaited)
        )

    def _next_stage(self, extent: ExtentRepair) -> None:
        _, fetch_id, settle_id, _ = extent.ids
        match extent.stage:
            case Stage.CLOSING:
                extent.stage = Stage.FETCHING
                extent.awaited = self._fetch(extent)
            case Stage.FETCHING:
                extent.stage = Stage.SETTLING
                extent.awaited = self._submit(extent, JobKind.EXTENT_NO_OP, settle_id, [fetch_id])
            case Stage.SETTLING:
                extent.stage = Stage.OPENING
                extent.awaited = extent.opening
            case Stage.OPENING:
                self.under_way.remove(extent)
                self._begin_extents()
                if not self.under_way:
                    self._final_flush = self._core.submit_flush(None)

    def _begin_extents(self) -> None:
        """Begin to close further extents, as long as there are some and the repair goes on."""
        while not self.aborted and self.extent_id + 1 < self.extent_count and len(self.under_way) < self.ahead:
            self._next_extent()

    def _next_extent(self) -> None:
        core = self._core
        self.extent_id += 1
        first_id = core.next_job_id
        core.next_job_id += 4
        self._tell("progress", self.extent_id)
        dependencies: list[int] = []
        if core.identity.remote:
            first = self.extent_id * self.blocks_per_extent
            end = first + self.blocks_per_extent
            dependencies = core.tracker.block(first_id + 3, first, end, core.jobs.live)
        extent = ExtentRepair(self.extent_id, first_id)
        self.under_way.append(extent)
        extent.opening = self._submit(extent, JobKind.EXTENT_REOPEN, first_id + 3, [first_id + 2])
        flush_number, core.next_flush = core.next_flush, core.next_flush + 1
        extent.awaited = self._submit(extent, JobKind.EXTENT_CLOSE, first_id, dependencies, flush_number=flush_number)

    def _needing(self, extent: ExtentRepair) -> frozenset[int]:
        """Those that hold another extent than the source, or did not say (§8.2)."""
        if self.aborted:
            return frozenset()
        wanted = extent.versions.get(self.source.index)
        found = set()
        for client in self.clients:
            held = extent.versions.get(client.index)
            if held is None or held[2] or wanted is None or held[:2] != wanted[:2]:
                found.add(client.index)
        return frozenset(found)

    def _fetch(self, extent: ExtentRepair) -> Job:
        """Fetch the extent for those that need it; confirm it for the others."""
        if not self.aborted:
            for client in self.clients:
                if client.index in extent.needing:
                    client.extents_repaired += 1
                else:
                    client.extents_confirmed += 1
        close_id, fetch_id, _, _ = extent.ids
        return self._submit(extent, JobKind.EXTENT_REPAIR, fetch_id, [close_id])

    def _submit(
        self,
        extent: ExtentRepair,
        kind: JobKind,
        job_id: int,
        dependencies: list[int],
        *,
        flush_number: int = 0,
    ) -> Job:
        core = self._core
        job = Job(kind, job_id, [extent.extent_id], [0], 0)
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
            core.send(client.index, self._message(job, client, extent))
        if not targets:
            core.check(job)
        return job

    def _message(self, job: Job, client: Client, extent: ExtentRepair) -> m.Message:
        core = self._core
        dependencies = tuple(core.pruned_dependencies(job, client.index)[0])
        ids = (core.identity.upstairs_id, core.identity.session_id, job.first_id, dependencies)
        extent_id = extent.extent_id
        match job.kind:
            case JobKind.EXTENT_REOPEN:
                return m.ExtentLiveReopen(*ids, extent_id)
            case JobKind.EXTENT_CLOSE if client.state.phase is Phase.LIVE_REPAIR:
                return m.ExtentLiveClose(*ids, extent_id)
            case JobKind.EXTENT_CLOSE:
                return m.ExtentLiveFlushClose(*ids, extent_id, job.flush_number, job.gen_number)
            case JobKind.EXTENT_REPAIR if client.index in extent.needing and self.source.repair_address is not None:
                return m.ExtentLiveRepair(*ids, extent_id, self.source.index, self.source.repair_address)
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
        failed = [extent for extent in self.under_way if extent.awaited and extent.awaited.error]
        at = next(iter(failed or self.under_way), None)
        extent_id = self.extent_id if at is None else at.extent_id
        self._core.report("warning", "live repair aborted", extent=extent_id, number=self.number)
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
