"""A body that nobody wants is taken before the answer, and the connection goes on."""

from __future__ import annotations

from typing import Any

import httpx2
import trio
from starlette.types import Message, Receive, Scope, Send

from crucible_emu import http_body
from crucible_emu.http_body import drained
from crucible_emu.service import Api, Call, Exposure, Operation, serving

SCOPE: Scope = {"type": "http"}
PIECE = 65536


async def unwilling(_scope: Scope, _receive: Receive, send: Send) -> None:
    """Answers at once and looks at nothing."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})
    await send({"type": "http.response.body", "body": b""})


async def exchange(pieces: int, *, left: bool = False) -> list[Any]:
    """What happens, in order: a number for each piece that is taken, a message for each that is sent."""
    story: list[Any] = []

    async def receive() -> Message:
        await trio.lowlevel.checkpoint()
        number = sum(isinstance(each, int) for each in story)
        story.append(number)
        if left and number == pieces - 1:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": bytes(PIECE), "more_body": number < pieces - 1}

    async def send(message: Message) -> None:
        story.append(message)

    await drained(unwilling)(SCOPE, receive, send)
    return story


async def test_the_answer_begins_after_the_last_piece() -> None:
    for left in (False, True):
        story = await exchange(5, left=left)
        assert story[:5] == [0, 1, 2, 3, 4]
        assert story[5]["headers"] == [(b"a", b"b")] and len(story) == 7


async def test_a_body_without_end_costs_its_connection(monkeypatch: Any) -> None:
    monkeypatch.setattr(http_body, "DRAINED_BYTES_MAX", 3 * PIECE)
    story = await exchange(100)
    assert story[:4] == [0, 1, 2, 3]
    assert story[4]["headers"][-1] == (b"connection", b"close")


async def test_a_connection_goes_on_after_bodies_that_nobody_wants() -> None:
    """Race: the last piece of the body comes while the answer goes out, to an application that takes none of it."""

    async def handler(call: Call) -> object:
        return call.path

    rows = [Operation("look", "GET", "/{id}", handler), Operation("forget", "DELETE", "/{id}", handler, success=204)]
    async with serving(Api("test", rows, 1024), Exposure("127.0.0.1:0")) as url:
        limits = httpx2.Limits(max_connections=1)
        async with httpx2.AsyncClient(base_url=url, limits=limits, trust_env=False) as http:
            for number in range(12):
                with trio.fail_after(30):
                    sent = await http.request("DELETE", f"/{number}", content=bytes(number * PIECE + 1))
                    assert sent.status_code == 204
                    assert (await http.get(f"/{number}")).json() == {"id": str(number)}
