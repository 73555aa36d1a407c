"""Disks for scripts: the same disk, blocking."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from nbd_door import Running
from test_client_copying import BLOCK, SIZE, SMALL, Recording, left_over

from crucible_emu.blockio import Kind
from crucible_emu.client import aio, sync
from crucible_emu.client.failures import ConnectionLost, ExportRefused, RequestFailed
from crucible_emu.errors import UsageError

Serve = Callable[..., Running]


def test_a_script_reads_writes_and_copies(serve: Serve, tmp_path: Path) -> None:
    device = Recording()
    image, back = tmp_path / "image", tmp_path / "back"
    image.write_bytes(b"sync" * 10_000)
    with sync.open(str(serve(device).uri)) as disk:
        assert (disk.size_bytes, disk.block_size, disk.read_only) == (SIZE, BLOCK, False)
        assert disk.can_flush and disk.can_zero and disk.can_trim and disk.can_map
        copied = disk.copy_in(image)
        assert disk.copy_out(back, length=40_000).blake3 == copied.blake3
        disk.write(SIZE - BLOCK, b"e" * BLOCK, fua=True)
        assert disk.read(SIZE - 3, 3) == b"eee"
        memory = bytearray(5)
        disk.read_into(SIZE - 5, memory)
        assert memory == b"eeeee"
        disk.zero(SIZE - BLOCK, BLOCK)
        disk.trim(0, BLOCK)
        disk.flush()
        assert disk.zeros(SIZE - BLOCK, BLOCK) == [(BLOCK, True)]
    assert back.read_bytes() == image.read_bytes()
    with pytest.raises(UsageError, match="was closed: open it again"):
        disk.read(0, 1)
    disk.close()


def test_failures_are_those_of_aio(serve: Serve, tmp_path: Path) -> None:
    device = Recording()
    device.depths[:] = 1
    device.fail = lambda request: request.kind is Kind.READ and request.offset > 0
    running = serve(device)
    with pytest.raises(ExportRefused, match="no export 'missing'"):
        sync.open(str(running.uri.with_export("missing")))
    with pytest.raises(UsageError, match="not an NBD address"):
        sync.open("somewhere")
    with sync.open(str(running.uri)) as disk:
        with pytest.raises(RequestFailed, match="worn"):
            disk.copy_out(tmp_path / "out", pace=SMALL)
        assert left_over(tmp_path) == []
        running.call(running.server.shut_down)
        with pytest.raises((ConnectionLost, RequestFailed)):
            disk.copy_out(tmp_path / "out")


def test_a_notebook_is_told_where_to_go(serve: Serve) -> None:
    uri = str(serve(Recording()).uri)
    disk = sync.open(uri)

    async def notebook() -> None:
        with pytest.raises(UsageError, match=r"use crucible_emu\.client\.aio"):
            sync.open(uri)
        with pytest.raises(UsageError, match=r"use crucible_emu\.client\.aio"):
            disk.read(0, 1)
        async with await aio.open(uri) as other:
            assert await other.read(0, 1) == b"\0"

    asyncio.run(notebook())
    disk.close()


def test_an_interrupt_ends_a_copy_and_leaves_nothing(serve: Serve, tmp_path: Path) -> None:
    """The race: Ctrl-C in the middle of a copy. The process's own signal handler is the one of a script."""
    device = Recording()
    device.depths[:] = 1
    device.data[:] = b"\xee" * SIZE
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    interrupts = iter([True])

    def interrupt(done_bytes: int, _: int) -> None:
        if done_bytes > SIZE // 4 and next(interrupts, False):  # a second one would end everything at once
            signal.raise_signal(signal.SIGINT)

    try:
        with sync.open(str(serve(device).uri)) as disk:
            assert threading.current_thread() is threading.main_thread()
            with pytest.raises(KeyboardInterrupt):
                disk.copy_out(tmp_path / "out", pace=SMALL, progress=interrupt)
            assert left_over(tmp_path) == []
            assert disk.read(0, 1) == b"\xee"
    finally:
        signal.signal(signal.SIGINT, before)
