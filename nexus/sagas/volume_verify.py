"""volume-verify: read all of a volume and hold its copies against each other and against the ledger.

Nothing is changed but what reading needs. Which volume can be read, and by whom, is :class:`Way`:

* read-only volumes by anybody at any time: a copy of the document, under new ids, is constructed at a pantry;
* a detached disk is taken into maintenance, so that nobody attaches or deletes it meanwhile; a volume that no disk has
  (the empty one beside a snapshot) needs nothing;
* a disk that an instance has is not read, and its own regions are not compared, for their bytes are under way. What is
  read-only in it is compared all the same.

Reading comes before comparing (*safety* of the verdict): a writer that died in the middle of a write leaves replicas
that differ and are right to. The Upstairs that reads makes them agree first, as it would for any guest; what still
differs after that is damage, which it cannot see as long as one copy is sound.

Why each node may run again: the attachment has one name for each run of the saga, and is given up before it is made
anew (W47). A volume with a lost copy cannot be activated; after a while the report says so.
"""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from typing import Any
from uuid import UUID

import trio
from pydantic import BaseModel
from sqlalchemy import Connection, select

from crucible_emu.volume.vcr import RegionRequest, VolumeConstructionRequest, VolumeRequest
from nexus.db import schema
from nexus.db.schema import DiskState
from nexus.objects.disks import Disk, Move, disk_get, disk_move, disk_move_on
from nexus.objects.refusals import not_found, told_to_users
from nexus.saga import Context, Node, Saga
from nexus.saga.identities import derived
from nexus.services import World
from nexus.verification import ReadThrough, RegionSet, Report, asked_if_present, compared, read_through, region_sets_of
from nexus.volumes import Address, MalformedVolume, Pantry, ReadOnlyCopy, volume_checkout, volume_get, walks
from nexus.volumes.at_rest import generation_of, rest_proved

ACTIVATION_TIMEOUT_S = 60.0
_CRUCIBLE = schema.disk_type_crucible


class Way(StrEnum):
    """How a volume can be read."""

    COPY = "copy"
    DISK = "disk"
    UNUSED = "unused"
    NOT = "not"


class Params(BaseModel):
    volume_id: str


async def look_at_volume(saga: Context[Params]) -> dict[str, Any]:
    """How it can be read, whose disk it is, and why it cannot. Safe to rerun: what counts is what was recorded."""
    return await _world(saga).database.read(lambda c: _way(c, saga.params.volume_id))


def _way(connection: Connection, volume_id: str) -> dict[str, Any]:
    volume = volume_get(connection, volume_id)
    if volume is None or volume.deleted:
        raise not_found("volume", volume_id)
    disk = _disk_of(connection, volume_id)
    try:
        read_only = walks.is_read_only(volume.request)
    except MalformedVolume as error:
        return {"way": Way.NOT, "disk_id": None, "why": f"it is not read: {error}"}
    if read_only:
        return {"way": Way.COPY, "disk_id": None, "why": ""}
    if disk is None:
        return {"way": Way.UNUSED, "disk_id": None, "why": ""}
    if disk.state is DiskState.DETACHED:
        return {"way": Way.DISK, "disk_id": disk.id, "why": ""}
    return {"way": Way.NOT, "disk_id": disk.id, "why": f"its disk is {disk.state}: what is written is not looked at"}


def _disk_of(connection: Connection, volume_id: str) -> Disk | None:
    query = select(_CRUCIBLE.c.disk_id).where(_CRUCIBLE.c.volume_id == volume_id)
    disk_id = connection.execute(query).scalar_one_or_none()
    found = None if disk_id is None else disk_get(connection, disk_id)
    return None if found is None or found.deleted else found


async def take_disk(saga: Context[Params]) -> None:
    """Safe to rerun: a disk that this saga has in hand is taken."""
    world, found = _world(saga), _looked(saga)
    if found["way"] == Way.DISK:
        with told_to_users():
            await world.database.transact(
                lambda c: disk_move(c, found["disk_id"], Move.MAINTENANCE_STARTED, world.now(), saga_id=saga.saga_id)
            )


async def give_disk_back(saga: Context[Params]) -> None:
    """Safe to rerun: a disk that this saga does not have in hand is not touched."""
    world, found = _world(saga), _looked(saga)
    if found["way"] == Way.DISK:
        await world.database.transact(
            lambda c: disk_move_on(c, found["disk_id"], Move.MAINTENANCE_ENDED, world.now(), saga_id=saga.saga_id)
        )


async def choose_pantry(saga: Context[Params]) -> str | None:
    """Safe to rerun: what counts is what was recorded."""
    if _looked(saga)["way"] == Way.NOT:
        return None
    return str(await _world(saga).pantries.choose(saga.saga_id))


async def detach(saga: Context[Params]) -> None:
    """Safe to rerun: what is not attached is detached."""
    address = saga.output("GET_PANTRY_ADDRESS")
    if address is not None:
        await _world(saga).pantries.detach(Address.parse(address), _attachment(saga))


