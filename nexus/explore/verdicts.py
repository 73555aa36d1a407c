"""What must hold in the end: laws, bytes, three good copies, and at the very end nothing.

What it guarantees: a verdict looks at everything: what ``nexus check`` looks at (invariants, locks, leases, charges,
what agents hold), every request of a replacement, every copy of every living volume, and what every user was told. It
looks at the racks' memory directly and changes nothing there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from sqlalchemy import Connection, bindparam, func, select, union

from crucible_emu.agent.documents import State
from crucible_emu.volume.vcr import RegionRequest, VolumeConstructionRequest, VolumeRequest
from nexus.checking import check
from nexus.db import schema
from nexus.db.schema import DiskState, VmmState
from nexus.db.schema.sagas import StoredEventKind
from nexus.db.schema.user_visible import ExportState
from nexus.explore.fabric import Fabric
from nexus.explore.rack import BLOCK_BYTES, DISK_BYTES, Rack, Thing
from nexus.explore.services import generations
from nexus.explore.storage import Contents
from nexus.explore.upstairs import members_of, sets_of, targets_of
from nexus.replacement.notes import waiting_of
from nexus.saga.executor import UNEXPECTED
from nexus.volumes import Address, recorded

_TABLES = {"disk": schema.disk, "snapshot": schema.snapshot, "image": schema.image, "instance": schema.instance}
_EXPORT = schema.user_data_export
EMPTY = (
    *(schema.region, schema.region_snapshot, schema.volume, schema.volume_resource_usage, schema.volume_repair),
    *(schema.volume_repair_queue, schema.virtual_provisioning_resource),
    *(schema.replacement_waiting, schema.survivor_decision, schema.volume_at_rest),
)
"""What has no rows when everything is deleted."""
_ENDS = {
    schema.region_replacement: "complete",
    schema.region_snapshot_replacement: "complete",
    schema.region_snapshot_replacement_step: "volume_deleted",
}
"""The state in which a request or step has come to its end."""

_EVENT, _SAGA = schema.saga_event, schema.saga
_COUNTS = {table: select(func.count()).select_from(table) for table in EMPTY}
_FAILED = (
    select(_SAGA.c.name, _EVENT.c.label, _EVENT.c.kind, _EVENT.c.data)
    .join(_SAGA, _SAGA.c.id == _EVENT.c.saga_id)
    .where(_EVENT.c.kind.in_([StoredEventKind.FAILED, StoredEventKind.UNDO_FAILED]))
    .order_by(_SAGA.c.time_created, _EVENT.c.number)
)
_OPEN = {
    table: select(table.c.id, table.c.replacement_state).where(table.c.replacement_state != end).order_by(table.c.id)
    for table, end in _ENDS.items()
}
_THERE = {
    table: select(table.c.id).where(
        table.c.id == bindparam("thing"),
        _EXPORT.c.state == ExportState.LIVE if table is _EXPORT else table.c.time_deleted.is_(None),
    )
    for table in (*_TABLES.values(), _EXPORT)
}
_IMPORTED = select(schema.disk_type_crucible.c.disk_id).where(schema.disk_type_crucible.c.pantry_address.is_not(None))
_EXPORTED = select(_EXPORT.c.volume_id)


async def at_rest(rack: Rack) -> list[str]:
    """What is wrong while nothing is under way."""
    found = [str(each) for each in await check(rack.world, between_looks_s=0)]
    found += await rack.database.read(lambda c: list(_unexpected(c)))
    found += await rack.database.read(open_requests)
    found += await rack.database.read(lambda c: list(_steps_for_stashes(c)))
    found += [f"wrong order: {each}" for each in rack.fabric.wrong_orders]
    found += await rack.database.read(lambda c: list(_told(c, rack)))
    found += await rack.database.read(lambda c: list(_bytes(c, rack)))
    found += await rack.database.read(lambda c: list(_guests(c, rack)))
    found += await rack.database.read(lambda c: list(_pantries(c, rack)))
    found += await rack.database.read(lambda c: list(_exports(c, rack)))
    return found


async def nothing_left(rack: Rack) -> list[str]:
    """What is left although everything was deleted."""
    found = [str(each) for each in await check(rack.world, between_looks_s=0)]
    for table, query in _COUNTS.items():
        count: int = rack.run(lambda c, one=query: c.execute(one).scalar_one())
        if count:
            found.append(f"left: {count} rows in {table.name}")
    found += [f"wrong order: {each}" for each in rack.fabric.wrong_orders]
    found += await rack.database.read(lambda c: list(_unexpected(c)))
    found += await rack.database.read(open_requests)
    for sled in rack.fabric.sleds:
        if sled.alive:
            found += [
                f"left: region {each.id} on sled {sled.number}" for each in _living_regions(sled.regions.values())
            ]
    return found


def _living_regions(regions: Any) -> list[Any]:
    return [
        each
        for each in regions
        if each.state is not State.DESTROYED
        or each.snapshots
        or any(served.state is not State.DESTROYED for served in each.served.values())
    ]


def _unexpected(connection: Connection) -> Iterator[str]:
    """Failures that nobody foresaw: an action must fail with a sentence."""
    for row in connection.execute(_FAILED):
        data = json.loads(row.data)
        if data.get("kind") == UNEXPECTED:
            yield f"unforeseen: {row.name} has {row.kind} at {row.label}: {data['message']}"


def open_requests(connection: Connection) -> list[str]:
    """*Liveness*: every replacement comes to its end; those that have not."""
    return list(_open_requests(connection))


def _open_requests(connection: Connection) -> Iterator[str]:
    for table, query in _OPEN.items():
        for row in connection.execute(query):
            yield f"not ended: {table.name} {row.id} is {row.replacement_state}{_why(connection, row.id)}"


def _steps_for_stashes(connection: Connection) -> Iterator[str]:
    """*Liveness*: a stash holds what is about to go, and is not mended. Each step for one makes another stash; that
    this ends is chance."""
    step, request = schema.region_snapshot_replacement_step, schema.region_snapshot_replacement
    stashes = union(select(step.c.old_snapshot_volume_id), select(request.c.old_snapshot_volume_id)).subquery()
    wrong = select(step.c.id, step.c.volume_id).where(step.c.volume_id.in_(select(stashes)))
    for row in connection.execute(wrong.order_by(step.c.id)):
        yield f"step {row.id} was made for {row.volume_id}, which is a stash"


def _why(connection: Connection, request_id: str) -> str:
    waiting = waiting_of(connection, request_id)
    return "" if waiting is None else f": {waiting.reason}"


def _told(connection: Connection, rack: Rack) -> Iterator[str]:
    """What users were told is so. Where the answer was lost, the database says what became of the thing."""
    for thing in rack.things.values():
        table = _TABLES.get(thing.kind, _EXPORT)
        there = connection.execute(_THERE[table], {"thing": thing.id}).first() is not None
        if thing.sure and there is not thing.living:
            yield f"a user was told that {thing.name} is {'there' if thing.living else 'deleted'}, and that is not so"
        thing.living = there


def _bytes(connection: Connection, rack: Rack) -> Iterator[str]:
    """Every living volume is somebody's, has three good copies of everything, and shows what was written."""
    volume = schema.volume
    owners = {thing.volume_id: thing for thing in rack.things.values() if thing.living and thing.volume_id}
    spare = set(
        connection.execute(
            select(schema.snapshot.c.destination_volume_id).where(schema.snapshot.c.time_deleted.is_(None))
        ).scalars()
    )
    rows = connection.execute(
        select(volume.c.id, volume.c.data).where(volume.c.time_deleted.is_(None)).order_by(volume.c.id)
    ).all()
    for row in rows:
        request = recorded.parse(row.data, f"volume {row.id}")
        name = owners[row.id].name if row.id in owners else row.id
        if row.id not in owners and row.id not in spare:
            yield f"leaked: volume {row.id} is nobody's"
        for each, generation in generations(request).items():
            handed = rack.switchboard.handed_out.known.get(each, -1)
            if generation <= handed:
                yield f"I11: {name} was handed out with generation {handed}, and {generation} is recorded"
        yield from _copies(rack.fabric, request, name)
        if row.id in owners:
            yield from _shown(connection, rack.fabric, request, owners[row.id])
    for volume_id in sorted(owners.keys() - {row.id for row in rows}):
        if owners[volume_id].kind != "disk" or _state(connection, owners[volume_id]) is not DiskState.FAULTED:
            yield f"lost: {owners[volume_id].name} is there, and its volume is not"


