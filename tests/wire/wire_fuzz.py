"""Damaged frames by the hundred thousand: whatever comes in is messages, or one RemoteError.

    python tests/wire/wire_fuzz.py                 100,000 frames
    python tests/wire/wire_fuzz.py 1000000 7       that many, from this seed

What it is for: Hypothesis finds the small cases; this finds what needs many. Each round takes a frame (the golden ones
and some with many blocks of mixed kinds), damages it in one to three ways, puts whole frames before and behind it,
and feeds the stream twice, at once and in pieces. The suite runs a slice of it (``test_wire_hostile.py``).

What it checks: no exception but one :class:`RemoteError`, the same again afterwards; the same messages either way;
and that whatever was accepted can be sent and is then the same message.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable

import numpy as np
import pytest
import wire_golden

from crucible_emu import wire
from crucible_emu.integrity import EMPTY, ENCRYPTED, PLAIN, BlockContexts
from crucible_emu.wire import messages as m

Damage = Callable[[random.Random, bytearray], None]
TELLING = (0, 1, 2, 3, 7, 8, 16, 41, 42, 255, 256, 2**16, 2**31, 2**32 - 1, 2**32, 2**60, 2**63, 2**64 - 1)


def with_blocks() -> list[bytes]:
    """Frames with several blocks, of one kind and of mixed kinds."""
    ids = next(example.value for example in wire_golden.messages() if example.name == "Write/plain")
    numbers = np.arange(40)
    nonce, tag = np.full((40, 12), 7, np.uint8), np.full((40, 16), 9, np.uint8)
    data = memoryview(bytes(range(80)))
    found = []
    for kinds in ([PLAIN] * 40, [ENCRYPTED] * 40, [PLAIN, ENCRYPTED] * 20, [PLAIN] * 39 + [ENCRYPTED]):
        contexts = BlockContexts(np.array(kinds, np.uint8), numbers.astype(np.uint64), nonce, tag)
        write = m.Write(ids.upstairs_id, ids.session_id, 5, tuple(range(20)), 3, contexts, data)
        response = m.ReadResponse(ids.upstairs_id, ids.session_id, 5, contexts, data)
        holes = BlockContexts(
            np.where(numbers % 3 == 0, EMPTY, contexts.kind).astype(np.uint8), contexts.hash, nonce, tag
        )
        with_holes = m.ReadResponse(ids.upstairs_id, ids.session_id, 5, holes, data)
        found += [b"".join(wire.encode(message)) for message in (write, response, with_holes)]
    return found


CORPUS = [example.raw for example in wire_golden.messages()] + with_blocks()


def flip_bit(chance: random.Random, frame: bytearray) -> None:
    if frame:
        frame[chance.randrange(len(frame))] ^= 1 << chance.randrange(8)


def overwrite(chance: random.Random, frame: bytearray) -> None:
    """A telling number, in a width and at a place where a field may be."""
    width = chance.choice((1, 2, 4, 8))
    at = chance.randrange(0, max(1, len(frame) - width))
    frame[at : at + width] = (chance.choice(TELLING) & (1 << 8 * width) - 1).to_bytes(width, "little")


def cut_end(chance: random.Random, frame: bytearray) -> None:
    del frame[chance.randrange(len(frame) + 1) :]


def drop(chance: random.Random, frame: bytearray) -> None:
    at = chance.randrange(len(frame) + 1)
    del frame[at : at + chance.randrange(1, 9)]


def insert(chance: random.Random, frame: bytearray) -> None:
    at = chance.randrange(len(frame) + 1)
    frame[at:at] = chance.randbytes(chance.randrange(1, 9))


def graft(chance: random.Random, frame: bytearray) -> None:
    """The rest of another frame from some place on."""
    other = chance.choice(CORPUS)
    at = chance.randrange(len(frame) + 1)
    frame[at:] = other[min(at, len(other)) :]


def noise(chance: random.Random, frame: bytearray) -> None:
    frame[8:] = chance.randbytes(chance.randrange(200))


DAMAGES: tuple[Damage, ...] = (flip_bit, overwrite, overwrite, cut_end, drop, insert, graft, noise)


def damaged(chance: random.Random) -> bytes:
    frame = bytearray(chance.choice(CORPUS))
    for _ in range(chance.randrange(1, 4)):
        chance.choice(DAMAGES)(chance, frame)
    if chance.random() < 0.8:  # else LEN stays as it is, right or wrong
        frame[:4] = len(frame).to_bytes(4, "little")
    return bytes(frame)


def outcome(pieces: list[bytes]) -> tuple[list[m.Message], bool]:
    """The messages in a stream, and whether it ended in an error. Raises whatever is neither."""
    decoder = wire.Decoder()
    messages: list[m.Message] = []
    try:
        for piece in pieces:
            messages += decoder.receive(piece)
        decoder.finish()
    except wire.RemoteError as error:
        first = str(error)
    else:
        return messages, False
    for call in (decoder.finish, decoder.buffer, lambda: decoder.receive(b"x")):
        with pytest.raises(wire.RemoteError) as again:
            call()
        assert str(again.value) == first
    return messages, True


def in_pieces(chance: random.Random, stream: bytes) -> list[bytes]:
    places = sorted(chance.randrange(len(stream) + 1) for _ in range(chance.randrange(1, 5)))
    return [stream[a:b] for a, b in zip([0, *places], [*places, len(stream)])]


def run(frames: int, seed: int) -> dict[str, int]:
    """Feed that many damaged frames; how many streams were accepted and refused. Raises ``AssertionError``."""
    chance = random.Random(seed)
    counts = {"accepted": 0, "refused": 0}
    for number in range(frames):
        before, behind = chance.choice(CORPUS), chance.choice(CORPUS)
        stream = before + damaged(chance) + behind
        at_once, refused = outcome([stream])
        split, split_refused = outcome(in_pieces(chance, stream))
        where = f"seed {seed}, frame {number}: {stream.hex()}"
        assert refused == split_refused, where
        assert at_once == split, where
        assert at_once, where  # the frame before the damaged one is never lost
        for message in at_once:
            assert wire.decode(memoryview(b"".join(wire.encode(message)))) == message, where
        counts["refused" if refused else "accepted"] += 1
    return counts


if __name__ == "__main__":
    wanted = [int(argument) for argument in sys.argv[1:3]]
    print(run(*(wanted + [100_000, 1][len(wanted) :])))
