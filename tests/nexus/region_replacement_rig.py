"""Replacements of read/write regions on a plant: losing copies for good, and the tasks that replace them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import trio
from disks_rig import SIZE_BYTES, read, written
from nexus_rig import Plant
from sqlalchemy import select
from users_rig import HasVolume, reconnect, run

from nexus.db import schema
from nexus.db.schema import RepairNotificationType, RepairType
from nexus.objects.notifications import Repair, repair_notified
from nexus.placement import AllocatedRegion, regions_of
from nexus.replacement.notes import waiting_of
from nexus.replacement.region import (
    RegionReplacement,
    RequestResult,
    region_replacement_get,
    region_replacement_request,
    step_newest,
)
from nexus.saga import Executor, MemoryStore, SagaFailed
from nexus.saga.executor import perform_once
from nexus.sagas import ALL_SAGAS, region_replacement_start
from nexus.sagas.region_replacement_start import REGION_REPLACEMENT_START
from nexus.tasks.region_replacement import RegionReplacementDetector
from nexus.tasks.region_replacement_driver import RegionReplacementDriver
from nexus.verification import Copy, asked, compared
from nexus.volumes import Address, volume_get, walks
from nexus.volumes.freed import Dataset

PATIENCE_S = 20
BREAKING = (
    *("connection ended", "replica faulted", "disk disabled", "downstairs ended", "another Upstairs took over"),
    *("reconciliation aborted", "live repair aborted", "work failed", "acknowledged writes may be lost"),
    *("deactivation failed", "the last flush failed", "activation failed"),
)
"""What is logged where copies break under an Upstairs."""


def expect_breaking(expect_log: Any) -> None:
    """A test in which copies break says so."""
    for each in BREAKING:
        expect_log(each, at_least=0)


async def lose(rack: Plant, region: AllocatedRegion) -> None:
    """The disk under the region breaks, with all that is on it, and an operator says so."""
    await break_down(rack, region.dataset_id)
    rack.expunge(region.dataset_id)
    del rack.agents[region.dataset_id]  # what it holds is not asked for when nothing may be left


async def break_down(rack: Plant, dataset_id: str) -> None:
    """Nobody has said anything, but agent and Downstairs of the dataset are gone."""
    rack.silence(dataset_id)
    await rack.agents[dataset_id].services.apply({})


async def bring_back(rack: Plant, dataset_id: str) -> None:
    """What was broken down serves again, with what it had."""
    reconnect(rack, dataset_id)
    await rack.agents[dataset_id]._reconcile()


async def until_true(asked: Callable[[], bool]) -> None:
    with trio.fail_after(PATIENCE_S):
        while not asked():  # noqa: ASYNC110 - what is waited for is in other programs
            await trio.sleep(0.02)


def own_regions(rack: Plant, volume_id: str) -> list[AllocatedRegion]:
    """The volume's regions, in the order of its document."""
    owned = {each.port: each for each in rack.run(regions_of, volume_id) if not each.read_only}
    request = rack.run(volume_get, volume_id).request
    return [owned[address.port] for address in walks.read_write_targets(request)]


def requests(rack: Plant) -> list[RegionReplacement]:
    """All there ever were, oldest first."""
    table = schema.region_replacement
    query = select(table.c.id).order_by(table.c.request_time, table.c.id)
    ids = rack.run(lambda c: list(c.execute(query).scalars()))
    return [rack.run(region_replacement_get, each) for each in ids]


def states(rack: Plant) -> list[str]:
    return [each.state.value for each in requests(rack)]


def reason(rack: Plant, request_id: str) -> str:
    found = rack.run(waiting_of, request_id)
    return "" if found is None else found.reason


def ask_for(rack: Plant, region: AllocatedRegion) -> str:
    """A request as an operator makes it."""
    request_id, result = rack.run(region_replacement_request, rack.world.locks, region.region_id, rack.now())
    assert result is RequestResult.MADE
    return str(request_id)


