"""``check`` on a rack in use: nothing where all is well or a running saga is why; each planted fault, in a sentence."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from nexus_rig import Plant, plant
from sqlalchemy import select
from users_rig import (
    HasVolume,
    MadeSnapshot,
    delete_disk,
    disk_delete_params,
    make_disk,
    make_image,
    make_snapshot,
    reconnect,
    refusing,
    regions,
)

from crucible_emu.agent.documents import GetSnapshotResponse, Region, RunningSnapshot, Snapshot, State
from nexus.checking import check
from nexus.checking.holdings import Holdings, Recorded, RegionRow, differences
from nexus.db import Database, schema
from nexus.db.sagas import Leases, SagaStore
from nexus.placement import regions_of
from nexus.saga import Executor, SagaState
from nexus.sagas import ALL_SAGAS
from nexus.sagas.disk_delete import DISK_DELETE
from nexus.volumes import deletion
from nexus.volumes.freed import Dataset

QUICK_S = 0.01


@pytest.fixture
def sqlite() -> Iterator[Database]:
    with Database.open("sqlite://", inline=True) as opened:
        yield opened


async def told(rack: Plant) -> list[str]:
    return [str(each) for each in await check(rack.world, between_looks_s=QUICK_S)]


# -- all is well ------------------------------------------------------------------------------------------------------


async def test_healthy_rack_is_clean(tmp_path: Path, database: Database) -> None:
    """A disk, a snapshot of it, an image, a disk of that; and a disk that is deleted but whose regions are needed."""
    async with plant(tmp_path, database) as rack:
        disk = await make_disk(rack)
        snapshot = await make_snapshot(rack, disk)
        image = await make_image(rack, snapshot)
        await make_disk(rack, image)
        assert await told(rack) == []
        await delete_disk(rack, disk)
        assert await told(rack) == []


async def test_what_a_running_saga_is_about_is_no_finding(tmp_path: Path, sqlite: Database) -> None:
    """A deletion that waits for an agent, at every row that it has left: only the agent's silence is told of."""
    async with plant(tmp_path, sqlite) as rack:
        disk = await make_disk(rack)
        silent = rack.run(regions_of, disk.volume_id)[0].dataset_id
        rack.silence(silent)
        async with nexus(rack) as executor:
            saga_id = await executor.start(DISK_DELETE, disk_delete_params(rack, disk))
            await until(lambda: rack.count(schema.volume, schema.volume.c.time_deleted.is_not(None)))
            await trio.sleep(0.05)
            (only,) = await told(rack)
            assert only.startswith(f"agent: the agent of dataset {silent} does not answer: ")
            reconnect(rack, silent)
            await executor.wait(saga_id)
        assert await told(rack) == []
        await rack.require_empty()


# -- planted faults: the database -------------------------------------------------------------------------------------


async def test_every_planted_fault_is_found(tmp_path: Path, sqlite: Database) -> None:
    """One after the other, on one rack; each is found alone, and mended before the next."""
    async with plant(tmp_path, sqlite) as rack:
        disk = await make_disk(rack)
        snapshot = await make_snapshot(rack, disk)
        sqlite.after_body = None
        for name, fault in FAULTS.items():
            expected, mend = fault(rack, disk, snapshot)
            found = await told(rack)
            assert any(expected in each for each in found), (name, expected, found)
            mend()
            assert await told(rack) == [], name


Fault = Callable[[Plant, HasVolume, MadeSnapshot], tuple[str, Callable[[], None]]]


def changed(rack: Plant, table: Any, identity: str, **values: Any) -> Callable[[], None]:
    """Change a row by hand; how to change it back."""
    key = next(iter(table.primary_key.columns))
    columns = [table.c[name] for name in values]
    old = rack.run(lambda c: dict(c.execute(select(*columns).where(key == identity)).mappings().one()))
    rack.run(lambda c: c.execute(table.update().where(key == identity).values(**values)) and None)
    return lambda: rack.run(lambda c: c.execute(table.update().where(key == identity).values(**old)) and None)


def added(rack: Plant, table: Any, **values: Any) -> Callable[[], None]:
    """A row by hand; how to take it away."""
    rack.add(table, **values)
    key = next(iter(table.primary_key.columns))
    return lambda: rack.run(lambda c: c.execute(table.delete().where(key == values[key.name])) and None)


