"""What users have on a plant, made by hand in the steps of the creating sagas: disks with real regions, snapshots that
a pantry took, disks and images made from these. For tests of what takes things away."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import trio
from nexus_rig import EXTENT_BYTES, SIZES, Plant
from pydantic import BaseModel, SecretStr
from saga_scaffold import Fresh, Trial

from crucible_emu.agent.api import agent_api
from crucible_emu.service import application
from crucible_emu.volume.vcr import VolumeConstructionRequest
from nexus.db import schema
from nexus.objects import provisioning
from nexus.objects.disks import Move, NewDisk, disk_insert, disk_move
from nexus.objects.snapshots import Change, Snapshot, snapshot_change, snapshot_insert
from nexus.placement import AllocatedRegion, Allocation, regions_allocate, regions_of
from nexus.saga import MemoryStore, Saga, SagaFailed
from nexus.saga.executor import Executor, perform_once
from nexus.sagas import disk_delete, image_create, image_delete, snapshot_delete, volume_delete
from nexus.sagas.disk_delete import DISK_DELETE
from nexus.sagas.image_delete import IMAGE_DELETE
from nexus.sagas.snapshot_delete import SNAPSHOT_DELETE
from nexus.sagas.volume_delete import VOLUME_DELETE
from nexus.services import WantedRegion
from nexus.volumes import (
    Address,
    CopyAndModify,
    Pantry,
    ReadOnlyCopy,
    RegionSnapshot,
    deletions_to_finish,
    region_snapshot_create,
    volume_checkout,
    volume_create,
    walks,
)
from nexus.volumes.recorded import RecordedOpts, RecordedRegion, RecordedVolume

SIZE_BYTES = 2 * EXTENT_BYTES
GEOMETRY = SIZES.geometry(SIZE_BYTES, 512)


@dataclass(frozen=True)
class HasVolume:
    """A disk, snapshot or image by its id, and its volume's."""

    id: str
    volume_id: str


@dataclass(frozen=True)
class MadeSnapshot(HasVolume):
    destination_volume_id: str


async def regions(rack: Plant, volume_id: str) -> list[AllocatedRegion]:
    """Three regions of a volume, made and listening."""
    ids = tuple(rack.id() for _ in range(3))
    placed = rack.run(regions_allocate, Allocation(volume_id, ids, GEOMETRY, volume_id), rack.now())
    await rack.world.agents.regions_ensure([WantedRegion(each, GEOMETRY) for each in placed])
    found: list[AllocatedRegion] = rack.run(regions_of, volume_id)
    return found


def read_write(
    rack: Plant, identity: str, made: list[AllocatedRegion], parent: VolumeConstructionRequest | None = None
) -> RecordedVolume:
    addresses = tuple(str(Address.of(each.ip, each.port or 0)) for each in made)
    key = SecretStr(b64encode(rack.random.randbytes(32)).decode())
    part = RecordedRegion(
        type="region",
        block_size=GEOMETRY.block_size,
        blocks_per_extent=GEOMETRY.blocks_per_extent,
        extent_count=GEOMETRY.extent_count,
        gen=1,
        opts=RecordedOpts(id=UUID(identity), target=addresses, key=key),
    )
    whole = RecordedVolume(type="volume", id=UUID(identity), block_size=512, sub_volumes=(part,))
    return whole.model_copy(update={"read_only_parent": parent})


async def make_disk(rack: Plant, source: HasVolume | None = None, *, name: str = "") -> HasVolume:
    """A detached disk, over a copy of ``source``'s volume if there is one; charged."""
    disk = HasVolume(rack.id(), rack.id())
    now = rack.now()
    rack.run(provisioning.charge_disk, disk.id, rack.project_id, SIZE_BYTES, now)
    new = NewDisk(disk.id, rack.project_id, name or disk.id, "", SIZE_BYTES, 512, disk.volume_id)
    rack.run(disk_insert, new, now)
    made = await regions(rack, disk.volume_id)
    parent = None
    if source is not None:
        copied = rack.run(volume_checkout, source.volume_id, ReadOnlyCopy(), now).request
        parent = walks.randomized_ids(copied, lambda: UUID(rack.id()))
    rack.run(volume_create, disk.volume_id, read_write(rack, disk.id, made, parent), now)
    rack.run(disk_move, disk.id, Move.CREATED, now)
    return disk


async def make_snapshot(rack: Plant, disk: HasVolume) -> MadeSnapshot:
    """A snapshot that is ready, taken through the pantry; charged."""
    snapshot = MadeSnapshot(rack.id(), rack.id(), rack.id())
    now = rack.now()
    blank = await regions(rack, snapshot.destination_volume_id)
    rack.run(volume_create, snapshot.destination_volume_id, read_write(rack, rack.id(), blank), now)
    row = Snapshot(
        id=snapshot.id,
        project_id=rack.project_id,
        name=snapshot.id,
        description="",
        disk_id=disk.id,
        volume_id=snapshot.volume_id,
        destination_volume_id=snapshot.destination_volume_id,
        state=schema.SnapshotState.CREATING,
        gen=1,
        block_size=512,
        size_bytes=SIZE_BYTES,
    )
    rack.run(snapshot_insert, row, now)
    rack.run(provisioning.charge_snapshot, snapshot.id, rack.project_id, SIZE_BYTES, now)
    await make_snapshot_volume(rack, disk, snapshot)
    rack.run(snapshot_change, snapshot.id, Change.FINISH, now)
    return snapshot


