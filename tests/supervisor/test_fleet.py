"""The core of run-many: the table of one process, and policies over many, without any process."""

from __future__ import annotations

import signal
from random import Random
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crucible_emu.errors import UsageError
from crucible_emu.supervisor import Fleet, Member, ProcessState
from crucible_emu.supervisor.fleet import RANDOM_STOP_S_MAX, Changed, Send, Spawn
from crucible_emu.supervisor.states import HAS_PROCESS, TRANSITIONS, Doing, Event, step

S = ProcessState


def fleet(count: int = 3, seed: int = 0) -> Fleet:
    return Fleet([Member(cid, 8810 + 10 * cid, UUID(int=cid)) for cid in range(count)], Random(seed))


def running(count: int = 3, seed: int = 0) -> Fleet:
    """All members run, process numbers from 100."""
    core = fleet(count, seed)
    core.start_all()
    for cid in range(count):
        core.spawned(cid, 100 + cid)
        core.ready(cid)
    assert core.all_running
    core.take_actions()
    return core


def done(core: Fleet, kind: type = object) -> list[Any]:
    """Take the actions; those that are more than a report, or of one kind."""
    return [
        each
        for each in core.take_actions()
        if isinstance(each, kind) and (kind is Changed or type(each) is not Changed)
    ]


def test_the_table_starts_a_process_only_where_there_is_none() -> None:
    for (state, event), after in TRANSITIONS.items():
        if after.doing is Doing.SPAWN:
            assert state not in HAS_PROCESS
            assert (event, after.after) == (Event.START, S.STARTING)


def test_every_state_with_a_process_knows_both_ends_of_it() -> None:
    for state in HAS_PROCESS:
        for event in (Event.SIGNALLED, Event.EXITED):
            after = step(state, event)
            assert after is not None and after.after not in HAS_PROCESS


def test_what_the_table_does_not_list_changes_nothing() -> None:
    core = running(1)
    for ask in (core.start, core.ready):
        ask(0)
    assert core.take_actions() == []
    assert step(S.STOPPED, Event.STOP) is None


def test_start_and_ready() -> None:
    core = fleet()
    assert (core.all_running, core.all_stopped) == (False, True)
    core.start(1)
    assert done(core) == [Spawn(1)]
    core.spawned(1, 77)
    core.ready(1)
    assert [each.state for each in core.members] == [S.STOPPED, S.RUNNING, S.STOPPED]
    assert done(core, Changed)[-1] == Changed(1, S.RUNNING, 77, None)
    assert (core.all_running, core.all_stopped) == (False, False)


def test_stop_is_sigkill_and_ends_as_exit() -> None:
    core = running()
    core.stop(2)
    assert done(core) == [Send(2, 102, signal.SIGKILL)]
    core.ended(2, -9)
    assert core.members[2].state is S.EXIT
    assert (core.members[2].pid, core.members[2].returncode) == (None, -9)
    assert done(core) == []


def test_automatic_restart_after_a_signal_only() -> None:
    core = running()
    core.set_restart(0, True)
    core.set_restart(1, True)
    core.ended(0, -11)
    core.ended(1, 3)
    assert done(core) == [Spawn(0)]
    assert core.members[1].state is S.FAILED
    # A program that ends by itself would do so again: restarting is off for it, until somebody says otherwise.
    assert core.members[1].auto_restart is False


def test_race_start_while_the_old_process_is_still_ending() -> None:
    core = running()
    core.stop(0)
    core.start(0)
    assert done(core) == [Send(0, 100, signal.SIGKILL)]
    core.ended(0, -9)
    assert done(core) == [Spawn(0)]
    assert core.members[0].state is S.STARTING


def test_stop_takes_back_a_start_that_waits() -> None:
    core = running()
    core.stop(0)
    core.start(0)
    core.stop(0)
    core.ended(0, -9)
    assert done(core, Spawn) == []


def test_race_stop_before_the_process_exists() -> None:
    core = fleet()
    core.start(0)
    core.stop(0)
    assert done(core) == [Spawn(0)]
    core.spawned(0, 55)
    assert done(core) == [Send(0, 55, signal.SIGKILL)]


def test_a_process_that_cannot_be_started_is_an_error_and_may_be_tried_again() -> None:
    core = fleet()
    core.start(0)
    core.could_not_start(0)
    assert core.members[0].state is S.ERROR
    core.take_actions()
    core.start(0)
    assert done(core) == [Spawn(0)]


