"""What a drive does next, and by what right a last copy is believed: the tables (nexus.md §3.2, W10, W54)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from enum import Enum

import pytest

from crucible_emu.pantry.documents import ReplaceResult
from nexus.db.schema import VmmState
from nexus.replacement.driving import (
    ANSWERS,
    LAST_PANTRY,
    LAST_VMM,
    NEXT,
    SILENT_MAX,
    UNLIKE_PAUSE_MAX,
    UNLIKE_PAUSE_MIN,
    Answer,
    Check,
    PantrySaid,
    Prepared,
    VmmFacts,
    asked_again_from,
    check_vmm,
    is_done,
    next_asked,
)
from nexus.replacement.health import Health
from nexus.replacement.owners import CONSTRUCTED, Owner, Situation
from nexus.replacement.survivors import NEEDS_DECISION, NO_GOOD_COPY, Facts, Standing, refusal
from nexus.volumes import Address

SHORT = timedelta(seconds=10)
VMM, OTHER = "vmm", "another vmm"
UNDER_WAY = Address.of("::1", 5000)


@pytest.mark.parametrize(
    ("table", "kinds"),
    [(LAST_VMM, VmmState), (LAST_PANTRY, PantrySaid), (NEXT, Situation), (ANSWERS, ReplaceResult)],
)
def test_every_fact_has_its_line(table: dict[Enum, object], kinds: type[Enum]) -> None:
    assert set(table) == set(kinds)


@pytest.mark.parametrize(
    ("facts", "wanted"),
    [
        (VmmFacts(VMM, None, None, False, SHORT), Check.ACTION_REQUIRED),
        (VmmFacts(VMM, VMM, VmmState.RUNNING, True, SHORT), Check.WAIT),
        (VmmFacts(VMM, OTHER, VmmState.RUNNING, False, SHORT), Check.ACTION_REQUIRED),
        (VmmFacts(VMM, VMM, VmmState.RUNNING, False, SHORT), Check.LAST_STEP_STILL_RUNNING),
        (VmmFacts(VMM, VMM, VmmState.REBOOTING, False, SHORT), Check.LAST_STEP_STILL_RUNNING),
        (VmmFacts(VMM, VMM, VmmState.STARTING, False, SHORT), Check.WAIT),
        (VmmFacts(VMM, VMM, VmmState.STOPPING, False, SHORT), Check.WAIT),
        # W10: the real one never asks again, as long as the process lives.
        (VmmFacts(VMM, VMM, VmmState.RUNNING, False, SILENT_MAX), Check.ACTION_REQUIRED),
    ],
)
def test_what_became_of_an_instance_that_was_asked(facts: VmmFacts, wanted: Check) -> None:
    assert check_vmm(facts) is wanted


def test_a_pantry_that_repairs_for_an_older_request_is_left_alone() -> None:
    assert next_asked(Situation.DETACHED, others_turn=False) is Prepared.PANTRY
    assert next_asked(Situation.DETACHED, others_turn=True) is Prepared.NOBODY
    assert next_asked(Situation.RUNNING, others_turn=True) is Prepared.PROPOLIS


@pytest.mark.parametrize("result", list(ReplaceResult))
def test_no_answer_alone_makes_a_volume_whole(result: ReplaceResult) -> None:
    """Having asked proves nothing; the real one believes one of these."""
    assert not is_done(ANSWERS[result], None)
    assert not is_done(ANSWERS[result], Health.REDUCED_REDUNDANCY)
    assert is_done(ANSWERS[result], Health.HEALTHY) is (ANSWERS[result] is Answer.ASK_HEALTH)


def facts(**changed: object) -> Facts:
    given: dict[str, object] = {
        "old": Standing.GONE,
        "survivors": ("b", "c"),
        "owner": Owner(Situation.DETACHED),
        "others_under_way": (),
        "at_rest": False,
    }
    if "situation" in changed:
        changed["owner"] = Owner(changed.pop("situation"))  # type: ignore[arg-type]
    return Facts(**(given | changed))  # type: ignore[arg-type]


@pytest.mark.parametrize("old", list(Standing))
def test_with_two_good_copies_a_third_may_go(old: Standing) -> None:
    assert refusal(facts(old=old)) is None
    assert refusal(facts(old=old, others_under_way=(UNDER_WAY,))) is None


def test_an_upstairs_is_given_one_new_copy_at_a_time() -> None:
    for situation in CONSTRUCTED:
        waits = str(refusal(facts(situation=situation, others_under_way=(UNDER_WAY,))))
        assert "one new copy at a time" in waits and "the copy at [::1]:5000 repaired first" in waits
        assert refusal(facts(situation=situation)) is None


def test_one_survivor_needs_a_right() -> None:
    alone = {"survivors": ("c",)}
    assert str(refusal(facts(**alone))).startswith(NEEDS_DECISION)
    assert refusal(facts(**alone, at_rest=True)) is None
    assert refusal(facts(**alone, believed=frozenset({"c"}))) is None
    assert str(refusal(facts(**alone, believed=frozenset({"a"})))).startswith(NEEDS_DECISION)
    assert refusal(facts(**alone, situation=Situation.RUNNING)) is None
    # It stops, or does not run yet: nobody knows what it would have acknowledged.
    assert str(refusal(facts(**alone, situation=Situation.UNSETTLED))).startswith(NEEDS_DECISION)


def test_a_good_copy_is_not_taken_from_the_last_other_one() -> None:
    for right in ({"at_rest": True}, {"situation": Situation.RUNNING}, {"believed": frozenset({"c"})}):
        assert "too few" in str(refusal(facts(old=Standing.GOOD, survivors=("c",), **right)))
    assert "too few" in str(refusal(facts(old=Standing.GOOD, survivors=())))


def test_without_a_good_copy_nothing_is_done() -> None:
    assert refusal(facts(survivors=(), at_rest=True)) == NO_GOOD_COPY


def test_the_pause_between_comparisons_of_unlike_copies_doubles_and_has_an_end() -> None:
    since = datetime(2026, 1, 1, tzinfo=UTC)
    asked, pauses = since - timedelta(seconds=20), []
    for _ in range(10):
        again = asked_again_from(since, asked)
        pauses.append(again - max(asked, since))
        asked = again
    assert pauses[:4] == [UNLIKE_PAUSE_MIN * each for each in (1, 1, 2, 4)]
    assert pauses == sorted(pauses) and pauses[-1] == UNLIKE_PAUSE_MAX