async def make_snapshot_volume(rack: Plant, disk: HasVolume, snapshot: HasVolume) -> None:
    """Only the volume over running snapshots; no row of a snapshot, and no destination volume."""
    agents, pantries, now = rack.world.agents, rack.world.pantries, rack.now()
    pantry = await pantries.choose(snapshot.id)
    await pantries.attach(pantry, disk.id, rack.run(volume_checkout, disk.volume_id, Pantry(), now).request)
    await pantries.snapshot(pantry, disk.id, snapshot.id)
    await pantries.detach(pantry, disk.id)
    running: dict[Address, Address] = {}
    for region in rack.run(regions_of, disk.volume_id):
        member = RegionSnapshot(region.dataset_id, region.region_id, snapshot.id)
        address = await agents.snapshot_run(WantedRegion(region, GEOMETRY).dataset, member)
        rack.run(region_snapshot_create, member, address)
        running[Address.of(region.ip, region.port)] = address
    held = rack.run(volume_checkout, disk.volume_id, CopyAndModify(), now).request
    rack.run(volume_create, snapshot.volume_id, walks.snapshot_of_disk(held, running, lambda: UUID(rack.id())), now)


def image_params(rack: Plant, snapshot: MadeSnapshot, **changed: Any) -> image_create.Params:
    given = {
        "image_id": rack.id(),
        "dest_volume_id": rack.id(),
        "project_id": rack.project_id,
        "silo_id": rack.silo_id,
        "name": "image",
        "description": "",
        "os": "debian",
        "version": "12",
        "snapshot_id": snapshot.id,
    }
    return image_create.Params(**(given | changed))


async def make_image(rack: Plant, snapshot: MadeSnapshot, **changed: Any) -> HasVolume:
    params = image_params(rack, snapshot, **changed)
    await run(rack, image_create.IMAGE_CREATE, params)
    return HasVolume(params.image_id, params.dest_volume_id)


# -- taking away ------------------------------------------------------------------------------------------------------


async def run(rack: Plant, saga: Saga, params: Any, *, perform: Any = perform_once) -> Any:
    """One saga to its end; its outputs. Raises :class:`~nexus.saga.SagaFailed`."""
    result: Any = None
    failure: SagaFailed | None = None
    async with trio.open_nursery() as nursery:
        executor = Executor(nursery, MemoryStore(), [saga], rack.world, "nexus", new_id=rack.id, perform=perform)
        try:
            result = await executor.run(saga, params)
        except SagaFailed as error:
            failure = error
    if failure is not None:
        raise failure
    return result


async def finish_deletions(rack: Plant) -> None:
    """What the task does that resumes deletions (W24)."""
    for volume_id in rack.run(deletions_to_finish):
        await run(rack, VOLUME_DELETE, volume_delete.Params(volume_id=volume_id))


async def delete_disk(rack: Plant, disk: HasVolume) -> None:
    await run(rack, DISK_DELETE, disk_delete_params(rack, disk))


def disk_delete_params(rack: Plant, disk: HasVolume) -> disk_delete.Params:
    return disk_delete.Params(disk_id=disk.id, project_id=rack.project_id, volume_id=disk.volume_id)


async def delete_snapshot(rack: Plant, snapshot: HasVolume) -> None:
    await run(rack, SNAPSHOT_DELETE, snapshot_delete.Params(snapshot_id=snapshot.id))


async def delete_image(rack: Plant, image: HasVolume) -> None:
    await run(rack, IMAGE_DELETE, image_delete.Params(image_id=image.id))


def region_rows(rack: Plant, volume_id: str) -> int:
    return rack.count(schema.region, schema.region.c.volume_id == volume_id)


# -- trouble ----------------------------------------------------------------------------------------------------------


@contextmanager
def refusing(rack: Plant, dataset_id: str, method: str = "DELETE") -> Iterator[None]:
    """The dataset's agent answers requests of one method with 500."""
    real: Any = application(agent_api(rack.agents[dataset_id]))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["method"] != method:
            await real(scope, receive, send)
            return
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 500, "headers": headers})
        await send({"type": "http.response.body", "body": b'{"request_id": "", "message": "not today"}'})

    rack.network.connect(rack.agent_port[dataset_id], app)
    try:
        yield
    finally:
        rack.network.connect(rack.agent_port[dataset_id], real)


def reconnect(rack: Plant, dataset_id: str) -> None:
    """The agent that was silent answers again."""
    rack.network.connect(rack.agent_port[dataset_id], application(agent_api(rack.agents[dataset_id])))


# -- the scaffold -----------------------------------------------------------------------------------------------------

Prepare = Callable[[], Awaitable[tuple[BaseModel, Callable[[], Awaitable[None]]]]]
"""Makes what a saga is tried on: its parameters, and what has to be deleted afterwards if the saga did not."""


def trials(rack: Plant, prepare: Prepare, *, empty: bool = True) -> Fresh:
    """Trials on one plant. In the end, when the saga is done or undone, what ``prepare`` wants deleted is deleted, what
    was left half-way is finished, and with ``empty`` nothing is left."""

    async def fresh() -> Trial:
        params, sweep = await prepare()

        async def end() -> None:
            await sweep()
            if empty:
                await finish_deletions(rack)
                await rack.require_empty()

        return Trial(rack.world, MemoryStore(), params, finished=end, clean=end)

    return fresh


async def nothing() -> None:
    """Nothing has to be deleted."""
