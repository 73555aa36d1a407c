"""The server around connections: where it listens, what it exports, TLS, socket activation, its numbers, its end."""

import contextlib
import errno
import os
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from nbd_devices import HeldDevice
from nbd_door import Certificates, door
from nbd_plain_client import PlainClient, go, option, option_replies
from trio.testing import MockClock, wait_all_tasks_blocked

from crucible_emu.blockio_memory import MemoryDevice
from crucible_emu.errors import UsageError
from crucible_emu.nbd import Export, Listener, Server, inherited_listeners, listen_on_tcp, listen_on_unix, parse_uri
from crucible_emu.nbd import protocol as p
from crucible_emu.nbd import server as server_module

C = p.Command


def memory(size: int = 1 << 20, block_size: int = 512, *, read_only: bool = False) -> MemoryDevice:
    return MemoryDevice(size, block_size, read_only=read_only)


@asynccontextmanager
async def serving(server: Server, *listeners: Listener) -> AsyncIterator[trio.Nursery]:
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve, listeners)
        yield nursery
        nursery.cancel_scope.cancel()


# --- where it listens ---


async def test_a_unix_socket_is_served_and_removed_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "x y.sock"
    listener = listen_on_unix(path)
    assert parse_uri(str(listener.uri("a"))).socket == str(path)
    async with serving(Server({"a": Export(memory())}), listener):
        async with await trio.open_unix_socket(str(path)) as stream:
            client = await PlainClient(stream).enter("a")
            await client.write(0, b"x" * 512)
        assert path.exists()
    assert not path.exists()


async def test_a_stale_socket_is_replaced_and_one_in_use_is_not(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    abandoned = socket.socket(socket.AF_UNIX)
    abandoned.bind(str(path))
    abandoned.close()
    listener = listen_on_unix(path)
    with pytest.raises(UsageError, match="in use by another server"):
        listen_on_unix(path)
    listener.close()
    listener.close()
    assert not path.exists()


def test_another_servers_socket_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    listener = listen_on_unix(path)
    os.rename(path, tmp_path / "moved.sock")
    replacement = listen_on_unix(path)
    listener.close()
    assert path.exists()
    replacement.close()


@pytest.mark.parametrize(
    ("name", "says"), [("file", "is not a socket"), ("none/s.sock", "folder that exists"), ("s" * 200, "too long")]
)
def test_a_path_that_cannot_be_a_socket_gets_a_clear_sentence(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / "file").write_text("keep me")
    with pytest.raises(UsageError, match=says):
        listen_on_unix(tmp_path / name)
    assert (tmp_path / "file").read_text() == "keep me"


async def test_tcp_finds_a_free_port_and_says_which() -> None:
    listeners = await listen_on_tcp("127.0.0.1", 0)
    uri = listeners[0].uri("disk")
    assert uri.port != 0 and str(uri) == f"nbd://127.0.0.1:{uri.port}/disk"
    async with serving(Server({"disk": Export(memory())}), *listeners):
        async with await trio.open_tcp_stream(uri.host, uri.port) as stream:
            client = await PlainClient(stream).enter("disk")
            await client.write(0, b"x" * (1 << 20))
            assert await client.read(0, 1 << 20) == b"x" * (1 << 20)
        with pytest.raises(UsageError, match=f"port {uri.port}"):
            await listen_on_tcp("127.0.0.1", uri.port)
    with pytest.raises(UsageError, match="outside"):
        await listen_on_tcp("127.0.0.1", 70000)


async def test_a_wildcard_address_is_told_as_one_that_works() -> None:
    listeners = await listen_on_tcp(None, 0)
    assert {listener.uri().host for listener in listeners} <= {"127.0.0.1", "::1"}
    for listener in listeners:
        listener.close()


# --- socket activation ---


def activation(*descriptors: int, **changes: str) -> dict[str, str]:
    return {"LISTEN_PID": "77", "LISTEN_FDS": str(len(descriptors)), "LISTEN_FDNAMES": "a", **changes}


def test_activation_takes_over_listening_sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "s.sock"))
    listening.listen()
    monkeypatch.setattr("crucible_emu.nbd.listeners.FIRST_INHERITED_FD", listening.fileno())
    environ = activation(listening.fileno())
    (found,) = inherited_listeners(environ, pid=77)
    assert environ == {}
    assert found.socket.fileno() == listening.fileno() and not os.get_inheritable(listening.fileno())
    assert found.uri().socket == str(tmp_path / "s.sock")
    listening.detach()
    found.close()
    assert (tmp_path / "s.sock").exists(), "the file belongs to whoever made it"


