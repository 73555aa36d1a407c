"""Snapshots that sagas take on a plant, of disks that hold something, and what must be true of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import pytest
from nexus_rig import Plant
from saga_scaffold import Fresh, Trial
from users_rig import SIZE_BYTES, HasVolume, MadeSnapshot, delete_snapshot, run

from nexus.db import schema
from nexus.objects.disks import disk_get
from nexus.objects.provisioning import provisioned_bytes
from nexus.objects.snapshots import Ledger, ledger_get, snapshot_get
from nexus.placement import AllocatedRegion, regions_of
from nexus.saga import MemoryStore, SagaFailed
from nexus.sagas import snapshot_create
from nexus.sagas.snapshot_create import SNAPSHOT_CREATE_DETACHED
from nexus.volumes import Pantry, ReadOnlyCopy, RegionSnapshot, volume_checkout, walks
from nexus.volumes.freed import Dataset


def asked(rack: Plant, disk: HasVolume, **changed: Any) -> snapshot_create.Params:
    """A snapshot of ``disk`` under new ids."""
    given = {
        "snapshot_id": rack.id(),
        "volume_id": rack.id(),
        "destination_volume_id": rack.id(),
        "lock_id": rack.id(),
        "project_id": rack.project_id,
        "disk_id": disk.id,
        "name": "snapshot",
        "description": "",
    }
    return snapshot_create.Params(**(given | changed))


@contextmanager
def refused(kind: str, match: str | None = None) -> Iterator[None]:
    """The saga in it fails with this kind of sentence."""
    with pytest.raises(SagaFailed, match=match) as caught:
        yield
    assert caught.value.kind == kind, caught.value


def made(params: snapshot_create.Params) -> MadeSnapshot:
    return MadeSnapshot(params.snapshot_id, params.volume_id, params.destination_volume_id)


async def take(rack: Plant, disk: HasVolume, saga: Any = SNAPSHOT_CREATE_DETACHED, **changed: Any) -> MadeSnapshot:
    params = asked(rack, disk, **changed)
    await run(rack, saga, params)
    return made(params)


# -- bytes ------------------------------------------------------------------------------------------------------------


async def written(rack: Plant, disk: HasVolume, offset: int, data: bytes) -> None:
    """Write to a disk that nobody has."""
    pantries = rack.world.pantries
    pantry = await pantries.choose(disk.id)
    await pantries.attach(pantry, disk.id, rack.run(volume_checkout, disk.volume_id, Pantry(), rack.now()).request)
    await pantries.bulk_write(pantry, disk.id, offset, data)
    await pantries.detach(pantry, disk.id)


async def frozen_bytes(rack: Plant, volume_id: str) -> bytes:
    """What a read-only volume holds, read through an Upstairs of its own."""
    copied = rack.run(volume_checkout, volume_id, ReadOnlyCopy(), rack.now()).request
    name, pantries = rack.id(), rack.world.pantries
    pantry = await pantries.choose(name)
    await pantries.attach(pantry, name, walks.randomized_ids(copied, lambda: UUID(rack.id())))
    found = await pantries.bulk_read(pantry, name, 0, SIZE_BYTES)
    await pantries.detach(pantry, name)
    return found


# -- what is said of it -----------------------------------------------------------------------------------------------


def regions_below(rack: Plant, disk: HasVolume) -> list[AllocatedRegion]:
    found: list[AllocatedRegion] = rack.run(regions_of, disk.volume_id)
    return found


def dataset_of(region: AllocatedRegion) -> Dataset:
    return Dataset(region.dataset_id, region.ip, region.agent_port)


async def agent_digests(rack: Plant, disk: HasVolume, snapshot_id: str) -> list[tuple[str | None, ...]]:
    """What each agent says that the disk's regions held."""
    found = []
    for region in regions_below(rack, disk):
        member = RegionSnapshot(region.dataset_id, region.region_id, snapshot_id)
        status = await rack.world.agents.snapshot_digest(dataset_of(region), member)
        found.append(tuple(status.extents))
    return found


def ledger(rack: Plant, snapshot_id: str) -> Ledger:
    found = rack.run(ledger_get, snapshot_id)
    assert isinstance(found, Ledger)
    return found


def state_of(rack: Plant, snapshot_id: str) -> str:
    found = rack.run(snapshot_get, snapshot_id)
    return str(found.state)


def locks(rack: Plant) -> int:
    return rack.count(schema.volume_repair)


async def snapshots_held(rack: Plant) -> list[str]:
    return [each for each in await rack.held() if "snapshot" in each]


async def require_only(rack: Plant, disk: HasVolume, *, state: str = "detached") -> None:
    """Of all that a snapshot is made of nothing is left, and the disk is as it was."""
    assert str(rack.run(disk_get, disk.id).state) == state
    left = {
        table.name: rack.count(table)
        for table in (schema.volume_repair, schema.region_snapshot, schema.volume_resource_usage)
    }
    assert set(left.values()) == {0}, left
    assert (rack.count(schema.volume), rack.count(schema.region)) == (1, 3)
    assert rack.count(schema.snapshot, schema.snapshot.c.time_deleted.is_(None)) == 0
    assert rack.run(provisioned_bytes, rack.project_id) == SIZE_BYTES
    assert (len(await rack.held()), rack.findings()) == (3, []), "the three regions of the disk"
    assert not rack.pantry.ledger.volumes


def trials(rack: Plant, disk: HasVolume, *, state: str = "detached") -> Fresh:
    """Trials that leave nothing but the disk, when their snapshot is deleted."""

    async def fresh() -> Trial:
        params = asked(rack, disk)

        async def finished() -> None:
            assert state_of(rack, params.snapshot_id) == "ready"
            assert await agent_digests(rack, disk, params.snapshot_id) == [ledger(rack, params.snapshot_id).extents] * 3
            await delete_snapshot(rack, made(params))
            await require_only(rack, disk, state=state)

        async def clean() -> None:
            assert rack.run(ledger_get, params.snapshot_id) is None
            await require_only(rack, disk, state=state)

        return Trial(rack.world, MemoryStore(), params, finished, clean)

    return fresh
