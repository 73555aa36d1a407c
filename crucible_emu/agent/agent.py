"""The agent: requests recorded and answered, and a worker that carries them out (apis-and-tools.md §1).

What it is for: :class:`Agent` is what the API's routes call. A request only changes the records; the worker sees what
is to be done, one piece at a time in the order of §1.6, clones beside it, up to 64 at once.

What it guarantees: records are on disk before a request is answered and before the worker acts upon them; while they
cannot be written, it tries again every second and answers nothing. After a SIGKILL at any instant the next agent finds
the records of the last answer or later, and begins again whatever they say is to be done:

* *requested*: whatever was begun of the region is removed and made anew; if all of it was done but the record, too;
* *tombstoned*: a removal continues, one that had ended is found done;
* *created*: the region is whole, for it got its name before its record said so; its Downstairs is started.

A region's record says *created* before its Downstairs is started, a running snapshot's after that, as in the real one;
but clients hear it when the Downstairs can be reached.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio

from crucible_emu.agent import books, core
from crucible_emu.agent.core import PortPool, Reason, Refused, Task, Work
from crucible_emu.agent.datasets import Datasets
from crucible_emu.agent.digesting import Digests, Key
from crucible_emu.agent.documents import (
    CreateRegion,
    DigestStatus,
    GetSnapshotResponse,
    Region,
    RunningSnapshot,
    Snapshot,
    State,
)
from crucible_emu.agent.failures import Failing, Failures
from crucible_emu.agent.records import Records, RegionRecord
from crucible_emu.agent.services import AsChildren, InThisProcess, Running, ServiceConfig, Services
from crucible_emu.agent.states import RegionEvent, RegionState, RunEvent
from crucible_emu.agent.store import Store
from crucible_emu.errors import CrucibleError, UsageError
from crucible_emu.logs import get_logger

CLONES_MAX = 64
REMOVAL_TRIES = 5
REMOVAL_PAUSE_S = 2.0
SAVE_PAUSE_S = 1.0
REST_S = 1.0
"""How long work rests that could not be done now, such as starting a Downstairs whose port is taken."""
SERVICE_LOGS = "services"
TROUBLE = (UsageError, CrucibleError, OSError)

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class AgentOptions:
    """``host``: where Downstairs listen. ``capacity_bytes``: what reservations may add up to, ``None`` for no limit."""

    host: str = "::1"
    pool: PortPool = field(default_factory=lambda: PortPool(19000, 1000))
    capacity_bytes: int | None = None
    isolate: bool = False
    failures: Failures = field(default_factory=Failures)


@asynccontextmanager
async def running_agent(directory: Path, options: AgentOptions) -> AsyncIterator[Agent]:
    """The agent of ``directory``, at work while the block runs. Raises :class:`UsageError`."""
    store = Store(directory)
    try:
        records = store.load()
        datasets = Datasets(directory)
        await trio.to_thread.run_sync(datasets.sweep)
        running: Running = AsChildren(directory / SERVICE_LOGS) if options.isolate else InThisProcess()
        async with trio.open_nursery() as nursery:
            agent = Agent(store, records, datasets, Services(nursery, running), nursery, options)
            await nursery.start(agent.run)
            yield agent
            nursery.cancel_scope.cancel()
    finally:
        store.close()


class Agent:
    """One agent. Methods that are named like requests raise :class:`Refused`; :meth:`run` is the worker."""

    def __init__(
        self,
        store: Store,
        records: Records,
        datasets: Datasets,
        services: Services,
        nursery: trio.Nursery,
        options: AgentOptions,
    ) -> None:
        self.datasets = datasets
        self.services = services
        self.options = options
        self._store = store
        self._records = records
        self._nursery = nursery
        self._digests = Digests(nursery)
        self._changing = trio.Lock()
        self._reconciling = trio.Lock()
        self._snapshots = trio.Lock()
        """Held while a snapshot's existence is asked for and relied upon."""
        self._changed = trio.Event()
        self._clones = trio.CapacityLimiter(CLONES_MAX)
        self._resting: set[Work] = set()
        self._coming: set[str] = set()
        """Regions that are made and whose Downstairs are about to be started."""

    @property
    def records(self) -> Records:
        """What is on disk."""
        return self._records

    async def _change(self, change: Callable[[Records], Records]) -> Records:
        """Make the records what ``change`` says, durably. Raises what ``change`` raises; then nothing has changed."""
        async with self._changing:
            after = change(self._records)
            if after is not self._records:
                await self._save(after)
                self._records = after
                self._wake()
            return after

    async def _save(self, records: Records) -> None:
        while True:
            try:
                await trio.to_thread.run_sync(self._store.save, records)
            except OSError as error:
                log.error("records not written, trying again", file=str(self._store.path), reason=error.strerror)
                await trio.sleep(SAVE_PAUSE_S)
            else:
                return

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    # Requests about regions

    def regions(self) -> list[RegionRecord]:
        """Every region there ever was, by id."""
        return self._records.in_order()

    def region(self, region_id: str) -> RegionRecord:
        return core.region(self._records, region_id)

    def document(self, record: RegionRecord, *, faithful: bool) -> Region:
        """The record as a client sees it. *Liveness*: who hears *created* connects at once; so a region stays
        *requested* until its Downstairs can be reached, or has failed once. The real agent does not wait for that."""
        document = record.document()
        starting = record.id in self._coming or self.services.is_starting(f"downstairs-{record.id}")
        if faithful or not starting or document.state is not State.CREATED:
            return document
        return document.model_copy(update={"state": State.REQUESTED})

    async def create_region(self, wish: CreateRegion) -> RegionRecord:
        after = await self._change(lambda records: core.create_region(records, wish, self.options.pool))
        return after.regions[wish.id]

    async def delete_region(self, region_id: str) -> None:
        async with self._snapshots:
            found = await trio.to_thread.run_sync(self.datasets.snapshots, region_id)
            await self._change(lambda records: core.delete_region(records, region_id, has_snapshots=bool(found)))

    # Requests about snapshots

    async def snapshots(self, region_id: str) -> GetSnapshotResponse:
        self.region(region_id)
        found = await trio.to_thread.run_sync(self.datasets.snapshots, region_id)
        return GetSnapshotResponse(snapshots=found, running_snapshots=dict(self._records.running.get(region_id, {})))

    async def snapshot(self, region_id: str, name: str) -> Snapshot:
        self.region(region_id)
        found = await trio.to_thread.run_sync(self.datasets.snapshot, region_id, name)
        if found is None:
            raise Refused(Reason.UNKNOWN_SNAPSHOT, f"region {region_id!r} has no snapshot {name!r}")
        return found

    async def delete_snapshot(self, region_id: str, name: str) -> None:
        async with self._snapshots:
            has_dataset = await trio.to_thread.run_sync(self.datasets.exists, region_id)
            if core.may_delete_snapshot(self._records, region_id, name, has_dataset=has_dataset):
                self._digests.forget(region_id, name)
                await trio.to_thread.run_sync(self.datasets.delete_snapshot, region_id, name)

    async def run_snapshot(self, region_id: str, name: str) -> RunningSnapshot:
        async with self._snapshots:
            await self.snapshot(region_id, name)
            after = await self._change(lambda records: core.run_snapshot(records, region_id, name, self.options.pool))
        run = after.run(region_id, name)
        assert run is not None
        return run

    async def stop_snapshot(self, region_id: str, name: str) -> None:
        await self._change(lambda records: core.stop_snapshot(records, region_id, name))

    # Requests about digests

    async def region_digest(self, region_id: str) -> DigestStatus:
        record = self.region(region_id)
        path = self.datasets.path(region_id)
        if record.state is not RegionState.CREATED or path is None:
            raise Refused(Reason.NOT_CREATED, f"region {region_id!r} is {record.state.shown.value}, not created")

        def flushing() -> bool:
            region = self.services.region(f"downstairs-{region_id}")
            return region is not None and region.flush_under_way

        return await self._ask_digest((region_id, None), path, immutable=record.read_only, flushing=flushing)

    async def snapshot_digest(self, region_id: str, name: str) -> DigestStatus:
        await self.snapshot(region_id, name)
        path = self.datasets.snapshot_path(region_id, name)
        assert path is not None
        return await self._ask_digest((region_id, name), path, immutable=True, flushing=lambda: False)

    def forget_digest(self, region_id: str, name: str | None = None) -> None:
        """Whoever asks next for the digest of the region, or of its snapshot ``name``, has the bytes read again."""
        self.region(region_id)
        self._digests.forget_one((region_id, name))

    async def _ask_digest(self, key: Key, path: Path, *, immutable: bool, flushing: Callable[[], bool]) -> DigestStatus:
        try:
            return await self._digests.ask(key, path, immutable=immutable, flushing=flushing)
        except UsageError as error:  # it went between the question and the look
            raise Refused(Reason.NOT_CREATED, str(error)) from None

    # The worker

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Start what shall run, then do what is to be done, until cancelled."""
        await self._reconcile()
        task_status.started()
        while True:
            changed = self._changed
            work = core.next_work(self._records, self._resting)
            if work is None:
                await changed.wait()
            else:
                await trio.sleep(self.options.failures.slow_s)
                # A request may have come meanwhile that makes it another.
                if work == core.next_work(self._records, self._resting):
                    log.info("working", task=work.task.value, region=work.region_id, snapshot=work.name)
                    await self._do(work)

    async def _do(self, work: Work) -> None:
        match work.task:
            case Task.REMOVE_REGION:
                await self._remove(work.region_id)
            case Task.MAKE_REGION:
                await self._make(work.region_id)
            case Task.STOP_SNAPSHOT:
                await self._reconcile()
                await self._run_news(work, RunEvent.STOPPED)
            case Task.START_SNAPSHOT:
                await self._start(work)

    async def _reconcile(self, *, wait: bool = True) -> None:
        """Run the Downstairs that shall run, and no others; without ``wait`` those that start are not waited for."""
        async with self._reconciling:
            configs = {}
            for name, wanted in core.wanted_services(self._records).items():
                if wanted.snapshot is None:
                    path = self.datasets.path(wanted.region_id)
                else:
                    path = self.datasets.snapshot_path(wanted.region_id, wanted.snapshot)
                if path is not None:
                    host, read_only = self.options.host, wanted.read_only
                    configs[name] = ServiceConfig(name, path, host, wanted.port, read_only, wanted.tls)
            await self.services.apply(configs, wait=wait)

    # Making regions

    async def _make(self, region_id: str) -> None:
        wish = self._records.regions[region_id].wish
        try:
            books.definition_of(wish)
            self.options.failures.strike(Failing.CREATE)
            held = await trio.to_thread.run_sync(self.datasets.held)
            records = self._records.regions
            others = (records[each].wish for each in held if each != region_id and each in records)
            books.check_capacity(wish, others, self.options.capacity_bytes)
            if wish.source is None:
                await trio.to_thread.run_sync(self.datasets.make, wish)
            else:
                await trio.to_thread.run_sync(self.datasets.begin, wish)  # holds its reservation from now on
                await self._region_news(region_id, RegionEvent.CLONE_BEGINS)
                if self._records.regions[region_id].state is RegionState.CREATING:
                    self._nursery.start_soon(self._clone, wish)
                return
        except TROUBLE as error:
            await self._not_made(region_id, error)
        else:
            await self._made(wish)

    async def _clone(self, wish: CreateRegion) -> None:
        async with self._clones:
            try:
                await trio.sleep(self.options.failures.slow_s)
                await self.datasets.clone(wish)
            except TROUBLE as error:
                await self._not_made(wish.id, error)
            else:
                await self._made(wish)

    async def _made(self, wish: CreateRegion) -> None:
        log.info(
            "region made",
            region=wish.id,
            reservation_bytes=books.reservation_bytes(wish),
            quota_bytes=books.quota_bytes(wish),
        )
        self._coming.add(wish.id)
        try:
            await self._region_news(wish.id, RegionEvent.MADE)
            # A process takes a second to start, and nothing that follows needs it.
            await self._reconcile(wait=not self.options.isolate)
        finally:
            self._coming.discard(wish.id)

    async def _not_made(self, region_id: str, error: Exception) -> None:
        log.error("region not made", region=region_id, reason=str(error))
        try:
            await trio.to_thread.run_sync(self.datasets.remove, region_id)
        except OSError as left:
            log.warning("files of a failed region stay", region=region_id, reason=left.strerror)
        await self._region_news(region_id, RegionEvent.NOT_MADE)

    async def _region_news(self, region_id: str, event: RegionEvent) -> None:
        await self._change(lambda records: core.region_news(records, region_id, event))

    # Removing regions

    async def _remove(self, region_id: str) -> None:
        await self._reconcile()
        self._digests.forget(region_id)
        for number in range(1, REMOVAL_TRIES + 1):
            try:
                self.options.failures.strike(Failing.DELETE)
                await trio.to_thread.run_sync(self.datasets.remove, region_id)
            except (OSError, UsageError) as error:
                log.warning("region not removed", region=region_id, attempt=number, reason=str(error))
                if number < REMOVAL_TRIES:
                    await trio.sleep(REMOVAL_PAUSE_S)
            else:
                await self._region_news(region_id, RegionEvent.REMOVED)
                return
        log.error("region not removed, giving up", region=region_id)
        await self._region_news(region_id, RegionEvent.NOT_REMOVED)

    # Running snapshots

    async def _start(self, work: Work) -> None:
        try:
            self.options.failures.strike(Failing.RUN)
        except UsageError as error:
            log.error("snapshot not run", region=work.region_id, snapshot=work.name, reason=str(error))
            await self._run_news(work, RunEvent.CANNOT_RUN)
            await self._reconcile()
            return
        await self._reconcile()
        if self.services.is_up(f"snapshot-{work.region_id}-{work.name}"):
            await self._run_news(work, RunEvent.STARTED)
        else:
            self._resting.add(work)
            self._nursery.start_soon(self._rest, work)

    async def _rest(self, work: Work) -> None:
        await trio.sleep(REST_S)
        self._resting.discard(work)
        self._wake()

    async def _run_news(self, work: Work, event: RunEvent) -> None:
        name = work.name
        assert name is not None
        await self._change(lambda records: core.run_news(records, work.region_id, name, event))
