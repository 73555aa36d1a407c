"""What the control plane is told, and in which order: words, priorities, bounds. No loop, no clock."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from test_upstairs_driver import RecordingPort
from trio.testing import MockClock, memory_stream_pair
from upstairs_rig import SESSION, UPSTAIRS, Rig

from crucible_emu import errors
from crucible_emu.control.notices import (
    ATTEMPTS_MAX,
    HIGH_MAX,
    LOW_MAX,
    Notice,
    NoticeQueue,
    Reporter,
    stop_reason,
)
from crucible_emu.upstairs.tcp_link import TcpAddress, TcpConnector, TcpLink

BASE = f"/crucible/0/upstairs/{UPSTAIRS}"


def notice(name: str, *, high: bool = False) -> Notice:
    return Notice(name, {}, high)


def drained(queue: NoticeQueue) -> list[str]:
    found = []
    while (taken := queue.take()) is not None:
        found.append(taken.path)
    return found


# -- the queue --------------------------------------------------------------------------------------------------------


def test_high_goes_before_low_and_each_in_its_order() -> None:
    queue = NoticeQueue()
    for name in ("low 1", "low 2"):
        queue.put(notice(name))
    for name in ("high 1", "high 2"):
        queue.put(notice(name, high=True))
    assert len(queue) == 4
    assert drained(queue) == ["high 1", "high 2", "low 1", "low 2"]
    assert len(queue) == 0


def test_what_failed_goes_before_everything_and_five_times_in_all() -> None:
    queue = NoticeQueue()
    queue.put(notice("start", high=True))
    queue.put(notice("finish", high=True))
    for attempt in range(1, ATTEMPTS_MAX):
        taken = queue.take()
        assert taken is not None and taken.path == "start" and taken.attempts == attempt - 1
        assert queue.failed(taken)
    taken = queue.take()
    assert taken is not None and taken.attempts == 4
    assert not queue.failed(taken)
    assert queue.dropped == 1
    assert drained(queue) == ["finish"]


def test_what_is_low_is_not_tried_again() -> None:
    queue = NoticeQueue()
    queue.put(notice("progress"))
    taken = queue.take()
    assert taken is not None and not queue.failed(taken)
    assert queue.dropped == 1 and queue.take() is None


@pytest.mark.parametrize(("high", "most"), [(True, HIGH_MAX), (False, LOW_MAX)])
def test_a_full_queue_drops_what_comes_and_says_so_once(high: bool, most: int, expect_log: Any) -> None:
    queue = NoticeQueue()
    said = expect_log("notices are dropped")
    results = [queue.put(notice(str(number), high=high)) for number in range(most + 10)]
    assert results == [True] * most + [False] * 10
    assert queue.dropped == 10 and said.met == 1
    assert queue.put(notice("the other kind has room", high=not high))


def test_a_jam_is_announced_again_after_it_was_over(expect_log: Any) -> None:
    queue = NoticeQueue(high_max=1)
    said = expect_log("notices are dropped", at_least=2)
    for _ in range(2):
        queue.put(notice("kept", high=True))
        queue.put(notice("dropped", high=True))
        queue.take()
    assert said.met == 2


@given(st.lists(st.sampled_from(["high", "low", "take", "fail"]), max_size=200))
def test_whatever_happens_it_stays_small_and_loses_only_what_it_counts(steps: list[str]) -> None:
    queue = NoticeQueue(high_max=4, low_max=4)
    queue._full = True  # the log is another test's
    given_in = taken_out = 0
    for step in steps:
        if step in ("high", "low"):
            given_in += 1
            queue.put(notice(step, high=step == "high"))
            queue._full = True
        elif (taken := queue.take()) is not None:
            queue._full = True
            if step == "fail":
                queue.failed(taken)
            else:
                taken_out += 1
        assert len(queue) <= 9
    assert given_in == taken_out + queue.dropped + len(queue)


# -- the words --------------------------------------------------------------------------------------------------------


class Ticks:
    """A clock that counts."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> str:
        self.now += 1
        return f"2026-01-01T00:00:{self.now:02d}Z"


def under_repair(*clients: int) -> list[dict[str, str]]:
    return [
        {"region_uuid": str(UUID(int=100 + client)), "target_addr": f"127.0.0.1:{4000 + client}"} for client in clients
    ]


def test_a_live_repair_is_told_from_start_to_finish() -> None:
    rig = Rig().active()
    rig.fault(1)
    reporter = Reporter(rig.core, Ticks())
    rig.reconnect()
    rig.answer_all()
    told = [reporter.repair(news) for news in rig.news]
    repair_id = str(reporter.repair_id(1))
    head = {"session_id": str(SESSION), "repair_id": repair_id, "repair_type": "live", "repairs": under_repair(1)}
    extents = rig.definition.extent_count
    assert told[0] == Notice(f"{BASE}/repair-start", {"time": "2026-01-01T00:00:01Z", **head}, high=True)
    assert told[1:-1] == [
        Notice(
            f"{BASE}/repair/{repair_id}/progress",
            {"time": f"2026-01-01T00:00:{extent + 2:02d}Z", "current_item": extent, "total_items": extents},
            high=False,
        )
        for extent in range(extents)
    ]
    end = {"time": f"2026-01-01T00:00:{extents + 2:02d}Z", **head, "aborted": False}
    assert told[-1] == Notice(f"{BASE}/repair-finish", end, high=True)


