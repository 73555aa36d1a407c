"""Runs: the same messages as one by one, however the bytes were cut, and nothing that is not of their form."""

from __future__ import annotations

import random
import struct
from typing import Any
from uuid import UUID

import numpy as np
import pytest
import wire_strategies
from hypothesis import given
from hypothesis import strategies as st

from crucible_emu import wire
from crucible_emu.errors import IoError, RemoteError
from crucible_emu.integrity import EMPTY, ENCRYPTED, PLAIN, BlockContexts
from crucible_emu.wire import messages as m
from crucible_emu.wire.runs import (
    RUN_FRAME_BYTES_MAX,
    AckRun,
    ReadRequestRun,
    ReadResponseRun,
    RequestRun,
    ResponseFrames,
    Run,
    WriteRun,
)

U, S, OTHER = UUID(int=1), UUID(int=2), UUID(int=3)


def plain(value: int) -> BlockContexts:
    return BlockContexts(np.array([PLAIN], np.uint8), np.array([value], np.uint64))


def block(number: int, size: int = 512) -> memoryview:
    return memoryview(random.Random(number).randbytes(size))


def write(number: int, **other: Any) -> m.Write:
    fields: dict[str, Any] = {"dependencies": (), "contexts": BlockContexts.plain(np.array([number], np.uint64))}
    fields = {"upstairs_id": U, "session_id": S, "job_id": number, "start": number, "data": block(number)} | fields
    return m.Write(**(fields | other))


def response(number: int) -> m.ReadResponse:
    return m.ReadResponse(U, S, number, plain(number), block(number))


def sealed(*numbers: int, known: bool = True) -> BlockContexts:
    """Contexts of encrypted blocks; their hashes are ``known`` in writes only."""
    seals = np.frombuffer(b"".join(bytes(block(number, 28)) for number in numbers), np.uint8).reshape(-1, 28)
    hashes = np.array(numbers if known else [0] * len(numbers), np.uint64)
    return BlockContexts(np.full(len(numbers), ENCRYPTED, np.uint8), hashes, seals[:, :12], seals[:, 12:])


def sealed_write(number: int, **other: Any) -> m.Write:
    return write(number, contexts=sealed(number), **other)


def sealed_response(number: int) -> m.ReadResponse:
    return m.ReadResponse(U, S, number, sealed(number, known=False), block(number))


def frames(messages: list[m.Message]) -> bytes:
    return b"".join(b"".join(wire.encode(message)) for message in messages)


def flat(messages: list[m.Message]) -> list[m.Message]:
    return [each for message in messages for each in (message.messages() if isinstance(message, Run) else [message])]


def received(raw: bytes) -> list[m.Message]:
    """What comes of ``raw`` after a message that tells the ids."""
    return wire.Decoder(runs=True).receive(frames([m.Flush(U, S, 0, (), 0, 0, None, None)]) + raw)[1:]


def test_messages_of_one_kind_come_as_one_run() -> None:
    writes: list[m.Message] = [write(1), write(2, dependencies=(1,)), write(9, dependencies=tuple(range(15)))]
    (run,) = received(frames(writes))
    assert isinstance(run, WriteRun)
    assert (run.job_ids, run.starts, run.hashes) == ([1, 2, 9], [1, 2, 9], [1, 2, 9])
    assert run.dependencies == [(), (1,), tuple(range(15))]
    assert run.messages() == writes


def test_encrypted_writes_and_answers_come_as_runs_of_their_own() -> None:
    writes: list[m.Message] = [sealed_write(1), sealed_write(2, dependencies=(1,)), write(3), sealed_write(4)]
    runs = received(frames(writes))
    assert [type(run) for run in runs] == [WriteRun] * 3
    assert [run.seals for run in runs if isinstance(run, WriteRun)] == [
        [bytes(block(1, 28)), bytes(block(2, 28))],
        None,
        [bytes(block(4, 28))],
    ]
    assert flat(runs) == writes
    answers: list[m.Message] = [sealed_response(4), sealed_response(5), response(6)]
    runs = received(frames(answers))
    assert [type(run) for run in runs] == [ReadResponseRun] * 2
    assert flat(runs) == answers


def test_some_of_a_run() -> None:
    plain_ones: list[m.Message] = [write(1), write(2, dependencies=(1,)), write(3)]
    sealed_ones: list[m.Message] = [sealed_write(4), sealed_write(5, dependencies=(4,)), sealed_write(6)]
    reads: list[m.Message] = [m.ReadRequest(U, S, number, (number - 1,), 7, 1) for number in (7, 8, 9)]
    for messages in (plain_ones, sealed_ones, reads):
        (run,) = received(frames(messages))
        assert isinstance(run, RequestRun)
        assert run.only([2, 0]).messages() == [messages[2], messages[0]]


