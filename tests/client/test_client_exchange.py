"""Requests and answers: any order, any cut, any split into chunks; and answers that must not be."""

from __future__ import annotations

import errno
import itertools
import os
import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nbd_scripts import chunk, data_chunk, error_chunk, simple

from crucible_emu.client.failures import RequestFailed
from crucible_emu.client.nbd_exchange import Answer, Exchange, Extent
from crucible_emu.errors import RemoteError
from crucible_emu.nbd import protocol as p
from crucible_emu.nbd.protocol import Chunk, Command

CONTEXT = 7


def feed(exchange: Exchange, data: bytes, rng: random.Random | None = None) -> list[Answer]:
    """Let the exchange receive ``data``, as much at once as it takes, or less where ``rng`` wants."""
    found, at = [], 0
    while at < len(data):
        target = exchange.target()
        assert len(target) > 0
        count = min(len(target), len(data) - at)
        if rng is not None:
            count = rng.randint(1, count)
        target[:count] = data[at : at + count]
        found += exchange.received(count)
        at += count
    return found


def read_answer(rng: random.Random, cookie: int, offset: int, content: bytes) -> list[bytes]:
    """A structured answer to a read in any number of chunks, in any order."""
    cuts = sorted({0, len(content), *(rng.randrange(len(content)) for _ in range(rng.randrange(4)))})
    ranges = list(itertools.pairwise(cuts))
    rng.shuffle(ranges)
    chunks = []
    for first, last in ranges:
        part = content[first:last]
        if not any(part) and rng.random() < 0.8:
            chunks.append(
                chunk(cookie, Chunk.OFFSET_HOLE, struct.pack(">QI", offset + first, last - first), done=False)
            )
        else:
            chunks.append(data_chunk(cookie, offset + first, part, done=False))
    return [*chunks, chunk(cookie, Chunk.NONE)]


@settings(max_examples=150)
@given(st.integers(0, 2**32), st.booleans())
def test_reads_and_writes_are_answered_in_any_order_and_any_cut(seed: int, structured: bool) -> None:
    rng = random.Random(seed)
    exchange = Exchange(structured=structured, allocation=CONTEXT if structured else None)
    expected: dict[int, tuple[bytearray, bytes]] = {}
    streams: list[list[bytes]] = []
    for _ in range(rng.randint(1, 6)):
        length, offset = rng.randint(1, 3000), rng.randrange(10_000)
        memory = bytearray(os.urandom(length))
        if rng.random() < 0.7:
            content = rng.randbytes(length) if rng.random() < 0.7 else bytes(length)
            cookie, header = exchange.request(Command.READ, offset, length, into=memoryview(memory))
            if structured:
                streams.append(read_answer(rng, cookie, offset, content))
            else:
                streams.append([simple(cookie, data=content)])
            expected[cookie] = memory, content
        else:
            cookie, header = exchange.request(Command.WRITE, offset, length)
            streams.append([chunk(cookie, Chunk.NONE) if structured and rng.random() < 0.5 else simple(cookie)])
            expected[cookie] = memory, bytes(memory)
        assert struct.unpack(">IHHQQI", header)[3:] == (cookie, offset, length)
    sent = b""
    while streams:  # chunks of one answer in order, those of different answers mixed
        stream = rng.choice(streams)
        sent += stream.pop(0)
        streams = [left for left in streams if left]
    answers = feed(exchange, sent, rng)
    assert sorted(answer.cookie for answer in answers) == sorted(expected)
    assert all(answer.error is None for answer in answers)
    assert all(memory == content for memory, content in expected.values())
    assert exchange.outstanding == 0


def reading(length: int = 100, offset: int = 1000, *, structured: bool = True) -> tuple[Exchange, bytearray]:
    exchange = Exchange(structured=structured, allocation=CONTEXT if structured else None)
    memory = bytearray(length)
    exchange.request(Command.READ, offset, length, into=memoryview(memory))
    return exchange, memory


def test_errors_carry_number_and_sentence() -> None:
    exchange, _ = reading()
    (answer,) = feed(exchange, error_chunk(1, errno.EIO, "the mirror is gone"))
    assert isinstance(answer.error, RequestFailed)
    assert (answer.error.errno, answer.error.strerror) == (errno.EIO, "READ: the mirror is gone")


def test_a_simple_error_has_its_name() -> None:
    exchange, _ = reading(structured=False)
    (answer,) = feed(exchange, simple(1, errno.EPERM))
    assert answer.error is not None and answer.error.strerror == "READ: EPERM"


def test_an_error_after_data_is_an_error() -> None:
    exchange, _ = reading()
    sent = data_chunk(1, 1000, bytes(50), done=False)
    failed = chunk(1, Chunk.ERROR_OFFSET, struct.pack(">IHQ", errno.EIO, 0, 1050))
    (answer,) = feed(exchange, sent + failed)
    assert answer.error is not None and answer.error.errno == errno.EIO


