"""Agents as sagas ask them (nexus.md §8.1), over their real API, with real regions behind it."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from nexus_rig import EXTENT_BYTES, SIZES, Plant, plant

from nexus.db import Database, schema
from nexus.placement import AllocatedRegion, Allocation, regions_allocate
from nexus.services import Gone, ServiceRefused, WantedRegion
from nexus.volumes import RegionSnapshot
from nexus.volumes.freed import FreedRegion

GEOMETRY = SIZES.geometry(2 * EXTENT_BYTES, 512)


def placed(rack: Plant, regions: int = 3) -> list[AllocatedRegion]:
    ids = tuple(rack.id() for _ in range(regions))
    wanted = Allocation(rack.id(), ids, GEOMETRY, "seed")
    return list(rack.run(regions_allocate, wanted, rack.now()))


def freed(region: AllocatedRegion) -> FreedRegion:
    return FreedRegion(WantedRegion(region, GEOMETRY).dataset, region.region_id)


async def test_regions_are_made_and_their_ports_written_down(tmp_path: Path, database: Database) -> None:
    async with plant(tmp_path, database) as rack:
        regions = placed(rack)
        wanted = [WantedRegion(each, GEOMETRY) for each in regions]
        found = await rack.world.agents.regions_ensure(wanted)
        assert found == await rack.world.agents.regions_ensure(wanted), "again is the same"
        assert [await rack.world.agents.region_address(each.region_id) for each in regions] == found
        await rack.world.agents.regions_delete([freed(each) for each in regions])
        await rack.world.agents.regions_delete([freed(each) for each in regions])
        assert await rack.held() == []


async def test_region_on_a_silent_agent_is_waited_for_until_its_disk_is_expunged(
    tmp_path: Path, database: Database
) -> None:
    """``test_no_halt_disk_delete_one_region_on_expunged_agent``: to take away is done, to make has failed."""
    async with plant(tmp_path, database) as rack:
        regions = placed(rack)
        lost = regions[0]
        await rack.world.agents.regions_ensure([WantedRegion(each, GEOMETRY) for each in regions])
        rack.silence(lost.dataset_id)
        deleted = trio.Event()

        async def delete() -> None:
            await rack.world.agents.regions_delete([freed(each) for each in regions])
            deleted.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(delete)
            with trio.move_on_after(0.2):
                await deleted.wait()
            assert not deleted.is_set(), "a silent agent is not gone"
            rack.expunge(lost.dataset_id)
            with trio.fail_after(10):
                await deleted.wait()
        with pytest.raises(Gone, match="gone for good"):
            await rack.world.agents.region_ensure(WantedRegion(lost, GEOMETRY))


async def test_refusal_of_an_agent_is_a_sentence(tmp_path: Path, database: Database) -> None:
    async with plant(tmp_path, database) as rack:
        (region, *_) = placed(rack)
        wanted = WantedRegion(region, GEOMETRY)
        await rack.world.agents.region_ensure(wanted)
        snapshot = RegionSnapshot(region.dataset_id, region.region_id, rack.id())
        with pytest.raises(ServiceRefused, match=f"snapshot {snapshot.snapshot_id} of region") as caught:
            await rack.world.agents.snapshot_run(wanted.dataset, snapshot)
        assert caught.value.status == 404
        with pytest.raises(Gone):
            await rack.world.agents.region_address(rack.id())
        assert (await rack.world.agents.region_digest(wanted.dataset, region.region_id)).state == "done"
        assert [each.id for each in await rack.world.agents.regions_list(wanted.dataset)] == [region.region_id]
        rack.set(schema.region, region.region_id, port=None)
        assert (await rack.world.agents.region_address(region.region_id)).ip == "::1"


async def test_pantry_is_chosen_among_those_that_answer(tmp_path: Path, database: Database) -> None:
    async with plant(tmp_path, database, sleds=1) as rack:
        found = await rack.world.pantries.choose("seed")
        assert not await rack.world.pantries.is_gone(found)
        await rack.world.pantries.detach(found, "never attached")
        rack.run(lambda c: c.execute(schema.pantry.update().values(time_deleted=rack.now())) and None)
        assert await rack.world.pantries.is_gone(found)
        await rack.world.pantries.detach(found, "gone with its pantry")
