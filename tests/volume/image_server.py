"""A small HTTP server for images: HEAD and ranged GET, on loopback; it counts what it is asked."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import h11
import trio


class ImageServer:
    """Serves ``content`` at every path. ``requests``: method and range of each request that came."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.requests: list[tuple[str, str]] = []
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/image.raw"

    async def serve(self, stream: trio.SocketStream) -> None:
        connection = h11.Connection(h11.SERVER)
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(await stream.receive_some())
            elif isinstance(event, h11.Request):
                await self._answer(connection, stream, event)
            elif isinstance(event, h11.EndOfMessage):
                connection.start_next_cycle()
            else:
                return

    async def _answer(self, connection: h11.Connection, stream: trio.SocketStream, request: h11.Request) -> None:
        method = request.method.decode()
        wanted = dict(request.headers).get(b"range", b"").decode()
        self.requests.append((method, wanted))
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", wanted)
        body = self.content if found is None else self.content[int(found[1]) : int(found[2]) + 1]
        headers = [("Content-Length", str(len(body)))]
        out = connection.send(h11.Response(status_code=206 if found else 200, headers=headers)) or b""
        if method == "GET":
            out += connection.send(h11.Data(body)) or b""
        out += connection.send(h11.EndOfMessage()) or b""
        await stream.send_all(out)


@asynccontextmanager
async def image_server(content: bytes) -> AsyncIterator[ImageServer]:
    """The server, while the block runs."""
    server = ImageServer(content)
    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, server.serve, 0, host="127.0.0.1"))
        server.port = listener.socket.getsockname()[1]
        yield server
        nursery.cancel_scope.cancel()
