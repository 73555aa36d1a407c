"""Imports: bulk writes, and finalize-disk, on a real pantry (nexus.md §3.14; catalogue §9.4 pantry.rs)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from disks_rig import (
    SIZE_BYTES,
    create,
    disk_of,
    read,
    refused,
    standing,
    verify_clean_slate,
)
from nexus_rig import EXTENT_BYTES, Plant, plant
from saga_scaffold import (
    Fresh,
    Trial,
    action_failure_can_unwind_idempotently,
    actions_succeed_idempotently,
    death_at_every_point,
)
from users_rig import HasVolume, delete_disk, delete_snapshot, run

from crucible_emu.pantry.operations import api as pantry_api
from crucible_emu.service import application
from nexus.db import Database, schema
from nexus.objects.imports import bulk_write, bulk_write_start, bulk_write_stop
from nexus.objects.instances import disk_attach, disk_detach, instance_create
from nexus.objects.sources import FromSnapshot
from nexus.saga import ActionFailed, MemoryStore, Saga
from nexus.saga.hooks import Point
from nexus.sagas import finalize_disk, snapshot_create
from nexus.sagas.disk_create import DISK_CREATE, DISK_CREATE_IMPORTING
from nexus.sagas.finalize_disk import FINALIZE_DISK, FINALIZE_DISK_WITH_SNAPSHOT
from nexus.volumes import Address


@contextmanager
def told(kind: str, match: str) -> Iterator[None]:
    """A user's request is refused."""
    with pytest.raises(ActionFailed, match=match) as caught:
        yield
    assert caught.value.kind == kind


