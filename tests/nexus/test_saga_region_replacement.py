"""The sagas of a region replacement by themselves (nexus.md §9.6), and what may happen in their midst (§11.4)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from disks_rig import create
from nexus_rig import Plant, plant
from region_replacement_rig import (
    ask_for,
    expect_breaking,
    own_regions,
    replacing,
    requests,
    running_request,
    states,
)
from saga_scaffold import (
    AFTER_EFFECTS,
    Fresh,
    Trial,
    action_failure_can_unwind,
    action_failure_can_unwind_idempotently,
    actions_succeed_idempotently,
    death_at_every_point,
)
from sqlalchemy import func, select
from users_rig import HasVolume, delete_disk, finish_deletions, refusing, run

from crucible_emu.agent.failures import Failing, Failures
from nexus.db import Database, schema
from nexus.replacement.machine import move
from nexus.replacement.region import (
    REGION_REPLACEMENT,
    RegionEdge,
    RegionReplacement,
    region_replacement_get,
    step_newest,
)
from nexus.saga import ActionFailed, MemoryStore, SagaFailed
from nexus.sagas import region_replacement_drive, region_replacement_finish, region_replacement_start
from nexus.sagas.region_replacement_drive import REGION_REPLACEMENT_DRIVE
from nexus.sagas.region_replacement_finish import REGION_REPLACEMENT_FINISH
from nexus.sagas.region_replacement_start import REGION_REPLACEMENT_START, new_region_id, stash_id
from nexus.volumes import Deletion, volume_get, volume_state, walks


@pytest.fixture(autouse=True)
def copies_break(expect_log: Any) -> None:
    expect_breaking(expect_log)


def document(rack: Plant, volume_id: str, *, gen: bool = False) -> Any:
    """The volume's document, with all generations zero unless they matter."""
    found = rack.run(volume_get, volume_id).request.model_dump(mode="json")
    if not gen:
        for part in found["sub_volumes"]:
            part["gen"] = 0
    return found


async def remove(rack: Plant, disk: HasVolume) -> None:
    """The disk is deleted, its requests come to their ends, and nothing is left."""
    await delete_disk(rack, disk)
    async with replacing(rack) as nexus:
        await nexus.to_complete()
    await finish_deletions(rack)
    await rack.require_empty()


# -- start ------------------------------------------------------------------------------------------------------------


def start_params(rack: Plant, request_id: str) -> region_replacement_start.Params:
    row = rack.run(region_replacement_get, request_id)
    return region_replacement_start.Params(request_id=row.id, volume_id=row.volume_id, old_region_id=row.old_region_id)


class Tried:
    """The disk and the request that trials are made with, one after the other, until a saga has used them up."""

    def __init__(self, rack: Plant) -> None:
        self.rack = rack
        self.disk: HasVolume | None = None
        self.request_id = ""

    async def given(self) -> tuple[HasVolume, str]:
        if self.disk is None:
            self.disk = await create(self.rack)
            self.request_id = ask_for(self.rack, own_regions(self.rack, self.disk.volume_id)[0])
        return self.disk, self.request_id

    async def used_up(self) -> None:
        if self.disk is not None:
            disk, self.disk = self.disk, None
            await remove(self.rack, disk)


def start_trials(rack: Plant) -> Fresh:
    tried = Tried(rack)

    async def fresh() -> Trial:
        disk, request_id = await tried.given()
        old = own_regions(rack, disk.volume_id)[0]
        before = document(rack, disk.volume_id)

        async def clean() -> None:
            """§9.6: everything is as it was, and the request may be tried again."""
            row = rack.run(region_replacement_get, request_id)
            assert (row.state, row.new_region_id, row.operating_saga_id) == ("requested", None, None)
            assert document(rack, disk.volume_id) == before
            assert own_regions(rack, disk.volume_id)[0] == old
            used = schema.crucible_dataset.c.size_used
            assert rack.run(lambda c: c.execute(select(func.count()).where(used != 0)).scalar_one()) == 3
            assert rack.findings() == [] and len(await rack.held()) == 3

        async def finished() -> None:
            row = rack.run(region_replacement_get, request_id)
            assert (row.state, row.operating_saga_id) == ("running", None)
            assert own_regions(rack, disk.volume_id)[0].region_id == row.new_region_id
            assert [each.region_id for each in own_regions(rack, row.old_region_volume_id)] == [old.region_id]
            assert rack.findings() == []
            await tried.used_up()

        return Trial(rack.world, MemoryStore(), start_params(rack, request_id), finished, clean, saga_id=rack.id())

    return fresh


