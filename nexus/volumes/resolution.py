"""From an address in a VCR to the resource behind it, and who counts on that resource (nexus.md §5.1, §1.2).

What it is for: VCRs speak of addresses, deletion of resources. A read-only resource, a region's running snapshot or a
cloned read-only region, is shared; each volume that names it has one row in ``volume_resource_usage``, and the resource
may be destroyed when it has none.

Why ``deleting`` is in every lookup (R12, R13, *safety*): an agent gives the port of a destroyed resource to the next
one, so that two rows may carry one address. A row that is being deleted is nobody's any more; finding it would count
for a stranger, or bring a resource back that is about to be destroyed.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    Update,
    and_,
    bindparam,
    delete,
    exists,
    insert,
    select,
    update,
)

from nexus.db import schema
from nexus.db.schema import UsageType
from nexus.volumes.recorded import Address
from nexus.volumes.refusals import BrokenInvariant, ResourceGone

_REGION = schema.region
_SNAPSHOT = schema.region_snapshot
_DATASET = schema.crucible_dataset
_USAGE = schema.volume_resource_usage
_VOLUME = schema.volume


@dataclass(frozen=True, slots=True, order=True)
class ReadOnlyRegion:
    """A read-only region, by its id."""

    region_id: str

    def __str__(self) -> str:
        return f"read-only region {self.region_id}"


@dataclass(frozen=True, slots=True, order=True)
class RegionSnapshot:
    """The snapshot of a region, by the three ids that are its key."""

    dataset_id: str
    region_id: str
    snapshot_id: str

    def __str__(self) -> str:
        return f"region snapshot of region {self.region_id}, snapshot {self.snapshot_id}, dataset {self.dataset_id}"


Resource = ReadOnlyRegion | RegionSnapshot


def _region_at(read_only: bool, *more: ColumnElement[bool]) -> Select[Any]:
    return (
        select(_REGION.c.id)
        .join(_DATASET, _DATASET.c.id == _REGION.c.dataset_id)
        .where(
            _DATASET.c.ip == bindparam("ip"),
            _REGION.c.port == bindparam("port"),
            _REGION.c.read_only == read_only,
            ~_REGION.c.deleting,
            *more,
        )
    )


_READ_ONLY_REGION_AT = _region_at(True)
_WRITABLE_REGION_AT = _region_at(
    False, exists().where(_VOLUME.c.id == _REGION.c.volume_id, _VOLUME.c.time_deleted.is_(None))
)
_SNAPSHOT_AT = select(_SNAPSHOT.c.dataset_id, _SNAPSHOT.c.region_id, _SNAPSHOT.c.snapshot_id).where(
    _SNAPSHOT.c.snapshot_addr == bindparam("address"), ~_SNAPSHOT.c.deleting
)


def target_to_region(connection: Connection, address: Address, *, read_only: bool) -> str | None:
    """The region of one kind that listens there. A region whose port is not known listens nowhere; and a read/write
    region is nobody's, like one that is ``deleting``, unless its owner is there and not deleted: it is destroyed, or
    its making is undone, and its agent may have given its port to the next region before its row goes."""
    query = _READ_ONLY_REGION_AT if read_only else _WRITABLE_REGION_AT
    found: str | None = connection.execute(query, {"ip": address.ip, "port": address.port}).scalar_one_or_none()
    return found


def read_only_target_to_resource(connection: Connection, address: Address) -> Resource | None:
    """What a read-only target is: a region snapshot, else a read-only region. ``None``: it was deleted, is being
    deleted, or its port is not known."""
    row = connection.execute(_SNAPSHOT_AT, {"address": str(address)}).one_or_none()
    if row is not None:
        return RegionSnapshot(*row)
    region_id = target_to_region(connection, address, read_only=True)
    return None if region_id is None else ReadOnlyRegion(region_id)


def require_resource(connection: Connection, address: Address) -> Resource:
    """What a read-only target is. *Safety* (R26): a volume that named a dead one would read whatever gets its port.
    Raises :class:`ResourceGone`."""
    found = read_only_target_to_resource(connection, address)
    if found is None:
        raise ResourceGone(f"could not match read-only resource {address}: it is deleted, being deleted or unknown")
    return found


OF_SNAPSHOT = and_(
    _SNAPSHOT.c.dataset_id == bindparam("dataset"),
    _SNAPSHOT.c.region_id == bindparam("region"),
    _SNAPSHOT.c.snapshot_id == bindparam("snapshot"),
)
"""The row of one region snapshot, deleting or not; which one, :func:`key_of` says."""


def key_of(resource: Resource) -> dict[str, str]:
    """The ids of a resource, by the names that they have in statements."""
    match resource:
        case ReadOnlyRegion(region_id):
            return {"region": region_id}
        case RegionSnapshot(dataset_id, region_id, snapshot_id):
            return {"dataset": dataset_id, "region": region_id, "snapshot": snapshot_id}


# -- rows of volume_resource_usage ------------------------------------------------------------------------------------


_SAME: dict[type[Resource], ColumnElement[bool]] = {
    ReadOnlyRegion: and_(_USAGE.c.usage_type == UsageType.READ_ONLY_REGION, _USAGE.c.region_id == bindparam("region")),
    RegionSnapshot: and_(
        _USAGE.c.usage_type == UsageType.REGION_SNAPSHOT,
        _USAGE.c.region_snapshot_dataset_id == bindparam("dataset"),
        _USAGE.c.region_snapshot_region_id == bindparam("region"),
        _USAGE.c.region_snapshot_snapshot_id == bindparam("snapshot"),
    ),
}
"""The usage rows of one resource, by its kind; which one, :func:`key_of` says."""
_OF_VOLUME = _USAGE.c.volume_id == bindparam("volume")
_INSERT = insert(_USAGE)
_MOVE = {
    kind: update(_USAGE).where(_OF_VOLUME, same).values(volume_id=bindparam("dest")) for kind, same in _SAME.items()
}
_DROP = {kind: delete(_USAGE).where(_OF_VOLUME, same) for kind, same in _SAME.items()}
_IS_USED = {kind: select(exists().where(same)) for kind, same in _SAME.items()}
_HAS = {kind: select(_USAGE.c.usage_id).where(_OF_VOLUME, same) for kind, same in _SAME.items()}
_USING = {kind: select(_USAGE.c.volume_id).where(same).order_by(_USAGE.c.volume_id) for kind, same in _SAME.items()}


def _columns(resource: Resource) -> dict[str, object]:
    match resource:
        case ReadOnlyRegion(region_id):
            return {"usage_type": UsageType.READ_ONLY_REGION, "region_id": region_id}
        case RegionSnapshot(dataset_id, region_id, snapshot_id):
            return {
                "usage_type": UsageType.REGION_SNAPSHOT,
                "region_snapshot_dataset_id": dataset_id,
                "region_snapshot_region_id": region_id,
                "region_snapshot_snapshot_id": snapshot_id,
            }


def insert_usage(connection: Connection, volume_id: str, resource: Resource) -> None:
    """A reference more."""
    # The row's own id is never looked at; anything that is unique will do, and drawing it cannot leave the transaction.
    row = {"usage_id": str(uuid.uuid4()), "volume_id": volume_id, **_columns(resource)}
    connection.execute(_INSERT, row)


def move_usage(connection: Connection, source: str, dest: str, resource: Resource) -> None:
    """The reference of one volume becomes that of another, without a moment in which there is none (R7).
    Raises :class:`BrokenInvariant` if the volume has not exactly one."""
    asked = {"volume": source, "dest": dest, **key_of(resource)}
    moved = connection.execute(_MOVE[type(resource)], asked).rowcount
    if moved != 1:
        raise BrokenInvariant(f"volume {source} has {moved} usage rows of the {resource}, where one belongs")


def drop_usage(connection: Connection, volume_id: str, resource: Resource) -> bool:
    """A reference less; whether it was the last. Raises :class:`BrokenInvariant` if it was not exactly one (R14)."""
    gone = connection.execute(_DROP[type(resource)], {"volume": volume_id, **key_of(resource)}).rowcount
    if gone != 1:
        raise BrokenInvariant(f"volume {volume_id} has {gone} usage rows of the {resource}, where one belongs")
    return not is_used(connection, resource)


def is_used(connection: Connection, resource: Resource) -> bool:
    """Whether any volume counts on it. *Optimisation*: how many do is not asked. Thousands may, and who lets go of them
    one after the other would go through those that are left each time."""
    return connection.execute(_IS_USED[type(resource)], key_of(resource)).scalar_one()


def has_usage(connection: Connection, volume_id: str, resource: Resource) -> bool:
    """Whether a volume counts on it."""
    return connection.execute(_HAS[type(resource)], {"volume": volume_id, **key_of(resource)}).first() is not None


def volumes_using(connection: Connection, resource: Resource) -> list[str]:
    """Who counts on it, in order: every volume that names it and is not deleted, and nobody else (I1). This replaces
    the scan over all volumes (W20)."""
    return list(connection.execute(_USING[type(resource)], key_of(resource)).scalars())


_USED_BY = select(_USAGE).where(_OF_VOLUME)


def resources_used_by(connection: Connection, volume_id: str) -> list[Resource]:
    """What a volume counts on."""
    return sorted_resources(resource_of(row) for row in connection.execute(_USED_BY, {"volume": volume_id}).mappings())


def resource_of(row: object) -> Resource:
    """The resource that a row of ``volume_resource_usage`` is about."""
    columns = dict(row)  # type: ignore[call-overload]
    if columns["usage_type"] == UsageType.READ_ONLY_REGION:
        return ReadOnlyRegion(columns["region_id"])
    triple = ("region_snapshot_dataset_id", "region_snapshot_region_id", "region_snapshot_snapshot_id")
    return RegionSnapshot(*(columns[name] for name in triple))


def sorted_resources(resources: Iterable[Resource]) -> list[Resource]:
    """In one order for all: kind, then ids."""
    return sorted(resources, key=lambda each: (type(each).__name__, str(each)))


_FLAG_DELETING: dict[type[Resource], Update] = {
    ReadOnlyRegion: update(_REGION)
    .where(_REGION.c.id == bindparam("region"), _REGION.c.read_only, ~_REGION.c.deleting)
    .values(deleting=True),
    RegionSnapshot: update(_SNAPSHOT).where(OF_SNAPSHOT, ~_SNAPSHOT.c.deleting).values(deleting=True),
}


def flag_deleting(connection: Connection, resource: Resource) -> None:
    """From now on nobody finds it (R12). Raises :class:`BrokenInvariant` unless exactly one row changed its mind."""
    changed = connection.execute(_FLAG_DELETING[type(resource)], key_of(resource)).rowcount
    if changed != 1:
        raise BrokenInvariant(f"{changed} rows of the {resource} could be marked as deleting, where one belongs")
