"""disk-create on real agents (nexus.md §3.11; catalogue §9.6 disk_create, §9.4 disks.rs)."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from disks_rig import (
    BLANK,
    SIZE_BYTES,
    asked,
    create,
    disk_of,
    read,
    refused,
    standing,
    trials,
    verify_clean_slate,
    written,
)
from nexus_rig import EXTENT_BYTES, Plant, plant
from saga_scaffold import (
    SAGA_ID,
    Meanwhile,
    Trial,
    action_failure_can_unwind,
    action_failure_can_unwind_idempotently,
    actions_succeed_idempotently,
    death_at_every_point,
    execute,
)
from users_rig import (
    HasVolume,
    delete_disk,
    delete_image,
    delete_snapshot,
    make_disk,
    make_image,
    make_snapshot,
    nothing,
    refusing,
    run,
)

from crucible_emu.agent.failures import Failing, Failures
from nexus.db import Database, schema
from nexus.objects.provisioning import provisioned_bytes
from nexus.objects.sources import FromImage, FromSnapshot, Source, origin_of
from nexus.saga import Dag, Executor, MemoryStore, Point, Saga, SagaFailed, SagaState, SagaStuck
from nexus.saga.hooks import Crash
from nexus.sagas import disk_create
from nexus.sagas.disk_create import DISK_CREATE, DISK_CREATE_IMPORTING, DISK_CREATE_READ_ONLY
from nexus.volumes import volume_get, walks

# -- what a disk is when it was made ----------------------------------------------------------------------------------


async def test_disk_create_saga_basic(tmp_path: Path, database: Database) -> None:
    """Catalogue §9.6 disk_create, basic: a blank disk of three regions on three sleds, charged, detached, of zeros."""
    async with plant(tmp_path, database) as rack:
        disk = await create(rack)
        found = disk_of(rack, disk)
        assert (found.state, found.read_only, found.size_bytes, found.pantry) == ("detached", False, SIZE_BYTES, None)
        assert rack.run(provisioned_bytes, rack.project_id) == SIZE_BYTES
        assert (await standing(rack))["reserved"] == 3 * SIZE_BYTES * 5 // 4
        request = rack.run(volume_get, disk.volume_id).request
        (region,) = request.sub_volumes
        assert (str(request.id), str(region.opts.id), region.gen) == (disk.id, disk.id, 1)
        assert len(base64.b64decode(region.opts.key.get_secret_value())) == 32
        assert await read(rack, disk) == bytes(SIZE_BYTES)
        await written(rack, disk, 512, b"\x07" * 512)
        assert await read(rack, disk, 0, 1536) == bytes(512) + b"\x07" * 512 + bytes(512)
        assert rack.findings() == []
        await delete_disk(rack, disk)
        await verify_clean_slate(rack)


async def test_disk_made_of_a_snapshot_reads_what_was_frozen(tmp_path: Path, in_memory: Database) -> None:
    async with plant(tmp_path, in_memory) as rack:
        original = await make_disk(rack)
        frozen = rack.random.randbytes(SIZE_BYTES)
        await written(rack, original, 0, frozen)
        snapshot = await make_snapshot(rack, original)
        await written(rack, original, 0, bytes(EXTENT_BYTES))
        source = FromSnapshot(snapshot_id=snapshot.id)
        copy = await create(rack, source=source)
        bigger = await create(rack, source=source, name="bigger", size_bytes=2 * SIZE_BYTES)
        assert disk_of(rack, copy).origin_snapshot == snapshot.id
        assert await read(rack, copy) == frozen
        assert await read(rack, bigger, 0, 2 * SIZE_BYTES) == frozen + bytes(SIZE_BYTES)
        await written(rack, copy, 1024, b"\x01" * 512)
        assert await read(rack, copy) == frozen[:1024] + b"\x01" * 512 + frozen[1536:]
        image = await make_image(rack, snapshot)
        of_image = await create(rack, source=FromImage(image_id=image.id), name="of-image")
        assert disk_of(rack, of_image).origin_image == image.id
        for each in (original, copy, bigger):
            await delete_disk(rack, each)
        await delete_snapshot(rack, snapshot)
        await delete_image(rack, image)
        assert await read(rack, of_image) == frozen, "what it counts on stays"
        await delete_disk(rack, of_image)
        await verify_clean_slate(rack)


async def test_create_read_only_disk_from_snapshot(tmp_path: Path, in_memory: Database) -> None:
    async with plant(tmp_path, in_memory) as rack:
        await two_read_only_disks(rack, "snapshot")


async def test_create_read_only_disk_from_image(tmp_path: Path, in_memory: Database) -> None:
    async with plant(tmp_path, in_memory) as rack:
        await two_read_only_disks(rack, "image")


async def test_read_only_disk_different_vcr(tmp_path: Path, in_memory: Database) -> None:
    """No id of a volume or an Upstairs is in two copies: the source, its image and two read-only disks."""
    async with with_source(tmp_path, in_memory, "snapshot") as (rack, source):
        assert isinstance(source, FromSnapshot)
        copies = [await create(rack, DISK_CREATE_READ_ONLY, source, name=name) for name in ("one", "two")]
        origin = rack.run(origin_of, rack.project_id, source)
        documents = [rack.run(volume_get, each).request for each in (origin.volume_id, *(d.volume_id for d in copies))]
        assert len({each for document in documents for each in ids_of(document)}) == 6


async def two_read_only_disks(rack: Plant, kind: str) -> None:
    """Of one source, and of different ids; they hold it when it is gone."""
    original = await make_disk(rack)
    frozen = rack.random.randbytes(SIZE_BYTES)
    await written(rack, original, 0, frozen)
    snapshot = await make_snapshot(rack, original)
    image = await make_image(rack, snapshot)
    source = FromSnapshot(snapshot_id=snapshot.id) if kind == "snapshot" else FromImage(image_id=image.id)
    made = [await create(rack, DISK_CREATE_READ_ONLY, source, name=name) for name in ("one", "two")]
    found = disk_of(rack, made[0])
    assert (found.state, found.read_only, found.size_bytes) == ("detached", True, SIZE_BYTES)
    documents = [rack.run(volume_get, each.volume_id).request for each in (snapshot, image, *made)]
    assert len({each for document in documents for each in ids_of(document)}) == 8
    assert walks.is_read_only(documents[-1])
    assert documents[-1].read_only_parent is None
    assert rack.run(provisioned_bytes, rack.project_id) == 4 * SIZE_BYTES
    await delete_disk(rack, original)
    await delete_snapshot(rack, snapshot)
    await delete_image(rack, image)
    assert [await read(rack, each) for each in made] == [frozen, frozen]
    for each in made:
        await delete_disk(rack, each)
    await verify_clean_slate(rack)


def ids_of(request: Any) -> list[str]:
    return [str(request.id), *(str(part.opts.id) for part in request.sub_volumes)]


# -- what is refused --------------------------------------------------------------------------------------------------


async def test_reject_creating_disk_from_snapshot(tmp_path: Path, database: Database) -> None:
    """Catalogue: test_reject_creating_disk_from_snapshot, …_from_illegal_snapshot, …_from_other_project_snapshot."""
    async with plant(tmp_path, database) as rack:
        original = await make_disk(rack)
        snapshot = await make_snapshot(rack, original)
        image = await make_image(rack, snapshot)
        elsewhere = rack.add(schema.project, silo_id=rack.silo_id, name="elsewhere", description="")
        abroad = rack.add(schema.project, silo_id=rack.id(), name="abroad", description="")
        before = await standing(rack)
        source, of_image = FromSnapshot(snapshot_id=snapshot.id), FromImage(image_id=image.id)
        for saga, given, kind, match, changed in (
            (DISK_CREATE, source, "invalid_request", "greater than or equal", {"size_bytes": EXTENT_BYTES}),
            (DISK_CREATE, source, "invalid_request", "blocks of 512 bytes", {"block_size": 4096}),
            (DISK_CREATE, source, "invalid_request", "take whole", {"size_bytes": SIZE_BYTES + 512}),
            (DISK_CREATE, source, "invalid_request", "take whole", {"size_bytes": 0}),
            (DISK_CREATE, BLANK, "invalid_request", "block size 1024", {"block_size": 1024}),
            (DISK_CREATE, BLANK, "not_found", "no project", {"project_id": rack.id()}),
            (DISK_CREATE, FromSnapshot(snapshot_id=rack.id()), "not_found", "there is no snapshot", {}),
            (DISK_CREATE, FromImage(image_id=rack.id()), "not_found", "there is no image", {}),
            (DISK_CREATE, source, "invalid_request", "does not belong", {"project_id": elsewhere}),
            (DISK_CREATE, of_image, "invalid_request", "does not belong", {"project_id": elsewhere}),
            (DISK_CREATE, of_image, "invalid_request", "does not belong", {"project_id": abroad}),
            (DISK_CREATE_READ_ONLY, source, "invalid_request", "has 131072 bytes", {"size_bytes": 2 * SIZE_BYTES}),
            (DISK_CREATE_READ_ONLY, BLANK, "invalid_request", "is made of a snapshot or an image", {}),
        ):
            with refused(kind, match):
                await create(rack, saga, given, **changed)
        rack.set(schema.snapshot, snapshot.id, state="creating")
        with refused("invalid_request", "one that is ready"):
            await create(rack, source=source)
        rack.set(schema.snapshot, snapshot.id, state="ready")
        rack.set(schema.image, image.id, project_id=None)
        shared = await create(rack, source=of_image, project_id=elsewhere)
        await delete_disk(rack, shared)
        assert await standing(rack) == before


async def test_name_that_is_taken_is_refused_and_nothing_is_left(tmp_path: Path, in_memory: Database) -> None:
    async with plant(tmp_path, in_memory) as rack:
        await create(rack)
        before = await standing(rack)
        for saga in (DISK_CREATE, DISK_CREATE_IMPORTING):
            with refused("object_already_exists", "called 'disk' already"):
                await create(rack, saga)
        assert await standing(rack) == before


async def test_disk_backed_by_multiple_region_sets(tmp_path: Path, in_memory: Database) -> None:
    """Catalogue: a disk that does not fit one region set is 507; the user is not told why."""
    async with plant(tmp_path, in_memory) as rack:
        with refused("capacity", "^Not enough storage$"):
            await create(rack, size_bytes=1024 * EXTENT_BYTES)
        await verify_clean_slate(rack)


# -- agents that do not do what they are asked ------------------------------------------------------------------------


async def test_disk_region_creation_failure(tmp_path: Path, in_memory: Database) -> None:
    """Catalogue: an agent's disk is lost in the middle: the saga fails at REGIONS_ENSURE and leaves nothing."""
    async with plant(tmp_path, in_memory, sleds=3) as rack:
        lost = next(iter(rack.agents))
        rack.silence(lost)
        failed = trio.Event()

        async def use() -> None:
            with refused("gone", "gone for good"):
                await create(rack)
            failed.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(use)
            with trio.move_on_after(0.2):
                await failed.wait()
            assert not failed.is_set(), "a silent agent is waited for"
            rack.expunge(lost)
            with trio.fail_after(10):
                await failed.wait()
        await verify_clean_slate(rack)


