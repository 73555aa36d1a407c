"""Trouble that comes from below or from the other end: full disks, no descriptors, peers that do not listen."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import trio
from downstairs_rig import (
    BLOCK,
    S,
    U,
    barrier,
    connected,
    contexts_of,
    definition,
    flush,
    hello,
    payload,
    read,
    serving,
    write,
)
from trio.testing import MockClock

from crucible_emu import errors
from crucible_emu.downstairs import connection as connection_module
from crucible_emu.downstairs import server as server_module
from crucible_emu.downstairs.core import Downstairs
from crucible_emu.downstairs.listening import accept_forever, listen_on_tcp
from crucible_emu.downstairs.repair_service import RepairService
from crucible_emu.region import Region, SyncPolicy
from crucible_emu.region.layout import extent_path
from crucible_emu.wire import encode
from crucible_emu.wire import messages as m


def broken(*_: Any) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


# The disk


@pytest.mark.parametrize("policy", [SyncPolicy.STAGED, SyncPolicy.ZFS])
async def test_flush_that_fails_is_answered_and_the_next_one_does_it(
    make_region: Any, policy: SyncPolicy, monkeypatch: pytest.MonkeyPatch, expect_log: Any
) -> None:
    region = make_region(policy=policy)
    async with serving(region) as server, connected(server) as upstairs:
        await upstairs.activate()
        await upstairs.ask(write(1, 0), m.WriteAck)
        with monkeypatch.context() as patch, expect_log("work failed .*FLUSH"):
            for name in ("sync_files", "fdatasync", "fsync"):
                patch.setattr(region.storage, name, broken)
            failed = await upstairs.ask(flush(2, (1,)), m.FlushAck)
            assert isinstance(failed.result, errors.IoError)
        assert region.extent_versions()[2][0], "what was not synced is still dirty"
        # What depends on a flush that failed does not run; what does not, does.
        await upstairs.say(barrier(3, (2,)), flush(4, (1,)))
        assert (await upstairs.hear(m.FlushAck)).result is None
        assert not region.extent_versions()[2].any()


async def test_failed_destage_fails_the_writes_that_need_room(
    make_region: Any, monkeypatch: pytest.MonkeyPatch, expect_log: Any
) -> None:
    region = make_region(staged_bytes_max=8 * BLOCK)
    expect_log("work failed .*DESTAGE")
    async with serving(region) as server, connected(server) as upstairs:
        await upstairs.activate()
        with monkeypatch.context() as patch:
            patch.setattr(region.storage, "pwrite", broken)
            await upstairs.say(*[write(job, job) for job in range(16)])
            results = [(await upstairs.hear(m.WriteAck)).result for _ in range(16)]
        assert results[:8] == [None] * 8
        assert all(isinstance(result, errors.IoError) for result in results[8:])
        assert (await upstairs.ask(write(20, 20), m.WriteAck)).result is None


async def test_snapshot_that_fails_leaves_the_flush_done(
    make_region: Any, monkeypatch: pytest.MonkeyPatch, expect_log: Any
) -> None:
    region = make_region()

    def no_snapshot(_name: str) -> None:
        raise errors.SnapshotFailed("no space")

    monkeypatch.setattr(region, "snapshot", no_snapshot)
    async with serving(region) as server, connected(server) as upstairs:
        await upstairs.activate()
        with expect_log("work failed"):
            await upstairs.say(write(1, 0), flush(2, (1,), 5, 6, "s"))
            await upstairs.hear(m.WriteAck)
            assert (await upstairs.hear(m.FlushAck)).result == errors.SnapshotFailed("no space")
        assert not region.extent_versions()[2].any()


async def test_read_that_fails_in_its_thread(
    make_region: Any, monkeypatch: pytest.MonkeyPatch, expect_log: Any
) -> None:
    region = make_region()
    async with serving(region) as server, connected(server) as upstairs:
        await upstairs.activate()
        monkeypatch.setattr(region, "read_cached", lambda *_: None)
        monkeypatch.setattr(region, "read", broken)
        with expect_log("work failed .*READ"):
            response = await upstairs.ask(read(1, 0), m.ReadResponse)
        assert isinstance(response.blocks, errors.IoError)
        assert await upstairs.ask(barrier(2, (1,))) == m.BarrierAck(U, S, 2, None)


async def test_region_that_cannot_be_reopened_is_not_handed_over(make_region: Any, expect_log: Any) -> None:
    region = make_region()
    async with serving(region) as server:
        async with connected(server) as upstairs:
            await upstairs.activate()
            await upstairs.ask(m.ExtentClose(0, 1), m.RepairAckId)
            path = extent_path(region.path, 1)
            whole = path.read_bytes()
            path.write_bytes(whole[:-1])
        with expect_log("work failed .*REOPEN_ALL"):
            async with connected(server) as upstairs:
                await upstairs.ask(hello(), m.YesItsMe)
                await upstairs.say(m.PromoteToActive(U, S, 2))
                assert await upstairs.hear_end() == []
        path.write_bytes(whole)
        async with connected(server) as upstairs:
            await upstairs.activate(3)


async def test_staged_blocks_that_cannot_be_kept_are_mentioned(
    make_region: Any, monkeypatch: pytest.MonkeyPatch, expect_log: Any
) -> None:
    region = make_region()
    with expect_log("staged blocks are lost"):
        async with serving(region) as server, connected(server) as upstairs:
            await upstairs.activate()
            await upstairs.ask(write(1, 0), m.WriteAck)
            monkeypatch.setattr(region.storage, "pwrite", broken)


async def test_stop_while_a_flush_waits_for_its_thread(make_region: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is given back to the region, and what it would have covered is kept."""
    region = make_region()
    async with serving(region) as server, connected(server) as upstairs:
        await upstairs.activate()
        await upstairs.ask(write(1, 0, 1, 6), m.WriteAck)
        await trio.testing.wait_all_tasks_blocked()
        # Nobody takes it out of the queue before the server ends.
        server.runner.receive(upstairs_id_of(server), [flush(2, (1,))])
    region.close()
    with Region.open(region.path) as again:
        out = bytearray(BLOCK)
        again.read(0, 1, memoryview(out))
        assert out == payload(1, 6)


