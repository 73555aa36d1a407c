"""Disks under asyncio: against our own server, and against servers that misbehave."""

from __future__ import annotations

import asyncio
import errno
import ssl
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import trio
import trustme
from hypothesis import given, settings
from hypothesis import strategies as st
from nbd_door import Running
from nbd_scripts import SIZE, data_chunk, request_of, scripted, simple

from crucible_emu.blockio_memory import MemoryDevice
from crucible_emu.client import aio
from crucible_emu.client.failures import ConnectionLost, ExportRefused, RequestFailed
from crucible_emu.errors import RemoteError, UsageError
from crucible_emu.nbd import listen_on_tcp
from crucible_emu.nbd import protocol as p
from crucible_emu.nbd.handshake import ExportInfo

Serve = Callable[..., Running]
BLOCK = 4096


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """asyncio in a test of a project on Trio; nothing here may take long."""

    async def bounded() -> Any:
        async with asyncio.timeout(60):
            return await work

    return asyncio.run(bounded())


def test_bytes_come_back_and_ranges_are_told(serve: Serve) -> None:
    device = MemoryDevice(SIZE, BLOCK)
    uri = str(serve(device).uri)

    async def main() -> None:
        async with await aio.open(uri) as disk:
            assert (disk.size_bytes, disk.block_size, disk.read_only) == (SIZE, BLOCK, False)
            assert disk.can_flush and disk.can_zero and disk.can_trim and disk.can_map
            await disk.write(BLOCK, b"a" * BLOCK)
            await disk.write(2 * BLOCK, bytearray(b"b" * BLOCK), fua=True)
            assert await disk.read(BLOCK, 2 * BLOCK) == b"a" * BLOCK + b"b" * BLOCK
            assert await disk.read(2 * BLOCK - 3, 7) == b"aaabbbb"
            assert await disk.read(SIZE - 1, 1) == b"\0"
            assert await disk.read(5, 0) == b""
            await disk.zero(BLOCK, BLOCK)
            await disk.trim(4 * BLOCK, BLOCK)
            await disk.flush()
            assert await disk.zeros(0, SIZE) == [(2 * BLOCK, True), (BLOCK, False), (SIZE - 3 * BLOCK, True)]
            assert await disk.zeros(2 * BLOCK + 1, BLOCK) == [(BLOCK - 1, False), (1, True)]

    run(main())
    assert bytes(device.data[2 * BLOCK : 3 * BLOCK]) == b"b" * BLOCK
    assert device.flushes >= 1


def test_many_requests_at_once(serve: Serve) -> None:
    uri = str(serve(MemoryDevice(SIZE, BLOCK)).uri)

    async def main() -> None:
        async with await aio.open(uri) as disk:
            blocks = [bytes([number]) * BLOCK for number in range(200)]
            await asyncio.gather(*(disk.write(number * BLOCK, data) for number, data in enumerate(blocks)))
            found = await asyncio.gather(*(disk.read(number * BLOCK, BLOCK) for number in range(200)))
            assert found == blocks

    run(main())


def test_more_than_a_payload_goes_in_parts(serve: Serve) -> None:
    size = p.PAYLOAD_BYTES_MAX + (1 << 20)
    uri = str(serve(MemoryDevice(size, BLOCK)).uri)

    async def main() -> None:
        async with await aio.open(uri) as disk:
            data = memoryview(b"x" * size)
            await disk.write(0, data)
            memory = bytearray(size)
            await disk.read_into(0, memory)
            assert memory == data

    run(main())


def test_what_cannot_be_right_is_not_sent(serve: Serve) -> None:
    uri = str(serve(MemoryDevice(SIZE, BLOCK)).uri)

    async def main() -> None:
        async with await aio.open(uri) as disk:
            for work, sentence in [
                (disk.read(SIZE, 1), "which has 1048576: ask for less"),
                (disk.read(-1, 1), "ask for less"),
                (disk.write(1, bytes(BLOCK)), "blocks have 4096 bytes, align both"),
                (disk.zero(0, 5), "align both"),
                (disk.copy_out("nowhere", offset=SIZE, length=1), "ask for less"),
            ]:
                with pytest.raises(UsageError, match=sentence):
                    await work

    run(main())


