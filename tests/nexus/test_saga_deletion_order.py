"""In whatever order users delete what they have, nothing is destroyed while somebody reads from it, and in the end
nothing is left, at any agent either (nexus.md §9.3). The same without agents: ``test_volumes_lifecycle.py``."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio
from nexus_rig import EXTENT_BYTES, Plant, plant
from users_rig import (
    HasVolume,
    delete_disk,
    delete_image,
    delete_snapshot,
    make_disk,
    make_image,
    make_snapshot,
    region_rows,
    run,
)

from nexus.db import Database, schema
from nexus.objects.provisioning import FLEET_ID, provisioned_bytes
from nexus.objects.sources import Blank
from nexus.saga import SagaFailed
from nexus.sagas import disk_create
from nexus.sagas.disk_create import DISK_CREATE
from nexus.volumes import Deletion, volume_state

DELETERS = {"disk": delete_disk, "snapshot": delete_snapshot, "image": delete_image}


def state(rack: Plant, has: HasVolume) -> Deletion:
    found: Deletion = rack.run(volume_state, has.volume_id)
    return found


async def test_snapshot_then_delete_disk(tmp_path: Path, database: Database) -> None:
    """The disk first: its regions stay for the snapshot, and its volume's row for its regions (R17)."""
    async with plant(tmp_path, database) as rack:
        disk = await make_disk(rack)
        snapshot = await make_snapshot(rack, disk)
        await delete_disk(rack, disk)
        assert (region_rows(rack, disk.volume_id), state(rack, disk)) == (3, Deletion.SOFT_DELETED)
        assert await rack.held() != []
        await delete_snapshot(rack, snapshot)
        assert state(rack, disk) is Deletion.HARD_DELETED
        await rack.require_empty()


async def test_delete_snapshot_then_disk(tmp_path: Path, database: Database) -> None:
    async with plant(tmp_path, database) as rack:
        disk = await make_disk(rack)
        snapshot = await make_snapshot(rack, disk)
        await delete_snapshot(rack, snapshot)
        assert region_rows(rack, disk.volume_id) == 3
        assert not any("snapshot" in each for each in await rack.held())
        await delete_disk(rack, disk)
        await rack.require_empty()


async def test_multiple_snapshots(tmp_path: Path, in_memory: Database) -> None:
    async with plant(tmp_path, in_memory) as rack:
        disk = await make_disk(rack)
        snapshots = [await make_snapshot(rack, disk) for _ in range(3)]
        await delete_disk(rack, disk)
        for each in snapshots:
            assert region_rows(rack, disk.volume_id) == 3
            await delete_snapshot(rack, each)
        await rack.require_empty()


async def test_multiple_snapshots_deleted_at_once(tmp_path: Path, database: Database) -> None:
    """Whoever takes the last one away destroys the regions; that two find them does no harm."""
    async with plant(tmp_path, database) as rack:
        disk = await make_disk(rack)
        snapshots = [await make_snapshot(rack, disk) for _ in range(3)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(delete_disk, rack, disk)
            for each in snapshots:
                nursery.start_soon(delete_snapshot, rack, each)
        await rack.require_empty()


async def test_snapshot_prevents_other_disk(tmp_path: Path, in_memory: Database) -> None:
    async with plant(tmp_path, in_memory) as rack:
        disk = await make_disk(rack)
        snapshot = await make_snapshot(rack, disk)
        await delete_disk(rack, disk)
        for each in rack.run(lambda c: c.execute(schema.crucible_dataset.select()).all()):
            rack.set(schema.inv_zpool, each.pool_id, total_size=each.size_used)
        wanted = blank_disk(rack)
        with pytest.raises(SagaFailed, match="Not enough storage") as caught:
            await run(rack, DISK_CREATE, wanted)
        assert caught.value.kind == "capacity"
        await delete_snapshot(rack, snapshot)
        await rack.require_empty()
        again = blank_disk(rack)
        await run(rack, DISK_CREATE, again)
        await delete_disk(rack, HasVolume(again.disk_id, again.volume_id))
        await rack.require_empty()


def blank_disk(rack: Plant) -> disk_create.Params:
    return disk_create.Params(
        disk_id=rack.id(),
        volume_id=rack.id(),
        project_id=rack.project_id,
        name="another",
        description="",
        size_bytes=EXTENT_BYTES,
        block_size=512,
        source=Blank(),
    )


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (1, 3, 0, 2)], ids=["order_1", "order_2"])
async def test_multiple_disks_multiple_snapshots(tmp_path: Path, in_memory: Database, order: tuple[int, ...]) -> None:
    async with plant(tmp_path, in_memory) as rack:
        made: list[tuple[Any, HasVolume]] = []
        for _ in range(2):
            disk = await make_disk(rack)
            made += [(delete_disk, disk), (delete_snapshot, await make_snapshot(rack, disk))]
        for number in order:
            delete, has = made[number]
            await delete(rack, has)
        await rack.require_empty()


