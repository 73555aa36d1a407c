"""When a request is made again, how long that waits, and when it ends."""

from __future__ import annotations

import itertools
import random

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from crucible_emu.client.failures import ServiceError, ServiceUnreachable
from crucible_emu.client.persistence import Persistence, ServiceGone
from crucible_emu.client.retry import Backoff, Patience, is_passing

SILENCE = ServiceUnreachable("http://agent", "connection refused")


def test_the_real_intervals() -> None:
    patience = Patience(Backoff(spread=0), lambda: 0.0)
    pauses = [patience.pause_s() for _ in range(15)]
    assert pauses[:4] == pytest.approx([0.167, 0.334, 0.668, 1.336])
    assert pauses[10] == pytest.approx(171.008)
    assert pauses[11:] == [180.0] * 4


@given(st.integers(0, 10_000), st.floats(0, 1, exclude_max=True))
def test_an_interval_is_never_far_from_its_middle(attempt: int, drawn: float) -> None:
    middle = Backoff(spread=0).interval_s(attempt, 0)
    assert 0.5 * middle <= Backoff().interval_s(attempt, drawn) <= 1.5 * middle


def test_the_same_seed_waits_the_same() -> None:
    first, second = (Patience(Backoff(), random.Random(7).random) for _ in range(2))
    assert [first.pause_s() for _ in range(9)] == [second.pause_s() for _ in range(9)]


@pytest.mark.parametrize("changes", [{"first_s": 0}, {"factor": 0.5}, {"longest_s": 0.1}, {"spread": 1}])
def test_a_backoff_that_does_not_grow_is_none(changes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="is no backoff"):
        Backoff(**changes)


@pytest.mark.parametrize(
    ("error", "passing"),
    [
        (SILENCE, True),
        (ServiceError(503, "later"), True),
        (ServiceError(429, "slower"), True),
        *((ServiceError(status, "no"), False) for status in (400, 401, 404, 409, 410, 500)),
        (ValueError(), False),
    ],
)
def test_what_is_worth_another_attempt(error: Exception, passing: bool) -> None:
    assert is_passing(error) is passing


class Scripted:
    """A request that fails so often, and then answers; ``at`` are the times of its attempts."""

    def __init__(self, *outcomes: Exception | str) -> None:
        self._outcomes = iter(outcomes)
        self.at: list[float] = []

    async def __call__(self) -> str:
        self.at.append(trio.current_time())
        outcome = next(self._outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


async def test_what_passes_is_waited_out(autojump_clock: MockClock) -> None:
    request = Scripted(SILENCE, ServiceError(503, "cloning"), ServiceError(429, "slower"), "done")
    assert await Persistence(Backoff(1, spread=0)).ask(request) == "done"
    assert [after - before for before, after in itertools.pairwise(request.at)] == pytest.approx([1, 2, 4])


async def test_what_is_for_good_is_raised_at_once() -> None:
    request = Scripted(ServiceError(500, "no"))
    with pytest.raises(ServiceError, match="no"):
        await Persistence().ask(request)
    assert len(request.at) == 1


async def test_a_service_that_is_gone_is_not_asked_again(autojump_clock: MockClock) -> None:
    asked = itertools.count()

    async def gone() -> bool:
        return next(asked) >= 3

    request = Scripted(SILENCE, SILENCE, SILENCE, "too late")
    with pytest.raises(ServiceGone, match="gone for good; the last attempt: no answer from http://agent") as ended:
        await Persistence(Backoff(1), gone=gone).ask(request)
    assert ended.value.last is SILENCE
    assert len(request.at) == 3


async def test_waiting_asks_until_the_answer_is_the_one(autojump_clock: MockClock) -> None:
    request = Scripted("not yet", SILENCE, "not yet", "now")
    found = await Persistence(Backoff(1, spread=0)).wait_for(request, lambda answer: answer == "now")
    assert found == "now"
    assert len(request.at) == 4