async def test_region_replacement_start_saga(tmp_path: Path, in_memory: Database) -> None:
    """The documents differ in one address; ids and keys stay; the stash owns the old region."""
    async with plant(tmp_path, in_memory) as rack:
        disk = await create(rack)
        before = document(rack, disk.volume_id, gen=True)
        old = rack.run(lambda c: walks.read_write_targets(volume_get(c, disk.volume_id).request))  # type: ignore[union-attr]
        row = await running_request(rack, disk)
        new = rack.run(lambda c: walks.read_write_targets(volume_get(c, disk.volume_id).request))  # type: ignore[union-attr]
        assert new[0] != old[0] and new[1:] == old[1:]
        after = document(rack, disk.volume_id, gen=True)
        assert after["sub_volumes"][0]["gen"] == before["sub_volumes"][0]["gen"] + 1
        stash = own_regions(rack, row.old_region_volume_id or "")
        assert [each.region_id for each in stash] == [row.old_region_id]


async def test_region_replacement_start_scaffold(tmp_path: Path, in_memory: Database) -> None:
    async with plant(tmp_path, in_memory) as rack:
        fresh = start_trials(rack)
        await actions_succeed_idempotently(REGION_REPLACEMENT_START, fresh)
        await death_at_every_point(REGION_REPLACEMENT_START, fresh, points=AFTER_EFFECTS)


async def test_region_replacement_start_unwinds(tmp_path: Path, in_memory: Database) -> None:
    async with plant(tmp_path, in_memory) as rack:
        fresh = start_trials(rack)
        await action_failure_can_unwind(REGION_REPLACEMENT_START, fresh)
        late = {"NEW_REGION_ENSURE", "REPLACE_REGION_IN_VOLUME"}
        await action_failure_can_unwind_idempotently(REGION_REPLACEMENT_START, fresh, only=late.__contains__)
        await death_at_every_point(
            REGION_REPLACEMENT_START, fresh, fail_at="REPLACE_REGION_IN_VOLUME", points=AFTER_EFFECTS
        )


# -- drive ------------------------------------------------------------------------------------------------------------


def drive_trials(rack: Plant) -> Fresh:
    tried: list[tuple[HasVolume, RegionReplacement]] = []

    async def fresh() -> Trial:
        if not tried:
            disk = await create(rack)
            tried.append((disk, await running_request(rack, disk)))
        disk, row = tried[0]
        params = region_replacement_drive.Params(request_id=row.id, volume_id=row.volume_id)

        async def clean() -> None:
            """Undone: the request runs, and nobody has it."""
            assert rack.run(region_replacement_get, row.id) == row
            assert rack.findings() == []

        async def finished() -> None:
            """A pantry is at it, or the volume is whole."""
            found = rack.run(region_replacement_get, row.id)
            assert found.state in ("running", "replacement_done") and found.operating_saga_id is None
            assert rack.run(step_newest, row.id) is not None
            if found.state == "replacement_done":
                tried.clear()
                await remove(rack, disk)
                assert rack.pantry.ledger.volumes == []

        return Trial(rack.world, MemoryStore(), params, finished, clean, saga_id=rack.id())

    return fresh