def _guests(connection: Connection, rack: Rack) -> Iterator[str]:
    """*Safety*: whoever runs has its disks, and nobody took them from under it."""
    vmm, instance = schema.vmm, schema.instance
    query = (
        select(instance.c.id, vmm.c.sled_id)
        .join(instance, instance.c.active_propolis_id == vmm.c.id)
        .where(vmm.c.state == VmmState.RUNNING, instance.c.time_deleted.is_(None))
    )
    for row in connection.execute(query.order_by(instance.c.id)):
        sled = next(each for each in rack.fabric.sleds if each.sled_id == row.sled_id)
        guest = rack.switchboard.hosts[sled.ip].guests.get(row.id)
        if sled.alive and guest is not None:
            for disk_id, volume in guest.disks.items():
                if not volume.active:
                    yield f"guest: instance {row.id} runs, and its disk {disk_id} was taken from it"
                elif (used := {each.address for one in volume.every_set() for each in one.members}) != (
                    named := _named(connection, disk_id)
                ):
                    others = ", ".join(sorted(used - named))
                    yield f"guest: instance {row.id} runs, and its disk {disk_id} uses {others}, not what it is made of"


def _pantries(connection: Connection, rack: Rack) -> Iterator[str]:
    """*Safety*: a pantry has a volume only as long as somebody imports into its disk, or reads an export. One that is
    forgotten there would write to whatever gets the ports of its regions."""
    known = {*connection.execute(_IMPORTED).scalars(), *connection.execute(_EXPORTED).scalars()}
    for sled in rack.fabric.sleds:
        pantry = rack.switchboard.pantries.get(sled.ip)
        if pantry is not None and sled.alive:
            for name in sorted(pantry.held.keys() - known):
                yield f"pantry: the one on sled {sled.number} has {name}, and nobody knows of it"


