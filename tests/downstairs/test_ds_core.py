"""The pure Downstairs: messages in, actions out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from downstairs_rig import (
    BLOCK,
    FAILURE,
    OTHER_S,
    OTHER_U,
    SMALL,
    ModelRegion,
    Rig,
    S,
    U,
    barrier,
    contexts_of,
    definition,
    flush,
    hello,
    payload,
    promote,
    read,
    write,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from test_ds_jobs import OPERATIONS, simple_dependencies

from crucible_emu import errors
from crucible_emu.downstairs.core import RETRY_PAUSE_S
from crucible_emu.downstairs.jobs import JobLimits
from crucible_emu.downstairs.session import State
from crucible_emu.downstairs.work import DROPPED, NO_ROOM, Kind
from crucible_emu.integrity import BlockContexts
from crucible_emu.wire import messages as m

SOURCE = m.SocketAddress("127.0.0.1", 13811)


@pytest.fixture
def rig() -> Rig:
    rig = Rig()
    rig.activate()
    return rig


# Negotiation as a whole


def test_negotiation_reopens_extents_and_tells_their_versions() -> None:
    rig = Rig()
    rig.open()
    assert [type(each) for each in rig.give(hello())] == [m.YesItsMe]
    assert rig.give(promote(generation=3)) == []
    assert rig.kinds() == [Kind.REOPEN_ALL]
    rig.end()
    assert rig.sent[1][-1] == m.YouAreNowActive(U, S, 3)
    assert rig.give(m.RegionInfoPlease()) == [m.RegionInfo(rig.definition)]
    rig.give(m.ExtentVersionsPlease())
    assert rig.kinds() == [Kind.EXTENT_VERSIONS]
    versions = (np.array([1, 2], np.uint64), np.array([3, 4], np.uint64), np.array([True, False]))
    rig.end(outcome=versions)
    assert rig.sent[1][-1] == m.ExtentVersions(*versions)
    assert rig.core.state(1) is State.RUNNING


def test_region_that_cannot_be_reopened_refuses_the_promotion() -> None:
    rig = Rig()
    rig.open()
    rig.give(hello(), promote())
    rig.end(outcome=errors.BadMetadata("extent 3"))
    assert "extent 3" in rig.closed[1]
    assert m.YouAreNowActive not in map(type, rig.sent[1])


def test_messages_sent_ahead_wait_for_the_promotion() -> None:
    """An Upstairs may send on without waiting; in the real program's one loop they come after the promotion too."""
    rig = Rig()
    rig.open()
    train = [hello(), promote(), m.RegionInfoPlease(), m.ExtentVersionsPlease(), write(1000, 0)]
    taken, actions = rig.core.receive_train(1, train)
    rig.take(actions)
    assert taken == 2
    rig.end()
    assert rig.resumed == [1]
    taken, actions = rig.core.receive_train(1, train, 2)
    rig.take(actions)
    assert taken == 3
    rig.run_all(lambda work: (np.zeros(4), np.zeros(4), np.zeros(4)) if work.kind is Kind.EXTENT_VERSIONS else None)
    assert [type(each) for each in rig.sent[1]] == [
        m.YesItsMe,
        m.YouAreNowActive,
        m.RegionInfo,
        m.ExtentVersions,
        m.WriteAck,
    ]


def test_read_only_session_needs_no_work() -> None:
    rig = Rig(read_only=True)
    rig.open()
    sent = rig.give(hello(read_only=True), promote(), m.RegionInfoPlease(), m.LastFlush(None))
    assert [type(each) for each in sent] == [m.YesItsMe, m.YouAreNowActive, m.RegionInfo]
    assert rig.kinds() == []


# Jobs and their answers


