"""Replacing regions of disks that are in use: by a guest that writes, by an import, and by one that comes and goes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio
import trio.lowlevel
from disks_rig import SIZE_BYTES, create, disk_of
from guests_rig import guest, make_instance, start, stop
from nbd_plain_client import PlainClient
from nexus_rig import Plant, plant
from region_replacement_rig import (
    PATTERN,
    Replacing,
    digests,
    expect_breaking,
    filled,
    lose,
    notify,
    own_regions,
    reason,
    replacing,
    requests,
    require_whole,
    states,
)
from users_rig import HasVolume, delete_disk, finish_deletions

from crucible_emu.client.failures import ServiceError
from crucible_emu.host.states import InstanceState
from nexus.db import Database, schema
from nexus.db.schema import RepairNotificationType, VmmState
from nexus.objects.disks import Move, disk_move
from nexus.objects.instances import active_vmm
from nexus.replacement import driving
from nexus.replacement.health import Health, single_upstairs_health, upstairs_of
from nexus.replacement.region import PropolisStep, step_newest
from nexus.sagas.disk_create import DISK_CREATE_IMPORTING
from nexus.tasks.lost_instances import LostInstances
from nexus.volumes.at_rest import at_rest

BLOCK = 4096


@pytest.fixture(autouse=True)
def copies_break(expect_log: Any) -> None:
    expect_breaking(expect_log)


@asynccontextmanager
async def used_disk(directory: Path, database: Database) -> AsyncIterator[tuple[Plant, Replacing, HasVolume, str]]:
    """A disk that holds something, and a guest that runs with it; and in the end nothing is left."""
    async with plant(directory, database, sleds=5) as rack, replacing(rack) as nexus:
        disk = await create(rack)
        await filled(rack, disk)
        instance_id = await make_instance(rack, disk)
        await start(rack, instance_id)
        yield rack, nexus, disk, instance_id
        assert rack.findings() == []


async def healthy(rack: Plant, instance_id: str, disk: HasVolume) -> bool:
    vmm = rack.run(active_vmm, instance_id).vmm
    info = (await rack.world.hosts.client(vmm).disk_volume_status(disk.id)).volume_info
    return all(single_upstairs_health(each) is Health.HEALTHY for each in upstairs_of(info))


async def until_healthy(rack: Plant, instance_id: str, disk: HasVolume) -> None:
    with trio.fail_after(30):
        while not await healthy(rack, instance_id, disk):  # noqa: ASYNC110 - it is in another program
            await trio.sleep(0.05)


async def writing(client: PlainClient, held: bytearray, seed: int) -> None:
    """Write until cancelled; ``held`` is what was acknowledged."""
    random = Random(seed)
    while True:
        offset = random.randrange(len(held) // BLOCK) * BLOCK
        data = random.randbytes(BLOCK)
        with trio.CancelScope(shield=True):
            await client.write(offset, data)
            held[offset : offset + BLOCK] = data
        await trio.lowlevel.checkpoint()


async def test_a_guest_writes_while_its_region_is_replaced(tmp_path: Path, in_memory: Database) -> None:
    """Live repair under load: nothing that was acknowledged is lost, and all three copies hold it in the end."""
    async with used_disk(tmp_path, in_memory) as (rack, nexus, disk, instance_id):
        held = bytearray(PATTERN)
        async with guest(rack, instance_id, disk) as client, trio.open_nursery() as nursery:
            nursery.start_soon(writing, client, held, 1)
            await lose(rack, own_regions(rack, disk.volume_id)[0])
            await nexus.detect()
            await nexus.drive()
            (request,) = requests(rack)
            newest = rack.run(step_newest, request.id)
            assert newest is not None and isinstance(newest[0], PropolisStep)
            await until_healthy(rack, instance_id, disk)
            notify(rack, request.new_region_id, RepairNotificationType.SUCCEEDED)
            await nexus.to_complete()
            nursery.cancel_scope.cancel()
        await stop(rack, instance_id)
        assert await digests(rack, disk.volume_id) == []
        await require_whole(rack, disk, bytes(held))


async def test_W10_a_lost_notification_does_not_keep_a_request_for_ever(
    tmp_path: Path, in_memory: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R29. The real one waits for it as long as the process lives; here the Upstairs is asked how it is."""
    async with used_disk(tmp_path, in_memory) as (rack, nexus, disk, instance_id):
        await lose(rack, own_regions(rack, disk.volume_id)[0])
        await nexus.detect()
        await nexus.drive()
        await until_healthy(rack, instance_id, disk)
        await nexus.drive()
        assert states(rack) == ["running"]
        monkeypatch.setattr(driving, "SILENT_MAX", timedelta(0))
        await nexus.to_complete()
        await stop(rack, instance_id)
        await require_whole(rack, disk)


