"""Runs of single blocks over a real socket: done at once where nothing stands in their way, and never otherwise."""

from __future__ import annotations

import random
from typing import Any
from uuid import UUID

import numpy as np
import pytest
import trio
from downstairs_rig import BLOCK, S, ScriptedUpstairs, U, connected, definition, flush, payload, read, serving, write

from crucible_emu import errors
from crucible_emu.downstairs.admission import CONTEXT_BYTES, JOB_OVERHEAD_BYTES
from crucible_emu.downstairs.faults import Faults
from crucible_emu.downstairs.flushes import Flushes
from crucible_emu.downstairs.jobs import JobLimits, JobQueue
from crucible_emu.downstairs.runs import Runs, missing_jobs, waiting
from crucible_emu.encryption import Cipher
from crucible_emu.integrity import EMPTY, ENCRYPTED, PLAIN, BlockContexts
from crucible_emu.region import Region
from crucible_emu.wire import messages as m

OTHER = UUID(int=77)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[int], bool]]:
    """The job ids of each run that came, and whether it was done at once."""
    seen: list[tuple[list[int], bool]] = []

    def spied_on(original: Any) -> Any:
        def spy(self: Runs, connection_id: int, run: Any) -> Any:
            actions = original(self, connection_id, run)
            seen.append((run.job_ids, actions is not None))
            return actions

        return spy

    for method in (Runs.write, Runs.read):
        monkeypatch.setattr(Runs, method.__name__, spied_on(method))
    return seen


@pytest.fixture
def region(make_region: Any) -> Region:
    found: Region = make_region()
    return found


FIRST = flush(1)
"""Tells the ids, which the decoder of a run has to know."""


async def test_writes_and_reads_are_done_at_once(region: Region, runs: list[Any]) -> None:
    async with serving(region) as server, connected(server) as upstairs:
        await upstairs.activate()
        await upstairs.ask(FIRST, m.FlushAck)
        await upstairs.say(*(write(2 + index, index, 1, index + 1) for index in range(9)))
        assert [await upstairs.hear() for _ in range(9)] == [m.WriteAck(U, S, 2 + index, None) for index in range(9)]
        await upstairs.say(*(read(20 + index, index, 1, (2 + index,)) for index in range(9)))
        for index in range(9):
            response = await upstairs.hear(m.ReadResponse)
            assert (response.job_id, response.blocks.kind.tolist()) == (20 + index, [PLAIN])
            assert bytes(response.data) == payload(1, index + 1)
        assert runs == [(list(range(2, 11)), True), (list(range(20, 29)), True)]
        statistics = server.core.statistics
        assert (statistics.jobs, statistics.blocks_written, statistics.blocks_read) == (19, 9, 9)


@pytest.mark.parametrize("wrong", [None, "hash", "tag", "data"])
async def test_encrypted_writes_and_reads_are_done_at_once_unless_one_is_wrong(
    make_region: Any, runs: list[Any], wrong: str | None
) -> None:
    region = make_region(definition(encrypted=True))
    rows, contexts = Cipher(bytes(32)).encrypt_blocks(np.arange(3 * BLOCK, dtype=np.uint8).reshape(3, BLOCK))
    assert contexts.tag is not None
    damaged = {"hash": contexts.hash, "tag": contexts.tag[:, 0], "data": rows[:, 7]}
    if wrong is not None:
        damaged[wrong][1] ^= 1
    writes = [m.Write(U, S, 2 + at, (), at, contexts[at : at + 1], rows[at].data) for at in range(3)]
    async with serving(region) as server, connected(server) as upstairs:
        await upstairs.activate(encrypted=True)
        await upstairs.ask(FIRST, m.FlushAck)
        await upstairs.say(*writes)
        answers = {answer.job_id: answer.result for answer in [await upstairs.hear(m.WriteAck) for _ in range(3)]}
        assert answers == {2: None, 3: None if wrong is None else errors.HashMismatch(), 4: None}
        await upstairs.say(*(read(10 + at, at) for at in (0, 2)))
        for at in (0, 2):
            response = await upstairs.hear(m.ReadResponse)
            assert bytes(response.data) == rows[at].tobytes()
            assert response.blocks.same_reads(contexts[at : at + 1])
        assert runs == [([2, 3, 4], wrong is None), ([10, 12], True)]
        await upstairs.say(flush(13))
        await upstairs.hear(m.FlushAck)
        response = await upstairs.ask(read(14, 1), m.ReadResponse)
        assert response.blocks.kind.tolist() == [ENCRYPTED if wrong is None else EMPTY]