def failing(rack: Plant, dataset_id: str, *what: Failing, slow_s: float = 0.0) -> None:
    """The dataset's agent lets such work fail, or takes its time."""
    agent = rack.agents[dataset_id]
    agent.options = replace(agent.options, failures=Failures(frozenset(what), slow_s))


@pytest.mark.parametrize("saga", [DISK_CREATE, DISK_CREATE_IMPORTING], ids=lambda saga: saga.name)
async def test_disk_create_saga_unwinds_correctly(
    tmp_path: Path, in_memory: Database, saga: Saga, expect_log: Any
) -> None:
    """Catalogue §9.3: the third agent fails region creation: an error, and nothing is leaked (R35)."""
    async with plant(tmp_path, in_memory, sleds=3) as rack:
        *_, third = rack.agents
        failing(rack, third, Failing.CREATE)
        with expect_log("region not made"), refused("refused", "failed"):
            await create(rack, saga)
        await verify_clean_slate(rack)


async def test_disk_creation_region_requested_then_started(tmp_path: Path, in_memory: Database) -> None:
    """Catalogue: agents say *requested* first; they are asked again until the region is there."""
    async with plant(tmp_path, in_memory, sleds=3) as rack:
        for dataset_id in rack.agents:
            failing(rack, dataset_id, slow_s=0.1)
        disk = await create(rack)
        assert disk_of(rack, disk).state == "detached"
        await delete_disk(rack, disk)
        await verify_clean_slate(rack)


