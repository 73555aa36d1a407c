"""Every workload on an honest disk in memory, and on disks that lie: whatever is wrong is found."""

from __future__ import annotations

from itertools import chain, islice
from random import Random

import numpy as np
import pytest
import trio
from lying_devices import (
    Lie,
    LyingDevice,
    failing,
    flipped_bit,
    lost_write,
    read_elsewhere,
    torn_write,
    write_elsewhere,
    write_too_much,
    zeros_instead,
)
from trio.testing import wait_all_tasks_blocked

from crucible_emu import errors
from crucible_emu.blockio import Completed, Kind, Request
from crucible_emu.blockio_memory import MemoryDevice
from crucible_emu.exercise import workloads
from crucible_emu.exercise.content import Rule
from crucible_emu.exercise.layout import Layout, RegionSetLayout, layout_of
from crucible_emu.exercise.rates import Sample, rates
from crucible_emu.exercise.runner import IntegrityError, Runner
from crucible_emu.exercise.workloads import WORKLOADS, Plan
from crucible_emu.exercise.write_log import WriteLog
from crucible_emu.volume import vcr

LAYOUT = Layout(512, (RegionSetLayout(0, 7, 3), RegionSetLayout(21, 5, 2)))
BLOCKS = LAYOUT.block_count
RULES = list(Rule)


def plan(count: int = 20, seed: int = 1, io_blocks: int = 1) -> Plan:
    return Plan(LAYOUT, Random(seed), count, io_blocks)


def fresh(depth: int = 8, rule: Rule = Rule.CRUTEST) -> tuple[MemoryDevice, WriteLog, Runner]:
    disk, log = MemoryDevice(LAYOUT.size_bytes, 512), WriteLog.new(BLOCKS, rule=rule, blank=True)
    return disk, log, Runner(disk, log, depth=depth)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", WORKLOADS)
async def test_every_workload_finds_an_honest_disk_right(name: str, rule: Rule) -> None:
    workload = WORKLOADS[name]
    _, log, runner = fresh(workload.depth, rule)
    await runner.run(workloads.fast_fill(plan()))
    before = log.cur.copy()
    steps = workload.steps(plan(workload.count))
    await runner.run(islice(steps, 200) if workload.timed else steps)
    assert (log.cur > before).any() == workload.writes
    await runner.run(workloads.verify(plan()))
    assert runner.statistics.errors == 0


async def test_fill_writes_every_block_and_flushes() -> None:
    disk, log, runner = fresh()
    await runner.run(workloads.fill(plan()))
    assert log.cur.tolist() == log.min.tolist() == [1] * BLOCKS
    assert disk.flushes == 1
    assert (runner.statistics.written_bytes, runner.statistics.flushes) == (LAYOUT.size_bytes, 1)


async def test_span_crosses_every_border() -> None:
    _, log, runner = fresh()
    await runner.run(workloads.span(plan()))
    # The first extent of each region set ends behind 6 and 25; the region sets meet behind 20.
    assert np.flatnonzero(log.cur).tolist() == [6, 7, 20, 21, 25, 26]


async def test_fast_fill_touches_each_extent_once() -> None:
    _, log, runner = fresh()
    await runner.run(workloads.fast_fill(plan()))
    assert [int(log.cur[first : first + blocks].sum()) for first, blocks in LAYOUT.extents] == [1] * 5


async def test_rand_verify_reads_every_block_once() -> None:
    _, _, runner = fresh()
    await runner.run(workloads.rand_verify(plan(io_blocks=4)))
    assert runner.statistics.checked_blocks == BLOCKS


async def test_unwritten_leaves_what_is_there() -> None:
    disk, log, runner = fresh()
    await runner.run(workloads.fast_fill(plan()))
    before, data = log.cur.copy(), bytes(disk.data)
    await runner.run(workloads.unwritten(plan(100)))
    assert (log.cur == 1).all()
    for block in np.flatnonzero(before):
        assert disk.data[block * 512 : (block + 1) * 512] == data[block * 512 : (block + 1) * 512]


async def test_unwritten_needs_a_blank_disk() -> None:
    runner = Runner(MemoryDevice(LAYOUT.size_bytes, 512), WriteLog.new(BLOCKS))
    with pytest.raises(errors.UsageError, match="say --blank"):
        await runner.run(workloads.unwritten(plan()))


