"""The Upstairs core: activation, acknowledgement, loss of replicas, reconciliation, deactivation."""

from __future__ import annotations

from uuid import UUID

import pytest
from upstairs_rig import SESSION, UPSTAIRS, Rig

from crucible_emu import errors
from crucible_emu.geometry import RegionDefinition
from crucible_emu.upstairs.rules import CLIENTS, JobKind
from crucible_emu.upstairs.states import Mode, Phase, UpstairsState
from crucible_emu.wire import messages as m


def phases(rig: Rig) -> list[Phase]:
    return [client.state.phase for client in rig.core.clients]


# -- activation -------------------------------------------------------------------------------------------------------


def test_activation_needs_all_three() -> None:
    rig = Rig()
    rig.replicas[2].reachable = False
    rig.activate()
    assert rig.answers == {}
    assert phases(rig)[:2] == [Phase.WAIT_QUORUM, Phase.WAIT_QUORUM]
    assert rig.core.state is UpstairsState.GO_ACTIVE


def test_three_equal_replicas_become_active_without_reconciliation() -> None:
    rig = Rig().active()
    assert phases(rig) == [Phase.ACTIVE] * 3
    assert all(not replica.repairs for replica in rig.replicas)


@pytest.mark.parametrize(
    ("generation", "stored", "detail"),
    [
        (0, 0, errors.GenerationZeroIsIllegal()),
        (5, 5, errors.GenerationNumberTooLow(5, 6)),
        (4, 5, errors.GenerationNumberTooLow(4, 6)),
    ],
)
def test_a_generation_not_above_all_stored_is_refused(
    generation: int, stored: int, detail: errors.NegotiationDetail
) -> None:
    rig = Rig(generation=generation)
    rig.replicas[1].gen[2] = stored
    rig.activate()
    assert rig.answers == {"activate": errors.NegotiationError(detail)}
    assert rig.core.state is UpstairsState.DISABLED
    assert all(client.state.parked for client in rig.core.clients)


def test_a_refused_disk_can_be_activated_with_a_better_generation() -> None:
    rig = Rig(generation=1)
    rig.replicas[1].gen[2] = 7
    rig.activate("first")
    rig.activate("second", generation=8)
    assert isinstance(rig.answers["first"], errors.NegotiationError)
    assert rig.answers["second"] is None


def test_activation_requests_by_state() -> None:
    rig = Rig()
    rig.replicas[0].reachable = False
    rig.activate("waiting")
    rig.activate("again")
    rig.activate("other", generation=9)
    assert rig.answers == {"again": errors.UpstairsActivateInProgress(), "other": errors.GenerationNumberInvalid()}
    rig = Rig().active()
    rig.activate("same", generation=1)
    rig.activate("higher", generation=2)
    assert rig.answers == {"same": None, "higher": errors.GenerationNumberInvalid()}


def test_a_read_only_disk_needs_one_replica_and_the_others_join() -> None:
    rig = Rig(read_only=True, generation=0)
    rig.replicas[0].reachable = rig.replicas[2].reachable = False
    rig.activate()
    assert rig.answers == {"activate": None}
    assert phases(rig)[1] is Phase.ACTIVE
    assert rig.core.admission_error(JobKind.READ) is None
    assert rig.core.admission_error(JobKind.WRITE) == errors.ModifyingReadOnlyRegion()


def test_an_encrypted_region_without_key_disables_the_disk() -> None:
    rig = Rig()
    rig.activate()
    rig = Rig()
    rig.replicas[1].definition = RegionDefinition(512, 10, 4, UUID(int=101), encrypted=True)
    rig.activate()
    assert rig.answers == {"activate": errors.NegotiationError(errors.EncryptionMismatch(False, True))}


def test_a_region_of_another_size_is_refused_with_both_sizes() -> None:
    rig = Rig()
    rig.replicas[2].definition = RegionDefinition(512, 10, 5, UUID(int=102))
    rig.activate()
    error = rig.answers["activate"]
    assert isinstance(error, errors.RegionIncompatible)
    assert "5 extents" in str(error)
    assert "4 of 10" in str(error)


def test_one_region_behind_two_clients_is_refused() -> None:
    rig = Rig()
    rig.replicas[2].definition = rig.replicas[0].definition
    rig.activate()
    assert isinstance(rig.answers["activate"], errors.RegionIncompatible)


