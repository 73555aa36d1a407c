"""region-snapshot-replacement-start: a clone for a read-only target that is lost (nexus.md §3.4).

Of a snapshot S = [a, b, c] the copy ``a`` is lost. A good copy is cloned to a region N, the clone is proved by its
digests, and one transaction makes S = [N, b, c]. Copies of S made from then on are whole; those that exist are the
steps' work. If S is deleted by then nothing is swapped, and the saga ends as well: the copies of S need N all the same.

The volumes that come into being: the *holder* H = [N], which counts on N until the whole request is complete (R5), and
the *stash* F, empty at first (R6), which takes over S's reference to ``a`` (R7).

Why each node may run again: every id is reckoned from the saga's (W35), so that a rerun finds its region, H and F, and
an undo takes away these and nothing else, whatever others did to the volume's regions meanwhile. The source is chosen
once and written down, before the clone exists (R37): its agent refuses a second source for one region. Making the clone
is undone by the node before it, for an agent may have half a region when making it fails (R35).

The proof comes before H, the first volume that names N: what is wrong never gets into a document. With a ledger the
digests are held against that, else against the source's. A source that is not what the snapshot was is refused for good
(:mod:`nexus.replacement.clone_proof`), and the next attempt clones another; when none is left the request waits, and
says so.

Races (§11.4): R1 the first node; R3, R4 the lock on S's id is the request's, taken when that was made, whether S was
there or not; R5, R6, R7; R12 a target that is being destroyed is not resolved; R22 a deleted S is success; R35; R36 the
region is known by its id, no lists are compared; R37; R38 sleds; R39 a clone on a disk that is lost meanwhile is an
error, and unwinds; R40 nothing here asks whether S is there.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import BaseModel
from sqlalchemy import Connection

from crucible_emu.logs import get_logger
from nexus.objects.refusals import CAPACITY, CONFLICT, GONE, told_to_users
from nexus.placement import (
    AllocatedRegion,
    Allocation,
    Geometry,
    InsufficientCapacity,
    regions_allocate,
    regions_hard_delete,
    regions_of,
)
from nexus.replacement import clone_source, notes, read_only, snapshot_copies
from nexus.replacement.clone_proof import Verdict, is_sound, judged, source_fault
from nexus.replacement.clone_source import SnapshotCopy, repair_address
from nexus.replacement.machine import move
from nexus.replacement.read_only import READ_ONLY_REPLACEMENT, ReadOnlyEdge
from nexus.saga import ActionFailed, Context, Node, Saga
from nexus.saga.identities import derived
from nexus.sagas import target_swap
from nexus.sagas.target_swap import Swap, resource_of, resource_recorded
from nexus.sagas.volume_delete import undo_volume
from nexus.services import Gone, ServiceRefused, WantedRegion, World
from nexus.verification import Copy, asked, asked_if_present
from nexus.volumes import (
    Address,
    CrucibleResources,
    ReadOnlyRegion,
    ReadOnlyTarget,
    recorded,
    regions_to_delete,
    volume_create,
)
from nexus.volumes.freed import Dataset, FreedRegion
from nexus.volumes.resolution import is_used

UNPROVED = "unproved"
"""The kind of failure of a clone that is not what it should be."""

log = get_logger(__name__)


class Params(BaseModel):
    """Which request."""

    request_id: str


def new_region_id(saga: Context[Params]) -> str:
    """The clone."""
    return derived(saga.saga_id, "new region", saga.params.request_id)


def stash_id(saga: Context[Params]) -> str:
    """F."""
    return derived(saga.saga_id, "stash volume", saga.params.request_id)


def holder_id(saga: Context[Params]) -> str:
    """H."""
    return derived(saga.saga_id, "holder volume", saga.params.request_id)


async def set_saga_id(saga: Context[Params]) -> dict[str, str]:
    """R1: the request is this saga's, or the saga has nothing to undo. The ids that it will make, for who looks at the
    tables meanwhile. Safe to rerun: it recognises itself."""
    await _move(saga, ReadOnlyEdge.ALLOCATE)
    return {
        "new_region_id": new_region_id(saga),
        "stash_id": stash_id(saga),
        "holder_id": holder_id(saga),
    }


async def unset_saga_id(saga: Context[Params]) -> None:
    """Safe to rerun, as above."""
    await _move(saga, ReadOnlyEdge.ALLOCATE_UNDONE)


# -- what is cloned, and where to -------------------------------------------------------------------------------------


async def get_clone_source(saga: Context[Params]) -> dict[str, Any]:
    """Which copy. Safe to rerun until it is recorded; from then on that is the choice (R37)."""
    world, request_id = _world(saga), saga.params.request_id

    def body(connection: Connection) -> SnapshotCopy | str:
        request = read_only.read_only_replacement_get(connection, request_id)
        lost = snapshot_copies.lost_target(connection, request.old)
        copies = snapshot_copies.copies_of(connection, lost.snapshot)
        refused = {each.source for each in notes.sources_refused(connection, request_id)}
        chosen = clone_source.choose(copies, lost.resource, refused, saga.saga_id)
        if chosen is not None:
            return chosen
        why = clone_source.why_none(copies, lost.snapshot.id, refused)
        notes.waiting_since(connection, request_id, why, world.now())
        return why

    with told_to_users():
        chosen = await world.database.transact(body)
    if isinstance(chosen, str):
        raise ActionFailed(chosen, GONE)
    return resource_recorded(chosen.resource)


async def get_alloc_region_params(saga: Context[Params]) -> dict[str, Any]:
    """The snapshot, its volume's id, and how big a copy is. Safe to rerun: none of that ever changes."""
    with told_to_users():
        lost = await _world(saga).database.read(lambda c: _lost(c, saga.params.request_id))
    geometry = lost.geometry
    return {
        "target": resource_recorded(lost.resource),
        "snapshot_id": lost.snapshot.id,
        "snapshot_volume_id": lost.snapshot.volume_id,
        "block_size": geometry.block_size,
        "blocks_per_extent": geometry.blocks_per_extent,
        "extent_count": geometry.extent_count,
    }


