"""Replacing read/write regions on real bytes: alone, and while the disk is deleted (nexus.md §9.2, rows 1 to 5)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from disks_rig import create
from frozen_rig import take
from nexus_rig import Plant, plant
from region_replacement_rig import (
    Replacing,
    ask_for,
    expect_breaking,
    filled,
    lose,
    own_regions,
    pantry_asked,
    replacing,
    requests,
    require_whole,
    states,
)
from sqlalchemy import select
from users_rig import HasVolume, delete_disk, delete_snapshot, finish_deletions

from nexus.db import Database, schema
from nexus.volumes import Deletion, find_deleted_volume_regions, volume_state


@pytest.fixture(autouse=True)
def copies_break(expect_log: Any) -> None:
    expect_breaking(expect_log)


@asynccontextmanager
async def requested(directory: Path, database: Database) -> AsyncIterator[tuple[Plant, Replacing, HasVolume]]:
    """A disk that holds something, and an operator's request for its first region; in the end it is complete, the disk
    is gone, and nothing is left of either."""
    async with plant(directory, database) as rack, replacing(rack) as nexus:
        disk = await create(rack)
        await filled(rack, disk)
        ask_for(rack, own_regions(rack, disk.volume_id)[0])
        assert states(rack) == ["requested"]
        yield rack, nexus, disk
        await nexus.to_complete()
        await rack.require_empty()
        assert rack.pantry.ledger.volumes == []


async def test_a_lost_region_is_replaced_and_holds_the_bytes(tmp_path: Path, database: Database) -> None:
    async with plant(tmp_path, database) as rack, replacing(rack) as nexus:
        disk = await create(rack)
        await filled(rack, disk)
        lost = own_regions(rack, disk.volume_id)[1]
        await lose(rack, lost)
        await nexus.to_complete()
        await require_whole(rack, disk)
        assert rack.count(schema.region, schema.region.c.id == lost.region_id) == 0
        assert rack.findings() == []
        assert rack.pantry.ledger.volumes == []


async def test_region_replacement_does_not_create_freed_region(tmp_path: Path, in_memory: Database) -> None:
    async with plant(tmp_path, in_memory) as rack, replacing(rack) as nexus:
        disk = await create(rack)
        await lose(rack, own_regions(rack, disk.volume_id)[0])
        await nexus.detect()
        assert states(rack) == ["running"]
        assert not rack.run(find_deleted_volume_regions).regions


async def test_delete_volume_region_replacement_state_requested(tmp_path: Path, in_memory: Database) -> None:
    async with requested(tmp_path, in_memory) as (rack, nexus, disk):
        await delete_disk(rack, disk)
        status = await nexus.detect()
        assert len(status["requests_completed_ok"]) == 1 and not status["start_invoked_ok"]


async def test_delete_volume_region_replacement_state_running(tmp_path: Path, in_memory: Database) -> None:
    async with requested(tmp_path, in_memory) as (rack, nexus, disk):
        await nexus.detect()
        assert states(rack) == ["running"]
        await delete_disk(rack, disk)
        await nexus.drive()
        assert states(rack) == ["replacement_done"]


async def test_delete_volume_region_replacement_state_running_on_pantry(tmp_path: Path, in_memory: Database) -> None:
    """The pantry that is still at it is told to let go: the new region's port may be another's (#6353)."""
    async with requested(tmp_path, in_memory) as (rack, nexus, disk):
        await nexus.detect()
        await nexus.drive()
        (request,) = requests(rack)
        assert pantry_asked(rack, request.id) and rack.pantry.ledger.volumes == [disk.volume_id]
        await delete_disk(rack, disk)
        await nexus.drive()
        assert states(rack) == ["replacement_done"] and rack.pantry.ledger.volumes == []


async def test_delete_volume_region_replacement_state_replacement_done(tmp_path: Path, in_memory: Database) -> None:
    async with requested(tmp_path, in_memory) as (rack, nexus, disk):
        await nexus.detect()
        with trio.fail_after(30):
            while states(rack) != ["replacement_done"]:
                await nexus.drive()
        await delete_disk(rack, disk)


async def test_a_region_under_a_snapshot_stays_with_its_stash(tmp_path: Path, in_memory: Database) -> None:
    """R47: the request is complete, and does not wait for the snapshot. The last one to go takes the region along."""
    async with plant(tmp_path, in_memory) as rack, replacing(rack) as nexus:
        disk = await create(rack)
        await filled(rack, disk)
        snapshot = await take(rack, disk)
        old = own_regions(rack, disk.volume_id)[0]
        ask_for(rack, old)
        await nexus.to_complete()
        owner = rack.run(
            lambda c: c.execute(select(schema.region.c.volume_id).where(schema.region.c.id == old.region_id)).scalar()
        )
        assert rack.run(volume_state, owner) is Deletion.SOFT_DELETED
        await require_whole(rack, disk)
        await delete_snapshot(rack, snapshot)
        await delete_disk(rack, disk)
        await finish_deletions(rack)
        await rack.require_empty()