@pytest.mark.parametrize("environ", [{}, {"LISTEN_FDS": "1"}, {"LISTEN_FDS": "1", "LISTEN_PID": "78"}])
def test_activation_meant_for_another_process_is_ignored(environ: dict[str, str]) -> None:
    before = dict(environ)
    assert inherited_listeners(environ, pid=77) == []
    assert environ == before


def test_activation_that_is_wrong_gets_a_clear_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="LISTEN_FDS is 'two'"):
        inherited_listeners(activation(LISTEN_FDS="two"), pid=77)
    with open(tmp_path / "file", "w") as file:
        monkeypatch.setattr("crucible_emu.nbd.listeners.FIRST_INHERITED_FD", file.fileno())
        with pytest.raises(UsageError, match="is no socket"):
            inherited_listeners(activation(0), pid=77)
    with socket.socket(socket.AF_UNIX) as idle:
        monkeypatch.setattr("crucible_emu.nbd.listeners.FIRST_INHERITED_FD", idle.fileno())
        with pytest.raises(UsageError, match="does not listen"):
            inherited_listeners(activation(0), pid=77)
        assert idle.fileno() >= 0, "a socket that is not ours stays open"


# --- what it exports ---


async def test_exports_by_name_each_with_its_own_device() -> None:
    exports = {
        "": Export(memory()),
        "b": Export(memory(2 << 20, 4096), "the big one"),
        "ro": Export(memory(read_only=True)),
    }
    async with door(exports) as here:
        client = here.knock()
        await client.greet()
        listed = await client.ask(option(p.Option.LIST))
        assert [data[4:].decode() for kind, data in listed if kind == p.Reply.SERVER] == ["", "b", "ro"]
        described = await client.ask(go("b", [p.Info.DESCRIPTION]))
        assert b"\0\2the big one" in [data for _, data in described]
        first, second = await here.connect(""), await here.connect("b")
        await first.write(0, b"1" * 512)
        assert (await second.read(0, 512), second.size_bytes) == (bytes(512), 2 << 20)


@pytest.mark.parametrize("export", [Export(memory(read_only=True)), Export(memory(), read_only=True)])
async def test_a_read_only_export_is_told_and_kept(export: Export) -> None:
    async with door({"": export}) as here:
        client = await here.connect()
        assert client.flags & p.TransmissionFlag.READ_ONLY and not client.flags & p.TransmissionFlag.SEND_TRIM
        for command, data in ((C.WRITE, b"x" * 512), (C.WRITE_ZEROES, b""), (C.TRIM, b"")):
            assert (await client.call(command, 0, 512, data=data)).errno == p.Errno.EPERM
        assert await client.read(0, 512) == bytes(512)


async def test_exports_may_come_and_go() -> None:
    exports = {"a": Export(memory())}
    async with door(exports) as here:
        stays = await here.connect("a")
        exports["b"] = exports.pop("a")
        await (await here.connect("b")).write(0, b"x" * 512)
        assert await stays.read(0, 512) == b"x" * 512
        late = here.knock()
        await late.greet()
        assert (await late.ask(go("a")))[-1][0] == p.Reply.ERR_UNKNOWN


