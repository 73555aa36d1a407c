"""What is written down and handed out is load-bearing: without it the predicted story ends badly, and with it well."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nexus.explore.cases import parse
from nexus.explore.removal import Removal
from nexus.explore.run import run_case
from nexus.explore.safeguards.documents import DOCUMENTS
from nexus.explore.safeguards.weak_points import WEAK_POINTS
from nexus.explore.scenarios import SCENARIOS
from nexus.explore.without import removals, removed

LEFT_TO_THE_TABLE = {"R40", "R47", "W9", "W10", "W11"}
"""Those that take longest; whoever makes the table of safeguards runs them as well."""
DETECTABLE = [each for each in DOCUMENTS + WEAK_POINTS if not each.covered]


def names(row: Removal) -> str:
    return row.safeguard


@pytest.mark.parametrize("row", [each for each in DETECTABLE if each.safeguard not in LEFT_TO_THE_TABLE], ids=names)
def test_without_it_the_predicted_story_ends_badly(row: Removal) -> None:
    case = parse(row.predicted[0])
    outcome = run_case(case)
    assert outcome.result().fired
    assert outcome.violations == [], "\n".join(outcome.story)
    with removed(row.safeguard):
        assert run_case(case).violations, row.breaks


@pytest.mark.parametrize("row", DOCUMENTS + WEAK_POINTS, ids=names)
def test_a_row_says_what_is_tried_or_why_nothing_is(row: Removal) -> None:
    assert removals()[row.safeguard] is row
    assert {parse(each).scenario for each in row.predicted} <= SCENARIOS.keys()
    assert row.covered or row.predicted


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
