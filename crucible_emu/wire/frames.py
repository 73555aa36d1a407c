"""One message, one frame (wire-protocol.md §1.2, §1.3).

    LEN u32 | TAG u32 | fields of the message            LEN counts itself and everything behind it

What it is for: :func:`encode` and :func:`decode` hide that the frequent messages are packed by hand and the others by
the catalogue. Frames in a stream are the business of :mod:`crucible_emu.wire.decoder`.

What it guarantees: block data are not copied on the way out nor on the way in. Nothing leaves that the peer would
refuse: a frame above 100 MiB and a value without bytes are :class:`LocalError`. (The real sender does not check the
three bulk messages, §1.2; the frame goes out and costs the connection.) Whatever comes in is a message or
:class:`RemoteError`.
"""

from __future__ import annotations

import struct

from crucible_emu.errors import LocalError, RemoteError
from crucible_emu.wire.codec import MESSAGE
from crucible_emu.wire.constants import BY_REFERENCE_TAG
from crucible_emu.wire.hot import DECODERS, ENCODERS, Identities, checked_length, decode_write_by_reference
from crucible_emu.wire.messages import MESSAGES, Message
from crucible_emu.wire.primitives.bincode import U32_STRUCT, Malformed, Parts

FRAME_BYTES_MIN = 8
"""A message without fields."""

HEAD = struct.Struct("<II")
"""LEN and TAG."""


def name_of(tag: int) -> str:
    """The name of the message with this tag, for sentences."""
    if tag == BY_REFERENCE_TAG:
        return "a Write by reference"
    return MESSAGES[tag].__name__ if tag < len(MESSAGES) else f"message {tag}"


def encode(message: Message) -> Parts:
    """The frame of ``message`` as buffers for one ``sendmsg``: a header, and the data of a bulk message as they are.

    The data must not change before they are sent. Raises :class:`LocalError`.
    """
    try:
        by_hand = ENCODERS.get(type(message))
        return by_hand(message) if by_hand else encode_by_table(message)
    except (ValueError, struct.error) as error:
        raise LocalError(f"{type(message).__name__} cannot be sent: {error}") from error


def encode_by_table(message: Message) -> Parts:
    """The same, by the catalogue alone. Raises ``ValueError``."""
    parts: Parts = [b""]
    MESSAGE.encode(message, parts)
    parts[0] = U32_STRUCT.pack(checked_length(4 + sum(map(len, parts))))
    data = parts.pop() if isinstance(parts[-1], memoryview) else b""
    header = b"".join(parts)
    return [header, data] if len(data) else [header]


def decode(frame: memoryview) -> Message:
    """The message in one whole frame, LEN included; bulk data are a view into it. Raises :class:`RemoteError`."""
    length, tag = HEAD.unpack_from(frame) if len(frame) >= FRAME_BYTES_MIN else (0, 0)
    if length != len(frame) or length < FRAME_BYTES_MIN:
        raise RemoteError(f"a frame of {len(frame)} bytes claims {length}; it has at least {FRAME_BYTES_MIN}")
    if tag >= len(MESSAGES):
        raise RemoteError(f"there is no message {tag}, the last is {len(MESSAGES) - 1}")
    return decode_body(frame, tag, Identities())


def decode_body(frame: memoryview, tag: int, known: Identities, memory: memoryview | None = None) -> Message:
    """The message in a whole frame whose length is right and whose tag exists.

    ``known`` saves the work of reading the same ids again and again. ``memory``: where the data of writes by reference
    are, which exist where there is one. Raises :class:`RemoteError`.
    """
    try:
        if memory is not None and tag == BY_REFERENCE_TAG:
            return decode_write_by_reference(frame, known, memory)
        by_hand = DECODERS.get(tag)
        return by_hand(frame, known) if by_hand else MESSAGE.decode(frame, 4)[0]
    except Malformed as error:
        reason = str(error)
    except struct.error:
        reason = "the frame ends before its last field"
    # Not inside `except`: an error that lives as long as its connection must not hold the frame by its context.
    raise RemoteError(f"{name_of(tag)} cannot be decoded: {reason}")
