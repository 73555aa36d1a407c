"""Snapshots of disks that instances have, running or stopped (catalogue §9.6 snapshot_create, §9.4 snapshots.rs)."""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from frozen_rig import agent_digests, asked, frozen_bytes, ledger, made, refused, require_only, state_of, take, trials
from guests_rig import guest, make_instance, start, stop
from nbd_plain_client import PlainClient
from nexus_rig import Plant, plant
from saga_scaffold import (
    action_failure_can_unwind_idempotently,
    actions_succeed_idempotently,
    death_at_every_point,
)
from users_rig import HasVolume, delete_disk, delete_snapshot, make_disk, run

from nexus.db import Database
from nexus.objects.disks import disk_get
from nexus.objects.instances import disk_detach
from nexus.saga import ActionFailed, Saga
from nexus.saga.dag import Vertex
from nexus.sagas.snapshot_create import SNAPSHOT_CREATE_ATTACHED, SNAPSHOT_CREATE_DETACHED

BLOCK = 512
BLOCKS = 16
"""The guest goes round and round in so many blocks; each write says which one it is."""


def block(number: int) -> bytes:
    return struct.pack("<Q", number) * (BLOCK // 8)


class Writer:
    """A guest that writes without end. ``answered``: how many writes were, ``asked``: how many were begun."""

    def __init__(self, client: PlainClient) -> None:
        self.client = client
        self.answered = self.asked = 0
        self.once_around = trio.Event()

    async def run(self) -> None:
        while True:
            self.asked += 1
            await self.client.write(self.asked % BLOCKS * BLOCK, block(self.asked))
            self.answered = self.asked
            if self.answered == BLOCKS:
                self.once_around.set()


def prefix_of(held: bytes) -> int:
    """How many of the writes are in ``held``, which must be the first so many, all of them and nothing else."""
    numbers = [struct.unpack_from("<Q", held, place * BLOCK)[0] for place in range(BLOCKS)]
    count = max(numbers)
    for place, number in enumerate(numbers):
        newest = max(
            (each for each in range(max(1, count - BLOCKS + 1), count + 1) if each % BLOCKS == place), default=0
        )
        assert number == newest, (place, number, newest)
        assert held[place * BLOCK : (place + 1) * BLOCK] == block(number)
    assert not any(held[BLOCKS * BLOCK :])
    return count


async def snapshot_under_writes(rack: Plant, instance: str, disk: HasVolume) -> None:
    """What is frozen is the first so many writes: all that were answered before it was asked for, none begun after."""
    async with guest(rack, instance, disk) as client, trio.open_nursery() as nursery:
        writer = Writer(client)
        nursery.start_soon(writer.run)
        await writer.once_around.wait()
        before = writer.answered
        snapshot = await take(rack, disk, SNAPSHOT_CREATE_ATTACHED)
        after = writer.asked
        nursery.cancel_scope.cancel()
    assert before <= prefix_of(await frozen_bytes(rack, snapshot.volume_id)) <= after
    assert await agent_digests(rack, disk, snapshot.id) == [ledger(rack, snapshot.id).extents] * 3
    await delete_snapshot(rack, snapshot)


async def test_snapshot_basic(tmp_path: Path, database: Database) -> None:
    async with plant(tmp_path, database) as rack:
        disk = await make_disk(rack)
        instance = await make_instance(rack, disk)
        await start(rack, instance)
        await snapshot_under_writes(rack, instance, disk)
        await stop(rack, instance)
        rack.run(disk_detach, instance, disk.id, rack.now())
        await delete_disk(rack, disk)
        await rack.require_empty()


async def test_snapshot_stopped_instance(tmp_path: Path, in_memory: Database) -> None:
    """The pantry takes it; the disk stays with its instance, and does not leave it meanwhile."""
    async with plant(tmp_path, in_memory) as rack:
        disk = await make_disk(rack)
        instance = await make_instance(rack, disk)

        async def held(label: str) -> None:
            if label == "CALL_PANTRY_SNAPSHOT":
                with pytest.raises(ActionFailed, match="snapshot"):
                    rack.run(disk_detach, instance, disk.id, rack.now())

        params = asked(rack, disk)
        await run(rack, SNAPSHOT_CREATE_DETACHED, params, perform=before_each(held))
        assert (state_of(rack, params.snapshot_id), rack.run(disk_get, disk.id).state) == ("ready", "attached")
        await delete_snapshot(rack, made(params))
        await require_only(rack, disk, state="attached")


def before_each(look: Callable[[str], Awaitable[None]]) -> Any:
    """A way of performing nodes that looks before each."""

    async def perform(work: Any, vertex: Vertex, context: Any) -> Any:
        await look(vertex.label)
        return await work(context)

    return perform


async def test_saga_use_the_pantry_wrongly_set(tmp_path: Path, in_memory: Database) -> None:
    """The disk is attached after all, and its guest runs: nobody takes it over."""
    async with plant(tmp_path, in_memory) as rack:
        disk = await make_disk(rack)
        instance = await make_instance(rack, disk)
        await start(rack, instance)
        with refused("conflict", "runs"):
            await take(rack, disk, SNAPSHOT_CREATE_DETACHED)
        async with guest(rack, instance, disk) as client:
            await client.write(0, block(1))
        await require_only(rack, disk, state="attached")
        await stop(rack, instance)
        rack.run(disk_detach, instance, disk.id, rack.now())
        snapshot = await take(rack, disk, SNAPSHOT_CREATE_DETACHED)
        assert (await frozen_bytes(rack, snapshot.volume_id))[:BLOCK] == block(1)


async def test_saga_use_the_pantry_wrongly_unset(tmp_path: Path, in_memory: Database) -> None:
    """Nobody has the disk: there is no guest to flush it."""
    async with plant(tmp_path, in_memory) as rack:
        disk = await make_disk(rack)
        with refused("unavailable", "no running instance"):
            await take(rack, disk, SNAPSHOT_CREATE_ATTACHED)
        await require_only(rack, disk)
        await take(rack, disk, SNAPSHOT_CREATE_DETACHED)


@pytest.mark.parametrize("way", ["twice", "unwind", "death"])
async def test_attached_scaffold(tmp_path: Path, in_memory: Database, way: str) -> None:
    """§9.1 for the form with a guest; what both forms share dies in the tests of the other."""
    saga: Saga = SNAPSHOT_CREATE_ATTACHED
    async with plant(tmp_path, in_memory) as rack:
        disk = await make_disk(rack)
        instance = await make_instance(rack, disk)
        await start(rack, instance)
        fresh = trials(rack, disk, state="attached")
        match way:
            case "twice":
                await actions_succeed_idempotently(saga, fresh)
            case "unwind":
                await action_failure_can_unwind_idempotently(saga, fresh)
            case "death":
                own = {"SNAPSHOT_REQUEST_UNDO", "SEND_SNAPSHOT_REQUEST_TO_SLED_AGENT"}
                assert await death_at_every_point(saga, fresh, only=own.__contains__) == 6
        await stop(rack, instance)
