"""What the agent decides, without a loop or a disk: tables, ports, comparison of repeated POSTs, choice of work."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from agent_rig import A, B, C, wish
from hypothesis import given
from hypothesis import strategies as st

from crucible_emu.agent import books, core
from crucible_emu.agent.core import PortPool, Reason, Refused, Task, Work
from crucible_emu.agent.documents import CreateRegion, RunningSnapshot, State
from crucible_emu.agent.failures import Failing, Failures, OnPurpose
from crucible_emu.agent.records import Records, RegionRecord
from crucible_emu.agent.states import (
    REGION_TRANSITIONS,
    RUN_TRANSITIONS,
    RegionEvent,
    RegionState,
    RunEvent,
    after_region,
    after_run,
)
from crucible_emu.errors import LocalError, UsageError

POOL = PortPool(19000, 3)


def asked(region_id: str = A, **changes: object) -> CreateRegion:
    return CreateRegion.model_validate(wish(region_id, **changes))


def record(region_id: str, state: RegionState, port: int = 19000) -> RegionRecord:
    return RegionRecord(asked(region_id), port, state, False)


def run(name: str, state: State, port: int = 19001, region_id: str = A) -> RunningSnapshot:
    return RunningSnapshot(id=region_id, name=name, port_number=port, state=state)


def records(*parts: RegionRecord | RunningSnapshot) -> Records:
    made = Records()
    for part in parts:
        made = made.with_region(part) if isinstance(part, RegionRecord) else made.with_run(part)
    return made


# Regions


@pytest.mark.parametrize(
    ("events", "state"),
    [
        ([RegionEvent.MADE], "created"),
        ([RegionEvent.NOT_MADE], "failed"),
        ([RegionEvent.CLONE_BEGINS], "requested"),
        ([RegionEvent.CLONE_BEGINS, RegionEvent.MADE], "created"),
        ([RegionEvent.CLONE_BEGINS, RegionEvent.NOT_MADE], "failed"),
        ([RegionEvent.MADE, RegionEvent.DELETE, RegionEvent.REMOVED], "destroyed"),
        ([RegionEvent.DELETE, RegionEvent.MADE], "tombstoned"),
        ([RegionEvent.NOT_MADE, RegionEvent.DELETE], "tombstoned"),
        ([RegionEvent.DELETE, RegionEvent.NOT_REMOVED], "failed"),
        ([RegionEvent.DELETE, RegionEvent.NOT_REMOVED, RegionEvent.DELETE, RegionEvent.REMOVED], "destroyed"),
        ([RegionEvent.DELETE, RegionEvent.REMOVED, RegionEvent.DELETE], "destroyed"),
    ],
)
def test_region_as_clients_see_it(events: list[RegionEvent], state: str) -> None:
    seen = core.create_region(Records(), asked(), POOL)
    for event in events:
        seen = core.region_news(seen, A, event)
    assert seen.regions[A].document().state.value == state


def test_late_created_after_tombstone() -> None:
    """For regions, and for running snapshots."""
    assert after_region(RegionState.TOMBSTONED, RegionEvent.MADE) is RegionState.TOMBSTONED
    assert after_run(State.TOMBSTONED, RunEvent.STARTED) is State.TOMBSTONED


def test_what_the_tables_do_not_list_is_a_defect() -> None:
    for region in itertools.product(RegionState, RegionEvent):
        if region not in REGION_TRANSITIONS:
            with pytest.raises(LocalError, match="cannot see"):
                after_region(*region)
    for pair in itertools.product(State, RunEvent):
        if pair not in RUN_TRANSITIONS:
            with pytest.raises(LocalError, match="cannot see"):
                after_run(*pair)


def test_every_state_of_a_region_takes_a_delete() -> None:
    assert {state for state, event in REGION_TRANSITIONS if event is RegionEvent.DELETE} == set(RegionState)


@pytest.mark.parametrize("state", RegionState)
def test_post_that_is_repeated_changes_nothing(state: RegionState) -> None:
    before = records(record(A, state))
    assert core.create_region(before, asked(), POOL) is before


def test_posts_are_compared_in_order_and_without_secrets() -> None:
    before = core.create_region(Records(), asked(key_pem="old secret"), POOL)
    changes = {
        "block_size": (4096, "another block size 512, not 4096"),
        "extent_size": (9, "another extent size 8, not 9"),
        "extent_count": (5, "another extent count 4, not 5"),
        "encrypted": (True, "another encryption flag False, not True"),
        "cert_pem": ("x", "another certificate$"),
        "key_pem": ("new secret", "another key$"),
        "root_pem": ("x", "another root certificate$"),
        "source": ("[::1]:23000", r"another source None, not \[::1\]:23000"),
    }
    assert list(changes) == [member for member, _ in core.COMPARED]
    for first in range(len(changes)):
        differing = {"key_pem": "old secret"} | {name: changes[name][0] for name in list(changes)[first:]}
        with pytest.raises(Refused, match=list(changes.values())[first][1]) as refused:
            core.create_region(before, asked(**differing), POOL)
        assert refused.value.reason is Reason.OTHER_PARAMETERS
        assert "secret" not in str(refused.value)


def test_ids_are_used_once() -> None:
    before = records(record(A, RegionState.DESTROYED))
    assert core.create_region(before, asked(), POOL) is before


def test_delete_while_cloning_waits() -> None:
    with pytest.raises(Refused, match="is being cloned") as refused:
        core.delete_region(records(record(A, RegionState.CREATING)), A, has_snapshots=False)
    assert refused.value.reason is Reason.CLONING


def test_delete_of_an_unknown_id() -> None:
    with pytest.raises(Refused) as refused:
        core.delete_region(Records(), A, has_snapshots=False)
    assert refused.value.reason is Reason.UNKNOWN_REGION_TO_DELETE


# Ports


def test_lowest_free_port() -> None:
    seen = Records()
    for region_id, port in ((A, 19000), (B, 19001), (C, 19002)):
        seen = core.create_region(seen, asked(region_id), POOL)
        assert seen.regions[region_id].port_number == port
    with pytest.raises(Refused, match="all 3 ports from 19000") as refused:
        core.run_snapshot(seen, A, "s", POOL)
    assert refused.value.reason is Reason.NO_FREE_PORT
    for event in (RegionEvent.DELETE, RegionEvent.REMOVED):
        seen = core.region_news(seen, B, event)
    assert core.run_snapshot(seen, A, "s", POOL).run(A, "s") == run("s", State.REQUESTED)


@pytest.mark.parametrize("state", RegionState)
def test_a_port_is_free_when_its_record_is_destroyed(state: RegionState) -> None:
    taken = set() if state is RegionState.DESTROYED else {19000}
    assert records(record(A, state)).ports() == taken


@given(st.lists(st.tuples(st.sampled_from("crd"), st.integers(0, 5)), max_size=40))
def test_no_port_is_ever_given_twice(steps: list[tuple[str, int]]) -> None:
    seen = Records()
    for what, number in steps:
        region_id = f"{number:08x}-0000-4000-8000-000000000000"
        try:
            if what == "c":
                seen = core.create_region(seen, asked(region_id), POOL)
            elif what == "r" and region_id in seen.regions:
                seen = core.run_snapshot(seen, region_id, "s", POOL)
            elif region_id in seen.regions:
                seen = core.delete_region(seen, region_id, has_snapshots=False)
                while (work := core.next_work(seen)) is not None and work.task is Task.REMOVE_REGION:
                    seen = core.region_news(seen, work.region_id, RegionEvent.REMOVED)
        except Refused:  # no port is free
            assert len(seen.ports()) == POOL.count
        occupied = [each.port_number for each in seen.in_order() if each.state is not RegionState.DESTROYED]
        occupied += [each.port_number for each in seen.runs()]
        assert len(occupied) == len(set(occupied))


# Running snapshots


@pytest.mark.parametrize(
    ("state", "after"),
    [
        (State.REQUESTED, State.TOMBSTONED),
        (State.CREATED, State.TOMBSTONED),
        (State.TOMBSTONED, State.TOMBSTONED),
        (State.DESTROYED, State.DESTROYED),
    ],
)
def test_stop_of_a_running_snapshot(state: State, after: State) -> None:
    before = records(record(A, RegionState.CREATED), run("s", state))
    found = core.stop_snapshot(before, A, "s").run(A, "s")
    assert found is not None
    assert found.state is after


def test_stop_of_what_never_ran() -> None:
    """Where nothing of the region ever ran it is refused, beside something that did it is fine."""
    seen = records(record(A, RegionState.CREATED))
    with pytest.raises(Refused) as refused:
        core.stop_snapshot(seen, A, "s")
    assert refused.value.reason is Reason.NEVER_RUN
    seen = seen.with_run(run("other", State.CREATED))
    assert core.stop_snapshot(seen, A, "s") is seen
    with pytest.raises(Refused) as refused:
        core.stop_snapshot(seen, B, "s")
    assert refused.value.reason is Reason.UNKNOWN_REGION


def test_failed_run_is_final() -> None:
    seen = records(record(A, RegionState.CREATED), run("s", State.FAILED))
    with pytest.raises(Refused) as refused:
        core.stop_snapshot(seen, A, "s")
    assert refused.value.reason is Reason.RUN_FAILED
    assert core.run_snapshot(seen, A, "s", POOL) is seen


@pytest.mark.parametrize("state", State)
def test_snapshot_is_deleted_when_its_run_is_over(state: State) -> None:
    seen = records(record(A, RegionState.CREATED), run("s", state))
    if state is State.DESTROYED:
        assert core.may_delete_snapshot(seen, A, "s", has_dataset=True)
    else:
        with pytest.raises(Refused) as refused:
            core.may_delete_snapshot(seen, A, "s", has_dataset=True)
        assert refused.value.reason is Reason.SNAPSHOT_IN_USE


@pytest.mark.parametrize("state", RegionState)
def test_snapshot_of_a_region_without_files(state: RegionState) -> None:
    seen = records(record(A, state))
    if state in (RegionState.TOMBSTONED, RegionState.DESTROYED):
        assert not core.may_delete_snapshot(seen, A, "s", has_dataset=False)
    else:
        with pytest.raises(Refused) as refused:
            core.may_delete_snapshot(seen, A, "s", has_dataset=False)
        assert refused.value.reason is Reason.NO_DATASET


# Work


def test_most_urgent_work_first() -> None:
    seen = records(
        record(A, RegionState.CREATED),
        run("starting", State.REQUESTED),
        run("stopping", State.TOMBSTONED),
        record(B, RegionState.REQUESTED),
        record(C, RegionState.TOMBSTONED),
        replace(record(A, RegionState.CREATING), wish=asked(A.replace("a", "d"))),
    )
    order = list(core.work_to_do(seen))
    assert order == [
        Work(Task.REMOVE_REGION, C),
        Work(Task.MAKE_REGION, B),
        Work(Task.STOP_SNAPSHOT, A, "stopping"),
        Work(Task.START_SNAPSHOT, A, "starting"),
    ]
    assert [work.task for work in order] == list(Task)
    assert core.next_work(seen, {order[0]}) == order[1], "what rests does not hold up the rest"
    assert core.next_work(seen, order) is None


def test_which_downstairs_run() -> None:
    seen = records(
        *(record(f"{number}", state, port=19000 + number) for number, state in enumerate(RegionState)),
        *(run(f"s{number}", state, port=19100 + number) for number, state in enumerate(State)),
    )
    created = str(list(RegionState).index(RegionState.CREATED))
    wanted = core.wanted_services(seen)
    assert set(wanted) == {f"downstairs-{created}", f"snapshot-{A}-s0", f"snapshot-{A}-s1"}
    assert not wanted[f"downstairs-{created}"].read_only
    assert wanted[f"snapshot-{A}-s0"].read_only


def test_region_with_a_source_runs_read_only_and_one_with_papers_over_tls() -> None:
    seen = core.create_region(Records(), asked(A, source="[::1]:23000"), POOL)
    seen = core.create_region(seen, asked(B, cert_pem="c", key_pem="k", root_pem="r"), POOL)
    for region_id in (A, B):
        seen = core.region_news(seen, region_id, RegionEvent.MADE)
    wanted = core.wanted_services(seen)
    assert (wanted[f"downstairs-{A}"].read_only, wanted[f"downstairs-{A}"].tls) == (True, False)
    assert (wanted[f"downstairs-{B}"].read_only, wanted[f"downstairs-{B}"].tls) == (False, True)


# Books


def test_reservation_and_quota() -> None:
    """A quarter more than the region's bytes, and three times them; rounded to bytes."""
    assert books.reservation_bytes(asked()) == 20_480
    assert books.quota_bytes(asked()) == 49_152
    books.check_capacity(asked(A), [asked(B)], 40_960)
    with pytest.raises(UsageError, match="20480 bytes, 20479 are left"):
        books.check_capacity(asked(A), [asked(B)], 40_959)
    books.check_capacity(asked(A), [asked(B)] * 100, None)