async def read_volume(saga: Context[Params]) -> dict[str, Any]:
    """Everything, through an Upstairs. Safe to rerun: it begins with detaching."""
    world, address = _world(saga), saga.output("GET_PANTRY_ADDRESS")
    if address is None:
        return asdict(ReadThrough(unreadable=[(0, 0, _looked(saga)["why"])]))
    pantry = Address.parse(address)
    await world.pantries.detach(pantry, _attachment(saga))
    with told_to_users():
        request = await world.database.transact(lambda c: _checked_out(c, world, saga))
    with trio.move_on_after(ACTIVATION_TIMEOUT_S) as patience:
        await world.pantries.attach(pantry, _attachment(saga), request)
    if patience.cancelled_caught:
        why = "it could not be activated: too few of its copies answer"
        return asdict(ReadThrough(unreadable=[(0, _size_bytes(request), why)]))
    return asdict(
        await read_through(world.pantries, pantry, _attachment(saga), _size_bytes(request), world.sizes.extent_bytes)
    )


def _checked_out(connection: Connection, world: World, saga: Context[Params]) -> VolumeConstructionRequest:
    volume_id, now = saga.params.volume_id, world.now()
    if _looked(saga)["way"] != Way.COPY:
        return volume_checkout(connection, volume_id, Pantry(), now).request
    request = volume_checkout(connection, volume_id, ReadOnlyCopy(), now).request
    return walks.randomized_ids(request, lambda: UUID(world.new_id()))


def _size_bytes(request: VolumeConstructionRequest) -> int:
    parts = request.sub_volumes if isinstance(request, VolumeRequest) else (request,)
    regions = [each for each in parts if isinstance(each, RegionRequest)]
    return sum(each.block_size * each.blocks_per_extent * each.extent_count for each in regions)


async def compare(saga: Context[Params]) -> dict[str, Any]:
    """The report. Safe to rerun: it only looks."""
    world, volume_id = _world(saga), saga.params.volume_id
    read: dict[str, Any] = saga.output("READ_VOLUME")

    def body(connection: Connection) -> tuple[list[RegionSet], int]:
        volume = volume_get(connection, volume_id)
        if volume is None or volume.deleted:
            raise not_found("volume", volume_id)
        return region_sets_of(connection, volume.request), generation_of(volume.request)

    findings, not_looked_at, ledgers, compared_count = [], [], [], 0
    sets, generation = await world.database.read(body)
    for region_set in sets:
        findings += [f"nothing that is known listens at {address}" for address in region_set.unknown]
        if not region_set.read_only and _looked(saga)["way"] == Way.NOT:
            not_looked_at += [f"{copy.name}: {_looked(saga)['why']}" for copy in region_set.copies]
            continue
        holdings = await asked_if_present(world.agents, list(region_set.copies))
        not_looked_at += [f"{each.name}: {each.problem}" for each in holdings if each.absent]
        findings += [
            f"{each.name}: {each.problem}" for each in holdings if each.problem is not None and not each.absent
        ]
        compared_count += sum(each.problem is None for each in holdings)
        ledger = None if region_set.ledger is None else region_set.ledger.extents
        if region_set.ledger is not None:
            ledgers.append(str(region_set.snapshot_id))
        findings += map(str, compared(holdings, ledger, f"the ledger of snapshot {region_set.snapshot_id}"))
    for offset, length, why in read["unreadable"]:
        if length:
            findings.append(f"{length} bytes at {offset} cannot be read: {why}")
    report = Report(
        volume_id=volume_id,
        findings=findings,
        not_looked_at=not_looked_at,
        copies_compared=compared_count,
        ledgers=sorted(set(ledgers)),
        bytes_read=read["bytes_read"],
        digest=read["digest"],
    )
    if report.sound and _looked(saga)["way"] in (Way.DISK, Way.UNUSED):
        # Nobody else had it while it was compared: until somebody is given it, any copy has everything (W54).
        await world.database.transact(lambda c: rest_proved(c, volume_id, generation, world.now()))
    return report.model_dump()


def _looked(saga: Context[Params]) -> dict[str, Any]:
    found: dict[str, Any] = saga.output("LOOK_AT_VOLUME")
    return found


def _attachment(saga: Context[Params]) -> str:
    """What the pantry calls it: a disk by its id, as everybody does, so that nobody has it attached twice."""
    disk_id: str | None = _looked(saga)["disk_id"]
    return disk_id or derived(saga.saga_id, "verification")


def _world(saga: Context[Params]) -> World:
    world: World = saga.world
    return world


VOLUME_VERIFY = Saga(
    "volume-verify",
    Params,
    Node("LOOK_AT_VOLUME", look_at_volume),
    Node("TAKE_DISK", take_disk, undo=give_disk_back),
    Node("GET_PANTRY_ADDRESS", choose_pantry),
    Node("READ_VOLUME_UNDO", undo=detach),
    Node("READ_VOLUME", read_volume),
    Node("DETACH", detach),
    Node("COMPARE", compare),
    Node("GIVE_DISK_BACK", give_disk_back),
)
"""Its report is the output of ``COMPARE``: ``Report(**outputs["COMPARE"])``."""
