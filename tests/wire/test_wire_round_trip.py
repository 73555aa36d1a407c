"""Every message survives the way to bytes and back, in whatever pieces, by hand and by table alike."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
import wire_golden
import wire_strategies
from hypothesis import given
from hypothesis import strategies as st

from crucible_emu import wire
from crucible_emu.wire import codec
from crucible_emu.wire import messages as m
from crucible_emu.wire.frames import encode_by_table

EVERY_CLASS = pytest.mark.parametrize("cls", m.MESSAGES, ids=lambda cls: cls.__name__)


def frame_of(message: m.Message) -> bytes:
    return b"".join(wire.encode(message))


@EVERY_CLASS
@given(data=st.data())
def test_message_comes_back_by_hand_and_by_table(cls: type[m.Message], data: st.DataObject) -> None:
    message = data.draw(wire_strategies.message(cls))
    raw = frame_of(message)
    assert int.from_bytes(raw[:4], "little") == len(raw)
    decoded = wire.decode(memoryview(raw))
    assert type(decoded) is cls
    assert decoded == message
    assert frame_of(decoded) == raw
    # What is done by hand is what the catalogue says.
    assert b"".join(encode_by_table(message)) == raw
    assert codec.MESSAGE.decode(memoryview(raw), 4)[0] == message


@EVERY_CLASS
@given(data=st.data())
def test_bytes_behind_the_last_field_are_ignored(cls: type[m.Message], data: st.DataObject) -> None:
    """Of a bulk message they are the beginning of the frame's end, of which the last L bytes are the data (§1.3)."""
    message: Any = data.draw(wire_strategies.message(cls))
    raw, more = frame_of(message), data.draw(st.binary(min_size=1, max_size=9))
    decoded: Any = wire.decode(memoryview((len(raw) + len(more)).to_bytes(4, "little") + raw[4:] + more))
    if isinstance(message, m.BlockWrite | m.ReadResponse):
        length = len(message.data)
        assert bytes(decoded.data) == (raw + more)[len(raw) + len(more) - length :]
        assert decoded.job_id == message.job_id
    else:
        assert decoded == message


@EVERY_CLASS
@given(data=st.data())
def test_short_frame_is_refused_or_whole(cls: type[m.Message], data: st.DataObject) -> None:
    """Cut anywhere, with LEN put right, a frame is an error that names the message, never another exception."""
    raw = frame_of(data.draw(wire_strategies.message(cls)))
    if len(raw) == 8:
        return
    cut = data.draw(st.integers(8, len(raw) - 1))
    with pytest.raises(wire.RemoteError, match=f"^{cls.__name__} cannot be decoded: "):
        wire.decode(memoryview(cut.to_bytes(4, "little") + raw[4:cut]))


@given(sent=st.lists(wire_strategies.any_message, max_size=6), data=st.data())
def test_stream_in_any_pieces_gives_the_same_messages(sent: list[m.Message], data: st.DataObject) -> None:
    raw = b"".join(map(frame_of, sent))
    decoder = wire.Decoder()
    received: list[m.Message] = []
    for piece in data.draw(wire_strategies.cuts(raw)):
        received += decoder.receive(piece)
    decoder.finish()
    assert received == sent


@given(error=wire_strategies.any_error)
def test_error_comes_back(error: Any) -> None:
    decoded = codec.decode_error(codec.encode_error(error))
    assert type(decoded) is type(error)
    assert decoded == error


@pytest.mark.parametrize("cls", [m.Write, m.WriteUnwritten, m.ReadResponse, m.ExtentVersions, m.Flush])
@given(data=st.data())
def test_messages_compare_by_value(cls: type[m.Message], data: st.DataObject) -> None:
    """Also those whose fields are arrays; one field in two is replaced."""
    message = data.draw(wire_strategies.message(cls))
    changed = {
        name: data.draw(strategy)
        for name, strategy in wire_strategies.FIELDS[cls].items()
        if data.draw(st.booleans(), label=name)
    }
    other = replace(message, **changed)  # type: ignore[type-var]  # all are dataclasses
    assert (message == other) == (frame_of(message) == frame_of(other))


@pytest.mark.parametrize("example", wire_golden.messages(), ids=lambda example: example.name)
def test_messages_are_frozen(example: wire_golden.Example) -> None:
    for message in (example.value, wire.decode(memoryview(example.raw))):
        assert not hasattr(message, "__dict__")
        for field in fields(message):
            with pytest.raises(AttributeError):
                setattr(message, field.name, None)


def test_messages_of_different_classes_differ() -> None:
    assert m.Ruok() != m.Imok()
    assert m.ExtentClose(1, 2) != m.ExtentReopen(1, 2)
    write, unwritten = (
        example.value for example in wire_golden.messages() if example.name in ("Write/plain", "WriteUnwritten")
    )
    assert m.WriteUnwritten(*(getattr(write, field.name) for field in fields(write))) != write
    assert unwritten != write
