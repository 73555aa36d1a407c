"""The Trio shell around the ledger: volumes that are held in service, and the jobs on them (apis-and-tools.md §2).

What it is for: :class:`Pantry` has one task per volume, from its building to its end, and one per job. Requests come in
from other tasks; what they begin goes on when they go away.

What it guarantees:

* Each volume and each job has a cancel scope of its own. A detach ends the volume's jobs first, an activation that is
  under way included, then flushes and deactivates, then closes; only then the volume is forgotten.
* Whoever waits (for a job, an attach, a detach) waits for that alone: nothing here holds a lock over others.
* When :meth:`Pantry.run` is cancelled, every volume is flushed and deactivated, all at a time. Nothing is kept for the
  next start.
* An operation that fails because another client has the volume now says so, also when that happened in its midst.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from uuid import uuid4

import trio

from crucible_emu import errors
from crucible_emu.logs import get_logger
from crucible_emu.pantry import work
from crucible_emu.pantry.ledger import Entry, Job, Ledger
from crucible_emu.pantry.refusals import Refused, Situation
from crucible_emu.pantry.states import EntryEvent, EntryState, JobEvent, JobKind, Use
from crucible_emu.upstairs.driver import RECONNECT_DELAY_S
from crucible_emu.upstairs.replacement import ReplaceResult
from crucible_emu.volume.construction import construct
from crucible_emu.volume.in_service import Observe
from crucible_emu.volume.kept_running import kept_running
from crucible_emu.volume.vcr import VolumeConstructionRequest
from crucible_emu.volume.volume import Volume

Body = Callable[[Volume, Job], Awaitable[None]]
"""What a job does."""

log = get_logger(__name__)


class _Detach:
    """One attempt to detach a volume."""

    def __init__(self) -> None:
        self.wanted = trio.Event()
        self.done = trio.Event()
        self.error: errors.CrucibleError | None = None


class JobTask:
    """A job that runs, or ran."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.scope = trio.CancelScope()
        self.ended = trio.Event()