async def test_agent_that_keeps_its_region_is_shown_in_the_disk(
    tmp_path: Path, in_memory: Database, expect_log: Any
) -> None:
    """The undo fails: the disk is faulted, the saga waits for a person, and is done when it is resumed."""
    async with plant(tmp_path, in_memory, sleds=3) as rack:
        first, *_, third = rack.agents
        failing(rack, third, Failing.CREATE)
        params, store = asked(rack), MemoryStore()
        async with trio.open_nursery() as nursery:
            executor = Executor(nursery, store, [DISK_CREATE], rack.world, "nexus", new_id=rack.id)
            with (
                expect_log("region not made"),
                expect_log("saga stuck: an undo failed"),
                refusing(rack, first),
                pytest.raises(SagaStuck) as caught,
            ):
                await executor.run(DISK_CREATE, params)
            assert caught.value.label == "REGIONS_ENSURE_UNDO"
            assert disk_of(rack, HasVolume(params.disk_id, params.volume_id)).state == "faulted"
            await executor.resume(caught.value.saga_id)
            with pytest.raises(SagaFailed):
                await executor.wait(caught.value.saga_id)
        await verify_clean_slate(rack)


# -- what happens to the source meanwhile -----------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["copy", "read-only"])
async def test_source_that_is_deleted_before_it_is_copied_is_not_used(
    tmp_path: Path, in_memory: Database, form: str
) -> None:
    """R26: no volume is made of region snapshots that are gone, and nothing is left."""
    async with plant(tmp_path, in_memory) as rack:
        original = await make_disk(rack)
        snapshot = await make_snapshot(rack, original)
        node = "CREATE_VOLUME_RECORD" if form == "copy" else "CREATE_READONLY_DISK_RECORDS"
        meanwhile = Meanwhile(node, lambda: delete_snapshot(rack, snapshot))
        with refused("not_found", "there is no snapshot"):
            await run(rack, COPIES[form], asked(rack, FromSnapshot(snapshot_id=snapshot.id)), perform=meanwhile)
        assert meanwhile.done
        await delete_disk(rack, original)
        await verify_clean_slate(rack)


