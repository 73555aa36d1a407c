"""volume-delete under every misfortune (nexus.md §3.9, §9.1): repeated, failed, dead at every point, beside others of
its kind."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest
import trio
from nexus_rig import Plant, plant
from saga_scaffold import (
    ALL_POINTS,
    SAGA_ID,
    Repeat,
    Trial,
    action_failure_can_unwind,
    actions_succeed_idempotently,
    death_at_every_point,
    execute,
)
from users_rig import (
    HasVolume,
    delete_disk,
    finish_deletions,
    make_disk,
    make_snapshot_volume,
    nothing,
    refusing,
    region_rows,
    run,
    trials,
)

from nexus.db import Database, schema
from nexus.saga import Dag, Executor, MemoryStore, Point, SagaFailed, SagaState
from nexus.saga.hooks import Crash
from nexus.sagas.volume_delete import VOLUME_DELETE, Params
from nexus.volumes import Deletion, deletions_to_finish, snapshots_to_delete, soft_delete_volume, volume_state

LABELS = Dag.of(VOLUME_DELETE).labels
WHERE_ROWS_GO = ("DECREASE_COUNT", "DELETE_SNAPSHOT_RECORDS", "FIND_FREED_REGIONS", "DELETE_FREED_REGIONS")
Sweep = Callable[[], Awaitable[None]]


def of(has: HasVolume) -> Params:
    return Params(volume_id=has.volume_id)


async def last_snapshot(rack: Plant) -> tuple[HasVolume, HasVolume]:
    """A deleted disk and its only snapshot's volume: when that goes, every node has something to do."""
    disk = await make_disk(rack)
    snapshot = await snapshot_volume(rack, disk)
    await delete_disk(rack, disk)
    return disk, snapshot


async def snapshot_volume(rack: Plant, disk: HasVolume) -> HasVolume:
    snapshot = HasVolume(rack.id(), rack.id())
    await make_snapshot_volume(rack, disk, snapshot)
    return snapshot


async def done(rack: Plant) -> tuple[Params, Sweep]:
    """A trial after which nothing of it may be left to do."""
    disk, snapshot = await last_snapshot(rack)

    async def end() -> None:
        for volume_id in (disk.volume_id, snapshot.volume_id):
            assert rack.run(volume_state, volume_id) is Deletion.HARD_DELETED

    return of(snapshot), end


async def test_actions_succeed_idempotently(tmp_path: Path, in_memory: Database) -> None:
    async with plant(tmp_path, in_memory) as rack:
        await actions_succeed_idempotently(VOLUME_DELETE, trials(rack, lambda: done(rack)))


async def test_death_at_every_point(tmp_path: Path, in_memory: Database) -> None:
    async with plant(tmp_path, in_memory) as rack:
        # Before a node it is as after the one before it.
        points = ALL_POINTS - {Point.BEFORE_NODE}
        fresh = trials(rack, lambda: done(rack))
        assert await death_at_every_point(VOLUME_DELETE, fresh, points=points) == 2 * len(LABELS)


async def test_failure_is_made_good_by_doing_it_again(tmp_path: Path, in_memory: Database) -> None:
    """``action_failure_can_unwind``, where there is nothing to unwind: what is left is finished by the same saga."""
    async with plant(tmp_path, in_memory) as rack:

        async def prepare() -> tuple[Params, Sweep]:
            _, snapshot = await last_snapshot(rack)
            return of(snapshot), partial(run, rack, VOLUME_DELETE, of(snapshot))

        await action_failure_can_unwind(VOLUME_DELETE, trials(rack, prepare))


# -- beside others ----------------------------------------------------------------------------------------------------


async def interrupted(rack: Plant, snapshot: HasVolume, at: str, deed: Callable[[], Awaitable[object]]) -> None:
    """The deletion of the snapshot's volume. When the node ``at`` has had its effect, somebody else does ``deed`` and
    this Nexus dies; another one does the node again and goes on (W1)."""
    trial = Trial(rack.world, MemoryStore(), of(snapshot), nothing, nothing)

    async def begin(executor: Executor) -> None:
        await executor.start(VOLUME_DELETE, trial.params)

    async def finish(executor: Executor) -> None:
        await executor.take_over("nexus-1")

    async def die(point: Point, saga_id: str, label: str) -> None:
        if (point, label) == (Point.AFTER_EFFECT, at):
            await deed()
            raise Crash

    await execute(VOLUME_DELETE, trial, begin, hooks=die)
    await execute(VOLUME_DELETE, trial, finish, executor_id="nexus-2")
    assert (await trial.store.load(SAGA_ID))[0].state is SagaState.DONE, at


@pytest.mark.parametrize("other", ["the same volume", "the other snapshot"])
async def test_another_deletion_between_effect_and_rerun(tmp_path: Path, in_memory: Database, other: str) -> None:
    """Rows go under the saga's hands: those of regions that it found free, and of its own volume."""
    async with plant(tmp_path, in_memory) as rack:
        for label in LABELS if other == "the other snapshot" else WHERE_ROWS_GO:
            disk = await make_disk(rack)
            first = await snapshot_volume(rack, disk)
            deed: Callable[[], Awaitable[object]] = partial(run, rack, VOLUME_DELETE, of(first))
            if other == "the other snapshot":
                deed = partial(run, rack, VOLUME_DELETE, of(await snapshot_volume(rack, disk)))
            await delete_disk(rack, disk)
            await interrupted(rack, first, label, deed)
            assert rack.run(volume_state, disk.volume_id) is Deletion.HARD_DELETED, label
            assert rack.run(deletions_to_finish) == [], label
            await rack.require_empty()


