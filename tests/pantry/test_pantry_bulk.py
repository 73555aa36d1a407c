"""Bulk reads and writes: bytes, limits, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from disk_rig import KEY, digests, failures, pattern, until
from pantry_rig import BLOCK, CHUNK, SIZE, Caller, replicas, request_of, running_pantry, volume_of, write_body

from crucible_emu.region import Region

ExpectLog = Callable[..., Any]


async def fill(caller: Caller, data: bytes) -> None:
    for offset in range(0, len(data), CHUNK):
        await caller.write(offset, data[offset : offset + CHUNK])


async def contents(caller: Caller, size: int = SIZE) -> bytes:
    return b"".join([await caller.read(offset, min(CHUNK, size - offset)) for offset in range(0, size, CHUNK)])


async def test_what_was_written_in_bulk_is_read_in_bulk_and_lies_in_every_region(tmp_path: Path) -> None:
    """At the limit of a chunk, from end to end; detaching makes it durable."""
    data = pattern(SIZE)
    async with replicas(tmp_path) as servers, running_pantry() as caller:
        await caller.attach(volume_of(request_of(servers)))
        assert await contents(caller) == bytes(SIZE)
        await fill(caller, data)
        assert await contents(caller) == data
        await caller.detach()
    assert len(digests(servers.paths)) == 1 and all(failures(path) == [] for path in servers.paths)


async def test_an_encrypted_disk_is_read_with_its_key(tmp_path: Path) -> None:
    async with replicas(tmp_path, encrypted=True) as servers, running_pantry() as caller:
        await caller.attach(volume_of(request_of(servers, 1, key=KEY)))
        await fill(caller, pattern(SIZE))
        await caller.detach()
        await caller.attach(volume_of(request_of(servers, 2, key=KEY)))
        assert await contents(caller) == pattern(SIZE)


async def test_the_shortest_and_no_bytes_at_all(tmp_path: Path) -> None:
    async with replicas(tmp_path) as servers, running_pantry() as caller:
        await caller.attach(volume_of(request_of(servers)))
        await caller.write(SIZE - BLOCK, pattern(BLOCK))
        assert await caller.read(SIZE - 2 * BLOCK, 2 * BLOCK) == bytes(BLOCK) + pattern(BLOCK)
        await caller.write(SIZE, b"")
        assert await caller.read(0, 0) == b""


@pytest.mark.parametrize(
    ("offset", "length", "why"),
    [
        (0, 1, "length is not a multiple of the block size"),
        (0, BLOCK + 1, "length is not a multiple of the block size"),
        (1, BLOCK, "offset is not a multiple of the block size"),
        (SIZE, BLOCK, "beyond the end"),
        (SIZE - BLOCK, 2 * BLOCK, "beyond the end"),
        (2**64 - BLOCK, BLOCK, "beyond the end"),
        (0, CHUNK + BLOCK, "at most 524288 are allowed"),
        (0, CHUNK + 1, "at most 524288 are allowed"),
    ],
)
async def test_a_chunk_that_is_refused_changes_nothing(tmp_path: Path, offset: int, length: int, why: str) -> None:
    async with replicas(tmp_path) as servers, running_pantry() as caller:
        await caller.attach(volume_of(request_of(servers)))
        await fill(caller, pattern(SIZE))
        answer = await caller.refused(400, "POST", "/volume/v/bulk-write", write_body(offset, b"\x55" * length))
        assert why in answer
        answer = await caller.refused(400, "POST", "/volume/v/bulk-read", {"offset": offset, "size": length})
        assert why in answer
        assert await contents(caller) == pattern(SIZE)


@pytest.mark.parametrize("text", ["====", "AAA", "A A=", "AAAA\n", "ÄÖÜß", "AA==AAAA", "-_-_"])
async def test_bad_base64_is_refused(tmp_path: Path, text: str) -> None:
    async with replicas(tmp_path) as servers, running_pantry() as caller:
        await caller.attach(volume_of(request_of(servers)))
        body = {"offset": 0, "base64_encoded_data": text}
        assert "is no base64" in await caller.refused(400, "POST", "/volume/v/bulk-write", body)


async def test_bodies_that_are_refused_before_anything_is_looked_at() -> None:
    async with running_pantry() as caller:
        large = {"offset": 0, "base64_encoded_data": "A" * (1024 + 2 * CHUNK)}
        assert "exceeded maximum size of 1049600" in await caller.refused(400, "POST", "/volume/v/bulk-write", large)
        for body in (None, {}, {"offset": -1, "size": 1}, {"offset": "0", "size": 1}, {"offset": 2**64, "size": 1}):
            await caller.refused(400, "POST", "/volume/v/bulk-read", body)
        await caller.refused(404, "POST", "/volume/v/bulk-read", {"offset": 0, "size": 1, "unknown": True})


async def test_a_read_only_disk_is_read_and_not_written(tmp_path: Path) -> None:
    async with replicas(tmp_path, read_only=dict.fromkeys(range(3), True)) as servers, running_pantry() as caller:
        await caller.attach(volume_of(request_of(servers, read_only=True)))
        assert await caller.read(0, BLOCK) == bytes(BLOCK)
        answer = await caller.refused(400, "POST", "/volume/v/bulk-write", write_body(0, bytes(BLOCK)))
        assert "read-only" in answer
        assert "read-only" in await caller.refused(400, "POST", "/volume/v/snapshot", {"snapshot_id": "s"})


async def test_a_snapshot_holds_what_was_written_before_it(tmp_path: Path) -> None:
    async with replicas(tmp_path) as servers, running_pantry() as caller:
        await caller.attach(volume_of(request_of(servers)))
        await caller.write(0, pattern(BLOCK))
        await caller.do("POST", "/volume/v/snapshot", {"snapshot_id": "before"})
        await caller.write(0, pattern(BLOCK, 2))
        await caller.do("POST", "/volume/v/snapshot", {"snapshot_id": "before"})
        for path in servers.paths:
            with Region.open(path / ".zfs" / "snapshot" / "before", read_only=True) as region:
                found = memoryview(bytearray(BLOCK))
                region.read(0, 1, found)
                assert found == pattern(BLOCK)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../../x", "-x", "\0", "x" * 300])
async def test_a_name_that_no_snapshot_can_have_costs_no_replica(tmp_path: Path, name: str) -> None:
    async with replicas(tmp_path) as servers, running_pantry() as caller:
        await caller.attach(volume_of(request_of(servers)))
        assert "cannot name a snapshot" in await caller.refused(
            400, "POST", "/volume/v/snapshot", {"snapshot_id": name}
        )
        (part,) = (await caller.status())["info"]["volume"]["sub_volumes"]
        assert [target["state"] for target in part["upstairs"]["targets"]] == [{"type": "active"}] * 3


async def test_a_snapshot_wants_three_replicas_and_a_write_two(tmp_path: Path, expect_log: ExpectLog) -> None:
    """A replica that is away but expected back is waited for; for one that is too far behind the snapshot fails."""
    for words in ("cannot connect", "connection ended", "replica faulted", "deactivation failed"):
        expect_log(words, at_least=0)
    async with replicas(tmp_path) as servers, running_pantry() as caller:
        await caller.attach(volume_of(request_of(servers)))
        (part,) = caller.pantry.held["v"].built.sub_volumes
        await servers.members[1].stop()
        core = part.upstairs.core  # type: ignore[attr-defined]
        await until(lambda: core.clients[1].state.connecting)
        core.fall_behind(core.clients[1])
        await caller.write(0, pattern(BLOCK))
        message = await caller.refused(503, "POST", "/volume/v/snapshot", {"snapshot_id": "s"})
        assert "need 3, got 2" in message
