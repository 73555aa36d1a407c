"""Races that random histories found, each as the shortest sequence of events that shows it."""

from __future__ import annotations

from upstairs_rig import Rig

from crucible_emu import errors
from crucible_emu.upstairs.rules import CLIENTS
from crucible_emu.upstairs.states import Mode, Phase, UpstairsState
from crucible_emu.wire import messages as m


def phases(rig: Rig) -> list[Phase]:
    return [client.state.phase for client in rig.core.clients]


def fail_read(rig: Rig, client: int) -> None:
    job = next(job for job in rig.replicas[client].jobs if job.first_id == 1000)
    rig.replicas[client].jobs.remove(job)
    rig.core.failed(job, client, job.full, errors.IoError("the medium is worn out"))
    rig.run()


def test_a_write_does_not_wait_for_a_read_that_failed_on_its_replica_before_a_flush() -> None:
    """The replica forgets the read at its flush; a write that waited for it there would wait for ever."""
    rig = Rig().active()
    read = rig.read("read", client=0)
    rig.flush("flush")
    fail_read(rig, 0)
    write = rig.write()
    elsewhere = next(client for client in CLIENTS if read in rig.replicas[client].jobs)
    assert elsewhere != 0
    assert rig.dependencies(write, 0) == [1001]
    assert rig.dependencies(write, elsewhere) == [1000, 1001]


def test_a_flush_does_not_wait_for_a_read_that_was_sent_anew_and_waits_for_it() -> None:
    """The read was tried elsewhere after the flush was made: the flush must not wait for it in a replay there."""
    rig = Rig().active()
    rig.read("read", client=0)
    rig.flush("flush")
    flush = next(job for job in rig.replicas[1].jobs if job.first_id == 1001)
    fail_read(rig, 0)
    elsewhere = next(client for client in (1, 2) if any(job.first_id == 1000 for job in rig.replicas[client].jobs))
    assert rig.dependencies(flush, elsewhere) == []


def test_a_flush_waits_for_a_read_that_was_sent_anew_after_a_replay() -> None:
    """The read is older than the last flush of its replica; the next flush must still not make that forget what the
    read waits for."""
    rig = Rig().active()
    rig.read("read", client=0)
    rig.flush("flush")
    for client in (1, 2):
        rig.answer(client)
        rig.drop(client)
    flush = rig.replicas[0].jobs.pop()
    rig.core.done(flush, 0, flush.full)
    rig.drop(0)
    rig.reconnect()
    sent_to = next(client for client in CLIENTS if any(job.first_id == 1000 for job in rig.replicas[client].jobs))
    assert rig.core.clients[sent_to].knows_from > 1000
    rig.flush("next")
    assert 1000 in rig.dependencies(rig.replicas[sent_to].jobs[-1], sent_to)


def test_a_replica_that_may_have_done_a_flush_is_not_replayed_to() -> None:
    """It would do older writes again over what that flush made durable, under the number of that flush. If the Upstairs
    ended in the middle, this replica would be dirty under the same numbers as the others, and they would be made equal
    to it: a flush that was acknowledged would be lost."""
    rig = Rig().active()
    rig.write()
    rig.flush("flush")
    for client in (0, 1, 1, 2, 2):
        rig.answer(client)
    assert rig.answers == {"flush": None}
    rig.drop(0)
    rig.drop(1)
    assert [client.state.mode for client in rig.core.clients[:2]] == [Mode.FAULTED, Mode.OFFLINE]


def test_a_repair_that_waits_for_a_source_begins_when_one_is_replayed_to() -> None:
    """One replica is ready for repair while the others are away, one of them too far behind for a replay; the other
    comes back by a replay, nothing else happens."""
    rig = Rig().active()
    rig.fault(0)
    rig.drop(1)
    rig.drop(2)
    rig.core.fall_behind(rig.core.clients[2])
    waiting, rig.reconnecting = rig.reconnecting, []
    faulted, away, _ = sorted(waiting, key=lambda action: action.client)
    rig.connect(faulted)
    rig.run()
    assert phases(rig)[0] is Phase.LIVE_REPAIR_READY
    rig.connect(away)
    rig.run()
    assert phases(rig)[:2] == [Phase.LIVE_REPAIR, Phase.ACTIVE]