async def imported(rack: Plant, disk: HasVolume, data: bytes) -> None:
    """Write ``data`` in chunks, as a user does."""
    await bulk_write_start(rack.world, disk.id)
    for offset in range(0, len(data), EXTENT_BYTES // 2):
        await bulk_write(rack.world, disk.id, offset, data[offset : offset + EXTENT_BYTES // 2])
    await bulk_write_stop(rack.world, disk.id)


def plain(rack: Plant, disk: HasVolume) -> finalize_disk.Params:
    return finalize_disk.Params(disk_id=disk.id)


def with_snapshot(rack: Plant, disk: HasVolume, name: str = "frozen") -> finalize_disk.ParamsWithSnapshot:
    snapshot = snapshot_create.Params(
        snapshot_id=rack.id(),
        volume_id=rack.id(),
        destination_volume_id=rack.id(),
        lock_id=rack.id(),
        project_id=rack.project_id,
        disk_id=disk.id,
        name=name,
        description="",
    )
    return finalize_disk.ParamsWithSnapshot(disk_id=disk.id, snapshot=snapshot)


async def test_import_blocks_with_bulk_write(tmp_path: Path, database: Database) -> None:
    """Catalogue: an imported disk holds what was written; its pantry has it until then, and not after."""
    async with plant(tmp_path, database) as rack:
        disk = await create(rack, DISK_CREATE_IMPORTING)
        found = disk_of(rack, disk)
        assert (found.state, found.pantry) == ("import_ready", Address("::1", 17900))
        data = rack.random.randbytes(SIZE_BYTES)
        await imported(rack, disk, data)
        assert (await standing(rack))["at the pantry"]
        await run(rack, FINALIZE_DISK, plain(rack, disk))
        found = disk_of(rack, disk)
        assert (found.state, found.pantry, found.operating_saga_id) == ("detached", None, None)
        assert not (await standing(rack))["at the pantry"]
        assert await read(rack, disk) == data
        await delete_disk(rack, disk)
        await verify_clean_slate(rack)


async def test_import_blocks_with_bulk_write_with_snapshot(tmp_path: Path, database: Database) -> None:
    """Catalogue: finalize with a snapshot; a disk made of it reads what was imported."""
    async with plant(tmp_path, database) as rack:
        disk = await create(rack, DISK_CREATE_IMPORTING)
        data = rack.random.randbytes(SIZE_BYTES)
        await imported(rack, disk, data)
        params = with_snapshot(rack, disk)
        await run(rack, FINALIZE_DISK_WITH_SNAPSHOT, params)
        assert (disk_of(rack, disk).state, disk_of(rack, disk).pantry) == ("detached", None)
        source = FromSnapshot(snapshot_id=params.snapshot.snapshot_id)
        copy = await create(rack, DISK_CREATE, source, name="copy")
        assert await read(rack, copy) == await read(rack, disk) == data
        await delete_disk(rack, disk)
        await delete_disk(rack, copy)
        await delete_snapshot(rack, HasVolume(params.snapshot.snapshot_id, params.snapshot.volume_id))
        await verify_clean_slate(rack)


async def test_imports_are_refused_in_the_wrong_state(tmp_path: Path, in_memory: Database) -> None:
    """Catalogue: test_cannot_mount_import_ready_disk, test_cannot_mount_import_from_bulk_writes_disk,
    test_import_blocks_with_bulk_write_bad_…, test_cannot_finalize_without_stopping_bulk_writes,
    test_cannot_bulk_write_start_attached_disk, …_bulk_write_attached_disk, …_bulk_write_stop_attached_disk,
    test_cannot_finalize_attached_disk."""
    async with plant(tmp_path, in_memory) as rack:
        disk = await create(rack, DISK_CREATE_IMPORTING)
        world, instance = rack.world, rack.id()
        rack.run(instance_create, instance, rack.project_id, "guest", "", rack.now())

        async def refused_in_all(*works: Callable[[], Awaitable[Any]]) -> None:
            for work in works:
                with told("invalid_request", "must be"):
                    await work()

        async def write() -> None:
            await bulk_write(world, disk.id, 0, bytes(512))

        async def attach() -> None:
            rack.run(disk_attach, instance, disk.id, rack.now())

        async def finalize() -> None:
            with refused("invalid_request", "must be import_ready"):
                await run(rack, FINALIZE_DISK, plain(rack, disk))

        async def delete() -> None:
            with refused("invalid_request", "cannot be deleted"):
                await delete_disk(rack, disk)

        async def start() -> None:
            await bulk_write_start(world, disk.id)

        async def stop() -> None:
            await bulk_write_stop(world, disk.id)

        await refused_in_all(write, attach, stop)
        await start()
        await refused_in_all(start, attach)
        await delete()
        await finalize()
        await stop()
        await run(rack, FINALIZE_DISK, plain(rack, disk))
        await refused_in_all(write, start, stop)
        await finalize()
        await attach()
        await refused_in_all(write, start, stop)
        await finalize()
        rack.run(disk_detach, instance, disk.id, rack.now())
        await delete_disk(rack, disk)
        with told("not_found", "there is no disk"):
            await write()
        await verify_clean_slate(rack)


async def test_import_blocks_with_bulk_write_bad_requests(tmp_path: Path, in_memory: Database) -> None:
    async with plant(tmp_path, in_memory) as rack:
        disk = await create(rack, DISK_CREATE_IMPORTING, size_bytes=16 * EXTENT_BYTES)
        await bulk_write_start(rack.world, disk.id)
        for offset, length, match in (
            (1, 512, "no whole blocks of 512"),
            (0, 100, "no whole blocks of 512"),
            (-512, 512, "no whole blocks"),
            (0, 1024 * 1024, "at most 524288"),
            (16 * EXTENT_BYTES - 512, 1024, "end beyond the disk"),
        ):
            with told("invalid_request", match):
                await bulk_write(rack.world, disk.id, offset, bytes(length))


async def test_block_is_written_whatever_became_of_the_pantry(tmp_path: Path, in_memory: Database) -> None:
    """A pantry that was started again knows nothing; one that is gone for good is replaced."""
    async with plant(tmp_path, in_memory) as rack:
        disk = await create(rack, DISK_CREATE_IMPORTING)
        await bulk_write_start(rack.world, disk.id)
        await bulk_write(rack.world, disk.id, 0, b"\x01" * 512)
        await rack.pantry.detach(disk.id)
        await bulk_write(rack.world, disk.id, 512, b"\x02" * 512)
        rack.run(lambda c: c.execute(schema.pantry.update().values(time_deleted=rack.now())) and None)
        rack.network.connect(17901, application(pantry_api(rack.pantry)))
        rack.add(schema.pantry, sled_id=next(iter(rack.sled_of.values())), ip="::1", port=17901)
        await rack.pantry.detach(disk.id)
        await bulk_write(rack.world, disk.id, 1024, b"\x03" * 512)
        assert disk_of(rack, disk).pantry == Address("::1", 17901)
        await bulk_write_stop(rack.world, disk.id)
        await rack.pantry.detach(disk.id)
        params = with_snapshot(rack, disk)
        await run(rack, FINALIZE_DISK_WITH_SNAPSHOT, params)
        held = b"\x01" * 512 + b"\x02" * 512 + b"\x03" * 512
        assert await read(rack, disk, 0, 2048) == held + bytes(512)
        await delete_disk(rack, disk)
        await delete_snapshot(rack, HasVolume(params.snapshot.snapshot_id, params.snapshot.volume_id))
        await verify_clean_slate(rack)


async def test_two_that_finalize_one_disk_do_not_meet(tmp_path: Path, in_memory: Database) -> None:
    """One does it; the other is refused and changes nothing, not even when it unwinds."""
    async with plant(tmp_path, in_memory) as rack:
        disk = await create(rack, DISK_CREATE_IMPORTING)
        ended: list[str] = []

        async def one(number: int) -> None:
            try:
                await run(rack, FINALIZE_DISK_WITH_SNAPSHOT, with_snapshot(rack, disk, f"frozen{number}"))
                ended.append("finalized")
            except Exception as error:  # noqa: BLE001 - looked at below
                ended.append(getattr(error, "kind", repr(error)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one, 1)
            nursery.start_soon(one, 2)
        assert sorted(ended) == ["finalized", "invalid_request"]
        assert disk_of(rack, disk).state == "detached"
        assert rack.findings() == []


# -- nodes again, failures, death -------------------------------------------------------------------------------------

FORMS: dict[str, tuple[Saga, Callable[[Plant, HasVolume], finalize_disk.Params]]] = {
    "plain": (FINALIZE_DISK, plain),
    "snapshot": (FINALIZE_DISK_WITH_SNAPSHOT, with_snapshot),
}


def trials(rack: Plant, form: str) -> Fresh:
    """Trials that end with a detached disk, or with one whose import can go on; it is deleted then."""
    ask = FORMS[form][1]

    async def fresh() -> Trial:
        before = await standing(rack)
        disk = await create(rack, DISK_CREATE_IMPORTING)
        data = rack.random.randbytes(SIZE_BYTES)
        await imported(rack, disk, data)
        params = ask(rack, disk)

        async def finished() -> None:
            assert rack.findings() == []
            assert await read(rack, disk) == data
            if isinstance(params, finalize_disk.ParamsWithSnapshot):
                await delete_snapshot(rack, HasVolume(params.snapshot.snapshot_id, params.snapshot.volume_id))
            await delete_disk(rack, disk)
            assert await standing(rack) == before

        async def clean() -> None:
            assert disk_of(rack, disk).state == "import_ready"
            assert rack.count(schema.snapshot, schema.snapshot.c.time_deleted.is_(None)) == 0
            await imported(rack, disk, data)
            await run(rack, FINALIZE_DISK, plain(rack, disk))
            assert await read(rack, disk) == data
            await delete_disk(rack, disk)
            assert await standing(rack) == before

        return Trial(rack.world, MemoryStore(), params, finished, clean)

    return fresh


@pytest.mark.parametrize("form", FORMS)
async def test_actions_succeed_idempotently(tmp_path: Path, in_memory: Database, form: str) -> None:
    async with plant(tmp_path, in_memory) as rack:
        await actions_succeed_idempotently(FORMS[form][0], trials(rack, form))
        await verify_clean_slate(rack)


async def test_action_failure_can_unwind_idempotently(tmp_path: Path, in_memory: Database) -> None:
    """With a snapshot: before it is begun, in its middle, and when it is there already."""
    own = ["SET_FINALIZING_STATE", "CALL_PANTRY_ATTACH"]
    own += ["CALL_PANTRY_DETACH", "CLEAR_PANTRY_ADDRESS", "SET_DETACHED_STATE"]
    async with plant(tmp_path, in_memory) as rack:
        fresh = trials(rack, "snapshot")
        tried = {*own, "SNAPSHOT/CALL_PANTRY_SNAPSHOT"}
        await action_failure_can_unwind_idempotently(FINALIZE_DISK_WITH_SNAPSHOT, fresh, only=tried.__contains__)
        await verify_clean_slate(rack)


async def test_death_at_every_point(tmp_path: Path, in_memory: Database) -> None:
    """Whoever goes on gets to the last node, and fails there: the import can go on."""
    async with plant(tmp_path, in_memory) as rack:
        fresh = trials(rack, "plain")
        assert await death_at_every_point(FINALIZE_DISK, fresh, fail_at="SET_DETACHED_STATE") >= 12


async def test_death_about_the_end(tmp_path: Path, in_memory: Database) -> None:
    async with plant(tmp_path, in_memory) as rack:
        last = {"CALL_PANTRY_DETACH", "SET_DETACHED_STATE"}
        assert await death_at_every_point(FINALIZE_DISK, trials(rack, "plain"), only=last.__contains__) == 6


async def test_death_where_the_import_and_its_snapshot_meet(tmp_path: Path, in_memory: Database) -> None:
    """Before, in and after the snapshot's saga, going on and unwinding; its own nodes are tried where it is."""
    seams = {
        "CALL_PANTRY_ATTACH",
        "SNAPSHOT/CALL_PANTRY_SNAPSHOT",
        "SNAPSHOT/RELEASE_VOLUME_LOCK",
        "CALL_PANTRY_DETACH",
    }
    async with plant(tmp_path, in_memory) as rack:
        fresh = trials(rack, "snapshot")
        points = {Point.AFTER_EFFECT, Point.AFTER_UNDO_EFFECT}
        for fail_at in (None, "SET_DETACHED_STATE"):
            tried = await death_at_every_point(
                FINALIZE_DISK_WITH_SNAPSHOT, fresh, fail_at=fail_at, only=seams.__contains__, points=points, full=False
            )
            assert tried >= len(seams)
        await verify_clean_slate(rack)
