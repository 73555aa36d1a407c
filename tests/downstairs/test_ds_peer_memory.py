"""Memory that a writer shows, so that its writes need not carry their data: what is taken up, and for how long."""

from __future__ import annotations

import array
import gc
import json
import mmap
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio
from downstairs_rig import BLOCK, OTHER_S, OTHER_U, S, ScriptedUpstairs, U, connected, read, serving, write
from trio.testing import wait_all_tasks_blocked

from crucible_emu import wire
from crucible_emu.downstairs.server import DownstairsServer
from crucible_emu.errors import HashMismatch
from crucible_emu.integrity import BlockContexts, hash_blocks
from crucible_emu.region import Region
from crucible_emu.region.memory import SharedFile
from crucible_emu.wire import messages as m

SIZE = 64 * BLOCK


class Shown:
    """A file of memory, and what was said when it was shown."""

    def __init__(self) -> None:
        self.file = SharedFile("test")
        self.file.place(SIZE)
        self.file.seal()
        mapped = mmap.mmap(self.file.descriptor, SIZE)
        self.memory = np.frombuffer(mapped, np.uint8)
        self.peer = trio.socket.socket(socket.AF_UNIX)

    def put(self, at: int, blocks: int, fill: int) -> tuple[np.ndarray, BlockContexts]:  # type: ignore[type-arg]
        rows = self.memory[at : at + blocks * BLOCK].reshape(blocks, BLOCK)
        rows[:] = fill
        return rows, BlockContexts.plain(hash_blocks(rows))

    async def show(self, path: Path, *, descriptors: list[int] | None = None, **changes: Any) -> dict[str, Any]:
        members = {"upstairs_id": str(U), "session_id": str(S), "memory_bytes": SIZE} | changes
        given = [self.file.descriptor] if descriptors is None else descriptors
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", given))] if given else []
        await self.peer.connect(f"{path}.reads")
        await self.peer.sendmsg([json.dumps(members).encode() + b"\n"], rights)
        with trio.fail_after(20):
            answer: dict[str, Any] = json.loads(await self.peer.recv(4096))
        return answer

    @property
    def let_go(self) -> bool:
        """Whether the Downstairs has said that it does not look any more."""
        gc.collect()
        try:
            return not self.peer._sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)  # type: ignore[attr-defined]
        except BlockingIOError:
            return False

    async def hear_end(self) -> None:
        with trio.fail_after(20):
            while not self.let_go:
                await wait_all_tasks_blocked(0.001)

    def close(self) -> None:
        self.peer.close()
        self.file.close()


@pytest.fixture
async def shown() -> AsyncIterator[Shown]:
    made = Shown()
    yield made
    made.close()


@asynccontextmanager
async def writing(region: Region, path: Path) -> AsyncIterator[tuple[DownstairsServer, ScriptedUpstairs]]:
    async with serving(region, unix_path=str(path)) as server, connected(server) as upstairs:
        await upstairs.activate()
        yield server, upstairs


def by_reference(
    job: int, start: int, at: int, rows: Any, contexts: BlockContexts, needs: tuple[int, ...] = ()
) -> bytes:
    parts = wire.encode_write_train(U, S, job, [list(needs)], [start], [len(rows)], contexts, rows, reference=at)
    return b"".join(parts)


async def test_a_write_finds_its_data_in_the_memory(shared: Region, tmp_path: Path, shown: Shown) -> None:
    path = tmp_path / "s"
    async with writing(shared, path) as (_, upstairs):
        assert await shown.show(path) == {"granted": {"region": str(shared.definition.uuid)}}
        rows, contexts = shown.put(8 * BLOCK, 4, fill=7)
        await upstairs.stream.send_all(by_reference(1, 5, 8 * BLOCK, rows, contexts))
        ack = await upstairs.hear(m.WriteAck)
        assert (ack.job_id, ack.result) == (1, None)
        rows[:] = 9  # what was acknowledged is not looked at any more
        found = await upstairs.ask(read(2, 5, 4), m.ReadResponse)
        assert bytes(found.data) == bytes([7]) * 4 * BLOCK
        await upstairs.ask(write(3, 6, fill=8), m.WriteAck)  # others still carry theirs
        found = await upstairs.ask(read(4, 5, 2), m.ReadResponse)
        assert bytes(found.data) == bytes([7]) * BLOCK + bytes([8]) * BLOCK


async def test_data_that_are_not_what_was_said_are_not_stored(shared: Region, tmp_path: Path, shown: Shown) -> None:
    path = tmp_path / "s"
    async with writing(shared, path) as (_, upstairs):
        await shown.show(path)
        rows, contexts = shown.put(0, 2, fill=7)
        rows[1, 5] ^= 1
        await upstairs.stream.send_all(by_reference(1, 5, 0, rows, contexts))
        assert isinstance((await upstairs.hear(m.WriteAck)).result, HashMismatch)
        found = await upstairs.ask(read(2, 5, 2), m.ReadResponse)
        assert bytes(found.data) == bytes(2 * BLOCK)