def test_extents_end_where_the_question_does() -> None:
    exchange = Exchange(structured=True, allocation=CONTEXT)
    cookie, _ = exchange.request(Command.BLOCK_STATUS, 0, 100)
    body = struct.pack(">IIIII", CONTEXT, 60, 0, 1000, 3)
    (answer,) = feed(exchange, chunk(cookie, Chunk.BLOCK_STATUS, body))
    assert answer.extents == (Extent(60, hole=False, zero=False), Extent(40, hole=True, zero=True))


STATUS = struct.pack(">III", CONTEXT, 10, 0)


@pytest.mark.parametrize(
    ("sent", "sentence"),
    [
        (b"garbage!", "the magic of none"),
        (simple(99), "99 that is not under way"),
        (simple(1), "although structured ones were agreed on"),
        (data_chunk(1, 999, bytes(10)), "is answered with"),
        (data_chunk(1, 1000, bytes(101)), "is answered with"),
        (data_chunk(1, 1000, bytes(40), done=False) + data_chunk(1, 1030, bytes(70)), "overlap at 1030"),
        (data_chunk(1, 1060, bytes(40), done=False) + data_chunk(1, 1000, bytes(61)), "overlap at 1000"),
        (data_chunk(1, 1000, bytes(99)), "with a part of them"),
        (chunk(1, Chunk.NONE), "with a part of them"),
        (chunk(1, Chunk.NONE, done=False), "is not the last"),
        (chunk(1, Chunk.NONE, b"x"), "has content"),
        (chunk(1, Chunk.OFFSET_HOLE, struct.pack(">QI", 1000, 0)), "is answered with"),
        (chunk(1, Chunk.OFFSET_HOLE, b"short"), "a hole in 5 bytes"),
        (chunk(1, Chunk.BLOCK_STATUS, STATUS), "answer a READ"),
        (chunk(1, 77, b"x"), "which nobody agreed on"),
        (chunk(1, Chunk.ERROR, b"abc"), "an error of 3 bytes"),
        (chunk(1, Chunk.ERROR, struct.pack(">IH", 0, 0)), "no number"),
        (chunk(1, Chunk.ERROR, struct.pack(">IH", 5, 9)), "longer than itself"),
        (struct.pack(">IHHQI", p.STRUCTURED_REPLY_MAGIC, 1, Chunk.ERROR, 1, 1 << 30), "announces 1073741824 bytes"),
    ],
)
def test_what_must_not_be_answered_costs_the_connection(sent: bytes, sentence: str) -> None:
    exchange, _ = reading()
    with pytest.raises(RemoteError, match=sentence):
        feed(exchange, sent)


@pytest.mark.parametrize(
    ("sent", "sentence"),
    [
        (simple(1), "without extents"),
        (chunk(1, Chunk.NONE), "without extents"),
        (chunk(1, Chunk.BLOCK_STATUS, struct.pack(">III", 1, 10, 0)), "was not agreed on"),
        (chunk(1, Chunk.BLOCK_STATUS, STATUS, done=False) * 2, "come twice"),
        (chunk(1, Chunk.BLOCK_STATUS, STATUS[:8]), "answer a BLOCK_STATUS"),
        (chunk(1, Chunk.BLOCK_STATUS, struct.pack(">III", CONTEXT, 0, 0)), "is empty"),
        (chunk(1, Chunk.BLOCK_STATUS, struct.pack(">IIIII", CONTEXT, 100, 0, 1, 0)), "begins beyond"),
        (data_chunk(1, 0, b"x"), "answers a BLOCK_STATUS"),
    ],
)
def test_what_must_not_be_said_of_extents_costs_the_connection(sent: bytes, sentence: str) -> None:
    exchange = Exchange(structured=True, allocation=CONTEXT)
    exchange.request(Command.BLOCK_STATUS, 0, 100)
    with pytest.raises(RemoteError, match=sentence):
        feed(exchange, sent)


def test_a_structured_answer_that_nobody_agreed_on_is_garbage() -> None:
    exchange, _ = reading(structured=False)
    with pytest.raises(RemoteError, match="the magic of none"):
        feed(exchange, data_chunk(1, 1000, bytes(100)))


@pytest.mark.parametrize("already", [0, 10, 30, 90, 127])
def test_an_abandoned_reads_memory_is_left_alone(already: int) -> None:
    exchange, memory = reading()
    sent = data_chunk(1, 1000, b"\xff" * 100)
    feed(exchange, sent[:already])
    before = bytes(memory)
    exchange.abandon(1)
    feed(exchange, sent[already:])
    assert memory == before
    assert exchange.outstanding == 0


def test_a_forgotten_request_gets_no_answer() -> None:
    exchange, _ = reading()
    exchange.forget(1)
    with pytest.raises(RemoteError, match="not under way"):
        feed(exchange, data_chunk(1, 1000, bytes(100)))


@given(st.binary(max_size=300), st.booleans())
def test_no_answer_makes_it_crash(sent: bytes, structured: bool) -> None:
    exchange, _ = reading(structured=structured)
    exchange.request(Command.BLOCK_STATUS, 0, 10)
    heads = [b"", struct.pack(">IHH", p.STRUCTURED_REPLY_MAGIC, 1, 1), struct.pack(">II", p.SIMPLE_REPLY_MAGIC, 0)]
    for head in heads:
        try:
            feed(exchange, head + sent)
        except RemoteError:
            return
