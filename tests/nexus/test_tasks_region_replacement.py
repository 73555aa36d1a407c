"""The two tasks of region replacements (nexus.md §9.7), and notifications in the midst of a saga (§9.5, R28)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from disks_rig import create
from nexus_rig import Plant, plant
from region_replacement_rig import (
    ask_for,
    expect_breaking,
    lose,
    notify,
    own_regions,
    reason,
    replacing,
    requests,
    running_request,
    states,
)
from users_rig import HasVolume, delete_disk, finish_deletions, run

from nexus.db import Conflict, Database, schema
from nexus.db.schema import RepairNotificationType
from nexus.placement import Allocation, regions_allocate
from nexus.replacement.machine import move
from nexus.replacement.region import (
    REGION_REPLACEMENT,
    PantryStep,
    RegionEdge,
    region_replacement_get,
    step_newest,
    step_record,
)
from nexus.sagas import region_replacement_drive, region_replacement_finish
from nexus.sagas.region_replacement_drive import REGION_REPLACEMENT_DRIVE
from nexus.sagas.region_replacement_finish import REGION_REPLACEMENT_FINISH
from nexus.tasks.region_replacement_driver import marked_done
from nexus.volumes import volume_deleted


@pytest.fixture(autouse=True)
def copies_break(expect_log: Any) -> None:
    expect_breaking(expect_log)


async def remove(rack: Plant, disk: HasVolume) -> None:
    await delete_disk(rack, disk)
    async with replacing(rack) as nexus:
        await nexus.to_complete()
    await finish_deletions(rack)
    await rack.require_empty()


async def test_add_region_replacement_causes_start(tmp_path: Path, in_memory: Database) -> None:
    async with plant(tmp_path, in_memory) as rack, replacing(rack) as nexus:
        disk = await create(rack)
        request_id = ask_for(rack, own_regions(rack, disk.volume_id)[0])
        status = await nexus.detect()
        assert status == {
            "requests_created_ok": [],
            "start_invoked_ok": [f"request {request_id}"],
            "requests_completed_ok": [],
            "waiting": [],
            "errors": [],
        }
        await remove(rack, disk)


async def test_a_lost_region_is_asked_for_once(tmp_path: Path, in_memory: Database) -> None:
    """Not again while the request is open, nor when it has ended and the region lies in a stash (§10.3)."""
    async with plant(tmp_path, in_memory) as rack, replacing(rack) as nexus:
        disk = await create(rack)
        await lose(rack, own_regions(rack, disk.volume_id)[0])
        status = await nexus.detect()
        assert len(status["requests_created_ok"]) == len(status["start_invoked_ok"]) == 1
        for _ in range(2):
            assert (await nexus.detect())["requests_created_ok"] == []
        await nexus.to_complete()
        assert len(requests(rack)) == 1
        await remove(rack, disk)


async def test_a_lost_region_waits_in_line_for_a_lock(tmp_path: Path, in_memory: Database) -> None:
    """To be refused the lock is no error, and nothing is written but the place in the line."""
    async with plant(tmp_path, in_memory) as rack, replacing(rack) as nexus:
        disk = await create(rack)
        snapshot = rack.id()
        rack.run(rack.world.locks.volume_repair_insert, disk.volume_id, snapshot, rack.now())
        await lose(rack, own_regions(rack, disk.volume_id)[0])
        assert (await nexus.detect())["requests_created_ok"] == [] and requests(rack) == []
        rack.run(rack.world.locks.volume_repair_delete, disk.volume_id, snapshot)
        assert len((await nexus.detect())["requests_created_ok"]) == 1
        await remove(rack, disk)


async def test_no_place_for_a_new_region_is_tried_again(tmp_path: Path, in_memory: Database) -> None:
    async with plant(tmp_path, in_memory, sleds=3) as rack, replacing(rack) as nexus:
        disk = await create(rack)
        ask_for(rack, own_regions(rack, disk.volume_id)[0])
        await nexus.detect()
        assert states(rack) == ["requested"]
        (request,) = requests(rack)
        assert request.operating_saga_id is None and rack.count(schema.region) == 3
        assert "no sled" in reason(rack, request.id)
        await remove(rack, disk)


async def test_running_region_replacement_causes_drive(tmp_path: Path, in_memory: Database) -> None:
    async with plant(tmp_path, in_memory) as rack, replacing(rack) as nexus:
        disk = await create(rack)
        row = await running_request(rack, disk)
        status = await nexus.drive()
        assert status == {"drive_invoked_ok": [f"request {row.id}"], "finish_invoked_ok": [], "errors": []}
        assert rack.run(step_newest, row.id) is not None
        await remove(rack, disk)


async def test_done_region_replacement_causes_finish(tmp_path: Path, in_memory: Database) -> None:
    async with plant(tmp_path, in_memory) as rack, replacing(rack) as nexus:
        disk = await create(rack)
        row = await running_request(rack, disk)
        rack.run(move, REGION_REPLACEMENT, RegionEdge.NOTIFIED, row.id)
        status = await nexus.drive()
        assert status == {"drive_invoked_ok": [], "finish_invoked_ok": [f"request {row.id}"], "errors": []}
        assert states(rack) == ["complete"]


async def test_mark_region_replacement_done_after_notification(tmp_path: Path, in_memory: Database) -> None:
    """Marked and finished in one activation."""
    async with plant(tmp_path, in_memory) as rack, replacing(rack) as nexus:
        disk = await create(rack)
        row = await running_request(rack, disk)
        notify(rack, row.new_region_id, RepairNotificationType.SUCCEEDED)
        status = await nexus.drive()
        assert status == {"drive_invoked_ok": [], "finish_invoked_ok": [f"request {row.id}"], "errors": []}
        assert states(rack) == ["complete"]


async def test_no_mark_region_replacement_done_after_failed_notification(tmp_path: Path, in_memory: Database) -> None:
    async with plant(tmp_path, in_memory) as rack, replacing(rack) as nexus:
        disk = await create(rack)
        row = await running_request(rack, disk)
        notify(rack, row.new_region_id, RepairNotificationType.FAILED)
        status = await nexus.drive()
        assert status["drive_invoked_ok"] == [f"request {row.id}"] and not status["finish_invoked_ok"]
        await remove(rack, disk)


async def test_the_word_of_a_pantry_is_not_enough(tmp_path: Path, in_memory: Database) -> None:
    """Where a pantry was asked, hashes have to show that the volume is whole."""
    async with plant(tmp_path, in_memory) as rack:
        disk = await create(rack)
        row = await running_request(rack, disk)
        rack.run(step_record, row.id, PantryStep("::1", 1, rack.id()), rack.now())
        notify(rack, row.new_region_id, RepairNotificationType.SUCCEEDED)
        assert not rack.run(marked_done, row)
        await remove(rack, disk)


class InTheMidst:
    """Runs something after a node."""

    def __init__(self, label: str, what: Any) -> None:
        self.label, self.what, self.happened = label, what, False

    async def __call__(self, work: Any, vertex: Any, context: Any) -> Any:
        result = await work(context)
        if vertex.label == self.label:
            self.what()
            self.happened = True
        return result


async def test_replacement_done_in_middle_of_drive_saga(tmp_path: Path, in_memory: Database) -> None:
    """R28: the Upstairs tells while the drive saga has the request. Nothing changes; and then it is heard."""
    async with plant(tmp_path, in_memory) as rack:
        disk = await create(rack)
        row = await running_request(rack, disk)

        def told() -> None:
            notify(rack, row.new_region_id, RepairNotificationType.SUCCEEDED)
            assert not rack.run(marked_done, row) and states(rack) == ["driving"]

        midst = InTheMidst("PREPARE", told)
        params = region_replacement_drive.Params(request_id=row.id, volume_id=row.volume_id)
        # Nobody is to be asked: otherwise it would be a pantry, whose word is not enough.
        rack.set(schema.disk, disk.id, operating_saga_id=rack.id(), disk_state="maintenance")
        await run(rack, REGION_REPLACEMENT_DRIVE, params, perform=midst)
        rack.set(schema.disk, disk.id, operating_saga_id=None, disk_state="detached")
        assert midst.happened and states(rack) == ["running"]
        assert "a saga has its disk in hand" in reason(rack, row.id)
        assert rack.run(marked_done, row) and states(rack) == ["replacement_done"]
        await remove(rack, disk)


async def test_replacement_done_in_middle_of_finish_saga(tmp_path: Path, in_memory: Database) -> None:
    """While one finishes, a second one conflicts and so does the notification; the first comes to its end."""
    async with plant(tmp_path, in_memory) as rack:
        disk = await create(rack)
        row = await running_request(rack, disk)
        rack.run(move, REGION_REPLACEMENT, RegionEdge.NOTIFIED, row.id)

        def others() -> None:
            with pytest.raises(Conflict):
                rack.run(move, REGION_REPLACEMENT, RegionEdge.COMPLETE_BEGUN, row.id, saga_id=rack.id())
            notify(rack, row.new_region_id, RepairNotificationType.SUCCEEDED)
            assert not rack.run(marked_done, row) and states(rack) == ["completing"]

        params = region_replacement_finish.Params(
            request_id=row.id,
            volume_id=row.volume_id,
            old_region_id=row.old_region_id,
            stash_id=row.old_region_volume_id or "",
        )
        midst = InTheMidst("SET_SAGA_ID", others)
        await run(rack, REGION_REPLACEMENT_FINISH, params, perform=midst)
        assert midst.happened and rack.run(region_replacement_get, row.id).state == "complete"


async def test_W53_a_region_that_is_only_placed_is_not_asked_for(tmp_path: Path, in_memory: Database) -> None:
    """The disk of a region that a saga is about to make is lost: no document names it yet, and the saga undoes it. A
    request for it would never come to an end."""
    async with plant(tmp_path, in_memory) as rack, replacing(rack) as nexus:
        disk = await create(rack)
        geometry = rack.world.sizes.geometry(128 * 1024, 512)
        wanted = Allocation(disk.volume_id, (rack.id(),), geometry, seed="seed")
        rack.run(regions_allocate, wanted, rack.now())
        rack.set(schema.region, wanted.region_ids[0], port=1)
        used = {each.dataset_id for each in own_regions(rack, disk.volume_id)}
        (free,) = set(rack.agents) - used
        rack.expunge(free)
        assert (await nexus.detect())["requests_created_ok"] == []
        assert not rack.run(volume_deleted, disk.volume_id)
