"""How bytes get in and out of one connection: a raw socket, or TLS over it.

What it is for: both try first and wait only where there is nothing to do, because the event loop costs more than the
system call (performance.md, rule 2). ``None`` says that the kernel has nothing or takes nothing now.

What it guarantees: no call blocks the loop. A peer that is gone is an :class:`OSError` (``ssl.SSLError`` is one).
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from typing import Protocol

import trio

from crucible_emu.wire.constants import UNIX_SEND_BUFFER_BYTES

BUFFERS_MAX = 1000
"""Buffers in one ``sendmsg``; the kernel takes 1,024."""
KEY_CHANGE_PAUSE_S = 0.01

Buffer = bytes | memoryview


class Transport(Protocol):
    """Bytes of one connection. ``buffers_max``: how many buffers :meth:`send` looks at."""

    buffers_max: int

    def receive_into(self, target: memoryview) -> int | None:
        """Bytes received, 0 at the end of the stream, ``None`` where :meth:`readable` has to be waited for."""
        ...

    def send(self, buffers: list[Buffer]) -> int | None:
        """How many bytes of ``buffers`` (some, none empty) went out; ``None``: wait for :meth:`writable`."""
        ...

    async def readable(self) -> None: ...

    async def writable(self) -> None: ...

    def end_of_sending(self) -> None:
        """Tell the peer that nothing more comes."""

    def close(self) -> None: ...


class PlainTransport:
    """A connected, non-blocking stream socket."""

    buffers_max = BUFFERS_MAX

    def __init__(self, connected: socket.socket) -> None:
        if connected.family == socket.AF_UNIX:
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNIX_SEND_BUFFER_BYTES)
        self.socket = connected

    def receive_into(self, target: memoryview) -> int | None:
        try:
            return self.socket.recv_into(target)
        except BlockingIOError:
            return None

    def send(self, buffers: list[Buffer]) -> int | None:
        try:
            if len(buffers) == 1:
                return self.socket.send(buffers[0])
            return self.socket.sendmsg(buffers)
        except BlockingIOError:
            return None

    async def readable(self) -> None:
        await trio.lowlevel.wait_readable(self.socket)

    async def writable(self) -> None:
        await trio.lowlevel.wait_writable(self.socket)

    def end_of_sending(self) -> None:
        with contextlib.suppress(OSError):  # the peer may be gone already
            self.socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.socket.close()


class TlsTransport:
    """TLS over a connected, non-blocking stream socket; :meth:`handshake` comes first."""

    buffers_max = 1

    def __init__(self, connected: socket.socket, context: ssl.SSLContext) -> None:
        self.socket = context.wrap_socket(connected, server_side=True, do_handshake_on_connect=False)
        self._receiving_has_to_send = False

    async def handshake(self) -> None:
        """Raises :class:`ssl.SSLError` where the peer is not one of ours, :class:`OSError` where it left."""
        while True:
            try:
                self.socket.do_handshake()
            except ssl.SSLWantReadError:
                await trio.lowlevel.wait_readable(self.socket)
            except ssl.SSLWantWriteError:
                await trio.lowlevel.wait_writable(self.socket)
            else:
                return

    def receive_into(self, target: memoryview) -> int | None:
        try:
            return self.socket.recv_into(target)
        except ssl.SSLWantReadError:
            return None
        except ssl.SSLWantWriteError:
            self._receiving_has_to_send = True
            return None

    def send(self, buffers: list[Buffer]) -> int | None:
        try:
            return self.socket.send(buffers[0])
        except ssl.SSLWantWriteError:
            return None

    async def readable(self) -> None:
        if self._receiving_has_to_send:
            # The answer to a change of keys does not fit into the socket. The task that sends waits for that anyhow,
            # and two may not wait for the same; a pause is enough for what hardly ever happens.
            self._receiving_has_to_send = False
            await trio.sleep(KEY_CHANGE_PAUSE_S)
        else:
            await trio.lowlevel.wait_readable(self.socket)

    async def writable(self) -> None:
        await trio.lowlevel.wait_writable(self.socket)

    def end_of_sending(self) -> None:
        # TLS's own goodbye would have to be answered; the end of the stream is goodbye enough on this wire (§1.1).
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.socket.close()
