"""A volume as a tree, with what is behind each target and how that is (``nexus volume tree``).

What it guarantees: what is shown is put together member by member; nothing of a document is handed on as it is, so no
key, certificate or URL is. A target is said to be a region or snapshot only if a row says so now: of a deleted volume
an address may be another's by this time, and is shown as unknown.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import trio
from sqlalchemy import Connection, select

from crucible_emu.client.failures import ServiceError, ServiceUnreachable
from crucible_emu.errors import RemoteError
from crucible_emu.volume.vcr import RegionRequest, VolumeConstructionRequest, VolumeRequest
from nexus.api import emulator_documents as documents
from nexus.db import schema
from nexus.objects.refusals import not_found
from nexus.saga import ActionFailed
from nexus.services import World
from nexus.volumes import Address, ReadOnlyRegion, RegionSnapshot, read_only_target_to_resource, volume_get
from nexus.volumes.freed import Dataset, dataset_get
from nexus.volumes.resolution import target_to_region

AGENT_TIMEOUT_S = 5.0
_REGION, _POOL, _DISK, _DATASET = schema.region, schema.zpool, schema.physical_disk, schema.crucible_dataset

Held = tuple[str, str | None]
"""A region, or with a second id its running snapshot."""


@dataclass(slots=True)
class _Seen:
    """What the database says of a volume. ``at``: what is behind each target; ``held``: what to ask agents about."""

    volume_id: str
    request: VolumeConstructionRequest
    row: Any
    owner: documents.VolumeOwner | None
    at: dict[tuple[str, bool], dict[str, Any]] = field(default_factory=dict)
    held: dict[Dataset, set[Held]] = field(default_factory=lambda: defaultdict(set))


async def volume_tree(world: World, volume_id: str) -> documents.VolumeTree:
    """The volume with the states that agents tell. Raises :class:`~nexus.saga.ActionFailed` (not_found)."""
    seen = await world.database.read(lambda connection: _look(connection, volume_id))
    states = await _ask_agents(world, seen)
    for found in seen.at.values():
        found["agent_state"] = states.get((found.get("region_id"), found.get("snapshot_id")))
    return documents.VolumeTree(
        id=UUID(volume_id),
        time_created=seen.row.time_created,
        time_deleted=seen.row.time_deleted,
        owner=seen.owner,
        tree=_node(seen, seen.request),
    )


# -- the database -----------------------------------------------------------------------------------------------------


def _look(connection: Connection, volume_id: str) -> _Seen:
    volume = volume_get(connection, volume_id)
    if volume is None:
        raise not_found("volume", volume_id)
    table = schema.volume
    times = select(table.c.time_created, table.c.time_deleted).where(table.c.id == volume_id)
    seen = _Seen(volume_id, volume.request, connection.execute(times).one(), owner_of(connection, volume_id))
    for region in _region_sets(volume.request):
        for text in region.opts.target:
            key = (text, region.opts.read_only)
            if key not in seen.at:
                seen.at[key] = _behind(connection, seen, Address.parse(text), region.opts.read_only)
    return seen


def _region_sets(request: VolumeConstructionRequest) -> Iterator[RegionRequest]:
    if isinstance(request, RegionRequest):
        yield request
    elif isinstance(request, VolumeRequest):
        parts = (*request.sub_volumes, *([] if request.read_only_parent is None else [request.read_only_parent]))
        for part in parts:
            yield from _region_sets(part)


def _behind(connection: Connection, seen: _Seen, address: Address, read_only: bool) -> dict[str, Any]:
    kind, held, dataset_id = _listening(connection, seen.volume_id, address, read_only)
    if dataset_id is None:
        return {"address": str(address), "kind": "unknown"}
    dataset = dataset_get(connection, dataset_id)
    if dataset is not None:
        seen.held[dataset].add(held)
    found = {"address": str(address), "kind": kind, "region_id": held[0], "snapshot_id": held[1]}
    return found | _place(connection, dataset_id)


def _listening(
    connection: Connection, volume_id: str, address: Address, read_only: bool
) -> tuple[str, Held, str | None]:
    """Kind, ids and dataset of what is at an address; without a dataset it is unknown."""
    dataset_of = select(_REGION.c.dataset_id)
    if not read_only:
        region_id = target_to_region(connection, address, read_only=False) or ""
        owned = dataset_of.where(_REGION.c.id == region_id, _REGION.c.volume_id == volume_id)
        return "read_write_region", (region_id, None), connection.execute(owned).scalar_one_or_none()
    match read_only_target_to_resource(connection, address):
        case RegionSnapshot() as snapshot:
            return "region_snapshot", (snapshot.region_id, snapshot.snapshot_id), snapshot.dataset_id
        case ReadOnlyRegion() as region:
            known = dataset_of.where(_REGION.c.id == region.region_id)
            return "read_only_region", (region.region_id, None), connection.execute(known).scalar_one_or_none()
        case None:
            return "unknown", ("", None), None


def _place(connection: Connection, dataset_id: str) -> dict[str, Any]:
    row = connection.execute(
        select(_DISK.c.id, _DISK.c.sled_id, _DISK.c.disk_policy)
        .join(_POOL, _POOL.c.physical_disk_id == _DISK.c.id)
        .join(_DATASET, _DATASET.c.pool_id == _POOL.c.id)
        .where(_DATASET.c.id == dataset_id)
    ).one_or_none()
    place: dict[str, Any] = {"dataset_id": dataset_id}
    if row is not None:
        place |= {"physical_disk_id": row.id, "sled_id": row.sled_id, "disk_policy": row.disk_policy.value}
    return place


def owner_of(connection: Connection, volume_id: str) -> documents.VolumeOwner | None:
    """Whose volume it is, where that can be said."""
    disk, crucible, snapshot, image = schema.disk, schema.disk_type_crucible, schema.snapshot, schema.image
    asked = {
        "disk": select(disk.c.id, disk.c.name)
        .join(crucible, crucible.c.disk_id == disk.c.id)
        .where(crucible.c.volume_id == volume_id),
        "snapshot": select(snapshot.c.id, snapshot.c.name).where(snapshot.c.volume_id == volume_id),
        "snapshot_destination": select(snapshot.c.id, snapshot.c.name).where(
            snapshot.c.destination_volume_id == volume_id
        ),
        "image": select(image.c.id, image.c.name).where(image.c.volume_id == volume_id),
    }
    for kind, query in asked.items():
        row = connection.execute(query.limit(1)).one_or_none()
        if row is not None:
            return documents.VolumeOwner.model_validate({"kind": kind, "id": row.id, "name": row.name})
    return None


def volume_of(connection: Connection, wanted: str) -> str:
    """The id of the volume that is meant: of a disk, snapshot or image, people know only the id of that."""
    disk, snapshot, image = schema.disk_type_crucible, schema.snapshot, schema.image
    for query in (
        select(disk.c.volume_id).where(disk.c.disk_id == wanted),
        select(snapshot.c.volume_id).where(snapshot.c.id == wanted),
        select(image.c.volume_id).where(image.c.id == wanted),
    ):
        found = connection.execute(query).scalar_one_or_none()
        if found is not None:
            return str(found)
    return wanted


# -- the agents -------------------------------------------------------------------------------------------------------


async def _ask_agents(world: World, seen: _Seen) -> dict[tuple[Any, Any], str]:
    """What agents say of each; of one that does not answer in time nothing is known."""
    states: dict[tuple[Any, Any], str] = {}

    async def ask(dataset: Dataset, wanted: set[Held]) -> None:
        try:
            with trio.fail_after(AGENT_TIMEOUT_S):
                known = {region.id: region.state.value for region in await world.agents.regions_list(dataset)}
                for region_id, snapshot_id in wanted:
                    if snapshot_id is None:
                        states[region_id, None] = known.get(region_id, "unknown")
                    else:
                        held = await world.agents.region_snapshots(dataset, region_id)
                        running = held.running_snapshots.get(snapshot_id)
                        states[region_id, snapshot_id] = "not running" if running is None else running.state.value
        except (ActionFailed, ServiceError, ServiceUnreachable, RemoteError, trio.TooSlowError):
            return  # shown as not known

    async with trio.open_nursery() as nursery:
        for dataset, wanted in seen.held.items():
            nursery.start_soon(ask, dataset, wanted)
    return states


# -- the tree ---------------------------------------------------------------------------------------------------------


def _node(seen: _Seen, request: VolumeConstructionRequest) -> documents.TreeNode:
    if isinstance(request, VolumeRequest):
        parent = request.read_only_parent
        return documents.VolumeNode(
            id=request.id,
            block_size=request.block_size,
            sub_volumes=tuple(_node(seen, part) for part in request.sub_volumes),
            read_only_parent=None if parent is None else _node(seen, parent),
        )
    if isinstance(request, RegionRequest):
        opts = request.opts
        targets = [seen.at[text, opts.read_only] for text in opts.target]
        return documents.RegionNode(
            upstairs_id=opts.id,
            block_size=request.block_size,
            blocks_per_extent=request.blocks_per_extent,
            extent_count=request.extent_count,
            size_bytes=request.block_size * request.blocks_per_extent * request.extent_count,
            generation=request.gen,
            read_only=opts.read_only,
            encrypted=opts.key is not None,
            targets=tuple(map(documents.TargetState.model_validate, targets)),
        )
    return documents.SourceNode(type=request.type, id=request.id, block_size=request.block_size)
