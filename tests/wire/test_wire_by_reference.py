"""Writes whose data are not in the frame, but in memory that both sides see."""

from __future__ import annotations

from uuid import UUID

import numpy as np
import pytest

from crucible_emu import wire
from crucible_emu.errors import LocalError, RemoteError
from crucible_emu.integrity import BlockContexts, hash_blocks
from crucible_emu.wire import messages as m
from crucible_emu.wire.constants import BY_REFERENCE_TAG
from crucible_emu.wire.runs import Run

U, S = UUID(int=1), UUID(int=2)
BLOCK, AT = 512, 3 * 512
ROWS = np.arange(7 * BLOCK, dtype=np.uint32).astype(np.uint8).reshape(7, BLOCK)
PLAIN = BlockContexts.plain(hash_blocks(ROWS))
NONCES, TAGS = np.arange(84, dtype=np.uint8).reshape(7, 12), np.arange(112, dtype=np.uint8).reshape(7, 16)
SEALED = BlockContexts(np.full(7, 2, np.uint8), hash_blocks(ROWS), NONCES, TAGS)
MEMORY = np.concatenate([np.full(AT, 0xEE, np.uint8), ROWS.reshape(-1), np.full(BLOCK, 0xEE, np.uint8)])


def train(reference: int | None, contexts: BlockContexts = PLAIN) -> bytes:
    """Three writes: 1, 2 and 4 blocks."""
    parts = wire.encode_write_train(
        U,
        S,
        first_job_id=1000,
        dependencies=[[], [999], [990, 991]],
        starts=[5, 10, 20],
        counts=[1, 2, 4],
        contexts=contexts,
        rows=ROWS,
        reference=reference,
    )
    return b"".join(parts)


def decoder(memory: np.ndarray | None = MEMORY) -> wire.Decoder:  # type: ignore[type-arg]
    made = wire.Decoder(runs=True)
    made.memory = None if memory is None else memory.data
    return made


def messages(of: list[m.Message]) -> list[m.Message]:
    return [each for message in of for each in (message.messages() if isinstance(message, Run) else [message])]


@pytest.mark.parametrize("contexts", [PLAIN, SEALED], ids=["plain", "sealed"])
@pytest.mark.parametrize("piece", [1, 37, 1 << 20])
def test_it_is_the_write_that_it_stands_for(contexts: BlockContexts, piece: int) -> None:
    stream, by_value = train(AT, contexts), messages(decoder().receive(train(None, contexts)))
    assert len(stream) < 1000
    receiving, found = decoder(), []
    for at in range(0, len(stream), piece):
        found += receiving.receive(stream[at : at + piece])
    receiving.finish()
    assert found == by_value
    assert all(isinstance(each, m.Write) and each.data.readonly == MEMORY.data.readonly for each in found)


def test_its_data_are_not_copied() -> None:
    memory = MEMORY.copy()
    (first, _, _) = decoder(memory).receive(train(AT))
    memory[AT] ^= 0xFF
    assert isinstance(first, m.Write) and first.data[0] == memory[AT]


def test_among_other_messages() -> None:
    stream = b"".join(wire.encode(m.Ruok())) + train(AT) + train(None) + train(AT) + b"".join(wire.encode(m.Ruok()))
    found = messages(decoder().receive(stream))
    assert len(found) == 11 and found[1:4] == found[4:7] == found[7:10]


def test_without_memory_there_is_no_such_message() -> None:
    with pytest.raises(RemoteError, match=f"there is no message {BY_REFERENCE_TAG}"):
        decoder(None).receive(train(AT))


@pytest.mark.parametrize("reference", [AT + 2 * BLOCK, len(MEMORY), 1 << 62, (1 << 64) - 7 * BLOCK])
def test_what_lies_outside_costs_the_connection(reference: int) -> None:
    receiving = decoder()
    receiving.receive(b"".join(wire.encode(m.Ruok())))
    with pytest.raises(RemoteError, match=r"a Write by reference cannot be decoded: .* are not in the 5632 bytes"):
        list(map(receiving.receive, [train(reference)] * 2))


def test_every_cut_frame_is_refused_or_waited_for() -> None:
    (frame,) = wire.encode_write_train(
        U, S, 1000, [[7]], [5], [7], PLAIN, ROWS, reference=AT
    )  # fmt: skip
    for length in range(8, len(frame)):
        cut = length.to_bytes(4, "little") + bytes(frame[4:length])
        with pytest.raises(RemoteError, match="a Write by reference cannot be decoded"):
            decoder().receive(cut)


def test_a_write_of_what_is_unwritten_does_not_go_by_reference() -> None:
    with pytest.raises(LocalError, match="WriteUnwritten does not go by reference"):
        wire.encode_write_train(U, S, 1000, [[]], [5], [7], PLAIN, ROWS, unwritten=True, reference=AT)
