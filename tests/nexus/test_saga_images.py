"""image-create and image-delete (nexus.md §3.14, images.rs)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from nexus_rig import Plant, plant
from saga_scaffold import (
    AFTER_EFFECTS,
    SAGA_ID,
    Trial,
    action_failure_can_unwind,
    action_failure_can_unwind_idempotently,
    actions_succeed_idempotently,
    death_at_every_point,
    execute,
)
from users_rig import (
    SIZE_BYTES,
    HasVolume,
    MadeSnapshot,
    delete_disk,
    delete_image,
    delete_snapshot,
    finish_deletions,
    image_params,
    make_disk,
    make_image,
    make_snapshot,
    nothing,
    refusing,
    run,
)

from nexus.db import Database, schema
from nexus.objects.images import Image, image_get, require_image
from nexus.saga import ActionFailed, Executor, MemoryStore, Point, SagaFailed, SagaState
from nexus.sagas.image_create import IMAGE_CREATE
from nexus.sagas.image_delete import IMAGE_DELETE, Params
from nexus.volumes import Deletion, volume_state, volumes_using
from nexus.volumes.resolution import resources_used_by


async def disk_and_snapshot(rack: Plant) -> tuple[HasVolume, MadeSnapshot]:
    disk = await make_disk(rack)
    return disk, await make_snapshot(rack, disk)


@pytest.mark.parametrize("whose", ["project", "silo"])
async def test_create_image_from_snapshot(tmp_path: Path, database: Database, whose: str) -> None:
    async with plant(tmp_path, database) as rack:
        disk, snapshot = await disk_and_snapshot(rack)
        project_id = rack.project_id if whose == "project" else None
        image = await make_image(rack, snapshot, project_id=project_id)
        row: Image = rack.run(require_image, image.id)
        assert (row.project_id, row.silo_id, row.name, row.os) == (project_id, rack.silo_id, "image", "debian")
        assert (row.block_size, row.size_bytes, row.volume_id) == (512, SIZE_BYTES, image.volume_id)
        shared = rack.run(resources_used_by, snapshot.volume_id)
        assert rack.run(resources_used_by, image.volume_id) == shared and len(shared) == 3
        assert all(len(rack.run(volumes_using, each)) == 2 for each in shared)
        await delete_image(rack, image)
        await delete_image(rack, image)
        with pytest.raises(ActionFailed, match="there is no image"):
            rack.run(require_image, image.id)
        await delete_snapshot(rack, snapshot)
        await delete_disk(rack, disk)
        await rack.require_empty()


def creation(rack: Plant, snapshot: MadeSnapshot, *, images: int) -> Callable[[], Awaitable[Trial]]:
    """Trials over one snapshot: an image is made that can be deleted, or there is none, nor a volume of one."""

    async def fresh() -> Trial:
        params = image_params(rack, snapshot)

        async def end() -> None:
            row = rack.run(image_get, params.image_id)
            assert (row is not None) == bool(images)
            if images:
                await delete_image(rack, HasVolume(params.image_id, params.dest_volume_id))
            assert rack.run(volume_state, params.dest_volume_id) is Deletion.HARD_DELETED
            assert rack.count(schema.volume_resource_usage) == 3 and rack.findings() == []

        return Trial(rack.world, MemoryStore(), params, finished=end, clean=end)

    return fresh


async def test_image_create_scaffold(tmp_path: Path, in_memory: Database) -> None:
    async with plant(tmp_path, in_memory) as rack:
        disk, snapshot = await disk_and_snapshot(rack)
        made, none = creation(rack, snapshot, images=1), creation(rack, snapshot, images=0)
        await actions_succeed_idempotently(IMAGE_CREATE, made)
        await action_failure_can_unwind(IMAGE_CREATE, none)
        await action_failure_can_unwind_idempotently(IMAGE_CREATE, none)
        assert await death_at_every_point(IMAGE_CREATE, made) == 2 * 3
        assert await death_at_every_point(IMAGE_CREATE, none, fail_at="CREATE_IMAGE_RECORD") > 2 * 3
        await delete_snapshot(rack, snapshot)
        await delete_disk(rack, disk)
        await rack.require_empty()


async def test_name_of_an_image_is_taken_once(tmp_path: Path, in_memory: Database) -> None:
    async with plant(tmp_path, in_memory) as rack:
        disk, snapshot = await disk_and_snapshot(rack)
        images = [await make_image(rack, snapshot), await make_image(rack, snapshot, project_id=None)]
        for project_id in (rack.project_id, None):
            with pytest.raises(SagaFailed, match="there is a image called 'image' already") as caught:
                await make_image(rack, snapshot, project_id=project_id)
            assert caught.value.kind == "object_already_exists"
        for image in images:
            await delete_image(rack, image)
        await delete_image(rack, await make_image(rack, snapshot))
        await delete_snapshot(rack, snapshot)
        await delete_disk(rack, disk)
        await rack.require_empty()


async def test_snapshot_that_is_not_ready_is_no_source(tmp_path: Path, in_memory: Database) -> None:
    async with plant(tmp_path, in_memory) as rack:
        disk, snapshot = await disk_and_snapshot(rack)
        rack.set(schema.snapshot, snapshot.id, state="faulted")
        with pytest.raises(SagaFailed, match="an image is made of one that is ready") as caught:
            await make_image(rack, snapshot)
        assert caught.value.kind == "invalid_request"
        await delete_snapshot(rack, snapshot)
        with pytest.raises(SagaFailed, match="there is no snapshot") as caught:
            await make_image(rack, snapshot)
        assert caught.value.kind == "not_found"
        await delete_disk(rack, disk)
        await rack.require_empty()


@pytest.mark.parametrize("end", ["made", "undone", "undone, but an agent refuses"])
async def test_snapshot_goes_while_its_image_is_made(
    tmp_path: Path, in_memory: Database, end: str, expect_log: Any
) -> None:
    """The copy is the last that counts on what the snapshot left: undone, it takes that with it (W39)."""
    async with plant(tmp_path, in_memory) as rack:
        disk, snapshot = await disk_and_snapshot(rack)
        params = image_params(rack, snapshot)
        taken = [] if end == "made" else [await make_image(rack, snapshot, project_id=params.project_id)]
        trial = Trial(rack.world, MemoryStore(), params, nothing, nothing)

        async def go(point: Point, saga_id: str, label: str) -> None:
            if (point, label) == (Point.AFTER_EFFECT, "GET_SOURCE_VOLUME"):
                await delete_snapshot(rack, snapshot)
                await delete_disk(rack, disk)
                assert rack.count(schema.region_snapshot) == 3
            if (point, label) == (Point.AFTER_RECORD, "CREATE_IMAGE_RECORD"):
                for image in taken:
                    await delete_image(rack, image)

        async def create(executor: Executor) -> None:
            await executor.start(IMAGE_CREATE, trial.params)

        with ExitStack() as trouble:

            async def go_with_trouble(point: Point, saga_id: str, label: str) -> None:
                await go(point, saga_id, label)
                if point is Point.BEFORE_UNDO and end == "undone, but an agent refuses":
                    trouble.enter_context(expect_log("volume is left soft-deleted"))
                    trouble.enter_context(refusing(rack, used_by(rack, params.dest_volume_id)))

            await execute(IMAGE_CREATE, trial, create, hooks=go_with_trouble)
        wanted = SagaState.DONE if end == "made" else SagaState.UNWOUND
        assert (await trial.store.load(SAGA_ID))[0].state is wanted
        if end == "made":
            over = await make_disk(rack, HasVolume(params.image_id, params.dest_volume_id))
            await delete_image(rack, HasVolume(params.image_id, params.dest_volume_id))
            await delete_disk(rack, over)
        await finish_deletions(rack)
        await rack.require_empty()


def used_by(rack: Plant, volume_id: str) -> str:
    """The dataset of something that the volume reads from."""
    resource = rack.run(resources_used_by, volume_id)[0]
    return str(resource.dataset_id)


def outside(label: str) -> bool:
    """The nodes of volume-delete have tests of their own."""
    return "/" not in label or label.endswith("/DECREASE_COUNT")


async def test_image_delete_scaffold(tmp_path: Path, in_memory: Database) -> None:
    """It has no undos: what fails is finished by the task that resumes deletions."""
    async with plant(tmp_path, in_memory) as rack:
        disk, snapshot = await disk_and_snapshot(rack)

        async def fresh() -> Trial:
            image = await make_image(rack, snapshot)

            async def gone() -> None:
                row = rack.run(image_get, image.id)
                assert row.deleted and rack.run(volume_state, image.volume_id) is Deletion.HARD_DELETED

            async def finished_later() -> None:
                if not rack.run(image_get, image.id).deleted:
                    await delete_image(rack, image)
                await finish_deletions(rack)
                await gone()

            return Trial(rack.world, MemoryStore(), Params(image_id=image.id), finished=gone, clean=finished_later)

        await actions_succeed_idempotently(IMAGE_DELETE, fresh)
        await action_failure_can_unwind(IMAGE_DELETE, fresh, only=outside)
        assert await death_at_every_point(IMAGE_DELETE, fresh, only=outside, points=AFTER_EFFECTS) >= 2
        await delete_snapshot(rack, snapshot)
        await delete_disk(rack, disk)
        await rack.require_empty()


async def test_image_that_never_was_is_not_deleted(tmp_path: Path, in_memory: Database) -> None:
    async with plant(tmp_path, in_memory, sleds=1) as rack:
        with pytest.raises(SagaFailed, match="there is no image") as caught:
            await run(rack, IMAGE_DELETE, Params(image_id=rack.id()))
        assert caught.value.kind == "not_found"
