"""Replacements of read-only targets on a plant: snapshots of disks that hold something, requests, and the Nexus that
works on them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from dataclasses import replace as replace_fields
from typing import Any

import trio
from frozen_rig import ledger, take, written
from nexus_rig import Plant
from sqlalchemy import Connection
from users_rig import SIZE_BYTES, HasVolume, MadeSnapshot, delete_disk, delete_snapshot, make_disk

from nexus.db import schema
from nexus.db.schema import RegionSnapshotReplacementState, RegionSnapshotReplacementStepState
from nexus.objects.snapshots import snapshot_get
from nexus.placement import regions_of
from nexus.replacement.clone_source import SnapshotCopy
from nexus.replacement.read_only import (
    ReadOnlyReplacement,
    read_only_replacement_get,
    read_only_replacement_request,
    target_of,
)
from nexus.replacement.region import RequestResult
from nexus.replacement.snapshot_copies import as_asked, copies_of
from nexus.replacement.step import Step, step_get, steps_in
from nexus.saga import ActionFailed, Context, Executor, MemoryStore, SagaFailed
from nexus.saga.dag import Vertex
from nexus.sagas import ALL_SAGAS
from nexus.services import World
from nexus.tasks.read_only_region_replacement_start import ReadOnlyRegionReplacementStart
from nexus.tasks.region_snapshot_replacement_finish import RegionSnapshotReplacementFinish
from nexus.tasks.region_snapshot_replacement_garbage_collection import RegionSnapshotReplacementGarbageCollection
from nexus.tasks.region_snapshot_replacement_start import RegionSnapshotReplacementStart
from nexus.tasks.region_snapshot_replacement_step import RegionSnapshotReplacementStep
from nexus.verification import asked
from nexus.volumes import FairLocks, RegionSnapshot
from nexus.volumes.resolution import Resource, volumes_using

SOMETHING = b"frozen" * 80 + bytes(32)
HOLDS = SOMETHING + bytes(SIZE_BYTES - len(SOMETHING))
PATIENCE_S = 60
State = RegionSnapshotReplacementState
StepState = RegionSnapshotReplacementStepState


@dataclass
class Scene:
    """A disk that holds something, its snapshot, and a disk that was made of that."""

    rack: Plant
    disk: HasVolume
    snapshot: MadeSnapshot
    copy: HasVolume
    targets: list[RegionSnapshot]
    """The three region snapshots, in the order of the disk's regions."""

    async def delete_snapshot(self) -> None:
        await delete_snapshot(self.rack, self.snapshot)

    async def delete_disk(self) -> None:
        await delete_disk(self.rack, self.disk)

    async def delete_copy(self) -> None:
        await delete_disk(self.rack, self.copy)


async def scene(rack: Plant) -> Scene:
    disk = await make_disk(rack, name="disk")
    await written(rack, disk, 0, SOMETHING)
    snapshot = await take(rack, disk)
    regions = rack.run(regions_of, disk.volume_id)
    targets = [RegionSnapshot(each.dataset_id, each.region_id, snapshot.id) for each in regions]
    return Scene(rack, disk, snapshot, await make_disk(rack, snapshot, name="copy"), targets)


def asks(rack: Plant, target: Resource) -> str:
    """An operator's request for the replacement of ``target``; its id."""
    request_id, result = rack.run(read_only_replacement_request, rack.world.locks, target, rack.now())
    assert result is RequestResult.MADE
    return str(request_id)


def request(rack: Plant, request_id: str) -> ReadOnlyReplacement:
    found = rack.run(read_only_replacement_get, request_id)
    assert isinstance(found, ReadOnlyReplacement)
    return found


def step(rack: Plant, step_id: str) -> Step:
    found = rack.run(step_get, step_id)
    assert isinstance(found, Step)
    return found


def steps(rack: Plant) -> list[Step]:
    return list(rack.run(steps_in, tuple(StepState)))


def users(rack: Plant, target: Resource) -> list[str]:
    return list(rack.run(volumes_using, target))


def address_of(rack: Plant, target: Resource) -> Any:
    return rack.run(target_of, target)


# -- a Nexus ----------------------------------------------------------------------------------------------------------


class Nexus:
    """One that works on replacements of read-only targets: its tasks, and the sagas that they start."""

    def __init__(self, world: World, executor: Executor) -> None:
        self.executor = executor
        self.regions_start = ReadOnlyRegionReplacementStart(world)
        self.start = RegionSnapshotReplacementStart(world, executor)
        self.collect = RegionSnapshotReplacementGarbageCollection(world, executor)
        self.step = RegionSnapshotReplacementStep(world, executor)
        self.finish = RegionSnapshotReplacementFinish(world, executor)
        self.tasks = (self.start, self.collect, self.step, self.finish, self.regions_start)

    async def does(self, task: Any) -> dict[str, Any]:
        """One activation, and the sagas that it started; its status, in which nothing is wrong."""
        status: dict[str, Any] = await task.activate()
        assert status["errors"] == []
        await self.idle()
        return status

    async def idle(self) -> None:
        """All sagas have come to their end."""
        with trio.fail_after(PATIENCE_S):
            while self.executor.in_hand:
                with suppress(SagaFailed):
                    await self.executor.wait(self.executor.in_hand[0])


