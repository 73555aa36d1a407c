"""Several copies of one volume lost, and new ones lost while they are repaired: on real bytes (W41, W54, R2)."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import trio
from disks_rig import create
from frozen_rig import take
from guests_rig import guest, make_instance, start, stop
from nexus_rig import EXTENT_BYTES, Plant, plant
from region_replacement_rig import (
    PATTERN,
    Replacing,
    ask_for,
    break_down,
    bring_back,
    digests,
    expect_breaking,
    filled,
    lose,
    own_regions,
    reason,
    replacing,
    requests,
    require_whole,
    states,
    until_true,
)
from users_rig import HasVolume, delete_disk, delete_snapshot, finish_deletions, run

from nexus.db import Database, schema
from nexus.replacement import driving, survivors
from nexus.replacement.notes import survivor_decide, survivor_decided
from nexus.replacement.survivors import NEEDS_DECISION, NO_GOOD_COPY
from nexus.sagas import volume_verify
from nexus.sagas.volume_verify import VOLUME_VERIFY
from nexus.volumes.at_rest import at_rest

SLEDS = 6


@pytest.fixture(autouse=True)
def copies_break(expect_log: Any) -> None:
    expect_breaking(expect_log)


async def at_rest_disk(rack: Plant) -> HasVolume:
    """A disk that holds something, and whose copies were compared since."""
    disk = await create(rack)
    await filled(rack, disk)
    assert not rack.run(at_rest, disk.volume_id)
    await run(rack, VOLUME_VERIFY, volume_verify.Params(volume_id=disk.volume_id))
    assert rack.run(at_rest, disk.volume_id)
    return disk


async def turns(nexus: Replacing, count: int = 4) -> None:
    for _ in range(count):
        await nexus.detect()
        await nexus.drive()
        await trio.sleep(0.02)


async def test_W54_two_lost_at_once_are_replaced_from_the_copy_that_was_proved(
    tmp_path: Path, database: Database
) -> None:
    async with plant(tmp_path, database, sleds=SLEDS) as rack, replacing(rack) as nexus:
        disk = await at_rest_disk(rack)
        for region in own_regions(rack, disk.volume_id)[:2]:
            await lose(rack, region)
        await nexus.to_complete()
        assert states(rack) == ["complete", "complete"] and rack.count(schema.volume_repair) == 0
        await require_whole(rack, disk)
        assert rack.findings() == []
        await delete_disk(rack, disk)
        await finish_deletions(rack)
        await rack.require_empty()


async def test_W54_the_original_rule_waits_for_ever(
    tmp_path: Path, in_memory: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One request holds the lock, and its volume has a lost copy besides the new one: no pantry ever activates it."""
    async with plant(tmp_path, in_memory, sleds=SLEDS) as rack, replacing(rack) as nexus:
        disk = await at_rest_disk(rack)
        for region in own_regions(rack, disk.volume_id)[:2]:
            await lose(rack, region)
        monkeypatch.setattr(nexus_request, _never_joins)
        await turns(nexus)
        assert states(rack) == ["running"]
        assert rack.pantry.ledger.volumes == [disk.volume_id]
        assert not rack.pantry.held[disk.volume_id].active


nexus_request = "nexus.replacement.region._may_join"


def _never_joins(connection: object, volume_id: str) -> bool:
    return False


async def test_W54_a_survivor_that_may_have_missed_writes_waits_for_an_operators_word(
    tmp_path: Path, in_memory: Database
) -> None:
    async with plant(tmp_path, in_memory, sleds=SLEDS) as rack, replacing(rack) as nexus:
        disk = await create(rack)
        await filled(rack, disk)
        *lost, last = own_regions(rack, disk.volume_id)
        for region in lost:
            await lose(rack, region)
        await turns(nexus)
        assert states(rack) == ["requested", "requested"]
        for request in requests(rack):
            assert reason(rack, request.id).startswith(f"{NEEDS_DECISION}: region {last.region_id}")
        rack.run(survivor_decide, disk.volume_id, last.region_id, rack.now())
        await nexus.to_complete()
        await require_whole(rack, disk)
        assert not rack.run(survivor_decided, disk.volume_id, last.region_id), "it was said of that time"
        assert [reason(rack, each.id) for each in requests(rack)] == ["", ""]


