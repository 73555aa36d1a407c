"""Every row of the table that decides about a replacement, in every state that a replica may be in."""

from __future__ import annotations

import pytest
from upstairs_rig import Rig

from crucible_emu import errors
from crucible_emu.upstairs.replacement import ReplaceResult, decide
from crucible_emu.upstairs.rules import CLIENTS
from crucible_emu.upstairs.states import CONNECTING, ClientState, Mode, Phase, StopReason

TARGETS = [f"127.0.0.1:{4000 + client}" for client in CLIENTS]
NEW = "127.0.0.1:5000"
ACTIVE = ClientState(Phase.ACTIVE)
STATES = [
    *(ClientState(phase, mode) for phase in Phase if phase in CONNECTING for mode in Mode),
    ACTIVE,
    ClientState(Phase.LIVE_REPAIR),
    *(ClientState(Phase.STOPPING, Mode.NEW, reason) for reason in StopReason),
]


def with_state(client: int, state: ClientState) -> list[ClientState]:
    return [state if index == client else ACTIVE for index in CLIENTS]


def comes_in(state: ClientState) -> bool:
    """Whether a replica in this state is on its way into the place of another."""
    if state.phase is Phase.STOPPING:
        return state.reason is StopReason.REPLACING
    return state.phase is Phase.LIVE_REPAIR or (state.phase in CONNECTING and state.mode is Mode.REPLACED)


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("state", STATES, ids=str)
def test_every_row_of_the_replacement_table(state: ClientState, client: int) -> None:
    states = with_state(client, state)
    here, other = TARGETS[client], TARGETS[(client + 1) % 3]
    for old, new in ((here, other), (other, here), (here, here)):
        with pytest.raises(errors.ReplaceRequestInvalid, match="are in use"):
            decide(TARGETS, states, old, new)
    already = ReplaceResult.STARTED_ALREADY if comes_in(state) else ReplaceResult.COMPLETED_ALREADY
    assert decide(TARGETS, states, "127.0.0.1:9999", here) == (already, None)
    assert decide(TARGETS, states, "127.0.0.1:9999", NEW) == (ReplaceResult.MISSING, None)
    assert decide(TARGETS, states, here, NEW) == (ReplaceResult.STARTED, client), "its own state is no hindrance"
    whole = state.phase is Phase.ACTIVE or (state.phase in CONNECTING and state.mode is Mode.NEW)
    if whole:
        assert decide(TARGETS, states, other, NEW) == (ReplaceResult.STARTED, (client + 1) % 3)
    else:
        with pytest.raises(errors.ReplaceRequestInvalid, match=f"failed, downstairs {client} is "):
            decide(TARGETS, states, other, NEW)


def test_a_second_replacement_is_refused_until_the_first_is_done() -> None:
    rig = Rig().active()
    rig.replicas[1].answers_repairs = False
    assert rig.core.replace_downstairs(TARGETS[1], NEW) is ReplaceResult.STARTED
    refused = [rig.core.clients[1].state.phase]
    rig.run()
    for _ in range(2):
        for client in (0, 2):
            with pytest.raises(errors.ReplaceRequestInvalid, match="downstairs 1"):
                rig.core.replace_downstairs(TARGETS[client], "127.0.0.1:6000")
        refused.append(rig.core.clients[1].state.phase)
        rig.reconnect()
    assert refused == [Phase.STOPPING, Phase.START, Phase.LIVE_REPAIR]
    rig.replicas[1].answers_repairs = True
    for client in CLIENTS:
        rig.answer_live(client)
    rig.answer_all()
    assert rig.core.clients[1].state.phase is Phase.ACTIVE
    assert rig.core.replace_downstairs(TARGETS[0], "127.0.0.1:6000") is ReplaceResult.STARTED


@pytest.mark.parametrize("client", CLIENTS)
def test_an_activation_while_a_replica_is_replaced_does_no_harm(client: int) -> None:
    """The race: the replaced one's connection has not ended yet when the disk is activated again."""
    rig = Rig()
    rig.replicas[(client + 1) % 3].reachable = False
    rig.activate("first")
    assert rig.core.replace_downstairs(TARGETS[client], NEW) is ReplaceResult.STARTED
    rig.core.abandon(errors.IoError("not today"))
    rig.core.activate("second")
    assert rig.core.clients[client].state == ClientState(Phase.STOPPING, Mode.NEW, StopReason.REPLACING)
    rig.replicas[(client + 1) % 3].reachable = True
    rig.run()
    rig.reconnect()
    assert rig.answers == {"first": errors.IoError("not today"), "second": None}
    assert [each.state.phase for each in rig.core.clients] == [Phase.ACTIVE] * 3
