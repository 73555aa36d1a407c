"""Sub-volumes and parents, step by step: what is read, what is written, what is refused, in how many calls."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from disk_rig import do, flush, read, read_request, trim_request, write, write_request, zeroes_request
from volume_rig import BLOCK, SlowDevice, Turns

from crucible_emu import errors
from crucible_emu.blockio import Allocation, Kind, Request
from crucible_emu.blockio_memory import MemoryDevice
from crucible_emu.volume.layout import RUNS_MAX, Layout, Piece, holes
from crucible_emu.volume.volume import Volume


def memory(
    blocks: int, fill: int | None = None, start: int = 0, stop: int | None = None, **settings: bool
) -> MemoryDevice:
    """A device of so many blocks; those from ``start`` to ``stop`` are written with ``fill``."""
    device = MemoryDevice(blocks * BLOCK, BLOCK, **settings)
    if fill is not None:
        stop = blocks if stop is None else stop
        device.data[start * BLOCK : stop * BLOCK] = bytes([fill]) * ((stop - start) * BLOCK)
        device.depths[start:stop] = 1
    return device


def of(*fills: int) -> bytes:
    """Blocks of these fills."""
    return b"".join(bytes([fill]) * BLOCK for fill in fills)


async def fills(volume: Volume) -> list[int]:
    """The first byte of every block; all the others must be like it."""
    data = await read(volume, 0, volume.size_bytes)
    found = list(data[::BLOCK])
    assert data == of(*found)
    return found


async def write_unwritten(volume: Volume, block: int, data: bytes) -> None:
    await do(volume, Request(Kind.WRITE_UNWRITTEN, block * BLOCK, len(data), memoryview(bytearray(data))))


# -- where blocks lie -------------------------------------------------------------------------------------------------


def test_a_range_is_cut_at_every_border() -> None:
    layout = Layout([10, 10, 10])
    assert list(layout.cut(5, 16)) == [Piece(0, 5, 5, 5), Piece(1, 0, 10, 10), Piece(2, 0, 1, 20)]
    assert list(layout.cut(9, 1)) == [Piece(0, 9, 1, 9)]
    assert list(layout.cut(10, 10)) == [Piece(1, 0, 10, 10)]


def test_every_range_is_the_intersection_with_each_sub_volume() -> None:
    """Among them those that end one block behind a sub-volume, which the real one aborts on."""
    sizes = [3, 1, 5, 2]
    layout = Layout(sizes)
    where = [(child, offset) for child, size in enumerate(sizes) for offset in range(size)]
    for start in range(sum(sizes)):
        for length in range(1, sum(sizes) - start + 1):
            pieces = list(layout.cut(start, length))
            touched = [(piece.child, piece.offset + each) for piece in pieces for each in range(piece.length)]
            assert touched == where[start : start + length]
            assert [piece.position for piece in pieces] == [start, *[layout.starts[p.child] for p in pieces[1:]]]


def test_holes_are_fetched_one_by_one_while_they_are_few() -> None:
    def flags(text: str) -> bytes:
        return bytes(letter == "o" for letter in text)

    assert holes(flags("ooo")) == []
    assert holes(flags("...")) == [(0, 3)]
    assert holes(flags("o..o.o")) == [(1, 3), (4, 5)]
    assert holes(flags("o" + ".o" * RUNS_MAX)) == [(first, first + 1) for first in range(1, 2 * RUNS_MAX, 2)]
    assert holes(flags("o" + ".o" * (RUNS_MAX + 1))) == [(1, 2 * RUNS_MAX + 2)]


def test_the_size_is_the_sum_of_the_sub_volumes_or_that_of_a_parent_alone() -> None:
    assert Volume(BLOCK, [memory(2), memory(3)], memory(9)).size_bytes == 5 * BLOCK
    assert Volume(BLOCK, [], memory(9)).size_bytes == 9 * BLOCK
    assert Volume(BLOCK, []).size_bytes == 0


@pytest.mark.parametrize("where", range(4))
def test_parts_with_blocks_of_another_size_are_refused(where: int) -> None:
    good, bad = memory(4), MemoryDevice(4096, 1024)
    parts: list[Callable[[], Volume]] = [
        lambda: Volume(BLOCK, [bad]),
        lambda: Volume(BLOCK, [good, bad]),
        lambda: Volume(BLOCK, [good], bad),
        lambda: Volume(BLOCK, [good], Volume(1024, [bad])),
    ]
    with pytest.raises(errors.BlockSizeMismatch):
        parts[where]()


# -- layers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", [(10,), (2, 8), (5, 5), (7, 3), (3, 3, 4)])
async def test_a_parent_shows_until_it_is_written_over(split: tuple[int, ...]) -> None:
    """A parent of five blocks below ten, however they are split."""
    parent = memory(5, 9)
    volume = Volume(BLOCK, [memory(size) for size in split], parent)
    assert await fills(volume) == [9] * 5 + [0] * 5
    for block in range(10):
        await write(volume, block * BLOCK, of(block + 20))
        assert await fills(volume) == [each + 20 for each in range(block + 1)] + [9] * (4 - block) + [0] * min(
            5, 9 - block
        )
    assert bytes(parent.data) == of(9) * 5, "the parent is never written"


@pytest.mark.parametrize("fill", [0, 1, 128, 255])
@pytest.mark.parametrize("split", [(8,), (4, 4), (2, 6)])
async def test_every_layer_hides_the_ones_below_also_with_zeros(split: tuple[int, ...], fill: int) -> None:
    parent = memory(4, 17)
    parts = [memory(size) for size in split]
    volume = Volume(BLOCK, parts, parent)
    await write(volume, BLOCK, of(fill))
    assert await fills(volume) == [17, fill, 17, 17, 0, 0, 0, 0]
    await write(volume, 3 * BLOCK, of(fill, fill))
    assert await fills(volume) == [17, fill, 17, fill, fill, 0, 0, 0]
    alone = Volume(BLOCK, parts)
    assert await fills(alone) == [0, fill, 0, fill, fill, 0, 0, 0]


async def test_three_layers() -> None:
    bottom = Volume(BLOCK, [memory(3, 1)])
    middle = Volume(BLOCK, [memory(5, 2, 1, 2)], bottom)
    top = Volume(BLOCK, [memory(6, 3, 2, 3)], middle)
    assert await fills(top) == [1, 2, 3, 0, 0, 0]
    assert await top.allocation(0, top.size_bytes) == [
        Allocation(BLOCK, 3),
        Allocation(BLOCK, 2),
        Allocation(BLOCK, 1),
        Allocation(3 * BLOCK, 0),
    ]
    await write(top, 0, of(7))
    assert await fills(middle) == [1, 2, 1, 0, 0]


async def test_ownership_survives_through_volumes() -> None:
    top = Volume(BLOCK, [Volume(BLOCK, [memory(4, 0, 1, 2)])], Volume(BLOCK, [memory(3, 5, 2, 3)]))
    request = read_request(0, 4 * BLOCK)
    request.owned = np.array([True, False, False, True])
    await do(top, request)
    assert request.owned.tolist() == [False, True, True, False]
    assert bytes(request.buffer or b"") == of(0, 0, 5, 0)


async def test_a_parent_alone_is_a_disk_that_cannot_be_written() -> None:
    volume = Volume(BLOCK, [], memory(3, 4))
    assert volume.read_only
    assert await fills(volume) == [4] * 3
    await flush(volume)
    assert await volume.allocation(0, 3 * BLOCK) == [Allocation(3 * BLOCK, 2)]
    for kind in (Kind.WRITE, Kind.WRITE_UNWRITTEN, Kind.WRITE_ZEROES, Kind.TRIM):
        with pytest.raises(errors.CannotReceiveBlocks, match="No sub volumes!"):
            await do(volume, Request(kind, 0, BLOCK, memoryview(bytearray(BLOCK))))


async def test_a_volume_of_nothing_serves_nothing() -> None:
    volume = Volume(BLOCK, [])
    with pytest.raises(errors.CannotServeBlocks, match="No read only parent, no sub volumes!"):
        await read(volume, 0, BLOCK)
    with pytest.raises(errors.CannotReceiveBlocks):
        await write(volume, 0, of(1))
    with pytest.raises(errors.CannotServeBlocks):
        await volume.allocation(0, BLOCK)
    await flush(volume)


@pytest.mark.parametrize("split", [(6,), (3, 3), (2, 2, 2)])
async def test_write_unwritten_keeps_what_was_written(split: tuple[int, ...]) -> None:
    volume = Volume(BLOCK, [memory(size) for size in split], memory(3, 9))
    await write(volume, 2 * BLOCK, of(1, 1))
    await write_unwritten(volume, 1, of(2, 2, 2, 2))
    assert await fills(volume) == [9, 2, 1, 1, 2, 0], "the parent's blocks do not count as written"
    await write_unwritten(volume, 0, of(3, 3, 3, 3, 3, 3))
    assert await fills(volume) == [3, 2, 1, 1, 2, 3]


async def test_zeros_over_a_parent_are_stored_and_a_trim_there_does_nothing() -> None:
    child, parent = memory(6, 5, 1, 2), memory(4, 9)
    volume = Volume(BLOCK, [child], parent)
    await do(volume, trim_request(0, 6 * BLOCK, fua=True))
    assert await fills(volume) == [9, 5, 9, 9, 0, 0]
    await do(volume, zeroes_request(0, 6 * BLOCK))
    assert await fills(volume) == [0] * 6
    assert child.depths.tolist() == [1, 1, 1, 1, 0, 0], "behind the parent's end nothing has to be stored"


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_parent", [False, True])
@pytest.mark.parametrize("split", [(4,), (2, 2)])
@pytest.mark.parametrize("kind", [Kind.READ, Kind.WRITE, Kind.WRITE_UNWRITTEN, Kind.WRITE_ZEROES, Kind.TRIM])
async def test_what_reaches_beyond_the_end_is_refused_before_anything_is_done(
    kind: Kind, split: tuple[int, ...], with_parent: bool
) -> None:
    """The real one checks the first block only: it cuts writes and aborts reads."""
    parts = [memory(size, 3) for size in split]
    volume = Volume(BLOCK, parts, memory(9, 9) if with_parent else None)
    for start, count in ((3, 2), (4, 1), (0, 5), (100, 1)):
        request = Request(kind, start * BLOCK, count * BLOCK, memoryview(bytearray(count * BLOCK)))
        with pytest.raises(errors.OffsetInvalid):
            await do(volume, request)
        assert request.buffer == bytes(count * BLOCK)
    assert await fills(volume) == [3] * 4


async def test_what_is_not_made_of_blocks_is_refused() -> None:
    volume = Volume(BLOCK, [memory(2), memory(2)])
    with pytest.raises(errors.OffsetUnaligned):
        await read(volume, 1, BLOCK)
    with pytest.raises(errors.DataLenUnaligned):
        await write(volume, 0, b"x")


@pytest.mark.parametrize("parts", [1, 2])
async def test_requests_of_no_length_succeed(parts: int) -> None:
    volume = Volume(BLOCK, [memory(2) for _ in range(parts)], memory(1, 1))
    await do(volume, write_request(0, b""), read_request(BLOCK, 0), zeroes_request(0, 0), trim_request(0, 0))


async def test_the_first_error_wins_and_is_reported_once_all_parts_are_done() -> None:
    turns = Turns()
    broken = [errors.IoError("the first"), errors.IoError("the second")]
    parts = [SlowDevice(memory(2), turns, lambda _, error=error: error) for error in broken]
    volume = Volume(BLOCK, [memory(2), *parts], defer=turns.defer)
    reports: list[list[Request]] = []
    request = write_request(0, of(1, 2, 3, 4, 5, 6))
    volume.submit([request], reports.append)
    turns.run(1)
    assert reports == [] and request.error == broken[1]
    turns.run()
    assert reports == [[request]] and request.error == broken[1]


async def test_a_parent_that_cannot_be_read_fails_the_read_and_no_other() -> None:
    turns = Turns()
    parent = SlowDevice(memory(4, 9), turns, lambda _: errors.IoError("no"))
    volume = Volume(BLOCK, [memory(4, 1, 0, 2)], parent, defer=turns.defer)
    requests = [read_request(0, 2 * BLOCK), read_request(BLOCK, 2 * BLOCK)]
    reports: list[list[Request]] = []
    volume.submit(requests, reports.append)
    turns.run_all()
    assert [request.error for request in requests] == [None, errors.IoError("no")]
    assert reports == [[requests[0]], [requests[1]]]


# -- batches ----------------------------------------------------------------------------------------------------------


class Recorder(SlowDevice):
    """Keeps the batches, and completes at once."""

    def __init__(self, memory: MemoryDevice) -> None:
        super().__init__(memory, Turns())

    def submit(self, requests: list[Request], completed: Callable[[list[Request]], None]) -> None:
        self.batches.append(list(requests))
        self.memory.submit(requests, completed)


def mixed_batch() -> list[Request]:
    return [write_request(0, of(1)), read_request(0, BLOCK), zeroes_request(BLOCK, BLOCK), trim_request(BLOCK, BLOCK)]


def test_a_batch_of_one_sub_volume_passes_untouched_and_in_one_call() -> None:
    for more in ([], [memory(4)]):
        first = Recorder(memory(4))
        reports: list[list[Request]] = []
        volume = Volume(BLOCK, [first, *more])
        batch = mixed_batch() if more else [*mixed_batch(), Request(Kind.FLUSH)]
        volume.submit(batch, reports.append)
        assert len(first.batches) == 1 and all(a is b for a, b in zip(first.batches[0], batch, strict=True))
        assert reports == [batch]


def test_writes_over_a_parent_pass_untouched_too() -> None:
    first = Recorder(memory(4))
    batch = [write_request(0, of(1)), write_request(BLOCK, of(2))]
    Volume(BLOCK, [first], memory(4, 9)).submit(batch, lambda _: None)
    assert all(a is b for a, b in zip(first.batches[0], batch, strict=True))


def test_a_batch_over_borders_is_one_call_for_each_sub_volume_and_one_report() -> None:
    parts = [Recorder(memory(2)) for _ in range(3)]
    parent = Recorder(memory(6, 9))
    reports: list[list[Request]] = []
    batch = [
        write_request(BLOCK, of(1, 2)),
        read_request(0, 6 * BLOCK),
        Request(Kind.FLUSH),
        read_request(0, 3 * BLOCK),
    ]
    Volume(BLOCK, parts, parent).submit(batch, reports.append)
    assert [len(part.batches) for part in parts] == [1, 1, 1]
    assert [request.kind for request in parts[1].batches[0]] == [Kind.WRITE, Kind.READ, Kind.FLUSH, Kind.READ]
    assert len(parent.batches) == 1, "what is missing everywhere is asked for together"
    assert len(reports) == 1 and {id(request) for request in reports[0]} == {id(request) for request in batch}
    assert bytes(batch[1].buffer or b"") == of(9, 1, 2, 9, 9, 9)


def test_a_read_with_many_holes_asks_the_parent_once() -> None:
    child, parent = memory(40), Recorder(memory(40, 9))
    child.depths[::2] = 1
    request = read_request(0, 40 * BLOCK)
    request.owned = np.zeros(40, np.bool_)
    Volume(BLOCK, [child], parent).submit([request], lambda _: None)
    assert bytes(request.buffer or b"") == of(0, 9) * 20 and request.owned.all()
    assert [len(batch) for batch in parent.batches] == [1]


def test_a_flush_goes_to_every_sub_volume_and_not_to_the_parent() -> None:
    parts, parent = [memory(1), memory(1)], memory(2)
    Volume(BLOCK, parts, parent).submit([Request(Kind.FLUSH)], lambda _: None)
    assert ([part.flushes for part in parts], parent.flushes) == ([1, 1], 0)


def test_race_of_a_write_with_a_read_that_looks_below() -> None:
    """The read found a hole, a write comes, then the parent answers: the write is not undone, and the next read sees
    it."""
    turns = Turns()
    child, parent = SlowDevice(memory(2), turns), SlowDevice(memory(2, 9), turns)
    volume = Volume(BLOCK, [child], parent, defer=turns.defer)
    before, after = read_request(0, 2 * BLOCK), read_request(0, 2 * BLOCK)
    volume.submit([before], lambda _: None)
    turns.run()  # the child says: never written
    volume.submit([write_request(0, of(5)), after], lambda _: None)
    turns.run_all()
    assert bytes(before.buffer or b"") == of(9, 9)
    assert bytes(after.buffer or b"") == of(5, 9)
    assert bytes(child.memory.data) == of(5, 0)


def test_only_a_disk_that_cannot_be_written_anywhere_is_read_only() -> None:
    assert not Volume(BLOCK, [memory(1), memory(1, read_only=True)]).read_only
    assert Volume(BLOCK, [memory(1, read_only=True)]).read_only