async def test_of_a_block_that_is_written_twice_the_last_counts(region: Region, runs: list[Any]) -> None:
    async with serving(region) as server, connected(server) as upstairs:
        await upstairs.activate()
        await upstairs.ask(FIRST, m.FlushAck)
        await upstairs.say(write(2, 5, 1, 1), write(3, 6, 1, 2), write(4, 5, 1, 3, (2,)))
        assert [(await upstairs.hear(m.WriteAck)).job_id for _ in range(3)] == [2, 3, 4]
        response = await upstairs.ask(read(5, 5, 2, (4,)), m.ReadResponse)
        assert bytes(response.data) == bytes(payload(1, 3)) + bytes(payload(1, 2))
        assert runs == [([2, 3, 4], True)]


async def test_a_wrong_hash_within_a_run_costs_its_own_write_alone(region: Region, runs: list[Any]) -> None:
    wrong = m.Write(U, S, 3, (), 1, BlockContexts.plain(np.array([1], np.uint64)), payload(1, 9))
    async with serving(region) as server, connected(server) as upstairs:
        await upstairs.activate()
        await upstairs.ask(FIRST, m.FlushAck)
        await upstairs.say(write(2, 0, 1, 1), wrong, write(4, 2, 1, 3))
        answers = {(await upstairs.hear(m.WriteAck)) for _ in range(3)}
        assert {(answer.job_id, type(answer.result)) for answer in answers} == {
            (2, type(None)),
            (3, errors.HashMismatch),
            (4, type(None)),
        }
        response = await upstairs.ask(read(5, 0, 3), m.ReadResponse)
        assert bytes(response.data) == bytes(payload(1, 1)) + bytes(BLOCK) + bytes(payload(1, 3))
        assert response.blocks.kind.tolist() == [PLAIN, EMPTY, PLAIN]
        assert runs == [([2, 3, 4], False)]


@pytest.mark.parametrize(
    ("bad", "answer"),
    [
        (write(3, 32), m.WriteAck(U, S, 3, errors.OffsetInvalid())),
        (read(3, 32), m.ReadResponse(U, S, 3, errors.OffsetInvalid(), memoryview(b""))),
        (write(3, 1, ids=(U, OTHER)), m.UuidMismatch(S)),
    ],
    ids=["write beyond the region", "read beyond the region", "another session"],
)
async def test_what_is_refused_alone_is_refused_in_a_run(region: Region, bad: Any, answer: m.Message) -> None:
    good = write(2, 0) if isinstance(bad, m.Write) else read(2, 0)
    async with serving(region) as server, connected(server) as upstairs:
        await upstairs.activate()
        await upstairs.ask(FIRST, m.FlushAck)
        await upstairs.say(good, bad)
        # A refusal may overtake what takes longer.
        answers = [await upstairs.hear(), await upstairs.hear()]
        assert answer in answers
        assert 2 in [each.job_id for each in answers if isinstance(each, m.JobReply)]


async def test_a_run_waits_for_what_it_names(region: Region, runs: list[Any]) -> None:
    async with serving(region) as server, connected(server) as upstairs:
        await upstairs.activate()
        await upstairs.ask(FIRST, m.FlushAck)
        await upstairs.say(write(3, 0, 1, 3, (2,)), write(4, 0, 1, 4, (3,)))
        await upstairs.ask(m.Ruok(), m.Imok)
        assert await upstairs.ask(write(2, 0, 1, 2)) == m.WriteAck(U, S, 2, None)
        assert [(await upstairs.hear(m.WriteAck)).job_id for _ in range(2)] == [3, 4]
        assert bytes((await upstairs.ask(read(5, 0, 1, (4,)), m.ReadResponse)).data) == payload(1, 4)
        assert runs == [([3, 4], False), ([2], True), ([5], True)]