def test_another_version_is_retried_and_does_not_disable() -> None:
    rig = Rig()
    rig.replicas[1].negotiate = lambda message: [m.VersionMismatch(12)]  # type: ignore[method-assign]
    rig.activate()
    assert rig.answers == {}
    assert rig.core.state is UpstairsState.GO_ACTIVE
    assert [action.client for action in rig.reconnecting] == [1]


def test_takeover_by_another_upstairs_disables_and_answers_whoever_waits() -> None:
    rig = Rig().active()
    rig.flush("flush")
    rig.core.message(0, 0, m.YouAreNoLongerActive(UPSTAIRS, SESSION, 9))
    rig.run()
    assert rig.answers == {"flush": errors.NoLongerActive()}
    assert rig.core.admission_error(JobKind.WRITE) == errors.UpstairsInactive()
    assert len(rig.core.jobs) == 0


# -- acknowledgement --------------------------------------------------------------------------------------------------


def test_flush_is_acknowledged_by_two_of_three() -> None:
    rig = Rig().active()
    rig.write()
    rig.flush("flush")
    rig.answer(0)
    rig.answer(0)
    assert rig.answers == {}
    rig.answer(1)
    rig.answer(1)
    assert rig.answers == {"flush": None}
    assert len(rig.core.jobs) == 2
    rig.answer_all()
    assert len(rig.core.jobs) == 0


def test_a_snapshot_flush_needs_all_three() -> None:
    rig = Rig().active()
    rig.flush("snapshot", "snap")
    rig.answer(0)
    rig.answer(1)
    assert rig.answers == {}
    rig.answer(2)
    assert rig.answers == {"snapshot": None}


def test_a_failed_snapshot_flush_on_one_replica_fails() -> None:
    rig = Rig().active()
    rig.flush("snapshot", "snap")
    rig.answer(0)
    rig.answer(1)
    rig.answer(2, errors.SnapshotFailed("no space"))
    assert rig.answers == {"snapshot": errors.IoError("1 out of 3 downstairs failed to complete this IO")}


def test_a_flush_that_two_replicas_fail_is_an_error() -> None:
    rig = Rig().active()
    rig.flush("flush")
    rig.answer(0, errors.IoError("disk full"))
    rig.answer(1, errors.IoError("disk full"))
    rig.answer(2)
    assert rig.answers == {"flush": errors.IoError("2 out of 3 downstairs failed to complete this IO")}


@pytest.mark.parametrize("failing", CLIENTS)
def test_a_write_error_faults_the_replica_and_the_disk_goes_on_with_two(failing: int) -> None:
    rig = Rig().active()
    rig.write()
    rig.answer(failing, errors.IoError("disk full"))
    assert rig.hung_up == [failing]
    assert rig.core.clients[failing].state.mode is Mode.FAULTED
    rig.flush("flush")
    rig.answer_all()
    assert rig.answers == {"flush": None}
    assert rig.core.admission_error(JobKind.WRITE) is None
    assert rig.core.admission_error(JobKind.SNAPSHOT_FLUSH) is not None


def test_with_one_replica_left_writes_are_refused_and_reads_go_on() -> None:
    rig = Rig().active()
    rig.fault(0)
    rig.fault(2)
    assert rig.core.admission_error(JobKind.WRITE) == errors.IoError("too many inactive clients: need 2, got 1")
    assert rig.core.admission_error(JobKind.READ) is None
    assert rig.core.reader(0) == 1


def test_a_read_that_fails_on_one_replica_is_tried_on_the_others() -> None:
    rig = Rig().active()
    rig.read("read", client=1)
    rig.answer(1, errors.HashMismatch())
    rig.answer(0, errors.HashMismatch())
    assert rig.answers == {}
    rig.answer(2)
    assert rig.answers == {"read": None}
    assert phases(rig) == [Phase.ACTIVE] * 3
    assert len(rig.core.jobs) == 0


def test_a_read_that_fails_everywhere_fails_with_the_last_reason() -> None:
    rig = Rig().active()
    rig.read("read", client=1)
    for client in (1, 0, 2):
        rig.answer(client, errors.HashMismatch())
    assert rig.answers == {"read": errors.HashMismatch()}


def test_read_whose_replica_dies_while_it_is_read_is_answered_by_another() -> None:
    rig = Rig().active()
    rig.read("read", client=1)
    rig.drop(1)
    rig.answer(0)
    assert rig.answers == {"read": None}


