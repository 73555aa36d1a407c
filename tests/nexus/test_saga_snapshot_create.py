"""snapshot-create on real agents with real bytes (nexus.md §3.13; catalogue §9.6, §9.4 snapshots.rs)."""

from __future__ import annotations

from pathlib import Path

from frozen_rig import agent_digests, asked, frozen_bytes, ledger, locks, made, state_of, trials, written
from nexus_rig import EXTENT_BYTES, plant
from saga_scaffold import (
    action_failure_can_unwind,
    action_failure_can_unwind_idempotently,
    actions_succeed_idempotently,
    death_at_every_point,
)
from users_rig import SIZE_BYTES, delete_disk, delete_snapshot, make_disk, run

from nexus.db import Database, schema
from nexus.objects.disks import disk_get
from nexus.objects.provisioning import provisioned_bytes
from nexus.sagas.snapshot_create import SNAPSHOT_CREATE_DETACHED


async def test_snapshot_without_instance(tmp_path: Path, database: Database) -> None:
    """The pantry's way. What was frozen stays when the disk is written again; the ledger says what each agent says;
    provisioning goes up and down (``test_delete_snapshot``); nothing is left."""
    async with plant(tmp_path, database) as rack:
        disk = await make_disk(rack)
        first = b"first" * 100 + bytes(12)
        await written(rack, disk, 0, first)
        params = asked(rack, disk)
        await run(rack, SNAPSHOT_CREATE_DETACHED, params)
        snapshot = made(params)
        assert state_of(rack, snapshot.id) == "ready"
        assert (rack.run(disk_get, disk.id).state, locks(rack)) == ("detached", 0)
        assert rack.run(provisioned_bytes, rack.project_id) == 2 * SIZE_BYTES
        await written(rack, disk, 0, b"later" * 100 + bytes(12))
        assert await frozen_bytes(rack, snapshot.volume_id) == first + bytes(SIZE_BYTES - len(first))
        said = ledger(rack, snapshot.id)
        assert said.extent_size_bytes == EXTENT_BYTES
        assert await agent_digests(rack, disk, snapshot.id) == [said.extents] * 3
        assert rack.count(schema.region_snapshot) == 3
        await delete_snapshot(rack, snapshot)
        assert rack.run(provisioned_bytes, rack.project_id) == SIZE_BYTES
        await delete_disk(rack, disk)
        await rack.require_empty()


async def test_detached_actions_succeed_idempotently(tmp_path: Path, in_memory: Database) -> None:
    async with plant(tmp_path, in_memory) as rack:
        disk = await make_disk(rack)
        await actions_succeed_idempotently(SNAPSHOT_CREATE_DETACHED, trials(rack, disk))


async def test_detached_action_failure_can_unwind(tmp_path: Path, in_memory: Database) -> None:
    async with plant(tmp_path, in_memory) as rack:
        disk = await make_disk(rack)
        await action_failure_can_unwind(SNAPSHOT_CREATE_DETACHED, trials(rack, disk))
        await action_failure_can_unwind_idempotently(SNAPSHOT_CREATE_DETACHED, trials(rack, disk))


async def test_detached_death_at_every_point(tmp_path: Path, in_memory: Database) -> None:
    async with plant(tmp_path, in_memory) as rack:
        disk = await make_disk(rack)
        print(await death_at_every_point(SNAPSHOT_CREATE_DETACHED, trials(rack, disk)))
        print(await death_at_every_point(SNAPSHOT_CREATE_DETACHED, trials(rack, disk), fail_at="RELEASE_VOLUME_LOCK"))
