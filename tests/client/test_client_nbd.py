"""NBD exports under Trio, against our own server."""

from __future__ import annotations

import errno
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trustme
from nbd_scripts import server_side

from crucible_emu.blockio_memory import MemoryDevice
from crucible_emu.client.failures import ConnectionLost, ExportRefused, RequestFailed
from crucible_emu.client.nbd import opened
from crucible_emu.client.nbd_exchange import Extent
from crucible_emu.errors import RemoteError, UsageError
from crucible_emu.nbd import Export, Listener, Server, listen_on_tcp, listen_on_unix

BLOCK, SIZE = 512, 1 << 20


@asynccontextmanager
async def served(listeners: list[Listener], device: MemoryDevice, **settings: object) -> AsyncIterator[Server]:
    server = Server({"disk": Export(device)}, **settings)  # type: ignore[arg-type]
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve, listeners)
        yield server
        nursery.cancel_scope.cancel()


async def test_bytes_extents_and_many_tasks(tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with (
        served([listen_on_unix(path)], MemoryDevice(SIZE, BLOCK)),
        opened(f"nbd+unix:///disk?socket={path}") as disk,
    ):
        assert disk.export.size_bytes == SIZE

        async def one(number: int) -> None:
            await disk.write(number * BLOCK, bytes([number]) * BLOCK, fua=number % 2 == 0)
            assert await disk.read(number * BLOCK, BLOCK) == bytes([number]) * BLOCK

        async with trio.open_nursery() as nursery:
            for number in range(1, 100):
                nursery.start_soon(one, number)
        await disk.zero(0, 2 * BLOCK)
        await disk.trim(98 * BLOCK, 2 * BLOCK)
        await disk.flush()
        found = await disk.extents(0, SIZE)
        assert found[0] == Extent(2 * BLOCK, hole=True, zero=True)
        assert found[1] == Extent(96 * BLOCK, hole=False, zero=False)
        assert await disk.read(0, 0) == b""
        with pytest.raises(RequestFailed) as failed:
            await disk.read(SIZE, BLOCK)
        assert failed.value.errno == errno.EINVAL


async def test_tls(tmp_path: Path) -> None:
    authority = trustme.CA()
    theirs = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(theirs)
    client_side = ssl.create_default_context()
    authority.configure_trust(client_side)
    listeners = await listen_on_tcp("127.0.0.1", 0)
    port = listeners[0].socket.getsockname()[1]
    async with served(listeners, MemoryDevice(SIZE, BLOCK), tls=theirs, require_tls=True):
        async with opened(f"nbds://127.0.0.1:{port}/disk", tls=client_side) as disk:
            await disk.write(0, b"x" * BLOCK)
            assert await disk.read(0, BLOCK) == b"x" * BLOCK
        with pytest.raises(ExportRefused, match="use nbds"):
            async with opened(f"nbd://127.0.0.1:{port}/disk"):
                pass
        with pytest.raises(UsageError, match="needs TLS"):
            async with opened(f"nbds://127.0.0.1:{port}/disk"):
                pass


async def test_a_cancelled_read_leaves_the_connection_sound(tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with (
        served([listen_on_unix(path)], MemoryDevice(SIZE, BLOCK)),
        opened(f"nbd+unix:///disk?socket={path}") as disk,
    ):
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(disk.read, 0, SIZE)
                await trio.lowlevel.checkpoint()
                scope.cancel()
        await disk.write(0, b"y" * BLOCK)
        assert await disk.read(0, BLOCK) == b"y" * BLOCK


@pytest.mark.parametrize(("sent", "kind"), [(b"", ConnectionLost), (b"this is no answer", RemoteError)])
async def test_whoever_waits_hears_why_it_ended(tmp_path: Path, sent: bytes, kind: type[Exception]) -> None:
    path = tmp_path / "s"
    listening = trio.socket.socket(trio.socket.AF_UNIX)
    await listening.bind(str(path))
    listening.listen()

    async def misbehave(stream: trio.SocketStream) -> None:
        handshake = server_side()
        await stream.send_all(handshake.greeting())
        while handshake.agreement is None:
            answer, _ = handshake.receive(await stream.receive_some(4096))
            await stream.send_all(answer)
        await stream.receive_some(28)
        await stream.send_all(sent)
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, misbehave, [trio.SocketListener(listening)])
        async with opened(f"nbd+unix:///?socket={path}") as disk:
            for _ in range(2):
                with pytest.raises(kind):
                    await disk.read(0, BLOCK)
        nursery.cancel_scope.cancel()