NEWER = bytes(reversed(PATTERN))
FLUSH = 3
"""The command of NBD."""


async def stale_survivor(rack: Plant) -> HasVolume:
    """A disk of which two copies acknowledged a write that the third missed; and these two are lost."""
    disk = await create(rack)
    await filled(rack, disk)
    *two, stale = own_regions(rack, disk.volume_id)
    instance_id = await make_instance(rack, disk)
    await start(rack, instance_id)
    await break_down(rack, stale.dataset_id)
    async with guest(rack, instance_id, disk) as client:
        await client.write(0, NEWER)
        await client.call(FLUSH)
    await stop(rack, instance_id)
    await bring_back(rack, stale.dataset_id)
    for region in two:
        await lose(rack, region)
    return disk


async def test_W54_R2_a_copy_that_missed_a_write_is_not_believed(tmp_path: Path, in_memory: Database) -> None:
    async with plant(tmp_path, in_memory, sleds=SLEDS) as rack, replacing(rack) as nexus:
        disk = await stale_survivor(rack)
        await turns(nexus, 2)
        assert states(rack) == ["requested", "requested"]
        assert all(NEEDS_DECISION in reason(rack, each.id) for each in requests(rack))
        assert len(own_regions(rack, disk.volume_id)) == 3


async def test_W54_R2_without_the_safeguard_an_acknowledged_write_is_lost(
    tmp_path: Path, in_memory: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(survivors, "may_be_believed", lambda facts: True)
    async with plant(tmp_path, in_memory, sleds=SLEDS) as rack, replacing(rack) as nexus:
        disk = await stale_survivor(rack)
        await nexus.to_complete()
        await require_whole(rack, disk, PATTERN)


async def test_W54_three_lost_are_not_replaced_and_the_disk_can_be_deleted(tmp_path: Path, in_memory: Database) -> None:
    async with plant(tmp_path, in_memory, sleds=SLEDS) as rack, replacing(rack) as nexus:
        disk = await at_rest_disk(rack)
        for region in own_regions(rack, disk.volume_id):
            await lose(rack, region)
        await turns(nexus, 2)
        assert states(rack) == ["requested"] * 3
        assert {reason(rack, each.id) for each in requests(rack)} == {NO_GOOD_COPY}
        await delete_disk(rack, disk)
        await nexus.to_complete()
        await finish_deletions(rack)
        await rack.require_empty()


async def test_W41_a_new_region_that_is_lost_has_a_successor(tmp_path: Path, in_memory: Database) -> None:
    """The pantry waits for a copy that will never answer; the request goes on with the next new region."""
    async with plant(tmp_path, in_memory, sleds=SLEDS) as rack, replacing(rack) as nexus:
        disk = await create(rack)
        await filled(rack, disk)
        old = own_regions(rack, disk.volume_id)[0]
        await lose(rack, old)
        await nexus.detect()
        (first,) = requests(rack)
        new = own_regions(rack, disk.volume_id)[0]
        assert first.new_region_id == new.region_id
        await lose(rack, new)
        await nexus.drive()
        await nexus.detect()
        first, second = requests(rack)
        assert second.old_region_id == new.region_id
        assert first.new_region_id == second.new_region_id == own_regions(rack, disk.volume_id)[0].region_id
        await nexus.to_complete()
        await require_whole(rack, disk)
        assert rack.findings() == [] and rack.count(schema.volume_repair) == 0


async def test_W41_the_original_rule_waits_for_ever(
    tmp_path: Path, in_memory: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nexus_request, _never_joins)
    async with plant(tmp_path, in_memory, sleds=SLEDS) as rack, replacing(rack) as nexus:
        disk = await create(rack)
        await lose(rack, own_regions(rack, disk.volume_id)[0])
        await nexus.detect()
        await lose(rack, own_regions(rack, disk.volume_id)[0])
        await turns(nexus)
        assert states(rack) == ["running"]


async def test_a_second_one_lost_while_the_first_is_repaired(tmp_path: Path, in_memory: Database) -> None:
    """The pantry was given the volume, and writes nothing of its own: what was at rest is, and the last copy counts."""
    async with plant(tmp_path, in_memory, sleds=SLEDS) as rack, replacing(rack) as nexus:
        disk = await at_rest_disk(rack)
        first, second, _ = own_regions(rack, disk.volume_id)
        await lose(rack, first)
        await nexus.detect()
        await break_down(rack, second.dataset_id)
        await nexus.drive()
        assert rack.run(at_rest, disk.volume_id)
        rack.expunge(second.dataset_id)
        await nexus.to_complete()
        await require_whole(rack, disk)


async def test_region_replacement_triple_sanity_2(tmp_path: Path, in_memory: Database) -> None:
    """Two of three lost before anything runs, then the third of the old ones: the snapshot's copies were compared when
    it was taken, and so were the disk's."""
    async with plant(tmp_path, in_memory, sleds=SLEDS) as rack, replacing(rack) as nexus:
        disk = await create(rack)
        await filled(rack, disk)
        snapshot = await take(rack, disk)
        assert rack.run(at_rest, disk.volume_id)
        *two, third = own_regions(rack, disk.volume_id)
        for region in two:
            rack.expunge(region.dataset_id)
        await nexus.to_complete()
        rack.expunge(third.dataset_id)
        await nexus.to_complete()
        await require_whole(rack, disk)
        gone = {each.dataset_id for each in (*two, third)}
        assert not gone & {each.dataset_id for each in own_regions(rack, disk.volume_id)}
        await delete_disk(rack, disk)
        await delete_snapshot(rack, snapshot)


async def test_an_operators_request_waits_while_another_copy_is_lost(tmp_path: Path, in_memory: Database) -> None:
    """Of three copies one is lost and one is to be exchanged: first the lost one, then the other (R2)."""
    async with plant(tmp_path, in_memory, sleds=SLEDS) as rack, replacing(rack) as nexus:
        disk = await create(rack)
        await filled(rack, disk)
        wanted, lost, _ = own_regions(rack, disk.volume_id)
        request_id = ask_for(rack, wanted)
        await lose(rack, lost)
        await nexus.detect()
        assert states(rack) == ["requested", "running"]
        assert "too few" in reason(rack, request_id)
        await nexus.to_complete()
        await require_whole(rack, disk)
        assert wanted.region_id not in {each.region_id for each in own_regions(rack, disk.volume_id)}


async def test_copies_that_are_not_alike_keep_the_old_region(
    tmp_path: Path, in_memory: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A byte rots in the new region after the pantry has repaired it: nothing is destroyed, and it says why."""
    async with plant(tmp_path, in_memory) as rack, replacing(rack) as nexus:
        disk = await create(rack)
        await filled(rack, disk)
        old = own_regions(rack, disk.volume_id)[0]
        ask_for(rack, old)
        await nexus.detect()
        await nexus.drive()
        (request,) = requests(rack)
        await until_true(lambda: rack.pantry.held[disk.volume_id].active)
        new = own_regions(rack, disk.volume_id)[0]
        rot(rack, new.dataset_id, new.region_id)
        await nexus.drive()
        for _ in range(3):
            assert states(rack) == ["running"]
            assert "not alike" in reason(rack, request.id)
            assert rack.pantry.ledger.volumes == [], "nothing has changed since: nobody tries again so soon"
            await nexus.drive()
        assert rack.count(schema.region, schema.region.c.id == old.region_id) == 1
        assert await digests(rack, disk.volume_id) != []
        monkeypatch.setattr(driving, "UNLIKE_PAUSE_MIN", timedelta(0))
        monkeypatch.setattr(driving, "UNLIKE_PAUSE_MAX", timedelta(0))
        await nexus.drive()
        assert rack.pantry.ledger.volumes == [disk.volume_id]
        assert "not alike" in reason(rack, request.id), "until they are compared again"


def rot(rack: Plant, dataset_id: str, region_id: str) -> None:
    """One bit of the region's first extent changes behind everybody's back."""
    directory = rack.agents[dataset_id].datasets.path(region_id)
    assert directory is not None
    extent = min(path for path in directory.rglob("*") if path.is_file() and path.stat().st_size > EXTENT_BYTES)
    with extent.open("r+b") as file:
        byte = file.read(1)
        file.seek(0)
        file.write(bytes([byte[0] ^ 1]))