def test_flush_in_progress_when_a_replica_dies_is_answered_by_the_other_two() -> None:
    rig = Rig().active()
    rig.flush("flush")
    rig.answer(0)
    rig.drop(1)
    assert rig.answers == {}
    rig.answer(2)
    assert rig.answers == {"flush": None}


def test_three_lost_replicas_are_reconciled_and_go_on() -> None:
    rig = Rig().active()
    for client in CLIENTS:
        rig.fault(client)
    assert rig.core.admission_error(JobKind.READ) is not None
    rig.replicas[2].flush[1] = 9
    rig.replicas[2].gen[1] = 1
    rig.reconnect()
    assert phases(rig) == [Phase.ACTIVE] * 3
    assert [type(message) for message in rig.replicas[0].repairs] == [m.ExtentClose, m.ExtentRepair, m.ExtentReopen]
    assert rig.core.next_flush == 11


def lose_all(rig: Rig) -> None:
    """All replicas go, and what they missed is not remembered: a barrier has retired it."""
    rig.core.can_replay = False
    for client in CLIENTS:
        rig.drop(client)
    rig.reconnect()
    assert phases(rig) == [Phase.ACTIVE] * 3


def test_writes_that_may_be_lost_with_all_replicas_fail_the_next_flush_once() -> None:
    rig = Rig().active()
    rig.write()
    lose_all(rig)
    rig.flush("first")
    rig.flush("second")
    rig.answer_all()
    assert isinstance(rig.answers["first"], errors.IoError)
    assert "lost" in str(rig.answers["first"])
    assert rig.answers["second"] is None


def test_what_was_flushed_cannot_be_lost_with_all_replicas() -> None:
    rig = Rig().active()
    rig.write()
    rig.flush("before")
    rig.answer_all()
    lose_all(rig)
    rig.flush("after")
    rig.answer_all()
    assert rig.answers == {"before": None, "after": None}


def test_a_flush_that_failed_leaves_its_writes_in_doubt() -> None:
    rig = Rig().active()
    rig.write()
    rig.core.idle_flush()
    rig.run()
    lose_all(rig)
    rig.flush("flush")
    rig.answer_all()
    assert isinstance(rig.answers["flush"], errors.IoError)


def test_a_disk_that_was_disabled_with_unflushed_writes_says_so_when_it_is_back() -> None:
    rig = Rig().active()
    rig.write()
    rig.core.message(0, 0, m.YouAreNoLongerActive(UPSTAIRS, SESSION, 9))
    rig.run()
    rig.activate("again", generation=10)
    rig.flush("flush")
    rig.answer_all()
    assert rig.answers["again"] is None
    assert isinstance(rig.answers["flush"], errors.IoError)


# -- messages that do not fit -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "message",
    [
        m.Ruok(),
        m.RegionInfo(RegionDefinition(512, 10, 4, UUID(int=100))),
        m.YesItsMe(13, m.SocketAddress("127.0.0.1", 1)),
        m.YouAreNowActive(UPSTAIRS, SESSION, 1),
    ],
)
def test_a_message_out_of_order_costs_only_its_connection(message: m.Message) -> None:
    rig = Rig().active()
    rig.core.message(1, 0, message)
    rig.run()
    assert rig.hung_up == [1]
    assert phases(rig)[0] is Phase.ACTIVE
    assert phases(rig)[2] is Phase.ACTIVE


def test_an_acknowledgement_of_the_wrong_kind_costs_the_connection() -> None:
    rig = Rig().active()
    job = rig.write()
    rig.core.message(1, 0, m.FlushAck(UPSTAIRS, SESSION, job.first_id, None))
    rig.run()
    assert rig.hung_up == [1]


def test_an_acknowledgement_for_another_session_is_dropped() -> None:
    rig = Rig().active()
    job = rig.write()
    rig.core.message(1, 0, m.WriteAck(UPSTAIRS, UUID(int=77), job.first_id, None))
    rig.run()
    assert rig.hung_up == []
    assert job.in_progress[1]


def test_an_error_report_counts_as_failure_of_the_job() -> None:
    rig = Rig().active()
    job = rig.write()
    rig.core.message(1, 0, m.ErrorReport(UPSTAIRS, SESSION, job.first_id, errors.IoError("full")))
    rig.run()
    assert rig.hung_up == [1]