@asynccontextmanager
async def nexus_of(rack: Plant, **options: Any) -> AsyncIterator[Nexus]:
    async with trio.open_nursery() as nursery:
        executor = Executor(nursery, MemoryStore(), ALL_SAGAS, rack.world, "nexus", new_id=rack.id, **options)
        yield Nexus(rack.world, executor)


def with_fair_locks(rack: Plant) -> None:
    rack.world = replace_fields(rack.world, locks=FairLocks())


async def wait_for_request_state(
    rack: Plant, nexus: Nexus, task: Any, request_id: str, end: State, intermediate: State, start: State
) -> None:
    """Activate ``task`` until the request is in ``end``; on its way it may be in no other than the three states."""
    with trio.fail_after(PATIENCE_S):
        while (state := request(rack, request_id).state) is not end:
            assert state in (start, intermediate), state
            await nexus.does(task)


async def to_replacement_done(rack: Plant, nexus: Nexus, request_id: str) -> None:
    states = (State.REPLACEMENT_DONE, State.ALLOCATING, State.REQUESTED)
    await wait_for_request_state(rack, nexus, nexus.start, request_id, *states)


async def to_running(rack: Plant, nexus: Nexus, request_id: str) -> None:
    await to_replacement_done(rack, nexus, request_id)
    states = (State.RUNNING, State.DELETING_OLD_VOLUME, State.REPLACEMENT_DONE)
    await wait_for_request_state(rack, nexus, nexus.collect, request_id, *states)


async def wait_for_all_replacements(rack: Plant, nexus: Nexus) -> None:
    """All tasks, again and again, until every request is complete."""
    with trio.fail_after(PATIENCE_S):
        while True:
            for task in nexus.tasks:
                await nexus.does(task)
            open_ones = schema.region_snapshot_replacement.c.replacement_state != State.COMPLETE
            if not rack.count(schema.region_snapshot_replacement, open_ones):
                return


async def finish_test(rack: Plant, nexus: Nexus, request_id: str) -> None:
    """Every request comes to its end, and no volume names the old target any more."""
    old = request(rack, request_id).old
    await wait_for_all_replacements(rack, nexus)
    assert request(rack, request_id).state is State.COMPLETE
    assert address_of(rack, old) is None and users(rack, old) == []
    assert rack.count(schema.volume_repair) == 0 and rack.findings() == []


# -- what happens in between ------------------------------------------------------------------------------------------

Does = Callable[[Context[Any]], Awaitable[None]]


class Before:
    """Something else happens just before a node acts."""

    def __init__(self, label: str, does: Does) -> None:
        self.label, self.does = label, does

    async def __call__(self, work: Any, vertex: Vertex, context: Context[Any]) -> Any:
        if vertex.label == self.label and work is vertex.action:
            await self.does(context)
        return await work(context)


class BeforeRecord(Before):
    """A node acts, this Nexus dies before that is recorded, something else happens, and the node acts again."""

    async def __call__(self, work: Any, vertex: Vertex, context: Context[Any]) -> Any:
        if vertex.label == self.label and work is vertex.action:
            await work(context)
            await self.does(context)
        return await work(context)


class InPlaceOf(Before):
    """Something else happens, and the node fails."""

    async def __call__(self, work: Any, vertex: Vertex, context: Context[Any]) -> Any:
        if vertex.label == self.label and work is vertex.action:
            await self.does(context)
            raise ActionFailed("injected", "injected")
        return await work(context)


# -- bytes ------------------------------------------------------------------------------------------------------------


def there(rack: Plant, snapshot: MadeSnapshot) -> list[SnapshotCopy]:
    """The copies of a snapshot that are not being destroyed."""

    def body(connection: Connection) -> list[SnapshotCopy]:
        found = snapshot_get(connection, snapshot.id)
        assert found is not None
        return copies_of(connection, found)

    return list(rack.run(body))


async def copies(rack: Plant, snapshot: MadeSnapshot) -> dict[str, tuple[str | None, ...]]:
    """What the agents say that the copies of a snapshot hold, by what they are."""
    found = there(rack, snapshot)
    holdings = await asked(rack.world.agents, [as_asked(each) for each in found])
    return {each.name: tuple(held.extents) for each, held in zip(found, holdings, strict=True)}


async def require_three_good_copies(rack: Plant, snapshot: MadeSnapshot) -> None:
    found = await copies(rack, snapshot)
    assert len(found) == 3 and set(found.values()) == {ledger(rack, snapshot.id).extents}, found