async def test_it_looks_until_the_connection_has_ended_and_no_longer(
    shared: Region, tmp_path: Path, shown: Shown
) -> None:
    path = tmp_path / "s"
    async with writing(shared, path) as (_, upstairs):
        await shown.show(path)
        rows, contexts = shown.put(0, 2, fill=7)
        await upstairs.stream.send_all(by_reference(1, 5, 0, rows, contexts))
        await upstairs.hear(m.WriteAck)
        await wait_all_tasks_blocked()
        assert not shown.let_go
        await upstairs.stream.aclose()
        await shown.hear_end()


async def test_a_write_that_waits_still_looks(shared: Region, tmp_path: Path, shown: Shown) -> None:
    """Race: the Downstairs is stopped in the middle of things, and the writer wants its memory back."""
    path = tmp_path / "s"
    async with writing(shared, path) as (server, upstairs):
        await shown.show(path)
        rows, contexts = shown.put(0, 2, fill=7)
        server.runner.stall()
        await upstairs.stream.send_all(by_reference(1, 5, 0, rows, contexts))
        await wait_all_tasks_blocked(0.01)
        await upstairs.stream.aclose()
        await wait_all_tasks_blocked(0.01)
        assert not shown.let_go, "the write is still to be done, or to be forgotten"
        server.runner.unstall()
        await shown.hear_end()


async def test_the_frame_before_the_memory_costs_the_connection(shared: Region, tmp_path: Path, shown: Shown) -> None:
    path = tmp_path / "s"
    async with writing(shared, path) as (_, upstairs):
        rows, contexts = shown.put(0, 2, fill=7)
        await upstairs.stream.send_all(by_reference(1, 5, 0, rows, contexts))
        assert await upstairs.hear_end() == []


async def test_what_lies_outside_the_memory_costs_the_connection(shared: Region, tmp_path: Path, shown: Shown) -> None:
    path = tmp_path / "s"
    async with writing(shared, path) as (_, upstairs):
        await shown.show(path)
        rows, contexts = shown.put(0, 2, fill=7)
        await upstairs.stream.send_all(by_reference(1, 5, SIZE - BLOCK, rows, contexts))
        assert await upstairs.hear_end() == []


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"upstairs_id": str(OTHER_U), "session_id": str(OTHER_S)}, "this session is not the writer of the region"),
        ({"memory_bytes": 0}, "memory of 0 bytes: from 1 to 1073741824 are taken up"),
        ({"memory_bytes": -5}, "memory of -5 bytes: from 1 to 1073741824 are taken up"),
        ({"memory_bytes": 1 << 80}, f"memory of {1 << 80} bytes: from 1 to 1073741824 are taken up"),
        ({"memory_bytes": SIZE + 1}, "memory that may be, or become, shorter than was said"),
        ({"memory_bytes": "many"}, "a line of JSON with upstairs_id and session_id is what asks here"),
        ({"memory_bytes": True}, "a line of JSON with upstairs_id and session_id is what asks here"),
    ],
)
async def test_a_wrong_question_is_refused(
    shared: Region, tmp_path: Path, shown: Shown, changes: dict[str, Any], why: str
) -> None:
    path = tmp_path / "s"
    async with writing(shared, path) as (_, upstairs):
        gc.collect()
        before = sorted(os.listdir("/proc/self/fd"))
        assert await shown.show(path, **changes) == {"refused": why}
        assert await shown.peer.recv(1) == b""
        await upstairs.ask(m.Ruok(), m.Imok)
        assert sorted(os.listdir("/proc/self/fd")) == before, "nothing stays open"


def not_sealed() -> int:
    descriptor = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, SIZE)
    return descriptor


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (list, "memory with 0 descriptors instead of 1"),
        (lambda: [not_sealed(), not_sealed()], "memory with 2 descriptors instead of 1"),
        (lambda: [not_sealed()], "memory that may be, or become, shorter than was said"),
        (lambda: [os.open("/dev/zero", os.O_RDONLY)], "memory that cannot be mapped: Invalid argument"),
        (lambda: [os.open("/", os.O_RDONLY)], "memory that cannot be mapped: Invalid argument"),
    ],
    ids=["none", "two", "not sealed", "a device", "a directory"],
)
async def test_what_is_no_safe_memory_is_not_taken_up(
    shared: Region, tmp_path: Path, shown: Shown, make: Any, why: str
) -> None:
    """*Safety*: to look into memory that its owner has cut off would end the Downstairs."""
    path = tmp_path / "s"
    descriptors = make()
    async with writing(shared, path) as (_, upstairs):
        gc.collect()
        before = sorted(os.listdir("/proc/self/fd"))
        assert await shown.show(path, descriptors=descriptors) == {"refused": why}
        await upstairs.ask(m.Ruok(), m.Imok)
        assert sorted(os.listdir("/proc/self/fd")) == before, "nothing stays open"
    for descriptor in descriptors:
        os.close(descriptor)


async def test_memory_is_shown_once(shared: Region, tmp_path: Path, shown: Shown) -> None:
    """Frames that are on their way refer to what was shown first."""
    path = tmp_path / "s"
    again = Shown()
    async with writing(shared, path) as (_, upstairs):
        assert "granted" in await shown.show(path)
        assert await again.show(path) == {"refused": "this session has shown its memory already"}
        rows, contexts = shown.put(0, 2, fill=7)
        await upstairs.stream.send_all(by_reference(1, 5, 0, rows, contexts))
        await upstairs.hear(m.WriteAck)
    again.close()
