"""One connection under asyncio: where its bytes come in and go out, without a task.

What it is for: :class:`SocketLink` is a plain socket that the loop watches. It receives straight into the memory that
its receiver names, and sends buffers where they are; a transport of asyncio would copy whatever the kernel does not
take at once. :class:`TlsLink` is asyncio's own encryption under the same two ideas.

What it guarantees: frames leave whole and in order. :meth:`withdraw` takes a frame back that has not begun; of one
that has, the rest is copied first, so the memory it came from is free when the call returns and the stream stays
sound. A receiver's error ends the link, and :meth:`Receiver.lost` is called exactly once.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import deque
from typing import Protocol

Buffers = list[memoryview]

TURNS_MAX = 4
"""Receives in a row before the loop's other callbacks get their turn."""


class Receiver(Protocol):
    """Who takes the bytes."""

    def target(self) -> memoryview:
        """Where the next bytes go; at least one byte long."""
        ...

    def received(self, count: int) -> None:
        """So many bytes are there."""
        ...

    def lost(self, error: Exception | None) -> None:
        """The link is over: by this error, or because the peer closed it."""
        ...


class Link(Protocol):
    receiver: Receiver

    def send(self, key: int, buffers: Buffers) -> None:
        """Send these soon, as one frame; the memory must stay as it is until an answer comes, or :meth:`withdraw`."""
        ...

    def withdraw(self, key: int) -> bool:
        """Give the memory of the frame back; whether none of it was sent, so that it never will be."""
        ...

    def close(self) -> None:
        """End the link; nobody is told."""
        ...


class SocketLink:
    """A connected stream socket that does not block."""

    def __init__(self, loop: asyncio.AbstractEventLoop, connected: socket.socket, receiver: Receiver) -> None:
        self.receiver = receiver
        self._loop = loop
        self._socket = connected
        self._outgoing: deque[tuple[int, Buffers]] = deque()
        self._begun = False  # the first frame has left in part
        self._writing = False  # the loop watches for room
        self._open = True
        loop.add_reader(connected.fileno(), self._readable)

    def send(self, key: int, buffers: Buffers) -> None:
        if not self._open:
            return
        self._outgoing.append((key, buffers))
        if not self._writing:
            self._writable()

    def withdraw(self, key: int) -> bool:
        for index, (other, buffers) in enumerate(self._outgoing):
            if other == key:
                if index or not self._begun:
                    del self._outgoing[index]
                    return True
                self._outgoing[0] = (key, [memoryview(b"".join(buffers))])
        return False

    def detach(self) -> socket.socket:
        """The socket, which this link does not look at any more."""
        self._stop()
        return self._socket

    def close(self) -> None:
        if self._open:
            self._stop()
            self._socket.close()

    def _stop(self) -> None:
        self._open = False
        self._outgoing.clear()
        self._loop.remove_reader(self._socket.fileno())
        if self._writing:
            self._loop.remove_writer(self._socket.fileno())

    def _lose(self, error: Exception | None) -> None:
        if self._open:
            self.close()
            self.receiver.lost(error)

    def _readable(self) -> None:
        for _ in range(TURNS_MAX):
            try:
                count = self._socket.recv_into(self.receiver.target())
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                self._lose(error)
                return
            if not count:
                self._lose(None)
                return
            try:
                self.receiver.received(count)
            except Exception as error:  # noqa: BLE001 — whoever waits for an answer gets it
                self._lose(error)
            if not self._open:
                return

    def _writable(self) -> None:
        """Send until the kernel takes no more, then be called again when it does."""
        outgoing = self._outgoing
        while outgoing:
            key, buffers = outgoing[0]
            try:
                count = self._socket.sendmsg(buffers)
            except (BlockingIOError, InterruptedError):
                break
            except OSError as error:
                # Not from within send: whoever sends is not waiting for its answer yet.
                self._loop.call_soon(self._lose, error)
                outgoing.clear()
                break
            left = _advance(buffers, count)
            self._begun = bool(left)
            if left:
                outgoing[0] = (key, left)
            else:
                outgoing.popleft()
        if bool(outgoing) != self._writing and self._open:
            self._writing = not self._writing
            if self._writing:
                self._loop.add_writer(self._socket.fileno(), self._writable)
            else:
                self._loop.remove_writer(self._socket.fileno())


class TlsLink(asyncio.BufferedProtocol):
    """An encrypted connection. What is sent is copied by the encryption, so no frame is ever taken back."""

    def __init__(self, receiver: Receiver) -> None:
        self.receiver = receiver
        self._transport: asyncio.Transport | None = None
        self._open = True

    @classmethod
    async def over(
        cls, connected: socket.socket, context: ssl.SSLContext, server_name: str, receiver: Receiver
    ) -> TlsLink:
        """Encrypt a connected socket; raises :class:`OSError` (also an ``ssl.SSLError``) where that fails."""
        loop = asyncio.get_running_loop()
        _, link = await loop.create_connection(
            lambda: cls(receiver), sock=connected, ssl=context, server_hostname=server_name
        )
        return link

    def send(self, key: int, buffers: Buffers) -> None:
        if self._transport is not None and self._open:
            self._transport.writelines(buffers)

    def withdraw(self, key: int) -> bool:
        return False

    def close(self) -> None:
        self._open = False
        if self._transport is not None:
            self._transport.close()

    # --- asyncio calls these ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.receiver.target()

    def buffer_updated(self, count: int) -> None:
        if not self._open:
            return
        try:
            self.receiver.received(count)
        except Exception as error:  # noqa: BLE001 — whoever waits for an answer gets it
            self._lose(error)

    def eof_received(self) -> None:
        self._lose(None)

    def connection_lost(self, error: Exception | None) -> None:
        self._lose(error)

    def _lose(self, error: Exception | None) -> None:
        if self._open:
            self.close()
            self.receiver.lost(error)


def _advance(buffers: Buffers, count: int) -> Buffers:
    """What is left of ``buffers`` after their first ``count`` bytes."""
    for index, buffer in enumerate(buffers):
        if count < len(buffer):
            return [buffer[count:], *buffers[index + 1 :]]
        count -= len(buffer)
    return []