ANSWERS: list[tuple[m.Message, Kind | None, Any, m.Message]] = [
    (write(1000, 3), Kind.WRITE, None, m.WriteAck(U, S, 1000, None)),
    (write(1000, 3, kind=m.WriteUnwritten), Kind.WRITE_UNWRITTEN, None, m.WriteUnwrittenAck(U, S, 1000, None)),
    (flush(1000), Kind.FLUSH, None, m.FlushAck(U, S, 1000, None)),
    (barrier(1000), None, None, m.BarrierAck(U, S, 1000, None)),
    (m.ExtentLiveClose(U, S, 1000, (), 2), Kind.CLOSE, (5, 6, True), m.ExtentLiveCloseAck(U, S, 1000, (5, 6, True))),
    (
        m.ExtentLiveFlushClose(U, S, 1000, (), 2, 7, 8),
        Kind.FLUSH_CLOSE,
        (8, 7, False),
        m.ExtentLiveCloseAck(U, S, 1000, (8, 7, False)),
    ),
    (m.ExtentLiveRepair(U, S, 1000, (), 2, 0, SOURCE), Kind.REPAIR, None, m.ExtentLiveRepairAckId(U, S, 1000, None)),
    (m.ExtentLiveReopen(U, S, 1000, (), 2), Kind.REOPEN, None, m.ExtentLiveAckId(U, S, 1000, None)),
    (m.ExtentLiveNoOp(U, S, 1000, ()), None, None, m.ExtentLiveAckId(U, S, 1000, None)),
    (m.ExtentFlush(5, 2, 0, 7, 8), Kind.FLUSH_EXTENT, None, m.RepairAckId(5)),
    (m.ExtentClose(5, 2), Kind.CLOSE, (1, 1, False), m.RepairAckId(5)),
    (m.ExtentRepair(5, 2, 0, SOURCE, (1, 2)), Kind.REPAIR, None, m.RepairAckId(5)),
    (m.ExtentReopen(5, 2), Kind.REOPEN, None, m.RepairAckId(5)),
]


@pytest.mark.parametrize(("message", "kind", "outcome", "reply"), ANSWERS, ids=lambda value: type(value).__name__)
def test_answer(rig: Rig, message: m.Message, kind: Kind | None, outcome: Any, reply: m.Message) -> None:
    sent = rig.give(message)
    if kind is not None:
        assert sent == []
        assert rig.kinds() == [kind]
        rig.end(outcome=outcome)
    assert rig.sent[1] == [reply]
    assert rig.core.lane.idle


def test_read_response_carries_contexts_and_data(rig: Rig) -> None:
    rig.give(read(1000, 4, 2))
    data = payload(2, 7)
    rig.end(outcome=(contexts_of(data), data))
    (reply,) = rig.sent[1]
    assert reply == m.ReadResponse(U, S, 1000, contexts_of(data), data)


def failure_of(message: m.Message) -> m.Message:
    match message:
        case m.ReadRequest():
            return m.ReadResponse(U, S, 1000, FAILURE, memoryview(b""))
        case m.ExtentFlush() | m.ExtentClose() | m.ExtentRepair() | m.ExtentReopen():
            return m.ExtentError(5, 2, FAILURE)
    return next(type(reply)(U, S, 1000, FAILURE) for asked, _, _, reply in ANSWERS if type(asked) is type(message))


@pytest.mark.parametrize(
    "message",
    [row[0] for row in ANSWERS if row[1] is not None] + [read(1000, 0)],
    ids=lambda value: type(value).__name__,
)
def test_failure_is_answered_and_not_complete(rig: Rig, message: m.Message) -> None:
    rig.give(message, barrier(1001, (1000,)))
    rig.end(outcome=FAILURE)
    # After a failed read the Upstairs keeps the client and goes on naming the read; after any other it throws it out.
    after = [m.BarrierAck(U, S, 1001, None)] if type(message) is m.ReadRequest else []
    assert rig.sent[1] == [failure_of(message), *after]
    assert rig.core.statistics.jobs_failed == 1
    assert not rig.closed