def test_each_kind_is_a_run_of_its_own() -> None:
    asked: list[m.Message] = [m.ReadRequest(U, S, 4, (), 7, 1), m.ReadRequest(U, S, 5, (4,), 8, 1)]
    answered: list[m.Message] = [response(4), response(5)]
    acks: list[m.Message] = [m.WriteAck(U, S, 6, None), m.WriteAck(U, S, 7, None), m.FlushAck(U, S, 8, None)]
    runs = received(frames([*asked, write(1), *answered, *acks]))
    assert [type(run) for run in runs] == [ReadRequestRun, WriteRun, ReadResponseRun, AckRun, AckRun]
    assert flat(runs) == [*asked, write(1), *answered, *acks]


TWO_BLOCKS = BlockContexts.plain(np.array([1, 2], np.uint64))
NO_RUNS: dict[str, m.Message] = {
    "two blocks": write(1, contexts=TWO_BLOCKS),
    "a write of two sealed blocks": write(1, contexts=sealed(1, 2)),
    "many dependencies": write(1, dependencies=tuple(range(16))),
    "another session": write(1, session_id=OTHER),
    "an unwritten one": m.WriteUnwritten(U, S, 1, (), 1, plain(1), block(1)),
    "a long one": write(1, data=block(1, RUN_FRAME_BYTES_MAX)),
    "a read of two": m.ReadRequest(U, S, 1, (), 7, 2),
    "a hole": m.ReadResponse(U, S, 1, BlockContexts(np.array([EMPTY], np.uint8), np.zeros(1, np.uint64)), block(1)),
    "a failed read": m.ReadResponse(U, S, 1, IoError("x"), memoryview(b"")),
    "a failed write": m.WriteAck(U, S, 1, IoError("x")),
}


@pytest.mark.parametrize("name", NO_RUNS)
def test_what_is_of_another_form_comes_alone(name: str) -> None:
    message = NO_RUNS[name]
    assert received(frames([message])) == [message]
    # Behind it the ids have to be learnt again where it had others.
    assert flat(received(frames([write(2), message, write(3)]))) == [write(2), message, write(3)]


def test_a_frame_with_a_gap_before_its_data_is_no_part_of_a_run() -> None:
    raw = bytearray(frames([write(1)]))
    raw[:4] = struct.pack("<I", len(raw) + 3)
    raw[-512:-512] = b"gap"
    assert received(bytes(raw)) == [write(1)]


ANY_FORM: list[m.Message] = [write(1), write(2, dependencies=(1, 5)), response(3), m.ReadRequest(U, S, 5, (), 7, 1)]
ANY_FORM += [sealed_write(1), sealed_write(2, dependencies=(1, 5)), sealed_response(3)]
ANY_FORM += [m.WriteAck(U, S, 6, None), m.WriteAck(U, S, 7, None), m.FlushAck(U, S, 8, None)]
ANY_FORM += [message for name, message in NO_RUNS.items() if name != "a long one"]
likely = st.sampled_from(ANY_FORM)


@given(st.data(), st.lists(likely | wire_strategies.any_message, max_size=8))
def test_any_messages_in_any_pieces_are_the_same_with_runs(data: st.DataObject, messages: list[m.Message]) -> None:
    decoder, found = wire.Decoder(runs=True), []
    for piece in data.draw(wire_strategies.cuts(frames(messages))):
        found += decoder.receive(piece)
    decoder.finish()
    assert flat(found) == messages


@given(st.lists(likely, min_size=1, max_size=4), st.data())
def test_damaged_bytes_are_the_same_with_runs(messages: list[m.Message], data: st.DataObject) -> None:
    raw = bytearray(frames(messages))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    outcomes = []
    for runs in (False, True):
        decoder = wire.Decoder(runs=runs)
        try:
            found = flat(decoder.receive(bytes(raw)))
        except RemoteError:
            found = []
        outcomes.append((found, str(decoder.error)))
    assert outcomes[0] == outcomes[1]


def test_the_data_of_a_run_outlive_later_receives() -> None:
    decoder = wire.Decoder(runs=True)
    sent: list[m.Message] = [write(number) for number in range(2000)]
    found = [message for each in sent for message in decoder.receive(frames([each]))]
    assert flat(found) == sent


def test_response_frames_are_those_of_the_messages() -> None:
    made = ResponseFrames(U, S, [4, 5, 9], 512)
    for out, number in zip(made.outs, (4, 5, 9)):
        out[:] = block(number)
    assert bytes(made.prove([4, 5, 9])) == frames([response(4), response(5), response(9)])


def test_sealed_response_frames_are_those_of_the_messages() -> None:
    made = ResponseFrames(U, S, [4, 5, 9], 512, sealed=True)
    for out, number in zip(made.outs, (4, 5, 9)):
        out[:] = block(number)
    seals = [bytes(block(number, 28)) for number in (4, 5, 9)]
    assert bytes(made.seal(seals)) == frames([sealed_response(4), sealed_response(5), sealed_response(9)])
