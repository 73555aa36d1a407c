"""Takeover (wire-protocol.md §6.4), and the defect of the real program that is not imitated."""

from __future__ import annotations

from uuid import UUID

import pytest
from downstairs_rig import OTHER_S, OTHER_U, S, U

from crucible_emu.downstairs.promotion import ACCEPTED, ActiveConnections, Claim, Rule, Verdict


def claim(connection: int, generation: int = 5, upstairs: UUID = U, session: UUID = S) -> Claim:
    return Claim(connection, upstairs, session, generation)


READ_WRITE = [
    # the claim, and what becomes of it while connection 1 is active with U, S, 5
    (claim(2, 6), Verdict(True, Rule.HIGHER_GENERATION, evicts=1)),
    (claim(2, 6, OTHER_U, OTHER_S), Verdict(True, Rule.HIGHER_GENERATION, evicts=1)),
    (claim(2, 5), Verdict(True, Rule.SAME_SESSION, evicts=1)),
    (claim(2, 5, U, OTHER_S), Verdict(False, Rule.EQUAL_GENERATION)),
    (claim(2, 5, OTHER_U, S), Verdict(False, Rule.EQUAL_GENERATION)),
    (claim(2, 4), Verdict(False, Rule.LOWER_GENERATION)),
    (claim(2, 4, OTHER_U), Verdict(False, Rule.LOWER_GENERATION)),
]


@pytest.mark.parametrize(("newcomer", "verdict"), READ_WRITE)
def test_read_write(newcomer: Claim, verdict: Verdict) -> None:
    active = ActiveConnections(read_only=False)
    assert active.promote(claim(1)) == Verdict(True, Rule.NOBODY_ACTIVE)
    assert active.promote(newcomer) == verdict
    assert (1 in active, 2 in active) == (not verdict.accepted, verdict.accepted)


def test_a_superseded_session_may_not_replay_even_when_its_successor_has_left() -> None:
    active = ActiveConnections(read_only=False)
    active.promote(claim(1, 5))
    active.closed(1)
    assert active.may_replay(5)
    active.promote(claim(2, 6, OTHER_U, OTHER_S))
    active.closed(2)
    assert not active.may_replay(5)
    assert active.may_replay(6)
    assert active.promote(claim(3, 5)).accepted, "it may begin anew, for then its generation is checked"
    active.closed(3)
    assert not active.may_replay(5)


def test_read_only_takes_any_number_but_one_per_upstairs() -> None:
    active = ActiveConnections(read_only=True)
    assert active.promote(claim(1)) == Verdict(True, Rule.READ_ONLY_NEW)
    assert active.promote(claim(2, 1, OTHER_U)) == Verdict(True, Rule.READ_ONLY_NEW)
    assert active.promote(claim(3, 0, U, OTHER_S)) == Verdict(True, Rule.READ_ONLY_AGAIN, evicts=1)
    assert [number in active for number in (1, 2, 3)] == [False, True, True]


def test_refused_newcomer_does_not_erase_the_active_record() -> None:
    """In the real program the second attempt would be accepted, and two writers would be at one disk."""
    active = ActiveConnections(read_only=False)
    active.promote(claim(1, 5))
    for connection in (2, 3, 4):
        assert not active.promote(claim(connection, 4, U, OTHER_S)).accepted
        active.closed(connection)
        assert 1 in active


def test_evicted_connection_that_ends_later_does_not_erase_its_successor() -> None:
    active = ActiveConnections(read_only=False)
    active.promote(claim(1, 5))
    active.promote(claim(2, 6))
    active.closed(1)
    assert 2 in active
    assert not active.promote(claim(3, 5)).accepted


def test_end_of_the_active_connection_frees_the_place() -> None:
    active = ActiveConnections(read_only=False)
    active.promote(claim(1, 5))
    active.closed(1)
    assert active.promote(claim(2, 1, OTHER_U)) == Verdict(True, Rule.NOBODY_ACTIVE)


def test_every_rule_has_a_verdict() -> None:
    assert ACCEPTED.keys() == set(Rule)
