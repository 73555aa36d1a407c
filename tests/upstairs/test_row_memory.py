"""Memory for rows: used again, but never while anybody can see it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pytest

from crucible_emu.upstairs.row_memory import IDLE_BYTES_MAX, LARGE_BYTES, SHARED_BYTES, RowMemory

SIZE = 1 << 20


def address(array: np.ndarray) -> int:  # type: ignore[type-arg]
    return int(array.__array_interface__["data"][0])


def test_memory_is_used_again_once_nobody_sees_it() -> None:
    memory = RowMemory()
    flat = memory.take(SIZE)
    where = address(flat)
    assert len(flat) == SIZE and where % 4096 == 0
    rows = flat.reshape(-1, 4096)
    view = rows[3:5].data
    del flat, rows
    assert memory.idle_bytes == 0
    other = memory.take(SIZE)
    assert address(other) != where
    del view
    assert memory.idle_bytes == SIZE
    again = memory.take(SIZE - 4096)  # of the same class
    assert address(again) == where
    assert len(again) == SIZE - 4096


def test_little_lies_idle_and_small_pieces_are_not_kept() -> None:
    memory = RowMemory()
    assert len(memory.take(LARGE_BYTES - 1)) == LARGE_BYTES - 1
    assert memory.idle_bytes == 0
    held = [memory.take(SIZE) for _ in range(IDLE_BYTES_MAX // SIZE + 3)]
    held.clear()
    assert memory.idle_bytes == IDLE_BYTES_MAX
    memory.trim()
    assert memory.idle_bytes == 0
    assert len(memory.take(SIZE)) == SIZE


# -- memory that others are let look into -----------------------------------------------------------------------------


@pytest.fixture
def shared() -> Iterator[RowMemory]:
    memory = RowMemory()
    memory.share()
    yield memory
    memory.close()


def in_file(memory: RowMemory, offset: int | None, size_bytes: int) -> bytes:
    """What another process finds there."""
    assert memory.shared_file is not None and offset is not None
    return os.pread(memory.shared_file.descriptor, size_bytes, offset)


def resident_bytes(memory: RowMemory) -> int:
    assert memory.shared_file is not None
    return os.fstat(memory.shared_file.descriptor).st_blocks * 512


def test_what_is_shared_stands_in_its_file(shared: RowMemory) -> None:
    assert shared.shared_file is None
    assert shared.offset_of(np.zeros((1, SIZE), np.uint8)) is None
    first, second = shared.take(SIZE).reshape(-1, 4096), shared.take(3 * SIZE)
    first[:], second[:] = 1, 2
    assert in_file(shared, shared.offset_of(first), SIZE) == bytes(first)
    assert in_file(shared, shared.offset_of(first[5:7]), 2 * 4096) == bytes(first[5:7])
    assert in_file(shared, shared.offset_of(second.reshape(-1, 4096)), 3 * SIZE) == bytes(second)
    assert shared.offset_of(first[::2]) is None
    assert shared.offset_of(np.zeros((1, SIZE), np.uint8)) is None
    copied = shared.copy(first[:40])
    assert np.array_equal(copied, first[:40]) and shared.offset_of(copied) is not None


def test_shared_pieces_are_used_again_and_what_finds_no_room_is_private(shared: RowMemory) -> None:
    held = [shared.take(SIZE) for _ in range(SHARED_BYTES // SIZE + 2)]
    offsets = [shared.offset_of(flat.reshape(1, -1)) for flat in held]
    assert sorted(offset for offset in offsets if offset is not None) == list(range(0, SHARED_BYTES, SIZE))
    assert offsets[-2:] == [None, None]
    del held[3]
    assert shared.offset_of(shared.take(SIZE).reshape(1, -1)) == 3 * SIZE
    held.clear()
    assert shared.idle_bytes == SHARED_BYTES


def test_idle_pages_go_back_to_the_system_and_those_in_use_stay(shared: RowMemory) -> None:
    held = [shared.take(SIZE) for _ in range(4)]
    for flat in held:
        flat[:] = 7
    assert resident_bytes(shared) == 4 * SIZE
    del held[1:], flat
    shared.trim()
    assert resident_bytes(shared) == SIZE
    assert shared.idle_bytes == 0 and held[0].all()
    again = [shared.take(SIZE) for _ in range(3)]
    assert {shared.offset_of(flat.reshape(1, -1)) for flat in again} == {SIZE, 2 * SIZE, 3 * SIZE}
    del held, again
    shared.trim()
    assert shared.offset_of(shared.take(4 * SIZE).reshape(1, -1)) == 0, "with nobody there it may be cut otherwise"


class Looking:
    """Looks until told otherwise."""

    def __init__(self) -> None:
        self.left = self.closed = False

    def has_left(self) -> bool:
        return self.left

    def close(self) -> None:
        self.closed = True


def test_what_somebody_may_look_into_is_held_until_it_has_left(shared: RowMemory) -> None:
    somebody = Looking()
    flat = shared.take(SIZE)
    where = address(flat)
    shared.hold(somebody, [flat.reshape(-1, 4096)])
    del flat
    assert address(shared.take(SIZE)) != where
    shared.trim()
    assert address(shared.take(SIZE)) != where
    somebody.left = True
    assert where in {address(flat) for flat in [shared.take(SIZE) for _ in range(3)]}
    assert somebody.closed


def test_what_nobody_looks_into_any_more_goes_back_when_nothing_is_written(shared: RowMemory) -> None:
    somebody = Looking()
    flat = shared.take(SIZE)
    flat[:] = 7
    shared.hold(somebody, [flat.reshape(-1, 4096)])
    del flat
    shared.trim()
    assert resident_bytes(shared) == SIZE
    somebody.left = True
    shared.trim()
    assert resident_bytes(shared) == 0 and somebody.closed


def test_what_is_given_back_after_the_end_is_not_used_again(shared: RowMemory) -> None:
    somebody = Looking()
    flat = shared.take(SIZE)
    shared.hold(somebody, [flat.reshape(-1, 4096)])
    shared.close()
    assert somebody.closed and shared.shared_file is None
    del flat
    assert shared.idle_bytes == 0
    again = shared.take(SIZE)
    assert shared.offset_of(again.reshape(1, -1)) == 0, "of another file"