@pytest.mark.parametrize(
    "message", [row[0] for row in ANSWERS[:9] if row[1]] + [read(1000, 0)], ids=lambda value: type(value).__name__
)
def test_faithful_reports_and_tries_again(message: m.Message) -> None:
    rig = Rig(faithful=True)
    rig.activate()
    rig.give(message)
    rig.end(outcome=FAILURE)
    assert rig.sent[1] == [m.ErrorReport(U, S, 1000, FAILURE)]
    if type(message) is m.ExtentLiveRepair:
        assert "live repair" in rig.closed[1]
        assert rig.core.lane.idle
        return
    assert rig.pauses == [RETRY_PAUSE_S]
    rig.end(outcome=FAILURE)
    rig.run_all()
    assert rig.sent[1][1] == m.ErrorReport(U, S, 1000, FAILURE)
    assert type(rig.sent[1][2]) is not m.ErrorReport
    assert rig.core.lane.idle


def test_faithful_reconciliation_step_fails_at_once() -> None:
    rig = Rig(faithful=True)
    rig.activate()
    rig.give(m.ExtentReopen(5, 2))
    rig.end(outcome=FAILURE)
    assert rig.sent[1] == [m.ExtentError(5, 2, FAILURE)]


def test_answer_goes_out_before_what_depends_on_it_starts(rig: Rig) -> None:
    rig.give(write(1000, 0), write(1001, 0, deps=(1000,)))
    assert rig.kinds() == [Kind.WRITE]
    rig.end()
    assert rig.sent[1] == [m.WriteAck(U, S, 1000, None)]
    assert rig.kinds() == [Kind.WRITE]


def test_chain_of_thousands_of_barriers(rig: Rig) -> None:
    rig.give(write(1, 0), *(barrier(number, (number - 1,)) for number in range(2, 6000)))
    rig.end()
    assert [each.job_id for each in rig.sent[1]] == list(range(1, 6000))  # type: ignore[attr-defined]


def test_train_written_is_answered_as_one_by_one(rig: Rig) -> None:
    for kind, ack, base in ((m.Write, m.WriteAck, 0), (m.WriteUnwritten, m.WriteUnwrittenAck, 100)):
        for offsets in ((1, 2, 3), (11, 13, 12)):
            one, two, three = job_ids = [base + offset for offset in offsets]
            rig.give(*(write(job, job % 8, kind=kind) for job in job_ids), write(20 + one, 0, deps=(one, three)))
            works = list(rig.running)
            rig.running.clear()
            rig.take(rig.core.train_written(works))
            assert rig.sent[1] == [ack(U, S, job, None) for job in (one, two, three)]
            assert rig.kinds() == [Kind.WRITE]
            rig.end()
            rig.sent[1].clear()
    assert rig.core.statistics.blocks_written == 16


# What a peer must not send


@pytest.mark.parametrize(("ids", "expected"), [((OTHER_U, S), U), ((U, OTHER_S), S), ((OTHER_U, OTHER_S), U)])
def test_job_with_other_ids_is_dropped_with_a_word(rig: Rig, ids: Any, expected: Any) -> None:
    assert rig.give(write(1000, 0, ids=ids)) == [m.UuidMismatch(expected)]
    assert rig.kinds() == []
    assert not rig.closed
    assert rig.give(barrier(1001)) == [m.BarrierAck(U, S, 1001, None)]


ALL = definition().total_blocks
REFUSED: list[tuple[Any, errors.CrucibleError]] = [
    (write(1000, ALL), errors.OffsetInvalid()),
    (write(1000, ALL - 1, 2), errors.OffsetInvalid()),
    (write(1000, 2**64 - 1), errors.OffsetInvalid()),
    (write(1000, ALL, kind=m.WriteUnwritten), errors.OffsetInvalid()),
    (read(1000, ALL), errors.OffsetInvalid()),
    (read(1000, 0, 2**64 - 1), errors.OffsetInvalid()),
    (flush(1000, limit=5), errors.InvalidExtent()),
    (m.ExtentLiveClose(U, S, 1000, (), 4), errors.InvalidExtent()),
    (m.ExtentLiveFlushClose(U, S, 1000, (), 2**32 - 1, 1, 1), errors.InvalidExtent()),
    (m.ExtentLiveRepair(U, S, 1000, (), 4, 0, SOURCE), errors.InvalidExtent()),
    (m.ExtentLiveReopen(U, S, 1000, (), 4), errors.InvalidExtent()),
]