async def test_region_replacement_drive_scaffold(tmp_path: Path, in_memory: Database) -> None:
    """Its turns follow one another: some give the volume to a pantry, others find that it is whole."""
    async with plant(tmp_path, in_memory) as rack:
        fresh = drive_trials(rack)
        await action_failure_can_unwind(REGION_REPLACEMENT_DRIVE, fresh)
        await actions_succeed_idempotently(REGION_REPLACEMENT_DRIVE, fresh)
        await actions_succeed_idempotently(REGION_REPLACEMENT_DRIVE, fresh)
        await death_at_every_point(REGION_REPLACEMENT_DRIVE, fresh, points=AFTER_EFFECTS)


# -- finish -----------------------------------------------------------------------------------------------------------


def finish_trials(rack: Plant) -> Fresh:
    disks: list[HasVolume] = []

    async def fresh() -> Trial:
        if not disks:
            disks.append(await create(rack))
        row = await running_request(rack, disks[0])
        rack.run(move, REGION_REPLACEMENT, RegionEdge.NOTIFIED, row.id)
        stash = row.old_region_volume_id or ""
        params = region_replacement_finish.Params(
            request_id=row.id, volume_id=row.volume_id, old_region_id=row.old_region_id, stash_id=stash
        )

        async def finished() -> None:
            assert rack.run(region_replacement_get, row.id).state == "complete"
            assert rack.run(volume_state, stash) is Deletion.HARD_DELETED
            assert rack.count(schema.region) == 3 and rack.count(schema.volume_repair) == 0
            assert rack.findings() == []

        async def clean() -> None:
            found = rack.run(region_replacement_get, row.id)
            assert (found.state, found.operating_saga_id) == ("replacement_done", None)
            await run(rack, REGION_REPLACEMENT_FINISH, params)

        return Trial(rack.world, MemoryStore(), params, finished, clean, saga_id=rack.id())

    return fresh


def outside(label: str) -> bool:
    """The nodes of volume-delete have tests of their own."""
    return "/" not in label or label.endswith("/DECREASE_COUNT")


async def test_region_replacement_finish_saga(tmp_path: Path, in_memory: Database) -> None:
    async with plant(tmp_path, in_memory) as rack:
        fresh = finish_trials(rack)
        await actions_succeed_idempotently(REGION_REPLACEMENT_FINISH, fresh)
        await action_failure_can_unwind(REGION_REPLACEMENT_FINISH, fresh, only=outside)
        await death_at_every_point(REGION_REPLACEMENT_FINISH, fresh, only=outside, points=AFTER_EFFECTS)


async def test_a_finish_that_an_agent_refuses_is_tried_again(tmp_path: Path, in_memory: Database) -> None:
    async with plant(tmp_path, in_memory) as rack, replacing(rack) as nexus:
        disk = await create(rack)
        row = await running_request(rack, disk)
        rack.run(move, REGION_REPLACEMENT, RegionEdge.NOTIFIED, row.id)
        (stash,) = own_regions(rack, row.old_region_volume_id or "")
        with refusing(rack, stash.dataset_id):
            await nexus.drive()
        assert states(rack) == ["replacement_done"]
        await nexus.to_complete()


# -- in their midst ---------------------------------------------------------------------------------------------------


class Between:
    """Runs something once, after an action and before that is recorded."""

    def __init__(self, label: str, what: Any) -> None:
        self.label, self.what = label, what
        self.saga_id = ""

    async def __call__(self, work: Any, vertex: Any, context: Any) -> Any:
        result = await work(context)
        if vertex.label == self.label and work is vertex.action and self.what is not None:
            what, self.what, self.saga_id = self.what, None, context.saga_id
            await what()
            return await work(context)  # as after a death: what was not recorded is done again
        return result


