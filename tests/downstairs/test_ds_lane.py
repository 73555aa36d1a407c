"""What may run beside what, and writes that find no room."""

from __future__ import annotations

import itertools

import pytest

from crucible_emu.downstairs.lane import Lane, excludes
from crucible_emu.downstairs.work import Kind, Work

PER_EXTENT = 8
_ids = itertools.count()


def work(kind: Kind, *, extent: int | None = None, start: int = 0, count: int = 0, connection: int = 1) -> Work:
    return Work(kind, connection, job_id=next(_ids), extent_id=extent, start=start, count=count)


def write(start: int = 0, connection: int = 1) -> Work:
    return work(Kind.WRITE, start=start, count=1, connection=connection)


IN_EXTENT_1 = work(Kind.READ, start=7, count=2)
EXCLUSIVE = [
    Kind.FLUSH,
    Kind.FLUSH_EXTENT,
    Kind.FLUSH_CLOSE,
    Kind.CLOSE,
    Kind.REOPEN,
    Kind.REPAIR,
    Kind.REOPEN_ALL,
    Kind.DESTAGE,
]
ONE_EXTENT = [Kind.FLUSH_CLOSE, Kind.CLOSE, Kind.REOPEN, Kind.REPAIR]
FLUSHES = [Kind.FLUSH, Kind.FLUSH_EXTENT, Kind.DESTAGE]


@pytest.mark.parametrize("kind", ONE_EXTENT)
def test_an_extent_is_not_taken_away_from_under_a_read(kind: Kind) -> None:
    assert excludes(work(kind, extent=0), IN_EXTENT_1, PER_EXTENT)
    assert excludes(work(kind, extent=1), IN_EXTENT_1, PER_EXTENT)
    assert not excludes(work(kind, extent=2), IN_EXTENT_1, PER_EXTENT)


@pytest.mark.parametrize("kind", FLUSHES)
def test_flushes_go_beside_reads_writes_and_repairs(kind: Kind) -> None:
    flush = work(kind, extent=0 if kind is Kind.FLUSH_EXTENT else None)
    repair = work(Kind.REPAIR, extent=0)
    assert not excludes(flush, IN_EXTENT_1, PER_EXTENT)
    assert not excludes(flush, repair, PER_EXTENT)
    assert not excludes(repair, flush, PER_EXTENT)


@pytest.mark.parametrize(("waiting", "running"), list(itertools.product(EXCLUSIVE, EXCLUSIVE)))
def test_exclusive_work_goes_one_after_the_other(waiting: Kind, running: Kind) -> None:
    expected = True
    if Kind.REOPEN_ALL not in (waiting, running) and Kind.REPAIR in (waiting, running):
        other = running if waiting is Kind.REPAIR else waiting
        expected = other not in FLUSHES
    assert excludes(work(waiting, extent=0), work(running, extent=0), PER_EXTENT) is expected


@pytest.mark.parametrize("kind", [Kind.CLOSE, Kind.REOPEN, Kind.FLUSH_CLOSE])
def test_a_repair_hinders_only_its_own_extent(kind: Kind) -> None:
    repair = work(Kind.REPAIR, extent=0)
    assert excludes(work(kind, extent=0), repair, PER_EXTENT)
    assert not excludes(work(kind, extent=1), repair, PER_EXTENT)
    assert excludes(work(Kind.REPAIR, extent=1), repair, PER_EXTENT)


@pytest.mark.parametrize("kind", [Kind.READ, Kind.WRITE, *EXCLUSIVE])
def test_promotion_waits_for_everything(kind: Kind) -> None:
    assert excludes(work(Kind.REOPEN_ALL), work(kind, extent=3, count=1), PER_EXTENT)


def test_waiting_work_starts_in_order() -> None:
    lane = Lane(PER_EXTENT)
    reading = work(Kind.READ, start=0, count=1)
    assert lane.admit(reading)
    close, flush = work(Kind.CLOSE, extent=0), work(Kind.FLUSH)
    assert not lane.admit(close)
    assert not lane.admit(flush)  # it could run, but order of arrival holds
    assert lane.finish(reading) == [close]
    assert lane.finish(close) == [flush]
    assert lane.finish(flush) == []
    assert lane.idle


def test_write_without_room_starts_a_destage_and_runs_after_it() -> None:
    lane = Lane(PER_EXTENT)
    first, second, third = write(0), write(1), write(2)
    assert lane.admit(first)
    assert lane.admit(second)
    (destage,) = lane.stall([first, second])
    assert destage.kind is Kind.DESTAGE
    assert not lane.admit(third), "it waits behind those that came before"
    assert lane.admit(work(Kind.READ, start=0, count=1))
    assert lane.finish(destage) == [first, second, third]


def test_flush_under_way_is_relief_enough() -> None:
    lane = Lane(PER_EXTENT)
    flush, stalled = work(Kind.FLUSH), write()
    assert lane.admit(flush)
    assert lane.admit(stalled)
    assert lane.stall([stalled]) == []
    assert lane.finish(flush) == [stalled]


def test_failed_flush_is_no_relief() -> None:
    lane = Lane(PER_EXTENT)
    flush, stalled = work(Kind.FLUSH), write()
    lane.admit(flush)
    lane.admit(stalled)
    lane.stall([stalled])
    (destage,) = lane.finish(flush, failed=True)
    assert destage.kind is Kind.DESTAGE


def test_progress_after_a_destage_means_another_destage() -> None:
    lane = Lane(PER_EXTENT)
    first, second = write(0), write(1)
    lane.admit(first)
    lane.admit(second)
    (destage,) = lane.stall([first, second])
    lane.finish(destage)
    assert lane.finish(first) == []
    (again,) = lane.stall([second])
    assert again.kind is Kind.DESTAGE
    assert not second.relieved


def test_write_bigger_than_the_staging_area_runs_regardless() -> None:
    lane = Lane(PER_EXTENT)
    huge, small = write(0), write(1)
    lane.admit(huge)
    lane.admit(small)
    (destage,) = lane.stall([huge, small])
    assert lane.finish(destage) == [huge, small]
    started = lane.stall([huge, small])
    assert started[0] is huge
    assert huge.relieved
    assert not small.relieved
    assert [other.kind for other in started[1:]] == [Kind.DESTAGE]


def test_dropped_connection_leaves_only_what_runs() -> None:
    lane = Lane(PER_EXTENT)
    running, waiting = work(Kind.FLUSH, connection=1), work(Kind.FLUSH, connection=1)
    stalled, other = write(connection=1), work(Kind.FLUSH, connection=2)
    lane.admit(running)
    lane.admit(waiting)
    lane.admit(stalled)
    lane.stall([stalled])
    lane.admit(other)
    gone, left = lane.drop(1)
    assert set(gone) == {waiting, stalled}
    assert left == [running]
    assert all(one.abandoned for one in (running, waiting, stalled))
    assert lane.finish(running) == [other]


def test_dropping_the_head_of_the_lane_lets_the_next_start() -> None:
    lane = Lane(PER_EXTENT)
    reading = work(Kind.READ, start=0, count=1, connection=2)
    lane.admit(reading)
    close, flush = work(Kind.CLOSE, extent=0, connection=1), work(Kind.FLUSH, connection=2)
    lane.admit(close)
    lane.admit(flush)
    lane.drop(1)
    assert lane.advance() == [flush]
