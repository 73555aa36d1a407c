"""instance-start and instance-stop on real hosts, and which disks an instance has (nexus.md §5.4, §1.3)."""

from __future__ import annotations

from pathlib import Path

import pytest
from guests_rig import guest, make_instance, start, stop
from nexus_rig import plant
from users_rig import delete_disk, make_disk

from nexus.db import Database, schema
from nexus.objects.instances import (
    active_vmm,
    active_vmm_of_disk,
    disk_detach,
    instance_delete,
)
from nexus.saga import ActionFailed, SagaFailed


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
