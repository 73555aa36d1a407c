"""Two copies of one volume lost under a guest that runs (W54): on real bytes; and what notes of it are left."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from disks_rig import SIZE_BYTES, create
from guests_rig import guest, make_instance, start, stop
from nexus_rig import Plant, plant
from region_replacement_rig import (
    PATTERN,
    Replacing,
    break_down,
    expect_breaking,
    filled,
    lose,
    own_regions,
    reason,
    replacing,
    requests,
    require_whole,
    states,
)
from users_rig import HasVolume, delete_disk, finish_deletions

from crucible_emu.volume import region_set
from nexus.db import Database
from nexus.replacement import driving
from nexus.replacement.notes import survivor_decide
from nexus.replacement.proof import Proof, rest_recorded
from nexus.replacement.survivors import NEEDS_DECISION
from nexus.tasks.region_replacement import completed_without_swap, noted
from nexus.volumes import Address

NEWER = bytes(reversed(PATTERN))
FLUSH = 3
"""The command of NBD."""


@pytest.fixture(autouse=True)
def copies_break(expect_log: Any) -> None:
    expect_breaking(expect_log)


async def used(rack: Plant) -> tuple[HasVolume, str]:
    """A disk to which a guest, that still runs, has written something since it was made."""
    disk = await create(rack)
    await filled(rack, disk)
    instance_id = await make_instance(rack, disk)
    await start(rack, instance_id)
    async with guest(rack, instance_id, disk) as client:
        await client.write(0, NEWER)
        await client.call(FLUSH)
    return disk, instance_id


def reasons(rack: Plant) -> set[str]:
    return {reason(rack, each.id) for each in requests(rack)}


async def turns(nexus: Replacing, count: int) -> list[set[str]]:
    """What the requests waited for after each turn."""
    found = []
    for _ in range(count):
        await nexus.detect()
        await nexus.drive()
        found.append(reasons(nexus.rack))
    return found


async def test_W54_two_lost_under_a_guest_are_replaced_when_it_is_stopped(
    tmp_path: Path, in_memory: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its Upstairs misses one, and so does not take a new one for the other. Both requests say what they wait for, in
    every turn; nothing has to be done but to stop the guest, and to say that the last copy is to be believed."""
    monkeypatch.setattr(region_set, "FAREWELL_TIMEOUT_S", 0.1)  # nothing is flushed with one copy
    async with plant(tmp_path, in_memory, sleds=5) as rack, replacing(rack) as nexus:
        disk, instance_id = await used(rack)
        *two, last = own_regions(rack, disk.volume_id)
        for region in two:
            await lose(rack, region)
        first, *later = await turns(nexus, 3)
        assert sorted(states(rack)) == ["requested", "running"]
        assert all(each == first for each in later)
        needed = f"needs the guest of disk {disk.id}, instance {instance_id}, stopped"
        assert len(first) == 2 and all(needed in each for each in first)
        new = next(each for each in own_regions(rack, disk.volume_id) if each.region_id in new_regions(rack))
        (waits,) = (each for each in first if "one new copy at a time" in each)
        assert f"or the copy at {Address.of(new.ip, new.port)} repaired first" in waits
        (refused,) = first - {waits}
        assert any(f"the copy at {Address.of(each.ip, each.port)} is lost, too" in refused for each in two)
        await stop(rack, instance_id)
        asked, *_ = await turns(nexus, 1)
        assert any(each.startswith(NEEDS_DECISION) for each in asked)
        assert any("lost, too: a volume is activated with three copies" in each for each in asked)
        rack.run(survivor_decide, disk.volume_id, last.region_id, rack.now())
        await nexus.to_complete()
        assert reasons(rack) == {""}
        await require_whole(rack, disk, NEWER)


def new_regions(rack: Plant) -> set[str | None]:
    return {each.new_region_id for each in requests(rack)}


async def test_W54_a_second_one_lost_while_the_guest_repairs_the_first(
    tmp_path: Path, in_memory: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One good copy is enough to repair from. The guest goes on, and both are replaced under it, one after the other;
    though nobody tells of the end of the repair, and one copy will never be in service again before that."""
    monkeypatch.setattr(driving, "SILENT_MAX", timedelta(0))
    async with plant(tmp_path, in_memory, sleds=5) as rack, replacing(rack) as nexus:
        disk, instance_id = await used(rack)
        first, second, _ = own_regions(rack, disk.volume_id)
        await lose(rack, first)
        await nexus.detect()
        await nexus.drive()
        await break_down(rack, second.dataset_id)
        rack.expunge(second.dataset_id)
        await nexus.to_complete()
        assert states(rack) == ["complete", "complete"]
        async with guest(rack, instance_id, disk) as client:
            assert await client.read(0, SIZE_BYTES) == NEWER
            await client.write(0, PATTERN)
            await client.call(FLUSH)
        await stop(rack, instance_id)
        await require_whole(rack, disk)


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
