"""Requests that go on at the same time: with a detach, with the end of the pantry, with a caller who goes away."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from disk_rig import digests, pattern, until
from image_server import image_server
from pantry_rig import (
    BLOCK,
    CHUNK,
    SIZE,
    Caller,
    attach_body,
    raised,
    replicas,
    request_of,
    running_pantry,
    volume_of,
    write_body,
)

from crucible_emu.blockio import Kind, Request
from crucible_emu.volume.volume import Volume

ExpectLog = Callable[..., Any]
PIECE = 4 * BLOCK


async def test_a_detach_in_the_midst_of_bulk_writes_loses_none_that_was_answered(tmp_path: Path) -> None:
    """Race: chunks are under way when the volume leaves. Those that come later are refused, and say why."""
    async with replicas(tmp_path) as servers, running_pantry() as caller:
        vcr = volume_of(request_of(servers))
        await caller.attach(vcr)
        written: dict[int, bytes] = {}
        statuses: set[int] = set()
        warm = trio.Event()

        async def write(start: int) -> None:
            for number in range(start, SIZE // PIECE, 4):
                data = pattern(PIECE, number + 1)
                answer = await caller.call("POST", "/volume/v/bulk-write", write_body(number * PIECE, data))
                statuses.add(answer.status)
                if answer.status != 204:
                    return
                written[number] = data
                if len(written) >= 8:
                    warm.set()

        async with trio.open_nursery() as nursery:
            for start in range(4):
                nursery.start_soon(write, start)
            await warm.wait()
            await caller.detach()
        assert statuses <= {204, 500, 503, 404}
        await caller.attach(raised(vcr, 2))
        for number, data in written.items():
            assert await caller.read(number * PIECE, PIECE) == data
        await caller.detach()
    assert len(digests(servers.paths)) == 1


async def test_a_detach_in_the_midst_of_an_import_ends_it(tmp_path: Path) -> None:
    """Race: a piece is being written. Afterwards the disk is whole, and holds pieces of the image or nothing."""
    async with image_server(pattern(SIZE)) as image, replicas(tmp_path) as servers, running_pantry() as caller:
        vcr = volume_of(request_of(servers))
        await caller.attach(vcr)
        job = await caller.start("import-from-url", {"url": image.url})
        noted = caller.pantry.ledger.job(job)
        await until(lambda: bool(image.requests))
        await caller.detach()
        assert noted.finished
        await caller.attach(raised(vcr, 2))
        for offset in range(0, SIZE, CHUNK):
            found = await caller.read(offset, CHUNK)
            assert found in (pattern(SIZE)[offset : offset + CHUNK], bytes(CHUNK))
        await caller.detach()
    assert len(digests(servers.paths)) == 1


async def test_a_request_that_is_never_answered_ends_with_the_detach(tmp_path: Path) -> None:
    """Race: the device has a read that it does not finish; the caller must not wait for ever."""
    async with replicas(tmp_path) as servers, running_pantry() as caller:
        await caller.attach(volume_of(request_of(servers)))
        volume = caller.pantry.held["v"].built
        submit = volume.submit

        def forgets(requests: list[Request], completed: Any) -> None:
            submit([each for each in requests if each.kind is not Kind.READ], completed)

        volume.submit = forgets  # type: ignore[method-assign]
        statuses: list[int] = []

        async def read() -> None:
            body = {"offset": 0, "size": BLOCK}
            statuses.append((await caller.call("POST", "/volume/v/bulk-read", body)).status)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await until(lambda: bool(caller.pantry.held["v"].operations))
            await caller.detach()
        assert statuses == [503]


async def test_a_caller_who_goes_away_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was begun for it goes on: the attach, and the detach."""
    async with replicas(tmp_path) as servers, running_pantry() as caller:
        vcr = volume_of(request_of(servers))
        with trio.CancelScope() as gone:
            gone.cancel()
            await caller.pantry.attach("v", vcr)
        assert gone.cancelled_caught
        await caller.attach(vcr)
        await caller.write(0, pattern(BLOCK))
        leaving, let = trio.Event(), trio.Event()
        leave = Volume.leave_service

        async def slow(self: Volume) -> None:
            leaving.set()
            await let.wait()
            await leave(self)

        monkeypatch.setattr(Volume, "leave_service", slow)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(caller.pantry.detach, "v")
            await leaving.wait()
            nursery.cancel_scope.cancel()
        let.set()
        await until(lambda: caller.pantry.ledger.volumes == [])
        await caller.attach(raised(vcr, 2))
        assert await caller.read(0, BLOCK) == pattern(BLOCK)


async def test_the_end_of_the_pantry_while_everything_is_under_way(tmp_path: Path, expect_log: ExpectLog) -> None:
    """Race: an import, an activation that waits, and callers; every volume leaves in order all the same."""
    for words in ("cannot connect", "connection ended", "disk disabled error=.*activation was cancelled"):
        expect_log(words, at_least=0)
    async with image_server(pattern(SIZE)) as image, replicas(tmp_path / "a") as one, replicas(tmp_path / "b") as two:
        vcr, stuck = volume_of(request_of(one)), volume_of(request_of(two))
        for member in two.members:
            await member.stop()
        async with running_pantry() as caller, trio.open_nursery() as callers:
            await caller.attach(vcr, "a")
            await caller.attach_in_background(stuck, "j", "b")
            await caller.write(0, pattern(BLOCK, 2), "a")
            await caller.start("import-from-url", {"url": image.url}, "a")
            callers.start_soon(quietly, caller, "/volume/b", attach_body(stuck))
            callers.start_soon(quietly, caller, "/job/j/ok", None)
            held = list(caller.pantry.held.values())
            await until(lambda: bool(image.requests))
            callers.cancel_scope.cancel()
        assert all(not each.running and each.activation.job.finished for each in held)
        async with running_pantry() as caller:
            await caller.attach(raised(vcr, 2))
            assert await caller.read(0, BLOCK) in (pattern(BLOCK, 2), pattern(BLOCK))
    assert len(digests(one.paths)) == 1


async def quietly(caller: Caller, path: str, body: Any) -> None:
    await caller.call("GET" if body is None else "POST", path, body)
