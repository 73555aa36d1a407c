"""region-snapshot-replacement-step: one volume reads from the successor, and who has it is told (§9.6, §3.6)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace as replace_fields
from pathlib import Path
from typing import Any
from uuid import UUID

from disks_rig import read, standing
from frozen_rig import refused
from guests_rig import guest, make_instance, start, stop
from nexus_rig import plant
from read_only_rig import (
    HOLDS,
    Nexus,
    Scene,
    State,
    StepState,
    asks,
    finish_test,
    nexus_of,
    request,
    scene,
    step,
    steps,
    to_running,
    users,
    wait_for_all_replacements,
)
from region_replacement_rig import own_regions
from saga_scaffold import (
    AFTER_EFFECTS,
    Fresh,
    Trial,
    action_failure_can_unwind_idempotently,
    actions_succeed_idempotently,
    death_at_every_point,
)
from test_saga_snapshot_replacement_start import document, targets_now
from users_rig import SIZE_BYTES, delete_disk, make_disk, run

from nexus.db import Database, schema
from nexus.db.schema import VmmState
from nexus.replacement.affected import step_make
from nexus.replacement.notice import NOTICES, RUNS, Notice, Reader, notice
from nexus.replacement.region import RequestResult, region_replacement_request
from nexus.replacement.step import InsertStepResult
from nexus.saga import MemoryStore
from nexus.sagas.region_snapshot_replacement_step import REGION_SNAPSHOT_REPLACEMENT_STEP, Params
from nexus.volumes import (
    FairLocks,
    ReadOnlyCopy,
    ReadOnlyRegion,
    RepairLocks,
    VolumeReplaceResult,
    volume_checkout,
    volume_create,
    volume_get,
    walks,
)
from nexus.volumes.repair_lock import waiters

SAGA = REGION_SNAPSHOT_REPLACEMENT_STEP


def make_step(found: Scene, request_id: str) -> str:
    """A step for the disk that was made of the snapshot."""
    rack = found.rack
    made = rack.run(step_make, rack.world.locks, request(rack, request_id), found.copy.volume_id, rack.now())
    assert made is not None and made[1] is InsertStepResult.INSERTED
    return str(made[0])


@asynccontextmanager
async def at_a_step(
    directory: Path, database: Database, *, checked: bool = True, locks: RepairLocks | None = None
) -> AsyncIterator[tuple[Scene, Nexus, str]]:
    """The request runs, and a step for the copy is made; its id."""
    async with plant(directory, database, checked=checked) as rack:
        rack.world = replace_fields(rack.world, locks=locks or rack.world.locks)
        found = await scene(rack)
        async with nexus_of(rack) as nexus:
            request_id = asks(rack, found.targets[0])
            await to_running(rack, nexus, request_id)
            yield found, nexus, make_step(found, request_id)


async def nothing_left(found: Scene) -> None:
    await found.delete_copy()
    await found.delete_snapshot()
    await found.delete_disk()
    await found.rack.require_empty()


# -- who is told ------------------------------------------------------------------------------------------------------


def test_every_reader_is_decided_about() -> None:
    assert set(NOTICES) == set(Reader)
    done, deleted = VolumeReplaceResult.DONE, VolumeReplaceResult.EXISTING_VOLUME_SOFT_DELETED
    assert {each: notice(done, each) for each in Reader} == NOTICES
    assert {notice(deleted, each) for each in Reader} == {Notice.NOTHING}, "R21"
    assert notice(VolumeReplaceResult.ALREADY_HAPPENED, Reader.GUEST) is Notice.TELL_HOST


# -- the scaffold -----------------------------------------------------------------------------------------------------


def trials(found: Scene, nexus: Nexus) -> Fresh:
    """Each on a step that nobody has begun with; what is undone leaves the step, and its volume's document, as they
    were. What is finished is driven to the request's end, and the next trial is for another target."""
    rack = found.rack

    async def waiting_step() -> str:
        for each in steps(rack):
            if each.state is StepState.REQUESTED:
                return each.id
        request_id = asks(rack, targets_now(found)[0])
        await to_running(rack, nexus, request_id)
        return make_step(found, request_id)

    async def fresh() -> Trial:
        step_id = await waiting_step()
        before, text = await standing(rack), document(rack, found.copy.volume_id)
        request_id = step(rack, step_id).request_id

        async def finished() -> None:
            row = step(rack, step_id)
            assert (row.state, row.operating_saga_id) == (StepState.COMPLETE, None)
            assert users(rack, request(rack, request_id).old) == [row.old_snapshot_volume_id]
            await finish_test(rack, nexus, request_id)

        async def clean() -> None:
            row = step(rack, step_id)
            assert (row.state, row.operating_saga_id) == (StepState.REQUESTED, None)
            assert row.old_snapshot_volume_id is None and document(rack, found.copy.volume_id) == text
            assert await standing(rack) == before

        return Trial(rack.world, MemoryStore(), Params(step_id=step_id), finished, clean)

    return fresh


