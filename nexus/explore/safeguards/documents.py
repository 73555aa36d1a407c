"""Safeguards of what is written down and handed out: where copies are, whose documents are sent to whom, what is chosen
once.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

import trio
from sqlalchemy import Connection, select

from crucible_emu.volume.vcr import VolumeConstructionRequest
from nexus.db import NotFound, schema
from nexus.explore.removal import Removal
from nexus.explore.safeguards.instead import answers
from nexus.explore.safeguards.sagas import DRIVE, START
from nexus.objects.disks import disk_get, disk_insert
from nexus.objects.refusals import CONFLICT, told_to_users
from nexus.objects.sources import origin_of
from nexus.placement import AllocatedRegion, regions_hard_delete, regions_of
from nexus.placement.choice import Occupied
from nexus.replacement import clone_source, snapshot_copies
from nexus.replacement.notice import Reader, Reading
from nexus.replacement.region import PantryStep, step_record
from nexus.saga import ActionFailed
from nexus.sagas import disk_create, volume_delete
from nexus.sagas import region_snapshot_replacement_start as start_saga
from nexus.services import Gone
from nexus.services.refusals import told_of
from nexus.volumes import (
    Address,
    Deletion,
    ReadOnlyCopy,
    Repair,
    volume_checkout,
    volume_checkout_randomize_ids,
    volume_state,
    walks,
)
from nexus.volumes.resolution import Resource

_DATASET, _REGION, _SNAPSHOT = schema.crucible_dataset, schema.region, schema.snapshot
_START_SAGA = start_saga.__name__


# -- what stands instead ----------------------------------------------------------------------------------------------


def _waits_for_the_pantry(original: Any) -> Any:
    """Attaches without letting go first, and waits until the volume is in service."""

    async def given(world: Any, request_id: str, step: PantryStep, volume_id: str) -> None:
        def body(connection: Connection) -> VolumeConstructionRequest:
            # The pantry's own name for a job that is waited for is that of its volume.
            step_record(connection, request_id, PantryStep(step.ip, step.port, volume_id), world.now())
            return volume_checkout(connection, volume_id, Repair(), world.now()).request

        with told_to_users():
            request = await world.database.transact(body)
        address = Address.of(step.ip, step.port)
        with told_of(f"volume {volume_id} at the pantry {address}"):
            await world.pantries.client(address).attach(volume_id, request)

    return given


def _datasets_and_regions(connection: Connection, volume_id: str) -> list[list[Any]]:
    """The rows of a volume's regions, and those of the datasets that they are in, as they are now."""
    query = (
        select(_REGION.c.id, _DATASET.c.id, _DATASET.c.size_used)
        .join(_DATASET, _DATASET.c.id == _REGION.c.dataset_id)
        .where(_REGION.c.volume_id == volume_id)
    )
    return [list(row) for row in connection.execute(query.order_by(_REGION.c.id))]


def _with_a_list(original: Any) -> Any:
    """Also writes down what there is before the new region is."""

    async def parameters(saga: Any) -> dict[str, Any]:
        found: dict[str, Any] = await original(saga)
        volume_id = found["snapshot_volume_id"]
        return found | {"before": await saga.world.database.read(lambda c: _datasets_and_regions(c, volume_id))}

    return parameters


def _differing(connection: Connection, saga: Any) -> list[AllocatedRegion]:
    before, volume_id = (saga.output("GET_ALLOC_REGION_PARAMS")[name] for name in ("before", "snapshot_volume_id"))
    new = {row[0] for row in _datasets_and_regions(connection, volume_id) if row not in before}
    return [each for each in regions_of(connection, volume_id) if each.region_id in new]


def _the_difference(original: Any) -> Any:
    """The new region is what differs between two lists."""

    def own(connection: Connection, saga: Any) -> AllocatedRegion:
        found = _differing(connection, saga)
        if len(found) != 1:
            raise ActionFailed(f"{len(found)} regions differ, and one is new", CONFLICT)
        return found[0]

    return own


def _forgets_the_difference(original: Any) -> Any:
    """Undoing goes by the lists, too."""

    async def forget(saga: Any) -> None:
        def body(connection: Connection) -> None:
            found = [each.region_id for each in _differing(connection, saga)]
            if len(found) == 1 and not start_saga.is_somebodys(connection, found[0]):
                regions_hard_delete(connection, found, saga.world.now())

        await saga.world.database.transact(body)

    return forget


def _chosen_anew(original: Any) -> Any:
    """Each run chooses among the copies that there are by then."""

    def source(connection: Connection, saga: Any) -> Any:
        lost = start_saga._lost(connection, saga.params.request_id)
        copies = snapshot_copies.copies_of(connection, lost.snapshot)
        chosen = clone_source.choose(copies, lost.resource, (), saga.saga_id)
        if chosen is None:
            raise Gone(str(lost.resource))
        return chosen

    return source