async def layers(rack: Plant) -> list[tuple[Any, HasVolume]]:
    """Disk, its snapshot, a disk over that, and so on, three times."""
    made: list[tuple[Any, HasVolume]] = []
    source: HasVolume | None = None
    for _ in range(3):
        disk = await make_disk(rack, source)
        source = await make_snapshot(rack, disk)
        made += [(delete_disk, disk), (delete_snapshot, source)]
    return made


@pytest.mark.parametrize("order", ["delete_all_disks_first", "delete_all_snapshots_first", "random_delete_order"])
async def test_multiple_layers_of_snapshots(tmp_path: Path, in_memory: Database, order: str) -> None:
    async with plant(tmp_path, in_memory) as rack:
        made = await layers(rack)
        numbers = list(range(6))
        if order == "random_delete_order":
            Random(str(tmp_path)).shuffle(numbers)
            print("deleted in the order", numbers)
        else:
            first = delete_disk if order == "delete_all_disks_first" else delete_snapshot
            numbers.sort(key=lambda number: made[number][0] is not first)
        for number in numbers:
            assert await rack.held() != []
            delete, has = made[number]
            await delete(rack, has)
        await rack.require_empty()


async def test_layers_deleted_at_once(tmp_path: Path, database: Database) -> None:
    async with plant(tmp_path, database) as rack:
        made = await layers(rack)
        async with trio.open_nursery() as nursery:
            for delete, has in made:
                nursery.start_soon(delete, rack, has)
        await rack.require_empty()


async def test_create_image_from_snapshot_delete(tmp_path: Path, in_memory: Database) -> None:
    """The image has references of its own after disk and snapshot are gone."""
    async with plant(tmp_path, in_memory) as rack:
        disk = await make_disk(rack)
        snapshot = await make_snapshot(rack, disk)
        image = await make_image(rack, snapshot)
        await delete_disk(rack, disk)
        await delete_snapshot(rack, snapshot)
        assert (rack.count(schema.region_snapshot), rack.count(schema.volume_resource_usage)) == (3, 3)
        over = await make_disk(rack, image)
        await delete_image(rack, image)
        assert rack.count(schema.region_snapshot) == 3
        await delete_disk(rack, over)
        await rack.require_empty()


async def test_delete_image_orders(tmp_path: Path, in_memory: Database) -> None:
    """``test_delete_image_order_1`` to ``_6``."""
    async with plant(tmp_path, in_memory) as rack:
        for order in permutations(DELETERS):
            disk = await make_disk(rack)
            snapshot = await make_snapshot(rack, disk)
            made = {"disk": disk, "snapshot": snapshot, "image": await make_image(rack, snapshot)}
            for each in order:
                assert await rack.held() != [], order
                await DELETERS[each](rack, made[each])
            await rack.require_empty()


async def test_delete_snapshot(tmp_path: Path, in_memory: Database) -> None:
    """What is charged goes up and down."""
    size_bytes = 2 * EXTENT_BYTES
    async with plant(tmp_path, in_memory) as rack:

        def charged() -> set[int]:
            return {
                rack.run(provisioned_bytes, each) // size_bytes for each in (rack.project_id, rack.silo_id, FLEET_ID)
            }

        assert charged() == {0}
        disk = await make_disk(rack)
        assert charged() == {1}
        snapshot = await make_snapshot(rack, disk)
        assert charged() == {2}
        await delete_snapshot(rack, snapshot)
        await delete_snapshot(rack, snapshot)
        assert charged() == {1}
        await delete_disk(rack, disk)
        assert charged() == {0}
        await rack.require_empty()
