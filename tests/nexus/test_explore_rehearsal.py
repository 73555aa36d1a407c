"""Runs that recall how they begin come to what they come to in full, and ask the database less."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from nexus.db import Database
from nexus.db.database import Attempt
from nexus.db.engines import Tally
from nexus.explore import plan
from nexus.explore.cases import BEFORE_EFFECT, Case, Interference, Moment
from nexus.explore.rehearsal import Course, Rehearsal, fresh
from nexus.explore.run import forget_states, run_case, run_cases
from nexus.explore.scenarios import SCENARIOS

MOMENT = Moment("disk-delete", "DELETE_DISK_RECORD", BEFORE_EFFECT)


class Asked:
    """A rack and a database in one, that count what they are asked."""

    def __init__(self) -> None:
        self.draws = 0
        self.counted: Any = 0
        self.drawn: Any = "chance"
        self.filled: list[bytes] = []
        self.course: Course | None = None

    def fill(self, image: bytes) -> None:
        self.filled.append(image)

    def image(self) -> bytes:
        return b"image after %d" % self.counted


def course(rehearsal: Rehearsal, rack: Any) -> Course:
    made = Course(rehearsal)
    made.begin(rack, rack)
    return made


def first(connection: Any) -> list[str]:
    raise AssertionError("asked elsewhere")


def second(connection: Any) -> list[str]:
    raise AssertionError("asked elsewhere")


def rehearsal_of_two() -> Rehearsal:
    cases = [Case("delete-disk", (Interference(MOMENT, each),)) for each in ("crash", "error")]
    return Rehearsal("delete-disk", cases, b"set-up")


def ask(rack: Any, value: Any) -> Any:
    def asked() -> Attempt[Any]:
        rack.counted += 1
        return Attempt(Tally(rows_written=1), value)

    return asked


def never() -> Attempt[Any]:
    raise AssertionError("it is known what comes of it")


def test_what_a_run_began_with_is_not_asked_again() -> None:
    rehearsal, one = rehearsal_of_two(), Asked()
    began = course(rehearsal, one)
    value = began.attempt(first, ask(one, ["found"])).value
    value.append("and changed by who asked")
    began.come_by(MOMENT)
    began.part(Interference(MOMENT, "crash"))
    assert one.filled == [b"set-up"]

    other = Asked()
    again = course(rehearsal, other)
    recalled = again.attempt(first, never)
    assert (recalled.value, recalled.tally.rows_written, other.counted) == (["found"], 1, 1)
    again.come_by(MOMENT)
    again.part(Interference(MOMENT, "error"))
    assert other.filled == []
    again.attempt(second, ask(other, None))
    assert other.filled == [b"image after 1"], "from where it goes its own way, the database is as it was there"


def test_a_run_that_asks_something_else_breaks_off() -> None:
    rehearsal, one = rehearsal_of_two(), Asked()
    began = course(rehearsal, one)
    began.attempt(first, ask(one, None))
    began.come_by(MOMENT)
    with pytest.raises(RuntimeError, match="where another that began like it asked"):
        course(rehearsal, Asked()).attempt(second, never)


def test_what_may_be_changed_is_not_shared() -> None:
    value = [{"times": [datetime(2026, 1, 1, tzinfo=UTC)]}, {1, 2}]
    assert fresh(value) == value
    assert fresh(value)[0]["times"] is not value[0]["times"] and fresh(value)[1] is not value[1]  # type: ignore[index]


def test_cases_come_to_the_same_and_ask_less(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    attempt = Database.attempt

    def counting(self: Database, *arguments: Any) -> Any:
        asked.append(1)
        return attempt(self, *arguments)

    monkeypatch.setattr(Database, "attempt", counting)
    singles = list(plan.one(SCENARIOS["create-read-only-disk"]))[-8:]
    run_cases(singles)
    asked.clear()
    recalling = run_cases(singles)
    few = len(asked)
    forget_states()
    in_full = [run_case(case).result() for case in singles]
    asked.clear()
    assert [run_case(case).result() for case in singles] == in_full == recalling
    assert few < len(asked) * 2 / 3
