"""A Nexus in front of real agents: whatever goes on in it, whoever checks finds nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from disks_rig import asked as disk_asked
from frozen_rig import asked as snapshot_asked
from nexus_rig import Plant, plant
from users_rig import HasVolume, MadeSnapshot, disk_delete_params, image_params

from nexus.checking import check
from nexus.db import Database
from nexus.objects.sources import FromSnapshot
from nexus.running import Conduct, Nexus, nexus_over
from nexus.saga import ActionFailed, Context, Dag, SagaFailed
from nexus.saga.dag import Vertex
from nexus.saga.executor import Perform, Work
from nexus.saga.hooks import Point
from nexus.sagas import finalize_disk, image_delete, snapshot_delete
from nexus.sagas.disk_create import DISK_CREATE, DISK_CREATE_IMPORTING
from nexus.sagas.disk_delete import DISK_DELETE
from nexus.sagas.finalize_disk import FINALIZE_DISK_WITH_SNAPSHOT
from nexus.sagas.image_create import IMAGE_CREATE
from nexus.sagas.image_delete import IMAGE_DELETE
from nexus.sagas.snapshot_create import SNAPSHOT_CREATE_DETACHED
from nexus.sagas.snapshot_delete import SNAPSHOT_DELETE

PATIENCE_S = 30
LIVING = Conduct(periods_s={"saga_recovery": 0.05}, stop_grace_s=PATIENCE_S)
HALF_MADE = {Point.AFTER_EFFECT, Point.AFTER_UNDO_EFFECT}
LAST_NODES = {Dag.of(saga).labels[-1] for saga in (DISK_CREATE, SNAPSHOT_CREATE_DETACHED)}


@pytest.fixture
def sqlite() -> Iterator[Database]:
    with Database.open("sqlite://", inline=True) as opened:
        yield opened


async def test_rack_in_use_has_no_findings_at_any_moment(tmp_path: Path, sqlite: Database) -> None:
    """Disks, snapshots and images come and go, and some are undone; somebody checks in every node of every saga, when
    its effect is there and not recorded."""
    found: set[str] = set()
    looks = 0
    async with plant(tmp_path, sqlite, sleds=3) as rack:

        async def look(point: Point, saga_id: str, label: str) -> None:
            nonlocal looks
            if point not in HALF_MADE:
                return
            looks += 1
            now = await check(rack.world, between_looks_s=0)
            found.update(f"{point.value} {label}: {each}" for each in now)

        conduct = replace(LIVING, hooks=look, perform=fails_at_the_end_of({"undone"}))
        async with nexus_over(rack.world, conduct) as nexus:
            await _a_life(rack, nexus)
        assert found == set() and looks > 50
        await rack.require_empty()


def fails_at_the_end_of(names: set[str]) -> Perform:
    """Sagas that make something of one of these names fail at their last node."""

    async def perform(work: Work, vertex: Vertex, context: Context[Any]) -> Any:
        doomed = getattr(context.params, "name", "") in names
        if doomed and work is vertex.action and vertex.label in LAST_NODES:
            raise ActionFailed("not this one")
        return await work(context)

    return perform


async def _a_life(rack: Plant, nexus: Nexus) -> None:
    run = nexus.executor.run
    new = disk_asked(rack)
    disk = HasVolume(new.disk_id, new.volume_id)
    await run(DISK_CREATE_IMPORTING, new)
    frozen = snapshot_asked(rack, disk)
    snapshot = MadeSnapshot(frozen.snapshot_id, frozen.volume_id, frozen.destination_volume_id)
    await run(FINALIZE_DISK_WITH_SNAPSHOT, finalize_disk.ParamsWithSnapshot(disk_id=disk.id, snapshot=frozen))
    source = FromSnapshot(snapshot_id=snapshot.id)
    for saga, params in (
        (DISK_CREATE, disk_asked(rack, source, name="undone")),
        (SNAPSHOT_CREATE_DETACHED, snapshot_asked(rack, disk, name="undone")),
    ):
        with pytest.raises(SagaFailed, match="not this one"):
            await run(saga, params)
    image = image_params(rack, snapshot)
    await run(IMAGE_CREATE, image)
    await run(DISK_DELETE, disk_delete_params(rack, disk))
    await run(IMAGE_DELETE, image_delete.Params(image_id=image.image_id))
    await run(SNAPSHOT_DELETE, snapshot_delete.Params(snapshot_id=snapshot.id))
