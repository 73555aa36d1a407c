"""The unix socket of a running supervisor: one line of JSON asks, one line answers.

What it is for: ``rack status``, ``kill``, ``start`` and ``down`` are small programs that ask the supervisor. A line
protocol instead of HTTP, because they are then there at once: asking needs nothing but the standard library.

::

    {"do": "status"}                      -> {"rack": {...}}
    {"do": "kill", "sled": "sled1"}       -> {"rack": {...}} when everything of it is gone
    {"do": "start", "sled": "sled1"}      -> {"rack": {...}} when it is ready
    {"do": "up"}                          -> {"rack": {...}} when all is ready; what had failed is started again
    {"do": "down"}                        -> {"rack": {...}} at once; when nothing runs, the lock is free
    anything that cannot be done          -> {"error": "a sentence", "leaving": false}

What it guarantees: a line that is too long or no request costs its connection one sentence and the rack nothing.
Whoever may open the socket may do all this; that is the owner of the rack's directory.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import trio

from crucible_emu.errors import UsageError
from crucible_emu.rack import presence
from crucible_emu.rack.asking import LINE_BYTES_MAX
from crucible_emu.rack.core import Leaving

Answering = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]

CALLERS_MAX = 64


async def serve(directory: Path, answer: Answering, *, task_status: trio.TaskStatus[None]) -> None:
    """Answer on the control socket of ``directory`` until cancelled; the socket is gone then. ``answer`` raises
    :class:`UsageError` for what cannot be done."""
    listener = trio.SocketListener(_trio_socket(presence.listen(directory)))
    limit = trio.CapacityLimiter(CALLERS_MAX)

    async def one(stream: trio.SocketStream) -> None:
        async with limit, stream:
            try:
                await _serve_caller(stream, answer)
            except trio.BrokenResourceError:
                pass  # the caller left; what it has asked for is done all the same

    try:
        await trio.serve_listeners(one, [listener], task_status=_quiet(task_status))
    finally:
        (directory / presence.SOCKET).unlink(missing_ok=True)


def _trio_socket(plain: socket.socket) -> trio.socket.SocketType:
    plain.setblocking(False)
    return trio.socket.from_stdlib_socket(plain)


class _quiet:
    """A task status that says started, and not with what."""

    def __init__(self, status: trio.TaskStatus[None]) -> None:
        self.status = status

    def started(self, _value: object = None) -> None:
        self.status.started()


async def _serve_caller(stream: trio.SocketStream, answer: Answering) -> None:
    buffer = bytearray()
    while piece := await stream.receive_some(4096):
        buffer += piece
        if len(buffer) > LINE_BYTES_MAX:
            await _send(stream, {"error": f"a request has at most {LINE_BYTES_MAX} bytes"})
            return
        while b"\n" in buffer:
            line, _, rest = bytes(buffer).partition(b"\n")
            buffer[:] = rest
            await _send(stream, await _answered(line, answer))


async def _answered(line: bytes, answer: Answering) -> dict[str, Any]:
    try:
        request = json.loads(line)
        if not isinstance(request, dict):
            raise ValueError("no object")
    except ValueError:
        return {"error": "a request is one line with a JSON object"}
    try:
        return await answer(request)
    except UsageError as error:
        return {"error": str(error), "leaving": isinstance(error, Leaving)}


async def _send(stream: trio.SocketStream, document: dict[str, Any]) -> None:
    await stream.send_all(json.dumps(document).encode() + b"\n")
