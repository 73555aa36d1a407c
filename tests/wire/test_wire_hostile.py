"""A peer that misbehaves costs one RemoteError that names the message, and little memory."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

import numpy as np
import pytest
import wire_fuzz
import wire_golden
import wire_strategies
from hypothesis import given
from hypothesis import strategies as st

from crucible_emu import wire
from crucible_emu.integrity import PLAIN, BlockContexts
from crucible_emu.wire import messages as m
from crucible_emu.wire.constants import BLOCKS_MAX, LIST_ITEMS_MAX

U = UUID("00112233-4455-6677-8899-aabbccddeeff")
S = UUID("0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0")
MIB = 1 << 20
GOLDEN = {example.name: example.raw for example in wire_golden.messages()}


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


IDS = u64(16) + U.bytes + u64(16) + S.bytes
JOB = IDS + u64(1000)


def framed(cls: type[m.Message], body: bytes) -> bytes:
    return struct.pack("<II", 8 + len(body), cls.TAG) + body


def changed(example: str, at: int, value: bytes) -> bytes:
    raw = GOLDEN[example]
    return raw[:at] + value + raw[at + len(value) :]


WRITE = JOB + u64(0) + u64(8)  # no dependencies, start 8
REFUSED = {
    "bad bool": (changed("HereIAm", 68, b"\2"), "HereIAm cannot be decoded: field read_only: a bool is 2"),
    "bad bool in a list": (changed("ExtentVersions", 65, b"\2"), "ExtentVersions .* field dirty_bits: a bool is 2"),
    "bad bool in a tuple": (changed("ExtentLiveCloseAck/ok", 84, b"\7"), "ExtentLiveCloseAck .* a bool is 7"),
    "bad option": (changed("LastFlush/some", 8, b"\2"), "LastFlush .* an option begins with 2"),
    "bad option in a flush": (changed("Flush/full", 88, b"\3"), "Flush .* an option begins with 3"),
    "bad result": (changed("WriteAck/ok", 64, b"\2"), "WriteAck .* field result: it begins with 2"),
    "result Err without an error": (changed("WriteAck/ok", 64, b"\1"), "WriteAck .* the frame ends too early"),
    "bad result of a read": (
        changed("ReadResponse/plain", 64, b"\2"),
        "ReadResponse .* field blocks: it begins with 2",
    ),
    "bad result of a close": (
        changed("ExtentLiveCloseAck/ok", 64, b"\2"),
        "ExtentLiveCloseAck .* a result begins with 2",
    ),
    "bad UTF-8": (changed("ExtentError", 32, b"\xff"), "ExtentError .* a text is not UTF-8"),
    "half a surrogate pair": (changed("ExtentError", 32, b"\xed\xa0\x80"), "ExtentError .* a text is not UTF-8"),
    "bad UUID length": (changed("UuidMismatch", 8, b"\x11"), "UuidMismatch .* a UUID claims 17 bytes"),
    "bad UUID length in an ack": (changed("WriteAck/ok", 8, b"\x0f"), "WriteAck .* a UUID claims 15 bytes"),
    "bad UUID length in a write": (changed("Write/plain", 32, b"\0"), "Write .* a UUID claims 0 bytes"),
    "bad address family": (changed("YesItsMe/v4", 12, b"\2"), "YesItsMe .* a socket address begins with 2"),
    "unknown error": (changed("WriteAck/err", 68, b"\x2a"), "WriteAck .* there is no error 42"),
    "unknown negotiation error": (
        framed(m.ErrorReport, JOB + u32(41) + u32(8)),
        "ErrorReport .* there is no negotiation error 8",
    ),
    "unknown context": (changed("ReadResponse/plain", 76, b"\3"), "ReadResponse .* there is no block context 3"),
    "unknown context, high byte": (
        changed("ReadResponse/plain", 77, b"\1"),
        "ReadResponse .* there is no block context 258",
    ),
    "bad option of a context": (changed("Write/plain", 96, b"\2"), "Write .* an encryption context's option is 2"),
    "contexts cut short": (framed(m.Write, WRITE + u64(2) + bytes(9)), "Write .* ends inside the block contexts"),
    "sealed context cut short": (framed(m.Write, WRITE + u64(1) + u64(1) + b"\1" + bytes(20)), "Write .* ends inside"),
    "read contexts cut short": (
        framed(m.ReadResponse, JOB + u32(0) + u64(3) + bytes(8)),
        "ReadResponse .* ends inside",
    ),
    "no data length": (framed(m.Write, WRITE + u64(1) + bytes(9)), "Write .* ends before its last field"),
    "too much data announced": (changed("Write/plain", 97, b"\x11"), "Write .* 17 bytes of data are announced, .* 16"),
    "too much read data announced": (
        changed("ReadResponse/empty", 80, u64(2**64 - 1)),
        "ReadResponse .* bytes of data are announced, .* 16",
    ),
    "too many dependencies": (changed("ReadRequest", 64, u64(2**61)), "ReadRequest .* are announced"),
    "more dependencies than make sense": (
        framed(m.Barrier, JOB + u64(LIST_ITEMS_MAX + 1) + bytes(8 * LIST_ITEMS_MAX + 8)),
        "Barrier .* more than",
    ),
    "more contexts than make sense": (
        framed(m.ReadResponse, JOB + u32(0) + u64(BLOCKS_MAX + 1) + bytes(4 * BLOCKS_MAX + 12)),
        "ReadResponse .* more than",
    ),
    "more written contexts than make sense": (
        framed(m.Write, WRITE + u64(BLOCKS_MAX + 1) + bytes(9 * BLOCKS_MAX + 17)),
        "Write .* more than",
    ),
    "too many versions": (changed("HereIAm", 70, u64(2**62)), "HereIAm .* 4611686018427387904 list items"),
    "too long a text": (changed("ExtentError", 24, u64(2**40)), "ExtentError .* 1099511627776 bytes"),
    "fixed part cut short": (framed(m.ExtentFlush, bytes(28)), "ExtentFlush .* before field gen_number"),
    "block size 0": (changed("RegionInfo", 8, u64(0)), "RegionInfo .* block size 0 is not usable"),
    "shift that disagrees": (changed("RegionInfo", 24, u32(12)), "RegionInfo .* block size 512 and shift 12 disagree"),
    "other database version": (changed("RegionInfo", 65, u64(2)), r"RegionInfo .* database versions \[1, 2\]"),
    "message 42": (struct.pack("<II", 8, 42), "there is no message 42"),
    "LEN 0": (u32(0), "a frame claims 0 bytes"),
    "LEN 3": (u32(3), "a frame claims 3 bytes"),
    "LEN 7": (u32(7), "a frame claims 7 bytes"),
    "LEN 100 MiB and 1": (u32(100 * MIB + 1), "the frame of a message claims 104857601 bytes"),
    "LEN 4 GiB": (struct.pack("<II", 2**32 - 1, m.Write.TAG), "the frame of Write claims 4294967295 bytes"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_frame_is_refused_by_name(case: str) -> None:
    raw, sentence = REFUSED[case]
    decoder = wire.Decoder()
    with pytest.raises(wire.RemoteError, match=f"^{sentence}"):
        decoder.receive(raw)
    assert decoder.error is not None


@pytest.mark.parametrize("case", REFUSED)
def test_bad_frame_is_refused_in_pieces_too(case: str) -> None:
    raw, _ = REFUSED[case]
    pieces = [raw[at : at + 1] for at in range(len(raw))] if len(raw) < 1000 else [raw[:-1], raw[-1:]]
    assert wire_fuzz.outcome(pieces) == ([], True)


@pytest.mark.parametrize("case", REFUSED)
def test_bad_frame_is_refused_behind_good_ones_too(case: str) -> None:
    """What is quicker for ids and messages like the last ones is not quicker to believe."""
    raw, sentence = REFUSED[case]
    for good in ("WriteAck/ok", "ReadRequest", "Write/plain"):
        decoder = wire.Decoder()
        assert len(decoder.receive(GOLDEN[good] * 3 + raw)) == 3
        with pytest.raises(wire.RemoteError, match=f"^{sentence}"):
            decoder.finish()


@given(noise=st.binary(max_size=400), data=st.data())
def test_garbage_ends_in_messages_or_one_error(noise: bytes, data: st.DataObject) -> None:
    pieces = data.draw(wire_strategies.cuts(noise))
    messages, _ = wire_fuzz.outcome(pieces)
    assert all(type(message) in m.MESSAGES for message in messages)


@given(tag=st.integers(0, 41), body=st.binary(max_size=300))
def test_garbage_in_a_right_frame_ends_in_a_message_or_one_error(tag: int, body: bytes) -> None:
    messages, refused = wire_fuzz.outcome([struct.pack("<II", 8 + len(body), tag) + body])
    assert [type(message) for message in messages] == ([] if refused else [m.MESSAGES[tag]])


@given(message=wire_strategies.any_message, data=st.data())
def test_changed_byte_ends_in_messages_or_one_error(message: m.Message, data: st.DataObject) -> None:
    raw = bytearray(b"".join(wire.encode(message)))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    messages, _ = wire_fuzz.outcome(data.draw(wire_strategies.cuts(bytes(raw))))
    for accepted in messages:
        assert wire.decode(memoryview(b"".join(wire.encode(accepted)))) == accepted


@pytest.mark.long
def test_slice_of_the_fuzz() -> None:
    """In full: ``python tests/wire/wire_fuzz.py`` (100,000 frames, half a minute)."""
    counts = wire_fuzz.run(4_000, seed=42)
    assert counts["accepted"] > 100
    assert counts["refused"] > 100


@contextmanager
def memory_peak() -> Iterator[list[int]]:
    """The most bytes that were held at once inside the block, beyond those at its start."""
    peak: list[int] = []
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        yield peak
        peak.append(tracemalloc.get_traced_memory()[1] - before)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("announced", [100 * MIB, 10 * MIB])
@pytest.mark.parametrize("cls", [m.Write, m.ExtentVersions])
def test_announced_bytes_cost_little_before_they_come(announced: int, cls: type[m.Message]) -> None:
    head = struct.pack("<II", announced, cls.TAG) + WRITE + u64(1000)
    with memory_peak() as peak:
        decoder = wire.Decoder()
        assert decoder.receive(head) == []
        assert len(decoder.buffer()) > 0
    assert peak[0] < 2.5 * MIB


COUNTS = [2**64 - 1, 2**40, 2**28, 100 * MIB]


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize(
    ("cls", "start", "end"),
    [
        (m.HereIAm, u32(13) + IDS + u64(1) + b"\0\0", b""),
        (m.ExtentRepair, bytes(13) + u32(0) + bytes(6), b""),
        (m.ExtentVersions, b"", b""),
        (m.ExtentVersions, u64(0), b""),
        (m.ExtentVersions, u64(0) + u64(0), b""),
        (m.ReadRequest, JOB, bytes(16)),
        (m.Barrier, JOB, b""),
        (m.Write, WRITE, u64(0)),
        (m.Write, WRITE + u64(0), b""),
        (m.ReadResponse, JOB + u32(0), u64(0)),
        (m.ErrorReport, JOB + u32(1), b""),
        (m.Unknown, u32(0), b""),
    ],
)
def test_announced_counts_cost_nothing(cls: type[m.Message], start: bytes, end: bytes, count: int) -> None:
    raw = framed(cls, start + u64(count) + bytes(64) + end)
    wire.Decoder().receive(GOLDEN["Ruok"])  # what is made once is not counted
    with memory_peak() as peak, pytest.raises(wire.RemoteError, match=f"^{cls.__name__} "):
        wire.Decoder().receive(raw)
    assert peak[0] < 0.5 * MIB


def large_write(size: int) -> bytes:
    contexts = BlockContexts.plain(np.arange(size // 4096).astype(np.uint64))
    return b"".join(wire.encode(m.Write(U, S, 1, (), 0, contexts, memoryview(bytes(size)))))


def test_memory_is_at_most_one_frame_and_what_was_fed() -> None:
    raw = large_write(12 * MIB)
    with memory_peak() as peak:
        decoder = wire.Decoder()
        for at in range(0, len(raw) - 1, 65536):
            assert decoder.receive(raw[at : min(at + 65536, len(raw) - 1)]) == []
        assert len(decoder.receive(raw[-1:])) == 1
    # Growing holds the old and the new memory for a moment: what was fed, and at most one frame.
    assert peak[0] < 2 * len(raw)


def test_stream_of_dropped_messages_holds_no_more_than_a_chunk() -> None:
    raw = large_write(64 * 1024) + GOLDEN["WriteAck/ok"] * 10
    decoder = wire.Decoder()
    decoder.receive(raw)
    with memory_peak() as peak:
        for _ in range(300):
            assert len(decoder.receive(raw)) == 11
    assert peak[0] < MIB


def test_small_ints_do_not_become_many_objects() -> None:
    """A frame full of dependencies is the worst there is: it becomes Python integers."""
    raw = framed(m.Barrier, JOB + u64(LIST_ITEMS_MAX) + np.arange(2**40, 2**40 + LIST_ITEMS_MAX).tobytes())
    with memory_peak() as peak:
        (barrier,) = wire.Decoder().receive(raw)
    assert isinstance(barrier, m.Barrier)
    assert len(barrier.dependencies) == LIST_ITEMS_MAX
    assert peak[0] < 100 * MIB


def test_dead_decoder_holds_no_frame() -> None:
    raw = bytearray(large_write(4 * MIB))
    raw[72 + 8 + 8 + 8] = 2  # the first context's option
    decoder = wire.Decoder()
    with memory_peak() as peak:
        with pytest.raises(wire.RemoteError, match="option is 2"):
            decoder.receive(raw)
        kept = tracemalloc.get_traced_memory()[0]
    assert peak[0] > 4 * MIB
    assert kept < 0.5 * MIB


def test_mixed_kinds_in_a_large_frame_are_no_trouble() -> None:
    """As many blocks as any frame may have, alternating in kind, so that every one is walked."""
    count = BLOCKS_MAX
    kind = np.where(np.arange(count) % 2 == 0, 0, PLAIN).astype(np.uint8)
    hashes = np.where(kind == PLAIN, np.arange(count), 0).astype(np.uint64)
    response = m.ReadResponse(U, S, 1, BlockContexts(kind, hashes), memoryview(bytes(count)))
    raw = b"".join(wire.encode(response))
    with memory_peak() as peak:
        (decoded,) = wire.Decoder().receive(raw)
        assert decoded == response
    assert peak[0] < 40 * MIB