def a_saga(rack: Plant, state: SagaState, **values: Any) -> tuple[str, Callable[[], None]]:
    saga_id = rack.id()
    row = {"name": "a-saga", "params": "{}", "labels": "[]", "executor_id": "nexus", "fence": 0, "event_count": 0}
    return saga_id, added(rack, schema.saga, id=saga_id, state=state.value, **(row | values))


def region_of(rack: Plant, disk: HasVolume) -> Any:
    return rack.run(regions_of, disk.volume_id)[0]


def port_recorded_wrongly(rack: Plant, disk: HasVolume, snapshot: MadeSnapshot) -> Any:
    region = region_of(rack, disk)
    mend = changed(rack, schema.region, region.region_id, port=1)
    return f"agent: region {region.region_id} on dataset {region.dataset_id} listens on port {region.port}, and", mend


def port_not_recorded(rack: Plant, disk: HasVolume, snapshot: MadeSnapshot) -> Any:
    region = region_of(rack, disk)
    mend = changed(rack, schema.region, region.region_id, port=None)
    return f"listens on port {region.port}, which is not recorded", mend


def geometry_recorded_wrongly(rack: Plant, disk: HasVolume, snapshot: MadeSnapshot) -> Any:
    region = region_of(rack, disk)
    mend = changed(rack, schema.region, region.region_id, extent_count=3)
    return "has the geometry 512 x 128 x 2, and 512 x 128 x 3 is recorded", mend


def size_does_not_add_up(rack: Plant, disk: HasVolume, snapshot: MadeSnapshot) -> Any:
    dataset_id = region_of(rack, disk).dataset_id
    return f"I10: dataset {dataset_id} has 1 bytes reserved", changed(
        rack, schema.crucible_dataset, dataset_id, size_used=1
    )


def usage_without_user(rack: Plant, disk: HasVolume, snapshot: MadeSnapshot) -> Any:
    region = region_of(rack, disk)
    values = {
        "region_snapshot_dataset_id": region.dataset_id,
        "region_snapshot_region_id": region.region_id,
        "region_snapshot_snapshot_id": snapshot.id,
    }
    volume_id = rack.id()
    mend = added(
        rack,
        schema.volume_resource_usage,
        usage_id=rack.id(),
        volume_id=volume_id,
        usage_type="region_snapshot",
        **values,
    )
    return f"I1: a usage row says that volume {volume_id} uses", mend


def lock_of_nobody(rack: Plant, disk: HasVolume, snapshot: MadeSnapshot) -> Any:
    holder = rack.id()
    mend = added(rack, schema.volume_repair, volume_id=disk.volume_id, repair_id=holder, time_taken=rack.now())
    return f"I8: the lock of volume {disk.volume_id} is held by {holder}, which nobody knows", mend


def lock_of_an_ended_saga(rack: Plant, disk: HasVolume, snapshot: MadeSnapshot) -> Any:
    holder = rack.id()
    saga_id, forget = a_saga(rack, SagaState.DONE, params=f'{{"lock_id": "{holder}"}}')
    release = added(rack, schema.volume_repair, volume_id=disk.volume_id, repair_id=holder, time_taken=rack.now())
    return f"leases: the lock of volume {disk.volume_id} is held by saga {saga_id}, which is done", both(
        forget, release
    )


def disk_in_the_hand_of_an_ended_saga(rack: Plant, disk: HasVolume, snapshot: MadeSnapshot) -> Any:
    saga_id, forget = a_saga(rack, SagaState.UNWOUND)
    back = changed(rack, schema.disk, disk.id, disk_state="finalizing", operating_saga_id=saga_id)
    return f"leases: disk {disk.id}, finalizing, is held by saga {saga_id}, which is unwound", both(forget, back)


def stuck_saga(rack: Plant, disk: HasVolume, snapshot: MadeSnapshot) -> Any:
    saga_id, forget = a_saga(rack, SagaState.STUCK)
    event = {"number": 0, "label": "NODE", "kind": "undo_failed", "time": rack.now()}
    drop = added(rack, schema.saga_event, saga_id=saga_id, **event)
    return f"sagas: saga {saga_id}, a-saga, is stuck: the undo of NODE failed", both(forget, drop)


