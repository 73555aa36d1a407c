"""Who holds everybody up, and how a replacement looks to a person: pure, without a rack."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from rich.console import Console

from nexus.api.replacement_documents import Reason, Repair, Replacement, Waiting, WaitingReport
from nexus.cli.replacement_picture import STAGES, bar, changes, picture, progress_of, repair_progress, since, stages
from nexus.db.schema import RegionReplacementState, RegionSnapshotReplacementState
from nexus.replacement.held_up import held_up
from nexus.replacement.read_only import READ_ONLY_REPLACEMENT
from nexus.replacement.region import REGION_REPLACEMENT

NOW = datetime(2026, 1, 1, tzinfo=UTC)
NOTHING = WaitingReport(requests=(), locks=(), blockers=())


def request(number: int, state: str = "requested", kind: str = "region", **more: Any) -> Replacement:
    ids = {"id": UUID(int=number), "old_region_id": UUID(int=100 + number)}
    return Replacement.model_validate({"kind": kind, "state": state, "request_time": NOW} | ids | more)


# -- who holds everybody up -------------------------------------------------------------------------------------------


def test_the_one_at_the_end_holds_up_all_behind_it() -> None:
    assert held_up([]) == []
    assert held_up([("a", "b"), ("b", "c"), ("d", "c"), ("e", "f")]) == [("c", ("a", "b", "d")), ("f", ("e",))]


def test_who_waits_for_two_is_behind_both() -> None:
    assert held_up([("a", "b"), ("a", "c")]) == [("b", ("a",)), ("c", ("a",))]


def test_nobody_in_a_circle_is_left_out() -> None:
    assert held_up([("b", "c"), ("c", "d"), ("d", "b"), ("a", "c")]) == [("b", ("a", "c", "d"))]


def test_to_wait_for_oneself_is_not_to_wait() -> None:
    assert held_up([("a", "a")]) == []
    assert held_up([("a", "a"), ("a", "b")]) == [("b", ("a",))]


# -- how far ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "states", "machine"),
    [
        ("region", RegionReplacementState, REGION_REPLACEMENT),
        ("read-only", RegionSnapshotReplacementState, READ_ONLY_REPLACEMENT),
    ],
)
def test_the_stages_are_those_of_the_machine(kind: str, states: Any, machine: Any) -> None:
    """All of them; and every edge forward leads to a later one, every edge back to an earlier one."""
    assert set(STAGES[kind]) == {each.value for each in states}
    place = {state: number for number, state in enumerate(STAGES[kind])}
    for edge in machine.edges.values():
        assert (place[edge.target.value] < place[edge.source.value]) == edge.back, edge


def test_a_bar_is_full_only_when_all_is_done() -> None:
    assert (bar(0, 4, 4), bar(1, 4, 4), bar(4, 4, 4), bar(99, 100, 4)) == ("░░░░", "█░░░", "████", "███░")
    assert bar(0, 0, 2) == "██"
    for kind in ("region", "region_snapshot", "read_only_region"):
        full = {state: "░" not in progress_of(request(1, state, kind)) for state in stages(kind)}
        assert [state for state, done in full.items() if done] == ["complete"]


def test_how_far_a_repair_is() -> None:
    ids = {name: UUID(int=1) for name in ("repair_id", "upstairs_id", "session_id")}
    started = Repair.model_validate(ids | {"type": "live", "state": "started"})
    assert repair_progress(started) == "started"
    half = started.model_copy(update={"done_items": 2, "total_items": 4})
    assert repair_progress(half) == "██████░░░░░░ 2 of 4, started"
    assert repair_progress(half.model_copy(update={"state": "succeeded"})).startswith("████████████ 4 of 4")


@pytest.mark.parametrize(
    ("seconds", "words"), [(-5, "0 s"), (0, "0 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (200_000, "2 d")]
)
def test_how_long_ago(seconds: int, words: str) -> None:
    assert since(NOW - timedelta(seconds=seconds), NOW) == words


def shown(*requests: Replacement, report: WaitingReport = NOTHING, unasked: Any = ()) -> str:
    console = Console(width=160, record=True, file=None, quiet=False, force_terminal=False)
    with console.capture() as captured:
        console.print(picture(requests, report, unasked, NOW))
    return captured.get()


def test_the_picture_says_what_each_waits_for() -> None:
    waiting = request(2, "running", "region_snapshot")
    reasons = tuple(
        Reason(kind="lock", sentence=f"the lock of volume {name}: [saga] has it", since=NOW - timedelta(seconds=5))
        for name in ("v1", "v2")
    )
    report = WaitingReport(requests=(Waiting(request=waiting, reasons=reasons),), locks=(), blockers=())
    told = shown(request(1, "complete"), waiting, report=report, unasked=[object()])
    assert "the lock of volume v1: [saga] has it (and 1 more)" in told and "5 s" in told
    assert "1 of 2 replaced; 1 lost copies have no request yet" in told
    assert told.index("running") < told.index("complete"), "what is open comes first"


def test_where_no_terminal_is_each_change_is_a_line() -> None:
    before: dict[str, str] = {}
    assert changes(before, [request(1)]) == [f"region {UUID(int=101)}: requested"]
    assert changes(before, [request(1)]) == []
    assert [len(changes(before, [request(1, state)])) for state in ("running", "driving", "running")] == [1, 0, 0]
    told = changes(before, [request(1, "replacement_done"), request(2, kind="read_only_region")])
    assert told == [f"region {UUID(int=101)}: replacement done", f"read-only region {UUID(int=102)}: requested"]
