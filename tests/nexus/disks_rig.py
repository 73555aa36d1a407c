"""Disks made by their sagas on a plant: their bytes, and all that a saga could leave behind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from nexus_rig import EXTENT_BYTES, Plant
from saga_scaffold import Fresh, Trial
from sqlalchemy import func, select
from users_rig import HasVolume, delete_disk, run

from nexus.db import schema
from nexus.objects.disks import Disk, disk_get
from nexus.objects.provisioning import provisioned_bytes
from nexus.objects.sources import Blank, Source
from nexus.saga import MemoryStore, Saga, SagaFailed
from nexus.sagas import disk_create
from nexus.sagas.disk_create import DISK_CREATE
from nexus.volumes import Pantry, volume_checkout

SIZE_BYTES = 2 * EXTENT_BYTES
BLANK = Blank()


def asked(rack: Plant, source: Source = BLANK, **changed: Any) -> disk_create.Params:
    given: dict[str, Any] = {
        "disk_id": rack.id(),
        "volume_id": rack.id(),
        "project_id": rack.project_id,
        "name": "disk",
        "description": "",
        "size_bytes": SIZE_BYTES,
        "block_size": 512,
        "source": source,
    }
    return disk_create.Params(**(given | changed))


async def create(rack: Plant, saga: Saga = DISK_CREATE, source: Source = BLANK, **changed: Any) -> HasVolume:
    params = asked(rack, source, **changed)
    await run(rack, saga, params)
    return HasVolume(params.disk_id, params.volume_id)


def disk_of(rack: Plant, disk: HasVolume) -> Disk:
    found = rack.run(disk_get, disk.id)
    assert isinstance(found, Disk)
    return found


@contextmanager
def refused(kind: str, match: str = "") -> Iterator[None]:
    with pytest.raises(SagaFailed, match=match) as caught:
        yield
    assert caught.value.kind == kind


async def written(rack: Plant, disk: HasVolume, offset: int, data: bytes) -> None:
    """Write to a disk that nobody has attached."""
    pantries = rack.world.pantries
    pantry = await pantries.choose(disk.id)
    await pantries.attach(pantry, disk.id, rack.run(volume_checkout, disk.volume_id, Pantry(), rack.now()).request)
    await pantries.bulk_write(pantry, disk.id, offset, data)
    await pantries.detach(pantry, disk.id)


async def read(rack: Plant, disk: HasVolume, offset: int = 0, size: int = SIZE_BYTES) -> bytes:
    """What a disk that nobody has attached holds, through an Upstairs."""
    pantries = rack.world.pantries
    pantry = await pantries.choose(disk.id)
    await pantries.attach(pantry, disk.id, rack.run(volume_checkout, disk.volume_id, Pantry(), rack.now()).request)
    found = await pantries.client(pantry).bulk_read(disk.id, offset, size)
    await pantries.detach(pantry, disk.id)
    return found


async def standing(rack: Plant) -> dict[str, Any]:
    """All that a saga may leave behind."""
    pantry = await rack.world.pantries.choose("")
    tables = (schema.region, schema.region_snapshot, schema.volume, schema.volume_resource_usage, schema.volume_repair)
    rows = {table.name: rack.count(table) for table in tables}
    reserved = rack.run(lambda c: c.execute(select(func.sum(schema.crucible_dataset.c.size_used))).scalar_one())
    return rows | {
        "disks": rack.count(schema.disk, schema.disk.c.time_deleted.is_(None)),
        "reserved": reserved,
        "provisioned": rack.run(provisioned_bytes, rack.project_id),
        "at agents": await rack.held(),
        "at the pantry": (await rack.world.pantries.client(pantry).pantry_status()).volumes,
        "findings": rack.findings(),
    }


async def verify_clean_slate(rack: Plant) -> None:
    """No disk, no volume, no region, nothing provisioned, agents and pantry empty."""
    assert not any((await standing(rack)).values())
    await rack.require_empty()


def trials(rack: Plant, source: Source = BLANK) -> Fresh:
    """Runs that leave a disk that is deleted then, or nothing."""

    async def fresh() -> Trial:
        params = asked(rack, source)
        disk = HasVolume(params.disk_id, params.volume_id)
        before = await standing(rack)
        assert before["findings"] == []

        async def finished() -> None:
            assert rack.findings() == []
            found = disk_of(rack, disk)
            assert found.state in ("detached", "import_ready")
            if found.pantry is not None:
                await rack.world.pantries.detach(found.pantry, found.id)
                rack.set(schema.disk, found.id, disk_state="detached")
            await delete_disk(rack, disk)
            await clean()

        async def clean() -> None:
            assert await standing(rack) == before

        return Trial(rack.world, MemoryStore(), params, finished, clean)

    return fresh