def test_a_reconciliation_names_all_three_and_its_steps() -> None:
    rig = Rig(generation=9)
    rig.replicas[2].gen[1] = 4
    rig.active()
    reporter = Reporter(rig.core, Ticks())
    told = [reporter.repair(news) for news in rig.news]
    assert told[0].body["repair_type"] == "reconciliation"
    assert told[0].body["repairs"] == under_repair(0, 1, 2)
    assert [(one.body["current_item"], one.body["total_items"]) for one in told[1:-1]] == [(n, 4) for n in range(4)]
    assert told[-1].body["aborted"] is False
    assert {one.body["repair_id"] for one in (told[0], told[-1])} == {str(reporter.repair_id(1))}


def test_an_aborted_repair_says_so_and_names_whom_it_began_with() -> None:
    rig = Rig().active()
    rig.fault(1)
    reporter = Reporter(rig.core, Ticks())
    rig.replicas[0].answers_repairs = False
    rig.reconnect()
    told = [reporter.repair(news) for news in rig.news]
    rig.news.clear()
    rig.core.replace_downstairs("127.0.0.1:4001", "127.0.0.1:5001")
    rig.run()
    rig.replicas[0].answers_repairs = True
    rig.answer_live(0)
    rig.answer_all()
    (end,) = [reporter.repair(news) for news in rig.news if news.what == "finish"]
    assert end.body["aborted"] is True
    assert end.body["repairs"] == told[0].body["repairs"] == under_repair(1)


def test_a_reconciliation_that_a_disable_cuts_short_is_told_as_aborted() -> None:
    rig = Rig(generation=9)
    rig.replicas[2].gen[1] = 4
    rig.replicas[0].answers_repairs = False
    rig.activate()
    rig.core.abandon(errors.IoError("changed my mind"))
    rig.run()
    assert [news.what for news in rig.news] == ["start", "progress", "progress", "finish"]
    assert rig.news[-1].aborted


def test_a_live_repair_that_a_takeover_cuts_short_is_told_as_aborted() -> None:
    rig = Rig().active()
    rig.fault(1)
    rig.replicas[0].answers_repairs = False
    rig.reconnect()
    rig.core.disable(errors.NoLongerActive())
    rig.run()
    assert [news.what for news in rig.news] == ["start", "progress", "finish"]
    assert rig.news[-1].aborted
    assert rig.core.clients[1].live_repair_aborted == 1


def test_runs_and_sessions_have_ids_of_their_own() -> None:
    reporter = Reporter(Rig().core, Ticks())
    assert reporter.repair_id(1) == reporter.repair_id(1) != reporter.repair_id(2)


def test_a_client_whose_region_is_not_known_is_left_out(expect_log: Any) -> None:
    rig = Rig(generation=9)
    rig.replicas[2].gen[1] = 4
    rig.active()
    rig.core.clients[0].region_uuid = None
    with expect_log("left out of a notice"):
        assert Reporter(rig.core, Ticks()).repair(rig.news[0]).body["repairs"] == under_repair(1, 2)


@pytest.mark.parametrize(
    ("why", "reason"),
    [
        ("no answer from 10.0.0.1:1 within 10 s", "connection_timeout"),
        ("cannot connect to 10.0.0.1:1: refused", None),
        ("closed by us", None),
        ("closed by the Downstairs", "finished"),
        ("silent for 45 s", "timeout"),
        ("sending failed: broken pipe", "write_failed"),
        ("receiving failed: connection reset", "read_failed"),
        ("broke the protocol: frame of 3 bytes", "read_failed"),
    ],
)
def test_the_end_of_a_connection_in_the_words_of_the_api(why: str, reason: str | None) -> None:
    assert stop_reason(why) == reason
    rig = Rig().active()
    told = Reporter(rig.core, Ticks()).stopped(2, why)
    if reason is None:
        assert told is None
    else:
        path = f"{BASE}/downstairs/{UUID(int=102)}/stopped"
        assert told == Notice(path, {"time": "2026-01-01T00:00:01Z", "reason": reason}, high=False)


async def test_the_reasons_that_connections_really_give(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    async def ended(talk: Callable[[trio.abc.Stream], Awaitable[None]]) -> str | None:
        ours, theirs = memory_stream_pair()
        nursery.start_soon(talk, theirs)
        return stop_reason(await TcpLink(ours, UPSTAIRS, SESSION).run(RecordingPort()))  # type: ignore[arg-type]

    async def stay_silent(stream: trio.abc.Stream) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            while await stream.receive_some():  # type: ignore[attr-defined]
                pass

    async def talk_rubbish(stream: trio.abc.Stream) -> None:
        await stream.send_all(b"\xff" * 64)  # type: ignore[attr-defined]

    async def leave(stream: trio.abc.Stream) -> None:
        await stream.aclose()

    assert await ended(stay_silent) == "timeout"
    assert await ended(talk_rubbish) == "read_failed"
    assert await ended(leave) == "finished"
    refused = TcpConnector(TcpAddress("127.0.0.1", 1), UPSTAIRS, SESSION)
    assert stop_reason(await refused.run(RecordingPort())) is None


def test_nobody_is_told_of_a_connection_whose_region_was_never_seen() -> None:
    assert Reporter(Rig().core, Ticks()).stopped(0, "silent for 45 s") is None