@pytest.mark.parametrize(("message", "error"), REFUSED, ids=lambda value: type(value).__name__)
def test_what_kills_the_real_one_is_answered(rig: Rig, message: Any, error: errors.CrucibleError) -> None:
    (reply,) = rig.give(message)
    assert error in (getattr(reply, "result", None), getattr(reply, "blocks", None))
    assert rig.kinds() == []
    assert not rig.closed
    assert rig.core.lane.idle


def test_limit_one_beyond_the_last_extent_is_taken_as_the_real_one_does(rig: Rig) -> None:
    rig.give(flush(1000, limit=4))
    assert rig.kinds() == [Kind.FLUSH]


def test_reconciliation_of_an_extent_that_does_not_exist(rig: Rig) -> None:
    assert rig.give(m.ExtentClose(9, 4)) == [m.ExtentError(9, 4, errors.InvalidExtent())]


def test_read_of_nothing_or_of_too_much() -> None:
    rig = Rig(definition(extents=2, blocks=200_000))
    rig.activate()
    replies = rig.give(read(1000, 0, 0), read(1001, 0, 200_000), read(1002, 0, 190_000))
    assert [type(each.blocks) for each in replies] == [errors.InvalidNumberOfBlocks] * 2  # type: ignore[attr-defined]
    assert len(rig.running) == 1


def test_refused_read_counts_as_complete_and_a_refused_write_does_not(rig: Rig) -> None:
    replies = rig.give(read(1, ALL), barrier(2, (1,)), write(3, ALL), barrier(4, (3,)))
    assert [each.job_id for each in replies] == [1, 2, 3]  # type: ignore[attr-defined]


def test_nothing_passes_a_refused_job_of_a_local_upstairs() -> None:
    rig = Rig()
    rig.activate(in_order=True)
    rig.give(write(1, 0), write(2, ALL), flush(3), read(4, 0))
    rig.run_all()
    assert rig.sent[1] == [m.WriteAck(U, S, 2, errors.OffsetInvalid()), m.WriteAck(U, S, 1, None)]


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/abs", "x\0y", "n" * 256])
def test_snapshot_name_that_is_no_file_name(rig: Rig, name: str) -> None:
    (reply,) = rig.give(flush(1000, snapshot=name))
    assert isinstance(reply, m.FlushAck)
    assert isinstance(reply.result, errors.SnapshotFailed)


def crooked(**changes: Any) -> m.Write:
    members = {"data": payload(1), "contexts": contexts_of(payload(1)), "dependencies": ()} | changes
    return m.Write(U, S, 1000, members["dependencies"], 0, members["contexts"], members["data"])


CLOSING: list[tuple[str, m.Message]] = [
    ("no whole number", crooked(data=memoryview(bytes(BLOCK + 1)))),
    ("came with 1 contexts", crooked(data=payload(2))),
    ("65537 dependencies", crooked(dependencies=tuple(range(65537)))),
    ("65537 dependencies", barrier(1000, range(65537))),
    ("65537 dependencies", m.ExtentLiveClose(U, S, 1000, tuple(range(65537)), 0)),
    ("HereIAm", hello()),
    ("LastFlush", m.LastFlush(None)),
    ("WriteAck", m.WriteAck(U, S, 1000, None)),
    ("Unknown", m.Unknown(3, b"")),
]


@pytest.mark.parametrize(("reason", "message"), CLOSING)
def test_what_costs_the_connection(rig: Rig, reason: str, message: m.Message) -> None:
    assert rig.give(message) == []
    assert reason in rig.closed[1]
    assert rig.core.state(1) is State.CLOSED
    assert rig.give(barrier(1001), m.Ruok()) == [], "what comes after the close is dropped"