def test_a_read_only_disk_is_not_changed(serve: Serve, tmp_path: Path) -> None:
    uri = str(serve(MemoryDevice(SIZE, BLOCK), read_only=True).uri)
    image = tmp_path / "image"
    image.write_bytes(bytes(BLOCK))

    async def main() -> None:
        async with await aio.open(uri) as disk:
            assert disk.read_only
            changes = disk.write(0, bytes(BLOCK)), disk.zero(0, BLOCK), disk.trim(0, BLOCK), disk.copy_in(image)
            for change in changes:
                with pytest.raises(RequestFailed, match="read-only") as failed:
                    await change
                assert failed.value.errno == errno.EPERM
            assert await disk.read(0, 4) == bytes(4)

    run(main())


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        ("nbd+unix:///missing?socket={socket}", ExportRefused),
        ("nbds+unix:///?socket={socket}", ExportRefused),
        ("nbd+unix:///?socket={socket}.not", FileNotFoundError),
        ("nbd://127.0.0.1:1/", ConnectionRefusedError),
        ("http://127.0.0.1:1/elsewhere", UsageError),
        ("ftp://x", UsageError),
    ],
)
def test_what_is_not_there_is_not_opened(serve: Serve, address: str, kind: type[Exception]) -> None:
    socket = serve(MemoryDevice(SIZE, BLOCK)).uri.socket

    async def main() -> None:
        with pytest.raises(kind):
            await aio.open(address.format(socket=socket))

    run(main())


def test_tls_is_checked_and_works(serve: Serve, tmp_path: Path) -> None:
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    trusted, other = tmp_path / "ca.pem", tmp_path / "other.pem"
    authority.cert_pem.write_to_path(trusted)
    trustme.CA().cert_pem.write_to_path(other)
    (listener,) = trio.run(listen_on_tcp, "127.0.0.1", 0)
    serving = serve(MemoryDevice(SIZE, BLOCK), listeners=[listener], tls=context, require_tls=True)
    port = listener.socket.getsockname()[1]

    async def main() -> None:
        async with await aio.open(f"nbds://127.0.0.1:{port}/", tls_ca=str(trusted)) as disk:
            data = bytes(range(256)) * 4096
            await disk.write(0, data)
            assert await disk.read(0, len(data)) == data
        with pytest.raises(ExportRefused, match="use nbds"):
            await aio.open(f"nbd://127.0.0.1:{port}/")
        with pytest.raises(ssl.SSLError):
            await aio.open(f"nbds://127.0.0.1:{port}/", tls_ca=str(other))
        with pytest.raises(UsageError, match="no certificate authorities"):
            await aio.open(f"nbds://127.0.0.1:{port}/", tls_ca=str(tmp_path / "none.pem"))

    run(main())
    assert serving.server.statistics.tls_connections >= 1


# --- servers that misbehave ---


