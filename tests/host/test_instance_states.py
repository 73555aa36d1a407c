"""The table of an instance's states, and the instance that obeys it. No I/O."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
from host_rig import INSTANCE, ensure_body, properties
from hypothesis import given
from hypothesis import strategies as st

from crucible_emu.host import documents as d
from crucible_emu.host.instance import Instance
from crucible_emu.host.refusals import Forbidden, Gone, NoDiskToChange, NoInstance
from crucible_emu.host.states import ALIVE, FINAL, TRANSITIONS, Doing, Event, InstanceState, step

S = InstanceState
REGION = (
    '{"type": "region", "block_size": 512, "blocks_per_extent": 8, "extent_count": 4, "gen": 1, "opts": {"id": '
    '"00000000-0000-0000-0000-000000000001", "target": ["[::1]:1", "[::1]:2", "[::1]:3"], "key": null, '
    '"lossy": false, "read_only": false}}'
)


def instance(body: dict[str, Any] | None = None) -> Instance:
    return Instance(d.InstanceEnsureRequest.model_validate(body or ensure_body(REGION, disk="d")))


def migrating() -> Instance:
    value = {"migration_id": str(UUID(int=5)), "src_addr": "[::1]:9", "replace_components": {}}
    return instance({"properties": properties(), "init": {"method": "MigrationTarget", "value": value}})


def test_every_state_but_one_is_reached_and_every_end_is_final() -> None:
    reached = {S.CREATING, S.MIGRATING} | {transition.after for transition in TRANSITIONS.values()}
    assert set(S) - reached == {S.REPAIRING}
    leaving = {state for (state, _), transition in TRANSITIONS.items() if transition.after is not state}
    assert leaving == set(S) - FINAL - {S.REPAIRING}
    assert {state for state, event in TRANSITIONS if event is Event.STOP} == set(S) - {S.REPAIRING, S.FAILED}
    assert not ALIVE & FINAL


def test_whatever_leaves_the_living_gives_up_its_disks() -> None:
    for (state, _), transition in TRANSITIONS.items():
        if state in ALIVE and transition.after not in ALIVE:
            assert transition.doing is Doing.LEAVE


def test_a_life_in_order() -> None:
    one = instance()
    assert (one.state, one.take(), one.take()) == (S.CREATING, Doing.PREPARE, Doing.NOTHING)
    one.happened(Event.PREPARED)
    one.request("Run")
    assert (one.state, one.take()) == (S.STARTING, Doing.START)
    one.request("Run")
    assert one.take() is Doing.NOTHING, "it is being started already"
    one.happened(Event.STARTED)
    one.request("Reboot")
    assert (one.state, one.take()) == (S.REBOOTING, Doing.RESET)
    one.happened(Event.RESET)
    one.request("Stop")
    assert (one.state, one.leaves, one.take()) == (S.STOPPING, True, Doing.LEAVE)
    one.happened(Event.LEFT)
    assert (one.state, one.take(), one.over) == (S.STOPPED, Doing.RELEASE, False)
    one.was_released()
    assert (one.state, one.over) == (S.DESTROYED, True)
    assert one.generation == 7, "one for every state after the first"


def test_a_run_that_comes_while_disks_are_built_is_obeyed_once() -> None:
    one = instance()
    assert one.take() is Doing.PREPARE
    one.request("Run")
    one.happened(Event.PREPARED)
    assert (one.state, one.take(), one.take()) == (S.STARTING, Doing.START, Doing.NOTHING)


def test_a_stop_takes_the_place_of_a_start_and_a_late_report_changes_nothing() -> None:
    one = instance()
    one.take()
    one.request("Run")
    one.request("Stop")
    assert one.take() is Doing.LEAVE
    one.happened(Event.STARTED)
    assert (one.state, one.take()) == (S.STOPPING, Doing.NOTHING)


@pytest.mark.parametrize("wanted", ["Run", "Reboot"])
def test_what_has_ended_is_not_started_again(wanted: Any) -> None:
    one = instance()
    one.broken("a reason")
    assert one.problem == "a reason"
    with pytest.raises(Forbidden, match=f"{wanted} is not possible: the instance is Failed"):
        one.request(wanted)


def test_a_machine_that_does_not_run_is_not_rebooted() -> None:
    one = instance()
    with pytest.raises(Forbidden, match="Reboot is not possible: the instance is Creating"):
        one.request("Reboot")
    assert (one.state, one.generation) == (S.CREATING, 0)


def test_a_migration_ends_well_or_in_error() -> None:
    for event, state in ((Event.STARTED, "Finish"), (Event.BROKEN, "Error"), (Event.STOP, "Error")):
        one = migrating()
        seen = one.seen().migration.migration_in
        assert seen is not None and seen.state == "Sync"
        assert isinstance(one.get_spec().spec, d.SpecAwaited)
        one.happened(event)
        seen = one.seen().migration.migration_in
        assert seen is not None and (seen.id, seen.state) == (UUID(int=5), state)


def test_who_may_ask_for_a_disk() -> None:
    one = instance()
    assert one.disk("d").id == "d"
    with pytest.raises(NoDiskToChange, match="no Crucible backend 'e'") as refused:
        one.disk_to_change("e", waited=False)
    assert refused.value.error_code == str(refused.value)
    one.request("Stop")
    assert one.disk("d").id == "d", "it can be asked about while it is being flushed"
    with pytest.raises(Forbidden, match="the instance is Stopping"):
        one.disk_to_change("d", waited=False)
    with pytest.raises(Gone, match="while the request waited"):
        one.disk_to_change("d", waited=True)
    one.happened(Event.LEFT)
    with pytest.raises(NoInstance):
        one.disk("d")
    with pytest.raises(NoInstance, match="on its way"):
        migrating().disk("d")
    assert one.properties.id == INSTANCE


@given(st.lists(st.sampled_from(list(Event)), max_size=30))
def test_no_order_of_events_leads_out_of_the_table(events: list[Event]) -> None:
    """Whatever comes: the generation counts the changes, and what is to be done is that of a step in the table."""
    one = instance()
    one.take()
    changes = 0
    for event in events:
        before = one.state
        transition = step(before, event)
        one.happened(event)
        assert one.state is (before if transition is None else transition.after)
        changes += one.state is not before
        assert one.generation == changes
        wanted = Doing.NOTHING if transition is None else transition.doing
        assert one.take() is wanted
