"""Memory for rows: used again, but never while anybody can see it."""

from __future__ import annotations

import numpy as np

from crucible_emu.upstairs.row_memory import IDLE_BYTES_MAX, LARGE_BYTES, RowMemory

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