async def test_two_names_of_one_device_share_its_line_of_unaligned_writes() -> None:
    device = HeldDevice(memory(block_size=4096))
    async with door({"a": Export(device), "b": Export(device)}) as here:
        first, second = await here.connect("a"), await here.connect("b")
        one = await first.send(C.WRITE, 0, data=b"a" * 100)
        two = await second.send(C.WRITE, 100, data=b"b" * 100)
        await wait_all_tasks_blocked()
        assert len(device.held) == 1, "the second waits for the first one's block"
        device.on_admission = device.release_all
        device.release_all()
        await first.answer(one)
        await second.answer(two)
        assert bytes(device.memory.data[:200]) == b"a" * 100 + b"b" * 100


@pytest.mark.parametrize(
    ("name", "export", "says"),
    [
        ("n" * 5000, Export(memory()), "too long"),
        ("", Export(memory(), description="d" * 5000), "too long"),
        ("", Export(memory(1200, 600)), "power of two"),
        ("", Export(memory(1 << 20, 1 << 17)), "power of two"),
    ],
)
def test_an_export_that_no_client_could_use_is_refused(name: str, export: Export, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Server({name: export})


# --- clients in numbers ---


async def test_one_client_too_many_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    server = Server({"": Export(memory())}, connections_max=2)
    async with serving(server, listen_on_unix(path)):
        streams = [await trio.open_unix_socket(str(path)) for _ in range(3)]
        for stream in streams[:2]:
            await PlainClient(stream).enter()
        assert await streams[2].receive_some() == b""
        await streams[0].aclose()
        await wait_all_tasks_blocked()
        streams.append(await trio.open_unix_socket(str(path)))
        await PlainClient(streams[3]).enter()
        assert server.statistics.connections_refused == 1
        for stream in streams:
            await stream.aclose()


async def test_running_out_of_descriptors_is_waited_out(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, expect_log: object
) -> None:
    class Exhausted:
        """A listening socket whose accept fails twice: no descriptors, then a client that left."""

        def __init__(self, listening: socket.socket) -> None:
            self._listening = listening
            self._failures = [errno.ECONNABORTED, errno.EMFILE]

        def accept(self) -> object:
            if self._failures:
                number = self._failures.pop()
                raise OSError(number, os.strerror(number))
            return self._listening.accept()

        def __getattr__(self, name: str) -> object:
            return getattr(self._listening, name)

    expect_log("cannot accept a connection")  # type: ignore[operator]
    listener = listen_on_unix(tmp_path / "s.sock")
    odd = Listener(Exhausted(listener.socket), listener.made)  # type: ignore[arg-type]
    async with serving(Server({"": Export(memory())}), odd):
        async with await trio.open_unix_socket(str(tmp_path / "s.sock")) as stream:
            await PlainClient(stream).enter()
        assert trio.current_time() == pytest.approx(server_module.ACCEPT_PAUSE_S)


async def test_the_statistics_tell_what_happened() -> None:
    async with door({"": Export(memory())}) as here:
        client = await here.connect()
        await client.write(0, b"x" * 1024)
        await client.read(0, 512)
        await client.call(77)
        await client.send(C.DISC)
        await wait_all_tasks_blocked()
        assert here.server.statistics.snapshot().as_dict() == {
            "connections": 1,
            "connections_open": 0,
            "connections_refused": 0,
            "tls_connections": 0,
            "read_bytes": 512,
            "written_bytes": 1024,
            "requests": {"READ": 1, "WRITE": 1, "unknown": 1},
            "errors": {"EINVAL": 1},
            "batches": {"<2": 2},
        }


# --- its end ---


async def test_shutdown_ends_serving_when_the_last_client_is_answered(tmp_path: Path) -> None:
    device = HeldDevice(memory())
    server = Server({"": Export(device)})
    path = tmp_path / "s.sock"
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve, [listen_on_unix(path)])
        async with await trio.open_unix_socket(str(path)) as stream:
            client = await PlainClient(stream).enter()
            cookie = await client.send(C.WRITE, 0, data=b"x" * 512)
            await wait_all_tasks_blocked()
            server.shut_down()
            await wait_all_tasks_blocked()
            assert not path.exists()
            device.release_all()
            assert (await client.answer(cookie)).errno == 0


