"""The pantry and the hosts of a light rack, and the switchboard: what is at an address.

They answer what :class:`crucible_emu.client.pantry.PantryClient` and :class:`crucible_emu.client.host.HostClient` ask,
with the same statuses, so that the real :mod:`nexus.services` stand in front of them: its gone rules, its patience and
what sagas hear are part of what is explored.

Activation is tried again until all members are there, or the volume is given up; what has the volume elsewhere with a
higher generation ends it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import lru_cache
from typing import Any
from uuid import UUID

import trio

from crucible_emu.client.failures import ServiceError, ServiceUnreachable
from crucible_emu.errors import ReplaceRequestInvalid
from crucible_emu.host.components import CrucibleComponent
from crucible_emu.host.documents import (
    Instance,
    InstanceEnsureRequest,
    InstanceEnsureResponse,
    InstanceGetResponse,
    InstanceMigrateStatusResponse,
    InstanceStateMonitorResponse,
    SpecInit,
)
from crucible_emu.host.documents import VolumeStatus as HostVolumeStatus
from crucible_emu.host.states import ALIVE, FINAL, InstanceState
from crucible_emu.pantry.documents import AttachResult, PantryStatus, ReplaceResult, VolumeStatus
from crucible_emu.volume.vcr import RegionRequest, VolumeConstructionRequest, VolumeRequest, dumps, parse
from nexus.explore.agents import LightAgent
from nexus.explore.fabric import AGENT_PORT, HOST_PORT, PANTRY_PORT, Fabric, Sled
from nexus.explore.upstairs import REPAIR_S, LightVolume, Repaired, Taken, Unavailable
from nexus.volumes import Address

RETRY_S = 1.0
RETRY_LONGEST_S = 30.0

Tell = Callable[[UUID, str, Repaired], Awaitable[None]]
"""An Upstairs tells Nexus of a repair: its id, its session, and who was repaired."""


@lru_cache(maxsize=4096)
def received(text: str) -> VolumeConstructionRequest:
    """A document as it arrives on the other side of a connection."""
    return parse(text)


def generations(request: VolumeConstructionRequest) -> dict[str, int]:
    """Of the region sets that are written to, by their ids."""
    parts = request.sub_volumes if isinstance(request, VolumeRequest) else ()
    return {
        str(each.opts.id): each.gen for each in parts if isinstance(each, RegionRequest) and not each.opts.read_only
    }


class HandedOut:
    """The highest generations with which anything was constructed (I11)."""

    def __init__(self) -> None:
        self.known: dict[str, int] = {}

    def note(self, request: VolumeConstructionRequest) -> None:
        for name, generation in generations(request).items():
            self.known[name] = max(generation, self.known.get(name, 0))


def sent(request: VolumeConstructionRequest) -> VolumeConstructionRequest:
    """A document after its way through JSON: with nothing of what Nexus adds to it."""
    return received(dumps(request))


async def activated(volume: LightVolume, wanted: Callable[[], bool]) -> bool:
    """Try until the volume is in service; ``False`` when it is not wanted any more. Raises :class:`Taken`."""
    pause_s = RETRY_S
    while wanted():
        if volume.activate():
            return True
        await trio.sleep(pause_s)
        pause_s = min(2 * pause_s, RETRY_LONGEST_S)
    return False


class Attached:
    """A volume at a pantry."""

    def __init__(self, request: VolumeConstructionRequest, job_id: str, volume: LightVolume) -> None:
        self.request, self.job_id, self.volume = request, job_id, volume
        self.seen_active = self.deactivated = False
        self.finished = trio.Event()
        self.succeeded = False


class LightPantry:
    """Holds volumes for maintenance."""

    def __init__(self, fabric: Fabric, sled: Sled, start: Callable[..., None], handed_out: HandedOut) -> None:
        self._fabric, self._sled, self._start, self._handed_out = fabric, sled, start, handed_out
        self._url = f"pantry {sled.number}"
        self.held: dict[str, Attached] = {}

    async def pantry_status(self) -> PantryStatus:
        await self._asked()
        return PantryStatus(volumes=tuple(sorted(self.held)), num_job_handles=len(self.held))

    async def volume_status(self, volume_id: str) -> VolumeStatus:
        await self._asked()
        held = self._known(volume_id)
        active = held.volume.active
        held.seen_active |= active
        return VolumeStatus(active=active, seen_active=held.seen_active, num_job_handles=1, info=held.volume.info())

    async def attach(self, volume_id: str, request: VolumeConstructionRequest) -> AttachResult:
        held = await self._attach(volume_id, volume_id, request)
        await held.finished.wait()
        if not held.succeeded:
            raise ServiceError(409, f"the volume {volume_id} was not activated")
        self._sled.answer(self._url)
        return AttachResult(id=volume_id)

    async def attach_activate_background(self, volume_id: str, job_id: str, request: VolumeConstructionRequest) -> None:
        await self._attach(volume_id, job_id, request)
        self._sled.answer(self._url)

    async def _attach(self, volume_id: str, job_id: str, request: VolumeConstructionRequest) -> Attached:
        await self._asked()
        request = sent(request)
        held = self.held.get(volume_id)
        if held is None:
            self._handed_out.note(request)
            held = self.held[volume_id] = Attached(request, job_id, LightVolume(self._fabric, request))
            self._start(self._activate, volume_id, held)
        elif held.request != request:
            sentence = f"the volume {volume_id} is attached with another volume construction request"
            raise self._fabric.refuse(400, sentence)
        elif held.job_id != job_id:
            raise self._fabric.refuse(400, f"the volume {volume_id} is being activated by another job")
        return held

    async def _activate(self, volume_id: str, held: Attached) -> None:
        try:
            held.succeeded = await activated(held.volume, lambda: self._sled.alive and self.held.get(volume_id) is held)
            held.seen_active |= held.succeeded
        except Taken:
            held.volume.taken = True
        held.finished.set()

    async def replace(self, volume_id: str, request: VolumeConstructionRequest) -> ReplaceResult:
        await self._asked()
        held = self._known(volume_id)
        try:
            result = held.volume.replace(sent(request))
        except ReplaceRequestInvalid as error:
            raise ServiceError(400, str(error)) from error
        held.request = held.volume.request
        return result

    async def is_job_finished(self, job_id: str) -> bool:
        await self._asked()
        return self._job(job_id).finished.is_set()

    async def job_result_ok(self, job_id: str) -> bool:
        await self._asked()
        held = self._job(job_id)
        await held.finished.wait()
        return held.succeeded

    async def snapshot(self, volume_id: str, snapshot_id: str) -> None:
        await self._data(volume_id, lambda volume: volume.snapshot(snapshot_id))
        self._sled.answer(self._url)

    async def bulk_write(self, volume_id: str, offset: int, data: bytes) -> None:
        def write(volume: LightVolume) -> None:
            size = volume.request.block_size
            for at in range(0, len(data), size):
                volume.write((offset + at) // size, data[at : at + size])

        await self._data(volume_id, write)

    async def bulk_read(self, volume_id: str, offset: int, size: int) -> bytes:
        def read(volume: LightVolume) -> bytes:
            block_size = volume.request.block_size
            first, count = offset // block_size, size // block_size
            return b"".join(volume.read(block) for block in range(first, first + count))

        return bytes(await self._data(volume_id, read))

    async def detach(self, volume_id: str) -> None:
        await self._asked()
        held = self.held.get(volume_id)
        if held is None:
            return
        if held.volume.active and not held.deactivated:
            # Once: it is out of service by then, whatever became of its last flush, and the next call finds it so.
            held.deactivated = True
            try:
                held.volume.flush()
            except (Taken, Unavailable) as error:
                raise ServiceError(503, f"the volume {volume_id} cannot be flushed") from error
        del self.held[volume_id]
        held.finished.set()
        self._sled.answer(self._url)

    async def _data(self, volume_id: str, work: Callable[[LightVolume], Any]) -> Any:
        await self._asked()
        held = self._known(volume_id)
        if held.seen_active and not held.volume.active:
            raise ServiceError(410, f"the volume {volume_id} is no longer active here")
        try:
            return work(held.volume)
        except Taken as error:
            raise ServiceError(410, f"the volume {volume_id} is no longer active here") from error
        except Unavailable as error:
            raise ServiceError(503, f"the volume {volume_id} is not in service") from error

    async def _asked(self) -> None:
        await trio.lowlevel.checkpoint()
        self._sled.request(self._url)

    def _known(self, volume_id: str) -> Attached:
        found = self.held.get(volume_id)
        if found is None:
            raise ServiceError(404, f"no volume {volume_id} is attached here")
        return found

    def _job(self, job_id: str) -> Attached:
        for held in self.held.values():
            if held.job_id == job_id:
                return held
        raise ServiceError(404, f"there is no job {job_id} here")


class Guest:
    """An instance on a host: its disks as volumes, and how far it is."""

    def __init__(self, request: InstanceEnsureRequest, disks: dict[str, LightVolume]) -> None:
        self.request, self.disks = request, disks
        self.state = InstanceState.CREATING
        self.generation = 1
        self.changed = trio.Event()

    def move(self, state: InstanceState) -> None:
        self.state = state
        self.generation += 1
        self.changed.set()
        self.changed = trio.Event()


class LightHost:
    """Runs guests on one sled."""

    def __init__(
        self, fabric: Fabric, sled: Sled, start: Callable[..., None], tell: Tell, handed_out: HandedOut
    ) -> None:
        self.fabric, self.sled, self.start, self.tell, self.handed_out = fabric, sled, start, tell, handed_out
        self.guests: dict[str, Guest] = {}

    def instance(self, instance_id: UUID | str) -> LightInstance:
        return LightInstance(self, str(instance_id))


class LightInstance:
    """What is asked of one instance of a host."""

    def __init__(self, host: LightHost, instance_id: str) -> None:
        self._host, self._id = host, instance_id
        self._url = f"host {host.sled.number}"

    async def instance_ensure(self, request: InstanceEnsureRequest) -> InstanceEnsureResponse:
        await self._asked()
        found = self._host.guests.get(self._id)
        if found is not None and found.state not in FINAL:
            raise ServiceError(409, "there is an instance")
        assert isinstance(request.init, SpecInit)
        disks = {
            name: LightVolume(self._host.fabric, received(component.component.request_json))
            for name, component in request.init.value.spec.components.items()
            if isinstance(component, CrucibleComponent)
        }
        for volume in disks.values():
            self._host.handed_out.note(volume.request)
        self._host.guests[self._id] = Guest(request, disks)
        self._host.sled.answer(self._url)
        return InstanceEnsureResponse()

    async def instance_get(self) -> InstanceGetResponse:
        await self._asked()
        guest = self._known()
        return InstanceGetResponse(instance=Instance(properties=guest.request.properties, state=guest.state))

    async def instance_state_put(self, state: str) -> None:
        await self._asked()
        guest = self._known()
        if state == "Run":
            if guest.state not in ALIVE:
                raise ServiceError(403, f"the instance is {guest.state}")
            if guest.state is InstanceState.CREATING:
                guest.move(InstanceState.STARTING)
                self._host.start(self._run, guest)
        elif state == "Stop":
            if guest.state is InstanceState.FAILED:
                raise ServiceError(403, "the instance has failed")
            if guest.state not in FINAL:
                for volume in guest.disks.values():
                    if volume.active:
                        try:
                            volume.flush()
                        except (Taken, Unavailable):
                            continue  # what was acknowledged is on those that were there
                guest.move(InstanceState.DESTROYED)
        self._host.sled.answer(self._url)

    async def instance_state_monitor(self, gen: int) -> InstanceStateMonitorResponse:
        await self._asked()
        guest = self._known()
        while guest.generation < gen:
            if guest.state in FINAL:
                raise ServiceError(410, "the instance has ended")
            with trio.move_on_after(RETRY_LONGEST_S):
                await guest.changed.wait()
            self._host.sled.request(self._url)
        return InstanceStateMonitorResponse(
            gen=guest.generation, state=guest.state, migration=InstanceMigrateStatusResponse()
        )

    async def instance_migrate_status(self) -> InstanceMigrateStatusResponse:
        await self._asked()
        self._known()
        return InstanceMigrateStatusResponse()

    async def instance_issue_crucible_snapshot_request(self, disk_id: str, snapshot_id: UUID | str) -> None:
        volume = await self._disk(disk_id)
        try:
            volume.snapshot(str(snapshot_id))
        except (Taken, Unavailable) as error:
            raise ServiceError(400, f"disk {disk_id} is not in service") from error
        self._host.sled.answer(self._url)

    async def disk_volume_status(self, disk_id: str) -> HostVolumeStatus:
        volume = await self._disk(disk_id)
        volume.active  # noqa: B018 - looks at the members first
        return HostVolumeStatus(volume_info=volume.info())

    async def instance_issue_crucible_vcr_request(
        self, disk_id: str, request: VolumeConstructionRequest
    ) -> ReplaceResult:
        volume = await self._disk(disk_id)
        if self._known().state is not InstanceState.RUNNING:
            raise ServiceError(403, f"no VCR can be replaced: the instance is {self._known().state}")
        volume.active  # noqa: B018 - as above
        try:
            result = volume.replace(sent(request))
        except ReplaceRequestInvalid as error:
            raise ServiceError(400, str(error)) from error
        if result is ReplaceResult.STARTED:
            self._host.start(self._watch_repair, volume)
        self._host.sled.answer(self._url)
        return result

    # -- how ----------------------------------------------------------------------------------------------------------

    async def _run(self, guest: Guest) -> None:
        def wanted() -> bool:
            return self._host.sled.alive and guest.state is InstanceState.STARTING

        try:
            for volume in guest.disks.values():
                if not await activated(volume, wanted):
                    return
        except Taken:
            guest.move(InstanceState.FAILED)
            return
        guest.move(InstanceState.RUNNING)
        for volume in guest.disks.values():
            await self._tell(volume)

    async def _watch_repair(self, volume: LightVolume) -> None:
        """Tell of the repair when it is over."""
        await trio.sleep(REPAIR_S)
        if self._host.sled.alive and volume.active:
            await self._tell(volume)

    async def _tell(self, volume: LightVolume) -> None:
        for each in volume.every_set():
            repaired, each.repaired = each.repaired, []
            for one in repaired:
                await self._host.tell(each.request.opts.id, each.session, one)

    async def _asked(self) -> None:
        await trio.lowlevel.checkpoint()
        self._host.sled.request(self._url)

    def _known(self) -> Guest:
        found = self._host.guests.get(self._id)
        if found is None:
            raise ServiceError(424, "there is no instance")
        return found

    async def _disk(self, disk_id: str) -> LightVolume:
        await self._asked()
        guest = self._known()
        if guest.state not in ALIVE:
            raise ServiceError(410, "the instance has ended")
        if disk_id not in guest.disks:
            raise ServiceError(404, f"the instance has no disk {disk_id}")
        return guest.disks[disk_id]


class Switchboard:
    """Stands where :class:`nexus.services.Connections` does."""

    def __init__(self, fabric: Fabric, start: Callable[..., None], tell: Tell, pantries: int) -> None:
        self._fabric = fabric
        self.handed_out = HandedOut()
        self.agents = {sled.ip: LightAgent(fabric, sled) for sled in fabric.sleds}
        self.pantries = {sled.ip: LightPantry(fabric, sled, start, self.handed_out) for sled in fabric.sleds[:pantries]}
        self.hosts = {sled.ip: LightHost(fabric, sled, start, tell, self.handed_out) for sled in fabric.sleds}

    def agent(self, address: Address) -> Any:
        return self._at(self.agents, address, AGENT_PORT)

    def pantry(self, address: Address) -> Any:
        return self._at(self.pantries, address, PANTRY_PORT)

    def host(self, address: Address) -> Any:
        return self._at(self.hosts, address, HOST_PORT)

    def _at(self, services: dict[str, Any], address: Address, port: int) -> Any:
        if address.port != port or address.ip not in services:
            raise ServiceUnreachable(str(address), "nobody listens there")
        return services[address.ip]