def saga_of_a_dead_nexus(rack: Plant, disk: HasVolume, snapshot: MadeSnapshot) -> Any:
    saga_id, forget = a_saga(rack, SagaState.UNWINDING)
    return f"sagas: saga {saga_id}, a-saga, is not finished, and Nexus nexus, whose it is, is dead", forget


def sum_does_not_add_up(rack: Plant, disk: HasVolume, snapshot: MadeSnapshot) -> Any:
    return f"charges: {rack.silo_id} is charged 7 bytes, its disks", changed(
        rack, schema.virtual_provisioning_collection, rack.silo_id, virtual_disk_bytes_provisioned=7
    )


def disk_is_not_charged(rack: Plant, disk: HasVolume, snapshot: MadeSnapshot) -> Any:
    other = rack.id()
    return f"charges: disk {disk.id} of 131072 bytes is not charged", both(
        changed_key(rack, schema.virtual_provisioning_resource, disk.id, other)
    )


def disk_half_made(rack: Plant, disk: HasVolume, snapshot: MadeSnapshot) -> Any:
    return f"unfinished: disk {disk.id} is creating, and no saga", changed(
        rack, schema.disk, disk.id, disk_state="creating"
    )


def snapshot_half_made(rack: Plant, disk: HasVolume, snapshot: MadeSnapshot) -> Any:
    return f"unfinished: snapshot {snapshot.id} is being made", changed(
        rack, schema.snapshot, snapshot.id, state="creating"
    )


def snapshot_recorded_elsewhere(rack: Plant, disk: HasVolume, snapshot: MadeSnapshot) -> Any:
    region = region_of(rack, disk)
    mend = changed(rack, schema.region_snapshot, region.dataset_id, snapshot_addr="[::1]:1")
    return (
        f"agent: the snapshot {snapshot.id} of region {region.region_id} on dataset {region.dataset_id} listens",
        mend,
    )


def snapshot_left_to_be_destroyed(rack: Plant, disk: HasVolume, snapshot: MadeSnapshot) -> Any:
    region = region_of(rack, disk)
    mend = changed(rack, schema.region_snapshot, region.dataset_id, deleting=True)
    return f"deletion: the snapshot {snapshot.id} of region {region.region_id} is to be destroyed", mend


def phantom_disk(rack: Plant, disk: HasVolume, snapshot: MadeSnapshot) -> Any:
    gone = changed(rack, schema.disk, disk.id, disk_state="destroyed", time_deleted=rack.now())
    apart = changed(rack, schema.disk_type_crucible, disk.id, volume_id=rack.id())
    return f"deletion: disk {disk.id} is deleted, and is charged still", both(gone, apart)


def unreadable_deletion(rack: Plant, disk: HasVolume, snapshot: MadeSnapshot) -> Any:
    deleted = {"time_deleted": rack.now(), "resources_to_clean_up": "nonsense"}
    mend = changed(rack, schema.volume, disk.volume_id, **deleted)
    return "readable: what a deleted volume freed cannot be read: resources_to_clean_up", mend


def both(*mends: Callable[[], None]) -> Callable[[], None]:
    def all_of_them() -> None:
        for each in mends:
            each()

    return all_of_them


def changed_key(rack: Plant, table: Any, identity: str, other: str) -> Callable[[], None]:
    def move(before: str, after: str) -> None:
        rack.run(lambda c: c.execute(table.update().where(table.c.id == before).values(id=after)) and None)

    move(identity, other)
    return lambda: move(other, identity)


FAULTS: dict[str, Fault] = {
    fault.__name__: fault
    for fault in (
        *(port_recorded_wrongly, port_not_recorded, geometry_recorded_wrongly, size_does_not_add_up),
        *(usage_without_user, lock_of_nobody, lock_of_an_ended_saga, disk_in_the_hand_of_an_ended_saga),
        *(stuck_saga, saga_of_a_dead_nexus, sum_does_not_add_up, disk_is_not_charged, disk_half_made),
        *(snapshot_half_made, snapshot_recorded_elsewhere, snapshot_left_to_be_destroyed, phantom_disk),
        unreadable_deletion,
    )
}


