"""A request's body is read to its end before it is answered, whether anybody wants it or not.

What it is for: a handler that looks at no body, or refuses one that is too long, answers while the client is still
sending. Hypercorn then waits for ever for somebody to take the rest: at best it cuts the connection, so that the client
never sees the answer; at worst it takes the request for ended, keeps the connection, and never reads from it again.

What it guarantees: nothing of what is let go is held. *Liveness*: a client that sends more than
:data:`DRAINED_BYTES_MAX` beyond what was wanted is answered with ``connection: close``.
"""

from __future__ import annotations

from contextlib import aclosing

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from crucible_emu.errors import UsageError

DRAINED_BYTES_MAX = 64 << 20


class Incoming:
    """What comes of a request. ``over``: its body has ended, or the client has left."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.over = False

    async def __call__(self) -> Message:
        message = await self._receive()
        self.over = message["type"] != "http.request" or not message.get("more_body", False)
        return message

    async def drain(self) -> None:
        """Let the rest of the body go, so far as it may be."""
        drained_bytes = 0
        while not self.over and drained_bytes <= DRAINED_BYTES_MAX:
            drained_bytes += len((await self()).get("body", b""))


async def body_of(request: Request, bytes_max: int) -> bytes:
    """The body of ``request``; no more than that is ever held. Raises :class:`UsageError` where it is longer."""
    body = b""
    async with aclosing(request.stream()) as pieces:
        async for piece in pieces:
            body += piece
            if len(body) > bytes_max:
                raise UsageError(f"request body exceeded maximum size of {bytes_max} bytes")
    return body


def drained(app: ASGIApp) -> ASGIApp:
    """``app``, whose answers begin when the request has ended."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        incoming = Incoming(receive)

        async def send_afterwards(message: Message) -> None:
            if message["type"] == "http.response.start":
                await incoming.drain()
                if not incoming.over:
                    message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
            await send(message)

        await app(scope, incoming, send_afterwards)

    return answer
