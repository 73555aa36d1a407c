"""A Nexus in front of real agents: it dies while it makes a disk, another goes on, and whoever checks finds nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from disks_rig import asked as disk_asked
from frozen_rig import asked as snapshot_asked
from nexus_rig import Plant, plant
from users_rig import HasVolume, MadeSnapshot, disk_delete_params, image_params

from nexus.checking import check
from nexus.db import Database, schema
from nexus.objects.sources import FromSnapshot
from nexus.running import Conduct, Nexus, nexus_over
from nexus.saga import SagaState
from nexus.saga.hooks import Crash, Point
from nexus.sagas import image_delete, snapshot_delete
from nexus.sagas.disk_create import DISK_CREATE
from nexus.sagas.disk_delete import DISK_DELETE
from nexus.sagas.image_create import IMAGE_CREATE
from nexus.sagas.image_delete import IMAGE_DELETE
from nexus.sagas.snapshot_create import SNAPSHOT_CREATE_DETACHED
from nexus.sagas.snapshot_delete import SNAPSHOT_DELETE

PATIENCE_S = 30
PAUSE_S = 0.1
"""Between two checks: they run in the loop's own thread here, and the sagas want their turn."""
LIVING = Conduct(periods_s={"saga_recovery": 0.05}, stop_grace_s=PATIENCE_S)
DYING = Conduct(lease_s=0.3)


async def ended(nexus: Nexus, saga_id: str) -> SagaState:
    """How a saga ended, whoever runs it."""
    with trio.fail_after(PATIENCE_S):
        while True:
            record, _ = await nexus.store.load(saga_id)
            if record.state not in (SagaState.RUNNING, SagaState.UNWINDING):
                return record.state
            await trio.sleep(0.01)


async def made_by_one_who_dies(rack: Plant, database: Database, params: Any, number: int) -> str:
    """A Nexus that is dead at the hook point of that number; the saga's id."""
    found = rack.id()
    left = number

    async def die(point: Point, saga_id: str, label: str) -> None:
        nonlocal left
        if left == 0:
            raise Crash
        left -= 1

    try:
        async with nexus_over(replace(rack.world, database=database), replace(DYING, hooks=die)) as nexus:
            await nexus.executor.start(DISK_CREATE, params, found)
            await trio.sleep_forever()
    except* Crash:
        pass
    return found


@pytest.mark.usefixtures("short_leases")
@pytest.mark.parametrize("number", [11])
async def test_disk_that_a_dead_nexus_began_is_made_by_another(
    tmp_path: Path, several: Callable[..., Database], number: int
) -> None:
    """The database is opened twice, as by two processes; the agents are the same."""
    mine, others = several(inline=True), several(inline=True)
    async with plant(tmp_path / "rack", mine) as rack:
        params = disk_asked(rack)
        async with nexus_over(rack.world, LIVING) as nexus:
            saga_id = await made_by_one_who_dies(rack, others, params, number)
            assert await ended(nexus, saga_id) is SagaState.DONE
            disk = HasVolume(params.disk_id, params.volume_id)
            assert rack.count(schema.disk, schema.disk.c.disk_state == "detached") == 1
            assert await check(rack.world, between_looks_s=0.01) == []
            await nexus.executor.run(DISK_DELETE, disk_delete_params(rack, disk))
        await rack.require_empty()


@pytest.fixture
def sqlite() -> Iterator[Database]:
    with Database.open("sqlite://", inline=True) as opened:
        yield opened


@pytest.fixture
def short_leases(expect_log: Any) -> None:
    """A Nexus that is to die may stall before that."""
    expect_log("lease ran out", at_least=0)


async def test_rack_in_use_has_no_findings_at_any_moment(tmp_path: Path, sqlite: Database) -> None:
    """Disks, snapshots and images come and go, while somebody checks all the time."""
    async with plant(tmp_path, sqlite) as rack:
        found: list[str] = []
        looks = 0

        async def look() -> None:
            nonlocal looks
            while True:
                found.extend(map(str, await check(rack.world, between_looks_s=0.01)))
                looks += 1
                await trio.sleep(PAUSE_S)

        async with nexus_over(rack.world, LIVING) as nexus, trio.open_nursery() as nursery:
            nursery.start_soon(look)
            await _a_life(rack, nexus)
            nursery.cancel_scope.cancel()
        assert found == [] and looks > 3
        await rack.require_empty()


async def _a_life(rack: Plant, nexus: Nexus) -> None:
    run = nexus.executor.run
    new = disk_asked(rack)
    disk = HasVolume(new.disk_id, new.volume_id)
    await run(DISK_CREATE, new)
    frozen = snapshot_asked(rack, disk)
    snapshot = MadeSnapshot(frozen.snapshot_id, frozen.volume_id, frozen.destination_volume_id)
    await run(SNAPSHOT_CREATE_DETACHED, frozen)
    image = image_params(rack, snapshot)
    await run(IMAGE_CREATE, image)
    copied = disk_asked(rack, FromSnapshot(snapshot_id=snapshot.id), name="copy")
    await run(DISK_CREATE, copied)
    for each in (disk, HasVolume(copied.disk_id, copied.volume_id)):
        await run(DISK_DELETE, disk_delete_params(rack, each))
    await run(IMAGE_DELETE, image_delete.Params(image_id=image.image_id))
    await run(SNAPSHOT_DELETE, snapshot_delete.Params(snapshot_id=snapshot.id))