class Held:
    """A volume that the pantry has. ``settled``: it was built, or will not be; ``failure``: why not."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.volume: Volume | None = None
        self.settled = trio.Event()
        self.failure: str | None = None
        self.building = trio.CancelScope()
        self.running = False
        self.detach = _Detach()
        self.activation = JobTask(entry.activation)
        self.jobs = {entry.activation.id: self.activation}
        self.operations: set[trio.CancelScope] = set()
        self.nursery: trio.Nursery | None = None

    @property
    def active(self) -> bool:
        return self.volume is not None and self.running and self.volume.active

    @property
    def gone(self) -> bool:
        return self.entry.state is EntryState.GONE

    @property
    def built(self) -> Volume:
        """The volume, which is there once ``settled`` is set and nothing failed."""
        assert self.volume is not None
        return self.volume


class Pantry:
    """Volumes held for others; start :meth:`run` in a nursery first.

    ``new_id`` names jobs. ``observe`` is told of each Upstairs before it runs.
    """

    def __init__(
        self,
        *,
        reconnect_delay_s: float = RECONNECT_DELAY_S,
        new_id: Callable[[], str] = lambda: str(uuid4()),
        observe: Observe | None = None,
    ) -> None:
        self.ledger = Ledger()
        self.held: dict[str, Held] = {}
        """What the pantry has, by the volume's id."""
        self._new_id = new_id
        self.construct = partial(construct, reconnect_delay_s=reconnect_delay_s, observe=observe)
        """Builds a volume that does not run yet."""
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hold what is attached until cancelled; then take every volume out of service."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            await trio.sleep_forever()

    # -- attaching ----------------------------------------------------------------------------------------------------

    async def attach_in_background(self, volume_id: str, job_id: str, vcr: VolumeConstructionRequest) -> JobTask:
        """Have the volume built, and activated by the job ``job_id``, which is returned; a repetition changes nothing.

        Raises :class:`Refused` for a conflict and where it cannot be built, :class:`errors.Unsupported` where another
        client has taken it from here.
        """
        if self._nursery is None:
            raise RuntimeError("the pantry is not running: start run() in a nursery first")
        held = self.held.get(volume_id)
        entry = self.ledger.attach(volume_id, job_id, vcr, active=held is not None and held.active)
        if held is None or held.entry is not entry:
            held = self.held[volume_id] = Held(entry)
            self._nursery.start_soon(self._hold, held)
        await held.settled.wait()
        if held.failure is not None:
            raise Refused(Situation.NOT_BUILT, held.failure)
        return held.activation

    async def attach(self, volume_id: str, vcr: VolumeConstructionRequest) -> None:
        """Attach, and wait until the volume is active. Raises :class:`Refused`, always NOT_ATTACHED."""
        try:
            activation = await self.attach_in_background(volume_id, volume_id, vcr)
        except (Refused, errors.CrucibleError) as error:
            raise Refused(Situation.NOT_ATTACHED, str(error)) from error
        await activation.ended.wait()
        if not activation.job.ok:
            raise Refused(Situation.NOT_ATTACHED, f"the volume {volume_id!r} was not activated: {activation.job.error}")

    async def detach(self, volume_id: str) -> None:
        """End the volume's jobs, flush and deactivate it, forget it; nothing where there is none.

        Raises :class:`Refused` while another detach is under way, and what the deactivation failed with; the volume
        stays attached then.
        """
        held = self.held.get(volume_id)
        if held is None or held.gone:
            return
        attempt = held.detach
        self.ledger.admit(held.entry, Use.DETACH, active=held.active)
        if self.ledger.happened(held.entry, EntryEvent.DETACH) is EntryState.GONE:
            del self.held[volume_id]
            return
        held.building.cancel()
        attempt.wanted.set()
        await attempt.done.wait()
        if attempt.error is not None:
            raise attempt.error

    # -- looking ------------------------------------------------------------------------------------------------------

    async def look(self, volume_id: str) -> Held:
        """The volume, whatever became of it. Raises :class:`Refused` where there is none."""
        held = await self._found(volume_id)
        self.ledger.admit(held.entry, Use.LOOK, active=held.active)
        return held

    def job(self, job_id: str) -> Job:
        """The job, as far as it is now. Raises :class:`Refused`."""
        job = self.ledger.job(job_id)
        held = self.held.get(job.volume_id)
        if job.kind is JobKind.SCRUB and held is not None and held.volume is not None:
            work.update_progress(held.volume, job)
        return job

    async def job_ok(self, job_id: str) -> bool:
        """Whether the job succeeded, when it has ended; a job that a detach ends has not.

        Raises :class:`Refused` where there is none, or it died."""
        job = self.ledger.job(job_id)
        await self.held[job.volume_id].jobs[job_id].ended.wait()
        return job.ok

    # -- using --------------------------------------------------------------------------------------------------------

    async def replace(self, volume_id: str, vcr: VolumeConstructionRequest) -> ReplaceResult:
        """Make of the volume what ``vcr`` says. Raises :class:`Refused`, :class:`errors.ReplaceRequestInvalid`."""
        async with self.using(volume_id) as volume:
            entry = self.ledger.entry(volume_id)
            result = volume.target_replace(entry.vcr, vcr)
            entry.vcr = vcr
            return result

    @asynccontextmanager
    async def using(self, volume_id: str) -> AsyncIterator[Volume]:
        """The volume, for an operation on its data. Raises :class:`Refused`, :class:`errors.CrucibleError`."""
        held = await self._ready(volume_id)
        with trio.CancelScope() as scope:
            held.operations.add(scope)
            try:
                yield held.built
            except errors.CrucibleError:
                # Lost in its midst: then that is what the caller must know.
                if held.entry.state in (EntryState.ATTACHED, EntryState.LOST):
                    self.ledger.admit(held.entry, Use.DATA, active=held.active)
                raise
            finally:
                held.operations.discard(scope)
        if scope.cancelled_caught:
            raise errors.UpstairsInactive()

    async def start(self, volume_id: str, kind: JobKind, body: Body) -> Job:
        """Begin a job on the volume. Raises what :meth:`using` does before it begins."""
        held = await self._ready(volume_id)
        job = self.ledger.start(held.entry, kind, self._new_id(), active=held.active)
        self._launch(held, JobTask(job), body)
        return job

    async def _found(self, volume_id: str) -> Held:
        """The volume, built. Raises :class:`Refused`."""
        while True:
            held = self.held.get(volume_id)
            if held is None:
                raise Refused(Situation.UNKNOWN_VOLUME, f"no volume {volume_id!r} is attached here")
            if held.settled.is_set():
                return held
            await held.settled.wait()

    async def _ready(self, volume_id: str) -> Held:
        held = await self._found(volume_id)
        self.ledger.admit(held.entry, Use.DATA, active=held.active)
        return held

    # -- the task of a volume -----------------------------------------------------------------------------------------

    async def _hold(self, held: Held) -> None:
        """A volume from its building to its end, after which all that belongs to it is closed."""
        entry = held.entry
        try:
            async with AsyncExitStack() as stack:
                volume = await self._build(held, stack)
                if volume is not None:
                    await self._keep(held, volume)
            self.ledger.happened(entry, EntryEvent.NOT_BUILT if volume is None else EntryEvent.LEFT)
        except Exception as error:
            # The other volumes go on. Nothing but a detach is possible with this one, which is what a client sees.
            log.exception("volume lost", volume=entry.volume_id)
            held.failure = f"the volume {entry.volume_id!r} failed unexpectedly, with {type(error).__name__}"
            held.detach.error = errors.GenericError(held.failure)
            self.ledger.happened(entry, EntryEvent.NOT_BUILT if held.volume is None else EntryEvent.FAILED)
        finally:
            if held.volume is None and held.failure is None:
                held.failure = f"the pantry ended before the volume {entry.volume_id!r} was built"
            if not held.activation.job.finished:
                self.ledger.ended(held.activation.job, JobEvent.CANCELLED, held.failure)
                held.activation.ended.set()
            if held.gone:
                del self.held[entry.volume_id]
            held.settled.set()
            held.detach.done.set()

    async def _build(self, held: Held, stack: AsyncExitStack) -> Volume | None:
        """The volume, not running; ``None`` where it cannot be built or is wanted no more."""
        entry = held.entry
        with held.building:
            try:
                volume = await self.construct(entry.vcr, stack)
            except (errors.UsageError, errors.CrucibleError) as error:
                held.failure = f"the volume {entry.volume_id!r} cannot be built: {_sentence(error)}"
        if held.building.cancel_called:
            held.failure = f"the volume {entry.volume_id!r} was detached while it was being built"
        return volume if held.failure is None else None

    async def _keep(self, held: Held, volume: Volume) -> None:
        """Keep ``volume`` running until it is detached, or the pantry ends."""
        async with kept_running(volume.run):
            held.volume, held.running = volume, True
            left = False
            try:
                async with trio.open_nursery() as held.nursery:
                    self.ledger.happened(held.entry, EntryEvent.BUILT)
                    self._launch(held, held.activation, work.activate)
                    held.settled.set()
                    while not left:
                        await held.detach.wanted.wait()
                        left = await self._take_out(held, volume)
            finally:
                if not left:
                    await self._leave_service(held, volume)
                held.running = False
                # What was not answered by now never is.
                for scope in list(held.operations):
                    scope.cancel()

    async def _take_out(self, held: Held, volume: Volume) -> bool:
        """End all that is done with the volume, and take it out of service; whether that worked."""
        tasks = list(held.jobs.values())
        for task in tasks:
            task.scope.cancel()
        for task in tasks:
            await task.ended.wait()
        attempt = held.detach
        attempt.error = await self._leave_service(held, volume)
        if attempt.error is None:
            return True
        self.ledger.happened(held.entry, EntryEvent.STAYED)
        held.detach = _Detach()
        attempt.done.set()
        return False

    async def _leave_service(self, held: Held, volume: Volume) -> errors.CrucibleError | None:
        """Flush and deactivate; what that failed with."""
        with trio.CancelScope(shield=True):
            try:
                await volume.leave_service()
            except errors.CrucibleError as error:
                log.warning("deactivation failed", volume=held.entry.volume_id, error=str(error))
                return error
        return None

    # -- the task of a job --------------------------------------------------------------------------------------------

    def _launch(self, held: Held, task: JobTask, body: Body) -> None:
        assert held.nursery is not None
        held.jobs[task.job.id] = task
        held.nursery.start_soon(self._job, held, task, body)

    async def _job(self, held: Held, task: JobTask, body: Body) -> None:
        """One job, to its end, which is noted exactly once."""
        job, event, why = task.job, JobEvent.CANCELLED, "it was ended before it was done"
        try:
            with task.scope:
                await body(held.built, job)
            if not task.scope.cancelled_caught:
                event, why = JobEvent.SUCCEEDED, ""
        except Exception as error:
            sentence = _sentence(error)
            event = JobEvent.CRASHED if sentence is None else JobEvent.REFUSED
            why = sentence or f"unexpectedly, with {type(error).__name__}"
            if sentence is None:
                log.exception("job died", volume=job.volume_id, job=job.id, kind=job.kind.value)
        finally:
            if job.kind is JobKind.SCRUB:
                work.update_progress(held.built, job)
            activated = job.kind is JobKind.ACTIVATE and event is JobEvent.SUCCEEDED
            self.ledger.observe(held.entry, active=activated or held.active)
            self.ledger.ended(job, event, why or None)
            task.ended.set()
            if event is not JobEvent.CRASHED:
                log.info("job ended", volume=job.volume_id, job=job.id, kind=job.kind.value, state=job.state.value)


def _sentence(error: BaseException) -> str | None:
    """The sentence of an error that is foreseen, the first one of several; ``None`` for others."""
    if isinstance(error, BaseExceptionGroup):
        sentences = [_sentence(each) for each in error.exceptions]
        return None if None in sentences else sentences[0]
    if isinstance(error, errors.GenericError):
        return error.detail  # what the class itself says is only that there is one
    return str(error) if isinstance(error, errors.CrucibleError | errors.UsageError) else None
