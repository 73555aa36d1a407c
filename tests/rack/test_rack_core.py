"""The core of a rack: the table, restarts, what is dead on purpose, and the order of the end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crucible_emu.errors import UsageError
from crucible_emu.rack.core import (
    BACKOFF_S_MAX,
    BACKOFF_S_MIN,
    CRASHES_MAX,
    STEADY_S,
    Changed,
    Kill,
    Leaving,
    RackCore,
    Service,
    Spawn,
    Terminate,
    Wait,
)
from crucible_emu.rack.states import HAS_PROCESS, TRANSITIONS, Doing, Event, ServiceState, step

S = ServiceState


def rack() -> RackCore:
    rows = (("a0", "agent", "s0"), ("a1", "agent", "s1"), ("p0", "pantry", "s0"), ("h0", "host", "s0"))
    return RackCore([Service(*row) for row in rows])


def ready_rack() -> RackCore:
    core = rack()
    core.start_all()
    for each in core.services:
        core.ready(each.name, 0.0)
    core.take_actions()
    return core


def doings(core: RackCore) -> list[object]:
    """What is to be done, without the reports."""
    return [action for action in core.take_actions() if not isinstance(action, Changed)]


def states(core: RackCore) -> dict[str, str]:
    return {each.name: each.state.value for each in core.services}


def test_a_process_is_started_only_where_there_is_none() -> None:
    for (state, _), transition in TRANSITIONS.items():
        if transition.doing is Doing.SPAWN:
            assert state not in HAS_PROCESS and transition.after is S.STARTING
        if transition.doing in (Doing.TERMINATE, Doing.KILL):
            assert state in HAS_PROCESS and transition.after in HAS_PROCESS
        if state in HAS_PROCESS and transition.after not in HAS_PROCESS:
            assert transition.doing in (Doing.NOTHING, Doing.WAIT)


def test_only_a_start_ends_death() -> None:
    leaving_death = {event for (state, event), _ in TRANSITIONS.items() if state is S.KILLED}
    assert leaving_death == {Event.START}
    assert step(S.KILLED, Event.DUE) is None


def test_every_state_can_be_reached_and_left() -> None:
    assert {transition.after for transition in TRANSITIONS.values()} == set(S)
    assert {state for state, _ in TRANSITIONS} == set(S)


def test_start_and_ready() -> None:
    core = rack()
    core.start_all()
    assert doings(core) == [Spawn("a0"), Spawn("a1"), Spawn("p0"), Spawn("h0")]
    assert not core.all_ready
    for each in core.services:
        core.ready(each.name, 0.0)
    assert core.take_actions() == [Changed(each.name, S.READY) for each in core.services]
    assert core.all_ready and not core.all_gone


def test_dead_sleds_are_not_started_with_the_rack() -> None:
    core = rack()
    core.start_all(but={"s0"})
    assert doings(core) == [Spawn("a1")]
    core.ready("a1", 0.0)
    assert core.all_ready
    assert states(core) == {"a0": "killed", "a1": "ready", "p0": "killed", "h0": "killed"}


def test_crashes_are_waited_out_longer_each_time_and_given_up_in_the_end() -> None:
    core = ready_rack()
    delays = []
    for number in range(1, CRASHES_MAX + 1):
        core.ended("a0", 1, 1.0)
        (wait,) = doings(core)
        assert wait == Wait("a0", BACKOFF_S_MIN * 2 ** (number - 1), number)
        delays.append(wait.delay_s)
        core.due("a0", number)
        assert doings(core) == [Spawn("a0")]
        core.ready("a0", 2.0)
    assert delays == sorted(delays) and delays[-1] <= BACKOFF_S_MAX
    core.ended("a0", -9, 3.0, "last words")
    assert doings(core) == [] and states(core)["a0"] == "failed" and core.service("a0").said == "last words"
    core.start_failed()
    assert doings(core) == [Spawn("a0")] and core.service("a0").said == ""
    core.ended("a0", 1, 3.0)
    assert doings(core) == [Wait("a0", BACKOFF_S_MIN, CRASHES_MAX + 1)]


def test_a_steady_service_starts_to_count_anew() -> None:
    core = ready_rack()
    core.ended("a0", 1, STEADY_S - 1)
    core.due("a0", 1)
    core.ready("a0", 100.0)
    assert core.service("a0").crashes == 1
    core.ended("a0", 1, 100.0 + STEADY_S)
    assert core.service("a0").crashes == 1 and core.service("a0").restarts == 1
    core.due("a0", 2)
    core.ended("a0", 1, 1000.0)  # it was not ready this time
    assert core.service("a0").crashes == 2


def test_wrong_input_is_not_tried_again() -> None:
    core = ready_rack()
    core.ended("a0", 2, 1.0)
    assert doings(core) == [] and states(core)["a0"] == "failed"


def test_a_wait_that_was_cut_short_starts_nothing() -> None:
    core = ready_rack()
    core.ended("a0", 1, 1.0)
    core.start_sled("s0")
    core.due("a0", 1)
    assert [action for action in doings(core) if isinstance(action, Spawn)] == [Spawn("a0")]
    core.ended("a0", 1, 1.0)
    core.due("a0", 1)
    assert states(core)["a0"] == "waiting"


def test_a_killed_sled_stays_dead_until_it_is_started() -> None:
    core = ready_rack()
    core.kill_sled("s0")
    assert doings(core) == [Kill("a0"), Kill("p0"), Kill("h0")]
    for name in ("a0", "p0", "h0"):
        core.ended(name, -9, 1.0)
    core.start_failed()
    assert doings(core) == [] and core.all_ready
    core.start_sled("s0")
    assert doings(core) == [Spawn("a0"), Spawn("p0"), Spawn("h0")]


def test_start_while_the_killed_are_still_going() -> None:
    core = ready_rack()
    core.kill_sled("s1")
    core.start_sled("s1")
    assert doings(core) == [Kill("a1")]
    core.ended("a1", -9, 1.0)
    assert doings(core) == [Spawn("a1")]
    core.kill_sled("s1")
    core.start_sled("s1")
    core.kill_sled("s1")  # the last word counts
    core.ended("a1", -9, 1.0)
    assert states(core)["a1"] == "killed"


def test_agents_end_when_hosts_and_pantries_are_gone() -> None:
    core = ready_rack()
    core.shut_down()
    assert doings(core) == [Terminate("p0"), Terminate("h0")]
    core.ended("h0", 0, 1.0)
    assert doings(core) == []
    core.ended("p0", 0, 1.0)
    assert doings(core) == [Terminate("a0"), Terminate("a1")]
    core.ended("a1", 0, 1.0)
    core.ended("a0", 0, 1.0)
    assert core.all_gone and set(states(core).values()) == {"stopped"}


def test_an_end_by_itself_during_the_end_is_an_end() -> None:
    core = ready_rack()
    core.shut_down()
    core.ended("a0", 1, 1.0)
    core.ended("p0", -11, 1.0)
    core.ended("h0", 0, 1.0)
    assert doings(core) == [Terminate("p0"), Terminate("h0"), Terminate("a1")]
    assert states(core)["a0"] == "stopped"


def test_nothing_is_started_during_the_end() -> None:
    core = ready_rack()
    core.ended("a0", 1, 1.0)
    core.kill_sled("s1")
    core.start_sled("s1")
    core.shut_down()
    core.due("a0", 1)
    core.ended("a1", -9, 1.0)
    with pytest.raises(Leaving):
        core.start_sled("s0")
    with pytest.raises(Leaving):
        core.start_failed()
    assert not any(isinstance(action, Spawn) for action in core.take_actions())
    core.shut_down()
    assert doings(core) == []
    core.kill_all()
    assert doings(core) == [Kill("p0"), Kill("h0")]


def test_no_such_sled() -> None:
    with pytest.raises(UsageError, match="there is no sled 's9' on this machine: there is s0, s1"):
        rack().kill_sled("s9")


@given(
    st.lists(
        st.tuples(st.sampled_from(["start", "kill", "ready", "end", "due", "up", "down"]), st.integers(0, 3)),
        max_size=40,
    )
)
def test_one_process_at_a_time_and_the_end_is_reached(steps: list[tuple[str, int]]) -> None:
    """Whatever happens in whatever order: never two processes of a service, and after shutting down all end."""
    core = rack()
    alive: set[str] = set()
    waits: list[Wait] = []

    def perform() -> None:
        for action in core.take_actions():
            if isinstance(action, Spawn):
                assert action.name not in alive
                alive.add(action.name)
            elif isinstance(action, Kill | Terminate):
                assert action.name in alive
            elif isinstance(action, Wait):
                waits.append(action)

    def end(name: str) -> None:
        if name in alive:
            alive.remove(name)
            core.ended(name, 1, 0.0)

    for what, index in steps:
        name = core.services[index].name
        try:
            if what == "start":
                core.start_sled(f"s{index % 2}")
            elif what == "kill":
                core.kill_sled(f"s{index % 2}")
            elif what == "ready" and name in alive:
                core.ready(name, 0.0)
            elif what == "end":
                end(name)
            elif what == "due" and waits:
                wait = waits.pop()
                core.due(wait.name, wait.number)
            elif what == "up":
                core.start_failed()
            elif what == "down":
                core.shut_down()
        except Leaving:
            assert core.leaving
        perform()
        assert {each.name for each in core.services if each.state in HAS_PROCESS} == alive
    if not core.leaving:
        core.shut_down()
    perform()
    while alive:
        end(min(alive))
        perform()
    assert core.all_gone