async def test_scaffold_of_the_step_saga(tmp_path: Path, in_memory: Database) -> None:
    async with at_a_step(tmp_path, in_memory, checked=False) as (found, nexus, _):
        fresh = trials(found, nexus)
        await action_failure_can_unwind_idempotently(SAGA, fresh)
        last = "UPDATE_STEP_RECORD"
        assert await death_at_every_point(SAGA, fresh, fail_at=last, points=AFTER_EFFECTS) == 9
        await actions_succeed_idempotently(SAGA, fresh)
        assert await death_at_every_point(SAGA, fresh, points=AFTER_EFFECTS) == 6
        assert await read(found.rack, found.copy) == HOLDS
        await nothing_left(found)


# -- with who reads ---------------------------------------------------------------------------------------------------


async def test_a_guest_that_runs_reads_from_the_successor(tmp_path: Path, database: Database) -> None:
    """The old copies are destroyed one by one under a guest that goes on reading."""
    async with at_a_step(tmp_path, database) as (found, nexus, _):
        rack = found.rack
        instance_id = await make_instance(rack, found.copy)
        vmm_id = await start(rack, instance_id)
        text = document(rack, found.copy.volume_id)
        async with guest(rack, instance_id, found.copy) as client:
            await wait_for_all_replacements(rack, nexus)
            for target in found.targets[1:]:
                asks(rack, target)
                await wait_for_all_replacements(rack, nexus)
            assert await client.read(0, SIZE_BYTES) == HOLDS
        assert rack.count(schema.region_snapshot) == 0 and document(rack, found.copy.volume_id) != text
        active = rack.run(lambda c: c.execute(schema.vmm.select()).one())
        assert (active.id, active.state) == (vmm_id, VmmState.RUNNING)
        await stop(rack, instance_id)
        assert rack.findings() == []


async def test_a_guest_that_starts_cannot_be_told_and_the_step_is_tried_again(
    tmp_path: Path, in_memory: Database
) -> None:
    """W30: what the original leaves here is a reference that nobody ever lets go of."""
    async with at_a_step(tmp_path, in_memory) as (found, nexus, step_id):
        rack = found.rack
        instance_id = await make_instance(rack, found.copy)
        vmm_id = await start(rack, instance_id)
        before, text = await standing(rack), document(rack, found.copy.volume_id)
        for state in sorted(set(VmmState) - RUNS - {VmmState.DESTROYED, VmmState.SAGA_UNWOUND}):
            rack.set(schema.vmm, vmm_id, state=state)
            with refused("unavailable", match=f"is {state.value}, and cannot be told"):
                await run(rack, SAGA, Params(step_id=step_id))
            assert step(rack, step_id).state is StepState.REQUESTED
        assert await standing(rack) == before and document(rack, found.copy.volume_id) == text
        rack.set(schema.vmm, vmm_id, state=VmmState.RUNNING)
        await finish_test(rack, nexus, step(rack, step_id).request_id)
        await stop(rack, instance_id)


async def test_a_step_for_a_guest_that_starts_lets_others_go_first(tmp_path: Path, in_memory: Database) -> None:
    """The guest may be waiting for a region that is lost, the region's replacement for the volume's lock, and the step,
    which has it, for the guest."""
    async with at_a_step(tmp_path, in_memory, locks=FairLocks()) as (found, nexus, step_id):
        rack = found.rack
        vmm_id = await start(rack, await make_instance(rack, found.copy))
        rack.set(schema.vmm, vmm_id, state=VmmState.STARTING)
        assert (await nexus.does(nexus.step))["step_set_volume_deleted_ok"] == [], "nobody waits"
        region = own_regions(rack, found.copy.volume_id)[0]
        asked = (rack.world.locks, region.region_id)
        assert rack.run(region_replacement_request, *asked, rack.now())[1] is RequestResult.LOCK_HELD
        (given_up,) = (await nexus.does(nexus.step))["step_set_volume_deleted_ok"]
        assert "others wait" in given_up and step(rack, step_id).state is StepState.VOLUME_DELETED
        assert rack.run(region_replacement_request, *asked, rack.now())[1] is RequestResult.MADE
        assert (await nexus.does(nexus.step))["step_records_created_ok"] == []
        assert len(rack.run(waiters, found.copy.volume_id)) == 1


