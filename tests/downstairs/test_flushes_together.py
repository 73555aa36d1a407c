"""Flushes of the Downstairs of one process: which of them go together, and what each hears."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest
import trio

from crucible_emu import errors
from crucible_emu.downstairs import together
from crucible_emu.downstairs.together import FlushesTogether
from crucible_emu.geometry import RegionDefinition
from crucible_emu.integrity import BlockContexts, hash_blocks
from crucible_emu.region import Region


@pytest.fixture
def regions(tmp_path: Path) -> Iterator[list[Region]]:
    found = [Region.create(tmp_path / f"r{number}", RegionDefinition(512, 4096, 1, UUID(int=7))) for number in range(3)]
    yield found
    for region in found:
        region.close()


def write(region: Region, count: int) -> None:
    rows = np.full((count, 512), 7, np.uint8)
    region.write(np.arange(count), rows, BlockContexts.plain(hash_blocks(rows)))


@pytest.fixture
def meetings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many flushes went together, each time."""
    found, real = [], together.run_together

    def noted(flushes):
        found.append(len(flushes))
        return real(flushes)

    monkeypatch.setattr(together, "run_together", noted)
    return found


async def test_flushes_that_begin_in_one_turn_go_together(regions: list[Region], meetings: list[int]) -> None:
    group = FlushesTogether()

    async def flush(region: Region, number: int) -> None:
        work = region.begin_flush(number, 1)
        assert group.takes(work)
        assert await group.run(work) is None
        region.finish_flush(work)

    for number in (1, 2):
        for region in regions:
            write(region, 3)
        async with trio.open_nursery() as nursery:
            for region in regions:
                nursery.start_soon(flush, region, number)
    write(regions[0], 3)
    await flush(regions[0], 3)
    assert meetings == [3, 3, 1]


async def test_each_hears_of_its_own_failure_and_all_of_a_defect(
    regions: list[Region], monkeypatch: pytest.MonkeyPatch
) -> None:
    group, heard = FlushesTogether(), {}

    async def flush(place: int) -> None:
        work = regions[place].begin_flush(1, 1)
        try:
            heard[place] = await group.run(work)
        except ZeroDivisionError as defect:
            heard[place] = defect
        regions[place].abandon_flush(work)

    async def all_of_them() -> None:
        for region in regions:
            write(region, 3)
        async with trio.open_nursery() as nursery:
            for place in range(3):
                nursery.start_soon(flush, place)

    failure = errors.IoError("full")

    def second_fails(flushes) -> list[errors.CrucibleError | None]:
        # In whatever order they came: tasks of one turn run in any.
        return [failure if flush is regions[1]._work else None for flush in flushes]

    monkeypatch.setattr(together, "run_together", second_fails)
    await all_of_them()
    assert heard == {0: None, 1: failure, 2: None}
    defect = ZeroDivisionError()

    def broken(flushes) -> None:
        raise defect

    monkeypatch.setattr(together, "run_together", broken)
    await all_of_them()
    assert heard == {0: defect, 1: defect, 2: defect}


async def test_cancelled_leader_still_runs_the_flush_of_those_who_wait(
    regions: list[Region], meetings: list[int]
) -> None:
    group, ended = FlushesTogether(), []

    async def flush(region: Region, scope: trio.CancelScope) -> None:
        with scope:
            work = region.begin_flush(1, 1)
            assert await group.run(work) is None
            region.finish_flush(work)
            ended.append(region)

    for region in regions:
        write(region, 3)
    scopes = [trio.CancelScope() for _ in regions]
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            for region, scope in zip(regions, scopes):
                nursery.start_soon(flush, region, scope)
            scopes[0].cancel()
            await trio.lowlevel.checkpoint()
            for scope in scopes:
                scope.cancel()
    assert (len(ended), meetings) == (3, [3])