def test_a_seed_repeats_a_workload() -> None:
    def first_steps(seed: int) -> list[workloads.Step]:
        return list(workloads.mixed(10, 40)(plan(100, seed)))

    assert first_steps(3) == first_steps(3) != first_steps(4)


def test_a_disk_of_one_block_can_be_exercised() -> None:
    tiny = Layout(512, (RegionSetLayout(0, 1, 1),))
    for workload in WORKLOADS.values():
        for step in islice(workload.steps(Plan(tiny, Random(0), 5)), 50):
            assert all(each.first + each.blocks <= 1 for each in step)


# -- disks that lie ---------------------------------------------------------------------------------------------------

WRITE_LIES: dict[str, Lie] = {
    "lost": lost_write,
    "elsewhere": write_elsewhere(3),
    "torn": torn_write,
    "flipped": flipped_bit,
    "zeros": zeros_instead,
    "too much": write_too_much,
}
READ_LIES: dict[str, Lie] = {"elsewhere": read_elsewhere(2)}


WHOLE = ("fill", "biggest")
"""One request for all of a disk as small as this: it cannot go elsewhere, nor be too much."""
PARTS = ("generic", "demo", "wfr", "dep", "rand-write", "dirty", "repair")


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("lie", "name"),
    [
        (lie, name)
        for lie in WRITE_LIES
        for name in WHOLE + PARTS
        if name in PARTS or lie not in ("elsewhere", "too much")
    ],
)
async def test_a_disk_that_lies_about_writes_is_found_out(lie: str, name: str, rule: Rule) -> None:
    disk = LyingDevice(LAYOUT.size_bytes, Kind.WRITE, WRITE_LIES[lie])
    log = WriteLog.new(BLOCKS, rule=rule, blank=True)
    runner = Runner(disk, log)
    await runner.run(workloads.fill(plan()))
    disk.lying = True
    if lie in ("zeros", "too much"):
        log.cur[:], log.min[:] = 3, 3  # so that no count looks like zeros, or like that of its neighbour
        await rewritten(disk, log)
    steps = islice(WORKLOADS[name].steps(plan(60)), 100)
    with pytest.raises(IntegrityError) as found:
        await runner.run(chain(steps, [workloads.DRAIN], workloads.verify(plan())))
    assert str(found.value).startswith(f"block {found.value.wrong.block} is wrong: expected write ")


async def rewritten(disk: LyingDevice, log: WriteLog) -> None:
    """Make the disk what the log says."""
    disk.lying = False
    await Runner(disk, log).run(workloads.fill(plan()))
    disk.lying = True


async def test_a_disk_that_reads_elsewhere_is_found_out() -> None:
    disk = LyingDevice(LAYOUT.size_bytes, Kind.READ, READ_LIES["elsewhere"])
    runner = Runner(disk, WriteLog.new(BLOCKS))
    await runner.run(workloads.fill(plan()))
    disk.lying = True
    with pytest.raises(IntegrityError, match="found a block whose number modulo 255 is "):
        await runner.run(workloads.rand_verify(plan()))


@pytest.mark.parametrize("rule", RULES)
async def test_255_blocks_aside_only_the_stamp_tells(rule: Rule) -> None:
    wide = Layout(512, (RegionSetLayout(0, 510, 1),))
    disk = LyingDevice(wide.size_bytes, Kind.READ, read_elsewhere(255))
    runner = Runner(disk, WriteLog.new(510, rule=rule))
    everything = Plan(wide, Random(1), 1)
    await runner.run(workloads.fill(everything))
    disk.lying = True
    if rule is Rule.CRUTEST:
        await runner.run(workloads.rand_verify(everything))
    else:
        with pytest.raises(IntegrityError, match="block"):
            await runner.run(workloads.rand_verify(everything))


async def test_a_write_that_was_never_asked_for_shows_on_a_blank_disk() -> None:
    disk, _, runner = fresh()
    disk.data[5 * 512] = 1
    with pytest.raises(IntegrityError, match="block 5 is wrong: expected zeros, for it was never written"):
        await runner.run(workloads.verify(plan()))