async def test_an_instance_stops_during_the_repair(tmp_path: Path, in_memory: Database) -> None:
    """The process that was asked is gone: a pantry does the rest."""
    async with used_disk(tmp_path, in_memory) as (rack, nexus, disk, instance_id):
        await lose(rack, own_regions(rack, disk.volume_id)[0])
        await nexus.detect()
        await nexus.drive()
        await stop(rack, instance_id)
        await nexus.to_complete()
        await require_whole(rack, disk)


async def test_an_instance_starts_during_the_repair(tmp_path: Path, in_memory: Database) -> None:
    """R33: whoever comes later has the volume; the pantry that lost it is not believed, the instance is asked."""
    async with plant(tmp_path, in_memory, sleds=5) as rack, replacing(rack) as nexus:
        disk = await create(rack)
        await filled(rack, disk)
        instance_id = await make_instance(rack, disk)
        await lose(rack, own_regions(rack, disk.volume_id)[0])
        await nexus.detect()
        await nexus.drive()
        assert rack.pantry.ledger.volumes == [disk.volume_id]
        await start(rack, instance_id)
        await nexus.to_complete()
        assert rack.pantry.ledger.volumes == []
        async with guest(rack, instance_id, disk) as client:
            assert await client.read(0, SIZE_BYTES) == PATTERN
        await stop(rack, instance_id)
        await require_whole(rack, disk)


async def test_an_instance_that_starts_with_a_lost_copy_is_told_of_its_successor(
    tmp_path: Path, in_memory: Database
) -> None:
    """The race: the document is handed out, then the copy is found lost. The Upstairs waits for all three copies, and
    the replacement would wait for the Upstairs to be in service, until the start is given up after two minutes."""
    async with plant(tmp_path, in_memory, sleds=5) as rack, replacing(rack) as nexus:
        disk = await create(rack)
        await filled(rack, disk)
        instance_id = await make_instance(rack, disk)
        await lose(rack, own_regions(rack, disk.volume_id)[0])
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(start, rack, instance_id)
                while not await waits_for_copies(rack, instance_id):  # noqa: ASYNC110 - it is in another program
                    await trio.sleep(0.05)
                await nexus.detect()
                await nexus.drive()
        await nexus.to_complete()
        async with guest(rack, instance_id, disk) as client:
            assert await client.read(0, SIZE_BYTES) == PATTERN
        await stop(rack, instance_id)
        await require_whole(rack, disk)


async def waits_for_copies(rack: Plant, instance_id: str) -> bool:
    """Whether the instance is on a host and not in service yet."""
    found = rack.run(active_vmm, instance_id)
    if found is None or found.state is not VmmState.STARTING:
        return False
    try:
        return (await rack.world.hosts.client(found.vmm).instance_get()).instance.state is InstanceState.STARTING
    except ServiceError:
        return False


async def test_a_second_copy_lost_under_a_guest_waits_for_the_first(tmp_path: Path, in_memory: Database) -> None:
    """An Upstairs takes one new copy at a time; both disks are declared lost while they still serve."""
    async with used_disk(tmp_path, in_memory) as (rack, nexus, disk, instance_id):
        for region in own_regions(rack, disk.volume_id)[:2]:
            rack.expunge(region.dataset_id)
        await nexus.detect()
        # Which of the two comes first is chance: the swap lets only one pass.
        assert sorted(states(rack)) == ["requested", "running"]
        await nexus.drive()
        await until_healthy(rack, instance_id, disk)
        await nexus.detect()
        for _ in range(2):
            (now,) = (each for each in requests(rack) if each.state.value == "running")
            waiting = [each for each in requests(rack) if each.state.value == "requested"]
            assert all("one new copy at a time" in reason(rack, each.id) for each in waiting)
            await until_healthy(rack, instance_id, disk)
            notify(rack, now.new_region_id, RepairNotificationType.SUCCEEDED)
            await nexus.drive()
            await nexus.detect()
            await nexus.drive()
        await nexus.to_complete()
        await stop(rack, instance_id)
        await require_whole(rack, disk)


