"""Drives one instance: builds its disks, brings them into service, lets guests in, and gives everything back.

What it is for: :class:`Machine` carries out what :class:`~crucible_emu.host.instance.Instance` decides, one step after
the other, and reports how it went. Requests that need no step, such as a VCR replacement, are done in between, also
while a step is under way: a machine whose activation waits for a Downstairs that is gone is helped by that.

What it guarantees: however :meth:`Machine.run` ends, also cancelled, doors are closed and disks flushed and out of
service when it returns, and the instance is released. A stop cancels the step that is under way. What breaks costs
this instance and no other.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import trio

from crucible_emu.control.notices import Notice
from crucible_emu.control.notifier import Notifier
from crucible_emu.control.observation import Observation
from crucible_emu.errors import CrucibleError, UsageError
from crucible_emu.host import documents as d
from crucible_emu.host.disk import Disk
from crucible_emu.host.instance import Instance
from crucible_emu.host.refusals import BadSpec, CouldNotStart, Full, Gone, NoInstance, NotPossible, Refused
from crucible_emu.host.source import fetch_spec
from crucible_emu.host.spec import DiskPlan, migrated, read_replacement
from crucible_emu.host.states import ALIVE, Doing, Event, InstanceState
from crucible_emu.logs import get_logger
from crucible_emu.upstairs.driver import RECONNECT_DELAY_S, Upstairs
from crucible_emu.upstairs.replacement import ReplaceResult
from crucible_emu.volume.construction import construct
from crucible_emu.volume.kept_running import kept_running

SCRUB_DELAY_S = 120.0
SCRUB_PAUSE_S = 0.025
WATCHERS_MAX = 64
"""So many may wait for a change of one instance's state; a client that goes away is not noticed before the change."""

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Settings:
    """What all instances of a host share. ``scrub_delay_s``: how long a disk that reads from a parent is in service
    before it begins to copy from it, ``None``: it never does. ``faithful``: nobody is told of a region set that has no
    IPv6 target, as the real Upstairs does it (§9, row 19)."""

    directory: Path
    scrub_delay_s: float | None = SCRUB_DELAY_S
    scrub_pause_s: float = SCRUB_PAUSE_S
    reconnect_delay_s: float = RECONNECT_DELAY_S
    notifier: Notifier | None = None
    faithful: bool = False


Claim = Callable[[DiskPlan], Path]
"""Where the door of a disk is to be; raises :class:`BadSpec`."""