def test_write_of_no_block_is_answered(rig: Rig) -> None:
    empty = memoryview(b"")
    message = m.Write(U, S, 1000, (), ALL, BlockContexts.empty(0), empty)
    assert rig.give(message, barrier(1001, (1000,))) == [m.WriteAck(U, S, 1000, None), m.BarrierAck(U, S, 1001, None)]


# Read-only (§13)


READ_ONLY_CLOSING: list[m.Message] = [
    write(1000, 0),
    write(1000, 0, kind=m.WriteUnwritten),
    m.ExtentClose(0, 0),
    m.ExtentFlush(0, 0, 0, 1, 1),
    m.ExtentRepair(0, 0, 0, SOURCE, ()),
    m.ExtentReopen(0, 0),
    m.ExtentLiveClose(U, S, 1000, (), 0),
    m.ExtentLiveFlushClose(U, S, 1000, (), 0, 1, 1),
    m.ExtentLiveRepair(U, S, 1000, (), 0, 0, SOURCE),
    m.ExtentLiveReopen(U, S, 1000, (), 0),
    m.ExtentLiveNoOp(U, S, 1000, ()),
]


@pytest.mark.parametrize("message", READ_ONLY_CLOSING, ids=lambda value: type(value).__name__)
def test_read_only_region_is_not_modified(message: m.Message) -> None:
    rig = Rig(read_only=True)
    rig.activate(read_only=True)
    assert rig.give(message) == []
    assert "read-only" in rig.closed[1]


def test_read_only_region_reads_flushes_and_keeps_order() -> None:
    rig = Rig(read_only=True)
    rig.activate(read_only=True)
    sent = rig.give(flush(1), barrier(2, (1,)), flush(3, snapshot="s"), m.Ruok())
    assert sent == [
        m.FlushAck(U, S, 1, None),
        m.BarrierAck(U, S, 2, None),
        m.FlushAck(U, S, 3, errors.ModifyingReadOnlyRegion()),
        m.Imok(),
    ]
    rig.give(read(4, 0, deps=(2,)))
    assert rig.kinds() == [Kind.READ]


# Takeover


def test_takeover_evicts_and_waits_for_what_still_runs(rig: Rig) -> None:
    rig.give(write(1, 0), flush(2, (1,)))
    rig.end()
    assert rig.kinds() == [Kind.FLUSH]
    rig.give(write(3, 0, deps=(2,)))
    rig.open(2)
    rig.give(hello(OTHER_U, OTHER_S, 2), promote(OTHER_U, OTHER_S, 2), to=2)
    assert rig.sent[1][-1] == m.YouAreNoLongerActive(OTHER_U, OTHER_S, 2)
    assert "took over" in rig.closed[1]
    assert rig.kinds() == [Kind.FLUSH], "the region is not handed over while it is being flushed"
    rig.end()
    assert rig.kinds() == [Kind.REOPEN_ALL], "what the old Upstairs had waiting is gone"
    rig.end()
    assert rig.sent[2][-1] == m.YouAreNowActive(OTHER_U, OTHER_S, 2)
    assert len(rig.sent[1]) == 2, "no FlushAck to the evicted one"


def test_refused_takeover_closes_without_a_word(rig: Rig) -> None:
    rig.open(2)
    sent = rig.give(hello(OTHER_U, OTHER_S), promote(OTHER_U, OTHER_S, 1), to=2)
    assert [type(each) for each in sent] == [m.YesItsMe]
    assert "refused" in rig.closed[2]
    rig.core.closed(2)
    assert rig.give(barrier(5)) == [m.BarrierAck(U, S, 5, None)]
    rig.open(3)
    rig.give(hello(U, OTHER_S), promote(U, OTHER_S, 0), to=3)
    assert "refused" in rig.closed[3], "the first refusal has not erased who is active"