def _of_living_snapshots(original: Any) -> Any:
    """A snapshot that was deleted is not found any more."""

    def found(connection: Connection, target: Resource) -> Any:
        snapshot = original(connection, target)
        query = select(_SNAPSHOT.c.id).where(_SNAPSHOT.c.id == snapshot.id, _SNAPSHOT.c.time_deleted.is_(None))
        if connection.execute(query).first() is None:
            raise NotFound("snapshot", snapshot.id)
        return snapshot

    return found


def _in_two_transactions(original: Any) -> Any:
    """First the disk, then its volume, and something happens in between."""

    async def make(saga: Any) -> None:
        world, params = saga.world, saga.params
        disk = disk_create._new_disk(params, read_only=True)

        def first(connection: Connection) -> None:
            if disk_get(connection, params.disk_id) is None:
                disk_insert(connection, disk, world.now())

        def second(connection: Connection) -> None:
            origin = origin_of(connection, params.project_id, params.source)
            assert origin is not None
            volume_checkout_randomize_ids(
                connection,
                origin.volume_id,
                params.volume_id,
                ReadOnlyCopy(),
                world.now(),
                lambda: UUID(world.new_id()),
            )

        with told_to_users():
            await world.database.transact(first)
            await trio.sleep(1.0)
            await world.database.transact(second)

    return make


class _WithOtherCopy:
    """A saga whose copy has another id than its caller wrote down."""

    def __init__(self, saga: Any, volume_id: str) -> None:
        self._saga, self.params = saga, saga.params.model_copy(update={"dest_volume_id": volume_id})

    def __getattr__(self, name: str) -> Any:
        return getattr(self._saga, name)


def _drawn_by_each_run(original: Any) -> Any:
    """Each run makes a copy under an id of its own, and the last one says which it was."""

    async def copy(saga: Any) -> str:
        world, volume_id = saga.world, saga.params.dest_volume_id
        if await world.database.read(lambda c: volume_state(c, volume_id)) is Deletion.LIVE:
            volume_id = world.new_id()
        await original(_WithOtherCopy(saga, volume_id))
        return str(volume_id)

    return copy


def _of_the_last_run(original: Any) -> Any:
    async def node(saga: Any) -> None:
        await original(_WithOtherCopy(saga, saga.output("GET_SOURCE_VOLUME")))

    return node


def _whole_region_gone(original: Any) -> Any:
    """Waits until the region is gone, whatever lies on it."""

    def require(connection: Connection, params: Any) -> None:
        query = select(_REGION.c.id).where(_REGION.c.id == params.old_region_id)
        if connection.execute(query).first() is not None:
            raise ActionFailed(f"region {params.old_region_id} is still there", CONFLICT)

    return require


def _finds_and_destroys(original: Any) -> Any:
    """One node finds and destroys: each run finds what there is by then."""

    async def destroy(saga: Any) -> None:
        found = await volume_delete._find_freed_regions(saga.world, saga.params.volume_id, volume_delete._freed(saga))
        await volume_delete._destroy_found(saga.world, found)

    return destroy


def _finds_nothing(original: Any) -> Any:
    async def find(saga: Any) -> list[str]:
        return []

    return find


def _as_text(original: Any) -> Any:
    """Looks for the address as a piece of text."""

    def contains(request: Any, address: Address) -> bool:
        begins = str(address)
        return any(str(each).startswith(begins) for each in walks.read_only_targets(request))

    return contains


def _by_text(original: Any) -> Any:
    """A volume is found by a piece of its document's text."""

    def found(connection: Connection, address: Address) -> list[str]:
        query = select(schema.volume.c.id).where(schema.volume.c.data.contains(str(address), autoescape=True))
        return list(connection.execute(query.order_by(schema.volume.c.id)).scalars())

    return found


# -- rows -------------------------------------------------------------------------------------------------------------

