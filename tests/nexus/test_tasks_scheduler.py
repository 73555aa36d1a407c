"""When tasks run: the pure core by its table, and the scheduler around it by a clock that jumps."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from nexus.saga import ActionFailed
from nexus.tasks import Scheduler, UnknownTask
from nexus.tasks.schedule import TRANSITIONS, Happening, ImpossibleHappening, Phase, Reason, Schedule

NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Counting:
    """A task that says when it ran, takes its time, and never meets itself."""

    description = "counts"

    def __init__(self, name: str = "counting", period_s: float = 10, takes_s: float = 0) -> None:
        self.name, self.period_s, self.takes_s = name, period_s, takes_s
        self.ran_at: list[float] = []
        self.running = False
        self.work: Callable[[], Awaitable[Any]] | None = None

    async def activate(self) -> dict[str, Any]:
        assert not self.running, "two activations of one task"
        self.running = True
        try:
            self.ran_at.append(trio.current_time())
            await trio.sleep(self.takes_s)
            if self.work is not None:
                await self.work()
        finally:
            self.running = False
        return {"ran": len(self.ran_at)}


@asynccontextmanager
async def scheduled(*tasks: Counting, **options: Any) -> AsyncIterator[Scheduler]:
    scheduler = Scheduler(tasks, lambda: NOW, **options)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scheduler.run)
        await trio.testing.wait_all_tasks_blocked()
        yield scheduler
        nursery.cancel_scope.cancel()


# -- the core ---------------------------------------------------------------------------------------------------------


def test_task_is_never_begun_while_it_runs() -> None:
    for phase in (Phase.RUNNING, Phase.RUNNING_AND_WANTED):
        assert (phase, Happening.BEGUN) not in TRANSITIONS
        with pytest.raises(ImpossibleHappening, match="cannot be begun"):
            Schedule(1, phase=phase).begin(0, NOW, Reason.TIMEOUT)
    with pytest.raises(ImpossibleHappening, match="cannot be ended"):
        Schedule(1).end(0, None)


@given(st.lists(st.sampled_from(["ask", "time", "step"]), max_size=40))
def test_whoever_asks_is_served_by_an_activation_that_begins_later(program: list[str]) -> None:
    schedule, now_s = Schedule(period_s=2), 0.0
    promised: list[int] = []
    for what in program:
        match what:
            case "ask":
                promised.append(schedule.ask(Reason.SIGNALED))
            case "time":
                now_s += 1
            case "step" if schedule.current is not None:
                schedule.end(now_s, None)
                assert schedule.due_s == now_s + 2
            case "step":
                reason = schedule.due(now_s)
                if reason is not None:
                    schedule.begin(now_s, NOW, reason)
    for _ in range(4):
        if schedule.current is not None:
            schedule.end(now_s, None)
        elif schedule.due(now_s) is Reason.SIGNALED:
            schedule.begin(now_s, NOW, Reason.SIGNALED)
    assert all(number <= schedule.iteration for number in promised)
    assert schedule.phase is Phase.IDLE


# -- the scheduler ----------------------------------------------------------------------------------------------------


async def test_period_counts_from_the_end_of_an_activation(autojump_clock: trio.testing.MockClock) -> None:
    task = Counting(period_s=10, takes_s=3)
    async with scheduled(task):
        await trio.sleep(30)
    assert task.ran_at == [0, 13, 26]


async def test_asked_for_it_runs_at_once_and_once_more_if_it_runs_already(
    autojump_clock: trio.testing.MockClock,
) -> None:
    task = Counting(period_s=1000, takes_s=3)
    async with scheduled(task) as scheduler:
        await trio.sleep(1)
        for _ in range(5):
            scheduler.activate(["counting"])
        await trio.sleep(10)
        assert task.ran_at == [0, 3]
        scheduler.activate(["counting"])
        await trio.sleep(10)
    assert task.ran_at == [0, 3, 11]


async def test_who_waits_is_told_of_an_activation_that_began_later(autojump_clock: trio.testing.MockClock) -> None:
    task = Counting(period_s=1000, takes_s=3)
    async with scheduled(task) as scheduler:
        assert await scheduler.activated("counting") == {"ran": 2}, "the first had begun"
        assert await scheduler.activated("counting") == {"ran": 3}


async def test_slow_task_keeps_no_other_from_running(autojump_clock: trio.testing.MockClock) -> None:
    slow, quick = Counting("slow", takes_s=10_000), Counting("quick", period_s=1)
    async with scheduled(slow, quick):
        await trio.sleep(5.5)
    assert len(quick.ran_at) == 6


async def test_task_that_depends_on_another_runs_after_it(autojump_clock: trio.testing.MockClock) -> None:
    first, second = Counting("first", period_s=1000, takes_s=2), Counting("second", period_s=1000)
    async with scheduled(first, second, after={"first": ["second"]}) as scheduler:
        await trio.sleep(5)
        assert second.ran_at == [0, 2]
        assert scheduler.status("second")["last"]["details"]["reason"] == "dependency"


async def test_failing_task_comes_round_again_and_quotes_no_strange_words(
    autojump_clock: trio.testing.MockClock, expect_log: Any
) -> None:
    expect_log("background task failed", at_least=2)
    task = Counting(period_s=10)

    async def fail() -> None:
        raise ActionFailed("the agent is away") if len(task.ran_at) == 1 else ValueError("key=swordfish")

    task.work = fail
    async with scheduled(task) as scheduler:
        await trio.sleep(5)
        assert scheduler.status("counting")["last"]["details"]["details"] == {"error": "the agent is away"}
        await trio.sleep(10)
        shown = str(scheduler.statuses())
    assert "failed unexpectedly: ValueError" in shown and "swordfish" not in shown


async def test_unknown_tasks_are_refused(autojump_clock: trio.testing.MockClock) -> None:
    task = Counting()
    with pytest.raises(UnknownTask, match="no background task other"):
        Scheduler([task], lambda: NOW, periods_s={"other": 1})
    async with scheduled(task) as scheduler:
        with pytest.raises(UnknownTask):
            scheduler.activate(["counting", "other"])
        with pytest.raises(UnknownTask):
            scheduler.status("other")
        await trio.sleep(1)
    assert task.ran_at == [0], "and then none was told"


async def test_status_is_the_lockstep_documents(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Member by member; where the API is served its answers are judged by the document itself."""
    task = Counting(period_s=10.25, takes_s=3.5)
    async with scheduled(task) as scheduler:
        first = scheduler.status("counting")
        assert first["current"] == {
            "current_status": "running",
            "details": {"iteration": 1, "reason": "timeout", "start_time": "2026-01-01T00:00:00+00:00"},
        }
        assert first["last"] == {"last_result": "never_completed"}
        assert first["period"] == {"secs": 10, "nanos": 250_000_000}
        await trio.sleep(5)
        second = scheduler.status("counting")
        assert second["current"] == {"current_status": "idle"}
        assert second["last"] == {
            "last_result": "completed",
            "details": {
                "iteration": 1,
                "reason": "timeout",
                "start_time": "2026-01-01T00:00:00+00:00",
                "elapsed": {"secs": 3, "nanos": 500_000_000},
                "details": {"ran": 1},
            },
        }
        assert second.keys() == {"name", "description", "period", "current", "last"}
        assert scheduler.statuses() == {"counting": second}
