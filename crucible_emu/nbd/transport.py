"""How bytes get in and out of one connection: a raw socket, or TLS over it.

What it is for: the connection asks for bytes into its own memory and hands over lists of buffers. The raw socket is the
fast path: ``recvmsg_into`` and ``sendmsg`` at once, and the event loop only where the kernel has nothing or takes
nothing (29 µs for a ping-pong instead of 76 with a stream, performance.md, rule 2). TLS goes through Trio's stream.

What it guarantees: a socket that does not take bytes never blocks the loop. Both raise ``OSError`` or
``trio.BrokenResourceError`` when the peer is gone, gathered in :data:`BROKEN`.
"""

from __future__ import annotations

import socket
import ssl
from time import perf_counter
from typing import Protocol

import trio

from crucible_emu.nbd.eagerness import Eagerness

BROKEN = (OSError, trio.BrokenResourceError, trio.ClosedResourceError)
"""What a transport raises when its peer is gone."""

BUFFERS_MAX = 1000
"""Buffers in one ``sendmsg``; the kernel takes 1,024."""

Buffers = list[bytes | memoryview]

TURN_S = 250e-6
"""How long receives in a row may succeed at once before other tasks get their turn."""

ASKING_S = 60e-6
"""How long the socket of a client that has got all its answers is asked again before the loop sleeps. *Optimisation*:
its next request arrives within some 40 µs, and a sleep costs as much again on both sides. Of a client with many
requests under way the next ones are taken a few at a time, so that both are at work at once, rather than in turns."""

SEND_BUFFER_BYTES = 2 * 1024 * 1024
"""What a unix socket may hold for a client that is slower than we are, if the system allows it. *Optimisation*: the
usual 208 KiB cut a reply of 1 MiB into five pieces, and each piece but the first costs a trip through the loop."""


def advance(buffers: Buffers, count: int) -> Buffers:
    """What is left of ``buffers`` after their first ``count`` bytes."""
    for index, buffer in enumerate(buffers):
        if count < len(buffer):
            return [memoryview(buffer)[count:], *buffers[index + 1 :]]
        count -= len(buffer)
    return []


class Transport(Protocol):
    """Bytes of one connection."""

    async def receive(self, targets: list[memoryview], eager: bool = False) -> int:
        """Fill ``targets`` with what is there, at least one byte; 0 at the end of the stream.

        ``eager``: the client got the last of its answers just now, so that its next request is likely to be close.
        """
        ...

    def send_now(self, buffers: Buffers) -> Buffers:
        """Send what goes at once; return the rest."""
        ...

    async def send(self, buffers: Buffers) -> None:
        """Send everything."""
        ...

    async def close(self) -> None:
        """Say goodbye where that is possible, and close; a second call does nothing."""
        ...


class SocketTransport:
    """A connected, non-blocking stream socket."""

    def __init__(self, connected: socket.socket) -> None:
        connected.setblocking(False)
        if connected.family in (socket.AF_INET, socket.AF_INET6):
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        else:
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        self.socket = connected
        self._turn_ends = 0.0
        self._eagerness = Eagerness()
        self._closed = False

    async def receive(self, targets: list[memoryview], eager: bool = False) -> int:
        connected = self.socket
        while True:
            try:
                count = connected.recv_into(targets[0]) if len(targets) == 1 else connected.recvmsg_into(targets)[0]
            except BlockingIOError:
                if eager and self._eagerness.willing() and (found := self._ask_again(targets)) is not None:
                    await self._take_turn()
                    return found
                eager = False
                await trio.lowlevel.wait_readable(connected)
                self._turn_ends = perf_counter() + TURN_S
                continue
            await self._take_turn()
            return count

    async def _take_turn(self) -> None:
        if perf_counter() >= self._turn_ends:
            await trio.lowlevel.checkpoint()
            self._turn_ends = perf_counter() + TURN_S

    def _ask_again(self, targets: list[memoryview]) -> int | None:
        """Receive without sleeping for :data:`ASKING_S`: the count, or None where nothing came."""
        receive, until = self.socket.recvmsg_into, perf_counter() + ASKING_S
        while perf_counter() < until:
            try:
                count = receive(targets)[0]
            except BlockingIOError:
                continue
            self._eagerness.asked(found=True)
            return count
        self._eagerness.asked(found=False)
        return None

    def send_now(self, buffers: Buffers) -> Buffers:
        connected = self.socket
        while buffers:
            train = buffers if len(buffers) <= BUFFERS_MAX else buffers[:BUFFERS_MAX]
            try:
                sent = connected.send(train[0]) if len(train) == 1 else connected.sendmsg(train)
            except BlockingIOError:
                return buffers
            buffers = advance(buffers, sent)
        return buffers

    async def send(self, buffers: Buffers) -> None:
        while buffers := self.send_now(buffers):
            await trio.lowlevel.wait_writable(self.socket)

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            trio.lowlevel.notify_closing(self.socket)
            self.socket.close()

    async def encrypted(self, context: ssl.SSLContext) -> TlsTransport:
        """The same connection after a TLS handshake; this object must not be used any more."""
        stream = trio.SSLStream(
            trio.SocketStream(trio.socket.from_stdlib_socket(self.socket)),
            context,
            server_side=True,
        )
        await stream.do_handshake()
        return TlsTransport(stream)


class TlsTransport:
    """An encrypted stream. Everything that is sent waits its turn in the sender's task."""

    def __init__(self, stream: trio.SSLStream[trio.SocketStream]) -> None:
        self._stream = stream

    async def receive(self, targets: list[memoryview], eager: bool = False) -> int:
        target = targets[0]
        data = await self._stream.receive_some(len(target))
        target[: len(data)] = data
        return len(data)

    def send_now(self, buffers: Buffers) -> Buffers:
        return buffers

    async def send(self, buffers: Buffers) -> None:
        await self._stream.send_all(b"".join(buffers))

    async def close(self) -> None:
        with trio.move_on_after(1):  # a peer that is gone does not take the goodbye
            await self._stream.aclose()