async def garbage(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await request_of(reader)
    writer.write(b"what a fine day it is today, is it not?")
    await reader.read()


async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await request_of(reader)


async def half_an_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    _, cookie, offset, length = await request_of(reader)
    writer.write(data_chunk(cookie, offset, bytes(length))[:-100])


@pytest.mark.parametrize(
    ("behave", "kind"), [(garbage, RemoteError), (hang_up, ConnectionLost), (half_an_answer, ConnectionLost)]
)
def test_everybody_who_waits_hears_why_the_connection_ended(tmp_path: Path, behave: Any, kind: type[Exception]) -> None:
    async def main() -> None:
        async with scripted(tmp_path / "s", behave) as uri, await aio.open(uri) as disk:
            found = await asyncio.gather(*(disk.read(n * 512, 512) for n in range(5)), return_exceptions=True)
            assert [type(failure) for failure in found] == [kind] * 5
            with pytest.raises(kind):
                await disk.flush()

    run(main())


def test_a_server_that_says_nothing_is_not_waited_for(tmp_path: Path) -> None:
    async def main() -> None:
        release = asyncio.Event()

        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await release.wait()
            writer.close()

        async with await asyncio.start_unix_server(silent, str(tmp_path / "s")):
            with pytest.raises(TimeoutError, match=r"did not agree on an export within 0\.05 s"):
                await aio.open(f"nbd+unix:///?socket={tmp_path / 's'}", timeout_s=0.05)
            release.set()

    run(main())


def test_a_cancelled_read_leaves_its_memory_alone(tmp_path: Path) -> None:
    """The race: the answer to a read arrives when the read was given up and its memory is used for something else."""

    async def main() -> None:
        begun, given_up = asyncio.Event(), asyncio.Event()

        async def late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            _, cookie, offset, length = await request_of(reader)
            answer = data_chunk(cookie, offset, b"\xff" * length)
            writer.write(answer[:1000])
            begun.set()
            await given_up.wait()
            writer.write(answer[1000:])
            _, cookie, offset, length = await request_of(reader)
            writer.write(data_chunk(cookie, offset, b"\x11" * length))
            await reader.read()

        async with scripted(tmp_path / "s", late) as uri, await aio.open(uri) as disk:
            memory = bytearray(65536)
            reading = asyncio.create_task(disk.read_into(0, memory))
            await begun.wait()
            while not any(memory):  # noqa: ASYNC110  # nothing else tells that a part of an answer is here
                await asyncio.sleep(0)
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
            memory[:] = bytes(65536)
            given_up.set()
            assert await disk.read(0, 512) == b"\x11" * 512
            assert not any(memory)

    run(main())


def test_a_write_that_is_cancelled_midway_does_not_break_the_stream(tmp_path: Path) -> None:
    """The race: a write is given up when a part of it has left; what follows must still begin at its own beginning."""
    length = 8 << 20  # more than a socket takes

    async def main() -> None:
        go_on = asyncio.Event()
        seen = []

        async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await go_on.wait()
            for _ in range(2):
                command, cookie, offset, count = await request_of(reader)
                payload = await reader.readexactly(count) if command == p.Command.WRITE else b""
                seen.append((command, offset, count, payload[-1:]))
                writer.write(simple(cookie))
            await reader.read()

        info = ExportInfo("", 64 << 20, 512)
        async with scripted(tmp_path / "s", slow, info) as uri, await aio.open(uri) as disk:
            data = bytearray(b"a" * length)
            midway = asyncio.create_task(disk.write(0, data))
            not_begun = asyncio.create_task(disk.write(length, bytes(length)))
            for _ in range(5):
                await asyncio.sleep(0)
            for task in (midway, not_begun):
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            data[:] = b"b" * length  # it is the caller's again
            go_on.set()
            await disk.flush()
        assert seen == [(p.Command.WRITE, 0, length, b"a"), (p.Command.FLUSH, 0, 0, b"")]

    run(main())


@settings(max_examples=20)
@given(st.binary(min_size=1, max_size=200), st.booleans())
def test_no_server_makes_a_read_hang_or_crash(sent: bytes, with_cookie: bool) -> None:
    async def main() -> None:
        async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            _, cookie, _, _ = await request_of(reader)
            writer.write((simple(cookie) if with_cookie else b"") + sent)

        with tempfile.TemporaryDirectory() as folder:
            async with scripted(Path(folder) / "s", behave) as uri, await aio.open(uri) as disk:
                with pytest.raises((RemoteError, OSError)):
                    await disk.read(0, 512)

    run(main())


def test_a_closed_disk_says_so(serve: Serve) -> None:
    uri = str(serve(MemoryDevice(SIZE, BLOCK)).uri)

    async def main() -> None:
        disk = await aio.open(uri)
        await disk.close()
        await disk.close()
        with pytest.raises(ConnectionLost, match="closed here"):
            await disk.read(0, 1)

    run(main())
