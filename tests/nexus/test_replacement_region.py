"""Replacing read/write regions on real bytes (nexus.md §9.2)."""

from __future__ import annotations

from pathlib import Path

from disks_rig import create
from nexus_rig import plant
from region_replacement_rig import filled, lose, own_regions, replacing, require_whole, states
from users_rig import delete_disk

from nexus.db import Database


async def test_a_lost_region_is_replaced_and_holds_the_bytes(tmp_path: Path, database: Database) -> None:
    async with plant(tmp_path, database) as rack, replacing(rack) as nexus:
        disk = await create(rack)
        await filled(rack, disk)
        await lose(rack, own_regions(rack, disk.volume_id)[1])
        await nexus.to_complete()
        assert states(rack) == ["complete"]
        await require_whole(rack, disk)
        await delete_disk(rack, disk)