DOCUMENTS: tuple[Removal, ...] = (
    Removal(
        "R34",
        "a volume is given to a pantry in a job that nobody waits for, and it is let go of first",
        ("nexus.sagas.upstairs_repair:given_to_a_pantry",),
        _waits_for_the_pantry,
        "the drive waits for an activation that cannot come, and a second document for one volume is refused",
        ("replace-region", "lose-region"),
        (
            f"lose-region: {DRIVE}#EXECUTE@before-effect=expunge-another",
            f"replace-region: {DRIVE}#EXECUTE@after-effect=crash",
        ),
    ),
    Removal(
        "R36",
        "the new region is known by its id",
        (f"{_START_SAGA}:get_alloc_region_params", f"{_START_SAGA}:_own_region", f"{_START_SAGA}:forget_new_region"),
        (_with_a_list, _the_difference, _forgets_the_difference),
        "a row changes between two lists, no single difference is found, and undoing takes nothing away",
        ("replace-read-only-region",),
        (f"replace-read-only-region: {START}#GET_ALLOC_REGION_PARAMS@after-record=delete-copy",),
    ),
    Removal(
        "R37",
        "the source of a clone is chosen once and written down",
        (f"{_START_SAGA}:_source",),
        _chosen_anew,
        "the source is lost after the clone was made, and the agent is asked for the same region of another source",
        ("replace-snapshot",),
        (
            f"replace-snapshot: {START}#NEW_REGION_ENSURE@after-effect=expunge-source;"
            f" {START}#NEW_REGION_ENSURE@after-effect=crash",
        ),
    ),
    Removal(
        "R38",
        "a new region keeps clear of sleds that have a copy",
        ("nexus.placement.allocation:_occupied",),
        answers(Occupied(frozenset(), frozenset())),
        "two copies are on one sled, and are lost with it",
        ("replace-snapshot",),
        (f"replace-snapshot: {START}#SET_SAGA_ID@before-effect=error",),
    ),
    Removal(
        "R40",
        "a snapshot that was deleted is found by what is left of it",
        ("nexus.replacement.read_only:snapshot_of_target",),
        _of_living_snapshots,
        "a copy of it is lost, and what still reads from that is never mended",
        ("replace-snapshot", "lose-sled"),
        (f"replace-snapshot: {START}#SET_SAGA_ID@before-node=delete-snapshot",),
    ),
    Removal(
        "R42",
        "a read-only disk and its volume are made in one transaction",
        ("nexus.sagas.disk_create:create_read_only_disk_records",),
        _in_two_transactions,
        "the snapshot is deleted in between, and the disk is there without a volume",
        ("create-read-only-disk",),
        (
            "create-read-only-disk: disk-create-read-only#CREATE_READONLY_DISK_RECORDS@before-effect="
            "delete-snapshot-meanwhile",
        ),
    ),
    Removal(
        "R43",
        "an image's copy has an id that was written down before",
        (
            "nexus.sagas.image_create:copy_source_volume",
            "nexus.sagas.image_create:delete_copy",
            "nexus.sagas.image_create:create_image_record",
        ),
        (_drawn_by_each_run, _of_the_last_run, _of_the_last_run),
        "the node runs again and makes a second copy, and nobody knows of the first",
        ("create-image",),
        ("create-image: image-create#GET_SOURCE_VOLUME@after-effect=crash",),
    ),
    Removal(
        "R45",
        "an export at a pantry is told of the successor",
        ("nexus.replacement.notice:exported",),
        answers(Reading(Reader.NOBODY)),
        "the pantry goes on reading from the old target, whose port may be another's",
        ("replace-snapshot",),
        (f"replace-snapshot: {START}#SET_SAGA_ID@before-node=export-snapshot",),
    ),
    Removal(
        "R47",
        "a request does not wait for the snapshots of the region that it replaced",
        ("nexus.sagas.region_replacement_finish:require_old_region_left",),
        _whole_region_gone,
        "the request, and with it the lock of the volume, lasts as long as the snapshot",
        ("create-snapshot",),
        ("create-image: image-create#CREATE_IMAGE_RECORD@after-record=replace-regions",),
    ),
    Removal(
        "R48",
        "what a deletion found is written down before it is destroyed",
        ("nexus.sagas.volume_delete:find_freed_regions", "nexus.sagas.volume_delete:delete_freed_regions"),
        (_finds_nothing, _finds_and_destroys),
        "the node runs again, does not find what it had begun to destroy, and rows of volumes are left",
        (),
        (
            "delete-snapshot: snapshot-delete#DELETE_SNAPSHOT_RECORD@before-node=delete-disk;"
            " snapshot-delete#DELETE_VOLUME/DELETE_FREED_REGIONS@after-effect=crash",
        ),
        covered="rows of regions, and of the volumes that waited for them alone, go in one transaction (R17, R18), so"
        " a run that finds nothing has nothing left to do; and what is left is found by the next deletion (W24)",
    ),
    Removal(
        "R49",
        "addresses are compared by value",
        ("nexus.volumes.walks:contains_read_only_target", "nexus.volumes.search:find_volumes_referencing_socket_addr"),
        (_as_text, _by_text),
        "steps for volumes that name a longer address, which fail for ever",
        (),
        ("replace-snapshot",),
        covered="volumes are found by references (W20), and exchanged by what a target is (W55): no search decides any"
        " more. An operator's question is one still, and `test_find_volumes_referencing_socket_addr` asks for ports"
        " that begin alike",
    ),
)
