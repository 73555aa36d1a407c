"""The completed set and the jobs that wait for it (wire-protocol.md §7.2)."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

from downstairs_rig import SMALL
from hypothesis import given
from hypothesis import strategies as st

from crucible_emu.downstairs.in_order import InOrderJobs
from crucible_emu.downstairs.jobs import CompletedJobs, JobLimits, JobQueue
from crucible_emu.downstairs.work import Kind, Work

_arrivals = itertools.count(1)


def job(
    job_id: int, *deps: int, kind: Kind = Kind.WRITE, start: int = 0, count: int = 1, extent: int | None = None
) -> Work:
    message = SimpleNamespace(dependencies=deps)
    work = Work(kind, 1, message, job_id, start=start, count=count, size_bytes=10, extent_id=extent)
    work.sequence = next(_arrivals)
    return work


def ids(works: list[Work]) -> list[int | None]:
    return [work.job_id for work in works]


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 6)), max_size=30), st.lists(st.integers(0, 70), max_size=12)
)
def test_ranges_are_a_set(added: list[tuple[int, int]], asked: list[int]) -> None:
    ranges, plain = CompletedJobs(), set[int]()
    for first, count in added:
        ranges.add(first, count)
        plain.update(range(first, first + count))
    assert [number in ranges for number in range(70)] == [number in plain for number in range(70)]
    gaps = sum(number not in plain and number + 1 in plain for number in range(-1, 70))
    assert ranges.range_count == gaps  # disjoint, merged
    missing = [number for number in asked if number not in plain]
    assert ranges.last_missing(asked) == (missing[-1] if missing else None)


def test_ranges_stay_one_for_a_train_in_order() -> None:
    ranges = CompletedJobs()
    for number in range(1000, 3000):
        ranges.add(number)
    ranges.add(3000, 64)
    assert ranges.range_count == 1
    assert ranges.last_missing(tuple(range(1000, 3064))) is None


def test_job_without_dependencies_runs_at_once() -> None:
    assert JobQueue(JobLimits()).admit(job(1000))


def test_job_waits_for_all_its_dependencies() -> None:
    queue = JobQueue(JobLimits())
    first, second, third = job(1), job(2), job(3, 1, 2)
    assert queue.admit(first)
    assert queue.admit(second)
    assert not queue.admit(third)
    assert queue.complete([first]) == []
    assert queue.complete([second]) == [third]
    assert queue.outstanding_jobs == 1
    assert queue.waiting == 0


def test_dependency_that_has_not_arrived() -> None:
    """Live repair sends the reopen (N+3) before the close, the repair and the no-op."""
    queue = JobQueue(JobLimits())
    reopen = job(13, 12)
    assert not queue.admit(reopen)
    for number, deps in ((10, ()), (11, (10,)), (12, (11,))):
        step = job(number, *deps)
        assert queue.admit(step)
        assert queue.complete([step]) == ([reopen] if number == 12 else [])


def test_flush_and_barrier_replace_the_set_by_their_own_id() -> None:
    for kind in (Kind.FLUSH, Kind.BARRIER):
        queue = JobQueue(JobLimits())
        write, fold = job(1), job(2, 1, kind=kind)
        queue.admit(write)
        queue.admit(fold)
        assert queue.complete([write]) == [fold]
        queue.complete([fold])
        assert not queue.admit(job(3, 1)), "an id before the flush never counts as complete again"
        assert queue.admit(job(4, 2))


def test_last_flush_seeds_the_set() -> None:
    queue = JobQueue(JobLimits(), last_flush=77)
    assert queue.admit(job(100, 77))
    assert not queue.admit(job(101, 76))


def test_job_that_ends_while_a_flush_runs_stays_in_the_set_behind_it() -> None:
    """In a loop that does one thing after the other it would have run after the flush."""
    queue = JobQueue(JobLimits())
    before, flush, beside = job(1), job(2, 1, kind=Kind.FLUSH), job(3)
    queue.admit(before)
    queue.complete([before])
    queue.admit(flush)
    queue.flush_begun(flush)
    queue.admit(beside)
    queue.complete([beside])
    queue.complete([flush])
    assert queue.admit(job(4, 2, 3))
    assert not queue.admit(job(5, 1))


def test_flush_that_failed_leaves_the_set_alone() -> None:
    queue = JobQueue(JobLimits())
    write, flush = job(1), job(2, 1, kind=Kind.FLUSH)
    queue.admit(write)
    queue.complete([write])
    queue.admit(flush)
    queue.flush_begun(flush)
    queue.failed(flush)
    assert queue.admit(job(3, 1))
    assert not queue.admit(job(4, 2))


def test_ready_jobs_come_in_order_of_arrival() -> None:
    queue = JobQueue(JobLimits())
    one, two = job(1), job(2)
    queue.admit(one)
    queue.admit(two)
    waiting = [job(10 + index, 2 - index % 2) for index in range(6)]
    assert not any(queue.admit(work) for work in waiting)
    assert queue.complete([one, two]) == waiting


def test_full_and_stuck() -> None:
    queue = JobQueue(SMALL)
    runner = job(1)
    queue.admit(runner)
    for number in range(2, 5):
        queue.admit(job(number, 999))
    assert queue.full
    assert not queue.stuck  # one runs and will make room
    queue.complete([runner])
    assert not queue.full
    queue.admit(job(6, 999))
    assert queue.stuck


def test_bytes_count_too() -> None:
    queue = JobQueue(JobLimits(jobs_max=100, bytes_max=25))
    works = [job(number) for number in range(3)]
    for work in works:
        assert not queue.full
        queue.admit(work)
    assert queue.full
    queue.complete(works[:1])
    assert not queue.full


def simple_dependencies(operations: list[tuple[Kind, int, int]]) -> list[tuple[int, ...]]:
    """The simple correct rule of §7.2: a read on overlapping writes, a write on overlapping reads and writes since the
    last flush, a flush on everything since; all of them on that last flush."""
    found: list[tuple[int, ...]] = []
    last_flush: int | None = None
    since: list[int] = []
    for index, (kind, start, count) in enumerate(operations):
        deps = [] if last_flush is None else [last_flush]
        for other in since:
            other_kind, other_start, other_count = operations[other]
            overlap = start < other_start + other_count and other_start < start + count
            if kind is Kind.FLUSH or (overlap and not (kind is Kind.READ and other_kind is Kind.READ)):
                deps.append(other)
        found.append(tuple(sorted(deps)))
        if kind is Kind.FLUSH:
            last_flush, since = index, []
        else:
            since.append(index)
    return found


OPERATIONS = st.lists(
    st.tuples(st.sampled_from([Kind.READ, Kind.WRITE, Kind.WRITE, Kind.FLUSH]), st.integers(0, 6), st.integers(1, 3)),
    min_size=1,
    max_size=14,
)


@given(OPERATIONS, st.data())
def test_any_arrival_and_any_order_of_ending_equals_one_after_the_other(
    operations: list[tuple[Kind, int, int]], data: st.DataObject
) -> None:
    deps = simple_dependencies(operations)
    arrival = data.draw(st.permutations(range(len(operations))))
    queue = JobQueue(JobLimits())
    works = [job(i, *deps[i], kind=kind, start=start, count=count) for i, (kind, start, count) in enumerate(operations)]
    blocks: dict[int, int] = {}
    reads: dict[int, list[int | None]] = {}
    frozen: dict[int, int] = {}
    durable: dict[int, dict[int, int]] = {}
    running: list[Work] = []
    arriving = list(arrival)

    def start(ready: list[Work]) -> None:
        nonlocal frozen
        for work in ready:
            running.append(work)
            if work.kind is Kind.FLUSH:
                queue.flush_begun(work)
                frozen = dict(blocks)

    while arriving or running:
        if arriving and (not running or data.draw(st.booleans())):
            work = works[arriving.pop(0)]
            start([work] if queue.admit(work) else [])
        else:
            work = running.pop(data.draw(st.integers(0, len(running) - 1)))
            span = range(work.start, work.start + work.count)
            assert work.job_id is not None
            if work.kind is Kind.WRITE:
                blocks.update(dict.fromkeys(span, work.job_id))
            elif work.kind is Kind.READ:
                reads[work.job_id] = [blocks.get(block) for block in span]
            else:
                durable[work.job_id] = frozen
            start(queue.complete([work]))
    assert queue.outstanding_jobs == 0, "nothing may be left waiting"

    serial: dict[int, int] = {}
    for index, (kind, first, count) in enumerate(operations):
        span = range(first, first + count)
        if kind is Kind.WRITE:
            serial.update(dict.fromkeys(span, index))
        elif kind is Kind.READ:
            assert reads[index] == [serial.get(block) for block in span]
        else:
            assert durable[index] == serial
    assert blocks == serial


# In order, without dependencies


def in_order() -> InOrderJobs:
    return InOrderJobs(JobLimits(), blocks_per_extent=8)


@given(OPERATIONS, st.data())
def test_in_order_needs_no_dependencies(operations: list[tuple[Kind, int, int]], data: st.DataObject) -> None:
    queue = in_order()
    written: dict[int, int] = {}
    running: list[Work] = []
    arriving = [job(i, kind=kind, start=start, count=count) for i, (kind, start, count) in enumerate(operations)]
    expected: dict[int, dict[int, int]] = {}
    serial: dict[int, int] = {}
    for index, (kind, first, count) in enumerate(operations):
        if kind is Kind.WRITE:
            serial.update(dict.fromkeys(range(first, first + count), index))
        expected[index] = dict(serial)
    covered: dict[int, dict[int, int]] = {}

    def start(ready: list[Work]) -> None:
        for work in ready:
            running.append(work)
            if work.kind is Kind.FLUSH:
                assert work.job_id is not None
                covered[work.job_id] = dict(written)
                start(queue.flush_fixed(work))

    while arriving or running:
        if arriving and (not running or data.draw(st.booleans())):
            work = arriving.pop(0)
            start([work] if queue.admit(work) else [])
            continue
        work = running.pop(data.draw(st.integers(0, len(running) - 1)))
        assert work.job_id is not None
        span = range(work.start, work.start + work.count)
        if work.kind is Kind.WRITE:
            written.update(dict.fromkeys(span, work.job_id))
        elif work.kind is Kind.READ:
            want = expected[work.job_id]
            assert [written.get(block) for block in span] == [want.get(block) for block in span]
        else:
            assert covered[work.job_id] == expected[work.job_id], "a flush covers the writes before it and no other"
        start(queue.complete([work]))
    assert queue.outstanding_jobs == 0
    assert written == serial


def test_in_order_write_passes_a_flush_and_a_read_of_other_blocks() -> None:
    queue = in_order()
    flush = job(1, kind=Kind.FLUSH)
    assert queue.admit(flush)
    assert not queue.writes_pass([0], [1]), "the write would get into the flush before it"
    assert queue.flush_fixed(flush) == []
    assert queue.writes_pass([0], [1])
    read = job(2, kind=Kind.READ, start=4)
    assert queue.admit(read)
    assert queue.reads_pass
    assert queue.writes_pass([0, 9], [4, 1])
    assert not queue.writes_pass([0, 3], [1, 2]), "the read must not see the write after it"
    queue.complete([read])
    assert queue.writes_pass([3], [2])


def test_in_order_write_waits_for_a_flush_that_waits() -> None:
    """The race: a flush waits for a slow write, another write comes. Done before the flush on this replica and not on
    another, it would leave both with the same flush number and other bytes."""
    queue = in_order()
    slow, flush, late, other = job(1), job(2, kind=Kind.FLUSH), job(3, start=9), job(4, start=20)
    assert queue.admit(slow)
    assert not queue.admit(flush)
    assert not queue.admit(late)
    assert queue.complete([slow]) == [flush]
    assert not queue.admit(other)
    assert queue.flush_fixed(flush) == [late, other]
    assert queue.complete([late, other, flush]) == []
    assert queue.waiting == 0


def test_in_order_flush_that_is_done_has_fixed_what_it_covers() -> None:
    queue = in_order()
    flush, late = job(1, kind=Kind.FLUSH), job(2)
    assert queue.admit(flush)
    assert not queue.admit(late)
    assert queue.complete([flush]) == [late]


def test_in_order_nothing_passes_a_write() -> None:
    queue = in_order()
    first = job(1, kind=Kind.FLUSH)
    assert queue.admit(first)
    queue.flush_fixed(first)
    write = job(2)
    assert queue.admit(write)
    assert not queue.reads_pass
    assert not queue.writes_pass([9], [1])
    assert not queue.admit(job(3, kind=Kind.FLUSH)), "the second flush must cover the write"


def test_in_order_live_repair_of_one_extent() -> None:
    """The reopen comes first and waits for a job that has not arrived; guest I/O there waits for it."""
    queue = in_order()
    inside_before = job(5, start=3)
    assert queue.admit(inside_before)
    reopen = job(13, 12, kind=Kind.REOPEN, extent=0)
    assert not queue.admit(reopen)
    close = job(10, kind=Kind.CLOSE, extent=0)
    assert not queue.admit(close), "the write before it is not done"
    inside, outside = job(20, start=2), job(21, start=9)
    assert not queue.admit(inside)
    assert queue.admit(outside)
    flush = job(22, kind=Kind.FLUSH)
    assert not queue.admit(flush)
    assert queue.complete([inside_before]) == [close]
    assert queue.complete([close]) == []
    for number in (11, 12):
        step = job(
            number, number - 1, kind=Kind.REPAIR if number == 11 else Kind.NO_OP, extent=0 if number == 11 else None
        )
        assert queue.admit(step)
        assert queue.complete([step]) == ([reopen] if number == 12 else [])
    assert queue.complete([outside]) == []
    assert queue.complete([reopen]) == [inside]
    assert queue.complete([inside]) == [flush]


def test_in_order_barrier_waits_for_everything() -> None:
    queue = in_order()
    read, flush = job(1, kind=Kind.READ), job(2, kind=Kind.FLUSH)
    assert queue.admit(read)
    assert queue.admit(flush)
    barrier = job(3, kind=Kind.BARRIER)
    assert not queue.admit(barrier)
    assert queue.complete([flush]) == []
    assert queue.complete([read]) == [barrier]


def test_in_order_nothing_comes_after_a_failure() -> None:
    queue = in_order()
    failing, before = job(1), job(2, start=5)
    queue.admit(failing)
    queue.admit(before)
    queue.failed(failing)
    assert not queue.reads_pass
    assert not queue.writes_pass([9], [1])
    assert not queue.admit(job(3, kind=Kind.FLUSH))
    assert not queue.admit(job(4, kind=Kind.READ, start=7))
    assert queue.complete([before]) == []


def test_in_order_forgets_jobs_that_nobody_names_any_more() -> None:
    queue = InOrderJobs(JobLimits(ranges_max=10), blocks_per_extent=8)
    for first in range(0, 1000, 10):
        queue.train_done(first, 4)  # reads without a message leave gaps
        assert queue.completed.range_count <= 10
    assert 993 in queue.completed
    assert 3 not in queue.completed


def test_in_order_barrier_and_no_op_are_about_no_extent() -> None:
    queue = in_order()
    assert not queue.admit(job(12, 11, kind=Kind.NO_OP))
    assert not queue.admit(job(13, 99, kind=Kind.BARRIER))
    assert queue.admit(job(20, start=0))


def test_in_order_train_counts_as_complete() -> None:
    queue = in_order()
    queue.train_done(1000, 64)
    assert queue.admit(job(2000, 1000, 1063, kind=Kind.NO_OP))