# -- planted faults: agents -------------------------------------------------------------------------------------------


async def test_region_without_a_row_and_row_without_a_region(tmp_path: Path, database: Database) -> None:
    async with plant(tmp_path, database) as rack:
        disk = await make_disk(rack)
        lost, orphan, *_ = rack.run(regions_of, disk.volume_id)
        database.after_body = None
        await rack.world.agents.region_delete(_dataset(rack, lost), lost.region_id)
        rack.run(lambda c: c.execute(schema.region.delete().where(schema.region.c.id == orphan.region_id)) and None)
        found = await told(rack)
        assert f"agent: region {lost.region_id} has a row, but dataset {lost.dataset_id} does not hold it" in found
        held = f"agent: dataset {orphan.dataset_id} holds region {orphan.region_id}, created, of which there is no row"
        assert held in found


async def test_snapshot_without_a_row_and_row_without_a_snapshot(tmp_path: Path, sqlite: Database) -> None:
    async with plant(tmp_path, sqlite) as rack:
        disk = await make_disk(rack)
        snapshot = await make_snapshot(rack, disk)
        sqlite.after_body = None
        stopped, orphan, *_ = rack.run(regions_of, disk.volume_id)
        await rack.agents[stopped.dataset_id].stop_snapshot(stopped.region_id, snapshot.id)
        row = schema.region_snapshot
        rack.run(lambda c: c.execute(row.delete().where(row.c.region_id == orphan.region_id)) and None)
        found = await told(rack)
        assert any(f"of region {stopped.region_id}" in each and each.startswith("agent: ") for each in found)
        where = f"the snapshot {snapshot.id} of region {orphan.region_id} is on dataset {orphan.dataset_id}"
        assert f"agent: {where}, and there is no row of it" in found


async def test_silent_agent_is_a_finding_unless_its_disk_is_expunged(tmp_path: Path, database: Database) -> None:
    async with plant(tmp_path, database) as rack:
        (region, *_) = await regions(rack, rack.id())
        dataset_id = region.dataset_id
        rack.silence(dataset_id)
        assert any(each.startswith(f"agent: the agent of dataset {dataset_id} does not") for each in await told(rack))
        rack.expunge(dataset_id)
        assert not any(dataset_id in each for each in await told(rack))


async def test_agent_that_refuses_to_answer_is_a_finding(tmp_path: Path, sqlite: Database) -> None:
    async with plant(tmp_path, sqlite, sleds=1) as rack:
        (dataset_id,) = rack.agents
        with refusing(rack, dataset_id, "GET"):
            (only,) = await told(rack)
        assert only.startswith(f"agent: the agent of dataset {dataset_id} does not answer: ")


async def test_deletion_that_nobody_goes_on_with_is_a_finding(tmp_path: Path, sqlite: Database) -> None:
    async with plant(tmp_path, sqlite) as rack:
        disk = await make_disk(rack)
        rack.set(schema.disk, disk.id, disk_state="faulted")
        rack.run(deletion.soft_delete_volume, disk.volume_id, rack.now())
        wanted = f"deletion: volume {disk.volume_id} is soft-deleted and could be destroyed, and no saga does it"
        assert await told(rack) == [wanted]
        await delete_disk(rack, disk)
        assert await told(rack) == []


async def test_fault_elsewhere_is_told_of_while_a_saga_runs(tmp_path: Path, sqlite: Database) -> None:
    """What a saga explains is its own: not the project that it is in, nor other regions of the same datasets."""
    async with plant(tmp_path, sqlite) as rack:
        disk, other = await make_disk(rack), await make_disk(rack)
        silent = rack.run(regions_of, disk.volume_id)[0].dataset_id
        lost = next(each for each in rack.run(regions_of, other.volume_id) if each.dataset_id != silent)
        await rack.world.agents.region_delete(_dataset(rack, lost), lost.region_id)
        collection = schema.virtual_provisioning_collection
        rack.set(collection, rack.project_id, virtual_disk_bytes_provisioned=1_000_000)
        rack.silence(silent)
        async with nexus(rack) as executor:
            await executor.start(DISK_DELETE, disk_delete_params(rack, disk))
            await until(lambda: rack.count(schema.volume, schema.volume.c.time_deleted.is_not(None)))
            found = await told(rack)
            rack.expunge(silent)
        assert f"agent: region {lost.region_id} has a row, but dataset {lost.dataset_id} does not hold it" in found
        assert any(each.startswith(f"charges: {rack.project_id} is charged") for each in found)
        assert not any(disk.volume_id in each or disk.id in each for each in found)