def upstairs_id_of(server: Any) -> int:
    (connection,) = server._connections.values()
    return int(connection.id)


# The other end


async def test_peer_that_takes_no_answer_loses_its_connection(
    make_region: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "UNSENT_BYTES_MAX", 1 << 20)
    clock = MockClock()
    region = make_region(definition(blocks=2048))

    async def main() -> None:
        async with serving(region) as server, connected(server) as upstairs:
            await upstairs.activate()
            await upstairs.say(*[read(job, 0, 8192) for job in range(20)])
            (connection,) = server._connections.values()
            while connection._unsent_bytes <= 1 << 20:
                # Reads are done in threads, which the clock does not know.
                await trio.testing.wait_all_tasks_blocked(0.02)
            waited = 0
            while server._connections:
                assert waited < 100, "it is cut off after 45 s, counted from when it last took something"
                clock.jump(5)
                waited += 5
                await trio.testing.wait_all_tasks_blocked(0.02)
            assert waited >= 45
            assert server.core._connections == {}

    await trio.to_thread.run_sync(lambda: trio.run(main, clock=clock))


async def test_peer_that_vanishes_while_it_is_answered(make_region: Any) -> None:
    async with serving(make_region(definition(blocks=2048))) as server:
        for _ in range(5):
            async with connected(server) as upstairs:
                await upstairs.activate(5)
                await upstairs.say(*[read(job, 0, 8192) for job in range(8)])
                await upstairs.hear(m.ReadResponse)
                stream = upstairs.stream
                assert isinstance(stream, trio.SocketStream)
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        # Reads that have begun in their threads are finished, and nobody hears of them.
        while server._connections or not server.core.lane.idle:
            await trio.lowlevel.checkpoint()


async def test_stranger_may_not_send_long_frames(make_region: Any) -> None:
    async with serving(make_region(definition(blocks=4096))) as server, connected(server) as upstairs:
        frame = encode(write(1, 0, 4097))
        await upstairs.stream.send_all(frame[0])
        assert await upstairs.hear_end() == []
        async with connected(server) as other:
            await other.activate()
            assert (await other.ask(write(1, 0, 8192, 3), m.WriteAck)).result is None