class Machine:
    """``instance``, which the routes of the host name ``key``. Start :meth:`run` in a nursery."""

    def __init__(self, instance: Instance, key: UUID | None, settings: Settings, claim: Claim) -> None:
        self.instance = instance
        self.key = key
        self.disks: dict[str, Disk] = {}
        self._settings = settings
        self._claim = claim
        self._changed = trio.Event()
        self._prepared = trio.Event()
        self._watchers = 0
        self._step = trio.CancelScope()
        self._built = False
        self._refusal: Refused | None = None
        self._stack: AsyncExitStack
        self._nursery: trio.Nursery
        self._observation: Observation
        self._silent: Observation

    # -- what is asked ------------------------------------------------------------------------------------------------

    def request(self, wanted: d.InstanceStateRequested) -> None:
        """Run, Stop or Reboot. Raises :class:`~crucible_emu.host.refusals.Forbidden`."""
        self.instance.request(wanted)
        self._tell()

    async def prepared(self) -> None:
        """Return when the disks are built. Raises why they are not."""
        await self._prepared.wait()
        if not self._built:
            raise self._refusal or CouldNotStart(self.instance.problem or "it was stopped while its disks were built")

    async def ended(self) -> None:
        """Return when it holds nothing any more."""
        while not self.instance.over:
            await self._changed.wait()

    async def monitor(self, generation: int) -> d.InstanceStateMonitorResponse:
        """The state, as soon as it is of ``generation`` or later. Raises :class:`Gone` where that will not come."""
        if self.instance.generation < generation and self._watchers >= WATCHERS_MAX:
            raise Full(f"{WATCHERS_MAX} clients wait for this instance already")
        self._watchers += 1
        try:
            while self.instance.generation < generation:
                if self.instance.over:
                    raise Gone(f"the instance is {self.instance.state}: its state does not change any more")
                await self._changed.wait()
        finally:
            self._watchers -= 1
        return self.instance.seen()

    async def replace(self, disk_id: str, vcr_json: str) -> ReplaceResult:
        """Replace the VCR of a disk (§6.3). One that comes before the disks are built waits for them."""
        waited = self.instance.state in ALIVE and not self._prepared.is_set()
        if waited:
            await self._prepared.wait()
        plan = self.instance.disk_to_change(disk_id, waited=waited)
        wanted = read_replacement(plan.id, vcr_json)
        try:
            result = self.disks[plan.id].volume.target_replace(plan.request, wanted)
        except CrucibleError as error:
            raise NotPossible(str(error)) from None
        self.instance.replaced(plan, wanted, vcr_json)
        return result

    async def snapshot(self, disk_id: str, snapshot_id: UUID) -> None:
        """Flush a disk and take a snapshot of each of its replicas."""
        try:
            await self.disk(disk_id).volume.snapshot(str(snapshot_id))
        except CrucibleError as error:
            raise NotPossible(str(error)) from None

    def volume_status(self, disk_id: str) -> d.VolumeStatus:
        try:
            return d.VolumeStatus(volume_info=self.disk(disk_id).volume.volume_info())
        except CrucibleError as error:
            raise NotPossible(str(error)) from None

    def disk(self, disk_id: str) -> Disk:
        """Raises :class:`NoInstance` and :class:`~crucible_emu.host.refusals.NoDisk`."""
        plan = self.instance.disk(disk_id)
        if plan.id not in self.disks:
            raise NoInstance("Server not initialized (no instance): its disks are being built")
        return self.disks[plan.id]

    def describe(self) -> d.HostedInstance:
        instance = self.instance
        return d.HostedInstance(
            key=self.key,
            id=instance.properties.id,
            name=instance.properties.name,
            state=instance.state,
            problem=instance.problem,
            disks=tuple(disk.describe() for disk in self.disks.values()),
        )

    # -- life ---------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Carry out what is to be done until the instance holds nothing any more."""
        try:
            async with trio.open_nursery() as observers:
                self._observation = Observation(observers, self._settings.notifier)
                self._silent = Observation(observers, None)
                try:
                    async with AsyncExitStack() as self._stack, kept_running(self._keep):
                        await self._obey()
                finally:
                    observers.cancel_scope.cancel()
        except Exception:
            log.exception("an instance broke", instance=str(self.instance.properties.id))
            self.instance.broken("a defect of this program: see its log")
        finally:
            self.disks.clear()
            if self.instance.state is not InstanceState.STOPPED:
                self.instance.broken("its host ended")
            self.instance.was_released()
            self._prepared.set()
            self._tell()

    async def _keep(self, *, task_status: trio.TaskStatus[None]) -> None:
        """The tasks of volumes and doors, which are needed until the last flush."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            await trio.sleep_forever()

    async def _obey(self) -> None:
        try:
            while True:
                doing = self.instance.take()
                if doing is Doing.RELEASE:
                    return
                if doing is Doing.NOTHING:
                    await self._changed.wait()
                    continue
                with trio.CancelScope() as self._step:
                    await self._DO[doing](self)
                self._tell()
        finally:
            with trio.CancelScope(shield=True):
                await self._leave_disks()

    def _tell(self) -> None:
        """Something has changed."""
        self._changed.set()
        self._changed = trio.Event()
        if self.instance.leaves:
            self._step.cancel()

    def _fail(self, refusal: Refused) -> None:
        self._refusal = refusal
        self.instance.broken(str(refusal))
        log.warning("an instance failed", instance=str(self.instance.properties.id), reason=str(refusal))

    # -- steps --------------------------------------------------------------------------------------------------------

    async def _prepare(self) -> None:
        try:
            await self._fetch()
            for plan in self.instance.plans.values():
                await self._build(plan)
        except UsageError as error:
            self._fail(BadSpec(str(error)))
        except (CrucibleError, OSError) as error:
            self._fail(CouldNotStart(f"the disks cannot be built: {error}"))
        except Refused as refusal:
            self._fail(refusal)
        else:
            self._built = True
            self.instance.happened(Event.PREPARED)
            self._prepared.set()

    async def _fetch(self) -> None:
        init = self.instance.init
        if isinstance(init, d.MigrationInit):
            wanted = init.value
            spec = await fetch_spec(wanted.src_addr, self.instance.properties.id, many=self.key is not None)
            self.instance.accept_spec(migrated(spec, wanted.replace_components))

    async def _build(self, plan: DiskPlan) -> None:
        upstairs: list[Upstairs] = []

        def observe(found: Upstairs, control: str | None) -> None:
            upstairs.append(found)
            silent = self._settings.faithful and not any(client.target.startswith("[") for client in found.core.clients)
            (self._silent if silent else self._observation).watch(found, control)

        path = self._claim(plan)
        volume = await construct(
            plan.request, self._stack, reconnect_delay_s=self._settings.reconnect_delay_s, observe=observe
        )
        await self._nursery.start(volume.run)
        self.disks[plan.id] = Disk(plan, volume, upstairs, path)

    async def _start(self) -> None:
        failures: list[Refused] = []

        async def activate(disk: Disk) -> None:
            try:
                await disk.volume.activate()
            except CrucibleError as error:
                failures.append(CouldNotStart(f"the disk {disk.plan.id!r} cannot be activated: {error}"))
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for disk in self.disks.values():
                nursery.start_soon(activate, disk)
        try:
            if not failures:
                self._open_doors()
        except UsageError as error:
            failures.append(CouldNotStart(str(error)))
        if failures:
            self._fail(failures[0])
            return
        for disk in self.disks.values():
            self._begin_scrub(disk)
        self.instance.happened(Event.STARTED)

    def _begin_scrub(self, disk: Disk) -> None:
        delay_s = self._settings.scrub_delay_s
        if delay_s is None or not disk.wants_scrub:
            return

        def done() -> None:
            if self._settings.notifier is not None:
                path = f"/disk/{disk.volume.id}/remove-read-only-parent"
                self._settings.notifier.put(Notice(path, {}, high=True))

        self._nursery.start_soon(disk.scrub, delay_s, self._settings.scrub_pause_s, done)

    def _open_doors(self) -> None:
        for disk in self.disks.values():
            disk.open(self._nursery)

    async def _reset(self) -> None:
        async with trio.open_nursery() as nursery:
            for disk in self.disks.values():
                nursery.start_soon(_send_away, disk)
        try:
            self._open_doors()
        except UsageError as error:
            self._fail(CouldNotStart(str(error)))
        else:
            self.instance.happened(Event.RESET)

    async def _leave(self) -> None:
        await self._leave_disks()
        self.instance.happened(Event.LEFT)

    async def _leave_disks(self) -> None:
        async with trio.open_nursery() as nursery:
            for disk in self.disks.values():
                nursery.start_soon(disk.leave)

    _DO: dict[Doing, Callable[[Machine], Awaitable[None]]] = {
        Doing.PREPARE: _prepare,
        Doing.START: _start,
        Doing.RESET: _reset,
        Doing.LEAVE: _leave,
    }


async def _send_away(disk: Disk) -> None:
    await disk.close()
    await disk.flush()