# -- the comparison ---------------------------------------------------------------------------------------------------

ROW = RegionRow("region", 1000, 512, 8, 4, False)


def held(state: State = State.CREATED, **changes: Any) -> Region:
    values = {"id": "region", "state": state, "block_size": 512, "extent_size": 8, "extent_count": 4}
    return Region(**(values | {"encrypted": True, "port_number": 1000} | changes))


def running(state: State = State.CREATED, port: int = 2000) -> GetSnapshotResponse:
    served = RunningSnapshot(id="region", name="snapshot", port_number=port, state=state)
    return GetSnapshotResponse(
        snapshots=[Snapshot(name="snapshot", created="")], running_snapshots={"snapshot": served}
    )


@pytest.mark.parametrize(
    ("region", "snapshots", "sentences"),
    [
        (held(), running(), []),
        (held(State.FAILED), running(), ["region region on dataset D is failed at its agent"]),
        (held(State.DESTROYED), None, ["region region has a row, but dataset D does not hold it"]),
        (held(read_only=True), running(), ["region region on dataset D is read-only, and is recorded as read/write"]),
        (held(), running(State.DESTROYED), ["does not run, and port 2000 is recorded"]),
        (held(), running(State.FAILED), ["is failed at its agent, and port 2000 is recorded"]),
        (held(), running(port=2001), ["on dataset D listens on port 2001, and port 2000 is recorded"]),
        (held(), None, ["has a row, but dataset D does not hold it"]),
    ],
)
def test_differences_are_told_one_by_one(
    region: Region, snapshots: GetSnapshotResponse | None, sentences: list[str]
) -> None:
    recorded = Recorded(Dataset("D", "::1", 1), {"region": ROW}, {("region", "snapshot"): 2000})
    if region.state is State.DESTROYED:
        recorded = Recorded(recorded.dataset, recorded.regions)
    holdings = Holdings((region,), {"region": snapshots} if snapshots else {})
    found = [each.sentence for each in differences(recorded, holdings)]
    assert len(found) == len(sentences)
    assert all(part in whole for part, whole in zip(sentences, found, strict=True))


def test_running_snapshot_of_nothing_is_told_of() -> None:
    nothing = GetSnapshotResponse(snapshots=[], running_snapshots=running().running_snapshots)
    recorded = Recorded(Dataset("D", "::1", 1), {"region": ROW})
    (found,) = differences(recorded, Holdings((held(),), {"region": nothing}))
    assert found.sentence.endswith("runs on dataset D, and there is neither a snapshot nor a row")
    assert found.ids == ("region", "snapshot")


# -- how --------------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def nexus(rack: Plant) -> AsyncIterator[Executor]:
    """A Nexus that lives, and runs sagas until the block ends."""
    leases = Leases(rack.database, 60)
    await leases.register("nexus")
    async with trio.open_nursery() as nursery:
        yield Executor(nursery, SagaStore(rack.database), ALL_SAGAS, rack.world, "nexus", new_id=rack.id)
        with trio.fail_after(20):
            while rack.run(_unfinished):  # noqa: ASYNC110 - polling for a state
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    await leases.retire("nexus")


def _unfinished(connection: Any) -> bool:
    saga = schema.saga
    return connection.execute(saga.select().where(saga.c.state.in_(["running", "unwinding"]))).first() is not None


async def until(holds: Callable[[], Any]) -> None:
    with trio.fail_after(20):
        while not holds():  # noqa: ASYNC110 - polling for a state
            await trio.sleep(0.005)


def _dataset(rack: Plant, region: Any) -> Dataset:
    return Dataset(region.dataset_id, region.ip, region.agent_port)