async def test_shutdown_does_not_wait_for_ever(tmp_path: Path, autojump_clock: MockClock) -> None:
    device = HeldDevice(memory())
    server = Server({"": Export(device)})
    path = tmp_path / "s.sock"
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve, [listen_on_unix(path)])
        async with await trio.open_unix_socket(str(path)) as stream:
            client = await PlainClient(stream).enter()
            await client.send(C.WRITE, 0, data=b"x" * 512)
            await wait_all_tasks_blocked()
            server.shut_down(grace_s=3)
            assert await stream.receive_some() == b""
            assert trio.current_time() == pytest.approx(3)
    device.release_all()


async def test_shutdown_before_the_first_client_ends_at_once(tmp_path: Path) -> None:
    server = Server({"": Export(memory())})
    server.shut_down()
    await server.serve([listen_on_unix(tmp_path / "s.sock")])
    assert not (tmp_path / "s.sock").exists()


# --- TLS ---


def test_requiring_tls_needs_a_certificate() -> None:
    with pytest.raises(UsageError, match="no certificate"):
        Server({}, require_tls=True)


async def until_closed(client: PlainClient) -> bytes:
    """Everything that still comes."""
    data = b""
    with contextlib.suppress(trio.BrokenResourceError):
        while more := await client.stream.receive_some(100):
            data += more
    return data


async def encrypted(client: PlainClient, certificates: Certificates) -> PlainClient:
    """The same client after STARTTLS, its handshake still to come."""
    assert (await client.ask(option(p.Option.STARTTLS)))[-1][0] == p.Reply.ACK
    context = ssl.create_default_context(cafile=str(certificates.folder / "ca-cert.pem"))
    stream = trio.SSLStream(client.stream, context, server_hostname="localhost")
    await stream.do_handshake()
    return PlainClient(stream)


@pytest.mark.parametrize("require_tls", [False, True])
async def test_a_client_may_or_must_encrypt(certificates: Certificates, require_tls: bool) -> None:
    exports = {"": Export(memory(8 << 20))}
    async with door(exports, tls=certificates.server, require_tls=require_tls) as here:
        plain = here.knock()
        await plain.greet()
        if require_tls:
            assert (await plain.ask(go("")))[-1][0] == p.Reply.ERR_TLS_REQD
        client = await encrypted(plain, certificates)
        assert (await client.ask(option(p.Option.STARTTLS)))[-1][0] == p.Reply.ERR_INVALID
        assert (await client.ask(option(p.Option.STRUCTURED_REPLY)))[-1][0] == p.Reply.ACK
        assert (await client.ask(go("")))[-1][0] == p.Reply.ACK
        data = os.urandom(4 << 20)
        await client.write(1 << 20, data)
        cookies = [await client.send(C.READ, (1 << 20) + n * 65536, 65536) for n in range(64)]
        found = [bytes((await client.answer(cookie)).data) for cookie in cookies]
        assert b"".join(found) == data
        await client.send(C.DISC)
        assert await client.stream.receive_some(1) == b"", "the goodbye of TLS, not a broken stream"
        assert here.server.statistics.tls_connections == 1


async def test_a_failed_tls_handshake_costs_that_connection(certificates: Certificates) -> None:
    async with door({"": Export(memory())}, tls=certificates.server) as here:
        client = here.knock()
        await client.greet()
        assert (await client.ask(option(p.Option.STARTTLS)))[-1][0] == p.Reply.ACK
        await client.stream.send_all(b"this is no TLS at all")
        await until_closed(client)
        await wait_all_tasks_blocked()
        assert here.server.statistics.errors == {"disconnected": 1}
        await (await here.connect()).write(0, b"x" * 512)


async def test_options_injected_before_tls_end_the_connection(certificates: Certificates) -> None:
    async with door({"": Export(memory())}, tls=certificates.server) as here:
        client = here.knock()
        await client.greet()
        await client.stream.send_all(option(p.Option.STARTTLS) + go(""))
        assert option_replies(await until_closed(client)) == []
        assert here.server.statistics.errors == {"RemoteError": 1}
