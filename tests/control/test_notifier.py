"""Sending notices: order, retries, a receiver that is broken, gone or slow. On a mock clock, without a network."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest
import trio
from receiver_rig import Receiver
from trio.testing import MockClock, wait_all_tasks_blocked

from crucible_emu.control.notices import Notice
from crucible_emu.control.notifier import FAREWELL_S, REQUEST_S_MAX, RETRY_PAUSE_S, Notifier, check_url
from crucible_emu.errors import UsageError

HIGH, LOW = Notice("/start", {"n": 1}, high=True), Notice("/progress", {"n": 2}, high=False)
URL = "http://nexus.example:12221/"


async def test_what_is_put_in_is_sent_high_before_low(nursery: trio.Nursery) -> None:
    receiver = Receiver()
    notifier = Notifier(URL, transport=receiver)
    notifier.put(LOW)
    notifier.put(None)
    notifier.put(HIGH)
    nursery.start_soon(notifier.run)
    await wait_all_tasks_blocked()
    notifier.put(LOW)
    await notifier.drain()
    assert [(path, body) for _, path, body in receiver.received] == [
        ("/start", {"n": 1}),
        ("/progress", {"n": 2}),
        ("/progress", {"n": 2}),
    ]
    assert notifier.sent == 3
    nursery.cancel_scope.cancel()


async def test_a_start_that_fails_is_sent_again_before_anything_else(
    nursery: trio.Nursery, autojump_clock: MockClock, expect_log: Any
) -> None:
    receiver = Receiver(lambda number: 503 if number <= 2 else 204)
    notifier = Notifier(URL, transport=receiver)
    said = expect_log("the receiver of notices does not take them.*answers 503")
    back = expect_log("takes them again")
    notifier.put(HIGH)
    notifier.put(LOW)
    nursery.start_soon(notifier.run)
    await trio.sleep(60)
    assert receiver.paths == ["/start", "/start", "/start", "/progress"]
    times = [when for when, _, _ in receiver.received]
    assert [later - times[0] for later in times[:3]] == [0, RETRY_PAUSE_S, 2 * RETRY_PAUSE_S]
    assert (said.met, back.met) == (1, 1)
    nursery.cancel_scope.cancel()


async def test_a_receiver_that_is_gone_costs_nothing(
    nursery: trio.Nursery, autojump_clock: MockClock, expect_log: Any
) -> None:
    def gone(_: int) -> int:
        raise httpx2.ConnectError("connection refused")

    receiver = Receiver(gone)
    notifier = Notifier(URL, transport=receiver)
    said = expect_log("does not take them.*connection refused")
    nursery.start_soon(notifier.run)
    notifier.put(HIGH)
    notifier.put(LOW)
    await trio.sleep(60)
    assert receiver.paths == ["/start"] * 5 + ["/progress"]
    assert notifier.queue.dropped == 2 and len(notifier.queue) == 0
    assert said.met == 1, "not one line for each"
    nursery.cancel_scope.cancel()


async def test_a_receiver_that_never_answers_has_so_long(
    nursery: trio.Nursery, autojump_clock: MockClock, expect_log: Any
) -> None:
    class Slow(Receiver):
        async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
            await super().handle_async_request(request)
            await trio.sleep_forever()
            raise AssertionError

    receiver = Slow()
    notifier = Notifier(URL, transport=receiver)
    expect_log("does not take them.*no answer within 15 s")
    nursery.start_soon(notifier.run)
    notifier.put(LOW)
    notifier.put(LOW)
    await trio.sleep(REQUEST_S_MAX - 1)
    assert len(receiver.received) == 1
    await trio.sleep(2)
    assert len(receiver.received) == 2
    begun = trio.current_time()
    await notifier.drain()
    assert trio.current_time() - begun == FAREWELL_S, "leaving does not wait for it"
    nursery.cancel_scope.cancel()


async def test_a_password_in_the_url_is_not_logged(nursery: trio.Nursery, expect_log: Any) -> None:
    notifier = Notifier("http://me:opensesame@nexus.example:12221", transport=Receiver(lambda _: 500))
    said = expect_log("does not take them.*receiver=nexus.example:12221 ")
    leaked = expect_log("opensesame", at_least=0)
    nursery.start_soon(notifier.run)
    notifier.put(LOW)
    await notifier.drain()
    assert (said.met, leaked.met) == (1, 0)
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("url", ["", "nexus", "ftp://nexus", "http://", "http://[::1", "10.0.0.1:80", "http://a:b:c"])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="no receiver of notices"):
        check_url(url)


def test_a_slash_at_the_end_makes_no_difference() -> None:
    assert check_url("http://[fd00::1]:12221/") == "http://[fd00::1]:12221"