def test_third_upstairs_wins_while_the_second_is_being_promoted(rig: Rig) -> None:
    rig.give(flush(1))
    rig.open(2)
    rig.give(hello(OTHER_U, OTHER_S, 2), promote(OTHER_U, OTHER_S, 2), to=2)
    rig.open(3)
    rig.give(hello(U, OTHER_S, 3), promote(U, OTHER_S, 3), to=3)
    assert rig.sent[2][-1] == m.YouAreNoLongerActive(U, OTHER_S, 3)
    rig.run_all()
    assert m.YouAreNowActive not in map(type, rig.sent[2])
    assert rig.sent[3][-1] == m.YouAreNowActive(U, OTHER_S, 3)


def test_same_process_comes_back_before_its_old_connection_died(rig: Rig) -> None:
    rig.open(2)
    rig.give(hello(), promote(), to=2)
    rig.run_all()
    assert rig.sent[2][-1] == m.YouAreNowActive(U, S, 1)
    assert "took over" in rig.closed[1]


def test_repair_of_an_evicted_connection_is_abandoned(rig: Rig) -> None:
    rig.give(m.ExtentRepair(3, 2, 0, SOURCE, (1,)))
    (repair,) = rig.running
    rig.take(rig.core.closed(1))
    assert rig.abandoned == [repair]
    rig.open(2)
    rig.give(hello(), promote(), to=2)
    assert rig.kinds() == [Kind.REPAIR]
    rig.end(outcome=DROPPED)
    assert rig.kinds() == [Kind.REOPEN_ALL]


def test_closed_connection_leaves_nothing_behind(rig: Rig) -> None:
    rig.give(write(1, 0), write(2, 0, deps=(1,)), flush(3, (9,)))
    rig.take(rig.core.closed(1))
    rig.end()
    assert rig.sent[1] == []
    assert rig.core.lane.idle
    assert rig.core.closed(1) == [], "a second report of the end changes nothing"


# Room


def test_writes_without_room_wait_in_order_for_a_destage(rig: Rig) -> None:
    rig.give(write(1, 0), write(2, 1))
    for work in list(rig.running):
        rig.end(work, NO_ROOM)
    assert rig.kinds() == [Kind.DESTAGE]
    rig.give(write(3, 2), read(4, 9))
    assert rig.kinds() == [Kind.DESTAGE, Kind.READ]
    rig.end()
    rig.run_all()
    assert [each.job_id for each in rig.sent[1]] == [4, 1, 2, 3]  # type: ignore[attr-defined]


def test_destage_that_fails_fails_the_writes_that_wait(rig: Rig) -> None:
    rig.give(write(1, 0), write(2, 1), barrier(3, (1, 2)))
    for work in list(rig.running):
        rig.end(work, NO_ROOM)
    rig.end(outcome=FAILURE)
    assert rig.sent[1] == [m.WriteAck(U, S, 1, FAILURE), m.WriteAck(U, S, 2, FAILURE)]
    assert rig.core.lane.idle


def test_waiting_write_does_not_keep_the_receive_buffer_alive(rig: Rig) -> None:
    chunk = memoryview(bytearray(1 << 20))
    data = chunk[100 : 100 + BLOCK]
    message = m.Write(U, S, 2, (1,), 0, contexts_of(data), data)
    rig.give(message, write(1, 0))
    rig.end()
    (waited,) = rig.running
    assert waited.message.data == data
    assert memoryview(waited.message.data.obj).nbytes == BLOCK


def test_full_connection_is_not_read_until_there_is_room() -> None:
    rig = Rig(limits=SMALL)
    rig.activate()
    train = [write(number, number % 8) for number in range(1, 9)]
    taken, actions = rig.core.receive_train(1, train)
    rig.take(actions)
    assert taken == 4
    with pytest.raises(RuntimeError, match="no room"):
        rig.core.receive(1, train[4])
    rig.end()
    assert rig.resumed == [1]
    taken, actions = rig.core.receive_train(1, train, 4)
    rig.take(actions)
    assert taken == 1


