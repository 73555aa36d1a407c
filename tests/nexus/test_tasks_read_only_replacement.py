"""Tasks that find lost read-only targets and begin with their replacement (nexus.md §9.7)."""

from __future__ import annotations

from pathlib import Path

from nexus_rig import plant
from read_only_rig import (
    State,
    asks,
    nexus_of,
    request,
    require_three_good_copies,
    scene,
    wait_for_all_replacements,
    with_fair_locks,
)

from nexus.db import Database, schema
from nexus.replacement.read_only import read_only_replacements_in
from nexus.sagas import ALL_SAGAS
from nexus.sagas.region_snapshot_replacement_start import REGION_SNAPSHOT_REPLACEMENT_START
from nexus.volumes import ReadOnlyRegion
from nexus.volumes.repair_lock import waiters


def ids(entries: list[str]) -> list[str]:
    return [each.split()[-1] for each in entries]


async def test_add_region_snapshot_replacement_causes_start(tmp_path: Path, in_memory: Database) -> None:
    async with plant(tmp_path, in_memory) as rack:
        found = await scene(rack)
        async with nexus_of(rack) as nexus:
            assert not any((await nexus.does(nexus.start)).values())
            request_id = asks(rack, found.targets[0])
            status = await nexus.does(nexus.start)
            assert ids(status["start_invoked_ok"]) == [request_id] and status["requests_created_ok"] == []
            assert request(rack, request_id).state is State.REPLACEMENT_DONE
            assert not any((await nexus.does(nexus.start)).values())
    assert REGION_SNAPSHOT_REPLACEMENT_START in ALL_SAGAS


async def test_expunge_disk_causes_region_snapshot_replacement_start(tmp_path: Path, database: Database) -> None:
    """For exactly the region snapshot on that disk. A second lost one waits in line for the snapshot's lock, which is
    no error, and is next; then the read-only regions that came are lost in their turn."""
    async with plant(tmp_path, database, sleds=6) as rack:
        with_fair_locks(rack)
        found = await scene(rack)
        lost, next_one, _ = found.targets
        async with nexus_of(rack) as nexus:
            rack.expunge(lost.dataset_id)
            status = await nexus.start.activate()
            (request_id,) = ids(status["requests_created_ok"])
            assert ids(status["start_invoked_ok"]) == [request_id] and request(rack, request_id).old == lost
            await nexus.idle()
            rack.expunge(next_one.dataset_id)
            assert (await nexus.does(nexus.start))["requests_created_ok"] == []
            (waits,) = rack.run(waiters, found.snapshot.volume_id)
            await wait_for_all_replacements(rack, nexus)
            assert ids((await nexus.does(nexus.start))["requests_created_ok"]) == [waits.repair_id]
            await wait_for_all_replacements(rack, nexus)
            await require_three_good_copies(rack, found.snapshot)
        assert rack.run(waiters) == [] and rack.findings() == []


async def test_expunge_disk_causes_read_only_region_replacement_request(tmp_path: Path, in_memory: Database) -> None:
    """Of a region that was cloned once, also when its snapshot is deleted (R40)."""
    async with plant(tmp_path, in_memory, sleds=5) as rack:
        found = await scene(rack)
        async with nexus_of(rack) as nexus:
            request_id = asks(rack, found.targets[0])
            await wait_for_all_replacements(rack, nexus)
            region_id = request(rack, request_id).new_region_id or ""
            dataset_id = rack.run(
                lambda c: c.execute(schema.region.select().where(schema.region.c.id == region_id)).one()
            ).dataset_id
            await found.delete_snapshot()
            assert not any((await nexus.does(nexus.regions_start)).values())
            rack.expunge(dataset_id)
            (created,) = ids((await nexus.does(nexus.regions_start))["requests_created_ok"])
            assert request(rack, created).old == ReadOnlyRegion(region_id)
            assert request(rack, created).state is State.REQUESTED
            assert not any((await nexus.does(nexus.regions_start)).values())
            await wait_for_all_replacements(rack, nexus)
        await require_three_good_copies(rack, found.snapshot)
        await found.delete_copy()
        await found.delete_disk()
        assert rack.count(schema.region) == 0 == rack.count(schema.volume)


async def test_delete_region_snapshot_replacement_volume_causes_complete(tmp_path: Path, in_memory: Database) -> None:
    """The target is gone: complete, and not begun with in the same activation."""
    async with plant(tmp_path, in_memory) as rack:
        found = await scene(rack)
        request_id = asks(rack, found.targets[0])
        await found.delete_snapshot()
        await found.delete_copy()
        async with nexus_of(rack) as nexus:
            status = await nexus.does(nexus.start)
            assert ids(status["requests_completed_ok"]) == [request_id] and status["start_invoked_ok"] == []
        assert rack.run(read_only_replacements_in, tuple(set(State) - {State.COMPLETE})) == []
        assert rack.count(schema.volume_repair) == 0
