"""Answers into bytes, and back by an independent decoder."""

import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nbd_plain_client import Answer, ReplyDecoder

from crucible_emu import errors
from crucible_emu.blockio import Allocation, Kind, Request
from crucible_emu.nbd import replies as r
from crucible_emu.nbd.buffers import Allowance, BufferPool
from crucible_emu.nbd.protocol import Chunk, Command, Context, Errno
from crucible_emu.nbd.replies import Replies
from crucible_emu.nbd.statistics import Statistics
from crucible_emu.nbd.transmission import Refusal, StatusQuery

BOTH = (Context.ALLOCATION, Context.ALLOCATION_DEPTH)


def answered(replies: Replies, reads: dict[int, tuple[int, int]] | None = None) -> dict[int, Answer]:
    """Everything that waits, by cookie."""
    decoder = ReplyDecoder()
    decoder.reads = reads or {}
    train = replies.take()
    assert train is not None
    found = decoder.receive(b"".join(train.buffers))
    assert len(found) == train.requests
    return dict(found)


def done(
    kind: Kind, command: int, cookie: int, data: bytes = b"", error: errors.CrucibleError | None = None
) -> Request:
    request = Request(kind, 4096, len(data), memoryview(bytearray(data)), cookie=(cookie, None, command))
    request.error = error
    return request


@pytest.mark.parametrize("structured", [False, True])
def test_successes(structured: bool) -> None:
    statistics = Statistics()
    replies = Replies(structured, (), statistics)
    replies.completed(
        [
            done(Kind.READ, Command.READ, 1, b"abc"),
            done(Kind.WRITE, Command.WRITE, 2, b"abcd"),
            done(Kind.READ, Command.CACHE, 3, b"abc"),
            done(Kind.FLUSH, Command.FLUSH, 4),
        ]
    )
    found = answered(replies, {1: (4096, 3)})
    assert all(answer.errno == 0 for answer in found.values())
    assert found[1].data == b"abc" and found[1].structured is structured
    assert not found[2].structured and not found[3].data
    assert (statistics.read_bytes, statistics.written_bytes) == (3, 4)
    assert statistics.snapshot().as_dict()["requests"] == {"CACHE": 1, "FLUSH": 1, "READ": 1, "WRITE": 1}
    assert replies.take() is None


def test_data_of_a_read_is_not_copied() -> None:
    replies = Replies(True, (), Statistics())
    request = done(Kind.READ, Command.READ, 1, b"abc")
    replies.completed([request])
    train = replies.take()
    assert train is not None and train.buffers[1] is request.buffer


@pytest.mark.parametrize("error", [errors.IoError("client 2 is offline"), errors.HashMismatch()])
def test_an_error_carries_its_sentence_where_replies_are_structured(error: errors.CrucibleError) -> None:
    statistics = Statistics()
    for structured, sentence in ((False, ""), (True, str(error))):
        replies = Replies(structured, (), statistics)
        replies.completed(
            [done(Kind.READ, Command.READ, 1, b"abc", error), done(Kind.FLUSH, Command.FLUSH, 2, b"", error)]
        )
        found = answered(replies, {1: (4096, 3)})
        assert [(a.errno, a.text, bytes(a.data)) for a in found.values()] == [(Errno.EIO, sentence, b"")] * 2
    assert statistics.errors == {type(error).__name__: 4}


def test_every_error_of_the_family_has_an_errno_of_the_protocol() -> None:
    assert set(r.ERRNOS) <= set(errors.ERRORS)
    assert r.errno_of(errors.ModifyingReadOnlyRegion()) == Errno.EPERM
    assert r.errno_of(errors.OffsetUnaligned()) == Errno.EINVAL
    assert r.errno_of(errors.UpstairsInactive()) == Errno.ESHUTDOWN
    assert r.errno_of(errors.DecryptionError()) == Errno.EIO
    # ENOTSUP belongs to fast zeroing and EOVERFLOW to lengths: no device error may look like them.
    assert not {Errno.ENOTSUP, Errno.EOVERFLOW, Errno.ENOMEM} & set(r.ERRNOS.values())


def test_a_sentence_is_cut_between_characters() -> None:
    replies = Replies(True, (), Statistics())
    replies.completed([done(Kind.READ, Command.READ, 1, b"a", errors.IoError("ü" * 5000))])
    answer = answered(replies, {1: (4096, 1)})[1]
    assert 4090 < len(answer.text.encode()) <= 4096 and answer.text.endswith("ü")


@pytest.mark.parametrize("structured", [False, True])
def test_refusals(structured: bool) -> None:
    replies = Replies(structured, (), Statistics())
    replies.refused(
        [
            Refusal(1, Command.WRITE, Errno.ENOSPC, "ask for less"),
            Refusal(2, Command.READ, 0),
            Refusal(3, Command.WRITE, 0),
        ]
    )
    found = answered(replies)
    assert (found[1].errno, found[1].text) == (Errno.ENOSPC, "ask for less" if structured else "")
    assert found[2] == Answer(structured=structured, chunks=[Chunk.NONE] if structured else [])
    assert found[3] == Answer()


