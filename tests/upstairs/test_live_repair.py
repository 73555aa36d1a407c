"""Replay, live repair and replacement as the pure core decides them, event by event."""

from __future__ import annotations

from uuid import UUID

import pytest
from upstairs_rig import Rig

from crucible_emu import errors
from crucible_emu.geometry import RegionDefinition
from crucible_emu.upstairs import dispatcher
from crucible_emu.upstairs.core import CALLS_MISSED_MAX
from crucible_emu.upstairs.replacement import ReplaceResult
from crucible_emu.upstairs.rules import CLIENTS, JobKind
from crucible_emu.upstairs.states import Mode, Phase, UpstairsState
from crucible_emu.wire import messages as m

ACTIVE = [Phase.ACTIVE] * 3
EXTENT = 10  # blocks


def phases(rig: Rig) -> list[Phase]:
    return [client.state.phase for client in rig.core.clients]


def kinds(rig: Rig, client: int) -> list[JobKind]:
    return [job.kind for job in rig.replicas[client].jobs]


def lived(rig: Rig, client: int) -> list[type]:
    return [type(message) for message in rig.replicas[client].lived]


def target(client: int) -> str:
    return f"127.0.0.1:{4000 + client}"


# -- replay -----------------------------------------------------------------------------------------------------------


def test_a_replica_that_was_away_gets_what_it_missed_in_the_order_of_the_ids() -> None:
    rig = Rig().active()
    before = rig.write(0)
    rig.flush("flush")
    rig.answer_all()
    done_there = rig.write(1)
    rig.answer_all()
    rig.drop(1)
    held = rig.write(1)
    rig.reconnect()
    assert phases(rig) == ACTIVE
    (last_flush,) = [message for message in rig.replicas[1].seen if isinstance(message, m.LastFlush)]
    assert last_flush.last_flush_number == before.first_id + 1
    assert list(rig.replicas[1].jobs) == [done_there, held]
    assert rig.dependencies(held, 1) == [done_there.first_id]
    rig.answer_all()
    rig.flush("again")
    rig.answer_all()
    assert rig.answers["again"] is None
    assert len(rig.core.jobs) == 0


def test_a_flush_is_acknowledged_by_the_two_that_are_there_and_done_by_the_third_later() -> None:
    rig = Rig().active()
    rig.write()
    rig.drop(2)
    rig.flush("flush")
    rig.answer_all()
    assert rig.answers["flush"] is None
    assert len(rig.core.jobs) == 2, "both wait for replica 2"
    rig.reconnect()
    assert kinds(rig, 2) == [JobKind.WRITE, JobKind.FLUSH]
    rig.answer_all()
    assert len(rig.core.jobs) == 0
    assert rig.core.clients[2].last_flush == rig.core.clients[0].last_flush


def test_a_snapshot_waits_for_the_replica_that_is_away() -> None:
    rig = Rig().active()
    rig.drop(2)
    rig.flush("snapshot", "monday")
    rig.answer_all()
    assert "snapshot" not in rig.answers
    rig.reconnect()
    rig.answer_all()
    assert rig.answers["snapshot"] is None


def test_reads_are_handed_over_and_not_replayed() -> None:
    rig = Rig().active()
    rig.read("read", client=1)
    rig.drop(1)
    assert [job.handle for replica in rig.replicas for job in replica.jobs] == ["read"]
    rig.reconnect()
    assert not rig.replicas[1].jobs
    rig.answer_all()
    assert rig.answers["read"] is None


def test_a_read_waits_for_a_replica_that_is_expected_back() -> None:
    rig = Rig().active()
    for client in CLIENTS:
        rig.drop(client)
    assert rig.core.admission_error(JobKind.READ) is None
    rig.read("read")
    assert "read" not in rig.answers
    rig.reconnect()
    rig.answer_all()
    assert rig.answers["read"] is None
    assert len(rig.core.jobs) == 0


def test_a_read_that_waits_comes_behind_the_replay() -> None:
    """The race: the connection is ready, a read waits for it, and nothing may come before LastFlush and the replay."""
    rig = Rig().active()
    write = rig.write(0)
    for client in CLIENTS:
        rig.drop(client)
    read = rig.read("read", 0)
    rig.reconnect()
    reader = next(replica for replica in rig.replicas if read in replica.jobs)
    assert list(reader.jobs) == [write, read]
    assert rig.dependencies(read, rig.replicas.index(reader)) == [write.first_id]