async def test_errors_end_a_run_or_are_survived() -> None:
    for goes_on in (False, True):
        disk = LyingDevice(LAYOUT.size_bytes, Kind.WRITE, failing)
        log = WriteLog.new(BLOCKS)
        runner = Runner(disk, log, goes_on=goes_on)
        await runner.run(workloads.fill(plan()))
        disk.lying = True
        if not goes_on:
            with pytest.raises(errors.IoError):
                await runner.run(workloads.mixed(1, 50)(plan(50)))
            continue
        await runner.run(workloads.mixed(1, 50)(plan(50)))
        assert runner.statistics.errors > 0
        assert log.doubtful.any()
        await runner.run(workloads.verify(plan()))
        # Looking has settled what the failed writes left open.
        assert not log.doubtful.any()
        assert (log.cur == 1).all()


# -- the runner -------------------------------------------------------------------------------------------------------


class SlowDevice(MemoryDevice):
    """Answers nothing until told to, newest first."""

    def __init__(self) -> None:
        super().__init__(LAYOUT.size_bytes, 512)
        self.waiting: list[tuple[list[Request], Completed]] = []
        self.most = 0

    def submit(self, requests: list[Request], completed: Completed) -> None:
        super().submit(requests, lambda _: None)
        self.waiting.append((requests, completed))
        self.most = max(self.most, sum(len(each) for each, _ in self.waiting))

    async def answer(self) -> None:

        while True:
            await wait_all_tasks_blocked()
            if not self.waiting:
                await trio.sleep(0.01)
            while self.waiting:
                requests, completed = self.waiting.pop()
                completed(requests)


@pytest.mark.parametrize("depth", [1, 5, 64])
async def test_depth_is_kept_and_answers_may_come_in_any_order(depth: int) -> None:

    disk, log = SlowDevice(), WriteLog.new(BLOCKS)
    runner = Runner(disk, log, depth=depth)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(disk.answer)
        await runner.run(workloads.mixed(10, 50)(plan(300)))
        await runner.run(workloads.verify(plan()))
        nursery.cancel_scope.cancel()
    assert disk.most == depth


async def test_a_log_of_another_disk_is_refused() -> None:
    with pytest.raises(errors.UsageError, match="do not belong together"):
        Runner(MemoryDevice(512 * 4, 512), WriteLog.new(5))


async def test_samples_and_rates(autojump_clock: object) -> None:

    _, _, runner = fresh()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(runner.sample, 1.0)
        await trio.sleep(0.5)
        await runner.run(workloads.fill(plan()))
        await trio.sleep(2)
        nursery.cancel_scope.cancel()
    assert runner.samples == [Sample(1.0, 2, LAYOUT.size_bytes), Sample(1.0, 0, 0), Sample(0.5, 0, 0)]
    found = rates(runner.samples)
    assert found is not None
    assert (found.iops_mean, found.iops_min, found.iops_max) == (0.8, 0.0, 2.0)
    assert rates([]) is None


# -- layouts ----------------------------------------------------------------------------------------------------------


def region(extents: int, blocks: int = 4) -> vcr.RegionRequest:
    opts = {"id": "12345678-0000-0000-0001-000000008810", "target": ("127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3")}
    return vcr.RegionRequest(
        type="region",
        block_size=512,
        blocks_per_extent=blocks,
        extent_count=extents,
        opts=vcr.CrucibleOpts.model_validate(opts),
        gen=1,
    )


def volume(*parts: vcr.VolumeConstructionRequest) -> vcr.VolumeRequest:
    return vcr.VolumeRequest.model_validate(
        {"type": "volume", "id": "12345678-0000-0000-0001-000000008810", "block_size": 512, "sub_volumes": parts}
    )


def test_layout_of_a_tree_of_volumes() -> None:
    found = layout_of(volume(region(2), volume(region(1), region(3, 2))))
    assert [(each.first, each.end) for each in found.region_sets] == [(0, 8), (8, 12), (12, 18)]
    with pytest.raises(errors.UsageError, match="no region set"):
        layout_of(volume())
    url = vcr.UrlRequest.model_validate(
        {"type": "url", "id": "12345678-0000-0000-0001-000000008810", "block_size": 512, "url": "http://x/"}
    )
    with pytest.raises(errors.UsageError, match="the disk has a url among its sub-volumes"):
        layout_of(volume(region(2), url))