async def test_W33_a_volume_deleted_between_swap_and_record_leaks_nothing(tmp_path: Path, in_memory: Database) -> None:
    """The real one looks at the volume when the node runs again, takes the swap for not done, and unwinds: the old
    region belongs to a volume that nobody makes. Here the request says that it was done."""
    async with plant(tmp_path, in_memory) as rack:
        disk = await create(rack)
        request_id = ask_for(rack, own_regions(rack, disk.volume_id)[0])
        between = Between("REPLACE_REGION_IN_VOLUME", lambda: delete_disk(rack, disk))
        await run(rack, REGION_REPLACEMENT_START, start_params(rack, request_id), perform=between)
        assert rack.run(volume_state, disk.volume_id) is not Deletion.LIVE
        row = rack.run(region_replacement_get, request_id)
        assert (row.state, row.old_region_volume_id) == ("running", stash_id(between.saga_id))
        async with replacing(rack) as nexus:
            await nexus.to_complete()
        await rack.require_empty()


async def test_W33_the_original_rule_leaves_a_region_without_an_owner(
    tmp_path: Path, in_memory: Database, monkeypatch: pytest.MonkeyPatch, expect_log: Any
) -> None:
    """It takes what it did for never done, and is undone around it."""
    expect_log("saga node failed unexpectedly", at_least=0)
    async with plant(tmp_path, in_memory) as rack:
        disk = await create(rack)
        request_id = ask_for(rack, own_regions(rack, disk.volume_id)[0])
        monkeypatch.setattr(region_replacement_start, "done_before", lambda connection, saga: False)
        between = Between("REPLACE_REGION_IN_VOLUME", lambda: delete_disk(rack, disk))
        with pytest.raises(SagaFailed):
            await run(rack, REGION_REPLACEMENT_START, start_params(rack, request_id), perform=between)
        await finish_deletions(rack)
        assert rack.count(schema.region) == 1


async def test_W34_a_region_that_its_agent_cannot_make_is_not_left_there(
    tmp_path: Path, in_memory: Database, expect_log: Any
) -> None:
    async with plant(tmp_path, in_memory) as rack:
        expect_log("region not made", at_least=0)
        disk = await create(rack)
        request_id = ask_for(rack, own_regions(rack, disk.volume_id)[0])
        used = {each.dataset_id for each in own_regions(rack, disk.volume_id)}
        (free,) = set(rack.agents) - used
        agent = rack.agents[free]
        agent.options = replace(agent.options, failures=Failures(frozenset({Failing.CREATE})))
        with pytest.raises(SagaFailed, match="failed"):
            await run(rack, REGION_REPLACEMENT_START, start_params(rack, request_id))
        assert [each for each in await rack.held() if free in each] == []
        await remove(rack, disk)


async def test_W35_undoing_takes_the_sagas_own_region_and_no_other(tmp_path: Path, in_memory: Database) -> None:
    """The real one compares rows before and after: when a port is written down meanwhile it finds two that are new, and
    leaves both; and when the disk's region goes meanwhile it takes that for its own."""
    async with plant(tmp_path, in_memory) as rack:
        disk = await create(rack)
        regions = own_regions(rack, disk.volume_id)
        request_id = ask_for(rack, regions[0])

        async def port_is_learned() -> None:
            rack.set(schema.region, regions[1].region_id, time_modified=rack.now())
            raise ActionFailed("and then it fails")

        with pytest.raises(SagaFailed):
            await run(
                rack,
                REGION_REPLACEMENT_START,
                start_params(rack, request_id),
                perform=Between("NEW_REGION_ENSURE", port_is_learned),
            )
        assert own_regions(rack, disk.volume_id) == regions and rack.count(schema.region) == 3
        await remove(rack, disk)


async def test_W38_a_port_that_was_never_written_down_is_found_and_written_down(
    tmp_path: Path, in_memory: Database
) -> None:
    """The real one finds the address in the document, and forgets it: the old region's stash can never be deleted."""
    async with plant(tmp_path, in_memory, checked=False) as rack:
        disk = await create(rack)
        old = own_regions(rack, disk.volume_id)[0]
        rack.set(schema.region, old.region_id, port=None)
        rack.expunge(old.dataset_id)
        rack.silence(old.dataset_id)
        async with replacing(rack) as nexus:
            await nexus.to_complete()
        assert rack.count(schema.region, schema.region.c.id == old.region_id) == 0
        assert rack.findings() == []


