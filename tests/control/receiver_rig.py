"""A receiver of notices: keeps what it is sent, answers what it is told to; in memory or at an address."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import h11
import httpx2
import trio

Received = tuple[str, dict[str, Any]]


class Receiver(httpx2.AsyncBaseTransport):
    """Stands where the network is. ``answer`` makes the status of each request, or raises what the network does."""

    def __init__(self, answer: Callable[[int], int] = lambda _: 204) -> None:
        self.answer = answer
        self.received: list[tuple[float, str, dict[str, Any]]] = []

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        assert request.method == "POST"
        await trio.lowlevel.checkpoint()
        self.received.append((trio.current_time(), request.url.path, json.loads(await request.aread())))
        return httpx2.Response(self.answer(len(self.received)))

    @property
    def paths(self) -> list[str]:
        return [path for _, path, _ in self.received]


async def receive(received: list[Received], *, task_status: trio.TaskStatus[str]) -> None:
    """An HTTP server on loopback that takes every POST; its URL goes to whoever starts it."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")

    async def serve(stream: trio.SocketStream) -> None:
        connection = h11.Connection(h11.SERVER)
        async with stream:
            while connection.our_state is h11.IDLE:
                path, body = "", b""
                while not isinstance(event := connection.next_event(), h11.EndOfMessage):
                    if event is h11.NEED_DATA:
                        connection.receive_data(await stream.receive_some(65536))
                    elif isinstance(event, h11.Request):
                        path = event.target.decode()
                    elif isinstance(event, h11.Data):
                        body += event.data
                    else:
                        return
                received.append((path, json.loads(body)))
                answer = h11.Response(status_code=204, headers=[("content-length", "0")])
                await stream.send_all((connection.send(answer) or b"") + (connection.send(h11.EndOfMessage()) or b""))
                connection.start_next_cycle()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, serve, listeners)
        task_status.started(f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}")
