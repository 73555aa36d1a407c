"""The crew: every share once, whoever does it, and one word when all is done."""

from __future__ import annotations

import threading
from itertools import pairwise

import pytest
import trio

from crucible_emu.upstairs.crew import Crew, crew


class Work:
    """Notes who did which share; ``fails`` at one of them."""

    def __init__(self, count: int, fails: int | None = None) -> None:
        self.count = count
        self.fails = fails
        self.shares: list[tuple[int, int]] = []

    def run(self, first: int, stop: int) -> None:
        self.shares.append((first, stop))
        if self.fails is not None and first <= self.fails < stop:
            raise OSError("no")


class Outcome:
    """What the loop was told, and when."""

    def __init__(self) -> None:
        self.told: list[BaseException | None] = []
        self.threads: list[int] = []
        self.done = trio.Event()

    def __call__(self, error: BaseException | None) -> None:
        self.told.append(error)
        self.threads.append(threading.get_ident())
        self.done.set()


@pytest.mark.parametrize("width", [1, 2, 5])
@pytest.mark.parametrize(("count", "share"), [(1, 1), (7, 3), (64, 1), (3, 100)])
async def test_every_share_is_done_once_and_the_loop_is_told(width: int, count: int, share: int) -> None:
    team = Crew(width)
    works = [Work(count) for _ in range(4)]
    outcomes = [Outcome() for _ in works]
    for work, outcome in zip(works, outcomes):
        team.start(work, share, outcome)
    with trio.fail_after(10):
        for outcome in outcomes:
            await outcome.done.wait()
    for work in works:
        shares = sorted(work.shares)
        assert (shares[0][0], shares[-1][1]) == (0, count)
        assert all(before[1] == after[0] for before, after in pairwise(shares))
    assert all(outcome.told == [None] for outcome in outcomes)
    assert {thread for outcome in outcomes for thread in outcome.threads} == {threading.get_ident()}


async def test_what_a_share_fails_with_is_told_after_all_of_them() -> None:
    work, outcome = Work(6, fails=2), Outcome()
    Crew(2).start(work, 1, outcome)
    with trio.fail_after(10):
        await outcome.done.wait()
    assert len(work.shares) == 6
    assert [type(error) for error in outcome.told] == [OSError]


async def test_shares_run_beside_each_other_and_beside_the_loop() -> None:
    """Two shares that wait for each other: neither would ever end by itself."""
    meeting = threading.Barrier(2, timeout=10)

    class Meeting(Work):
        def run(self, first: int, stop: int) -> None:
            super().run(first, stop)
            meeting.wait()

    work, outcome = Meeting(2), Outcome()
    Crew(2).start(work, 1, outcome)
    with trio.fail_after(10):
        await outcome.done.wait()
    assert outcome.told == [None]


async def test_a_crew_that_has_rested_is_woken_again() -> None:
    team = Crew(3)
    for _ in range(5):
        work, outcome = Work(9), Outcome()
        team.start(work, 2, outcome)
        with trio.fail_after(10):
            await outcome.done.wait()
        assert len(work.shares) == 5


def test_a_loop_that_is_over_is_told_nothing() -> None:
    """And the thread that does the last share does not mind."""
    begun, go_on, over = threading.Event(), threading.Event(), threading.Event()
    outcome: list[BaseException | None] = []

    class Slow(Work):
        def run(self, first: int, stop: int) -> None:
            super().run(first, stop)
            if threading.current_thread() is threading.main_thread():
                begun.wait(10)  # the other share is the thread's
            else:
                begun.set()
                go_on.wait(10)
                over.set()

    work = Slow(2)

    async def main() -> None:
        Crew(2).start(work, 1, outcome.append)
        assert await trio.to_thread.run_sync(begun.wait, 10)

    trio.run(main)
    go_on.set()
    assert over.wait(10)
    assert sorted(work.shares) == [(0, 1), (1, 2)]
    assert outcome == []


async def test_one_crew_for_all_disks_of_a_loop() -> None:
    assert crew() is crew()


def test_a_machine_with_one_core_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crucible_emu.upstairs.crew.os.sched_getaffinity", lambda _: {0})

    async def main() -> Crew | None:
        return crew()

    assert trio.run(main) is None