def test_a_job_whose_writes_were_skipped_waits_for_the_flush_before_them() -> None:
    """On the replica under repair the close of an extent has nothing to wait for, its writes were skipped. Done before
    a flush that is on its way there it would be forgotten at that flush, and the repair would wait for it for ever."""
    rig = Rig().active()
    rig.fault(0)
    for client in (1, 2):
        rig.answer(client)
    for replica in rig.replicas:
        replica.answers_repairs = False
    rig.reconnect()
    assert phases(rig)[0] is Phase.LIVE_REPAIR
    rig.flush("flush")
    flush_id = rig.replicas[1].jobs[-1].first_id
    beyond = rig.write(30)
    after = rig.write(30)
    assert beyond.skipped[0]
    assert rig.dependencies(after, 1) == [beyond.first_id]
    assert rig.dependencies(after, 0) == [flush_id]


def test_a_read_that_waits_is_answered_when_a_deactivation_gives_up_on_its_replica() -> None:
    rig = Rig().active()
    for client in (1, 2):
        rig.fault(client)
        rig.replicas[client].reachable = False
    rig.replicas[0].jobs.clear()
    rig.read("read", client=0)
    rig.core.deactivate("deactivate")
    rig.run()
    rig.drop(0)
    assert rig.core.state is UpstairsState.INITIALIZING
    assert rig.answers["deactivate"] is None
    assert isinstance(rig.answers["read"], errors.IoError)


def test_a_flush_after_a_deactivation_that_could_not_flush_says_that_writes_may_be_lost() -> None:
    rig = Rig().active()
    for client in CLIENTS:
        rig.fault(client)
    rig.core.deactivate("deactivate")
    rig.run()
    assert rig.answers["deactivate"] is None
    rig.activate("again", 2)
    assert rig.answers["again"] is None
    rig.flush("first")
    assert isinstance(rig.answers["first"], errors.IoError)
    rig.flush("second")
    rig.answer_all()
    assert rig.answers["second"] is None


def test_flush_numbers_begin_above_what_reconciliation_stamps() -> None:
    """A flush that only one replica gets before a crash must not bear the number of the mended extents: they would
    compare equal to what that replica has, and be different."""
    rig = Rig(generation=3)
    rig.replicas[1].dirty[1] = True
    rig.activate()
    (stamp,) = [message for message in rig.replicas[1].repairs if isinstance(message, m.ExtentFlush)]
    rig.write(10)
    rig.flush("flush")
    flush = rig.replicas[0].jobs[-1]
    assert (flush.gen_number, flush.flush_number) > (stamp.gen_number, stamp.flush_number)


def test_reconciliation_in_service_does_not_stamp_a_generation_above_our_own() -> None:
    """Later flushes carry our generation; an extent that missed them would win against those that have them."""
    rig = Rig(generation=1).active()
    for client in CLIENTS:
        rig.fault(client)
        rig.replicas[client].gen[1] = 1
        rig.replicas[client].dirty[1] = True
    rig.reconnect()
    assert phases(rig) == [Phase.ACTIVE] * 3
    (stamp,) = [message for message in rig.replicas[0].repairs if isinstance(message, m.ExtentFlush)]
    assert stamp.gen_number == rig.core.generation
    rig.flush("next")  # which says that writes may be lost
    rig.flush("flush")
    assert rig.replicas[0].jobs[-1].flush_number > stamp.flush_number


def test_a_replica_lost_while_all_are_made_equal_in_service_comes_back_to_be_made_equal() -> None:
    """It was New while it was reconciled; waiting for a quorum of an active disk it would wait for ever."""
    rig = Rig().active()
    for client in CLIENTS:
        rig.fault(client)
        rig.replicas[client].dirty[1] = True
        rig.replicas[client].answers_repairs = False
    rig.reconnect()
    assert phases(rig) == [Phase.RECONCILE] * 3
    for replica in rig.replicas:
        replica.answers_repairs = True
    rig.drop(2)
    assert [client.state.mode for client in rig.core.clients] == [Mode.FAULTED] * 3
    rig.reconnect()
    assert phases(rig) == [Phase.ACTIVE] * 3
