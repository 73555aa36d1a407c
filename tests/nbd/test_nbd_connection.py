"""One client and the server, over a real socket: batches, late completions, back-pressure, and every way to part."""

import math
import os
import socket
import struct
import tempfile
from collections.abc import Sequence

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from nbd_devices import HeldDevice
from nbd_door import door
from nbd_plain_client import BASE, DEPTH, PlainClient, option
from trio.testing import MockClock, wait_all_tasks_blocked

from crucible_emu import errors
from crucible_emu.blockio import Kind, Request
from crucible_emu.blockio_memory import MemoryDevice
from crucible_emu.nbd import Export, Limits
from crucible_emu.nbd import protocol as p
from crucible_emu.nbd.transmission import RECEIVE_BYTES, SLAB_BYTES

C, F = p.Command, p.CommandFlag
MEGABYTE = 1 << 20
FIRST_BYTES = RECEIVE_BYTES + SLAB_BYTES


def disk(size: int = 4 * MEGABYTE, block_size: int = 512) -> dict[str, Export]:
    return {"": Export(MemoryDevice(size, block_size), fast_zero=True)}


def held(size: int = 4 * MEGABYTE, block_size: int = 512) -> tuple[HeldDevice, dict[str, Export]]:
    device = HeldDevice(MemoryDevice(size, block_size))
    return device, {"": Export(device)}


async def closed(client: PlainClient) -> bytes:
    """Everything that still comes until the server closes."""
    data = b""
    while True:
        try:
            more = await client.stream.receive_some(65536)
        except trio.BrokenResourceError:
            return data
        if not more:
            return data
        data += more


@pytest.mark.parametrize("structured", [False, True])
async def test_every_command_has_its_effect(structured: bool) -> None:
    exports = disk()
    async with door(exports) as here:
        client = await here.connect(structured=structured)
        assert client.size_bytes == 4 * MEGABYTE
        assert bool(client.flags & p.TransmissionFlag.SEND_DF) is structured
        await client.write(1024, b"a" * 2048)
        await client.write(512, b"b" * 512, flags=F.FUA)
        assert await client.read(0, 4096) == bytes(512) + b"b" * 512 + b"a" * 2048 + bytes(1024)
        assert (await client.call(C.WRITE_ZEROES, 512, 1024, flags=F.FAST_ZERO)).errno == 0
        assert (await client.call(C.WRITE_ZEROES, 1536, 512, flags=F.NO_HOLE | F.FUA)).errno == 0
        assert (await client.call(C.TRIM, 2048, 512)).errno == 0
        assert (await client.call(C.CACHE, 0, MEGABYTE)).errno == 0
        assert (await client.call(C.FLUSH)).errno == 0
        assert await client.read(0, 4096) == bytes(2560) + b"a" * 512 + bytes(1024)
        await client.write(MEGABYTE, os.urandom(1) * MEGABYTE)
        assert len(await client.read(MEGABYTE, 2 * MEGABYTE)) == 2 * MEGABYTE
        assert (await client.call(C.READ, 0, 0)).errno == 0
        assert (await client.call(99, 0, 0)).errno == p.Errno.EINVAL
        assert (await client.call(C.WRITE, 4 * MEGABYTE - 1, data=b"xx")).errno == p.Errno.ENOSPC
        await client.send(C.DISC)
        assert await closed(client) == b""
        assert here.server.statistics.errors == {"EINVAL": 1, "ENOSPC": 1}


async def test_what_arrives_together_is_one_batch() -> None:
    device, exports = held()
    async with door(exports) as here:
        client = await here.connect()
        message = b"".join(client.encode(C.WRITE, n * 512, data=bytes([n]) * 512) for n in range(20))
        await client.stream.send_all(message)
        await wait_all_tasks_blocked()
        assert [len(batch) for batch in device.admissions] == [20]
        device.release_all()
        for cookie in range(1, 21):
            assert (await client.answer(cookie)).errno == 0
        assert here.server.statistics.batches[(20).bit_length()] == 1


async def test_late_completions_are_answered_in_their_own_order() -> None:
    device, exports = held()
    async with door(exports) as here:
        client = await here.connect()
        device.memory.data[:1024] = b"x" * 1024
        cookies = [await client.send(C.READ, n * 512, 512) for n in range(4)]
        await wait_all_tasks_blocked()
        for index in (3, 0, 1, 0):
            device.release(index)
            await wait_all_tasks_blocked()
        answers = [bytes((await client.answer(cookie)).data) for cookie in cookies]
        assert answers == [b"x" * 512, b"x" * 512, bytes(512), bytes(512)]


