"""What leaves: buffers that are not copied, nothing that a peer would refuse, and trains that equal their frames."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from uuid import UUID

import numpy as np
import pytest
import wire_golden
import wire_strategies
from hypothesis import given
from hypothesis import strategies as st

from crucible_emu import errors, wire
from crucible_emu.integrity import EMPTY, ENCRYPTED, PLAIN, BlockContexts
from crucible_emu.wire import codec
from crucible_emu.wire import messages as m
from crucible_emu.wire.constants import BLOCKS_MAX, LIST_ITEMS_MAX
from crucible_emu.wire.trains import COPIED_BYTES_MAX

U, S = UUID(int=1), UUID(int=2)
GOLDEN = {example.name: example.value for example in wire_golden.messages()}
PLAIN_ONE = BlockContexts.plain(np.array([5], np.uint64))


def frame_of(message: m.Message) -> bytes:
    return b"".join(wire.encode(message))


@pytest.mark.parametrize("name", ["Write/plain", "WriteUnwritten", "ReadResponse/plain"])
def test_block_data_are_sent_from_where_they_are(name: str) -> None:
    rows = np.arange(1024, dtype=np.uint32).view(np.uint8).reshape(8, 512)
    header, data = wire.encode(replace(GOLDEN[name], data=rows.data))
    assert np.shares_memory(np.frombuffer(data, np.uint8), rows)
    assert len(data) == 4096
    assert len(header) + len(data) == int.from_bytes(header[:4], "little")


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_everything_else_is_one_buffer(name: str) -> None:
    message = GOLDEN[name]
    bulk = isinstance(message, m.BlockWrite | m.ReadResponse) and len(message.data) > 0
    assert len(wire.encode(message)) == (2 if bulk else 1)


def lazy_zeros(size: int) -> memoryview:
    """Memory that nobody touches."""
    return np.zeros(size, np.uint8).data


SEALED_WITHOUT_SEAL = BlockContexts(np.array([ENCRYPTED], np.uint8), np.zeros(1, np.uint64))
HOLE = BlockContexts.empty(1)
HOLE_AND_BLOCK = BlockContexts(np.array([PLAIN, EMPTY], np.uint8), np.zeros(2, np.uint64))
STRANGE = BlockContexts(np.array([PLAIN, 9], np.uint8), np.zeros(2, np.uint64))
WRITE = m.Write(U, S, 1, (), 0, PLAIN_ONE, memoryview(b"x"))
RESPONSE = m.ReadResponse(U, S, 1, PLAIN_ONE, memoryview(b"x"))
UNSENDABLE: dict[str, tuple[Any, str]] = {
    "too large a write": (replace(WRITE, data=lazy_zeros(100 * 2**20)), "the frame would have 104857705 bytes"),
    "too large a response": (replace(RESPONSE, data=lazy_zeros(100 * 2**20)), "the frame would have 104857696 bytes"),
    "4 GiB of data": (replace(WRITE, data=lazy_zeros(2**32)), "the frame would have 4294967401 bytes"),
    "too large an error": (
        m.WriteAck(U, S, 1, errors.IoError("x" * (100 * 2**20))),
        "the frame would have 104857680 bytes",
    ),
    "too large by table": (m.Unknown(0, bytes(100 * 2**20)), "the frame would have 104857620 bytes"),
    "too many dependencies": (replace(WRITE, dependencies=(1,) * (LIST_ITEMS_MAX + 1)), "1048577 dependencies"),
    "too many dependencies by table": (m.Barrier(U, S, 1, (1,) * (LIST_ITEMS_MAX + 1)), "field dependencies: a list"),
    "too many blocks": (replace(WRITE, contexts=BlockContexts.empty(BLOCKS_MAX + 1)), "no context at all"),
    "too many blocks read": (replace(RESPONSE, blocks=BlockContexts.empty(BLOCKS_MAX + 1)), "204801 blocks"),
    "too many blocks written": (
        replace(WRITE, contexts=BlockContexts.plain(np.zeros(BLOCKS_MAX + 1, np.uint64))),
        "204801 blocks",
    ),
    "a write of nothing": (replace(WRITE, contexts=HOLE), "block 0 has no context at all"),
    "a write with a hole": (replace(WRITE, contexts=HOLE_AND_BLOCK), "block 1 has no context at all"),
    "a strange kind": (replace(WRITE, contexts=STRANGE), "block 1 has a context of the unknown kind 9"),
    "a strange kind read": (replace(RESPONSE, blocks=STRANGE), "block 1 has a context of the unknown kind 9"),
    "a seal that is not there": (replace(WRITE, contexts=SEALED_WITHOUT_SEAL), "carry no nonce and tag"),
    "scattered data": (replace(WRITE, data=memoryview(bytes(10))[::2]), "not contiguous"),
    "scattered response": (replace(RESPONSE, data=memoryview(bytes(10))[::2]), "not contiguous"),
    "job id above u64": (m.WriteAck(U, S, 2**64, None), "WriteAck cannot be sent"),
    "negative dependency": (m.ReadRequest(U, S, 1, (-1,), 0, 1), "ReadRequest cannot be sent"),
    "extent id above u32": (m.ExtentClose(1, 2**32), r"among repair_id 1, extent_id 4294967296"),
    "client id above u8": (replace(GOLDEN["ExtentRepair"], dest_clients=(256,)), "field dest_clients"),
    "limit above u32": (replace(GOLDEN["Flush/bare"], extent_limit=2**32), "Flush cannot be sent"),
    "half a surrogate pair": (replace(GOLDEN["Flush/bare"], snapshot_details="\ud800"), "Flush cannot be sent"),
    "half a surrogate pair in an error": (m.ExtentError(1, 2, errors.IoError("\ud800")), "field error: field detail"),
    "a host name": (m.YesItsMe(13, m.SocketAddress("localhost", 1)), "'localhost' does not appear to be an IP"),
    "port 65536": (m.YesItsMe(13, m.SocketAddress("127.0.0.1", 65536)), "port 65536 is outside 0..65535"),
    "a close result of two": (m.ExtentLiveCloseAck(U, S, 1, (1, 2)), "2 members instead of 3"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("case", UNSENDABLE)
def test_what_the_peer_would_refuse_is_not_sent(case: str) -> None:
    message, sentence = UNSENDABLE[case]
    with pytest.raises(wire.LocalError, match=sentence) as caught:
        wire.encode(message)
    assert str(caught.value).startswith(f"{type(message).__name__} cannot be sent: ")


def test_error_that_has_no_bytes() -> None:
    with pytest.raises(wire.LocalError, match=r"^MissingContextSlot cannot be encoded"):
        codec.encode_error(errors.MissingContextSlot(1, 2**32))
    with pytest.raises(wire.RemoteError, match=r"^an error cannot be decoded: there is no error 42"):
        codec.decode_error(b"\x2a\0\0\0")


@st.composite
def trains(draw: st.DrawFn) -> dict[str, Any]:
    counts = draw(st.lists(st.integers(0, 4) | st.just(1), max_size=12))
    size = draw(st.sampled_from((8, 16, COPIED_BYTES_MAX * 2)))
    blocks = sum(counts)
    rows = np.random.default_rng(draw(st.integers(0, 9))).integers(0, 256, (blocks, size), np.uint8)
    first = draw(st.integers(0, 2**64 - 20))
    return {
        "upstairs_id": draw(st.uuids()),
        "session_id": draw(st.uuids()),
        "first_job_id": first,
        "dependencies": [draw(st.lists(wire_strategies.u64, max_size=3).map(tuple)) for _ in counts],
        "starts": [draw(wire_strategies.u64) for _ in counts],
        "counts": counts,
        "contexts": draw(wire_strategies.contexts((PLAIN, ENCRYPTED), True, blocks)),
        "rows": rows,
    }


@given(train=trains(), unwritten=st.booleans())
def test_train_of_writes_is_its_frames(train: dict[str, Any], unwritten: bool) -> None:
    cls = m.WriteUnwritten if unwritten else m.Write
    frames, block = [], 0
    for index, count in enumerate(train["counts"]):
        part = slice(block, block + count)
        ids = (train["upstairs_id"], train["session_id"], train["first_job_id"] + index)
        where = (train["dependencies"][index], train["starts"][index])
        frames.append(frame_of(cls(*ids, *where, train["contexts"][part], memoryview(train["rows"][part].tobytes()))))
        block += count
    assert b"".join(wire.encode_write_train(**train, unwritten=unwritten)) == b"".join(frames)


@given(train=trains())
def test_train_of_reads_is_its_frames(train: dict[str, Any]) -> None:
    del train["contexts"], train["rows"]
    columns = zip(train["dependencies"], train["starts"], train["counts"])
    ids = (train["upstairs_id"], train["session_id"])
    frames = [
        frame_of(m.ReadRequest(*ids, train["first_job_id"] + index, needed, start, count))
        for index, (needed, start, count) in enumerate(columns)
    ]
    assert wire.encode_read_train(**train) == b"".join(frames)


@pytest.mark.parametrize("cls", [m.WriteAck, m.WriteUnwrittenAck, m.FlushAck, m.BarrierAck, m.ExtentLiveAckId])
@given(job_ids=st.lists(wire_strategies.u64, max_size=20))
def test_train_of_acks_is_its_frames(cls: type[m.Ack], job_ids: list[int]) -> None:
    frames = [frame_of(cls(U, S, job_id, None)) for job_id in job_ids]
    assert wire.encode_ack_train(cls, U, S, job_ids) == b"".join(frames)


def test_large_data_of_a_train_are_not_copied_and_small_ones_are_one_buffer() -> None:
    for size, buffers in ((COPIED_BYTES_MAX, 1), (COPIED_BYTES_MAX * 2, 6)):
        rows = np.zeros((3, size), np.uint8)
        contexts = BlockContexts.plain(np.zeros(3, np.uint64))
        train = wire.encode_write_train(U, S, 1, [()] * 3, [0, 1, 2], [1, 1, 1], contexts, rows)
        assert len(train) == buffers
        assert all(np.shares_memory(np.frombuffer(data, np.uint8), rows) for data in train[1::2])


def test_train_that_cannot_be_sent_is_refused() -> None:
    rows = np.zeros((2, 512), np.uint8)
    two = BlockContexts.plain(np.zeros(2, np.uint64))
    good: dict[str, Any] = {
        "upstairs_id": U,
        "session_id": S,
        "first_job_id": 1000,
        "dependencies": [(), (1,)],
        "starts": [0, 1],
        "counts": [1, 1],
        "contexts": two,
        "rows": rows,
    }
    assert wire.encode_write_train(**good)
    for changes, sentence in (
        ({"starts": [0]}, r"differ in number: \[1, 2\]"),
        ({"counts": [1, 2]}, "a train of 3 blocks has 2 contexts and 2 rows"),
        ({"contexts": two[:1]}, "a train of 2 blocks has 1 contexts and 2 rows"),
        ({"rows": np.zeros((2, 1024), np.uint8)[:, ::2]}, "not contiguous"),
        ({"contexts": BlockContexts.empty(2)}, "block 0 has no context at all"),
        ({"first_job_id": 2**64}, "cannot be sent"),
        ({"dependencies": [(), (1,) * (LIST_ITEMS_MAX + 1)]}, "1048577 dependencies"),
        ({"rows": np.zeros((2, 2**26), np.uint8), "counts": [2, 0]}, "job 1000 has 2 blocks .* 134217842 bytes"),
    ):
        with pytest.raises(wire.LocalError, match=sentence):
            wire.encode_write_train(**{**good, **changes})
    for job_ids in ([2**64], [2**64] * 10, [-1] * 10):
        with pytest.raises(wire.LocalError, match="a train of WriteAck cannot be sent"):
            wire.encode_ack_train(m.WriteAck, U, S, job_ids)
    with pytest.raises(wire.LocalError, match="a train of reads cannot be sent"):
        wire.encode_read_train(U, S, 2**64, [()], [0], [1])
    with pytest.raises(wire.LocalError, match="1048577 dependencies"):
        wire.encode_read_train(U, S, 1, [(1,) * (LIST_ITEMS_MAX + 1)], [0], [1])