async def test_W9_a_disk_that_is_being_imported_is_repaired_by_its_pantry(tmp_path: Path, in_memory: Database) -> None:
    """The real one fails until the import has ended."""
    async with plant(tmp_path, in_memory, sleds=5) as rack, replacing(rack) as nexus:
        disk = await create(rack, DISK_CREATE_IMPORTING)
        pantry = disk_of(rack, disk).pantry
        assert pantry is not None
        await rack.world.pantries.bulk_write(pantry, disk.id, 0, PATTERN)
        await lose(rack, own_regions(rack, disk.volume_id)[0])
        await nexus.to_complete()
        assert await rack.world.pantries.bulk_read(pantry, disk.id, 0, SIZE_BYTES) == PATTERN
        await rack.world.pantries.detach(pantry, disk.id)
        assert await digests(rack, disk.volume_id) == []


async def test_R33_a_pantry_is_not_given_what_a_guest_has(tmp_path: Path, in_memory: Database) -> None:
    """An instance starts after it was decided that nobody has the volume: the checkout refuses."""
    async with plant(tmp_path, in_memory, sleds=5) as rack:
        disk = await create(rack)
        instance_id = await make_instance(rack, disk)
        started = [instance_id]

        async def perform(work: Any, vertex: Any, context: Any) -> Any:
            result = await work(context)
            if vertex.label == "PREPARE" and started:
                await start(rack, started.pop())
            return result

        async with replacing(rack, perform) as nexus:
            await lose(rack, own_regions(rack, disk.volume_id)[0])
            await nexus.detect()
            with trio.fail_after(60):
                await nexus.drive()
            (request,) = requests(rack)
            assert request.state == "running" and "runs" in reason(rack, request.id)
            async with guest(rack, instance_id, disk) as client:
                await client.write(0, PATTERN)
            await stop(rack, instance_id)
            await nexus.to_complete()
            await require_whole(rack, disk)
            rack.run(disk_move, disk.id, Move.DETACHED, rack.now(), also={"attach_instance_id": None, "slot": None})
            await delete_disk(rack, disk)
            await finish_deletions(rack)
            await rack.require_empty()


async def test_a_guest_that_starts_before_the_copies_are_compared_is_not_believed_at_rest(
    tmp_path: Path, in_memory: Database
) -> None:
    """Its copies may be alike just then, and it is about to write: the volume would count as proved for ever."""
    async with plant(tmp_path, in_memory, sleds=5) as rack:
        disk = await create(rack)
        await filled(rack, disk)
        instance_id = await make_instance(rack, disk)
        started: list[str] = []

        async def perform(work: Any, vertex: Any, context: Any) -> Any:
            result = await work(context)
            if vertex.label == "CHECK" and result["check"] == driving.Check.DONE and not started:
                started.append(await start(rack, instance_id))
            return result

        async with replacing(rack, perform) as nexus:
            await lose(rack, own_regions(rack, disk.volume_id)[0])
            await nexus.detect()
            await nexus.until(lambda: bool(started))
            assert states(rack) == ["running"] and not rack.run(at_rest, disk.volume_id)
            await stop(rack, instance_id)
            await nexus.to_complete()
            assert rack.run(at_rest, disk.volume_id)
            await require_whole(rack, disk)


async def test_a_guest_on_a_sled_that_is_lost_with_a_copy(tmp_path: Path, in_memory: Database) -> None:
    """Nobody tells that the guest has ended; as long as it seems to run, no pantry is given its disk."""
    async with plant(tmp_path, in_memory, sleds=5) as rack, replacing(rack) as nexus:
        disk = await create(rack)
        await filled(rack, disk)
        instance_id = await make_instance(rack, disk)
        lost = own_regions(rack, disk.volume_id)[0]
        await start(rack, instance_id, lost.sled_id)
        rack.network.cut(rack.run(active_vmm, instance_id).vmm.address.port)
        rack.set(schema.sled, lost.sled_id, sled_policy="expunged")
        await lose(rack, lost)
        await nexus.detect()
        await nexus.drive()
        (request,) = requests(rack)
        assert request.state == "running" and "about to" in reason(rack, request.id)
        ends = LostInstances(rack.world, nexus.executor)
        assert (await ends.activate())["stop_invoked_ok"] == [f"instance {instance_id}"]
        await nexus.settle()
        assert rack.run(active_vmm, instance_id) is None
        assert (await ends.activate())["stop_invoked_ok"] == []
        await nexus.to_complete()
        await require_whole(rack, disk)
