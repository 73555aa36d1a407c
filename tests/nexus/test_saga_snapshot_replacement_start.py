"""region-snapshot-replacement-start: the clone is made, proved and swapped in, or nothing is left of it (§9.6)."""

from __future__ import annotations

from pathlib import Path

from disks_rig import standing
from frozen_rig import ledger
from nexus_rig import Plant, plant
from read_only_rig import (
    Scene,
    State,
    asks,
    copies,
    nexus_of,
    request,
    scene,
    there,
    users,
    wait_for_all_replacements,
)
from saga_scaffold import (
    AFTER_EFFECTS,
    Fresh,
    Trial,
    action_failure_can_unwind_idempotently,
    actions_succeed_idempotently,
    death_at_every_point,
)
from users_rig import run

from nexus.db import Database, schema
from nexus.saga import MemoryStore
from nexus.sagas.region_snapshot_replacement_start import REGION_SNAPSHOT_REPLACEMENT_START, Params
from nexus.volumes import ReadOnlyRegion, recorded, volume_get, walks
from nexus.volumes.resolution import Resource, read_only_target_to_resource

SAGA = REGION_SNAPSHOT_REPLACEMENT_START


def document(rack: Plant, volume_id: str) -> str:
    return recorded.write(rack.run(volume_get, volume_id).request)


def targets_now(found: Scene) -> list[Resource]:
    """What the snapshot's volume reads from, in the order of its document."""
    rack = found.rack
    addresses = walks.read_only_targets(rack.run(volume_get, found.snapshot.volume_id).request)
    return [rack.run(read_only_target_to_resource, each) for each in addresses]


def give_up(rack: Plant, request_id: str) -> None:
    """End the request by hand."""
    lock, requests = schema.volume_repair, schema.region_snapshot_replacement
    rack.run(lambda c: c.execute(lock.delete().where(lock.c.repair_id == request_id)) and None)
    rack.set(requests, request_id, replacement_state="complete")


def trials(found: Scene) -> Fresh:
    """Each on another target of the snapshot. What is finished is driven to the request's end; of what is undone
    nothing is left: not a row, a byte at an agent, or a byte of the snapshot's document."""
    rack = found.rack

    async def fresh() -> Trial:
        before, text = await standing(rack), document(rack, found.snapshot.volume_id)
        request_id = asks(rack, targets_now(found)[0])

        async def finished() -> None:
            assert request(rack, request_id).state is State.REPLACEMENT_DONE
            async with nexus_of(rack) as nexus:
                await wait_for_all_replacements(rack, nexus)
            assert set((await copies(rack, found.snapshot)).values()) == {ledger(rack, found.snapshot.id).extents}

        async def clean() -> None:
            row = request(rack, request_id)
            assert (row.state, row.new_region_id, row.operating_saga_id) == (State.REQUESTED, None, None)
            assert document(rack, found.snapshot.volume_id) == text
            give_up(rack, request_id)
            assert await standing(rack) == before

        return Trial(rack.world, MemoryStore(), Params(request_id=request_id), finished, clean)

    return fresh


async def test_region_snapshot_replacement_start_saga(tmp_path: Path, database: Database) -> None:
    """The clone is in the place of the lost copy, the stash has what was there, the holder counts on the clone."""
    async with plant(tmp_path, database) as rack:
        found = await scene(rack)
        old = found.targets[1]
        before = targets_now(found)
        request_id = asks(rack, old)
        await run(rack, SAGA, Params(request_id=request_id))
        row = request(rack, request_id)
        assert (row.state, row.operating_saga_id) == (State.REPLACEMENT_DONE, None)
        clone = ReadOnlyRegion(row.new_region_id or "")
        assert targets_now(found) == [clone if each == old else each for each in before]
        assert users(rack, old) == sorted([str(row.old_snapshot_volume_id), found.copy.volume_id])
        assert users(rack, clone) == sorted([str(row.new_region_volume_id), found.snapshot.volume_id])
        sound = ledger(rack, found.snapshot.id).extents
        assert (await copies(rack, found.snapshot))[str(clone)] == sound
        placed = {each.name: each.dataset for each in there(rack, found.snapshot)}
        assert len({rack.sled_of[each.id] for each in placed.values()}) == 4, "on a sled of its own (R38)"
        assert rack.findings() == []


async def test_scaffold_of_the_start_saga(tmp_path: Path, in_memory: Database) -> None:
    """Every action twice; every action fails and every undo runs twice; dead after every effect, of undos too. The
    invariants are looked at after each run, which costs half of what looking after each transaction does."""
    async with plant(tmp_path, in_memory, checked=False) as rack:
        fresh = trials(await scene(rack))
        await actions_succeed_idempotently(SAGA, fresh)
        await action_failure_can_unwind_idempotently(SAGA, fresh)
        assert await death_at_every_point(SAGA, fresh, points=AFTER_EFFECTS) == 12
        last = "UPDATE_REQUEST_RECORD"
        assert await death_at_every_point(SAGA, fresh, fail_at=last, points=AFTER_EFFECTS) >= 12
