"""Flushes, destages, extents: what each covers, what goes on meanwhile, what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from region_rig import MakeRegion, made_blocks, read_all, read_rows, write

from crucible_emu import errors
from crucible_emu.integrity import EMPTY, BlockContexts
from crucible_emu.region import Region, SyncPolicy
from crucible_emu.sim.disk import SimulatedDisk

POLICIES = pytest.mark.parametrize("policy", SyncPolicy)


def complete(region: Region, work: object) -> None:
    work.run()  # type: ignore[attr-defined]
    region.finish_flush(work)  # type: ignore[arg-type]


def reopened(region: Region, disk: SimulatedDisk) -> Region:
    region.close()
    return Region.open(region.path, storage=disk, policy=region.policy)


@POLICIES
def test_clean_extents_keep_their_numbers(make_region: MakeRegion, policy: SyncPolicy) -> None:
    region = make_region(policy)
    write(region, [0], seed=1)
    region.flush(1, 1)
    write(region, [45], seed=2)
    region.flush(2, 7)
    generations, flushes, dirty = region.extent_versions()
    assert generations.tolist() == [1, 0, 7]
    assert flushes.tolist() == [1, 0, 2]
    assert not dirty.any()
    work = region.begin_flush(3, 7)
    assert work.is_empty
    complete(region, work)
    assert region.extent_versions()[1].tolist() == [1, 0, 2]


@POLICIES
def test_extent_limit_is_inclusive_and_may_be_the_number_of_extents(
    make_region: MakeRegion, policy: SyncPolicy
) -> None:
    region = make_region(policy)
    write(region, [0, 20, 40], seed=1)
    region.flush(4, 1, extent_limit=1)
    assert region.extent_versions()[1].tolist() == [4, 4, 0]
    assert region.extent_versions()[2].tolist() == [False, False, True]
    region.flush(5, 1, extent_limit=3)
    assert region.extent_versions()[1].tolist() == [4, 4, 5]
    for limit in (4, -1, 2**31):
        with pytest.raises(errors.InvalidExtent):
            region.begin_flush(6, 1, limit)


@POLICIES
def test_one_extent_alone(make_region: MakeRegion, disk: SimulatedDisk, policy: SyncPolicy) -> None:
    region = make_region(policy)
    rows = write(region, [0, 20, 40], seed=1)
    complete(region, region.begin_flush_extent(1, 8, 2))
    assert region.extent_versions()[1].tolist() == [0, 8, 0]
    assert region.extent_versions()[2].tolist() == [True, False, True]
    assert np.array_equal(read_rows(region, [0, 20, 40]), rows)
    with pytest.raises(errors.InvalidExtent):
        region.begin_flush_extent(3, 9, 2)
    region.flush(9, 2)
    assert np.array_equal(read_rows(reopened(region, disk), [0, 20, 40]), rows)


def test_the_loop_writes_while_a_flush_runs(make_region: MakeRegion, disk: SimulatedDisk) -> None:
    region = make_region()
    old = write(region, [1, 2, 3, 50], seed=1)
    work = region.begin_flush(1, 1)
    new = write(region, [2, 50], seed=2)
    work.run()
    newest = write(region, [3], seed=3)
    everything = np.array([old[0], new[0], newest[0], new[1]])
    assert np.array_equal(read_rows(region, [1, 2, 3, 50]), everything)
    region.finish_flush(work)
    assert np.array_equal(read_rows(region, [1, 2, 3, 50]), everything)
    assert region.extent_versions()[2].tolist() == [True, False, True], "what came after the flush began is not in it"
    assert np.array_equal(read_rows(reopened(region, disk), [1, 2, 3, 50]), old)


@POLICIES
def test_one_flush_at_a_time(make_region: MakeRegion, policy: SyncPolicy) -> None:
    region = make_region(policy)
    write(region, [1], seed=1)
    work = region.begin_flush(1, 1)
    for begin in (lambda: region.begin_flush(2, 1), region.begin_destage, lambda: region.begin_flush_extent(0, 2, 1)):
        with pytest.raises(RuntimeError, match="one flush at a time"):
            begin()
    complete(region, work)
    for end in (region.finish_flush, region.abandon_flush):
        with pytest.raises(RuntimeError, match="not the one under way"):
            end(work)


def test_destage_frees_memory_and_keeps_numbers(make_region: MakeRegion, disk: SimulatedDisk) -> None:
    region = make_region()
    write(region, [1, 25], seed=1)
    region.flush(1, 1)
    rows = write(region, [1, 25, 26], seed=2)
    assert region.statistics().staged_bytes == 3 * 512
    complete(region, region.begin_destage())
    assert region.statistics().staged_bytes == 0
    assert region.statistics().destages == 1
    assert region.extent_versions()[1].tolist() == [1, 1, 0]
    assert region.extent_versions()[2].tolist() == [True, True, False]
    region = reopened(region, disk)
    assert np.array_equal(read_rows(region, [1, 25, 26]), rows), "destaged blocks outlive the process"
    assert region.extent_versions()[2].tolist() == [True, True, False]
    region.flush(2, 1)
    assert region.extent_versions()[1].tolist() == [2, 2, 0]


def test_room_runs_out_and_comes_back(make_region: MakeRegion) -> None:
    region = make_region(blocks=2000, extents=1, staged_bytes_max=1024 * 512)
    assert region.has_room(1024) and not region.has_room(1025)
    rows = write(region, list(range(600)), seed=1)
    assert region.wants_destage()
    work = region.begin_destage()
    assert not region.wants_destage(), "one is enough"
    assert not region.has_room(425)
    with pytest.raises(RuntimeError, match="no staging room while a flush runs"):
        write(region, list(range(700, 1200)), seed=2)
    complete(region, work)
    assert region.has_room(1024) and not region.wants_destage()
    assert np.array_equal(read_rows(region, list(range(600))), rows)


def test_no_more_is_staged_than_the_disk_could_take(make_region: MakeRegion, disk: SimulatedDisk) -> None:
    disk.space_bytes = 200 * 512
    region = make_region(blocks=2000, extents=1)
    assert region.has_room(200) and not region.has_room(201)
    write(region, list(range(150)), seed=1)
    assert region.has_room(50) and not region.has_room(51)
    disk.space_bytes = 0
    complete(region, region.begin_destage())
    assert region.has_room(64) and not region.has_room(65), "overwriting goes on, in small steps"
    rows = write(region, list(range(100, 300)), seed=2)
    assert region.statistics().destages == 4
    assert np.array_equal(read_rows(region, list(range(100, 300))), rows)


def test_a_batch_larger_than_all_staging_room(make_region: MakeRegion) -> None:
    region = make_region(blocks=2000, extents=1, staged_bytes_max=100 * 512)
    blocks = np.random.default_rng(1).permutation(2000)[:950].tolist()
    rows = write(region, blocks, seed=1)
    assert region.statistics().destages >= 9
    assert np.array_equal(read_rows(region, blocks), rows)


def test_staging_room_is_reused_however_often_a_block_is_written(make_region: MakeRegion) -> None:
    region = make_region(staged_bytes_max=64 * 512)
    for seed in range(500):
        rows = write(region, [seed % 3, 30], seed)
    assert region.statistics().blocks_written == 1000
    region.flush(1, 1)
    assert region.statistics().staged_bytes == 0
    assert np.array_equal(read_rows(region, [499 % 3, 30]), rows)


def test_limited_flushes_do_not_leak_room(make_region: MakeRegion) -> None:
    region = make_region(staged_bytes_max=64 * 512)
    for number in range(30):
        if not region.has_room(3):
            complete(region, region.begin_destage())
        rows = write(region, [0, 20, 40], number)
        region.flush(number + 1, 1, extent_limit=0)
    region.flush(99, 1)
    assert region.statistics().staged_bytes == 0
    assert np.array_equal(read_rows(region, [0, 20, 40]), rows)


@POLICIES
def test_closing_an_extent_keeps_its_writes(make_region: MakeRegion, policy: SyncPolicy) -> None:
    region = make_region(policy)
    write(region, [1], seed=1)
    region.flush(3, 2)
    rows = write(region, [1, 2], seed=2)
    assert region.close_extent(0) == (2, 3, True)
    assert region.close_extent(1) == (0, 0, False)
    assert region.extent_is_closed(0) and not region.extent_is_closed(2)
    assert region.statistics().extents_closed == 2
    out = memoryview(bytearray(60 * 512))
    for use in (
        lambda: region.read(19, 1, out[:512]),
        lambda: region.read_cached(19, 30, out[: 30 * 512]),
        lambda: region.read_blocks_cached([45, 3], [out[:512], out[512:1024]]),
        lambda: region.written(0, 60),
        lambda: write(region, [45, 3], seed=3),
        lambda: region.close_extent(0),
        lambda: region.begin_flush_extent(0, 4, 2),
        lambda: region.begin_flush(4, 2),
        lambda: region.reopen_extent(2),
    ):
        with pytest.raises(errors.GenericError, match=r"extent \d is (closed|open)"):
            use()
    assert region.read(40, 20, out[: 20 * 512]) is not None
    region.reopen_extent(0)
    assert np.array_equal(read_rows_of(region, [1, 2]), rows)
    assert region.extent_versions()[2].tolist() == [True, False, False]
    region.reopen_all_extents()
    assert not region.extent_is_closed(1)
    region.flush(5, 2)
    assert region.extent_versions()[1].tolist() == [5, 0, 0]
    for call in (region.close_extent, region.reopen_extent, region.extent_is_closed):
        with pytest.raises(errors.InvalidExtent):
            call(3)


def read_rows_of(region: Region, blocks: list[int]) -> np.ndarray:
    outs = [memoryview(bytearray(region.definition.block_size)) for _ in blocks]
    region.read_blocks_cached(blocks, outs)
    return np.array([np.frombuffer(out, np.uint8) for out in outs])


def test_an_extent_in_a_running_flush_is_not_closed(make_region: MakeRegion) -> None:
    region = make_region()
    write(region, [1], seed=1)
    work = region.begin_flush(1, 1)
    with pytest.raises(RuntimeError, match="extent 0 is being flushed"):
        region.close_extent(0)
    region.close_extent(1)
    complete(region, work)
    assert region.close_extent(0) == (1, 1, False)


def test_a_replaced_extent_shows_its_new_blocks(make_region: MakeRegion, disk: SimulatedDisk) -> None:
    region, other = make_region(), make_region()
    write(region, [1, 2], seed=1)
    region.flush(1, 1)
    read_all(region)
    rows = write(other, [2, 3], seed=2)
    other.flush(9, 9)
    region.close_extent(0)
    source, target = (disk.open(each.path / "00/000/000", 2) for each in (other, region))
    disk.pwrite(target, disk.pread(source, disk.file_bytes(source), 0), 0)
    disk.close(source)
    disk.close(target)
    region.reopen_extent(0)
    assert region.extent_versions()[1].tolist() == [9, 0, 0]
    assert region.written(0, 20).nonzero()[0].tolist() == [2, 3]
    assert np.array_equal(read_rows(region, [2, 3]), rows)


@POLICIES
def test_write_unwritten_leaves_written_blocks_alone(
    make_region: MakeRegion, disk: SimulatedDisk, policy: SyncPolicy
) -> None:
    region = make_region(policy)
    old = write(region, [1, 22], seed=1)
    region.flush(1, 1)
    staged = write(region, [4], seed=2)
    rows, contexts = made_blocks(6, seed=3)
    region.write_unwritten(np.array([0, 1, 2, 22, 23, 4]), rows, contexts)
    expected = np.array([rows[0], old[0], rows[2], old[1], rows[4], staged[0]])
    assert np.array_equal(read_rows(region, [0, 1, 2, 22, 23, 4]), expected)
    region.flush(2, 1)
    rows, contexts = made_blocks(2, seed=4)
    work = region.begin_flush(3, 1)
    region.write_unwritten(np.array([0, 23]), rows, contexts)
    complete(region, work)
    assert not region.extent_versions()[2].any(), "nothing was left to write, so nothing is dirty"


@POLICIES
def test_ranges_beyond_the_end_are_refused(make_region: MakeRegion, policy: SyncPolicy) -> None:
    region = make_region(policy)
    rows, contexts = made_blocks(2)
    for blocks in ([59, 60], [-1, 0], [2**62, 1]):
        for put in (region.write, region.write_unwritten):
            with pytest.raises(errors.OffsetInvalid):
                put(np.array(blocks, np.int64), rows, contexts)
    out = memoryview(bytearray(1024))
    for start, count in ((59, 2), (-1, 1), (60, 1), (0, -1), (2**63, 1)):
        for read in (region.read, region.read_cached):
            with pytest.raises(errors.OffsetInvalid):
                read(start, count, out)
        with pytest.raises(errors.OffsetInvalid):
            region.written(start, count)
    with pytest.raises(errors.OffsetInvalid):
        region.read_blocks_cached([0, 60], [out[:512], out[512:]])
    assert not region.extent_versions()[2].any()


@POLICIES
def test_empty_requests(make_region: MakeRegion, policy: SyncPolicy) -> None:
    region = make_region(policy)
    nothing = np.zeros(0, np.int64)
    region.write(nothing, np.zeros((0, 512), np.uint8), BlockContexts.empty(0))
    region.write_unwritten(nothing, np.zeros((0, 512), np.uint8), BlockContexts.empty(0))
    for read in (region.read, region.read_cached):
        contexts = read(60, 0, memoryview(bytearray()))
        assert contexts is not None and len(contexts) == 0
    contexts, late = region.read_blocks_cached([], [])
    assert len(contexts) == 0 and late == []
    assert not region.extent_versions()[2].any()


def test_any_writable_buffer_takes_a_read(make_region: MakeRegion) -> None:
    region = make_region()
    rows = write(region, [3, 4], seed=1)
    for count in (1, 2):
        out = np.zeros((count, 128), np.uint32)
        region.read_cached(3, count, out.data)
        assert out.tobytes() == rows[:count].tobytes()
        buffer = bytearray(count * 512)
        region.read(3, count, buffer)  # type: ignore[arg-type]
        assert buffer == rows[:count].tobytes()


def test_reads_that_would_wait_say_so(make_region: MakeRegion, disk: SimulatedDisk) -> None:
    """A cold cache: first the contexts, then the data would have to be waited for."""
    region = make_region()
    rows = write(region, [3, 4], seed=1)
    region.flush(1, 1)
    region = reopened(region, disk)
    out = memoryview(bytearray(1024))
    disk.cold = True
    assert region.read_cached(3, 2, out) is None
    assert region.read_cached(3, 1, out[:512]) is None
    contexts, late = region.read_blocks_cached([3, 4], [out[:512], out[512:]])
    assert late == [0, 1] and (contexts.kind == EMPTY).all()
    assert region.read(3, 2, out) is not None
    assert out == rows.tobytes()
    assert region.read_cached(3, 2, out) is None, "the data is still cold"
    disk.cold = False
    assert region.read_cached(3, 2, out) is not None
    region.close()


def test_blocks_that_were_never_written_are_not_looked_for(make_region: MakeRegion, disk: SimulatedDisk) -> None:
    region = make_region()
    write(region, [3], seed=1)
    region.flush(1, 1)
    region.read_cached(0, 60, memoryview(bytearray(60 * 512)))
    disk.cold = True
    out = memoryview(bytearray(b"\xff" * 512 * 3))
    assert region.read_cached(4, 3, out) is not None
    assert not any(out)
    disk.cold = False


def test_statistics_count(make_region: MakeRegion) -> None:
    region = make_region()
    write(region, [1, 2], seed=1)
    write(region, [2], seed=2)
    region.flush(1, 1)
    found = region.statistics()
    assert (found.blocks_written, found.blocks_flushed, found.flushes, found.flushes_failed) == (3, 2, 1, 0)
    assert (found.extents, found.extents_dirty, found.staged_bytes) == (3, 0, 0)
    assert found.staged_bytes_max == 2 * 60 * 512
