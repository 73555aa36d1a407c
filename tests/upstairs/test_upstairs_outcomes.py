"""What jobs are answered with, what ends them and what retires them, for every mix of outcomes on three replicas."""

from __future__ import annotations

from itertools import permutations, product

import pytest
from upstairs_rig import Rig

from crucible_emu import errors
from crucible_emu.upstairs.jobs import Job
from crucible_emu.upstairs.rules import CLIENTS, JobKind
from crucible_emu.upstairs.states import Mode, Phase
from crucible_emu.wire import messages as m

FAILED = errors.IoError("the medium is worn out")
ORDERS = list(permutations(CLIENTS))
MIXES = list(product(["ok", "fails", "skips"], repeat=3))


def settle(rig: Rig, client: int, outcome: str) -> None:
    """The oldest job of a replica ends in one of three ways."""
    if outcome == "skips":
        rig.core.can_replay = False  # what it misses is not remembered, so that it must be repaired
        rig.drop(client)
    else:
        rig.answer(client, FAILED if outcome == "fails" else None)


@pytest.mark.parametrize("mix", MIXES, ids="-".join)
@pytest.mark.parametrize("snapshot", [None, "monday"])
def test_what_a_flush_is_answered_with(snapshot: str | None, mix: tuple[str, ...]) -> None:
    """With success as soon as two have done it, three for a snapshot; with an error when that cannot be any more."""
    needed = 3 if snapshot else 2
    for order in ORDERS:
        rig = Rig().active()
        rig.flush("flush", snapshot)
        done = 0
        for ended, client in enumerate(order, 1):
            settle(rig, client, mix[client])
            done += mix[client] == "ok"
            if done >= needed:
                assert rig.answers == {"flush": None}
            elif ended < 3:
                assert rig.answers == {}
        if done < needed:
            words = f"{3 - done} out of 3 downstairs failed to complete this IO"
            assert rig.answers == {"flush": errors.IoError(words)}
        assert len(rig.core.jobs) == 0, "a flush that is final everywhere is forgotten"
        faulted = [client for client in CLIENTS if mix[client] != "ok"]
        assert [c.index for c in rig.core.clients if c.state.mode is Mode.FAULTED] == faulted


@pytest.mark.parametrize("mix", list(product(["ok", "fails"], repeat=3)), ids="-".join)
@pytest.mark.parametrize("first", CLIENTS)
def test_what_a_read_is_answered_with(first: int, mix: tuple[str, ...]) -> None:
    """With success as soon as one can read it; nobody is faulted, whatever comes."""
    rig = Rig().active()
    rig.read("read", client=first)
    asked: list[int] = []
    while "read" not in rig.answers:
        (client,) = [index for index in CLIENTS if rig.replicas[index].jobs]
        asked.append(client)
        settle(rig, client, mix[client])
    assert asked[0] == first and len(set(asked)) == len(asked)
    assert rig.answers["read"] == (None if "ok" in mix else FAILED)
    assert [mix[client] for client in asked[:-1]] == ["fails"] * (len(asked) - 1)
    assert [client.state.phase for client in rig.core.clients] == [Phase.ACTIVE] * 3
    assert [client.errors for client in rig.core.clients] == [
        int(client in asked and mix[client] == "fails") for client in CLIENTS
    ]
    assert len(rig.core.jobs) == 0


@pytest.mark.parametrize("mix", MIXES, ids="-".join)
@pytest.mark.parametrize("kind", [JobKind.WRITE, JobKind.WRITE_UNWRITTEN])
def test_writes_with_failures_and_skips_end_and_stay_acknowledged(kind: JobKind, mix: tuple[str, ...]) -> None:
    for order in ORDERS:
        rig = Rig().active()
        job = write_of(rig, kind)
        assert job.acked
        for client in order:
            settle(rig, client, mix[client])
        assert job.complete and rig.answers == {}
        ends = {"ok": job.done, "fails": job.failed, "skips": job.skipped}
        assert all(ends[mix[client]][client] == job.full for client in CLIENTS)
        if mix.count("ok") >= 2:
            rig.flush("flush")
            rig.answer_all()
            assert rig.answers == {"flush": None} and len(rig.core.jobs) == 0


def write_of(rig: Rig, kind: JobKind, block: int = 0) -> Job:
    job = rig.core.new_job(kind, [block], [1], 512, None)
    rig.core.write(job)
    rig.run()
    return job


