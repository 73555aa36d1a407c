"""Requests of single blocks that arrive together: done and answered at once where they can be, else one by one."""

import itertools
from collections.abc import Sequence

import pytest
from nbd_devices import HeldDevice
from nbd_door import door
from nbd_plain_client import PlainClient, ReplyDecoder, request
from trio.testing import wait_all_tasks_blocked

from crucible_emu.blockio_memory import MemoryDevice
from crucible_emu.errors import IoError
from crucible_emu.nbd import Export
from crucible_emu.nbd.at_once import READ_REPLIES_BYTES, ReadReplies, single_reads, single_writes
from crucible_emu.nbd.buffers import Allowance, BufferPool
from crucible_emu.nbd.protocol import Command, CommandFlag, Errno

C, F = Command, CommandFlag
BLOCK = 512
SIZE = 64 * BLOCK


def read(block: int, *, cookie: int = 7, length: int = BLOCK, flags: int = 0, command: int = C.READ) -> bytes:
    return request(command, block * BLOCK, length, cookie=cookie, flags=flags)


class AtHandDevice(HeldDevice):
    """A held device that has single blocks at hand while ``at_hand``; ``batches`` are the sizes of what it gave."""

    def __init__(self) -> None:
        super().__init__(MemoryDevice(SIZE, BLOCK))
        self.memory.data[:] = bytes(at // BLOCK for at in range(SIZE))
        self.on_admission = self.release_all
        self.at_hand = True
        self.batches: list[int] = []

    def read_singles(self, offsets: Sequence[int], outs: Sequence[memoryview]) -> bool:
        if self.at_hand:
            self.batches.append(len(offsets))
        return self.at_hand and self.memory.read_singles(offsets, outs)

    def write_singles(self, offsets: Sequence[int], data: Sequence[memoryview]) -> bool:
        if self.at_hand:
            self.batches.append(len(offsets))
        return self.at_hand and self.memory.write_singles(offsets, data)


# --- requests as columns ---


def test_reads_of_single_blocks_become_columns() -> None:
    message = b"".join(read(block, cookie=cookie) for block, cookie in [(63, 1), (0, 1 << 63), (5, 3)])
    assert single_reads(memoryview(message), BLOCK, SIZE) == ((1, 1 << 63, 3), (63 * BLOCK, 0, 5 * BLOCK))


@pytest.mark.parametrize(
    "other",
    [
        read(1, length=2 * BLOCK),
        read(1, length=0),
        read(1, flags=F.DF),
        read(1, flags=F.FUA),
        read(1, command=C.WRITE),
        read(1, command=C.BLOCK_STATUS),
        read(1, command=C.DISC),
        read(64),
        request(C.READ, 1, BLOCK, cookie=1),
        request(C.READ, (1 << 64) - BLOCK, BLOCK, cookie=1),
        bytes(28),
    ],
)
@pytest.mark.parametrize("at", [0, 1, 2])
def test_anything_else_among_them_takes_the_ordinary_way(other: bytes, at: int) -> None:
    messages = [read(block) for block in range(2)]
    assert single_reads(memoryview(b"".join(messages)), BLOCK, SIZE) is not None
    messages.insert(at, other)
    assert single_reads(memoryview(b"".join(messages)), BLOCK, SIZE) is None


def write(block: int, fill: int = 1, *, cookie: int = 7, length: int = BLOCK, flags: int = 0) -> bytes:
    return request(C.WRITE, block * BLOCK, length, cookie=cookie, flags=flags, data=bytes([fill]) * BLOCK)


def test_writes_of_single_blocks_become_columns() -> None:
    message = b"".join(write(block, block, cookie=cookie) for block, cookie in [(63, 1), (0, 1 << 63), (5, 3)])
    found = single_writes(memoryview(message), BLOCK, SIZE)
    assert found is not None
    cookies, offsets, data = found
    assert [int.from_bytes(cookie) for cookie in cookies] == [1, 1 << 63, 3]
    assert offsets == (63 * BLOCK, 0, 5 * BLOCK)
    assert data == [bytes([fill]) * BLOCK for fill in (63, 0, 5)]


@pytest.mark.parametrize(
    "other",
    [
        write(1, length=BLOCK // 2),
        write(1, flags=F.FUA),
        write(1, flags=F.DF),
        write(64),
        request(C.WRITE, 1, BLOCK, cookie=1, data=bytes(BLOCK)),
        read(1) + bytes(BLOCK),
        bytes(28 + BLOCK),
    ],
)
@pytest.mark.parametrize("at", [0, 1, 2])
def test_anything_else_among_writes_takes_the_ordinary_way(other: bytes, at: int) -> None:
    messages = [write(block) for block in range(2)]
    assert single_writes(memoryview(b"".join(messages)), BLOCK, SIZE) is not None
    messages.insert(at, other)
    assert single_writes(memoryview(b"".join(messages)), BLOCK, SIZE) is None


# --- replies as memory ---


@pytest.mark.parametrize("structured", [False, True])
@pytest.mark.parametrize("block_size", [512, 4096, 65536])
def test_what_lies_in_memory_is_what_a_client_understands(structured: bool, block_size: int) -> None:
    replies = ReadReplies(structured, block_size, Allowance(BufferPool(), READ_REPLIES_BYTES))
    for count in (replies.reads_max, 1, 2):
        blocks = replies.blocks(count)
        assert blocks is not None and len(blocks) == count
        for index, block in enumerate(blocks):
            block[:] = bytes([index % 251, count % 251]) * (block_size // 2)
        cookies, offsets = [index << 40 for index in range(count)], [index * block_size for index in range(count)]
        data, holder = replies.take(cookies, offsets)
        decoder = ReplyDecoder()
        decoder.reads = {cookie: (offset, block_size) for cookie, offset in zip(cookies, offsets)}
        found = decoder.receive(bytes(data))
        assert [cookie for cookie, _ in found] == cookies
        for index, (_, answer) in enumerate(found):
            assert (answer.errno, answer.structured) == (0, structured)
            assert answer.data == bytes([index % 251, count % 251]) * (block_size // 2)
        holder.release()


def test_memory_is_not_used_again_while_replies_are_on_their_way() -> None:
    pool = BufferPool()
    allowance = Allowance(pool, READ_REPLIES_BYTES)
    replies = ReadReplies(True, BLOCK, allowance)
    assert allowance.taken_bytes == 0, "a client that only writes pays for nothing"
    assert replies.blocks(1) is not None
    _, holder = replies.take([1], [0])
    assert replies.blocks(1) is None
    replies.close()
    assert allowance.taken_bytes == READ_REPLIES_BYTES and not pool.idle_bytes
    holder.release()
    assert allowance.taken_bytes == 0 and pool.idle_bytes == READ_REPLIES_BYTES


def test_without_memory_there_are_no_such_replies() -> None:
    replies = ReadReplies(True, BLOCK, Allowance(BufferPool(), READ_REPLIES_BYTES - 1))
    assert replies.blocks(1) is None
    replies.close()
    with pytest.raises(RuntimeError, match="before anybody asked"):
        replies.take([1], [0])


# --- through a connection ---


async def asked(client: PlainClient, blocks: Sequence[int]) -> list[bytes]:
    """Read these blocks, asked for in one piece."""
    before = [client.encode(C.READ, block * BLOCK, BLOCK) for block in blocks]
    await client.stream.send_all(b"".join(before))
    last = client.last_cookie
    answers = [await client.answer(cookie) for cookie in range(last - len(blocks) + 1, last + 1)]
    assert not any(answer.errno for answer in answers)
    return [bytes(answer.data) for answer in answers]


def right(blocks: Sequence[int]) -> list[bytes]:
    return [bytes([block]) * BLOCK for block in blocks]


@pytest.mark.parametrize("structured", [False, True])
async def test_reads_that_are_at_hand_are_no_requests(structured: bool) -> None:
    device = AtHandDevice()
    async with door({"": Export(device)}) as here:
        client = await here.connect(structured=structured)
        blocks = [5, 63, 0, 5, 17]
        assert await asked(client, blocks) == right(blocks)
        assert await asked(client, [9]) == right([9])
        assert device.batches == [5, 1] and not device.admissions
        assert here.server.statistics.requests == {C.READ: 6}
        assert here.server.statistics.read_bytes == 6 * BLOCK


async def test_more_than_fit_in_one_piece() -> None:
    device = AtHandDevice()
    async with door({"": Export(device)}) as here:
        client = await here.connect()
        blocks = list(itertools.islice(itertools.cycle(range(64)), 2000))
        assert await asked(client, blocks) == right(blocks)
        assert max(device.batches) <= READ_REPLIES_BYTES // (BLOCK + 28) and len(device.batches) > 1
        assert sum(device.batches) + sum(map(len, device.admissions)) == 2000


async def test_what_is_not_at_hand_goes_the_ordinary_way_and_is_asked_for_less_and_less() -> None:
    device = AtHandDevice()
    device.at_hand = False
    async with door({"": Export(device)}) as here:
        client = await here.connect()
        for block in range(64):
            assert await asked(client, [block, 1]) == right([block, 1])
        assert len(device.admissions) == 64
        device.at_hand = True
        while not device.batches:
            assert await asked(client, [3, 4]) == right([3, 4])
        assert len(device.admissions) <= 2 * 64, "it is tried again in the end"


@pytest.mark.parametrize("structured", [False, True])
async def test_writes_that_can_be_done_now_are_no_requests(structured: bool) -> None:
    device = AtHandDevice()
    async with door({"": Export(device)}) as here:
        client = await here.connect(structured=structured)
        blocks = [5, 63, 0, 5, 17]
        pieces = [client.encode(C.WRITE, at * BLOCK, data=bytes([fill]) * BLOCK) for fill, at in enumerate(blocks)]
        await client.stream.send_all(b"".join(pieces))
        answers = [await client.answer(cookie) for cookie in range(1, 6)]
        assert not any(answer.errno or answer.data for answer in answers)
        assert device.batches == [5] and not device.admissions
        assert [device.memory.data[at * BLOCK] for at in (63, 0, 5, 17)] == [1, 2, 3, 4]
        assert here.server.statistics.requests == {C.WRITE: 5}
        assert here.server.statistics.written_bytes == 5 * BLOCK


async def test_a_write_that_is_half_here_waits_for_its_rest_and_the_others_do_not() -> None:
    device = AtHandDevice()
    async with door({"": Export(device)}) as here:
        client = await here.connect()
        message = b"".join(client.encode(C.WRITE, at * BLOCK, data=b"n" * BLOCK) for at in range(3))
        await client.stream.send_all(message[:-100])
        assert not (await client.answer(1)).errno and not (await client.answer(2)).errno
        assert device.batches == [2]
        await client.stream.send_all(message[-100:])
        assert not (await client.answer(3)).errno
        assert device.memory.data[: 3 * BLOCK] == b"n" * 3 * BLOCK


async def test_a_read_only_export_refuses_writes_that_could_be_done_now() -> None:
    device = AtHandDevice()
    async with door({"": Export(device, read_only=True)}) as here:
        client = await here.connect()
        assert (await client.call(C.WRITE, 0, data=b"n" * BLOCK)).errno == Errno.EPERM
        assert device.memory.data[0] == 0 and not device.batches


async def test_writes_that_cannot_be_done_now_go_the_ordinary_way() -> None:
    device = AtHandDevice()
    device.at_hand = False
    async with door({"": Export(device)}) as here:
        client = await here.connect()
        for fill in range(20):
            await client.write(fill * BLOCK, bytes([fill + 100]) * BLOCK)
        assert [device.memory.data[at * BLOCK] for at in range(20)] == list(range(100, 120))
        assert len(device.admissions) == 20


async def test_a_write_among_the_reads_keeps_the_order() -> None:
    device = AtHandDevice()
    async with door({"": Export(device)}) as here:
        client = await here.connect()
        pieces = [
            client.encode(C.READ, 0, BLOCK),
            client.encode(C.WRITE, 0, data=b"n" * BLOCK),
            client.encode(C.READ, 0, BLOCK),
        ]
        await client.stream.send_all(b"".join(pieces))
        before, _, after = [
            await client.answer(cookie) for cookie in range(client.last_cookie - 2, client.last_cookie + 1)
        ]
        assert (bytes(before.data), bytes(after.data)) == (bytes(BLOCK), b"n" * BLOCK)


async def test_race_of_reads_with_a_client_that_takes_no_answers() -> None:
    """The socket is full of replies: what follows must not get between their bytes."""
    device = AtHandDevice()
    async with door({"": Export(device)}) as here:
        client = await here.connect()
        blocks = list(itertools.islice(itertools.cycle(range(64)), 900))
        first = 1
        for _ in range(8):
            pieces = [client.encode(C.READ, block * BLOCK, BLOCK) for block in blocks]
            here.nursery.start_soon(client.stream.send_all, b"".join(pieces))
            await wait_all_tasks_blocked()
        for index in range(8 * len(blocks)):
            answer = await client.answer(first + index)
            assert bytes(answer.data) == right([blocks[index % len(blocks)]])[0]


@pytest.mark.parametrize("part_company", ["leaves", "is cut off"])
async def test_memory_comes_back(part_company: str) -> None:
    device = AtHandDevice()
    async with door({"": Export(device)}) as here:
        client = await here.connect()
        assert await asked(client, [1, 2]) == right([1, 2])
        pool = here.server._pool
        if part_company == "leaves":
            await client.stream.aclose()
            await wait_all_tasks_blocked()
        else:
            here.nursery.cancel_scope.cancel()
    assert pool.idle_bytes % READ_REPLIES_BYTES == 0 and pool.idle_bytes >= 3 * READ_REPLIES_BYTES


async def test_an_unaligned_update_under_way_is_not_passed_by() -> None:
    device = AtHandDevice()
    device.on_admission = lambda: None
    async with door({"": Export(device)}) as here:
        client = await here.connect()
        update = await client.send(C.WRITE, 1, data=b"x")
        await wait_all_tasks_blocked()
        reads = await client.send(C.READ, 0, BLOCK)
        await wait_all_tasks_blocked()
        assert not device.batches
        device.on_admission = device.release_all
        device.release_all()
        assert (await client.answer(update)).errno == (await client.answer(reads)).errno == 0
        assert (await client.read(0, 2)) == b"\0x"


async def test_an_error_is_told_in_the_ordinary_way() -> None:
    device = AtHandDevice()
    device.at_hand, device.fail = False, lambda _: IoError("the blocks are gone")
    async with door({"": Export(device)}) as here:
        client = await here.connect()
        answer = await client.call(C.READ, 0, BLOCK)
        assert answer.errno == Errno.EIO and "the blocks are gone" in answer.text