@dataclass
class DieAt:
    """Dies after a node's effect, before that is written down."""

    label: str
    died: bool = False

    async def __call__(self, point: Point, saga_id: str, label: str) -> None:
        if (point, label) == (Point.AFTER_EFFECT, self.label):
            self.died = True
            raise Crash


async def start(saga: Saga, params: disk_create.Params, executor: Executor) -> None:
    await executor.start(saga, params)


@pytest.mark.parametrize("form", ["copy", "read-only"])
async def test_source_that_is_deleted_while_nexus_is_dead(tmp_path: Path, in_memory: Database, form: str) -> None:
    """W1: Nexus dies in each node, when it has done something and before it has written that down; then the source is
    deleted; then another Nexus goes on. A copy that was made is found, for the failure of an action that had done
    something would leave that behind."""
    saga = COPIES[form]
    made_at = {"CREATE_VOLUME_RECORD", "CREATE_READONLY_DISK_RECORDS", "FINALIZE_DISK_RECORD"}
    async with plant(tmp_path, in_memory) as rack:
        for label in [vertex.label for vertex in Dag.of(saga).vertices.values() if vertex.action is not None]:
            original = await make_disk(rack)
            await written(rack, original, 0, b"\x09" * SIZE_BYTES)
            snapshot = await make_snapshot(rack, original)
            params = asked(rack, FromSnapshot(snapshot_id=snapshot.id))
            trial = Trial(rack.world, MemoryStore(), params, nothing, nothing)
            die = DieAt(label)
            await execute(saga, trial, partial(start, saga, params), hooks=die)
            assert die.died
            await delete_snapshot(rack, snapshot)
            await delete_disk(rack, original)
            await execute(saga, trial, lambda executor: executor.take_over("nexus-1"), executor_id="nexus-2")
            record, _ = await trial.store.load(SAGA_ID)
            assert record.state is (SagaState.DONE if label in made_at else SagaState.UNWOUND), label
            if label in made_at:
                copy = HasVolume(params.disk_id, params.volume_id)
                assert await read(rack, copy) == b"\x09" * SIZE_BYTES
                await delete_disk(rack, copy)
            await verify_clean_slate(rack)


async def test_unwinding_copy_destroys_what_it_was_the_last_to_count_on(tmp_path: Path, in_memory: Database) -> None:
    """W39: source and its disk are deleted after they were copied, and then the saga fails."""
    async with plant(tmp_path, in_memory) as rack:
        original = await make_disk(rack)
        snapshot = await make_snapshot(rack, original)

        async def delete_both() -> None:
            await delete_disk(rack, original)
            await delete_snapshot(rack, snapshot)

        meanwhile = Meanwhile("FINALIZE_DISK_RECORD", delete_both, fails="FINALIZE_DISK_RECORD")
        with refused("failed", "on purpose"):
            await run(rack, DISK_CREATE, asked(rack, FromSnapshot(snapshot_id=snapshot.id)), perform=meanwhile)
        await verify_clean_slate(rack)