async def digests(rack: Plant, volume_id: str) -> list[str]:
    """Where the copies of the volume differ, as their agents say."""
    copies = [
        Copy(Dataset(each.dataset_id, each.ip, each.agent_port), each.region_id)
        for each in own_regions(rack, volume_id)
    ]
    for copy in copies:
        await rack.world.agents.digest_forget(copy.dataset, copy.region_id)
    return [str(each) for each in compared(await asked(rack.world.agents, copies))]


@dataclass
class Replacing:
    """A Nexus of two tasks, which are activated by hand."""

    rack: Plant
    executor: Executor
    detector: RegionReplacementDetector
    driver: RegionReplacementDriver

    async def settle(self) -> None:
        """All sagas have ended, however."""
        while self.executor.in_hand:
            try:
                await self.executor.wait(self.executor.in_hand[0])
            except SagaFailed:
                continue

    async def detect(self) -> Any:
        status = await self.detector.activate()
        await self.settle()
        assert status["errors"] == []
        return status

    async def drive(self) -> Any:
        status = await self.driver.activate()
        await self.settle()
        assert status["errors"] == []
        return status

    async def until(self, arrived: Callable[[], bool]) -> None:
        """Both tasks again and again."""
        with trio.move_on_after(PATIENCE_S):
            while not arrived():
                await self.detect()
                await self.drive()
                await trio.sleep(0.02)
        reasons = [reason(self.rack, each.id) for each in requests(self.rack)]
        assert arrived(), f"{states(self.rack)}: {reasons}"

    async def to_complete(self) -> None:
        """Until every request there is has ended, and nothing is lost any more."""

        def ended() -> bool:
            return bool(states(self.rack)) and set(states(self.rack)) == {"complete"}

        await self.detect()
        await self.until(ended)
        status = await self.detect()
        assert not status["requests_created_ok"]


@asynccontextmanager
async def replacing(rack: Plant, perform: Any = perform_once) -> AsyncIterator[Replacing]:
    async with trio.open_nursery() as nursery:
        executor = Executor(nursery, MemoryStore(), ALL_SAGAS, rack.world, "nexus", new_id=rack.id, perform=perform)
        yield Replacing(
            rack,
            executor,
            RegionReplacementDetector(rack.world, executor),
            RegionReplacementDriver(rack.world, executor),
        )
        nursery.cancel_scope.cancel()


def notify(rack: Plant, region_id: str | None, what: RepairNotificationType) -> None:
    """An Upstairs tells of a repair."""
    assert region_id is not None
    address = Address.of("::1", 1)
    repair = Repair(rack.now(), rack.id(), RepairType.LIVE, rack.id(), rack.id(), ((region_id, address),))
    rack.run(repair_notified, repair, what)


def pantry_asked(rack: Plant, request_id: str) -> bool:
    newest = rack.run(step_newest, request_id)
    return newest is not None and type(newest[0]).__name__ == "PantryStep"


PATTERN = bytes(range(256)) * (SIZE_BYTES // 256)


async def filled(rack: Plant, disk: HasVolume, data: bytes = PATTERN) -> None:
    await written(rack, disk, 0, data)


async def require_whole(rack: Plant, disk: HasVolume, data: bytes = PATTERN) -> None:
    """Three copies that are alike, and the bytes are those."""
    assert await read(rack, disk) == data
    assert await digests(rack, disk.volume_id) == []
    assert len(own_regions(rack, disk.volume_id)) == 3


async def running_request(rack: Plant, disk: HasVolume, number: int = 0) -> RegionReplacement:
    """A request for one of the disk's regions, of which the swap is done."""
    request_id = ask_for(rack, own_regions(rack, disk.volume_id)[number])
    row: RegionReplacement = rack.run(region_replacement_get, request_id)
    params = region_replacement_start.Params(
        request_id=row.id, volume_id=row.volume_id, old_region_id=row.old_region_id
    )
    await run(rack, REGION_REPLACEMENT_START, params)
    found: RegionReplacement = rack.run(region_replacement_get, request_id)
    assert found.state == "running"
    return found