def test_a_read_tried_elsewhere_behind_a_flush_holds_up_nobody_where_it_failed() -> None:
    """The replica has forgotten the read's id with the flush, so nothing may name it there any more."""
    rig = Rig().active()
    rig.read("read", client=0)
    rig.flush("flush")
    read = rig.answer(0, errors.IoError("no"))
    rig.answer(0)
    write = rig.write(0)
    assert rig.dependencies(write, 0) == [read.first_id + 1]
    assert read.first_id in rig.dependencies(write, 1)


def test_a_read_that_waits_fails_when_nobody_is_expected_back() -> None:
    rig = Rig().active()
    for client in CLIENTS:
        rig.drop(client)
    rig.read("read")
    for client in rig.core.clients:
        rig.core.fall_behind(client)
    rig.run()
    assert isinstance(rig.answers["read"], errors.IoError)


def test_after_a_barrier_a_replica_that_leaves_is_repaired_until_the_next_flush() -> None:
    rig = Rig().active()
    rig.core.can_replay = False
    rig.drop(0)
    assert rig.core.clients[0].state.mode is Mode.FAULTED
    rig.reconnect()
    rig.flush("flush")
    rig.answer_all()
    assert rig.core.can_replay
    rig.drop(1)
    assert rig.core.clients[1].state.mode is Mode.OFFLINE


