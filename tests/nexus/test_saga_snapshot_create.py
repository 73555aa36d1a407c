"""snapshot-create on real agents with real bytes (nexus.md §3.13; catalogue §9.6, §9.4 snapshots.rs)."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
from frozen_rig import (
    agent_digests,
    asked,
    frozen_bytes,
    ledger,
    locks,
    made,
    refused,
    regions_below,
    require_only,
    snapshots_held,
    state_of,
    take,
    trials,
    written,
)
from nexus_rig import EXTENT_BYTES, plant, world_of
from saga_scaffold import (
    Meanwhile,
    action_failure_can_unwind,
    action_failure_can_unwind_idempotently,
    actions_succeed_idempotently,
    death_at_every_point,
)
from sqlalchemy import select, update
from users_rig import SIZE_BYTES, delete_disk, delete_snapshot, make_disk, make_snapshot, run

from crucible_emu.agent.failures import Failing, Failures
from crucible_emu.region import Region
from crucible_emu.region.snapshot import take_snapshot
from nexus.db import Database, schema
from nexus.objects.disks import disk_get
from nexus.objects.provisioning import provisioned_bytes
from nexus.objects.snapshots import snapshot_get, snapshot_insert
from nexus.saga import ActionFailed
from nexus.saga.dag import Dag, Vertex
from nexus.saga.hooks import Point
from nexus.sagas import remove_read_only_parent
from nexus.sagas.remove_read_only_parent import REMOVE_READ_ONLY_PARENT
from nexus.sagas.snapshot_create import SNAPSHOT_CREATE_DETACHED
from nexus.services import Connections

CRUCIBLE = schema.disk_type_crucible


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


async def test_no_key_is_written_down(tmp_path: Path, in_memory: Database) -> None:
    """Neither in the saga's log nor in its outputs."""
    async with plant(tmp_path, in_memory) as rack:
        disk = await make_disk(rack)
        outputs = await run(rack, SNAPSHOT_CREATE_DETACHED, asked(rack, disk))
        documents = rack.run(lambda c: list(c.execute(select(schema.volume.c.data)).scalars()))
        keys = {part["opts"]["key"] for each in documents for part in json.loads(each)["sub_volumes"]}
        assert len(keys) == 2, "the snapshot has the key of its disk, the empty volume one of its own"
        assert not any(key in json.dumps(dict(outputs)) for key in keys)


async def test_cannot_snapshot_read_only_disk(tmp_path: Path, in_memory: Database) -> None:
    async with plant(tmp_path, in_memory) as rack:
        disk = await make_disk(rack)
        rack.run(
            lambda c: c.execute(update(CRUCIBLE).where(CRUCIBLE.c.disk_id == disk.id).values(read_only=True)) and None
        )
        with refused("invalid_request", "read-only"):
            await take(rack, disk)
        await require_only(rack, disk)


async def test_cannot_snapshot_if_no_space(tmp_path: Path, in_memory: Database) -> None:
    async with plant(tmp_path, in_memory) as rack:
        disk = await make_disk(rack)
        for dataset_id in rack.agents:
            rack.set(schema.crucible_dataset, dataset_id, no_provision=True)
        with refused("capacity"):
            await take(rack, disk)
        await require_only(rack, disk)


async def test_unwinding_snapshot_destroys_what_it_was_the_last_to_count_on(
    tmp_path: Path, in_memory: Database
) -> None:
    """W39: what the disk was made of is deleted, and the disk loses its parent; then the saga fails."""
    async with plant(tmp_path, in_memory) as rack:
        original = await make_disk(rack)
        source = await make_snapshot(rack, original)
        disk = await make_disk(rack, source)

        async def take_the_rest_away() -> None:
            await delete_disk(rack, original)
            await delete_snapshot(rack, source)
            params = remove_read_only_parent.Params(volume_id=disk.volume_id, temporary_id=rack.id())
            await run(rack, REMOVE_READ_ONLY_PARENT, params)
            assert rack.count(schema.region_snapshot, ~schema.region_snapshot.c.deleting) == 6

        meanwhile = Meanwhile("FINALIZE_SNAPSHOT_RECORD", take_the_rest_away, fails="FINALIZE_SNAPSHOT_RECORD")
        with refused("failed", "on purpose"):
            await run(rack, SNAPSHOT_CREATE_DETACHED, asked(rack, disk), perform=meanwhile)
        assert meanwhile.done
        await delete_disk(rack, disk)
        await rack.require_empty()


async def test_lock_of_a_replacement_is_respected(tmp_path: Path, in_memory: Database) -> None:
    """R32: while somebody changes which regions the disk has, none of them is frozen."""
    async with plant(tmp_path, in_memory) as rack:
        disk = await make_disk(rack)
        replacement = rack.id()
        rack.run(rack.world.locks.volume_repair_insert, disk.volume_id, replacement, rack.now())
        with refused("conflict", "lock"):
            await take(rack, disk)
        rack.run(rack.world.locks.volume_repair_delete, disk.volume_id, replacement)
        await require_only(rack, disk)


async def test_other_snapshot_of_that_name_is_refused(tmp_path: Path, in_memory: Database) -> None:
    """``test_create_snapshot_record_idempotent``: the same row again is the same; another under its name is not."""
    async with plant(tmp_path, in_memory) as rack:
        disk = await make_disk(rack)
        snapshot = await take(rack, disk)
        with refused("object_already_exists"):
            await take(rack, disk)
        there = rack.run(snapshot_get, snapshot.id)
        rack.run(snapshot_insert, there, rack.now())
        assert rack.run(snapshot_get, snapshot.id) == there
        await delete_snapshot(rack, snapshot)
        with pytest.raises(ActionFailed, match="deleted"):
            rack.run(snapshot_insert, there, rack.now())
        await delete_snapshot(rack, await take(rack, disk))
        await require_only(rack, disk)