async def test_of_a_run_only_what_waits_goes_one_by_one(region: Region, runs: list[Any]) -> None:
    """As beside a live repair, where some of the blocks are in an extent that is closed."""
    async with serving(region) as server, connected(server) as upstairs:
        await upstairs.activate()
        await upstairs.ask(FIRST, m.FlushAck)
        await upstairs.say(
            write(3, 0, 1, 3),
            write(4, 1, 1, 4, (2,)),
            write(5, 2, 1, 5, (3,)),
            write(6, 1, 1, 6, (4,)),
            write(7, 3, 1, 7),
        )
        assert [(await upstairs.hear(m.WriteAck)).job_id for _ in range(3)] == [3, 5, 7]
        await upstairs.say(read(8, 2, 1, (5,)), read(9, 1, 1, (6,)), read(10, 3, 1, (7,)))
        found = [await upstairs.hear(m.ReadResponse) for _ in range(2)]
        assert [(each.job_id, bytes(each.data)) for each in found] == [(8, payload(1, 5)), (10, payload(1, 7))]
        await upstairs.say(write(2, 1, 1, 2))
        assert [(await upstairs.hear(m.WriteAck)).job_id for _ in range(3)] == [2, 4, 6]
        assert bytes((await upstairs.hear(m.ReadResponse)).data) == payload(1, 6)
        assert runs == [
            ([3, 4, 5, 6, 7], False),
            ([3, 5, 7], True),
            ([8, 9, 10], False),
            ([8, 10], True),
            ([2], True),
        ]


async def test_blocks_of_zeros_are_told_from_those_never_written(region: Region, runs: list[Any]) -> None:
    async with serving(region) as server, connected(server) as upstairs:
        await upstairs.activate()
        await upstairs.ask(FIRST, m.FlushAck)
        await upstairs.say(write(2, 0, 1, 0), write(3, 1, 1, 7))
        await upstairs.hear()
        await upstairs.hear()
        await upstairs.say(read(4, 0), read(5, 1), read(6, 2))
        kinds = {response.job_id: response.blocks.kind.tolist() for response in [await upstairs.hear() for _ in "123"]}
        assert kinds == {4: [PLAIN], 5: [PLAIN], 6: [EMPTY]}
        assert runs[-1] == ([4, 5, 6], False)