async def alloc_new_region(saga: Context[Params]) -> None:
    """Safe to rerun: a region that has its place keeps it."""
    world, asked_for = _world(saga), saga.output("GET_ALLOC_REGION_PARAMS")
    wanted = Allocation(
        asked_for["snapshot_volume_id"],
        (new_region_id(saga),),
        _geometry(saga),
        seed=saga.saga_id,
        snapshot_id=asked_for["snapshot_id"],
    )
    try:
        await world.database.transact(lambda c: place_found(c, wanted, world.now()))
    except InsufficientCapacity as error:
        reason = f"there is no place for another copy: {error}"
        await _note(saga, reason)
        raise ActionFailed(reason, CAPACITY) from error


def place_found(connection: Connection, wanted: Allocation, now: datetime) -> None:
    """On a sled that has no copy, and where the rack has none, on a pool that has none: three copies on two sleds are
    better than two copies (R38)."""
    try:
        regions_allocate(connection, wanted, now)
    except InsufficientCapacity:
        regions_allocate(connection, replace(wanted, distinct_sleds=False), now)


async def forget_new_region(saga: Context[Params]) -> None:
    """This region and no other (W35), if nobody counts on it. Safe to rerun: a row that is gone is gone."""
    world, region_id = _world(saga), new_region_id(saga)

    def body(connection: Connection) -> None:
        if not is_somebodys(connection, region_id):
            regions_hard_delete(connection, [region_id], world.now())

    await world.database.transact(body)


def is_somebodys(connection: Connection, region_id: str) -> bool:
    """*Safety*: whether a volume names the clone. While S did, an image or disk may have been made of S: it has the
    clone from then on, and takes it with it when it is deleted. Only who has the clone can pass it on, so one that is
    nobody's stays so."""
    return is_used(connection, ReadOnlyRegion(region_id))


async def destroy_new_region(saga: Context[Params]) -> None:
    """R35: also what an agent has half made, and said that it failed. Safe to rerun: what is destroyed is."""
    world, region_id = _world(saga), new_region_id(saga)
    left = CrucibleResources(regions=(region_id,))

    def body(connection: Connection) -> list[FreedRegion]:
        return [] if is_somebodys(connection, region_id) else regions_to_delete(connection, left)

    await world.agents.regions_delete(await world.database.read(body))


async def new_region_ensure(saga: Context[Params]) -> str:
    """Where the clone listens, when its agent has all of it. Safe to rerun: the same region of the same source. A
    source that is destroyed meanwhile has no address any more, and the next attempt chooses another."""
    world = _world(saga)

    def body(connection: Connection) -> tuple[AllocatedRegion, SnapshotCopy]:
        return _own_region(connection, saga), _source(connection, saga)

    with told_to_users():
        region, source = await world.database.read(body)
    assert source.address is not None
    wanted = WantedRegion(region, _geometry(saga), repair_address(source.address))
    try:
        return str(await world.agents.region_ensure(wanted))
    except ServiceRefused as failure:
        # The agent says that it failed, and cannot say whose fault it was. Is it the source's, another one is needed.
        await _refuse_if_rotten(saga, source)
        await _note(saga, f"the last clone could not be made: {failure}")
        raise failure