async def test_block_status_waits_for_nobody_and_nobody_waits_for_it() -> None:
    device, exports = held(block_size=4096)
    async with door(exports) as here:
        client = await here.connect(queries=[BASE, DEPTH])
        device.memory.depths[1:3] = [1, 2]
        waiting = await client.send(C.READ, 0, 512)
        answer = await client.call(C.BLOCK_STATUS, 4000, 12000)
        assert answer.extents == {
            p.Context.ALLOCATION: [(96, 3), (8192, 0), (3712, 3)],
            p.Context.ALLOCATION_DEPTH: [(96, 0), (4096, 1), (4096, 2), (3712, 0)],
        }
        one = await client.call(C.BLOCK_STATUS, 5000, 9000, flags=F.REQ_ONE)
        assert one.extents == {1: [(7288, 0)], 2: [(3192, 1)]}
        device.allocation_error = errors.UpstairsInactive()
        assert (await client.call(C.BLOCK_STATUS, 0, 512)).errno == p.Errno.ESHUTDOWN
        device.release_all()
        assert (await client.answer(waiting)).errno == 0


async def test_errors_name_what_is_wrong() -> None:
    device, exports = held()
    device.fail = lambda request: errors.IoError("downstairs 2 is offline") if request.kind is Kind.WRITE else None
    device.on_admission = device.release_all
    async with door(exports) as here:
        client = await here.connect()
        answer = await client.call(C.WRITE, 0, data=bytes(512))
        assert (answer.errno, answer.text) == (
            p.Errno.EIO,
            "an input or output operation failed: downstairs 2 is offline",
        )
        assert (await client.call(C.FLUSH)).errno == 0
        assert here.server.statistics.errors == {"IoError": 1}


async def test_unaligned_requests_are_served() -> None:
    exports = disk(block_size=4096)
    async with door(exports) as here:
        client = await here.connect()
        await client.write(0, b"n" * 8192)
        await client.write(4095, b"ab")
        assert await client.read(4094, 4) == b"nabn"
        assert (await client.call(C.WRITE_ZEROES, 1, 8190)).errno == 0
        assert await client.read(0, 8192) == b"n" + bytes(8190) + b"n"


async def test_unaligned_writes_of_two_connections_do_not_lose_each_other() -> None:
    device, exports = held(block_size=4096)
    async with door(exports) as here:
        first, second = await here.connect(), await here.connect()
        one = await first.send(C.WRITE, 0, data=b"a" * 100)
        two = await second.send(C.WRITE, 100, data=b"b" * 100)
        await wait_all_tasks_blocked()
        device.on_admission = device.release_all  # and from here on at once
        device.release_all()
        assert ((await first.answer(one)).errno, (await second.answer(two)).errno) == (0, 0)
        assert bytes(device.memory.data[:201]) == b"a" * 100 + b"b" * 100 + b"\0"


async def test_a_flush_of_one_connection_covers_the_other() -> None:
    exports = disk()
    async with door(exports) as here:
        first, second = await here.connect(), await here.connect()
        await first.write(0, b"x" * 512)
        assert await second.read(0, 512) == b"x" * 512
        assert (await second.call(C.FLUSH)).errno == 0
        assert first.flags & p.TransmissionFlag.CAN_MULTI_CONN


# --- bounds ---


async def test_a_client_that_does_not_read_its_replies_stalls_itself_alone(autojump_clock: MockClock) -> None:
    exports = disk(64 * MEGABYTE)
    limits = Limits()
    async with door(exports, limits=limits) as here:
        greedy, other = await here.connect(), await here.connect()
        with trio.move_on_after(1) as patience:  # the clock jumps when nobody gets any further
            for n in range(2000):
                await greedy.send(C.READ, 0, MEGABYTE)
                if n % 50 == 0:
                    await other.write(n * 512, bytes(512))
            await trio.sleep_forever()
        assert patience.cancelled_caught and here.server.statistics.requests[C.READ] < 2000
        (connection,) = [c for c in here.server._connections if c._transmission and c._transmission._outstanding]
        assert connection._transmission is not None
        assert connection._transmission._outstanding <= limits.outstanding_requests_max
        assert connection._transmission._intake._allowance.taken_bytes <= limits.memory_bytes_max
        assert await other.read(0, 512) == bytes(512)


