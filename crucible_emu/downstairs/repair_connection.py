"""HTTP to a repair service, for whole extents: h11 for the words, big pieces from the socket.

Why not an HTTP client: an extent of 16 MiB arrives in pieces of 64 KiB through one, each of them handed through five
layers, which was a third of the time of a repair under load (docs/decisions.md). Here a piece is 1 MiB.

What it guarantees: bodies may be of a known length or chunked, as h11 understands them. A connection is used again
while both sides keep it, and made anew where the peer has closed it meanwhile; an answer that was not read to its end
costs its connection. A peer that breaks HTTP ends in :class:`h11.RemoteProtocolError`, one that goes away in
:class:`trio.BrokenResourceError` or :class:`OSError`: nothing else is raised here.
"""

from __future__ import annotations

import socket

import h11
import trio

from crucible_emu.wire.messages import SocketAddress

RECEIVE_BYTES = 1 << 18
PIECE_BYTES = 1 << 20
"""What a piece costs beyond its bytes is a way to a thread and back, 0.15 ms."""


class RepairConnection:
    """Asks one repair service, one question at a time: :meth:`ask`, then :meth:`next_piece` until it is ``None``."""

    def __init__(self, address: SocketAddress) -> None:
        self._address = address
        self._stream: trio.SocketStream | None = None
        self._http = h11.Connection(h11.CLIENT)

    async def ask(self, path: str) -> int:
        """Ask for ``path``; the status of the answer. Raises what the module's essay says."""
        stream = await self._ready()
        request = h11.Request(method="GET", target=path, headers=[("host", str(self._address)), ("accept", "*/*")])
        await stream.send_all((self._http.send(request) or b"") + (self._http.send(h11.EndOfMessage()) or b""))
        event = await self._next_event()
        while isinstance(event, h11.InformationalResponse):
            event = await self._next_event()
        if not isinstance(event, h11.Response):
            raise trio.BrokenResourceError("the service hung up")
        return event.status_code

    async def next_piece(self) -> bytes | None:
        """More of the body, at least 1 MiB but for the last piece; ``None`` after that."""
        found: list[bytes] = []
        arrived = 0
        while arrived < PIECE_BYTES and self._http.their_state is h11.SEND_BODY:
            event = await self._next_event()
            if isinstance(event, h11.Data):
                found.append(event.data)
                arrived += len(event.data)
        return b"".join(found) or None

    async def _ready(self) -> trio.SocketStream:
        """The connection, with nothing of an earlier answer in it."""
        if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            self._http.start_next_cycle()
        if self._stream is not None and (self._http.our_state is not h11.IDLE or _is_over(self._stream)):
            await self.aclose()
        if self._stream is None:
            self._stream = await trio.open_tcp_stream(self._address.host, self._address.port)
            self._http = h11.Connection(h11.CLIENT)
        return self._stream

    async def _next_event(self) -> object:
        assert self._stream is not None
        while (event := self._http.next_event()) is h11.NEED_DATA:
            self._http.receive_data(await self._stream.receive_some(RECEIVE_BYTES))
        return event

    async def aclose(self) -> None:
        """Hang up; asking again connects again."""
        stream, self._stream = self._stream, None
        if stream is not None:
            await trio.aclose_forcefully(stream)


def _is_over(stream: trio.SocketStream) -> bool:
    """Whether the peer has hung up, or said something that nobody asked for, since the last answer."""
    with socket.fromfd(stream.socket.fileno(), stream.socket.family, stream.socket.type) as same:
        try:
            same.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True