def test_jobs_that_wait_for_what_never_came_cost_the_connection() -> None:
    rig = Rig(limits=SMALL)
    rig.activate()
    rig.give(write(1, 0))
    taken, actions = rig.core.receive_train(1, [barrier(number, (999,)) for number in range(2, 9)])
    rig.take(actions)
    assert taken == 3
    assert not rig.closed, "the write is still running and may make room"
    rig.end()
    taken, actions = rig.core.receive_train(1, [barrier(number, (999,)) for number in range(5, 9)])
    rig.take(actions)
    assert "never came" in rig.closed[1]


def test_gaps_without_end_cost_the_connection() -> None:
    rig = Rig(limits=JobLimits(ranges_max=10))
    rig.activate()
    rig.give(*(barrier(1) for _ in range(3)))
    for number in range(10, 60, 2):
        rig.give(m.ExtentLiveNoOp(U, S, number, ()))
    assert "flush or barrier" in rig.closed[1]


def test_last_flush_lets_replayed_jobs_run() -> None:
    rig = Rig()
    rig.activate(last_flush=1004)
    assert rig.give(barrier(1005, (1004,)), barrier(1006, (1003,))) == [m.BarrierAck(U, S, 1005, None)]


def test_opening_a_connection_twice_is_a_defect(rig: Rig) -> None:
    with pytest.raises(RuntimeError, match="open already"):
        rig.open(1)


# All of it together


@settings(max_examples=settings.default.max_examples // 6)
@given(OPERATIONS, st.booleans(), st.data())
def test_random_work_equals_one_after_the_other(
    operations: list[tuple[Kind, int, int]], in_order: bool, data: st.DataObject
) -> None:
    """Whatever the order of arrival (with dependencies) and of the ends of work: reads, the end state and what each
    flush made durable are those of one job after the other."""
    deps = [()] * len(operations) if in_order else simple_dependencies(operations)
    arrival = list(range(len(operations))) if in_order else data.draw(st.permutations(range(len(operations))))
    rig = Rig(definition(extents=2, blocks=5))
    rig.activate(in_order=in_order)
    region = ModelRegion()
    begun: set[Any] = set()
    answered: dict[int, Any] = {}
    seen = 0

    def message(index: int) -> m.Message:
        kind, start, count = operations[index]
        job_id = 1000 + index
        needed = [1000 + other for other in deps[index]]
        if kind is Kind.READ:
            return read(job_id, start, count, needed)
        return flush(job_id, needed) if kind is Kind.FLUSH else write(job_id, start, count, index + 1, needed)

    def begin() -> None:
        for work in rig.running:
            if work not in begun:
                begun.add(work)
                region.begin(work)

    todo = [message(index) for index in arrival]
    while todo or rig.running:
        if todo and (not rig.running or data.draw(st.booleans())):
            rig.give(todo.pop(0))
        else:
            work = rig.running[data.draw(st.integers(0, len(rig.running) - 1))]
            if work.kind is Kind.WRITE and data.draw(st.integers(0, 9)) == 0:
                rig.end(work, NO_ROOM)
            else:
                rig.end(work, region.finish(work))
        begin()
        for reply in rig.sent[1][seen:]:
            index = reply.job_id - 1000  # type: ignore[attr-defined]
            answered[index] = dict(region.durable) if isinstance(reply, m.FlushAck) else reply
        seen = len(rig.sent[1])
    assert not rig.closed
    assert len(answered) == len(operations)
    serial: dict[int, int] = {}
    for index, (kind, first, count) in enumerate(operations):
        span = range(first, first + count)
        if kind is Kind.WRITE:
            serial.update(dict.fromkeys(span, index + 1))
        elif kind is Kind.READ:
            want = b"".join(bytes([serial.get(block, 0)]) * BLOCK for block in span)
            assert bytes(answered[index].data) == want
        elif in_order:
            assert all(answered[index].get(block, 0) >= fill for block, fill in serial.items())
        else:
            assert answered[index] == serial
    assert region.blocks == serial