async def test_all_connections_cut(make_region: Any) -> None:
    async with serving(make_region()) as server, connected(server) as upstairs:
        await upstairs.activate()
        server.drop_connections()
        assert await upstairs.hear_end() == []


async def test_one_connection_too_many_is_turned_away(make_region: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "CONNECTIONS_MAX", 1)
    async with serving(make_region()) as server:
        async with connected(server) as upstairs:
            await upstairs.ask(m.Ruok(), m.Imok)
            async with connected(server) as other:
                assert await other.hear_end() == []
            await upstairs.ask(m.Ruok(), m.Imok)
        while server._connections:
            await trio.lowlevel.checkpoint()
        async with connected(server) as upstairs:
            await upstairs.ask(m.Ruok(), m.Imok)


class Exhausted(socket.socket):
    """A listener in a process that was out of descriptors, and in which a peer left before it was accepted."""

    failures = [errno.EMFILE, errno.ECONNABORTED, errno.ENFILE, errno.EPROTO]

    def accept(self) -> Any:
        if self.failures:
            code = self.failures.pop()
            raise OSError(code, os.strerror(code))
        return super().accept()


async def test_accepting_goes_on_when_descriptors_run_out(expect_log: Any, autojump_clock: MockClock) -> None:
    expect_log("cannot accept a connection", at_least=3)
    plain = listen_on_tcp("127.0.0.1", 0, "the test")
    listener = Exhausted(fileno=plain.detach())
    served = trio.Event()

    async def handle(peer: socket.socket) -> None:
        peer.close()
        served.set()

    with listener:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept_forever, listener, handle, nursery, trio.CapacityLimiter(1))
            async with await trio.open_tcp_stream(*listener.getsockname()):
                await served.wait()
            nursery.cancel_scope.cancel()


# The repair service


def big_region(make_region: Callable[..., Region]) -> Region:
    region = make_region(definition(block_size=4096, blocks=4096, extents=1))
    blocks = np.arange(4096)
    rows = np.random.default_rng(1).integers(0, 255, (4096, 4096), np.uint8)
    region.write(blocks, rows, contexts_of(memoryview(rows).cast("B"), 4096))
    region.flush(1, 1)
    return region


async def ask_for_extent(server: Any) -> trio.SocketStream:
    stream = await trio.open_tcp_stream(server.repair_address.host, server.repair_address.port)
    await stream.send_all(b"GET /newextent/0/data HTTP/1.1\r\nhost: x\r\n\r\n")
    return stream


async def test_extent_goes_out_as_slowly_as_it_is_taken(make_region: Any) -> None:
    region = big_region(make_region)
    want = extent_path(region.path, 0).read_bytes()
    async with serving(region) as server, await ask_for_extent(server) as stream:
        await trio.testing.wait_all_tasks_blocked(0.05)  # the socket is full, the rest waits
        got = bytearray()
        while b"\r\n\r\n" not in got or len(got.partition(b"\r\n\r\n")[2]) < len(want):
            got += await stream.receive_some(1 << 20)
        assert got.partition(b"\r\n\r\n")[2] == want


async def test_extent_that_shrinks_while_it_is_sent_ends_the_connection(make_region: Any) -> None:
    region = big_region(make_region)
    async with serving(region) as server, await ask_for_extent(server) as stream:
        await trio.testing.wait_all_tasks_blocked(0.05)
        os.truncate(extent_path(region.path, 0), 1 << 20)
        received = 0
        while data := await stream.receive_some(1 << 20):
            received += len(data)
        assert received < 16 << 20


def test_trouble_inside_the_service_is_error_500(
    make_region: Any, monkeypatch: pytest.MonkeyPatch, expect_log: Any
) -> None:
    region = make_region()
    service = RepairService(region, Downstairs(region.definition))
    monkeypatch.setattr(type(region), "storage", property(broken))
    with expect_log("repair service failed"):
        answer = service.answer("GET", "/extent/0/files")
    assert answer.status == 500
    assert b'"Internal Server Error"' in answer.body
    assert answer.request_id.encode() in answer.body