async def test_a_volume_deleted_while_its_new_region_is_made_leaves_none_at_the_agent(
    tmp_path: Path, in_memory: Database
) -> None:
    """The deletion takes the row of the new region, which its volume owns, before the agent has it; who undoes the
    making asks the agent all the same."""
    async with plant(tmp_path, in_memory) as rack:
        disk = await create(rack)
        request_id = ask_for(rack, own_regions(rack, disk.volume_id)[0])
        made: list[str] = []

        async def perform(work: Any, vertex: Any, context: Any) -> Any:
            if vertex.label == "NEW_REGION_ENSURE" and work is vertex.action:
                result = await work(context)
                rack.set(schema.region, new_region_id(context.saga_id), time_modified=rack.now())
                await delete_disk(rack, disk)
                made.append(new_region_id(context.saga_id))
                assert rack.count(schema.region, schema.region.c.id == made[0]) == 0
                return result
            return await work(context)

        with pytest.raises(SagaFailed, match="is deleted"):
            await run(rack, REGION_REPLACEMENT_START, start_params(rack, request_id), perform=perform)
        assert await rack.held() == []
        async with replacing(rack) as nexus:
            await nexus.to_complete()
        await rack.require_empty()
        assert [each.state.value for each in requests(rack)] == ["complete"]


@pytest.mark.parametrize("label", ["CHECK", "PREPARE", "EXECUTE"])
async def test_R46_a_volume_deleted_in_the_midst_of_a_drive(tmp_path: Path, in_memory: Database, label: str) -> None:
    """Nobody is left at work on it, and the request comes to its end."""
    async with plant(tmp_path, in_memory) as rack:
        disk = await create(rack)
        row = await running_request(rack, disk)
        params = region_replacement_drive.Params(request_id=row.id, volume_id=row.volume_id)
        await run(rack, REGION_REPLACEMENT_DRIVE, params, perform=Between(label, lambda: delete_disk(rack, disk)))
        async with replacing(rack) as nexus:
            await nexus.to_complete()
        assert rack.pantry.ledger.volumes == []
        await rack.require_empty()


async def test_R46_a_volume_deleted_in_the_midst_of_a_finish(tmp_path: Path, in_memory: Database) -> None:
    async with plant(tmp_path, in_memory) as rack:
        disk = await create(rack)
        row = await running_request(rack, disk)
        rack.run(move, REGION_REPLACEMENT, RegionEdge.NOTIFIED, row.id)
        params = region_replacement_finish.Params(
            request_id=row.id,
            volume_id=row.volume_id,
            old_region_id=row.old_region_id,
            stash_id=row.old_region_volume_id or "",
        )
        between = Between("SET_SAGA_ID", lambda: delete_disk(rack, disk))
        await run(rack, REGION_REPLACEMENT_FINISH, params, perform=between)
        assert states(rack) == ["complete"]
        await rack.require_empty()


async def test_R1_two_nexus_begin_with_one_request(tmp_path: Path, in_memory: Database) -> None:
    """Both find it, both start a saga; one loses at its first node, and there is one new region."""
    async with plant(tmp_path, in_memory) as rack, replacing(rack) as first, replacing(rack) as second:
        disk = await create(rack)
        ask_for(rack, own_regions(rack, disk.volume_id)[0])
        begun = [await each.detector.activate() for each in (first, second)]
        assert [len(each["start_invoked_ok"]) for each in begun] == [1, 1]
        await first.settle()
        await second.settle()
        assert states(rack) == ["running"] and rack.count(schema.region) == 4
        async with trio.open_nursery() as nursery:
            nursery.start_soon(first.to_complete)
            nursery.start_soon(second.to_complete)
        assert rack.findings() == []
        await remove(rack, disk)
