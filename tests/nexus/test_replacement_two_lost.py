"""Two copies of one volume lost (W54), and the disk deleted then: what notes of it are left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from disks_rig import create
from nexus_rig import plant
from region_replacement_rig import (
    expect_breaking,
    filled,
    lose,
    own_regions,
    replacing,
    requests,
)
from users_rig import delete_disk, finish_deletions

from nexus.db import Database
from nexus.replacement.notes import survivor_decide
from nexus.replacement.proof import Proof, rest_recorded
from nexus.replacement.survivors import NEEDS_DECISION
from nexus.tasks.region_replacement import completed_without_swap, noted


@pytest.fixture(autouse=True)
def copies_break(expect_log: Any) -> None:
    expect_breaking(expect_log)


async def test_what_was_decided_of_a_volume_that_is_deleted_is_forgotten(tmp_path: Path, in_memory: Database) -> None:
    """The disk is deleted after the operator's word, and before anything is exchanged (R46)."""
    async with plant(tmp_path, in_memory) as rack, replacing(rack) as nexus:
        disk = await create(rack)
        await filled(rack, disk)
        *two, last = own_regions(rack, disk.volume_id)
        for region in two:
            await lose(rack, region)
        await nexus.detect()
        rack.run(survivor_decide, disk.volume_id, last.region_id, rack.now())
        await delete_disk(rack, disk)
        await nexus.to_complete()
        await finish_deletions(rack)
        await rack.require_empty()


async def test_a_proof_of_a_volume_that_is_gone_leaves_nothing(tmp_path: Path, in_memory: Database) -> None:
    """The race: a drive, or a verification, compares the copies; the disk is deleted, and its volume's row goes; what
    was proved is written down."""
    async with plant(tmp_path, in_memory) as rack:
        disk = await create(rack)
        await delete_disk(rack, disk)
        rack.run(rest_recorded, disk.volume_id, Proof(1), rack.now())
        await rack.require_empty()


async def test_a_request_that_another_nexus_ends_keeps_no_note(tmp_path: Path, in_memory: Database) -> None:
    """The race: this Nexus finds that the request has to wait; the disk is deleted; the other one ends the request;
    this one writes down why it waits. Nobody would ever take that away."""
    async with plant(tmp_path, in_memory) as rack, replacing(rack) as nexus:
        disk = await create(rack)
        await filled(rack, disk)
        for region in own_regions(rack, disk.volume_id)[:2]:
            await lose(rack, region)
        await nexus.detect()
        seen = requests(rack)
        await delete_disk(rack, disk)
        for each in seen:
            assert rack.run(completed_without_swap, rack.world, each)
            rack.run(noted, rack.world, each, NEEDS_DECISION)
        await finish_deletions(rack)
        await rack.require_empty()