def test_messages_of_an_old_connection_are_dropped() -> None:
    rig = Rig().active()
    rig.drop(1)
    rig.core.message(1, 0, m.YouAreNoLongerActive(UPSTAIRS, SESSION, 9))
    rig.run()
    assert rig.core.state is UpstairsState.ACTIVE


# -- reconciliation ---------------------------------------------------------------------------------------------------


def test_a_dirty_extent_is_mended_in_four_steps() -> None:
    rig = Rig(generation=3)
    for replica in rig.replicas:
        replica.gen[1], replica.flush[1] = 2, 5
    rig.replicas[1].dirty[1] = True
    rig.activate()
    assert rig.answers == {"activate": None}
    address = m.SocketAddress("127.0.0.1", 4000)
    assert rig.replicas[1].repairs == [
        m.ExtentFlush(0, 1, 1, 6, 3),
        m.ExtentClose(1, 1),
        m.ExtentReopen(3, 1),
    ]
    assert rig.replicas[0].repairs == [
        m.ExtentClose(1, 1),
        m.ExtentRepair(2, 1, 1, address, (0, 2)),
        m.ExtentReopen(3, 1),
    ]
    assert rig.core.next_flush == 7


def test_an_extent_error_aborts_and_the_activation_goes_on_after_reconnecting() -> None:
    rig = Rig(generation=2)
    rig.replicas[1].dirty[0] = True
    for replica in rig.replicas:
        replica.answers_repairs = False
    rig.activate()
    rig.core.message(1, 0, m.ExtentError(0, 0, errors.RepairRequestError("nobody there")))
    rig.run()
    assert rig.answers == {}
    assert rig.core.state is UpstairsState.GO_ACTIVE
    for replica in rig.replicas:
        replica.answers_repairs = True
    rig.reconnect()
    assert rig.answers == {"activate": None}


def test_replica_lost_during_reconciliation_starts_it_again() -> None:
    rig = Rig(generation=2)
    rig.replicas[1].dirty[0] = True
    rig.replicas[0].answers_repairs = False
    rig.activate()
    rig.drop(2)
    assert rig.core.reconciliation is None
    rig.replicas[0].answers_repairs = True
    rig.reconnect()
    assert rig.answers == {"activate": None}
    assert phases(rig) == [Phase.ACTIVE] * 3


def test_a_repair_acknowledgement_that_nobody_asked_for_costs_the_connection() -> None:
    rig = Rig(generation=2)
    rig.replicas[1].dirty[0] = True
    rig.replicas[1].answers_repairs = False
    rig.activate()
    rig.core.message(0, 0, m.RepairAckId(0))
    rig.run()
    assert 0 in rig.hung_up


# -- dependencies -----------------------------------------------------------------------------------------------------


def test_dependencies_leave_out_what_the_replica_was_never_sent() -> None:
    rig = Rig().active()
    rig.fault(1)
    first = rig.write(0)
    second = rig.write(0)
    assert rig.dependencies(second, 0) == [first.first_id]
    assert rig.dependencies(second, 1) == []


def test_read_tried_elsewhere_after_a_flush_does_not_wait_for_what_was_before_it() -> None:
    """A Downstairs forgets what was before its last flush, so waiting for that would be waiting for ever."""
    rig = Rig().active()
    write = rig.write(0)
    read = rig.read("read", client=1)
    assert rig.dependencies(read, 1) == [write.first_id]
    rig.flush("flush")
    flush = rig.replicas[0].jobs[-1]
    rig.answer(0)
    rig.answer(0)
    rig.answer(1)
    rig.answer(1, errors.HashMismatch())
    assert rig.replicas[0].jobs[-1] is read
    assert rig.dependencies(read, 0) == [flush.first_id]


def test_a_dependency_that_is_forgotten_is_left_out() -> None:
    rig = Rig().active()
    first = rig.write(0)
    rig.flush("flush")
    second = rig.write(0)
    flush_id = first.first_id + 1
    assert second.dependencies == [[flush_id]]
    assert rig.dependencies(second, 0) == [flush_id]
    rig.answer_all()
    assert rig.dependencies(second, 0) == []