def test_signals_halt_and_resume_and_end_in_order() -> None:
    core = running()
    core.signal(0, "stop")
    assert core.members[0].paused
    core.signal(0, "cont")
    assert not core.members[0].paused
    core.signal(0, "stop")
    core.signal(0, "term")
    numbers = [each.number for each in done(core)]
    # What stands still does not hear SIGTERM, so it goes on first.
    assert numbers == [signal.SIGSTOP, signal.SIGCONT, signal.SIGSTOP, signal.SIGCONT, signal.SIGTERM]
    core.ended(0, 0)
    assert core.members[0].state is S.EXIT
    core.signal(1, "kill")
    assert core.members[1].state is S.STOPPING


def test_signals_that_cannot_be_sent() -> None:
    core = fleet()
    with pytest.raises(UsageError, match="has no process"):
        core.signal(0, "stop")
    with pytest.raises(UsageError, match="take one of stop, cont, kill, term"):
        core.signal(0, "hup")
    with pytest.raises(UsageError, match="there is no Downstairs 3: they are numbered from 0 to 2"):
        core.stop(3)


def test_shut_down_ends_all_in_order_and_starts_nothing() -> None:
    core = running()
    core.random_stop.enabled = True
    for cid in range(3):
        core.set_restart(cid, True)
    core.signal(1, "stop")
    core.take_actions()
    core.shut_down()
    assert [each.number for each in done(core)] == [signal.SIGTERM, signal.SIGCONT, signal.SIGTERM, signal.SIGTERM]
    core.ended(0, 0)
    core.ended(1, -15)
    core.start(0)
    assert done(core) == []
    assert not core.all_stopped
    core.ended(2, 0)
    assert core.all_stopped


def test_race_shut_down_while_a_process_is_being_started() -> None:
    core = fleet(1)
    core.start(0)
    core.shut_down()
    core.spawned(0, 9)
    assert done(core) == [Spawn(0), Send(0, 9, signal.SIGTERM)]


def test_random_stops_take_all_running_members_and_repeat_with_the_seed() -> None:
    def history(seed: int) -> list[int | None]:
        core, found = running(4, seed), []
        for _ in range(40):
            cid = core.stop_one_at_random()
            found.append(cid)
            assert cid is not None
            core.ended(cid, -9)
            core.start(cid)
            core.spawned(cid, 500)
            core.ready(cid)
        return found

    assert set(history(1)) == {0, 1, 2, 3}
    assert history(1) == history(1) != history(2)
    assert fleet().stop_one_at_random() is None


@given(low=st.integers(0, RANDOM_STOP_S_MAX), high=st.integers(1, RANDOM_STOP_S_MAX), seed=st.integers(0, 99))
def test_random_delay_stays_in_its_window_in_whatever_order_its_ends_are_set(low: int, high: int, seed: int) -> None:
    core = fleet(seed=seed)
    core.set_random_window(min_s=low)
    core.set_random_window(max_s=high)
    delay = core.random_delay_s()
    assert low <= delay
    assert delay < high or (delay == low and high <= low)


def test_windows_that_make_no_sense() -> None:
    core = fleet()
    for window in ({"max_s": 0}, {"min_s": -1}, {"max_s": RANDOM_STOP_S_MAX + 1}):
        with pytest.raises(UsageError, match="for random stops: take"):
            core.set_random_window(**window)


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["start", "stop", "term", "spawned", "ready", "signalled", "exited", "shut_down", "restart"]),
        st.integers(0, 1),
    ),
    max_size=60,
)


@given(events=EVENTS)
def test_a_member_never_has_two_processes(events: list[tuple[str, int]]) -> None:
    """Whatever is asked for and in whatever order processes come and go, as long as they are real."""
    core = fleet(2)
    wanted, alive = [0, 0], [0, 0]
    for name, cid in events:
        if name in ("start", "stop"):
            getattr(core, name)(cid)
        elif name == "term" and core.members[cid].pid is not None:
            core.signal(cid, "term")
        elif name == "shut_down":
            core.shut_down()
        elif name == "restart":
            core.set_restart(cid, True)
        elif name == "spawned" and wanted[cid]:
            wanted[cid], alive[cid] = 0, 1
            core.spawned(cid, 1000)
        elif name == "ready" and alive[cid]:
            core.ready(cid)
        elif name in ("signalled", "exited") and alive[cid]:
            alive[cid] = 0
            core.ended(cid, -9 if name == "signalled" else 1)
        for action in core.take_actions():
            if isinstance(action, Spawn):
                wanted[action.cid] += 1
                assert wanted[action.cid] + alive[action.cid] == 1
            elif isinstance(action, Send):
                assert alive[action.cid]
        for each in core.members:
            assert (each.state in HAS_PROCESS) == bool(wanted[each.cid] or alive[each.cid])
