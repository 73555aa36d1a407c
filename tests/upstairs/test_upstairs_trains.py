"""Single blocks over connections: one job for reads that arrived together, answers and acks run by run, writes held."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import numpy as np
import pytest
import trio
import xxhash
from test_upstairs_driver import DEFINITION, FakeLink, RecordingPort, Set
from trio.testing import MockClock, wait_all_tasks_blocked
from upstairs_rig import SESSION, UPSTAIRS

from crucible_emu import errors, wire
from crucible_emu.blockio import Kind, Request
from crucible_emu.encryption import Cipher
from crucible_emu.integrity import BlockContexts, hash_blocks
from crucible_emu.slab import Slab
from crucible_emu.upstairs import single_reads, tcp_link
from crucible_emu.upstairs.guest import Guest
from crucible_emu.upstairs.jobs import Job
from crucible_emu.upstairs.rules import JobKind
from crucible_emu.upstairs.tcp_link import ACKS_PAUSE_S, TcpLink
from crucible_emu.wire import messages as m
from crucible_emu.wire.runs import AckRun, ReadResponseRun

SIZE = DEFINITION.block_size


def content(number: int) -> memoryview:
    return memoryview(bytes([number]) * SIZE)


class Guests(Set):
    """A disk over three fake connectors, which are answered by hand."""

    def __init__(self, cipher: Cipher | None = None) -> None:
        super().__init__(flush_interval_s=1e6)
        self.reports: list[list[Request]] = []
        self.cipher = cipher

    async def start(self, nursery: trio.Nursery) -> None:
        await nursery.start(self.upstairs.run)
        await self.upstairs.activate()
        self.upstairs.cipher = self.cipher
        self.guest = Guest(self.upstairs)

    def link(self, client: int) -> FakeLink:
        link = self.connectors[client].link
        assert link is not None
        return link

    def read(self, *blocks: int) -> list[Request]:
        requests = [Request(Kind.READ, block * SIZE, SIZE, memoryview(bytearray(SIZE))) for block in blocks]
        self.guest.submit(requests, self.reports.append)
        return requests

    def write(self, *blocks: int) -> None:
        requests = [Request(Kind.WRITE, block * SIZE, SIZE, content(block)) for block in blocks]
        self.guest.submit(requests, lambda done: None)

    def answer(self, client: int, contents: dict[int, int], wrong: frozenset[int] = frozenset()) -> None:
        """Answer jobs of these ids with blocks of this content; what proves the ``wrong`` ones does not."""
        data = [content(number) for number in contents.values()]
        if self.cipher is not None:
            stored, proofs = self.cipher.seal_singles(data, Slab(len(data), SIZE))
            seals = [bytes([seal[0] ^ (job_id in wrong)]) + seal[1:] for job_id, seal in zip(contents, proofs.seals)]
            self.hear(client, ReadResponseRun(UPSTAIRS, SESSION, list(contents), [], stored, seals))
            return
        hashes = [xxhash.xxh64_intdigest(each) ^ (job_id in wrong) for job_id, each in zip(contents, data)]
        self.hear(client, ReadResponseRun(UPSTAIRS, SESSION, list(contents), hashes, data))

    def hear(self, client: int, *messages: m.Message) -> None:
        self.link(client).port.received(list(messages))


@pytest.fixture(params=[None, Cipher(bytes(32))], ids=["plain", "encrypted"])
async def disk(request: pytest.FixtureRequest, nursery: trio.Nursery) -> Guests:
    disk = Guests(request.param)
    await disk.start(nursery)
    for connector in disk.connectors:
        connector.replica.reachable = False  # what they are sent is answered here
    return disk


def filled(requests: list[Request]) -> list[int]:
    return [request.buffer[0] for request in requests if request.buffer is not None]


async def test_reads_that_arrive_together_are_one_job_and_one_report(disk: Guests) -> None:
    requests = disk.read(0, 3, 0, 9)
    (job,) = disk.link(0).jobs
    assert (job.kind, job.starts, job.lengths) == (JobKind.READ, [0, 3, 0, 9], [1, 1, 1, 1])
    ids = range(job.first_id, job.first_id + 4)
    disk.answer(0, {ids[1]: 31, ids[0]: 30})
    disk.answer(0, {ids[2]: 32, ids[3]: 33})
    assert disk.reports == [[requests[1], requests[0]], [requests[2], requests[3]]]
    assert filled(requests) == [30, 31, 32, 33]
    assert disk.upstairs.core.jobs.find(ids[0]) is None


async def test_a_small_batch_goes_to_one_replica_and_the_rest_of_a_large_one_to_the_next(
    disk: Guests, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(single_reads, "READS_TOGETHER", 2)
    disk.read(11, 1)
    assert disk.link(1).jobs.pop().starts == [11, 1]
    assert not disk.link(0).jobs
    requests = disk.read(1, 11, 12, 2)
    first, second = disk.link(0).jobs[0], disk.link(1).jobs[0]
    assert (first.starts, second.starts) == ([1, 11], [12, 2])
    disk.answer(1, {second.first_id: 5, second.first_id + 1: 6})
    disk.answer(0, {first.first_id: 7, first.first_id + 1: 8})
    assert filled(requests) == [7, 8, 5, 6]


async def test_a_damaged_block_is_read_elsewhere_and_the_others_are_left_alone(disk: Guests, expect_log: Any) -> None:
    expect_log("damaged block")
    expect_log("operation failed on a replica")
    requests = disk.read(0, 1, 2)
    job = disk.link(0).jobs[0]
    ids = range(job.first_id, job.first_id + 3)
    disk.answer(0, {ids[0]: 1, ids[1]: 2, ids[2]: 3}, wrong=frozenset({ids[1]}))
    assert disk.reports == [[requests[0], requests[2]]] and disk.link(1).jobs == [job]
    memory = requests[0].buffer
    assert memory is not None
    memory[:] = content(99)  # it is the guest's again
    disk.answer(1, {ids[0]: 1, ids[1]: 2, ids[2]: 3})
    assert disk.reports[1:] == [[requests[1]]]
    assert filled(requests) == [99, 2, 3]
    assert [request.error for request in requests] == [None] * 3
    assert disk.upstairs.core.jobs.find(ids[0]) is None
    assert disk.upstairs.statistics.damaged_reads == 1


async def test_a_block_that_is_damaged_everywhere_fails_alone(disk: Guests, expect_log: Any) -> None:
    expect_log("damaged block", at_least=3)
    expect_log("operation failed on a replica", at_least=3)
    requests = disk.read(0, 1)
    first = disk.link(0).jobs[0].first_id
    for client in (0, 1, 2):
        disk.answer(client, {first: 1, first + 1: 2}, wrong=frozenset({first + 1}))
    expected = errors.HashMismatch if disk.cipher is None else errors.DecryptionError
    assert [type(request.error) for request in requests] == [type(None), expected]
    assert sorted(map(len, disk.reports)) == [1, 1]


async def test_a_replica_that_leaves_has_its_reads_done_elsewhere(disk: Guests, expect_log: Any) -> None:
    expect_log("connection ended")
    requests = disk.read(0, 1)
    first, core = disk.link(0).jobs[0].first_id, disk.upstairs.core
    disk.answer(0, {first: 1})
    core.stopped(0, core.clients[0].connection_id, "cut off")
    disk.upstairs.perform()
    disk.answer(1, {first: 9, first + 1: 2})
    assert filled(requests) == [1, 2]
    assert disk.reports == [[requests[0]], [requests[1]]]


async def test_answers_that_nobody_waits_for_are_dropped(disk: Guests) -> None:
    (request,) = disk.read(0)
    first = disk.link(0).jobs[0].first_id
    disk.answer(1, {first: 7})
    disk.answer(0, {first + 5: 7})
    strange = ReadResponseRun(UPSTAIRS, UUID(int=5), [first], [xxhash.xxh64_intdigest(content(7))], [content(7)])
    disk.hear(0, strange)
    assert disk.reports == []
    disk.answer(0, {first: 1})
    disk.answer(0, {first: 2})
    assert filled([request]) == [1]
    assert disk.reports == [[request]]


async def test_acks_come_in_runs_across_jobs(disk: Guests) -> None:
    disk.write(0, 1, 2)
    disk.write(3)
    core, first = disk.upstairs.core, disk.link(0).jobs[0].first_id
    for ids in ([first + 1], [first, first + 2, first + 3]):
        disk.hear(0, AckRun(m.WriteAck, UPSTAIRS, SESSION, ids))
    disk.hear(1, AckRun(m.WriteAck, UPSTAIRS, SESSION, range(first, first + 4)))
    assert core.jobs.jobs_in_progress == [0, 0, 4]
    assert [job.done[:2] for job in core.jobs] == [[0b111, 0b111], [1, 1]]


async def test_acks_of_a_train_come_in_parts(disk: Guests) -> None:
    """As beside a live repair, where some of its writes wait for an extent."""
    disk.write(0, 1, 2, 4, 6)
    disk.write(3)
    core, first = disk.upstairs.core, disk.link(0).jobs[0].first_id
    disk.hear(0, AckRun(m.WriteAck, UPSTAIRS, SESSION, [first, first + 2, first + 3, first + 5]))
    disk.hear(1, AckRun(m.WriteAck, UPSTAIRS, SESSION, [first + 1, first + 4]))
    assert [job.done for job in core.jobs] == [[0b01101, 0b10010, 0], [1, 0, 0]]
    disk.hear(0, AckRun(m.WriteAck, UPSTAIRS, SESSION, [first + 4, first + 1]))
    assert [job.done[0] for job in core.jobs] == [0b11111, 1]
    assert core.jobs.jobs_in_progress == [0, 4, 6]


@pytest.mark.parametrize("cls", [m.WriteAck, m.FlushAck])
async def test_an_ack_that_does_not_fit_costs_the_connection_from_within_a_run(
    disk: Guests, expect_log: Any, cls: type[m.Ack]
) -> None:
    expect_log("replica broke the protocol")
    expect_log("connection ended")
    disk.write(0, 1)
    first = disk.link(0).jobs[0].first_id
    disk.hear(0, AckRun(cls, UPSTAIRS, SESSION, [first, first + 1, first]))
    assert disk.upstairs.core.clients[0].stop_requested
    await wait_all_tasks_blocked()


async def test_a_wrong_length_is_no_answer(disk: Guests, expect_log: Any) -> None:
    expect_log("operation failed on a replica")
    (request,) = disk.read(0)
    first, half = disk.link(0).jobs[0].first_id, content(1)[: SIZE // 2]
    disk.hear(0, ReadResponseRun(UPSTAIRS, SESSION, [first], [xxhash.xxh64_intdigest(half)], [half]))
    disk.answer(1, {first: 4})
    assert filled([request]) == [4]
    assert request.error is None


# -- the link ---------------------------------------------------------------------------------------------------------


class Wire:
    """A link and its far end."""

    def __init__(self, link: TcpLink, port: RecordingPort, far: socket.socket) -> None:
        self.link = link
        self.port = port
        self.far = far
        self.decoder = wire.Decoder()

    def arrived(self) -> list[int]:
        """The ids of the jobs that have arrived since the last call."""
        found: list[m.Message] = []
        while True:
            try:
                found += self.decoder.receive(self.far.recv(1 << 20))
            except BlockingIOError:
                return [message.job_id for message in found if isinstance(message, m.JobRequest)]

    async def say(self, *messages: m.Message) -> None:
        self.far.sendall(b"".join(b"".join(wire.encode(message)) for message in messages))
        await wait_all_tasks_blocked()

    async def ack(self, job_id: int) -> None:
        await self.say(m.WriteAck(UPSTAIRS, SESSION, job_id, None))

    def heard(self) -> list[int]:
        """The ids of the acks that the link has looked at since the last call."""
        found, self.port.messages = self.port.messages, []
        acks = [each for run in found for each in (run.messages() if isinstance(run, AckRun) else [run])]
        return [ack.job_id for ack in acks if isinstance(ack, m.WriteAck)]

    def write(self, first_id: int, blocks: int = 1) -> None:
        rows = np.zeros((blocks, SIZE), np.uint8)
        job = Job(JobKind.WRITE, first_id, [0], [blocks], rows.size)
        job.rows, job.contexts = rows, BlockContexts.plain(hash_blocks(rows))
        self.link.send_job(job, [[]])
        self.link.send_off()

    def hurry(self) -> None:
        self.link.hurry()

    def read(self, first_id: int) -> None:
        self.link.send_job(Job(JobKind.READ, first_id, [0], [1], SIZE), [[]])
        self.link.send_off()


@asynccontextmanager
async def connected() -> AsyncIterator[Wire]:
    near, far = socket.socketpair()
    far.setblocking(False)
    with far:
        async with trio.open_nursery() as nursery:
            stream = trio.SocketStream(trio.socket.from_stdlib_socket(near))
            link = TcpLink(stream, UPSTAIRS, SESSION)
            link.gathers = True
            port = RecordingPort()
            nursery.start_soon(link.run, port)
            await wait_all_tasks_blocked()
            yield Wire(link, port, far)
            nursery.cancel_scope.cancel()
        await trio.aclose_forcefully(stream)


async def test_writes_wait_until_somebody_has_had_enough() -> None:
    async with connected() as wires:
        wires.write(1)
        wires.write(2)
        assert wires.arrived() == []
        wires.hurry()
        assert wires.arrived() == [1, 2]
        wires.hurry()
        wires.write(3)
        assert wires.arrived() == [], "there was nothing to hurry"
        await wires.ack(1)
        assert wires.arrived() == []


async def test_what_somebody_waits_for_takes_held_writes_along() -> None:
    async with connected() as wires:
        for job_id in (1, 2):
            wires.write(job_id)
        wires.read(3)
        assert wires.arrived() == [1, 2, 3]
        wires.read(4)
        assert wires.arrived() == [4]
        wires.write(5)
        assert wires.arrived() == []


async def test_where_nobody_would_hurry_nothing_is_held() -> None:
    async with connected() as wires:
        wires.link.gathers = False
        wires.write(1)
        wires.write(2)
        assert wires.arrived() == [1, 2]


async def test_acks_of_writes_are_not_waited_for_and_answers_are(mock_clock: MockClock) -> None:
    async with connected() as wires:
        wires.write(1)
        wires.hurry()
        await wires.ack(1)  # it was waiting for anything: nothing was under way
        assert wires.heard() == [1]
        wires.write(2)
        wires.hurry()
        await wires.ack(2)
        assert wires.heard() == []
        mock_clock.jump(ACKS_PAUSE_S)
        await wait_all_tasks_blocked()
        assert wires.heard() == [2]
        wires.write(3)
        wires.hurry()
        await wires.ack(3)
        assert wires.heard() == []
        wires.read(4)
        await wait_all_tasks_blocked()
        assert wires.heard() == [3]


async def test_many_bytes_of_writes_do_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp_link, "HELD_BYTES_MAX", 16 * SIZE)
    async with connected() as wires:
        wires.write(1, 15)
        assert wires.arrived() == []
        wires.write(2)
        assert wires.arrived() == [1, 2]