def test_a_write_behind_a_read_waits_on_every_replica_for_the_write_before_it() -> None:
    """The read goes to one replica only, so it orders nothing on the others."""
    rig = Rig().active()
    rig.flush("flush")
    first = rig.write(0)
    read = rig.read("read", client=0)
    second = rig.write(0)
    assert rig.dependencies(second, 0) == [first.first_id, read.first_id]
    assert rig.dependencies(second, 1) == rig.dependencies(second, 2) == [first.first_id]


def test_a_job_done_everywhere_stays_a_dependency_until_a_flush_because_both_may_be_replayed() -> None:
    rig = Rig().active()
    first = rig.write(0)
    rig.answer_all()
    assert rig.dependencies(rig.write(0)) == [first.first_id]
    rig.flush("flush")
    rig.answer_all()
    assert rig.dependencies(rig.write(0)) == []


def test_everything_after_a_flush_depends_on_it() -> None:
    rig = Rig().active()
    first = rig.write(0)
    second = rig.write(7)
    rig.flush("flush")
    flush = rig.replicas[0].jobs[-1]
    assert rig.dependencies(flush) == [first.first_id, second.first_id]
    assert rig.dependencies(rig.write(3)) == [flush.first_id]


def test_a_barrier_bounds_what_a_downstairs_must_remember() -> None:
    rig = Rig().active()
    for _ in range(64):
        job = rig.core.new_job(JobKind.WRITE, [0], [1], 1024 * 1024, None)
        rig.core.write(job)
        rig.run()
        for client in CLIENTS:
            rig.answer(client)
    assert [[job.kind for job in replica.jobs] for replica in rig.replicas] == [[JobKind.BARRIER]] * 3
    barrier = rig.replicas[0].jobs[0]
    assert rig.dependencies(rig.write(5)) == [barrier.first_id]
    rig.answer_all()
    assert rig.core.pending_barriers == 0
    assert [job.first_id for job in rig.core.jobs] == [barrier.first_id + 1], "only what came after the barrier"


# -- deactivation -----------------------------------------------------------------------------------------------------


def test_deactivation_flushes_and_closes_every_connection() -> None:
    rig = Rig().active()
    rig.write()
    rig.core.deactivate("deactivate")
    rig.run()
    assert rig.core.admission_error(JobKind.READ) == errors.UpstairsInactive()
    assert rig.answers == {}
    rig.answer_all()
    assert rig.answers == {"deactivate": None}
    assert rig.core.state is UpstairsState.INITIALIZING
    assert all(client.state.parked for client in rig.core.clients)


def test_deactivation_with_one_replica_gone() -> None:
    rig = Rig().active()
    rig.drop(0)
    rig.write()
    rig.core.deactivate("deactivate")
    rig.run()
    rig.answer_all()
    assert rig.answers == {"deactivate": None}


def test_a_deactivated_disk_can_be_activated_again() -> None:
    rig = Rig().active()
    rig.core.deactivate("deactivate")
    rig.run()
    rig.activate("again", generation=2)
    assert rig.answers == {"deactivate": None, "again": None}


def test_deactivation_requests_by_state() -> None:
    rig = Rig()
    rig.core.deactivate("early")
    rig.run()
    rig.active()
    rig.write()
    rig.core.deactivate("first")
    rig.core.deactivate("second")
    rig.activate("meanwhile")
    assert rig.answers == {
        "early": errors.UpstairsInactive(),
        "second": errors.UpstairsDeactivating(),
        "meanwhile": errors.UpstairsDeactivating(),
    }


def test_an_abandoned_activation_is_answered_and_parks_the_clients() -> None:
    rig = Rig()
    rig.activate()
    rig = Rig()
    rig.replicas[0].reachable = False
    rig.activate("waiting")
    rig.core.abandon(errors.IoError("no answer"))
    rig.run()
    assert rig.answers == {"waiting": errors.IoError("no answer")}
    assert all(client.state.parked for client in rig.core.clients)


def test_the_automatic_flush_comes_only_when_something_was_submitted_and_all_is_done() -> None:
    rig = Rig().active()
    rig.core.idle_flush()
    rig.run()
    assert not rig.replicas[0].jobs
    rig.write()
    rig.core.idle_flush()
    rig.run()
    assert len(rig.replicas[0].jobs) == 1
    rig.answer_all()
    rig.core.idle_flush()
    rig.run()
    assert rig.replicas[0].jobs[0].kind is JobKind.FLUSH
