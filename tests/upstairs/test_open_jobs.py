"""A job of single blocks that has not been sent takes further ones: it ends as one that was made of all of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from upstairs_rig import Rig

from crucible_emu.integrity import BlockContexts, Rows, hash_blocks
from crucible_emu.upstairs.jobs import Gathered, Job
from crucible_emu.upstairs.rules import CLIENTS, JobKind
from crucible_emu.upstairs.states import StopReason

BLOCK = 512


def prove(data: Sequence[bytes]) -> tuple[Rows, BlockContexts]:
    rows = np.frombuffer(b"".join(data), np.uint8).reshape(-1, BLOCK)
    return rows, BlockContexts.plain(hash_blocks(rows))


def data(blocks: list[int]) -> list[bytes]:
    return [bytes([block]) * BLOCK for block in blocks]


def write_open(rig: Rig, blocks: list[int]) -> Job:
    job = rig.core.new_job(JobKind.WRITE, list(blocks), [1] * len(blocks), len(blocks) * BLOCK, None)
    job.gathered = Gathered(prove)
    job.gathered.take(blocks, data(blocks))
    rig.core.write_open(job)
    return job


def grow(rig: Rig, blocks: list[int]) -> bool:
    return rig.core.grow(blocks, data(blocks))


def test_what_comes_to_an_open_job_is_of_it() -> None:
    rig = Rig().active()
    before = rig.write(7)
    job = write_open(rig, [3])
    assert grow(rig, [7, 8]) and rig.core.open_bytes == 3 * BLOCK
    assert rig.core.jobs.jobs_in_progress == rig.core.jobs.changes_in_progress == [4, 4, 4]
    assert rig.core.jobs.bytes_in_progress == [4 * BLOCK] * 3
    assert not rig.core.settled(0, [8]) and rig.core.settled(0, [9])
    rig.run()
    assert rig.core.open_bytes == 0
    assert [replica.jobs[-1] for replica in rig.replicas] == [job] * 3
    assert (job.first_id, job.count, job.starts, job.lengths) == (before.first_id + 1, 3, [3, 7, 8], [1, 1, 1])
    assert rig.core.pruned_dependencies(job, 0) == [[], [before.first_id], []]
    assert job.rows is not None and job.contexts is not None
    assert job.rows.tobytes() == b"".join(data([3, 7, 8]))
    assert (job.contexts.hash == hash_blocks(job.rows)).all()
    after = rig.write(8)
    assert after.first_id == before.first_id + 4
    assert rig.dependencies(after) == [before.first_id + 3]
    rig.answer_all()
    assert rig.core.jobs.jobs_in_progress == rig.core.jobs.bytes_in_progress == [0, 0, 0]


def test_a_job_that_was_sent_is_not_open() -> None:
    rig = Rig().active()
    job = write_open(rig, [1])
    rig.run()
    assert not grow(rig, [2]) and job.count == 1
    rig.write(5)
    assert not grow(rig, [2])


def test_nothing_comes_to_a_job_behind_what_was_wanted_after_it() -> None:
    """Race: a flush, or a read, was asked for and has not been sent either, or a connection is closed. Its place is
    between the two writes."""
    rig = Rig().active()
    job = write_open(rig, [1])
    rig.core.flush("flush")
    assert not grow(rig, [2]) and job.count == 1
    rig.run()
    assert [each.kind for each in rig.replicas[0].jobs] == [JobKind.WRITE, JobKind.FLUSH]
    rig.answer_all()
    job = write_open(rig, [1])
    rig.core.stop_client(rig.core.clients[1], StopReason.IO_ERROR)
    assert not grow(rig, [2]) and job.count == 1


def test_a_block_that_is_in_the_job_already_makes_another_job() -> None:
    rig = Rig().active()
    first = write_open(rig, [1])
    assert not grow(rig, [2, 1])
    second = write_open(rig, [2, 1])
    assert grow(rig, [3])
    rig.run()
    assert list(rig.replicas[0].jobs) == [first, second]
    assert (first.starts, second.starts) == ([1], [2, 1, 3])
    assert first.rows is not None and first.rows.tobytes() == b"".join(data([1]))
    assert rig.core.pruned_dependencies(second, 0) == [[], [first.first_id], []]


def test_an_open_job_is_replayed_and_skipped_whole() -> None:
    """Race: one replica is away and expected back, another one is lost, while the job is open."""
    rig = Rig().active()
    rig.drop(2)
    job = write_open(rig, [1])
    assert grow(rig, [2])
    rig.drop(1)
    rig.replicas[1].jobs.clear()  # there is no connection to send it on any more
    assert job.in_progress == [3, 3, 3]
    assert list(rig.replicas[0].jobs) == [job]
    rig.reconnect()
    assert [list(rig.replicas[client].jobs) for client in CLIENTS] == [[job]] * 3
    rig.answer_all()
    assert job.complete and job.done == [3, 3, 3]


def test_a_client_that_is_skipped_is_skipped_for_what_comes_later() -> None:
    rig = Rig().active()
    rig.fault(2)
    rig.answer_all()
    job = write_open(rig, [1])
    assert grow(rig, [2, 3])
    rig.run()
    assert job.skipped == [0, 0, 7] and job.in_progress == [7, 7, 0]
    rig.answer_all()
    assert job.complete
