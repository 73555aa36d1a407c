"""Every safeguard is load-bearing: without it the predicted story ends badly, and with it well. The rows of
replacements and deletions are as many again; the table (``nexus explore --safeguards``) runs all of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nexus.explore.cases import parse
from nexus.explore.removal import Removal
from nexus.explore.run import prepare, run_case
from nexus.explore.safeguards.corrections import CORRECTIONS
from nexus.explore.safeguards.documents import DOCUMENTS
from nexus.explore.safeguards.requests import REQUESTS
from nexus.explore.safeguards.weak_points import WEAK_POINTS
from nexus.explore.scenarios import SCENARIOS
from nexus.explore.without import removals, removed

LEFT_TO_THE_TABLE = {
    *("R4", "R5, R6", "R12, R26", "R29", "R40", "R47"),
    *("W2", "W8", "W9", "W10", "W11", "W33", "W38", "W41"),
}
"""Those that take longest, most because what breaks is that a rack never comes to rest; and two with a test of their
own."""
FOUND = {
    "W20": "MalformedVolume",
    "W34": "of which there is no row",
    "W35": "I5",
    "W39": "is to be destroyed, and no saga does it",
    "W40": "left: 1 rows in volume",
    "W44": "there is no row of it",
    "W45": "which is a stash",
    "W47": "wrong order",
    "W55": "shows something else than was written",
}
"""What the first predicted case finds, where the original rule is known to be wrong in just this way."""
TRIED = [
    each
    for each in DOCUMENTS + WEAK_POINTS + REQUESTS + CORRECTIONS
    if each.predicted and not each.covered and each.safeguard not in LEFT_TO_THE_TABLE
]


def names(row: Removal) -> str:
    return row.safeguard


@pytest.fixture(scope="module", autouse=True)
def prepared() -> None:
    prepare()


@pytest.mark.parametrize("row", TRIED, ids=names)
def test_without_it_the_predicted_story_ends_badly_and_with_it_well(row: Removal) -> None:
    case = parse(row.predicted[0])
    with removed(row.safeguard):
        without = run_case(case)
    assert without.violations, row.breaks
    assert any(FOUND.get(row.safeguard, "") in each for each in without.violations), without.violations
    outcome = run_case(case)
    assert outcome.result().fired, "it happens as it is told"
    assert outcome.violations == [], "\n".join(outcome.story)


def test_what_is_found_is_tried() -> None:
    assert FOUND.keys() <= {each.safeguard for each in TRIED}


@pytest.mark.parametrize("row", removals().values(), ids=removals())
def test_a_row_says_what_is_tried_or_why_nothing_is(row: Removal) -> None:
    """Else the table of safeguards would fail at its end, after many minutes."""
    for text in row.predicted:
        assert str(parse(text)) == text and parse(text).scenario in SCENARIOS
    assert set(row.scenarios) <= SCENARIOS.keys()
    assert row.covered or row.predicted or row.scenarios
    with removed(row.safeguard):
        pass


def test_tests_that_are_pointed_to_are_there() -> None:
    there = set()
    for each in Path(__file__).parent.glob("test_*.py"):
        there |= set(re.findall(r"def (test_\w+)", each.read_text()))
    named = {each for row in removals().values() for each in re.findall(r"\btest_\w+", row.covered)}
    assert named and named <= there


def test_W8_who_asks_for_the_wrong_kind_is_told() -> None:
    case = parse(removals()["W8"].predicted[0])
    assert "ask-for-the-wrong-kind: refused" in run_case(case).story
    with removed("W8"):
        assert "ask-for-the-wrong-kind: done" in run_case(case).story


def test_W40_is_doubled_by_the_task_that_goes_on_with_deletions() -> None:
    """The row goes as soon as its last region does, or a while later: with W24 alone taken out, nothing is missing."""
    case = parse(removals()["W40"].predicted[0])
    with removed("W24"):
        assert run_case(case).violations == []


def test_W2_whoever_waits_has_its_turn() -> None:
    """A replacement is asked for while one snapshot after another is taken; under the original rule in vain. (Under
    ours the scenario ends well by itself, as all do.)"""
    with removed("W2"):
        (found, *_) = run_case(parse("busy-disk")).violations
    assert "a snapshot came first each time" in found