async def test_row_stays_while_what_it_freed_has_rows(tmp_path: Path, database: Database) -> None:
    """A Nexus died for good when it had soft-deleted a volume: which snapshots that freed is said by its row alone.
    Whoever destroys its regions leaves the row there, and the task that resumes deletions finds it (W24)."""
    async with plant(tmp_path, database) as rack:
        disk, snapshot = await last_snapshot(rack)
        over = await make_disk(rack, snapshot)
        await run(rack, VOLUME_DELETE, of(snapshot))
        assert rack.run(deletions_to_finish) == [], "what is soft-deleted waits for the copy"
        assert (region_rows(rack, disk.volume_id), rack.count(schema.region_snapshot)) == (3, 3)
        await delete_disk_but_for_its_snapshots(rack, over)
        assert rack.run(volume_state, over.volume_id) is Deletion.SOFT_DELETED
        assert (region_rows(rack, over.volume_id), rack.count(schema.region_snapshot)) == (0, 3)
        assert rack.run(deletions_to_finish) == [over.volume_id]
        await finish_deletions(rack)
        assert await rack.held() == []
        await delete_disk(rack, over)
        await rack.require_empty()


async def delete_disk_but_for_its_snapshots(rack: Plant, disk: HasVolume) -> None:
    """As far as DELETE_REGIONS of its volume's deletion."""
    trial = Trial(rack.world, MemoryStore(), of(disk), nothing, nothing)
    rack.set(schema.disk, disk.id, disk_state="faulted")

    async def begin(executor: Executor) -> None:
        await executor.start(VOLUME_DELETE, trial.params)

    async def die(point: Point, saga_id: str, label: str) -> None:
        if label == "DELETE_RUNNING_SNAPSHOTS":
            await trio.sleep_forever()
        if (point, label) == (Point.AFTER_RECORD, "DELETE_REGIONS"):
            raise Crash

    await execute(VOLUME_DELETE, trial, begin, hooks=die)


@pytest.mark.parametrize("version", ["V1", "V2"])
async def test_list_of_an_old_version_is_worked_off(tmp_path: Path, in_memory: Database, version: str) -> None:
    """A volume that was soft-deleted by an older Nexus: rows stand in its list, which may have gone since."""
    async with plant(tmp_path, in_memory) as rack:
        _, snapshot = await last_snapshot(rack)
        freed = rack.run(soft_delete_volume, snapshot.volume_id, rack.now())
        triples = [
            {"dataset_id": each.dataset_id, "region_id": each.region_id, "snapshot_id": each.snapshot_id}
            for each in freed.region_snapshots
        ]
        datasets = [each.dataset for each in rack.run(snapshots_to_delete, freed)]
        places = [{"identity": {"id": each.id}, "ip": each.ip, "port": each.port} for each in datasets]
        content: dict[str, object] = {"datasets_and_regions": [], "snapshots_to_delete": triples}
        if version == "V1":
            content = {"datasets_and_regions": [], "datasets_and_snapshots": list(zip(places, triples, strict=True))}
        text = json.dumps({version: content})
        rack.set(schema.volume, snapshot.volume_id, resources_to_clean_up=text)
        await run(rack, VOLUME_DELETE, of(snapshot), perform=Repeat(actions=2))
        await rack.require_empty()


async def test_refusal_of_a_strangers_agent_holds_nobody_up(tmp_path: Path, in_memory: Database) -> None:
    """The real saga takes the freed regions of all volumes: one agent that refuses would fail every deletion."""
    async with plant(tmp_path, in_memory) as rack:
        stranger = await make_disk(rack)
        mine = [await make_disk(rack)]
        while set(datasets(rack, mine[-1])) == set(datasets(rack, stranger)):
            mine.append(await make_disk(rack))
        lost = next(each for each in datasets(rack, stranger) if each not in datasets(rack, mine[-1]))
        with refusing(rack, lost):
            with pytest.raises(SagaFailed, match="not today"):
                await delete_disk(rack, stranger)
            assert rack.run(volume_state, stranger.volume_id) is Deletion.SOFT_DELETED
            assert region_rows(rack, stranger.volume_id) == 3
            await delete_disk(rack, mine.pop())
        for each in (stranger, *mine):
            await delete_disk(rack, each)
        await rack.require_empty()


def datasets(rack: Plant, disk: HasVolume) -> list[str]:
    region = schema.region
    query = region.select().where(region.c.volume_id == disk.volume_id).order_by(region.c.id)
    return [row.dataset_id for row in rack.run(lambda c: c.execute(query).all())]


async def test_volume_that_is_not_there_is_deleted(tmp_path: Path, database: Database) -> None:
    async with plant(tmp_path, database, sleds=1) as rack:
        outputs = await run(rack, VOLUME_DELETE, Params(volume_id=rack.id()))
        assert outputs["HARD_DELETE_VOLUME_RECORD"] is True
        assert rack.run(soft_delete_volume, rack.id(), rack.now()).empty
