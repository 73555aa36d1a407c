"""Requests without their safeguards: what nexus.md §11.4 predicts happens, and does not with them."""

from __future__ import annotations

from datetime import timedelta

import pytest

from nexus.db.schema import VmmState
from nexus.explore import campaign
from nexus.explore.cases import parse
from nexus.explore.safeguards.requests import REQUESTS
from nexus.explore.scenarios import SCENARIOS
from nexus.explore.without import removals, removed
from nexus.replacement import driving
from nexus.replacement.driving import Check, Prepared, VmmFacts
from nexus.replacement.owners import Situation

SLOW = frozenset({"R4", "R5, R6", "R12, R26", "R29"})
"""These take a second or more, most because what breaks is that a rack never comes to rest; the table of safeguards
shows them."""
QUICK = [each.safeguard for each in REQUESTS if each.predicted and not each.covered and each.safeguard not in SLOW]


@pytest.mark.parametrize("safeguard", QUICK)
def test_what_is_predicted_without_the_safeguard_happens_and_does_not_with_it(safeguard: str) -> None:
    case = removals()[safeguard].predicted[0]
    with removed(safeguard):
        without = campaign.result_of(case)
    assert without.violations
    assert without.fired, "it happens as it is told"
    assert campaign.result_of(case).violations == ()


def test_every_row_names_what_is_there() -> None:
    """Else the table of safeguards would fail at its end, after many minutes."""
    for each in REQUESTS:
        assert set(each.scenarios) <= SCENARIOS.keys()
        assert each.scenarios and (each.predicted or each.covered)
        for text in each.predicted:
            assert str(parse(text)) == text and parse(text).scenario in SCENARIOS
        with removed(each.safeguard):
            pass


def test_a_guest_that_moves_is_not_told() -> None:
    """R30, of which no saga knows yet: the tables alone."""
    moves = VmmFacts("asked", "asked", VmmState.RUNNING, True, timedelta(0))

    def told() -> tuple[Prepared, Check]:
        return driving.next_asked(Situation.MIGRATING, others_turn=False), driving.check_vmm(moves)

    assert told() == (Prepared.NOBODY, Check.WAIT)
    with removed("R30"):
        assert told() == (Prepared.PROPOLIS, Check.LAST_STEP_STILL_RUNNING)
