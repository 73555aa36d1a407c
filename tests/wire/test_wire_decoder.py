"""The decoder as a socket driver meets it: its memory, the life of messages, and its end."""

from __future__ import annotations

import random
import struct
from uuid import UUID, uuid4

import numpy as np
import pytest
import wire_golden

from crucible_emu import wire
from crucible_emu.integrity import EMPTY, ENCRYPTED, PLAIN, BlockContexts
from crucible_emu.wire import messages as m
from crucible_emu.wire.decoder import BELIEVED_BYTES, CHUNK_BYTES

U, S = UUID(int=1), UUID(int=2)
GOLDEN = {example.name: example for example in wire_golden.messages()}
RUOK, ACK = GOLDEN["Ruok"].raw, GOLDEN["WriteAck/ok"].raw


def numbered_write(number: int, size: int, *, sealed: bool = False) -> m.Write:
    """A Write whose data can be told from those of any other."""
    blocks = max(1, size // 4096)
    contexts = BlockContexts.plain(np.arange(blocks).astype(np.uint64))
    if sealed:
        nonce, tag = np.ones((blocks, 12), np.uint8), np.ones((blocks, 16), np.uint8)
        contexts = BlockContexts(np.full(blocks, ENCRYPTED, np.uint8), contexts.hash, nonce, tag)
    data = np.random.default_rng(number).integers(0, 256, size, np.uint8)
    return m.Write(U, S, number, (number,), number, contexts, memoryview(data.tobytes()))


def frame_of(message: m.Message) -> bytes:
    return b"".join(wire.encode(message))


def drive(decoder: wire.Decoder, stream: bytes, at_once: int | None = None) -> list[m.Message]:
    """What a driver does: receive into the decoder's memory, at most ``at_once`` bytes at a time."""
    source, messages = memoryview(stream), []
    while len(source):
        room = decoder.buffer()
        count = min(len(room), len(source), at_once or len(source))
        room[:count] = source[:count]
        source = source[count:]
        messages += decoder.received(count)
    return messages


def address(data: memoryview) -> int:
    return int(np.frombuffer(data, np.uint8).__array_interface__["data"][0])


@pytest.mark.parametrize("at_once", [None, 7, 4096, 100_000])
def test_messages_outlive_later_receives(at_once: int | None) -> None:
    """No later byte is ever written where an earlier message's data lie."""
    chance = random.Random(1)
    sizes = [chance.choice((0, 16, 512, 4096, 60_000, 300_000, 3 * 2**20)) for _ in range(30)]
    if at_once == 7:
        sizes = [size for size in sizes if size < 10_000]
    sent = [numbered_write(number, size) for number, size in enumerate(sizes)]
    decoder = wire.Decoder()
    received = drive(decoder, b"".join(map(frame_of, sent)), at_once)
    drive(decoder, RUOK * 100_000)
    assert received == sent


def test_data_are_views_that_may_be_changed_without_harm() -> None:
    """Sealed blocks are decrypted where they lie."""
    decoder = wire.Decoder()
    first, second = drive(decoder, frame_of(numbered_write(1, 4096)) + frame_of(numbered_write(2, 4096)))
    assert isinstance(first, m.Write)
    assert not first.data.readonly
    np.frombuffer(first.data, np.uint8)[:] = 0  # type: ignore[index]
    assert second == numbered_write(2, 4096)


def test_receive_copies_what_it_is_given() -> None:
    given = bytearray(frame_of(numbered_write(1, 512)))
    (message,) = wire.Decoder().receive(given)
    given[:] = bytes(len(given))
    assert message == numbered_write(1, 512)


@pytest.mark.parametrize("sealed", [False, True])
def test_large_frames_are_placed_at_a_page_and_moved_once_at_most(sealed: bool) -> None:
    stream = frame_of(numbered_write(1, 2**20, sealed=sealed))
    decoder = wire.Decoder()
    for number in range(5):
        first_room = decoder.buffer()
        if number:  # the whole frame has room there, and not one byte more: nothing will have to be moved
            assert len(first_room) == len(stream)
        place = address(first_room)
        (message,) = drive(decoder, stream)
        assert isinstance(message, m.Write)
        assert address(message.data) % 4096 == 0
        assert (address(message.data) + 2**20 == place + len(stream)) == (number > 0)


def test_large_reads_are_placed_at_a_page() -> None:
    blocks = BlockContexts.empty(256)
    response = m.ReadResponse(U, S, 1, blocks, memoryview(bytes(2**20)))
    (message,) = drive(wire.Decoder(), frame_of(response))
    assert message == response
    assert isinstance(message, m.ReadResponse)
    assert address(message.data) % 4096 == 0


def test_expectation_of_large_frames_is_given_up() -> None:
    decoder = wire.Decoder()
    drive(decoder, frame_of(numbered_write(1, 2**20)))
    assert len(decoder.buffer()) > 2**20
    rooms = []
    for number in range(500):
        drive(decoder, frame_of(numbered_write(number, 4096)))
        rooms.append(len(decoder.buffer()))
    assert max(rooms[:100]) > CHUNK_BYTES
    assert max(rooms[-200:]) <= CHUNK_BYTES


@pytest.mark.parametrize("blocks", [1, 2, 300])
@pytest.mark.parametrize("kind", [EMPTY, PLAIN, ENCRYPTED, None])
def test_contexts_are_arrays_of_their_own(blocks: int, kind: int | None) -> None:
    """Aligned, contiguous, not in the receive buffer; zero where nothing is known."""
    kinds = np.full(blocks, kind, np.uint8) if kind is not None else (np.arange(blocks) % 3).astype(np.uint8)
    nonce, tag = np.full((blocks, 12), 7, np.uint8), np.full((blocks, 16), 9, np.uint8)
    contexts = BlockContexts(kinds, np.full(blocks, 2**64 - 1, np.uint64), nonce, tag)
    sent: list[m.Message] = [m.ReadResponse(U, S, 1, contexts, memoryview(b"x"))]
    if EMPTY not in kinds:
        sent.append(m.Write(U, S, 1, (), 0, contexts, memoryview(b"x")))
    decoder = wire.Decoder()
    buffer = np.frombuffer(decoder.buffer(), np.uint8)
    for message in drive(decoder, b"".join(map(frame_of, sent))):
        found = message.contexts if isinstance(message, m.Write) else message.blocks  # type: ignore[attr-defined]
        for array in (found.kind, found.hash, found.nonce, found.tag):
            if array is not None:
                assert array.flags.c_contiguous
                assert array.flags.aligned
                assert not np.shares_memory(array, buffer)
        known = kinds != EMPTY if isinstance(message, m.Write) else kinds == PLAIN
        assert found.kind.tolist() == kinds.tolist()
        assert found.hash.tolist() == np.where(known, np.uint64(2**64 - 1), np.uint64(0)).tolist()
        sealed = kinds == ENCRYPTED
        for array, value in ((found.nonce, 7), (found.tag, 9)):
            assert (array is not None) == bool(sealed.any())
            if array is not None:
                assert (array[sealed] == value).all()
                assert not array[~sealed].any()


def test_acks_need_one_chunk_for_ever() -> None:
    decoder = wire.Decoder()
    place = address(decoder.buffer())
    for _ in range(20):
        assert len(drive(decoder, ACK * 5000)) == 5000
        assert address(decoder.buffer()) == place


@pytest.mark.parametrize("hint", [1, 100, CHUNK_BYTES, 2**20, 2**40])
def test_there_is_always_room(hint: int) -> None:
    decoder = wire.Decoder()
    stream = frame_of(numbered_write(1, 10_000)) * 20 + frame_of(numbered_write(2, 5 * 2**20)) + ACK * 10
    source, messages = memoryview(stream), []
    while len(source):
        room = decoder.buffer(hint)
        assert len(room) >= 1
        assert len(room) <= max(BELIEVED_BYTES, 6 * 2**20)
        count = min(len(room), len(source))
        room[:count] = source[:count]
        source = source[count:]
        messages += decoder.received(count)
    assert [message.job_id for message in messages] == [1] * 20 + [2] + [1000] * 10  # type: ignore[attr-defined]


def test_received_must_fit_the_room() -> None:
    decoder = wire.Decoder()
    room = decoder.buffer()
    for count in (-1, len(room) + 1):
        with pytest.raises(ValueError, match="cannot have been received"):
            decoder.received(count)
    assert decoder.received(0) == []


def test_acks_of_several_kinds_ids_and_results_in_one_run() -> None:
    """The quick way through a run of acks is left where it must be, and found again."""
    ids = [(uuid4(), uuid4()) for _ in range(3)]
    chance = random.Random(3)
    kinds = (m.WriteAck, m.FlushAck, m.BarrierAck, m.WriteUnwrittenAck, m.ExtentLiveAckId, m.ExtentLiveRepairAckId)
    failure = GOLDEN["WriteAck/err"].value.result
    sent: list[m.Message] = []
    for number in range(500):
        upstairs_id, session_id = ids[0] if chance.random() < 0.9 else chance.choice(ids)
        result = None if chance.random() < 0.9 else failure
        sent.append(chance.choice(kinds)(upstairs_id, session_id, number, result))
        if chance.random() < 0.1:
            sent.append(m.ErrorReport(upstairs_id, session_id, number, GOLDEN["ErrorReport"].value.error))
    assert drive(wire.Decoder(), b"".join(map(frame_of, sent))) == sent


def test_ids_of_one_connection_are_the_same_objects() -> None:
    first, second = drive(wire.Decoder(), frame_of(numbered_write(1, 512)) + frame_of(m.ReadRequest(U, S, 2, (), 0, 1)))
    assert first.upstairs_id is second.upstairs_id  # type: ignore[attr-defined]
    assert first.session_id is second.session_id  # type: ignore[attr-defined]


def test_messages_before_a_bad_frame_come_first() -> None:
    decoder = wire.Decoder()
    assert decoder.receive(RUOK + ACK + struct.pack("<I", 3)) == [m.Ruok(), GOLDEN["WriteAck/ok"].value]
    assert "a frame claims 3 bytes" in str(decoder.error)
    for call in (decoder.buffer, decoder.finish, lambda: decoder.receive(RUOK), lambda: decoder.received(0)):
        with pytest.raises(wire.RemoteError, match="a frame claims 3 bytes"):
            call()


def test_messages_before_a_bad_frame_come_first_when_fed_by_the_megabyte() -> None:
    decoder = wire.Decoder()
    stream = frame_of(numbered_write(1, 4096)) * 500 + struct.pack("<II", 8, 99) + RUOK * 10_000
    assert len(decoder.receive(stream)) == 500
    with pytest.raises(wire.RemoteError, match="no message 99"):
        decoder.receive(b"")


def test_impossible_frames_are_refused_without_waiting() -> None:
    for head in (struct.pack("<I", 100 * 2**20 + 1), struct.pack("<II", 100 * 2**20, 42), struct.pack("<I", 7)):
        with pytest.raises(wire.RemoteError):
            wire.Decoder().receive(head)


def test_longest_frame_is_the_limit_given() -> None:
    body = b"\0" * 92
    for longest, length in ((100, 100), (99, 100)):
        decoder = wire.Decoder(max_frame_bytes=longest)
        frame = struct.pack("<II", length, m.Ruok.TAG) + body
        if length <= longest:
            assert decoder.receive(frame) == [m.Ruok()]
        else:
            with pytest.raises(wire.RemoteError, match="at most 99 are allowed"):
                decoder.receive(frame)


@pytest.mark.parametrize("cut", range(1, len(ACK)))
def test_stream_that_ends_inside_a_frame_is_an_error(cut: int) -> None:
    decoder = wire.Decoder()
    assert decoder.receive(RUOK + ACK[:cut]) == [m.Ruok()]
    what = "WriteAck" if cut >= 8 else "a message"
    for _ in range(2):
        with pytest.raises(wire.RemoteError, match=f"^the stream ends inside {what}, after {cut} bytes"):
            decoder.finish()
    with pytest.raises(wire.RemoteError, match="the stream ends"):
        decoder.receive(ACK[cut:])


def test_stream_that_ends_between_frames_is_no_error() -> None:
    decoder = wire.Decoder()
    decoder.finish()
    decoder.receive(RUOK)
    decoder.finish()
    assert decoder.error is None


@pytest.mark.parametrize("raw", [b"", b"\x08\0\0\0", ACK[:-1], ACK + b"\0"])
def test_single_frame_must_be_whole(raw: bytes) -> None:
    with pytest.raises(wire.RemoteError, match=r"^a frame of"):
        wire.decode(memoryview(raw))


def test_single_frame_must_be_a_message() -> None:
    with pytest.raises(wire.RemoteError, match=r"^there is no message 42"):
        wire.decode(memoryview(struct.pack("<II", 8, 42)))