async def test_no_more_requests_than_the_limit_are_outstanding() -> None:
    device, exports = held()
    async with door(exports, limits=Limits(outstanding_requests_max=8)) as here:
        client = await here.connect()
        cookies = [await client.send(C.READ, 0, 512) for _ in range(30)]
        await wait_all_tasks_blocked()
        assert len(device.held) == 8
        while cookies:
            await wait_all_tasks_blocked()
            assert len(device.held) <= 8
            device.release()
            await client.answer(cookies.pop(0))


async def test_the_device_is_asked_for_room_before_more_is_taken() -> None:
    room = trio.Event()

    class Full(MemoryDevice):
        async def wait_for_room(self) -> None:
            await room.wait()

        def read_singles(self, offsets: Sequence[int], outs: Sequence[memoryview]) -> bool:
            return False

        write_singles = read_singles

    async with door({"": Export(Full(MEGABYTE, 512))}) as here:
        client = await here.connect()
        await client.write(0, b"x" * 512)
        second = await client.send(C.READ, 0, 512)
        await wait_all_tasks_blocked()
        assert here.server.statistics.requests[C.READ] == 0
        room.set()
        assert (await client.answer(second)).data == b"x" * 512


async def test_memory_is_given_back_when_clients_are_gone() -> None:
    device, exports = held(64 * MEGABYTE)
    async with door(exports) as here:
        client = await here.connect()
        for n in range(40):
            await client.send(C.WRITE, n * MEGABYTE, data=bytes(MEGABYTE // 2))
            await client.send(C.READ, n * MEGABYTE, MEGABYTE // 4)
        await wait_all_tasks_blocked()
        assert device.held
        await client.stream.aclose()
        await wait_all_tasks_blocked()
        assert here.server.statistics.connections_open == 1, "its requests still own their buffers"
        device.release_all()
        await wait_all_tasks_blocked()
        assert here.server.statistics.connections_open == 0
        assert here.server._pool.idle_bytes >= FIRST_BYTES


async def test_requests_that_outlive_a_cancelled_connection_give_their_memory_back() -> None:
    device, exports = held()
    async with door(exports) as here:
        client = await here.connect()
        await client.send(C.WRITE, 0, data=bytes(MEGABYTE))
        await client.send(C.READ, 0, MEGABYTE)
        await wait_all_tasks_blocked()
        pool = here.server._pool
        here.nursery.cancel_scope.cancel()
    assert pool.idle_bytes == FIRST_BYTES
    device.release_all()
    assert pool.idle_bytes == FIRST_BYTES + 2 * MEGABYTE


# --- parting ---


async def test_disconnect_waits_for_what_is_outstanding() -> None:
    device, exports = held()
    async with door(exports) as here:
        client = await here.connect()
        cookie = await client.send(C.WRITE, 0, data=b"x" * 512)
        await client.send(C.DISC)
        await wait_all_tasks_blocked()
        device.release_all()
        assert (await client.answer(cookie)).errno == 0
        assert await closed(client) == b""


async def test_a_client_that_closes_one_half_still_gets_its_answers() -> None:
    device, exports = held()
    async with door(exports) as here:
        client = await here.connect()
        cookie = await client.send(C.READ, 0, 512)
        assert isinstance(client.stream, trio.SocketStream)
        await client.stream.send_eof()
        await wait_all_tasks_blocked()
        device.release_all()
        assert (await client.answer(cookie)).errno == 0
        assert await closed(client) == b""


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\0" * 28, "not with its magic"),
        (struct.pack(">IHHQQI", p.REQUEST_MAGIC, 0, C.WRITE, 1, 0, 1 << 30), "at most"),
    ],
)
async def test_broken_protocol_costs_that_connection_and_nothing_else(
    data: bytes, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    exports = disk()
    async with door(exports) as here:
        bad, good = await here.connect(), await here.connect()
        await bad.stream.send_all(data)
        assert await closed(bad) == b""
        await good.write(0, bytes(512))
        assert here.server.statistics.errors == {"RemoteError": 1}
    (record,) = [record for record in caplog.records if record.getMessage() == "connection closed"]
    assert reason in str(vars(record))


@pytest.mark.parametrize("cut", [1, 27, 28, 100])
async def test_a_stream_cut_off_in_a_request_is_noticed(cut: int) -> None:
    exports = disk()
    async with door(exports) as here:
        client = await here.connect()
        await client.stream.send_all(client.encode(C.WRITE, 0, data=b"x" * 512)[:cut])
        await client.stream.aclose()
        await wait_all_tasks_blocked()
        assert here.server.statistics.errors == {"RemoteError": 1}
        assert bytes(here.server.exports[""].device.data[:512]) == bytes(512)  # type: ignore[attr-defined]


async def test_broken_protocol_closes_at_once_even_while_the_device_is_busy() -> None:
    device, exports = held()
    async with door(exports) as here:
        client = await here.connect()
        await client.send(C.WRITE, 0, data=b"x" * 512)
        await wait_all_tasks_blocked()  # the device has it; a batch that breaks the protocol would be dropped whole
        await client.stream.send_all(b"\0" * 28)
        assert await closed(client) == b""
        assert here.server.statistics.connections_open == 1
        device.release_all()
        await wait_all_tasks_blocked()
        assert here.server.statistics.connections_open == 0


async def test_shutdown_finishes_what_is_outstanding_and_takes_nothing_more() -> None:
    device, exports = held()
    async with door(exports) as here:
        client = await here.connect()
        negotiating = here.knock()
        await negotiating.greet()
        cookie = await client.send(C.WRITE, 0, data=b"x" * 512)
        await wait_all_tasks_blocked()
        here.server.shut_down()
        await client.send(C.WRITE, 512, data=b"y" * 512)
        assert (await negotiating.ask(option(p.Option.LIST)))[-1][0] == p.Reply.ERR_SHUTDOWN
        assert (await negotiating.ask(option(p.Option.ABORT)))[-1][0] == p.Reply.ACK
        assert await closed(negotiating) == b""
        await wait_all_tasks_blocked()
        device.release_all()
        assert (await client.answer(cookie)).errno == 0
        await closed(client)
        assert len(device.admissions) == 1


async def test_a_client_that_never_agrees_on_an_export_is_let_go(autojump_clock: MockClock) -> None:
    async with door(disk()) as here:
        client = here.knock()
        await client.greet()
        assert await closed(client) == b""
        assert trio.current_time() == pytest.approx(60)
        assert here.server.statistics.errors == {"RemoteError": 1}


async def test_requests_that_come_with_the_handshake_are_not_lost() -> None:
    async with door(disk()) as here:
        client = here.knock()
        await client.greet()
        name = option(p.Option.EXPORT_NAME, b"")
        await client.stream.send_all(name + client.encode(C.WRITE, 0, data=b"early" + bytes(507)))
        await client.read_exactly(10)
        assert (await client.answer(1)).errno == 0
        assert (await client.read(0, 512))[:5] == b"early"


async def test_a_transport_that_takes_few_bytes_at_a_time_keeps_their_order() -> None:
    """Small socket buffers: every train of replies is sent in pieces, by both tasks in turn."""
    exports = disk(block_size=512)
    memory = exports[""].device
    assert isinstance(memory, MemoryDevice)
    memory.data[:] = os.urandom(memory.size_bytes)
    async with door(exports) as here:
        ours, theirs = socket.socketpair()
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        client = await here.attend(ours, theirs).enter()
        ranges = [(n * 512 % 100_000 // 512 * 512, 512 * (1 + n * n % 300)) for n in range(60)]
        cookies = [await client.send(C.READ, *found) for found in ranges]
        for cookie, (offset, length) in zip(cookies, ranges):
            assert (await client.answer(cookie)).data == memory.data[offset : offset + length]


# --- against a plain file ---

SIZE = 300_000 // 512 * 512
spans = st.tuples(st.integers(0, SIZE - 1), st.sampled_from([1, 511, 512, 4096, 65_535, 65_536, 200_000]))
aligned = spans.map(lambda s: (s[0] // 512 * 512, math.ceil(s[1] / 512) * 512))
operations = st.lists(
    st.tuples(
        st.sampled_from([C.READ, C.READ, C.WRITE, C.WRITE, C.WRITE_ZEROES, C.TRIM, C.FLUSH, C.CACHE, C.BLOCK_STATUS]),
        st.one_of(aligned, spans),
        st.sampled_from([0, F.FUA]),
        st.booleans(),
    ),
    max_size=25,
)


@given(program=operations, structured=st.booleans(), block_size=st.sampled_from([512, 4096]))
async def test_any_sequence_of_requests_acts_like_a_plain_file(
    program: list[tuple[int, tuple[int, int], int, bool]], structured: bool, block_size: int
) -> None:
    """Two connections take turns; what each hears is what a file of the same history says."""
    size = math.ceil(SIZE / block_size) * block_size
    with tempfile.TemporaryFile() as model:
        model.truncate(size)
        async with door(disk(size, block_size)) as here:
            clients = [await here.connect(structured=structured, queries=[BASE] if structured else []) for _ in "ab"]
            for index, (command, (offset, length), flags, which) in enumerate(program):
                if command == C.BLOCK_STATUS and not structured:
                    continue
                length = min(length, size - offset)
                data = bytes([1 + index]) * length if command == C.WRITE else b""
                answer = await clients[which].call(command, offset, length, flags=flags, data=data)
                assert answer.errno == 0
                if command == C.TRIM:  # whole blocks inside become zeros here
                    start, end = -(-offset // block_size) * block_size, (offset + length) // block_size * block_size
                    os.pwrite(model.fileno(), bytes(max(0, end - start)), start)
                elif command in (C.WRITE, C.WRITE_ZEROES):
                    os.pwrite(model.fileno(), data or bytes(length), offset)
                elif command == C.READ:
                    assert answer.data == os.pread(model.fileno(), length, offset)
                elif command == C.BLOCK_STATUS:
                    holes_are_zeros(answer.extents[p.Context.ALLOCATION], os.pread(model.fileno(), length, offset))
            assert await clients[0].read(0, size) == os.pread(model.fileno(), size, 0)


def holes_are_zeros(extents: list[tuple[int, int]], data: bytes) -> None:
    at = 0
    for length, status in extents:
        assert status == 0 or not any(data[at : at + length])
        at += length
    assert at == len(data)


@given(program=st.lists(st.lists(operations, max_size=4), max_size=3), seed=st.randoms(use_true_random=False))
async def test_requests_in_flight_together_on_disjoint_ranges_act_like_a_plain_file(
    program: list[list[list[tuple[int, tuple[int, int], int, bool]]]], seed: object
) -> None:
    """Everything of a round is in flight at once over a device that completes in any order; ranges do not overlap."""
    device = HeldDevice(MemoryDevice(1 << 20, 4096))
    model = bytearray(1 << 20)
    async with door({"": Export(device)}) as here:
        client = await here.connect()
        for round_number, batches in enumerate(program):
            expected: dict[int, bytes | None] = {}
            at = 0
            for command, (gap, length), flags, _ in (operation for batch in batches for operation in batch):
                offset = at + gap % 5000
                length = min(length, 30_000)
                at = offset + length
                if command == C.BLOCK_STATUS or at > len(model):
                    continue
                data = bytes([1 + len(expected)]) * length if command == C.WRITE else b""
                cookie = await client.send(command, offset, length, flags=flags, data=data)
                expected[cookie] = bytes(model[offset:at]) if command == C.READ else None
                if command in (C.WRITE, C.WRITE_ZEROES):
                    model[offset:at] = data or bytes(length)
                elif command == C.TRIM:
                    start, end = -(-offset // 4096) * 4096, at // 4096 * 4096
                    model[start : max(start, end)] = bytes(max(0, end - start))
            await settle(device, seed)
            for cookie, data_read in expected.items():
                answer = await client.answer(cookie)
                assert answer.errno == 0, (round_number, answer)
                assert data_read is None or answer.data == data_read
        assert bytes(device.memory.data) == bytes(model)


async def settle(device: HeldDevice, seed: object) -> None:
    await wait_all_tasks_blocked()
    while device.held:
        device.release(seed.randrange(len(device.held)))  # type: ignore[attr-defined]
        await wait_all_tasks_blocked()


def test_limits_that_cannot_work_are_refused() -> None:
    with pytest.raises(ValueError, match="one payload"):
        Limits(memory_bytes_max=1 << 20)
    with pytest.raises(ValueError, match="at least 1"):
        Limits(outstanding_requests_max=0)


def test_a_request_says_what_it_is() -> None:
    assert repr(Request(Kind.READ, 1, 2)) == "Request(READ, offset=1, length=2, error=None)"
