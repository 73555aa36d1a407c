"""Let the Nth operation of the disk fail, for every N: nothing is lost, nothing is half-made, every error is ours."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from region_rig import SIMULATED_REGION, MakeRegion, definition, made_blocks, read_all, read_rows, write

from crucible_emu import errors
from crucible_emu.region import Region, SyncPolicy
from crucible_emu.region.directory import DEFINITION_NAME
from crucible_emu.sim.disk import Persistence, SimulatedDisk

CODES = [errno.EIO, errno.ENOSPC, errno.EROFS]


class FailAt:
    """A hook that lets operation number ``at`` fail, once or from then on."""

    def __init__(self, at: int, code: int = errno.EIO, *, lasting: bool = False) -> None:
        self.at = at
        self.seen = 0
        self._code = code
        self._lasting = lasting

    @property
    def reached(self) -> bool:
        return self.seen > self.at

    def __call__(self, operation: str, path: str) -> None:
        self.seen += 1
        if self.seen - 1 == self.at or (self._lasting and self.reached):
            raise OSError(self._code, f"simulated failure of {operation}")


def every_failure(attempt: Callable[[FailAt], None], **options: bool) -> int:
    """Call ``attempt`` with a failure at operation 0, 1, 2, … until one is not reached; how many there were."""
    for at in range(10_000):
        hook = FailAt(at, CODES[at % len(CODES)], **options)
        attempt(hook)
        if not hook.reached:
            return at
    raise AssertionError("the operations do not end")


@contextmanager
def suppress_io_error(naming: str) -> Iterator[None]:
    """What fails in here fails with our error, which names the place."""
    try:
        yield
    except errors.IoError as error:
        named = naming in str(error)
    else:
        named = True
    assert named


@pytest.mark.parametrize("lasting", [False, True], ids=["once", "for good"])
def test_create_leaves_nothing_half_made(lasting: bool, expect_log: Callable[..., object]) -> None:
    def attempt(hook: FailAt) -> None:
        disk = SimulatedDisk()
        disk.before_change = hook
        with suppress_io_error(str(SIMULATED_REGION)):
            Region.create(SIMULATED_REGION, definition(extents=5), storage=disk).close()
        assert not disk.open_files()
        disk.before_change = None
        if disk.exists(SIMULATED_REGION / DEFINITION_NAME):
            # Either nothing failed, or nothing could be removed any more: then it is a whole region.
            assert lasting or not hook.reached
        else:
            assert hook.reached
            Region.create(SIMULATED_REGION, definition(extents=5), storage=disk).close()
        with Region.open(SIMULATED_REGION, storage=disk) as region:
            assert not read_all(region)[0].any()

    if lasting:
        expect_log("an unfinished region stays")
    assert every_failure(attempt, lasting=lasting) > 15


def test_a_power_cut_while_making_a_region_leaves_none_or_a_whole_one() -> None:
    rng = random.Random(7)
    found = set()

    def cut(operation: str, path: str) -> None:
        for model in Persistence:
            survivor = disk.power_cut(rng, model)
            if survivor.exists(SIMULATED_REGION / DEFINITION_NAME):
                with Region.open(SIMULATED_REGION, storage=survivor) as region:
                    assert not read_all(region)[0].any()
                found.add("whole")
            else:
                Region.create(SIMULATED_REGION, definition(extents=4), storage=survivor).close()
                found.add("none")

    for _ in range(5):
        disk = SimulatedDisk()
        disk.before_change = cut
        Region.create(SIMULATED_REGION, definition(extents=4), storage=disk).close()
        disk.before_change = None
    assert found == {"none", "whole"}


@pytest.mark.parametrize("policy", SyncPolicy)
def test_open_fails_with_one_sentence_and_closes_what_it_opened(policy: SyncPolicy) -> None:
    disk = SimulatedDisk()
    with Region.create(SIMULATED_REGION, definition(), policy=policy, storage=disk) as region:
        write(region, [3, 30], seed=1)
        region.flush(1, 1)
        write(region, [4], seed=2)

    def attempt(hook: FailAt) -> None:
        disk.before_change = disk.before_read = hook
        try:
            with suppress_io_error(str(SIMULATED_REGION)):
                Region.open(SIMULATED_REGION, policy=policy, storage=disk).close()
        finally:
            disk.before_change = disk.before_read = None
        assert not disk.open_files()

    assert every_failure(attempt) > 10


@pytest.mark.parametrize("big_blocks", [False, True], ids=["512", "8192"])
@pytest.mark.parametrize("between", [False, True], ids=["", "rewritten before the retry"])
def test_a_failed_flush_is_made_up_for_by_the_next(big_blocks: bool, between: bool) -> None:
    """Under the default policy, with data that was destaged before, and cut after the retry under the worst model."""
    rng = random.Random(3)

    def attempt(hook: FailAt) -> None:
        disk = SimulatedDisk()
        disk.partial_writes = rng
        geometry = definition(8192 if big_blocks else 512)
        region = Region.create(SIMULATED_REGION, geometry, storage=disk)
        first = write(region, [0, 1, 2, 25, 59], seed=1)
        work = region.begin_destage()
        work.run()
        region.finish_flush(work)
        second = write(region, [1, 2, 3, 26], seed=2)
        expected = np.concatenate([first[[0, 3, 4]], second])
        blocks = [0, 25, 59, 1, 2, 3, 26]
        disk.before_change = hook
        work = region.begin_flush(1, 1)
        try:
            work.run()
        except errors.IoError:
            region.abandon_flush(work)
            assert region.extent_versions()[2].all(), "what is not flushed is dirty"
            assert np.array_equal(read_rows(region, blocks), expected), "nothing is lost"
            if between:
                expected[-2:] = write(region, [3, 26], seed=3)
            region.flush(2, 1)
        else:
            region.finish_flush(work)
        disk.before_change = None
        assert not region.extent_versions()[2].any()
        for _ in range(3):
            survivor = disk.power_cut(rng, Persistence.PAGES)
            with Region.open(SIMULATED_REGION, storage=survivor) as reopened:
                assert np.array_equal(read_rows(reopened, blocks), expected)
                assert (reopened.extent_versions()[1] == (2 if hook.reached else 1)).all()
                assert not reopened.extent_versions()[2].any()
        region.close()

    assert every_failure(attempt) > 15


def test_a_disk_that_fails_for_good_loses_nothing_while_the_process_lives(
    make_region: MakeRegion, disk: SimulatedDisk
) -> None:
    region = make_region()
    rows = write(region, [1, 2, 40], seed=1)
    disk.before_change = FailAt(0, errno.ENOSPC, lasting=True)
    for attempt in range(5):
        with pytest.raises(errors.IoError, match="free some space"):
            region.flush(attempt + 1, 1)
        rows[0] = write(region, [1], seed=10 + attempt)[0]
    assert region.statistics().flushes_failed == 5
    disk.before_change = None
    region.flush(9, 1)
    assert np.array_equal(read_rows(region, [1, 2, 40]), rows)
    assert region.statistics().staged_bytes == 0, "all room is free again"


@pytest.mark.parametrize("policy", [SyncPolicy.ZFS, SyncPolicy.ORDERED_FLUSH, SyncPolicy.STRICT])
def test_immediate_policies_repeat_what_failed(policy: SyncPolicy) -> None:
    """A write that failed is tried again, as a job is; a flush too. Afterwards everything is there, on disk as well."""

    def attempt(hook: FailAt) -> None:
        disk = SimulatedDisk()
        region = Region.create(SIMULATED_REGION, definition(), policy=policy, storage=disk)
        disk.before_change = hook
        expected: dict[int, np.ndarray] = {}
        for seed, blocks in enumerate([[0, 1, 2], [1, 2, 3, 21], [2]]):
            rows, contexts = made_blocks(len(blocks), seed=seed)
            _again(lambda rows=rows, blocks=blocks, contexts=contexts: region.write(np.array(blocks), rows, contexts))
            expected.update(zip(blocks, rows))
            if seed == 1:
                _again(lambda: region.flush(1, 1))
        _again(lambda: region.flush(2, 1))
        disk.before_change = None
        assert not region.extent_versions()[2].any()
        region.close()
        # Every sync returned in the end, so every page is on the disk, whatever model.
        survivor = disk.power_cut(random.Random(1), Persistence.PAGES)
        with Region.open(SIMULATED_REGION, policy=policy, storage=survivor) as reopened:
            assert np.array_equal(read_rows(reopened, list(expected)), np.array(list(expected.values())))

    assert every_failure(attempt) > 12


def _again(operation: Callable[[], None]) -> None:
    for _ in range(3):
        try:
            operation()
        except errors.IoError:
            continue
        return
    raise AssertionError("it keeps failing")


def test_reads_report_what_fails_and_leave_nothing_behind(make_region: MakeRegion, disk: SimulatedDisk) -> None:
    region = make_region()
    write(region, [0, 1], seed=1)
    region.flush(1, 1)
    region.close()
    region = Region.open(region.path, storage=disk)
    out = memoryview(bytearray(2 * 512))
    for read in (region.read, region.read_cached):
        disk.before_read = FailAt(0, lasting=True)
        with pytest.raises(errors.IoError, match="check it"):
            read(0, 2, out)
        disk.before_read = None
        assert read(0, 2, out) is not None
    region.close()
    assert not disk.open_files()


def test_data_that_the_kernel_dropped_is_not_reported_as_flushed() -> None:
    """A destaged block whose sync failed and whose page then shows the old data again: no later flush may succeed."""
    disk = SimulatedDisk()
    region = Region.create(SIMULATED_REGION, definition(), storage=disk)
    write(region, [5], seed=1)
    region.flush(1, 1)
    old = bytes(read_rows(region, [5])[0])
    write(region, [5], seed=2)
    work = region.begin_destage()
    work.run()
    region.finish_flush(work)

    def fail_syncs(operation: str, path: str) -> None:
        if operation == "sync":
            raise OSError(errno.EIO, "simulated failure")

    disk.before_change = fail_syncs
    with pytest.raises(errors.IoError):
        region.flush(2, 1)
    disk.before_change = None
    descriptor = disk.open(SIMULATED_REGION / "00/000/000", 2)
    disk.pwrite(descriptor, old, 5 * 512)
    disk.close(descriptor)
    for attempt in range(2):
        with pytest.raises(errors.IoError, match="lost blocks in a failed sync"):
            region.flush(3 + attempt, 1)
    region.close()