async def test_pantry_that_is_lost_before_it_is_asked_unwinds(tmp_path: Path, in_memory: Database) -> None:
    """Nothing waits for a pantry that will never answer, on the way forward or back."""
    async with plant(tmp_path, in_memory) as rack:

        async def lose() -> None:
            rack.network.cut(17900)
            rack.run(lambda c: c.execute(schema.pantry.update().values(time_deleted=rack.now())) and None)

        meanwhile = Meanwhile("CALL_PANTRY_ATTACH_FOR_DISK", lose)
        with trio.fail_after(30), refused("gone", "gone for good"):
            await run(rack, DISK_CREATE_IMPORTING, asked(rack), perform=meanwhile)
        with refused("unavailable", "no pantry is known"):
            await create(rack, DISK_CREATE_IMPORTING)
        assert rack.count(schema.disk, schema.disk.c.time_deleted.is_(None)) == 0
        await rack.require_empty()


async def test_key_is_in_no_log_and_no_output(tmp_path: Path, in_memory: Database, caplog: Any) -> None:
    async with plant(tmp_path, in_memory) as rack:
        store = MemoryStore()
        async with trio.open_nursery() as nursery:
            executor = Executor(nursery, store, [DISK_CREATE_IMPORTING], rack.world, "nexus", new_id=rack.id)
            params = asked(rack)
            await executor.run(DISK_CREATE_IMPORTING, params)
        (region,) = rack.run(volume_get, params.volume_id).request.sub_volumes
        key = region.opts.key.get_secret_value()
        assert key not in f"{store.records}{store.logs}{caplog.text}{region!r}"


# -- nodes again, failures, death -------------------------------------------------------------------------------------

FORMS = {"blank": DISK_CREATE, "importing": DISK_CREATE_IMPORTING}
COPIES = {"copy": DISK_CREATE, "read-only": DISK_CREATE_READ_ONLY}


@asynccontextmanager
async def with_source(tmp_path: Path, database: Database, kind: str) -> AsyncIterator[tuple[Plant, Source]]:
    """A rack with a snapshot or an image, whose disk is gone."""
    async with plant(tmp_path, database) as rack:
        original = await make_disk(rack)
        snapshot = await make_snapshot(rack, original)
        await delete_disk(rack, original)
        source: Source = FromSnapshot(snapshot_id=snapshot.id)
        if kind == "image":
            image = await make_image(rack, snapshot)
            await delete_snapshot(rack, snapshot)
            source = FromImage(image_id=image.id)
        yield rack, source


@pytest.mark.parametrize("form", FORMS)
async def test_actions_succeed_idempotently(tmp_path: Path, in_memory: Database, form: str) -> None:
    async with plant(tmp_path, in_memory) as rack:
        await actions_succeed_idempotently(FORMS[form], trials(rack))
        await verify_clean_slate(rack)


async def test_action_failure_can_unwind(tmp_path: Path, in_memory: Database) -> None:
    """Also with each undo twice. The nodes of a blank disk are among these."""
    async with plant(tmp_path, in_memory) as rack:
        await action_failure_can_unwind(DISK_CREATE_IMPORTING, trials(rack))
        await action_failure_can_unwind_idempotently(DISK_CREATE_IMPORTING, trials(rack))
        await verify_clean_slate(rack)


async def test_death_at_every_point(tmp_path: Path, in_memory: Database) -> None:
    """Whoever goes on gets to the last node, fails there, and takes everything back. The nodes of a blank disk are
    among these."""
    async with plant(tmp_path, in_memory) as rack:
        fresh = trials(rack)
        assert await death_at_every_point(DISK_CREATE_IMPORTING, fresh, fail_at="FINALIZE_DISK_RECORD") > 40


async def test_death_about_the_end(tmp_path: Path, in_memory: Database) -> None:
    """Whoever goes on gives the disk to its user."""
    async with plant(tmp_path, in_memory) as rack:
        last = {"CREATE_VOLUME_RECORD", "FINALIZE_DISK_RECORD"}
        assert await death_at_every_point(DISK_CREATE, trials(rack), only=last.__contains__) == 6


@pytest.mark.parametrize(("form", "kind"), [("copy", "snapshot"), ("read-only", "snapshot"), ("read-only", "image")])
async def test_copies_unwind_and_repeat(tmp_path: Path, in_memory: Database, form: str, kind: str) -> None:
    """Catalogue: read-only unwind, both kinds, and succeed idempotently."""
    async with with_source(tmp_path, in_memory, kind) as (rack, source):
        await actions_succeed_idempotently(COPIES[form], trials(rack, source))
        await action_failure_can_unwind_idempotently(COPIES[form], trials(rack, source))


async def test_read_only_disk_is_made_whenever_nexus_dies(tmp_path: Path, in_memory: Database) -> None:
    async with with_source(tmp_path, in_memory, "snapshot") as (rack, source):
        assert await death_at_every_point(DISK_CREATE_READ_ONLY, trials(rack, source)) > 8
