"""Negotiation, state by state and message by message (wire-protocol.md §6.2)."""

from __future__ import annotations

from uuid import UUID

import pytest
from downstairs_rig import OTHER_S, OTHER_U, REPAIR, S, U, definition, hello, promote

from crucible_emu.downstairs.session import (
    NEGOTIATION_MESSAGES,
    TRANSITIONS,
    Need,
    ServedRegion,
    Session,
    State,
    Step,
)
from crucible_emu.wire import messages as m

SAMPLES: dict[type[m.Message], m.Message] = {
    m.HereIAm: hello(),
    m.PromoteToActive: promote(),
    m.RegionInfoPlease: m.RegionInfoPlease(),
    m.ExtentVersionsPlease: m.ExtentVersionsPlease(),
    m.LastFlush: m.LastFlush(7),
}
ELSE = [m.Imok(), m.Unknown(1, b""), m.YesItsMe(13, REPAIR), m.Barrier(U, S, 1000, ()), m.ExtentClose(0, 0)]
LIVE = [state for state in State if state is not State.CLOSED]


def session(state: State = State.OPEN, *, read_only: bool = False, encrypted: bool = False) -> Session:
    made = Session(1, ServedRegion(definition(encrypted=encrypted), read_only), REPAIR)
    made.state = state
    made.upstairs_id, made.session_id = U, S
    return made


def test_the_whole_way() -> None:
    talk = session()
    assert talk.receive(hello(generation=4)) == Step(m.YesItsMe(13, REPAIR))
    assert talk.state is State.CONNECTED
    assert talk.receive(promote(generation=9)) == Step(need=Need.PROMOTION)
    assert talk.generation == 9  # that of the promotion counts
    assert talk.promoted() == Step(m.YouAreNowActive(U, S, 9))
    assert talk.receive(m.RegionInfoPlease()) == Step(m.RegionInfo(definition()))
    assert talk.receive(m.ExtentVersionsPlease()) == Step(need=Need.EXTENT_VERSIONS)
    assert talk.state is State.RUNNING


def test_coming_back_with_the_last_flush() -> None:
    talk = session(State.SENT_REGION_INFO)
    assert talk.receive(m.LastFlush(None)) == Step(need=Need.COMPLETED_SET)
    assert talk.last_flush is None
    talk = session(State.SENT_REGION_INFO)
    assert talk.receive(m.LastFlush(1234)) == Step(need=Need.COMPLETED_SET)
    assert (talk.last_flush, talk.state) == (1234, State.RUNNING)


@pytest.mark.parametrize("state", LIVE)
def test_ping_is_answered_in_every_state(state: State) -> None:
    talk = session(state)
    assert talk.receive(m.Ruok()) == Step(m.Imok())
    assert talk.state is state


LISTED = {(row.before, row.message) for row in TRANSITIONS}


@pytest.mark.parametrize("state", LIVE)
@pytest.mark.parametrize("kind", SAMPLES, ids=lambda kind: kind.__name__)
def test_negotiation_out_of_order_closes_without_an_answer(state: State, kind: type[m.Message]) -> None:
    talk = session(state)
    step = talk.receive(SAMPLES[kind])
    if (state, kind) in LISTED:
        assert step.close is None
        assert talk.state is not state
    else:
        assert step.reply is None
        assert step.close is not None and kind.__name__ in step.close
        assert talk.state is State.CLOSED


@pytest.mark.parametrize("state", LIVE)
@pytest.mark.parametrize("message", ELSE, ids=lambda message: type(message).__name__)
def test_what_is_no_negotiation_is_ignored_until_running(state: State, message: m.Message) -> None:
    talk = session(state)
    step = talk.receive(message)
    if state is State.RUNNING:
        assert step.close is not None and step.reply is None
    else:
        assert step == Step()
        assert talk.state is state


@pytest.mark.parametrize(
    ("message", "refusal"),
    [
        (hello(version=12), m.VersionMismatch(13)),
        (hello(version=14, alternate_versions=(12, 11)), m.VersionMismatch(13)),
        (hello(read_only=True), m.ReadOnlyMismatch(False)),
        (hello(encrypted=True), m.EncryptedMismatch(False)),
        # The checks come in this order: version, mode, encryption.
        (hello(version=1, read_only=True, encrypted=True), m.VersionMismatch(13)),
        (hello(read_only=True, encrypted=True), m.ReadOnlyMismatch(False)),
    ],
)
def test_mismatch_is_answered_and_closes(message: m.HereIAm, refusal: m.Message) -> None:
    talk = session()
    step = talk.receive(message)
    assert step.reply == refusal
    assert step.close is not None
    assert talk.state is State.CLOSED


def test_our_version_among_the_alternates_is_enough() -> None:
    assert session().receive(hello(version=14, alternate_versions=(12, 13))).reply == m.YesItsMe(13, REPAIR)


def test_read_only_and_encrypted_regions_want_their_like() -> None:
    assert session(read_only=True).receive(hello()).reply == m.ReadOnlyMismatch(True)
    assert session(encrypted=True).receive(hello()).reply == m.EncryptedMismatch(True)
    assert session(read_only=True, encrypted=True).receive(hello(read_only=True, encrypted=True)).close is None


@pytest.mark.parametrize(("upstairs", "own"), [(OTHER_U, S), (U, OTHER_S), (OTHER_U, OTHER_S)])
def test_promotion_with_other_ids_names_the_expected_upstairs(upstairs: UUID, own: UUID) -> None:
    talk = session(State.CONNECTED)
    step = talk.receive(promote(upstairs, own))
    assert step.reply == m.UuidMismatch(U)
    assert step.close is not None


def test_promoted_out_of_place_is_a_defect() -> None:
    with pytest.raises(RuntimeError, match="Connected"):
        session(State.CONNECTED).promoted()


def test_table_has_one_row_per_state_and_message() -> None:
    assert len(LISTED) == len(TRANSITIONS)
    assert set(SAMPLES) == NEGOTIATION_MESSAGES
    reachable = {State.OPEN, State.PROMOTED} | {row.after for row in TRANSITIONS}
    assert reachable == set(State) - {State.CLOSED}