@pytest.mark.parametrize("kind", [JobKind.WRITE, JobKind.WRITE_UNWRITTEN])
def test_errors_of_writes_are_counted_and_fault_their_replica(kind: JobKind) -> None:
    rig = Rig().active()
    for failing in CLIENTS:
        write_of(rig, kind)
        for client in range(failing):
            assert not rig.replicas[client].jobs, "it is sent nothing more"
        rig.answer(failing, FAILED)
        for client in range(failing + 1, 3):
            rig.answer(client)
        assert [client.errors for client in rig.core.clients] == [int(client <= failing) for client in CLIENTS]
        assert rig.hung_up == list(range(failing + 1))


def test_a_failed_write_leaves_the_past_and_skips_the_rest() -> None:
    """On the replica that fails: what it did before stays done, what it has under way and what comes is skipped."""
    rig = Rig().active()
    past = rig.write(0)
    rig.answer_all()
    failing, pending = rig.write(1), rig.write(2)
    rig.answer(1, FAILED)
    later = rig.write(3)
    assert (past.done[1], failing.failed[1], pending.skipped[1], later.skipped[1]) == (1, 1, 1, 1)
    assert not rig.replicas[1].jobs and not rig.core.jobs.jobs_in_progress[1]
    rig.flush("flush")
    rig.read("read", 3)
    rig.answer_all()
    assert rig.answers == {"flush": None, "read": None}
    assert all(job.done[client] for job in (past, failing, pending, later) for client in (0, 2))
    assert len(rig.core.jobs) == 0


def test_reads_go_to_replicas_without_failures() -> None:
    rig = Rig().active()
    for left, failing in (([1, 2], 0), ([1], 2)):
        rig.fault(failing)
        assert rig.core.readers == left
        for extent in range(4):
            rig.read(f"{failing} {extent}", extent * 10)
        rig.answer_all()
    assert len(rig.answers) == 8 and set(rig.answers.values()) == {None}


@pytest.mark.parametrize(
    ("faulted", "words"),
    [
        (0, {}),
        (1, {JobKind.SNAPSHOT_FLUSH: "need 3, got 2"}),
        (
            2,
            {
                JobKind.SNAPSHOT_FLUSH: "need 3, got 1",
                JobKind.FLUSH: "need 2, got 1",
                JobKind.WRITE: "need 2, got 1",
                JobKind.WRITE_UNWRITTEN: "need 2, got 1",
            },
        ),
        (
            3,
            {
                JobKind.SNAPSHOT_FLUSH: "need 3, got 0",
                JobKind.FLUSH: "need 2, got 0",
                JobKind.WRITE: "need 2, got 0",
                JobKind.WRITE_UNWRITTEN: "need 2, got 0",
                JobKind.READ: "need 1, got 0",
            },
        ),
    ],
)
def test_admission_by_replicas_left(faulted: int, words: dict[JobKind, str]) -> None:
    rig = Rig().active()
    for client in range(faulted):
        rig.fault(client)
    for kind in (JobKind.READ, JobKind.WRITE, JobKind.WRITE_UNWRITTEN, JobKind.FLUSH, JobKind.SNAPSHOT_FLUSH):
        wanted = errors.IoError(f"too many inactive clients: {words[kind]}") if kind in words else None
        assert rig.core.admission_error(kind) == wanted


def test_a_flush_that_loses_its_second_replica_fails() -> None:
    rig = Rig().active()
    rig.fault(0)
    rig.answer_all()
    rig.flush("flush")
    rig.answer(1)
    assert rig.answers == {}
    rig.answer(2, FAILED)
    assert rig.answers == {"flush": errors.IoError("2 out of 3 downstairs failed to complete this IO")}
    assert rig.core.admission_error(JobKind.FLUSH) is not None


def test_jobs_that_no_replica_takes_end_at_once() -> None:
    """They were admitted, and meanwhile the last replica has gone."""
    rig = Rig().active()
    for client in CLIENTS:
        rig.fault(client)
    before = [job.first_id for job in rig.core.jobs]
    rig.read("read")
    assert isinstance(rig.answers["read"], errors.IoError)
    writes = [rig.write(block) for block in range(3)]
    assert all(job.complete for job in writes)
    assert [job.first_id for job in rig.core.jobs] == [*before, *(job.first_id for job in writes)]
    rig.flush("flush")
    assert rig.answers["flush"] == errors.IoError("3 out of 3 downstairs failed to complete this IO")
    assert len(rig.core.jobs) == 0, "the flush has retired them"