@given(st.text(max_size=40))
def test_no_id_leads_out_of_the_dataset(region_id: str) -> None:
    name = books.directory_name(region_id)
    assert name is None or (name == region_id and set(name) <= set("0123456789abcdefABCDEF-"))


@pytest.mark.parametrize("region_id", [A, A.upper(), A.replace("-", "")])
def test_ids_that_are_uuids(region_id: str) -> None:
    assert books.directory_name(region_id) == region_id


@pytest.mark.parametrize("region_id", ["", "..", f"{{{A}}}", f"urn:uuid:{A}", "-" * 36, A + "/", "a" * 36])
def test_ids_that_are_none(region_id: str) -> None:
    assert books.directory_name(region_id) is None


# Failures on purpose


def test_failures_on_purpose() -> None:
    failures = Failures.named(["create", "run"], 0.5)
    assert (failures.failing, failures.slow_s) == ({Failing.CREATE, Failing.RUN}, 0.5)
    failures.strike(Failing.DELETE)
    with pytest.raises(OnPurpose, match="every create fail"):
        failures.strike(Failing.CREATE)
    with pytest.raises(UsageError, match="'flush' is nothing that can be made to fail: take one of create, del"):
        Failures.named(["flush"], 0)
    with pytest.raises(UsageError, match="take 0 to 3600 seconds"):
        Failures.named([], -1)