async def test_more_than_fits_is_read_job_by_job(
    region: Region, runs: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crucible_emu.downstairs.runs.READ_BYTES_MAX", 5 * BLOCK)
    async with serving(region) as server, connected(server) as upstairs:
        await upstairs.activate()
        await upstairs.ask(FIRST, m.FlushAck)
        await upstairs.ask(write(2, 0, 8, 3), m.WriteAck)
        for first in (10, 20):  # each receive has its own measure
            await upstairs.say(*(read(first + index, index) for index in range(5)))
            assert [(await upstairs.hear(m.ReadResponse)).job_id for _ in range(5)] == list(range(first, first + 5))
            assert runs[-1] == (list(range(first, first + 5)), True)
        await upstairs.say(*(read(30 + index, index) for index in range(6)))
        assert {(await upstairs.hear(m.ReadResponse)).job_id for _ in range(6)} == set(range(30, 36))
        assert runs[-1] == (list(range(30, 36)), False)
        await upstairs.say(read(40, 0), read(41, 1), read(42, 2), m.Ruok(), read(43, 3), read(44, 4), read(45, 5))
        assert {(await upstairs.hear()).job_id for _ in range(3)} == {40, 41, 42}
        assert await upstairs.hear() == m.Imok()
        assert {(await upstairs.hear()).job_id for _ in range(3)} == {43, 44, 45}
        assert runs[-2:] == [([40, 41, 42], True), ([43, 44, 45], False)]


async def test_one_kind_after_the_other_keeps_its_order(region: Region, runs: list[Any]) -> None:
    async with serving(region) as server, connected(server) as upstairs:
        await upstairs.activate()
        await upstairs.ask(FIRST, m.FlushAck)
        await upstairs.say(
            write(2, 0, 1, 2), read(3, 0, 1, (2,)), write(4, 0, 2, 4, (3,)), read(5, 1, 1, (4,)), m.Ruok()
        )
        assert await upstairs.hear() == m.WriteAck(U, S, 2, None)
        assert bytes((await upstairs.hear(m.ReadResponse)).data) == payload(1, 2)
        assert await upstairs.hear() == m.WriteAck(U, S, 4, None)
        assert bytes((await upstairs.hear(m.ReadResponse)).data) == payload(1, 4)
        assert await upstairs.hear() == m.Imok()
        assert runs == [([2], True), ([3], True), ([5], True)]


async def test_faults_meet_the_jobs_of_a_run(region: Region, runs: list[Any]) -> None:
    async with serving(region, faults=Faults(read_errors=1.0)) as server, connected(server) as upstairs:
        await upstairs.activate()
        await upstairs.ask(FIRST, m.FlushAck)
        await upstairs.say(read(2, 0), read(3, 1))
        for _ in range(2):
            assert isinstance((await upstairs.hear(m.ReadResponse)).blocks, errors.CrucibleError)
        assert runs == []


@pytest.fixture
def flush_may_end(monkeypatch: pytest.MonkeyPatch) -> trio.Event:
    """A flush with something to do takes until this is set."""
    ended = trio.Event()
    finish = Flushes.finish

    async def waits(self: Flushes, *arguments: Any) -> Any:
        await ended.wait()
        return await finish(self, *arguments)

    monkeypatch.setattr(Flushes, "finish", waits)
    return ended


async def flushing(upstairs: ScriptedUpstairs) -> None:
    """Activate, and have flush 3 run."""
    await upstairs.activate()
    await upstairs.ask(FIRST, m.FlushAck)
    await upstairs.ask(write(2, 0, 1, 2), m.WriteAck)
    await upstairs.say(flush(3, (2,), 2))
    await upstairs.ask(m.Ruok(), m.Imok)


async def test_writes_behind_a_flush_that_runs_wait_for_it_together(
    region: Region, runs: list[Any], flush_may_end: trio.Event
) -> None:
    async with serving(region) as server, connected(server) as upstairs:
        await flushing(upstairs)
        (connection,) = server.core._connections.values()
        before = connection.jobs.outstanding_bytes
        await upstairs.say(write(4, 0, 1, 4, (3,)), write(5, 1, 1, 5, (3,)), write(6, 0, 1, 6, (4,)))
        await upstairs.ask(m.Ruok(), m.Imok)
        await upstairs.say(write(7, 1, 1, 7, (5,)), write(8, 2, 1, 8, (3,)))
        await upstairs.ask(m.Ruok(), m.Imok)
        assert connection.jobs.outstanding_bytes - before == 5 * (BLOCK + CONTEXT_BYTES + JOB_OVERHEAD_BYTES)
        await upstairs.say(read(9, 0, 3, (6, 7, 8)), flush(10, (4, 5, 6, 7, 8), 3), write(11, 0, 1, 11, (10,)))
        await upstairs.ask(m.Ruok(), m.Imok)
        assert connection.jobs.outstanding_jobs == 1 + 2 + 3, "each run counts as one job"
        flush_may_end.set()
        answers = [await upstairs.hear() for _ in range(9)]
        assert [answer.job_id for answer in answers] == [3, 4, 5, 6, 7, 8, 9, 10, 11]
        assert bytes(answers[6].data) == b"".join(bytes(payload(1, fill)) for fill in (6, 7, 8))
        assert all(done for _, done in runs)
        assert [ids for ids, _ in runs] == [[2], [4, 5, 6], [7, 8], [11], [4, 5, 6], [7, 8], [11]]
        assert connection.jobs.outstanding_jobs == connection.jobs.outstanding_bytes == connection.jobs.waiting == 0


async def test_writes_that_waited_and_find_no_room_go_one_by_one(
    region: Region, flush_may_end: trio.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(region) as server, connected(server) as upstairs:
        await flushing(upstairs)
        await upstairs.say(write(4, 0, 1, 4, (3,)), write(5, 1, 1, 5, (3,)))
        await upstairs.ask(m.Ruok(), m.Imok)
        monkeypatch.setattr(Region, "admits_singles", lambda self, count: False)
        flush_may_end.set()
        assert [(await upstairs.hear()).job_id for _ in range(3)] == [3, 4, 5]
        response = await upstairs.ask(read(6, 0, 2, (5,)), m.ReadResponse)
        assert bytes(response.data) == bytes(payload(1, 4)) + bytes(payload(1, 5))


async def test_writes_behind_a_flush_that_fails_are_never_done(
    region: Region, runs: list[Any], flush_may_end: trio.Event, expect_log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    expect_log("work failed .*FLUSH")

    async def fails(self: Flushes, *_: Any) -> Any:
        return errors.IoError("the device is gone")

    async with serving(region) as server, connected(server) as upstairs:
        await flushing(upstairs)
        monkeypatch.setattr(Flushes, "_run", fails)
        await upstairs.say(write(4, 0, 1, 4, (3,)), write(5, 1, 1, 5, (3,)))
        await upstairs.ask(m.Ruok(), m.Imok)
        flush_may_end.set()
        assert isinstance((await upstairs.hear(m.FlushAck)).result, errors.IoError)
        response = await upstairs.ask(read(6, 0, 2), m.ReadResponse)
        assert bytes(response.data) == bytes(payload(1, 2)) + bytes(BLOCK)
        assert runs[-1] != ([4, 5], False) and server.core.statistics.blocks_written == 1


async def test_race_of_a_lost_connection_with_writes_that_wait_for_its_flush(
    region: Region, flush_may_end: trio.Event
) -> None:
    async with serving(region) as server:
        async with connected(server) as upstairs:
            await flushing(upstairs)
            await upstairs.say(write(4, 0, 1, 4, (3,)), write(5, 1, 1, 5, (3,)))
            await upstairs.ask(m.Ruok(), m.Imok)
        flush_may_end.set()
        async with connected(server) as upstairs:
            await upstairs.activate()
            response = await upstairs.ask(read(6, 0, 2), m.ReadResponse)
            assert bytes(response.data) == bytes(payload(1, 2)) + bytes(BLOCK)


async def test_writes_that_waited_wait_on_where_the_machine_has_stopped(
    region: Region, flush_may_end: trio.Event
) -> None:
    async with serving(region) as server, connected(server) as upstairs:
        await flushing(upstairs)
        await upstairs.say(write(4, 0, 1, 4, (3,)), write(5, 1, 1, 5, (3,)))
        await upstairs.ask(m.Ruok(), m.Imok)
        server.runner.stall()
        flush_may_end.set()
        assert (await upstairs.hear(m.FlushAck)).job_id == 3
        await upstairs.ask(m.Ruok(), m.Imok)
        server.runner.unstall()
        assert [(await upstairs.hear(m.WriteAck)).job_id for _ in range(2)] == [4, 5]


def test_missing_jobs() -> None:
    jobs = JobQueue(JobLimits())
    jobs.completed.add(10, 3)
    assert missing_jobs(jobs, [20, 21], [(), ()]) == set()
    assert missing_jobs(jobs, [20, 21], [(10, 12), (20,)]) == set()
    assert missing_jobs(jobs, [20, 21], [(13,), (9, 20)]) == {9, 13}
    assert missing_jobs(jobs, [20, 21], [(21,), ()]) == {21}  # it comes later
    assert missing_jobs(jobs, [20, 21], [(20,), ()]) == {20}  # itself


@pytest.mark.parametrize("seed", range(20))
def test_what_waits_names_what_is_missing_directly_or_not(seed: int) -> None:
    """Whatever they name: what does not wait could be done by itself, and of what waits nothing could."""
    draw = random.Random(seed)
    jobs = JobQueue(JobLimits())
    jobs.completed.add(10, 5)
    job_ids = list(range(20, 32))
    dependencies = [tuple(draw.sample(range(8, 32), draw.choice([0, 0, 1, 2]))) for _ in job_ids]
    late = waiting(jobs, job_ids, dependencies)
    ready = [at for at in range(len(job_ids)) if at not in late]
    assert not missing_jobs(jobs, [job_ids[at] for at in ready], [dependencies[at] for at in ready])
    for at in late:
        tried = sorted([*ready, at])
        assert missing_jobs(jobs, [job_ids[each] for each in tried], [dependencies[each] for each in tried])