@pytest.mark.parametrize("kind", [JobKind.READ, JobKind.WRITE, JobKind.WRITE_UNWRITTEN])
def test_a_flush_done_by_all_retires_what_came_before_it(kind: JobKind) -> None:
    rig = Rig().active()
    if kind is JobKind.READ:
        rig.read("read")
    else:
        write_of(rig, kind)
    rig.flush("flush")
    for client in CLIENTS:
        assert len(rig.core.jobs) > 0
        while rig.replicas[client].jobs:
            rig.answer(client)
    assert len(rig.core.jobs) == 0


@pytest.mark.parametrize("kind", [JobKind.WRITE, JobKind.WRITE_UNWRITTEN])
def test_a_flush_retires_only_what_has_ended_everywhere(kind: JobKind) -> None:
    """A replica may answer the flush first; and what came behind the flush waits for the next one."""
    rig = Rig().active()
    first = write_of(rig, kind)
    rig.flush("flush")
    behind = write_of(rig, kind, 1)
    for client in (0, 1):
        rig.answer(client)
        rig.answer(client)
        rig.answer(client)
    rig.replicas[2].jobs.rotate(-1)  # the flush comes first
    rig.answer(2)
    assert rig.answers == {"flush": None}
    assert [job.first_id for job in rig.core.jobs] == [first.first_id, behind.first_id]
    rig.answer_all()
    rig.flush("again")
    rig.answer_all()
    assert rig.answers == {"flush": None, "again": None} and len(rig.core.jobs) == 0


def test_replay_before_the_first_flush_names_no_flush() -> None:
    rig = Rig().active()
    job = rig.write()
    rig.drop(2)
    rig.reconnect()
    assert [message for message in rig.replicas[2].seen if isinstance(message, m.LastFlush)] == [m.LastFlush(None)]
    assert list(rig.replicas[2].jobs) == [job]


@pytest.mark.parametrize("kind", [JobKind.WRITE, JobKind.WRITE_UNWRITTEN])
def test_replay_changes_no_answer(kind: JobKind) -> None:
    """The replica did the write, comes back, and does it once more under the same id, and then the flush."""
    rig = Rig().active()
    job = write_of(rig, kind)
    rig.answer_all()
    rig.drop(2)
    rig.flush("flush")
    rig.answer_all()
    assert rig.answers == {"flush": None}
    rig.reconnect()
    assert [other.first_id for other in rig.replicas[2].jobs] == [job.first_id, job.first_id + 1]
    rig.answer_all()
    assert rig.answers == {"flush": None}, "the rig fails on a second answer"
    assert job.acked and len(rig.core.jobs) == 0


def test_a_write_in_the_middle_of_a_negotiation_comes_behind_last_flush() -> None:
    """The race: the connection is made, its negotiation is not through, and a guest writes."""
    rig = Rig().active()
    rig.drop(1)
    replica = rig.replicas[1]
    negotiate = replica.negotiate
    replica.negotiate = lambda message: [] if isinstance(message, m.PromoteToActive) else negotiate(message)  # type: ignore[method-assign]
    rig.reconnect()
    job = rig.write()
    assert not replica.jobs
    replica.negotiate = negotiate  # type: ignore[method-assign]
    promote = replica.seen[-1]
    assert isinstance(promote, m.PromoteToActive)
    for reply in negotiate(promote):
        rig.core.message(1, rig.core.clients[1].connection_id, reply)
    rig.run()
    assert replica.seen[-1] == m.LastFlush(None)
    assert list(replica.jobs) == [job]


def test_a_barrier_comes_after_so_many_jobs_and_a_flush_is_still_due(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crucible_emu.upstairs.dispatcher.FINISHED_JOBS_MAX", 5)
    rig = Rig().active()
    for block in range(5):
        assert not any(job.kind is JobKind.BARRIER for job in rig.core.jobs)
        rig.write(block)
        for client in CLIENTS:
            rig.answer(client)
    assert [[job.kind for job in replica.jobs] for replica in rig.replicas] == [[JobKind.BARRIER]] * 3
    rig.answer_all()
    assert len(rig.core.jobs) == 0 and rig.core.need_flush
    rig.core.idle_flush()
    rig.run()
    assert [job.kind for job in rig.replicas[0].jobs] == [JobKind.FLUSH]


def test_what_a_replica_has_flushed_is_not_sent_to_it_again() -> None:
    """Others have not done that flush yet, so its jobs are still there; the replica has done them for good."""
    rig = Rig().active()
    rig.write()
    rig.flush("flush")
    flush_id = rig.replicas[1].jobs[-1].first_id
    rig.answer(1)
    rig.answer(1)
    behind = rig.write(1)
    rig.drop(1)
    rig.reconnect()
    assert rig.replicas[1].seen[-1] == m.LastFlush(flush_id)
    assert list(rig.replicas[1].jobs) == [behind]
