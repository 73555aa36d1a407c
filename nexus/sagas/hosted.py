"""An instance on a host: what the host is asked, and told of the instance's disks (apis-and-tools.md §6.1, §6.2).

A host knows an instance by its id and runs it once; which vmm that is says the database alone. So whoever puts an
instance there stops what is there under its id first. *Safety*: what a dead run left has documents of an older
generation, and would lose its disks in the middle of its work.

:func:`halted` ends well where there is nothing to stop, where it stopped by itself, and where the host is gone for
good.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from uuid import UUID

import trio

from crucible_emu.client.host import HostClient
from crucible_emu.host.components import (
    Board,
    Chipset,
    CrucibleComponent,
    CrucibleStorageBackend,
    I440Fx,
    InstanceSpec,
    PciPath,
    VirtioDisk,
    VirtioDiskComponent,
)
from crucible_emu.host.documents import (
    InstanceEnsureRequest,
    InstanceMetadata,
    InstanceProperties,
    SpecInit,
    SpecValue,
)
from crucible_emu.host.states import InstanceState
from crucible_emu.volume.vcr import VolumeConstructionRequest, dumps
from nexus.objects.instances import AttachedDisk, Instance, SledOfInstance
from nexus.objects.refusals import UNAVAILABLE
from nexus.saga import ActionFailed
from nexus.services import Gone, ServiceRefused, World
from nexus.services.hosts import Vmm

FIRST_DISK_DEVICE = 16
"""PCI devices below it are for other things."""
START_TIMEOUT_S = 120.0
"""*Liveness*: an instance with a disk of which a copy is lost waits for ever. It starts when that is replaced."""
OVER = 410
NO_INSTANCE = 424
FORBIDDEN = 403


async def ensured(world: World, vmm: Vmm, request: InstanceEnsureRequest) -> None:
    """Put the instance there; nothing may be there under its id. Raises :class:`~nexus.saga.ActionFailed`."""
    await world.hosts.ask(vmm, _named(vmm), lambda host: host.instance_ensure(request))


async def running(world: World, vmm: Vmm) -> None:
    """Have the instance run, and return when a guest may use its disks. Raises :class:`~nexus.saga.ActionFailed`."""
    await world.hosts.ask(vmm, _named(vmm), lambda host: host.instance_state_put("Run"))
    state: InstanceState | None = None
    with trio.move_on_after(START_TIMEOUT_S):
        state = await _until(world, vmm, {InstanceState.RUNNING, InstanceState.FAILED, InstanceState.DESTROYED})
    if state is not InstanceState.RUNNING:
        how = "did not start in time" if state is None else f"is {state.value}"
        raise ActionFailed(f"{_named(vmm)} {how}", UNAVAILABLE)


async def halted(world: World, vmm: Vmm) -> None:
    """Return when the host runs nothing under the instance's id: disks are flushed and let go of. Raises
    :class:`~nexus.services.ServiceRefused`."""
    try:
        if await _asked_unless(world, vmm, {NO_INSTANCE}, lambda host: host.instance_get()) is None:
            return
        # One that has failed refuses to be stopped, and gives up what it holds by itself.
        await _asked_unless(world, vmm, {NO_INSTANCE, FORBIDDEN}, lambda host: host.instance_state_put("Stop"))
        await _until(world, vmm, set())
    except Gone:
        return


async def _until(world: World, vmm: Vmm, wanted: set[InstanceState]) -> InstanceState | None:
    """Watch the instance until its state is one of ``wanted``; ``None`` when it has ended and holds nothing."""
    generation = 0
    while True:
        ended = {OVER, NO_INSTANCE}
        watch = _monitor(generation)
        seen = await _asked_unless(world, vmm, ended, watch)
        if seen is None or seen.state in wanted:
            return None if seen is None else seen.state
        generation = seen.gen + 1


def _monitor(generation: int) -> Callable[[HostClient], Awaitable[Any]]:
    return lambda host: host.instance_state_monitor(generation)


async def _asked_unless(
    world: World, vmm: Vmm, absent: set[int], request: Callable[[HostClient], Awaitable[Any]]
) -> Any | None:
    """The answer; ``None`` where it is a refusal with a status in ``absent``. An answer without content is ``True``."""
    try:
        answer = await world.hosts.ask(vmm, _named(vmm), request)
    except ServiceRefused as error:
        if error.status in absent:
            return None
        raise
    return True if answer is None else answer


def _named(vmm: Vmm) -> str:
    return f"instance {vmm.instance_id} on the host {vmm.address}"


# -- what a host is told ----------------------------------------------------------------------------------------------


def instance_request(
    instance: Instance, sled: SledOfInstance, disks: Sequence[tuple[AttachedDisk, VolumeConstructionRequest]]
) -> InstanceEnsureRequest:
    """The instance with its disks, each under its id. It has their keys in it: a secret."""
    components: dict[str, CrucibleComponent | VirtioDiskComponent] = {}
    for disk, request in disks:
        backend = CrucibleStorageBackend(readonly=disk.read_only, request_json=dumps(request))
        components[disk.disk_id] = CrucibleComponent(type="crucible_storage_backend", component=backend)
        path = PciPath(bus=0, device=FIRST_DISK_DEVICE + disk.slot, function=0)
        device = VirtioDisk(backend_id=disk.disk_id, pci_path=path)
        components[f"{disk.disk_id}:device"] = VirtioDiskComponent(type="virtio_disk", component=device)
    board = Board(cpus=1, memory_mb=1024, chipset=Chipset(type="i440_fx", value=I440Fx(enable_pcie=False)))
    metadata = InstanceMetadata(
        project_id=UUID(instance.project_id),
        silo_id=UUID(sled.silo_id),
        sled_id=UUID(sled.sled_id),
        sled_model=sled.part_number,
        sled_revision=sled.revision,
        sled_serial=sled.serial_number,
    )
    properties = InstanceProperties(
        id=UUID(instance.id), name=instance.name, description=instance.description, metadata=metadata
    )
    spec = InstanceSpec(board=board, components=dict(components))
    return InstanceEnsureRequest(properties=properties, init=SpecInit(value=SpecValue(spec=spec)))
