"""Servers for tests: in the test's own loop over socket pairs, or in a thread of its own for programs from outside."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio
from nbd_plain_client import PlainClient

from crucible_emu.nbd import Export, Listener, NbdUri, Server, listen_on_unix


@dataclass
class Door:
    """A server in the test's own loop; its clients come over socket pairs."""

    server: Server
    nursery: trio.Nursery
    streams: list[trio.SocketStream]

    def knock(self) -> PlainClient:
        """A client that has said nothing yet."""
        ours, theirs = socket.socketpair()
        return self.attend(ours, theirs)

    def attend(self, ours: socket.socket, theirs: socket.socket) -> PlainClient:
        """The same over a pair of sockets that the test made."""
        self.nursery.start_soon(self.server.serve_socket, theirs)
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
        self.streams.append(stream)
        return PlainClient(stream)

    async def connect(self, name: str = "", *, structured: bool = True, queries: Sequence[str] = ()) -> PlainClient:
        """A client in transmission."""
        return await self.knock().enter(name, structured=structured, queries=queries)


@asynccontextmanager
async def door(exports: Mapping[str, Export], **settings: Any) -> AsyncIterator[Door]:
    async with trio.open_nursery() as nursery:
        here = Door(Server(exports, **settings), nursery, [])
        try:
            yield here
        finally:
            nursery.cancel_scope.cancel()
            for stream in here.streams:
                stream.socket.close()


@dataclass(frozen=True)
class Certificates:
    """A certificate authority and what it signed: a context for the server, PEM files in ``folder`` for clients
    (ca-cert.pem, client-cert.pem, client-key.pem, the names that qemu and libnbd look for)."""

    server: ssl.SSLContext
    folder: Path


@dataclass
class Running:
    """A server in a thread of its own."""

    server: Server
    uri: NbdUri
    call: Callable[..., Any]
    """Run a function on the server's loop and return its result."""


@contextmanager
def running(
    exports: Mapping[str, Export], path: Path, listeners: Sequence[Listener] = (), **settings: Any
) -> Iterator[Running]:
    """Serve ``exports`` on the socket ``path`` (or on ``listeners``) until the block ends; then shut down in order."""
    ready = threading.Event()
    found: list[tuple[Server, trio.lowlevel.TrioToken]] = []
    failures: list[BaseException] = []
    uri = NbdUri("", socket=str(path))

    async def main() -> None:
        server = Server(exports, **settings)
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve, listeners or [listen_on_unix(path)])
            found.append((server, trio.lowlevel.current_trio_token()))
            ready.set()

    def run() -> None:
        try:
            trio.run(main)
        except BaseException as error:  # noqa: BLE001 — handed to the test's thread below
            failures.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=run, name="nbd server")
    thread.start()
    ready.wait()
    try:
        if found:
            server, token = found[0]
            yield Running(
                server, uri, lambda function, *args: trio.from_thread.run_sync(function, *args, trio_token=token)
            )
    finally:
        if found and thread.is_alive():
            trio.from_thread.run_sync(found[0][0].shut_down, trio_token=found[0][1])
        thread.join()
        if failures:
            raise failures[0]
