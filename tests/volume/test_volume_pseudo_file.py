"""A device as a file: random operations of any size, together and alone, against bytes."""

from __future__ import annotations

import io

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked
from volume_rig import BLOCK, SlowDevice, Turns

from crucible_emu import errors
from crucible_emu.blockio import Kind
from crucible_emu.blockio_memory import MemoryDevice
from crucible_emu.errors import UsageError
from crucible_emu.volume.pseudo_file import PseudoFile, SharedLock

SIZE = 8 * BLOCK


async def test_bytes_are_read_and_written_at_a_position() -> None:
    file = PseudoFile(MemoryDevice(SIZE, BLOCK))
    assert (file.tell(), file.size_bytes) == (0, SIZE)
    await file.write(b"hello")
    assert file.tell() == 5
    await file.write(b"x" * (2 * BLOCK))
    assert file.seek(3) == 3 and await file.read(4) == b"loxx" and file.tell() == 7
    assert file.seek(-7, io.SEEK_CUR) == 0 and await file.read(2 * BLOCK) == b"hello" + b"x" * (2 * BLOCK - 5)
    assert file.seek(-5, io.SEEK_END) == SIZE - 5 and await file.read(5) == bytes(5)
    assert await file.read(0) == b""


async def test_places_that_are_not_there() -> None:
    file = PseudoFile(MemoryDevice(SIZE, BLOCK))
    with pytest.raises(UsageError, match="begins at 0"):
        file.seek(-1)
    with pytest.raises(UsageError, match="whence"):
        file.seek(0, 9)
    assert file.seek(10, io.SEEK_END) == SIZE + 10
    with pytest.raises(errors.OffsetInvalid):
        await file.read(1)
    file.seek(SIZE - 1)
    for operation in (lambda: file.read(2), lambda: file.write(b"ab")):
        with pytest.raises(errors.OffsetInvalid):
            await operation()
        assert file.tell() == SIZE - 1


steps = st.tuples(st.booleans(), st.integers(0, SIZE), st.integers(0, 3 * BLOCK), st.integers(1, 255))


@given(program=st.lists(steps, max_size=40))
async def test_any_program_of_operations_is_that_of_a_file(program: list[tuple[bool, int, int, int]]) -> None:
    file, model = PseudoFile(MemoryDevice(SIZE, BLOCK)), io.BytesIO(bytes(SIZE))
    for writes, offset, length, fill in program:
        length = min(length, SIZE - offset)
        file.seek(offset)
        model.seek(offset)
        if writes:
            await file.write(bytes([fill]) * length)
            model.write(bytes([fill]) * length)
        else:
            assert await file.read(length) == model.read(length)
        assert file.tell() == model.tell()
    file.seek(0)
    assert await file.read(SIZE) == model.getvalue()


async def test_race_of_two_unaligned_writes_to_one_block() -> None:
    """Both read the block before either has written it back: the lock keeps the second from it."""
    turns = Turns()
    device = SlowDevice(MemoryDevice(SIZE, BLOCK), turns)
    file = PseudoFile(device)

    async def write(data: bytes, at: int) -> None:
        file.seek(at)
        await file.write(data)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write, b"a" * 10, 0)
        await wait_all_tasks_blocked()
        nursery.start_soon(write, b"b" * 10, 10)
        await wait_all_tasks_blocked()
        assert [batch[0].kind for batch in device.batches] == [Kind.READ], "the second waits"
        for _ in range(4):
            turns.run()
            await wait_all_tasks_blocked()
    assert bytes(device.memory.data[:21]) == b"a" * 10 + b"b" * 10 + b"\0"


async def test_aligned_operations_go_on_together() -> None:
    turns = Turns()
    device = SlowDevice(MemoryDevice(SIZE, BLOCK), turns)
    file = PseudoFile(device)
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(file.write, bytes(BLOCK))
            nursery.start_soon(file.read, 5)
        await wait_all_tasks_blocked()
        assert len(turns.waiting) == 6
        nursery.start_soon(file.flush)
        await wait_all_tasks_blocked()  # tasks that are started together begin in any order
        nursery.start_soon(file.read, 5)
        await wait_all_tasks_blocked()
        assert len(turns.waiting) == 6, "the flush waits for them, and what comes later for the flush"
        turns.run_all()
        await wait_all_tasks_blocked()
        assert [batch[0].kind for batch in device.batches[6:]] == [Kind.FLUSH]
        turns.run_all()
        await wait_all_tasks_blocked()
        turns.run_all()
    assert device.memory.flushes == 1


async def test_race_of_a_cancellation_with_the_lock() -> None:
    """Whoever is cancelled while waiting, or in the turn in which the lock is given, does not keep it."""
    for given_first in (False, True):
        lock = SharedLock()
        waiting = trio.CancelScope()

        async def hold(lock: SharedLock = lock, waiting: trio.CancelScope = waiting) -> None:
            with waiting:
                async with lock.held(alone=True):
                    await trio.sleep_forever()

        async with trio.open_nursery() as nursery:
            async with lock.held(alone=False):
                nursery.start_soon(hold)
                await wait_all_tasks_blocked()
                if not given_first:
                    waiting.cancel()
            waiting.cancel()
        with trio.fail_after(5):
            for alone in (True, False):
                async with lock.held(alone=alone):
                    pass