class RefusesThirdRun(httpx2.AsyncBaseTransport):
    """The network, on which the third agent that is asked to serve a snapshot does not."""

    def __init__(self, network: httpx2.AsyncBaseTransport) -> None:
        self.network = network
        self.asked: list[int] = []

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        port = request.url.port or 0
        if request.method == "POST" and request.url.path.endswith("/run"):
            if port not in self.asked:
                self.asked.append(port)
            if len(self.asked) == 3 and port == self.asked[2]:
                return httpx2.Response(500, json={"request_id": "", "message": "it does not run", "error_code": None})
        return await self.network.handle_async_request(request)


async def test_snapshot_unwind(tmp_path: Path, in_memory: Database) -> None:
    """Two run, the third does not: nothing runs afterwards, and nothing is left to run."""
    async with plant(tmp_path, in_memory) as rack:
        disk = await make_disk(rack)
        async with Connections(transport=RefusesThirdRun(rack.network)) as connections:
            sound, rack.world = rack.world, world_of(rack, connections)
            with refused("refused", "it does not run"):
                await take(rack, disk)
            rack.world = sound
        await require_only(rack, disk)
        await delete_snapshot(rack, await take(rack, disk))
        await require_only(rack, disk)


async def test_snapshot_create_saga_unwinds_correctly(
    tmp_path: Path, in_memory: Database, expect_log: Callable[..., Any]
) -> None:
    """The third agent cannot make its region of the empty volume."""
    async with plant(tmp_path, in_memory, sleds=3) as rack:
        disk = await make_disk(rack)
        third = list(rack.agents.values())[2]
        third.options = replace(third.options, failures=Failures(frozenset({Failing.CREATE})))
        expect_log("region not made")
        with refused("refused", "failed"):
            await take(rack, disk)
        await require_only(rack, disk)
        await delete_disk(rack, disk)
        await rack.require_empty()


async def test_rows_of_region_snapshots_go_last(tmp_path: Path, in_memory: Database) -> None:
    """W43: from the moment in which its agent may give its address away nobody finds a region snapshot there; and as
    long as an agent holds one, its row keeps the region underneath."""
    async with plant(tmp_path, in_memory) as rack:
        disk = await make_disk(rack)
        seen: list[tuple[int, int, int]] = []

        async def perform(work: Any, vertex: Vertex, context: Any) -> Any:
            if work is vertex.action and vertex.label == "CREATE_VOLUME_RECORD":
                raise ActionFailed("no volume", "refused")
            result = await work(context)
            if vertex.label == "START_RUNNING_SNAPSHOT" or work is vertex.undo:
                deleting = rack.count(schema.region_snapshot, schema.region_snapshot.c.deleting)
                seen.append((rack.count(schema.region_snapshot), deleting, len(await snapshots_held(rack))))
            return result

        with refused("refused", "no volume"):
            await run(rack, SNAPSHOT_CREATE_DETACHED, asked(rack, disk), perform=perform)
        assert list(dict.fromkeys(seen)) == [(3, 0, 3), (3, 3, 3), (0, 0, 0)]
        await require_only(rack, disk)


async def test_copies_that_differ_are_no_snapshot(tmp_path: Path, in_memory: Database) -> None:
    """One replica was frozen by an attempt that died, the others by the next: the ledger says so, and all is undone."""
    async with plant(tmp_path, in_memory) as rack:
        disk = await make_disk(rack)
        params = asked(rack, disk)
        early = regions_below(rack, disk)[0]
        path = rack.agents[early.dataset_id].datasets.path(early.region_id)
        assert path is not None
        with Region.open(path, read_only=True) as region:
            take_snapshot(path, params.snapshot_id, region.definition)
        await written(rack, disk, EXTENT_BYTES, b"later" * 100 + bytes(12))
        with refused("refused", f"extent 1 of snapshot {params.snapshot_id} of region {early.region_id} differs"):
            await run(rack, SNAPSHOT_CREATE_DETACHED, params)
        await require_only(rack, disk)


@pytest.mark.parametrize("way", ["twice", "unwind", "death", "death in unwinding"])
async def test_detached_scaffold(tmp_path: Path, in_memory: Database, way: str) -> None:
    """§9.1, and death at every hook point that leaves a state of its own: its nodes are in a row, so before a node it
    is as after the record of the one before. (Nodes for regions die in the tests of disk-create.)"""
    saga = SNAPSHOT_CREATE_DETACHED
    async with plant(tmp_path, in_memory) as rack:
        disk = await make_disk(rack)
        fresh = trials(rack, disk)
        match way:
            case "twice":
                await actions_succeed_idempotently(saga, fresh)
            case "unwind":
                await action_failure_can_unwind(saga, fresh)
                await action_failure_can_unwind_idempotently(saga, fresh)
            case "death":
                acting = {label for label in OWN if Dag.of(saga).vertices[label].action is not None}
                points = (Point.AFTER_EFFECT, Point.AFTER_RECORD)
                tried = await death_at_every_point(saga, fresh, only=acting.__contains__, points=points)
                assert tried == 2 * len(acting)
            case "death in unwinding":
                undone = {label for label in OWN if Dag.of(saga).vertices[label].undo is not None}
                tried = await death_at_every_point(
                    saga,
                    fresh,
                    fail_at="RELEASE_VOLUME_LOCK",
                    only=undone.__contains__,
                    points=(Point.AFTER_UNDO_EFFECT,),
                )
                assert tried == len(undone)


OWN = [label for label in Dag.of(SNAPSHOT_CREATE_DETACHED).labels if not label.startswith("REGIONS_")]
