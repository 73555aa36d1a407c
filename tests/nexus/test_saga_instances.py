"""instance-start and instance-stop on real hosts, and which disks an instance has (nexus.md §5.4, §1.3)."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

import pytest
from guests_rig import guest, make_instance, start, stop
from nexus_rig import EXTENT_BYTES, Plant, plant
from saga_scaffold import (
    Fresh,
    Trial,
    action_failure_can_unwind,
    action_failure_can_unwind_idempotently,
    actions_succeed_idempotently,
    death_at_every_point,
)
from users_rig import HasVolume, delete_disk, make_disk

from nexus.db import Database, schema
from nexus.objects.disks import Move, NewDisk, disk_get, disk_insert, disk_move
from nexus.objects.instances import (
    DISKS_MAX,
    active_vmm,
    active_vmm_of_disk,
    disk_attach,
    disk_detach,
    disks_attached,
    instance_delete,
    vmm_get,
)
from nexus.saga import ActionFailed, MemoryStore, SagaFailed
from nexus.saga.hooks import Point
from nexus.sagas import instance_start, instance_stop
from nexus.sagas.instance_start import INSTANCE_START
from nexus.sagas.instance_stop import INSTANCE_STOP
from nexus.volumes import recorded, volume_create


async def test_guest_finds_its_bytes_wherever_it_runs(tmp_path: Path, database: Database) -> None:
    """Start, write, stop, start on another sled: generation after generation, each vmm has the disk to itself."""
    async with plant(tmp_path, database) as rack:
        disk = await make_disk(rack)
        instance = await make_instance(rack, disk)
        first, second = list(rack.hosts)[:2]
        vmm_id = await start(rack, instance, first)
        assert rack.run(active_vmm_of_disk, disk.id).vmm.vmm_id == vmm_id
        with pytest.raises(SagaFailed, match="not stopped"):
            await start(rack, instance, second)
        assert rack.run(active_vmm, instance).vmm.vmm_id == vmm_id
        async with guest(rack, instance, disk) as client:
            await client.write(512, b"x" * 512)
        with pytest.raises(ActionFailed, match="not stopped"):
            rack.run(disk_detach, instance, disk.id, rack.now())
        await stop(rack, instance)
        await stop(rack, instance)
        assert rack.run(active_vmm, instance) is None
        await start(rack, instance, second)
        async with guest(rack, instance, disk) as client:
            assert await client.read(512, 512) == b"x" * 512
        await stop(rack, instance)
        rack.run(instance_delete, instance, rack.now())
        await delete_disk(rack, disk)
        await rack.require_empty()
        assert rack.count(schema.vmm, schema.vmm.c.time_deleted.is_(None)) == 0


async def test_attach_and_detach(tmp_path: Path, database: Database) -> None:
    """At most 12 disks, each in a slot of its own, in one instance at a time, and only while that is stopped."""
    async with plant(tmp_path, database, sleds=1) as rack:
        disks = [disk_row(rack) for _ in range(DISKS_MAX + 1)]
        instance, other = await make_instance(rack), await make_instance(rack, name="other")
        assert [attach(rack, instance, each) for each in disks[:DISKS_MAX]] == list(range(DISKS_MAX))
        assert attach(rack, instance, disks[3]) == 3, "again is the same"
        with pytest.raises(ActionFailed, match="at most 12 disks") as caught:
            attach(rack, instance, disks[DISKS_MAX])
        assert caught.value.kind == "invalid_request"
        with pytest.raises(ActionFailed, match="must be detached"):
            attach(rack, other, disks[0])
        with pytest.raises(ActionFailed, match="is not attached to instance 'other'"):
            rack.run(disk_detach, other, disks[0], rack.now())
        for _ in range(2):
            rack.run(disk_detach, instance, disks[5], rack.now())
        assert attach(rack, other, disks[5]) == 0
        assert attach(rack, instance, disks[DISKS_MAX]) == 5, "the slot that is free"
        assert [each.slot for each in rack.run(disks_attached, instance)] == list(range(DISKS_MAX))
        rack.run(instance_delete, instance, rack.now())
        assert rack.run(disk_get, disks[0]).state == "detached"
        with pytest.raises(ActionFailed, match="no instance"):
            attach(rack, instance, disks[0])


async def test_disk_of_another_project_is_none(tmp_path: Path, in_memory: Database) -> None:
    async with plant(tmp_path, in_memory, sleds=1) as rack:
        disk, instance = disk_row(rack, rack.id()), await make_instance(rack)
        with pytest.raises(ActionFailed, match="no disk") as caught:
            attach(rack, instance, disk)
        assert caught.value.kind == "not_found"


async def test_instance_goes_where_few_are(tmp_path: Path, in_memory: Database) -> None:
    """Only sleds in service, those with the fewest instances first; without any the saga says so."""
    async with plant(tmp_path, in_memory, sleds=2) as rack:
        first, second = await make_instance(rack), await make_instance(rack, name="other")
        where = [rack.run(vmm_get, await start(rack, each)).vmm.sled_id for each in (first, second)]
        assert sorted(where) == sorted(rack.hosts)
        await stop(rack, first)
        for sled_id in rack.hosts:
            rack.set(schema.sled, sled_id, sled_policy="no_provision")
        with pytest.raises(SagaFailed, match="no sled is in service"):
            await start(rack, first)
        await stop(rack, second)


async def test_stop_ends_though_the_sled_is_gone(tmp_path: Path, in_memory: Database) -> None:
    async with plant(tmp_path, in_memory) as rack:
        instance = await make_instance(rack)
        await start(rack, instance)
        sled_id = rack.run(active_vmm, instance).vmm.sled_id
        rack.network.cut(rack.run(active_vmm, instance).vmm.address.port)
        rack.set(schema.sled, sled_id, sled_policy="expunged")
        await stop(rack, instance)
        assert rack.run(active_vmm, instance) is None
        await start(rack, instance)
        await stop(rack, instance)


@pytest.mark.parametrize("way", ["twice", "unwind", "death", "death in unwinding"])
async def test_start_scaffold(tmp_path: Path, in_memory: Database, way: str) -> None:
    async with plant(tmp_path, in_memory) as rack:
        disk = await make_disk(rack)
        instance = await make_instance(rack, disk)
        fresh = starts(rack, instance, disk)
        match way:
            case "twice":
                await actions_succeed_idempotently(INSTANCE_START, fresh)
            case "unwind":
                await action_failure_can_unwind(INSTANCE_START, fresh)
                await action_failure_can_unwind_idempotently(INSTANCE_START, fresh)
            case "death":
                assert await death_at_every_point(INSTANCE_START, fresh) == 3 * 7
            case "death in unwinding":
                assert await death_at_every_point(INSTANCE_START, fresh, fail_at="RECORD_RUNNING", points=UNDOING) == 9
        await stop(rack, instance)


@pytest.mark.parametrize("way", ["twice", "death"])
async def test_stop_scaffold(tmp_path: Path, in_memory: Database, way: str) -> None:
    async with plant(tmp_path, in_memory) as rack:
        disk = await make_disk(rack)
        instance = await make_instance(rack, disk)

        async def fresh() -> Trial:
            if rack.run(active_vmm, instance) is None:
                await start(rack, instance)

            async def finished() -> None:
                await require_stopped(rack, instance)

            return Trial(rack.world, MemoryStore(), instance_stop.Params(instance_id=instance), finished, finished)

        if way == "twice":
            await actions_succeed_idempotently(INSTANCE_STOP, fresh)
        else:
            assert await death_at_every_point(INSTANCE_STOP, fresh) == 3 * 3


UNDOING = (Point.BEFORE_UNDO, Point.AFTER_UNDO_EFFECT, Point.AFTER_UNDO)


def starts(rack: Plant, instance: str, disk: HasVolume) -> Fresh:
    """Trials that start the instance; one that started is asked for its disk and stopped."""

    async def fresh() -> Trial:
        if rack.run(active_vmm, instance) is not None:
            await stop(rack, instance)
        params = instance_start.Params(instance_id=instance, vmm_id=rack.id())

        async def finished() -> None:
            assert rack.run(active_vmm, instance).state == "running"
            async with guest(rack, instance, disk) as client:
                await client.read(0, 512)
            await stop(rack, instance)
            await clean()

        async def clean() -> None:
            await require_stopped(rack, instance)

        return Trial(rack.world, MemoryStore(), params, finished, clean)

    return fresh


async def require_stopped(rack: Plant, instance: str) -> None:
    """No row says that it runs, and no host runs it."""
    assert rack.run(active_vmm, instance) is None
    assert rack.count(schema.vmm, schema.vmm.c.time_deleted.is_(None)) == 0
    assert not [each for host in rack.hosts.values() for each in host.describe().instances if each.disks]
    assert rack.findings() == []


def attach(rack: Plant, instance: str, disk_id: str) -> int:
    return int(rack.run(disk_attach, instance, disk_id, rack.now()))


def disk_row(rack: Plant, project_id: str | None = None) -> str:
    """A detached disk of rows alone, with an empty volume."""
    disk_id, volume_id, now = rack.id(), rack.id(), rack.now()
    new = NewDisk(disk_id, project_id or rack.project_id, disk_id, "", EXTENT_BYTES, 512, volume_id)
    rack.run(volume_create, volume_id, recorded.blank(UUID(volume_id)), now)
    rack.run(disk_insert, new, now)
    rack.run(disk_move, disk_id, Move.CREATED, now)
    return disk_id