async def test_a_guest_on_a_sled_that_is_gone_is_not_waited_for(
    tmp_path: Path, in_memory: Database, expect_log: Callable[..., Any]
) -> None:
    """Its row says that it runs, and nobody will ever say otherwise."""
    expect_log("connection ended")  # here the guest lives on, and loses what it was not told of
    async with at_a_step(tmp_path, in_memory) as (found, nexus, step_id):
        rack = found.rack
        instance_id = await make_instance(rack, found.copy)
        elsewhere = rack.sled_of[found.targets[0].dataset_id]
        await start(rack, instance_id, elsewhere)
        rack.set(schema.sled, elsewhere, sled_policy="expunged")
        await finish_test(rack, nexus, step(rack, step_id).request_id)
        assert step(rack, step_id).state is StepState.VOLUME_DELETED


async def test_an_export_at_a_pantry_reads_from_the_successor(tmp_path: Path, in_memory: Database) -> None:
    """R45: a copy of the snapshot is attached under the id of its volume, and told there."""
    async with plant(tmp_path, in_memory) as rack:
        found = await scene(rack)
        volume_id, pantry = rack.id(), await rack.world.pantries.choose("")
        copied = rack.run(volume_checkout, found.snapshot.volume_id, ReadOnlyCopy(), rack.now()).request
        rack.run(volume_create, volume_id, walks.randomized_ids(copied, lambda: UUID(rack.id())), rack.now())
        await rack.world.pantries.attach(pantry, volume_id, rack.run(volume_get, volume_id).request)
        export: dict[str, Any] = {"resource_id": found.snapshot.id, "resource_type": "snapshot", "generation": 1}
        where = {"pantry_ip": pantry.ip, "pantry_port": pantry.port, "volume_id": volume_id, "resource_deleted": False}
        rack.add(schema.user_data_export, state="live", **export, **where)
        async with nexus_of(rack) as nexus:
            for target in found.targets:
                request_id = asks(rack, target)
                await wait_for_all_replacements(rack, nexus)
                assert volume_id in users(rack, ReadOnlyRegion(request(rack, request_id).new_region_id or ""))
        assert rack.count(schema.region_snapshot) == 0, "what it was attached with is destroyed"
        assert await rack.world.pantries.bulk_read(pantry, volume_id, 0, SIZE_BYTES) == HOLDS
        await rack.world.pantries.detach(pantry, volume_id)


# -- the task ---------------------------------------------------------------------------------------------------------


async def test_region_snapshot_replacement_step_task(tmp_path: Path, in_memory: Database) -> None:
    """A step for each of the volumes, that are begun with at once; the next activation cleans up."""
    async with plant(tmp_path, in_memory) as rack:
        found = await scene(rack)
        another = await make_disk(rack, found.snapshot, name="another")
        async with nexus_of(rack) as nexus:
            request_id = asks(rack, found.targets[0])
            assert not any((await nexus.does(nexus.step)).values()), "it does not run yet (R9)"
            await to_running(rack, nexus, request_id)
            status = await nexus.step.activate()
            assert [len(status[name]) for name in sorted(status)] == [0, 0, 2, 2, 0], sorted(status)
            await nexus.idle()
            assert {each.state for each in steps(rack)} == {StepState.COMPLETE}
            assert {each.volume_id for each in steps(rack)} == {found.copy.volume_id, another.volume_id}
            status = await nexus.does(nexus.step)
            assert [len(status[name]) for name in sorted(status)] == [0, 2, 0, 0, 0], sorted(status)
            assert {each.state for each in steps(rack)} == {StepState.VOLUME_DELETED}
            await finish_test(rack, nexus, request_id)
        assert request(rack, request_id).state is State.COMPLETE
        await delete_disk(rack, another)
        await nothing_left(found)