# -- the proof --------------------------------------------------------------------------------------------------------


async def verify_new_region(saga: Context[Params]) -> None:
    """*Safety*: no volume names a clone that is not what its snapshot was. Safe to rerun: it looks."""
    world = _world(saga)

    def body(connection: Connection) -> tuple[AllocatedRegion, tuple[str, ...] | None]:
        lost = _lost(connection, saga.params.request_id)
        return _own_region(connection, saga), None if lost.ledger is None else lost.ledger.extents

    with told_to_users():
        region, ledger = await world.database.read(body)
    (clone,) = await asked(world.agents, [Copy(_dataset(region), region.region_id)])
    if clone.absent:
        raise Gone(clone.name)
    if is_sound(clone, ledger):
        return
    with told_to_users():
        source = await world.database.read(lambda c: _source(c, saga))
    (held,) = await asked_if_present(world.agents, [snapshot_copies.as_asked(source)])
    found = judged(clone, held, ledger)
    if found.verdict is Verdict.SOUND:
        return
    if found.verdict is Verdict.SOURCE_IS_NOT:
        await _refuse(saga, source, found.sentence)
    reason = f"the last clone is not used: {found.sentence}"
    await _note(saga, reason)
    raise ActionFailed(reason, UNPROVED)


async def _refuse_if_rotten(saga: Context[Params], source: SnapshotCopy) -> None:
    with told_to_users():
        lost = await _world(saga).database.read(lambda c: _lost(c, saga.params.request_id))
    (held,) = await asked_if_present(_world(saga).agents, [snapshot_copies.as_asked(source)])
    fault = source_fault(held, None if lost.ledger is None else lost.ledger.extents)
    if fault is not None:
        await _refuse(saga, source, fault)


async def _refuse(saga: Context[Params], source: SnapshotCopy, reason: str) -> None:
    world, request_id = _world(saga), saga.params.request_id
    log.warning("a copy of a snapshot is not what the snapshot was", request=request_id, copy=source.name, found=reason)
    await world.database.transact(lambda c: notes.source_refused(c, request_id, source.name, reason, world.now()))


# -- the volumes ------------------------------------------------------------------------------------------------------


async def new_region_volume_create(saga: Context[Params]) -> None:
    """R5, *safety*: from here on until the request is complete somebody counts on the clone, whoever deletes what. Safe
    to rerun: H is found."""
    world, volume_id = _world(saga), holder_id(saga)
    request = recorded.kept_target(UUID(volume_id), Address.parse(saga.output("NEW_REGION_ENSURE")))
    with told_to_users():
        await world.database.transact(lambda c: volume_create(c, volume_id, request, world.now()) and None)


async def new_region_volume_destroy(saga: Context[Params]) -> None:
    """With its reference (W30), and the clone, if it was the last to count on that. Safe to rerun."""
    await undo_volume(_world(saga), holder_id(saga))


async def create_fake_volume(saga: Context[Params]) -> None:
    """Safe to rerun: F is found."""
    await target_swap.create_stash(_world(saga), stash_id(saga))


async def destroy_fake_volume(saga: Context[Params]) -> None:
    """Safe to rerun."""
    await target_swap.destroy_stash(_world(saga), stash_id(saga))


async def create_replace_params(saga: Context[Params]) -> dict[str, Any]:
    """What is to become what in S. Safe to rerun; what counts is what was recorded, for the undo must mean the same. A
    target that nobody counts on any more is being destroyed, or is gone: then there is nothing to replace, and the next
    activation of the task finds that."""
    asked_for = saga.output("GET_ALLOC_REGION_PARAMS")
    target = resource_of(asked_for["target"])
    existing = await _world(saga).database.read(lambda c: read_only.target_of(c, target))
    if existing is None:
        raise Gone(str(target))
    clone = ReadOnlyRegion(new_region_id(saga))
    replacement = ReadOnlyTarget(Address.parse(saga.output("NEW_REGION_ENSURE")), clone)
    return Swap(asked_for["snapshot_volume_id"], existing, replacement, stash_id(saga)).recorded()


async def replace_snapshot_in_volume(saga: Context[Params]) -> str:
    """Safe to rerun, and it ends well where S is deleted (R22)."""
    return (await target_swap.swap(_world(saga), _swap(saga))).value