@pytest.mark.parametrize("limit", ["jobs", "bytes"])
def test_a_replica_that_is_away_and_owes_too_much_is_repaired(monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    monkeypatch.setattr(dispatcher, "OFFLINE_JOBS_MAX", 5 if limit == "jobs" else 1000)
    monkeypatch.setattr(dispatcher, "OFFLINE_BYTES_MAX", 5 * 512 if limit == "bytes" else 10**9)
    rig = Rig().active()
    rig.drop(1)
    for block in range(5):
        rig.write(block)
    assert rig.core.clients[1].state.mode is Mode.OFFLINE
    rig.write(5)
    assert rig.core.clients[1].state.mode is Mode.FAULTED
    assert rig.core.jobs.jobs_in_progress[1] == 0
    rig.reconnect()
    rig.answer_all()
    assert phases(rig) == ACTIVE
    assert rig.core.clients[1].live_repair_completed == 1


# -- live repair ------------------------------------------------------------------------------------------------------


def test_a_live_repair_confirms_what_is_equal_and_fetches_what_differs() -> None:
    rig = Rig().active()
    for client in (0, 2):
        rig.replicas[client].flush[1] = 7
    rig.fault(1)
    rig.reconnect()
    rig.answer_all()
    assert phases(rig) == ACTIVE
    client = rig.core.clients[1]
    assert (client.extents_repaired, client.extents_confirmed, client.live_repair_completed) == (1, 3, 1)
    (fetch,) = [message for message in rig.replicas[1].lived if isinstance(message, m.ExtentLiveRepair)]
    assert (fetch.extent_id, fetch.source_client_id) == (1, 2)
    assert rig.core.clients[0].extents_repaired == 0
    assert lived(rig, 0).count(m.ExtentLiveFlushClose) == 4
    assert lived(rig, 1).count(m.ExtentLiveClose) == 4
    assert [news.what for news in rig.news] == ["start", *["progress"] * 4, "finish"]
    assert not rig.news[-1].aborted


def test_the_reopen_is_sent_first_and_the_jobs_of_an_extent_wait_for_each_other() -> None:
    rig = Rig().active()
    for replica in rig.replicas:
        replica.answers_repairs = False
    rig.fault(1)
    rig.reconnect()
    reopen, close = rig.replicas[0].live
    assert isinstance(reopen, m.ExtentLiveReopen)
    assert isinstance(close, m.ExtentLiveFlushClose)
    assert close.flush_number == rig.core.next_flush - 1
    assert reopen.job_id == close.job_id + 3
    assert reopen.dependencies == (close.job_id + 2,)
    for client in CLIENTS:
        rig.answer_live(client)
    fetch = rig.replicas[0].live[1]
    assert isinstance(fetch, m.ExtentLiveNoOp)
    assert (fetch.job_id, fetch.dependencies) == (close.job_id + 1, (close.job_id,))


def test_a_write_to_the_extent_under_repair_waits_for_its_reopening_on_every_replica() -> None:
    rig = Rig().active()
    for replica in rig.replicas:
        replica.answers_repairs = False
    rig.fault(1)
    rig.reconnect()
    (reopen,) = [message for message in rig.replicas[1].live if isinstance(message, m.ExtentLiveReopen)]
    write = rig.write(3)
    assert all(write in replica.jobs for replica in rig.replicas)
    assert [rig.dependencies(write, client) for client in CLIENTS] == [[reopen.job_id]] * 3


def test_a_write_beyond_the_frontier_is_not_sent_to_the_replica_under_repair() -> None:
    rig = Rig().active()
    rig.replicas[1].answers_repairs = False
    rig.fault(1)
    rig.reconnect()
    write = rig.write(EXTENT)
    assert [write in replica.jobs for replica in rig.replicas] == [True, False, True]
    rig.flush("flush")
    (limited,) = [message for message in rig.replicas[1].live if isinstance(message, m.Flush)]
    assert limited.extent_limit == 0
    assert write.first_id not in limited.dependencies


def test_a_write_across_the_frontier_of_a_live_repair_is_cut() -> None:
    rig = Rig().active()
    rig.replicas[1].answers_repairs = False
    rig.fault(1)
    rig.reconnect()
    assert rig.core.repair is not None
    near, beyond = rig.core.repair.split([(3, 2), (EXTENT - 1, EXTENT + 2), (3 * EXTENT, 5)])
    assert near == [(3, 2), (EXTENT - 1, 1)]
    assert beyond == [(EXTENT, EXTENT), (2 * EXTENT, 1), (3 * EXTENT, 5)]


def test_a_flush_is_not_acknowledged_on_the_strength_of_a_replica_under_repair() -> None:
    """The replica under repair leaves out what it does not have yet, so two healthy ones are waited for."""
    rig = Rig().active()
    for replica in rig.replicas:
        replica.answers_repairs = False
    rig.fault(1)
    rig.reconnect()
    rig.write(EXTENT)
    rig.flush("flush")
    (limited,) = [message for message in rig.replicas[1].live if isinstance(message, m.Flush)]
    ids = (limited.upstairs_id, limited.session_id, limited.job_id)
    rig.core.message(1, rig.core.clients[1].connection_id, m.FlushAck(*ids, None))
    while rig.replicas[0].jobs:
        rig.answer(0)
    assert "flush" not in rig.answers
    while rig.replicas[2].jobs:
        rig.answer(2)
    assert rig.answers["flush"] is None


def test_reads_go_to_healthy_replicas_only() -> None:
    rig = Rig().active()
    rig.replicas[1].answers_repairs = False
    rig.fault(1)
    rig.reconnect()
    assert rig.core.readers == [0, 2]


@pytest.mark.parametrize("at", range(1, 12))
def test_a_replica_that_fails_any_step_is_faulted_and_the_healthy_ones_get_every_id(at: int) -> None:
    """Others may wait for the ids of the extent under way, so all four are sent."""
    rig = Rig().active()
    for replica in rig.replicas:
        replica.answers_repairs = False
        replica.flush[:] = replica is not rig.replicas[1]
    rig.fault(1)
    rig.reconnect()
    steps = 0
    while rig.core.repair is not None and not rig.core.repair.aborted:
        for client in CLIENTS:
            if not rig.replicas[client].live:
                continue
            steps += 1
            rig.answer_live(client, errors.IoError("no") if client == 1 and steps >= at else None)
    rig.replicas[0].answers_repairs = rig.replicas[2].answers_repairs = True
    rig.answer_live(0)
    rig.answer_live(2)
    rig.answer_all()
    assert rig.core.repair is None
    assert rig.core.clients[1].live_repair_aborted == 1
    for client in (0, 2):
        assert lived(rig, client).count(m.ExtentLiveReopen) == lived(rig, client).count(m.ExtentLiveFlushClose)
        assert not rig.replicas[client].live
    rig.replicas[1].answers_repairs = True
    rig.reconnect()
    rig.answer_all()
    assert phases(rig) == ACTIVE
    rig.flush("flush")
    rig.answer_all()
    assert rig.answers["flush"] is None
    assert len(rig.core.jobs) == 0


def away_while_another_needs_repair() -> Rig:
    """Replica 0 is away, with a flush that waits for it; replica 1 is back, and is to be repaired."""
    rig = Rig().active()
    rig.drop(0)
    rig.replicas[0].reachable = False
    rig.write(1)
    rig.core.stop_client(rig.core.clients[1], dispatcher.StopReason.IO_ERROR)
    rig.run()
    rig.flush("flush")
    rig.reconnect()
    rig.answer_all()
    return rig


def test_a_live_repair_waits_for_a_replica_that_may_come_back_so_that_no_flush_fails() -> None:
    """With the one given up at once, the flush would have one replica of three, and its guest an error."""
    rig = away_while_another_needs_repair()
    assert rig.core.clients[0].state.mode is Mode.OFFLINE and "flush" not in rig.answers
    rig.replicas[0].reachable = True
    rig.drop(0, "connection refused")
    rig.reconnect()
    rig.answer_all()
    assert rig.answers["flush"] is None
    assert phases(rig) == ACTIVE
    assert rig.core.repairs_begun == 1


def test_a_replica_that_is_away_when_a_live_repair_begins_gives_up_its_jobs() -> None:
    """*Liveness*: one that does not answer call after call does not keep the other from being repaired."""
    rig = away_while_another_needs_repair()
    for _ in range(CALLS_MISSED_MAX - 1):
        rig.drop(0, "connection refused")
        rig.reconnect()
        assert rig.core.clients[0].state.mode is Mode.OFFLINE and rig.core.repairs_begun == 0
    rig.drop(0, "connection refused")
    rig.reconnect()
    assert rig.core.clients[0].state.mode is Mode.FAULTED
    assert rig.core.jobs.jobs_in_progress[0] == 0
    rig.answer_all()
    assert phases(rig)[1:] == [Phase.ACTIVE, Phase.ACTIVE]


def test_two_replicas_are_repaired_together_from_the_one_that_is_left() -> None:
    rig = Rig().active()
    rig.fault(0)
    rig.replicas[0].answers_repairs = False
    rig.core.stop_client(rig.core.clients[1], dispatcher.StopReason.IO_ERROR)
    rig.run()
    rig.replicas[0].answers_repairs = True
    rig.reconnect()
    rig.answer_all()
    rig.reconnect()
    rig.answer_all()
    assert phases(rig) == ACTIVE


def test_deactivating_in_the_middle_of_a_live_repair_ends_it_and_then_the_disk() -> None:
    rig = Rig().active()
    rig.replicas[1].answers_repairs = False
    rig.fault(1)
    rig.reconnect()
    rig.core.deactivate("deactivate")
    rig.run()
    rig.answer_all()
    assert rig.answers["deactivate"] is None
    assert rig.core.state is UpstairsState.INITIALIZING
    rig.replicas[1].answers_repairs = True
    rig.activate("again", 2)
    assert rig.answers["again"] is None
    assert phases(rig) == ACTIVE


def test_a_takeover_in_the_middle_of_a_live_repair_disables_the_disk() -> None:
    rig = Rig().active()
    rig.replicas[1].answers_repairs = False
    rig.fault(1)
    rig.reconnect()
    rig.flush("flush")
    message = m.YouAreNoLongerActive(rig.core.identity.upstairs_id, rig.core.identity.session_id, 9)
    rig.core.message(0, rig.core.clients[0].connection_id, message)
    rig.run()
    assert rig.core.state is UpstairsState.DISABLED
    assert isinstance(rig.answers["flush"], errors.NoLongerActive)
    assert rig.core.repair is None
    assert len(rig.core.jobs) == 0


# -- replacement ------------------------------------------------------------------------------------------------------


def test_a_replaced_replica_may_be_another_region() -> None:
    rig = Rig().active()
    rig.write()
    rig.answer_all()
    rig.replicas[1].definition = RegionDefinition(512, EXTENT, 4, UUID(int=77))
    assert rig.core.replace_downstairs(target(1), "127.0.0.1:5000") is ReplaceResult.STARTED
    rig.run()
    assert rig.core.replace_downstairs(target(1), "127.0.0.1:5000") is ReplaceResult.STARTED_ALREADY
    rig.reconnect()
    rig.answer_all()
    assert phases(rig) == ACTIVE
    assert rig.core.clients[1].replaced == rig.core.clients[1].live_repair_completed == 1
    assert rig.core.replace_downstairs(target(1), "127.0.0.1:5000") is ReplaceResult.COMPLETED_ALREADY
    assert rig.core.replace_downstairs(target(1), "127.0.0.1:6000") is ReplaceResult.MISSING


def test_three_replicas_of_which_one_was_replaced_are_reconciled() -> None:
    rig = Rig().active()
    rig.replicas[1].flush[:] = 0
    assert rig.core.replace_downstairs(target(1), "127.0.0.1:5000") is ReplaceResult.STARTED
    rig.run()
    rig.fault(0)
    rig.fault(2)
    rig.replicas[0].gen[2] = rig.replicas[2].gen[2] = 1
    rig.replicas[0].flush[2] = rig.replicas[2].flush[2] = 5
    rig.reconnect()
    assert phases(rig) == ACTIVE
    assert rig.core.reconciled_extents == 1
    assert rig.core.clients[1].live_repair_completed == 0


def test_a_flush_that_retires_the_job_whose_failure_is_being_handled() -> None:
    """The failure faults the replica; that ends a later flush, which forgets the job while it is looked at."""
    rig = Rig().active()
    write = rig.write()
    rig.flush("flush")
    for client in (0, 1):
        rig.answer(client)
        rig.answer(client)
    assert rig.answers["flush"] is None
    assert rig.answer(2, errors.IoError("no")) is write
    assert len(rig.core.jobs) == 0
    assert rig.core.pending_barriers == 0
    rig.flush("another")
    rig.answer_all()
    assert rig.answers["another"] is None


def test_a_replica_is_not_replaced_while_another_misses_something() -> None:
    rig = Rig().active()
    rig.drop(2)
    with pytest.raises(errors.ReplaceRequestInvalid, match="downstairs 2"):
        rig.core.replace_downstairs(target(0), "127.0.0.1:5000")
    assert rig.core.replace_downstairs(target(2), "127.0.0.1:5000") is ReplaceResult.STARTED


def test_the_replica_under_repair_is_itself_replaced() -> None:
    rig = Rig().active()
    rig.replicas[1].answers_repairs = False
    rig.fault(1)
    rig.reconnect()
    assert phases(rig)[1] is Phase.LIVE_REPAIR
    assert rig.core.replace_downstairs(target(1), "127.0.0.1:5000") is ReplaceResult.STARTED
    rig.run()
    rig.answer_all()
    assert rig.core.repair is None
    rig.replicas[1].answers_repairs = True
    rig.reconnect()
    rig.answer_all()
    assert phases(rig) == ACTIVE


def test_replacing_before_activation_takes_part_in_the_quorum() -> None:
    rig = Rig()
    rig.replicas[2].reachable = False
    rig.activate()
    assert "activate" not in rig.answers
    rig.replicas[2].reachable = True
    assert rig.core.replace_downstairs(target(2), "127.0.0.1:5000") is ReplaceResult.STARTED
    rig.run()
    rig.reconnect()
    assert rig.answers["activate"] is None
    assert phases(rig) == ACTIVE


def test_a_reconciliation_that_was_aborted_is_done_again_with_the_same_generation() -> None:
    """Its first steps stamped our own generation into extents, which must not look like somebody else's."""
    rig = Rig(generation=1)
    rig.replicas[0].dirty[1] = True
    rig.replicas[1].answers_repairs = False
    rig.activate()
    assert phases(rig) == [Phase.RECONCILE] * 3
    rig.replicas[0].dirty[1] = False
    rig.replicas[0].gen[1] = rig.replicas[0].flush[1] = 1
    rig.drop(1)
    rig.replicas[1].answers_repairs = True
    rig.reconnect()
    assert rig.answers["activate"] is None
    assert phases(rig) == ACTIVE


def test_replacing_while_the_replicas_are_reconciled_begins_again() -> None:
    rig = Rig()
    rig.replicas[0].dirty[1] = True
    rig.replicas[1].answers_repairs = False
    rig.activate()
    assert phases(rig) == [Phase.RECONCILE] * 3
    assert rig.core.replace_downstairs(target(1), "127.0.0.1:5000") is ReplaceResult.STARTED
    rig.run()
    rig.replicas[1].answers_repairs = True
    rig.reconnect()
    assert rig.answers["activate"] is None
    assert phases(rig) == ACTIVE
    assert rig.core.reconciliations_aborted == 1


# -- many extents -----------------------------------------------------------------------------------------------------

MANY = 10_000


def test_ten_thousand_extents_are_repaired_one_after_the_other() -> None:
    rig = Rig(RegionDefinition(512, 1, MANY, UUID(int=9)))
    rig.active()
    rig.fault(1)
    for client in (0, 2):
        rig.replicas[client].gen[::100] = 1
        rig.replicas[client].flush[::100] = 3
    rig.reconnect()
    rig.answer_all()
    assert phases(rig) == ACTIVE
    client = rig.core.clients[1]
    assert (client.extents_repaired, client.extents_confirmed) == (MANY // 100, MANY - MANY // 100)
    assert len(rig.core.jobs) == 0
    assert len(rig.core.tracker) <= 2


def test_ten_thousand_extents_are_reconciled() -> None:
    rig = Rig(RegionDefinition(512, 1, MANY, UUID(int=9)))
    rig.replicas[2].dirty[:] = True
    rig.activate()
    assert rig.answers["activate"] is None
    assert rig.core.reconciled_extents == MANY