# --- block status ---


@pytest.mark.parametrize(
    ("length", "one", "runs", "allocation", "depth"),
    [
        (4096, False, [(4096, 1)], [(4096, 0)], [(4096, 1)]),
        (4096, False, [(4096, 0)], [(4096, 3)], [(4096, 0)]),
        (9000, False, [(512, 0), (512, 1), (8192, 2)], [(512, 3), (8488, 0)], [(512, 0), (512, 1), (7976, 2)]),
        (9000, False, [(512, 1), (512, 2)], [(1024, 0)], [(512, 1), (512, 2)]),
        (9000, True, [(512, 1), (512, 2), (512, 0)], [(1024, 0)], [(512, 1)]),
        (600, False, [(512, 2), (512, 2), (512, 2)], [(600, 0)], [(600, 2)]),
    ],
)
def test_block_status_speaks_for_each_context(
    length: int, one: bool, runs: list[tuple[int, int]], allocation: list[tuple[int, int]], depth: list[tuple[int, int]]
) -> None:
    replies = Replies(True, BOTH, Statistics())
    replies.status(StatusQuery(7, 512, length, one), [Allocation(*run) for run in runs])
    assert answered(replies)[7].extents == {Context.ALLOCATION: allocation, Context.ALLOCATION_DEPTH: depth}


def test_block_status_of_one_context_is_one_last_chunk() -> None:
    replies = Replies(True, (Context.ALLOCATION_DEPTH,), Statistics())
    replies.status(StatusQuery(7, 0, 512, False), [Allocation(512, 4)])
    train = replies.take()
    assert train is not None
    assert b"".join(train.buffers) == struct.pack(">IHHQIIII", 0x668E33EF, 1, 5, 7, 12, 2, 512, 4)


def test_block_status_is_cut_where_it_gets_too_long() -> None:
    replies = Replies(True, BOTH, Statistics())
    replies.status(StatusQuery(7, 0, 1 << 30, False), [Allocation(1, n % 2) for n in range(r.DESCRIPTORS_MAX + 5)])
    assert [len(extents) for extents in answered(replies)[7].extents.values()] == [r.DESCRIPTORS_MAX] * 2


def test_block_status_that_fails() -> None:
    statistics = Statistics()
    replies = Replies(True, BOTH, statistics)
    replies.status_failed(StatusQuery(7, 0, 512, False), errors.UpstairsInactive())
    answer = answered(replies)[7]
    assert answer.errno == Errno.ESHUTDOWN and "activate" in answer.text
    assert statistics.errors == {"UpstairsInactive": 1}


@given(
    runs=st.lists(st.tuples(st.integers(1, 5000), st.integers(0, 3)), min_size=1, max_size=20),
    length=st.integers(1, 50_000),
    one=st.booleans(),
)
def test_block_status_keeps_the_rules_of_the_protocol(runs: list[tuple[int, int]], length: int, one: bool) -> None:
    replies = Replies(True, BOTH, Statistics())
    replies.status(StatusQuery(7, 0, length, one), [Allocation(*run) for run in runs])
    depths = [depth for run, depth in runs for _ in range(run)]
    for context, extents in answered(replies)[7].extents.items():
        assert extents and all(run > 0 for run, _ in extents)
        assert sum(run for run, _ in extents) <= length
        assert not one or len(extents) == 1
        assert all(a[1] != b[1] for a, b in itertools.pairwise(extents))
        status = [value for run, value in extents for _ in range(run)]
        wanted = depths if context == Context.ALLOCATION_DEPTH else [0 if depth else 3 for depth in depths]
        assert status == wanted[: len(status)]
        assert one or len(status) == min(length, len(depths))


# --- memory ---


def test_buffers_go_back_after_their_last_holder_and_not_before() -> None:
    pool = BufferPool()
    allowance = Allowance(pool, 1 << 20)
    buffer = allowance.take(100_000)
    assert buffer is not None and len(buffer.memory) == 1 << 17 and allowance.taken_bytes == 1 << 17
    buffer.holders += 1
    buffer.release()
    assert pool.idle_bytes == 0
    memory = buffer.memory
    buffer.release()
    assert (pool.idle_bytes, allowance.taken_bytes) == (1 << 17, 0)
    assert pool.take(1 << 17) is memory
    with pytest.raises(RuntimeError, match="more often"):
        buffer.release()


def test_the_pool_keeps_no_more_idle_memory_than_it_may() -> None:
    pool = BufferPool(idle_bytes_max=200_000)
    for _ in range(4):
        pool.give_back(memoryview(bytearray(65536)))
    assert pool.idle_bytes == 3 * 65536


def test_an_allowance_ends() -> None:
    allowance = Allowance(BufferPool(), 200_000)
    taken = [allowance.take(1) for _ in range(4)]
    assert [buffer is None for buffer in taken] == [False, False, False, True]