async def replace_snapshot_in_volume_back(saga: Context[Params]) -> None:
    """Safe to rerun, whatever the swap came to."""
    await target_swap.swap_back(_world(saga), _swap(saga))


async def update_request_record(saga: Context[Params]) -> None:
    """Safe to rerun: it recognises itself."""
    world, request_id = _world(saga), saga.params.request_id
    found: dict[str, Any] = {
        "old_snapshot_volume_id": stash_id(saga),
        "new_region_id": new_region_id(saga),
        "new_region_volume_id": holder_id(saga),
    }

    def body(connection: Connection) -> None:
        move(connection, READ_ONLY_REPLACEMENT, ReadOnlyEdge.REPLACED, request_id, saga_id=saga.saga_id, **found)
        notes.waiting_no_more(connection, request_id)

    with told_to_users():
        await world.database.transact(body)


async def _note(saga: Context[Params], reason: str) -> None:
    """Why the request does not go on; until it does."""
    world, request_id = _world(saga), saga.params.request_id
    await world.database.transact(lambda c: notes.waiting_since(c, request_id, reason, world.now()))


# -- what the nodes ask -----------------------------------------------------------------------------------------------


async def _move(saga: Context[Params], edge: ReadOnlyEdge) -> None:
    world, request_id = _world(saga), saga.params.request_id
    with told_to_users():
        await world.database.transact(lambda c: move(c, READ_ONLY_REPLACEMENT, edge, request_id, saga_id=saga.saga_id))


def _lost(connection: Connection, request_id: str) -> snapshot_copies.Lost:
    request = read_only.read_only_replacement_get(connection, request_id)
    return snapshot_copies.lost_target(connection, request.old)


def _own_region(connection: Connection, saga: Context[Params]) -> AllocatedRegion:
    """The clone, by its id (R36: no lists of regions are compared, in which others may have changed something)."""
    region_id = new_region_id(saga)
    volume_id = saga.output("GET_ALLOC_REGION_PARAMS")["snapshot_volume_id"]
    for each in regions_of(connection, volume_id):
        if each.region_id == region_id:
            return each
    raise ActionFailed(f"region {region_id} was taken from volume {volume_id}", CONFLICT)


def _source(connection: Connection, saga: Context[Params]) -> SnapshotCopy:
    """The copy that was chosen (R37), as it is now."""
    chosen = resource_of(saga.output("GET_CLONE_SOURCE"))
    snapshot = _lost(connection, saga.params.request_id).snapshot
    for each in snapshot_copies.copies_of(connection, snapshot):
        if each.resource == chosen:
            return each
    raise Gone(str(chosen))


def _geometry(saga: Context[Params]) -> Geometry:
    found = saga.output("GET_ALLOC_REGION_PARAMS")
    return Geometry(found["block_size"], found["blocks_per_extent"], found["extent_count"])


def _dataset(region: AllocatedRegion) -> Dataset:
    return Dataset(region.dataset_id, region.ip, region.agent_port)


def _swap(saga: Context[Params]) -> Swap:
    return Swap.of(saga.output("CREATE_REPLACE_PARAMS"))


def _world(saga: Context[Params]) -> World:
    world: World = saga.world
    return world


REGION_SNAPSHOT_REPLACEMENT_START = Saga(
    "region-snapshot-replacement-start",
    Params,
    Node("SET_SAGA_ID", set_saga_id, undo=unset_saga_id),
    Node("GET_CLONE_SOURCE", get_clone_source),
    Node("GET_ALLOC_REGION_PARAMS", get_alloc_region_params),
    Node("ALLOC_NEW_REGION", alloc_new_region, undo=forget_new_region),
    Node("NEW_REGION_ENSURE_UNDO", undo=destroy_new_region),
    Node("NEW_REGION_ENSURE", new_region_ensure),
    Node("VERIFY_NEW_REGION", verify_new_region),
    Node("NEW_REGION_VOLUME_CREATE", new_region_volume_create, undo=new_region_volume_destroy),
    Node("CREATE_REPLACE_PARAMS", create_replace_params),
    Node("CREATE_FAKE_VOLUME", create_fake_volume, undo=destroy_fake_volume),
    Node("REPLACE_SNAPSHOT_IN_VOLUME", replace_snapshot_in_volume, undo=replace_snapshot_in_volume_back),
    Node("UPDATE_REQUEST_RECORD", update_request_record),
)