def _named(connection: Connection, disk_id: str) -> set[str]:
    """Every target in the document of the disk's volume."""
    crucible, volume = schema.disk_type_crucible, schema.volume
    query = select(volume.c.data).join(crucible, crucible.c.volume_id == volume.c.id)
    data = connection.execute(query.where(crucible.c.disk_id == disk_id)).scalar_one()
    return set(targets_of(recorded.parse(data)))


def _exports(connection: Connection, rack: Rack) -> Iterator[str]:
    """*Safety* (R45): an export reads from what is recorded, and not from what is another's by now."""
    query = select(_EXPORT.c.volume_id, _EXPORT.c.pantry_ip, schema.volume.c.data)
    joined = query.join(schema.volume, schema.volume.c.id == _EXPORT.c.volume_id)
    for row in connection.execute(joined.where(_EXPORT.c.state == ExportState.LIVE).order_by(_EXPORT.c.volume_id)):
        sled, held = (
            rack.fabric.sled_at(row.pantry_ip),
            rack.switchboard.pantries[row.pantry_ip].held.get(row.volume_id),
        )
        if sled is None or not sled.alive or held is None:
            continue
        strange = set(targets_of(held.request)) - set(targets_of(recorded.parse(row.data)))
        if strange:
            where = ", ".join(sorted(strange))
            yield f"export: a pantry reads volume {row.volume_id} from {where}, which it does not name"


def _state(connection: Connection, thing: Thing) -> DiskState:
    query = select(schema.disk.c.disk_state).where(schema.disk.c.id == thing.id)
    return DiskState(connection.execute(query).scalar_one())


def _copies(fabric: Fabric, request: VolumeConstructionRequest, name: str) -> Iterator[str]:
    for part in sets_of(request):
        members = members_of(fabric, part)
        known = [each for each in members if each is not None]
        if len(known) < 3:
            gone = [target for target, each in zip(part.opts.target, members) if each is None]
            where = ", ".join(gone) or "(no target)"
            yield f"copies: {name} has {len(known)} copies of three; nobody answers at {where}"
        sleds = [Address.parse(target).ip for target in part.opts.target]
        if len(set(sleds)) < len(sleds):
            yield f"copies: {name} has two copies on one sled"
        for extent in range(part.extent_count):
            if len({each.digest(extent) for each in known}) > 1:
                yield f"copies: {name} has copies that differ in extent {extent}"


def _shown(connection: Connection, fabric: Fabric, request: VolumeConstructionRequest, thing: Thing) -> Iterator[str]:
    """Whether a user finds what was written. A thing of which nobody was told may have been half changed."""
    let_go = isinstance(request, VolumeRequest) and request.read_only_parent is None
    if not thing.sure and let_go and thing.kind == "disk" and not thing.read_only:
        thing.beneath = {}
    expected, zeros = thing.contents, bytes(BLOCK_BYTES)
    wrong = []
    for block in range(DISK_BYTES // BLOCK_BYTES):
        seen = read(fabric, request, block)
        if seen != expected.get(block, zeros) and seen not in thing.either.get(block, ()):
            wrong.append(block)
    if wrong:
        yield f"bytes: {thing.name} shows something else than was written in blocks {', '.join(map(str, wrong))}"


def read(fabric: Fabric, request: VolumeConstructionRequest, block: int) -> bytes:
    """What a volume shows, by the first copy of each set that answers."""
    if isinstance(request, RegionRequest):
        return _block(fabric, request, block) or bytes(request.block_size)
    assert isinstance(request, VolumeRequest)
    place = block
    for part in request.sub_volumes:
        assert isinstance(part, RegionRequest)
        size = part.blocks_per_extent * part.extent_count
        if place < size:
            found = _block(fabric, part, place)
            if found is not None:
                return found
            break
        place -= size
    if request.read_only_parent is None:
        return bytes(request.block_size)
    return read(fabric, request.read_only_parent, block)


def _block(fabric: Fabric, part: RegionRequest, block: int) -> bytes | None:
    contents: Contents | None = next((each for each in members_of(fabric, part) if each is not None), None)
    return None if contents is None else contents.blocks.get(block)
