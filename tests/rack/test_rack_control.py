"""The control socket's line protocol: what is answered, and that nonsense costs nobody but who sent it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from crucible_emu.errors import UsageError
from crucible_emu.rack import asking, control, presence
from crucible_emu.rack.core import Leaving


async def answer(request: dict[str, Any]) -> dict[str, Any]:
    if request.get("do") == "leave":
        raise Leaving
    if request.get("do") == "fail":
        raise UsageError("a sentence")
    return {"rack": request}


@asynccontextmanager
async def served(folder: Path) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        await nursery.start(control.serve, folder, answer)
        yield
        nursery.cancel_scope.cancel()


async def test_ask_and_answer(tmp_path: Path) -> None:
    ask = partial(asking.ask, tmp_path, timeout_s=30)
    async with served(tmp_path):
        assert await trio.to_thread.run_sync(ask, {"do": "status"}) == {"do": "status"}
        with pytest.raises(asking.Refused, match=r"^a sentence$"):
            await trio.to_thread.run_sync(ask, {"do": "fail"})
        with pytest.raises(asking.NotRunning, match="on its way down"):
            await trio.to_thread.run_sync(ask, {"do": "leave"})
    assert presence.connect(tmp_path) is None
    with pytest.raises(asking.NotRunning, match="is not running: start it"):
        ask({"do": "status"})


async def test_many_lines_and_nonsense(tmp_path: Path) -> None:
    async with served(tmp_path):
        stream = await trio.open_unix_socket(tmp_path / presence.SOCKET)
        async with stream:
            await stream.send_all(b'{"a": 1}\n[]\nnonsense\n\xff\n{"a"')
            await stream.send_all(b": 2}\n")
            said = b""
            while said.count(b"\n") < 5:
                said += await stream.receive_some(4096)
        refused = {"error": "a request is one line with a JSON object"}
        expected = [{"rack": {"a": 1}}, refused, refused, refused, {"rack": {"a": 2}}]
        assert [json.loads(line) for line in said.splitlines()] == expected


async def test_a_line_without_an_end_costs_its_connection(tmp_path: Path) -> None:
    async with served(tmp_path):
        stream = await trio.open_unix_socket(tmp_path / presence.SOCKET)
        async with stream:
            await stream.send_all(b"x" * (asking.LINE_BYTES_MAX + 1))
            said = b""
            while piece := await stream.receive_some(4096):
                said += piece
        assert json.loads(said) == {"error": "a request has at most 65536 bytes"}
        async with await trio.open_unix_socket(tmp_path / presence.SOCKET) as other:
            await other.send_all(b"{}\n")
            assert json.loads(await other.receive_some(4096)) == {"rack": {}}


async def test_a_caller_that_leaves_costs_nothing(tmp_path: Path) -> None:
    async with served(tmp_path):
        for _ in range(3):
            async with await trio.open_unix_socket(tmp_path / presence.SOCKET) as stream:
                await stream.send_all(b'{"do": "status"}\n')
        async with await trio.open_unix_socket(tmp_path / presence.SOCKET) as stream:
            await stream.send_all(b"{}\n")
            assert await stream.receive_some(4096)


async def test_a_supervisor_that_stands_still_is_one_sentence(tmp_path: Path) -> None:
    ask = partial(asking.ask, tmp_path, {"do": "status"}, timeout_s=0.05)
    with presence.listen(tmp_path), pytest.raises(UsageError, match="has not answered for 0 s: look at its log"):
        await trio.to_thread.run_sync(ask)
