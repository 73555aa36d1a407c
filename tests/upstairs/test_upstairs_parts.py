"""The parts of the Upstairs core: transition tables, dependency tracker, collation, jobs."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crucible_emu import errors
from crucible_emu.upstairs.dependencies import SINGLES_MIN, DependencyTracker
from crucible_emu.upstairs.jobs import Job, JobTable
from crucible_emu.upstairs.reconciliation import ExtentVersions, Mend, Reconciliation, Step, collate
from crucible_emu.upstairs.rules import CLIENTS, JobKind
from crucible_emu.upstairs.states import (
    CLIENT_TRANSITIONS,
    FAULTS,
    ClientEvent,
    ClientState,
    IllegalTransition,
    Mode,
    Phase,
    StopReason,
    UpstairsState,
    next_client_state,
)

# -- states -----------------------------------------------------------------------------------------------------------

STOPPED_EXPECTATIONS = [
    # state, Upstairs, replayable -> phase, mode: the table of what a client becomes when its task has ended
    (ClientState(Phase.ACTIVE), UpstairsState.ACTIVE, True, Phase.START, Mode.OFFLINE),
    (ClientState(Phase.ACTIVE), UpstairsState.ACTIVE, False, Phase.START, Mode.FAULTED),
    (ClientState(Phase.START, Mode.OFFLINE), UpstairsState.ACTIVE, False, Phase.START, Mode.FAULTED),
    (ClientState(Phase.START, Mode.OFFLINE), UpstairsState.ACTIVE, True, Phase.START, Mode.OFFLINE),
    (ClientState(Phase.LIVE_REPAIR, Mode.FAULTED), UpstairsState.ACTIVE, True, Phase.START, Mode.FAULTED),
    (ClientState(Phase.WAIT_QUORUM), UpstairsState.GO_ACTIVE, False, Phase.START, Mode.NEW),
    (ClientState(Phase.WAIT_QUORUM), UpstairsState.DEACTIVATING, False, Phase.WAIT_CONNECT, Mode.NEW),
]


@pytest.mark.parametrize(("state", "upstairs", "replayable", "phase", "mode"), STOPPED_EXPECTATIONS)
def test_what_a_client_becomes_when_its_connection_ended(
    state: ClientState, upstairs: UpstairsState, replayable: bool, phase: Phase, mode: Mode
) -> None:
    after = next_client_state(state, ClientEvent.STOPPED, upstairs, replayable=replayable)
    assert (after.phase, after.mode) == (phase, mode)


@pytest.mark.parametrize(("reason", "upstairs"), list(product(StopReason, UpstairsState)))
def test_every_stop_reason_comes_to_rest_in_every_state(reason: StopReason, upstairs: UpstairsState) -> None:
    """The real program aborts on three of these combinations."""
    stopping = next_client_state(ClientState(Phase.ACTIVE), ClientEvent.STOP, upstairs, reason=reason)
    after = next_client_state(stopping, ClientEvent.STOPPED, upstairs)
    open_ = upstairs in (UpstairsState.ACTIVE, UpstairsState.GO_ACTIVE)
    assert after.phase is (Phase.START if open_ else Phase.WAIT_CONNECT)
    if reason in FAULTS:
        assert after.mode is Mode.FAULTED
    if reason is StopReason.REPLACING:
        assert after.mode is (Mode.REPLACED if upstairs is UpstairsState.ACTIVE else Mode.NEW)


def test_a_transition_that_is_not_listed_is_refused() -> None:
    with pytest.raises(IllegalTransition, match="Active"):
        next_client_state(ClientState(Phase.ACTIVE), ClientEvent.YES_ITS_ME, UpstairsState.ACTIVE)


def test_every_event_has_a_row_and_every_phase_can_be_left() -> None:
    assert {row.event for row in CLIENT_TRANSITIONS} == set(ClientEvent)
    for phase in Phase:
        assert any(phase in row.phases and row.to_phase is not phase for row in CLIENT_TRANSITIONS)


# -- dependencies -----------------------------------------------------------------------------------------------------


def always(_: int) -> bool:
    return True


class BlockwiseModel:
    """The rule itself, block by block: the last blocking job and the readers since."""

    def __init__(self) -> None:
        self.blocking: dict[int, int] = {}
        self.readers: dict[int, set[int]] = {}

    def read(self, job: int, start: int, end: int) -> list[int]:
        found = {self.blocking[block] for block in range(start, end) if block in self.blocking}
        for block in range(start, end):
            self.readers.setdefault(block, set()).add(job)
        return sorted(found)

    def block(self, job: int, start: int, end: int, touched: range) -> list[int]:
        found: set[int] = set()
        for block in touched:
            if start <= block < end:
                found |= self.readers.get(block, set())
                if block in self.blocking:
                    found.add(self.blocking[block])
                self.readers.pop(block, None)
                self.blocking[block] = job
        return sorted(found)


@given(
    operations=st.lists(
        st.tuples(st.sampled_from(["read", "write", "flush"]), st.integers(0, 30), st.integers(0, 8))
        | st.tuples(st.sampled_from(["read", "write"]), st.integers(0, 5), st.sampled_from([1, 1, 1, 2, 3])),
        max_size=40,
    )
)
def test_the_tracker_agrees_with_the_rule_block_by_block(operations: list[tuple[str, int, int]]) -> None:
    tracker, model = DependencyTracker(), BlockwiseModel()
    blocks = range(64)
    for job, (kind, start, count) in enumerate(operations, 1000):
        match kind:
            case "read":
                assert tracker.read(job, start, start + count, always) == model.read(job, start, start + count)
            case "write":
                found = tracker.block(job, start, start + count, always)
                assert found == model.block(job, start, start + count, blocks)
            case "flush":
                assert tracker.block_everything(job, always) == model.block(job, 0, 64, blocks)


def test_a_flush_leaves_one_segment() -> None:
    tracker = DependencyTracker()
    for job in range(100):
        tracker.block(job, job * 3, job * 3 + 2, always)
    tracker.block_everything(1000, always)
    assert len(tracker) == 1


def test_single_blocks_beside_a_segment_do_not_hide_it() -> None:
    tracker = DependencyTracker()
    tracker.block(1, 2, 4, always)
    for job, block in enumerate((2, 5, 6), 2):
        tracker.block(job, block, block + 1, always)
    assert tracker.block_everything(9, always) == [1, 2, 3, 4]


def test_single_blocks_hide_a_segment_that_they_make_up() -> None:
    tracker = DependencyTracker()
    tracker.block(1, 2, 4, always)
    for job, block in enumerate((2, 3), 2):
        assert tracker.block(job, block, block + 1, always) == [1]
    assert tracker.block_everything(9, always) == [2, 3]


def test_a_disk_that_is_only_read_is_not_remembered_block_by_block() -> None:
    tracker, under_way = DependencyTracker(), 64
    tracker.block(0, 7, 8, always)
    for job in range(1, 3 * SINGLES_MIN):
        tracker.read(job, job * 10, job * 10 + 1, lambda other, now=job: other == 0 or other > now - under_way)
        assert len(tracker) <= SINGLES_MIN + 1
    assert tracker.read(10**6, 7, 8, always) == [0]
    last = 3 * SINGLES_MIN - 1
    assert tracker.block(10**6 + 1, last * 10, last * 10 + 1, always) == [last]


def test_finished_jobs_are_no_dependencies() -> None:
    tracker = DependencyTracker()
    tracker.block(1, 0, 4, always)
    tracker.read(2, 0, 4, always)
    assert tracker.block(3, 0, 4, lambda job: job != 2) == [1]


# -- collation --------------------------------------------------------------------------------------------------------

N, Y = False, True
COLLATION_EXAMPLES = [
    ([(1, 1, N), (1, 1, N), (1, 1, N)], None),
    ([(2, 1, N), (1, 9, Y), (2, 1, N)], (0, (1,))),
    ([(2, 3, N), (2, 5, N), (2, 5, N)], (1, (0,))),
    ([(2, 5, N), (2, 5, Y), (2, 5, N)], (1, (0, 2))),
    ([(2, 5, Y), (2, 5, Y), (2, 5, Y)], (0, (1, 2))),
    ([(1, 9, Y), (1, 9, Y), (2, 0, N)], (2, (0, 1))),
]


def versions(triples: list[list[tuple[int, int, bool]]]) -> list[ExtentVersions]:
    """``triples[extent][client]`` as each client would report it."""
    return [
        ExtentVersions(
            np.array([extent[client][0] for extent in triples], np.uint64),
            np.array([extent[client][1] for extent in triples], np.uint64),
            np.array([extent[client][2] for extent in triples], np.bool_),
        )
        for client in CLIENTS
    ]


@pytest.mark.parametrize(("triples", "expected"), COLLATION_EXAMPLES)
def test_source_and_destinations(
    triples: list[tuple[int, int, bool]], expected: tuple[int, tuple[int, ...]] | None
) -> None:
    mends = collate(versions([triples])).mends
    assert mends == (() if expected is None else (Mend(0, *expected),))


def test_collation_numbers_lie_above_everything_stored() -> None:
    found = collate(versions([[(3, 8, N)] * 3, [(2, 9, N)] * 3]))
    assert (found.max_gen, found.max_flush, found.mends) == (4, 10, ())


def test_lists_of_different_length_are_the_peers_fault() -> None:
    one, two, three = versions([[(1, 1, N)] * 3])
    short = ExtentVersions(two.gen_numbers[:0], two.flush_numbers[:0], two.dirty_bits[:0])
    with pytest.raises(errors.RemoteError, match="different numbers"):
        collate([one, short, three])


def test_reconciliation_waits_for_everybody_it_sent_a_step_to() -> None:
    work = Reconciliation((Mend(3, 1, (0, 2)),))
    assert work.advance() == (1,)
    assert work.acknowledged(1, 0)
    assert work.advance() == CLIENTS
    assert not work.acknowledged(2, 1)
    assert not work.acknowledged(0, 1)
    with pytest.raises(errors.RemoteError):
        work.acknowledged(0, 1)
    assert work.acknowledged(1, 1)
    assert work.advance() == (0, 2)
    assert work.step is Step.REPAIR


# -- jobs -------------------------------------------------------------------------------------------------------------


def test_the_table_finds_a_train_by_any_of_its_ids() -> None:
    table = JobTable()
    jobs = []
    for first in (1000, 1003, 1010):
        job = Job(JobKind.WRITE, first, [0, 1, 2], [1, 1, 1], 3 * 512)
        job.in_progress = [job.full] * 3
        table.add(job)
        jobs.append(job)
    assert [table.find(i) for i in (999, 1000, 1002, 1005, 1006, 1012, 1013)] == [
        None,
        jobs[0],
        jobs[0],
        jobs[1],
        None,
        jobs[2],
        None,
    ]
    table.forget(jobs[0])
    table.forget(jobs[1])
    assert table.find(1003) is None
    assert table.find(1011) is jobs[2]


def test_progress_of_a_train_is_counted_operation_by_operation() -> None:
    table = JobTable()
    job = Job(JobKind.WRITE, 1000, [0, 1, 2], [1, 1, 1], 3 * 512)
    job.in_progress = [job.full, job.full, 0]
    table.add(job)
    assert table.jobs_in_progress == [3, 3, 0]
    table.settle(job, 0, 0b010, job.done)
    table.settle(job, 0, 0b010, job.done)
    assert table.jobs_in_progress == [2, 3, 0]
    assert table.bytes_in_progress == [1536, 1536, 0]
    table.settle(job, 0, job.full, job.skipped)
    assert job.skipped[0] == 0b101
    assert table.bytes_in_progress == [0, 1536, 0]
    assert not job.complete
