"""Sleds, physical disks and what runs on them: listing, adding, and giving up (nexus.md §1.1).

To *expunge* is to say that something is lost for good. It cannot be taken back: every copy on it is replaced from then
on, and nobody waits for its services any more. A sled takes its physical disks with it, and its pantries, which are
taken off the list in the same transaction (*liveness*: whoever has a volume attached there gives up at once).

Adding may be asked for again: what is there already, by serial numbers and addresses, is found and left as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from sqlalchemy import Connection, Row, Table, func, insert, select, update

from nexus.db import schema
from nexus.db.schema import DiskPolicy, PhysicalDiskState, SledPolicy, SledState
from nexus.objects.refusals import invalid_request, not_found
from nexus.volumes import Address

_SLED, _DISK, _POOL = schema.sled, schema.physical_disk, schema.zpool
_DATASET, _INVENTORY, _PANTRY = schema.crucible_dataset, schema.inv_zpool, schema.pantry
RACK_ID = str(uuid5(NAMESPACE_URL, "crucible-emulator-rack"))
"""The one rack; it has no row."""

NewId = Callable[[], str]


@dataclass(frozen=True, slots=True)
class NewAgent:
    """An agent, and the physical disk of ``size_bytes`` that is all its own."""

    address: Address
    size_bytes: int
    serial: str
    vendor: str
    model: str


@dataclass(frozen=True, slots=True)
class NewSled:
    """A sled with what runs on it."""

    serial: str
    part: str
    host: Address
    pantry: Address | None
    agents: tuple[NewAgent, ...]


# -- looking ----------------------------------------------------------------------------------------------------------


def sleds_selected() -> Any:
    """The query for sleds."""
    return select(_SLED).where(_SLED.c.time_deleted.is_(None))


def physical_disks_selected() -> Any:
    """The query for physical disks."""
    return select(_DISK).where(_DISK.c.time_deleted.is_(None))


def sled_require(connection: Connection, sled_id: str) -> Row[Any]:
    """A sled's row. Raises :class:`~nexus.saga.ActionFailed` (not_found)."""
    row = connection.execute(sleds_selected().where(_SLED.c.id == sled_id)).one_or_none()
    if row is None:
        raise not_found("sled", sled_id)
    return row


def physical_disk_require(connection: Connection, disk_id: str) -> Row[Any]:
    """A physical disk's row. Raises :class:`~nexus.saga.ActionFailed` (not_found)."""
    row = connection.execute(physical_disks_selected().where(_DISK.c.id == disk_id)).one_or_none()
    if row is None:
        raise not_found("physical disk", disk_id)
    return row


def datasets_of(connection: Connection, disk_id: str) -> list[Row[Any]]:
    """The datasets on a physical disk, with ``total_size`` of their pools as last looked at."""
    newest = (
        select(_INVENTORY.c.total_size)
        .where(_INVENTORY.c.id == _POOL.c.id)
        .order_by(_INVENTORY.c.time_collected.desc())
        .limit(1)
        .scalar_subquery()
    )
    query = (
        select(_DATASET.c.id, _DATASET.c.ip, _DATASET.c.port, _DATASET.c.size_used, newest.label("total_size"))
        .join(_POOL, _POOL.c.id == _DATASET.c.pool_id)
        .where(_POOL.c.physical_disk_id == disk_id, _POOL.c.time_deleted.is_(None), _DATASET.c.time_deleted.is_(None))
        .order_by(_DATASET.c.id)
    )
    return list(connection.execute(query))


def pantry_on(connection: Connection, sled_id: str) -> Address | None:
    """Where the sled's pantry listens, if it has one."""
    listed = select(_PANTRY.c.ip, _PANTRY.c.port).where(_PANTRY.c.sled_id == sled_id, _PANTRY.c.time_deleted.is_(None))
    row = connection.execute(listed.order_by(_PANTRY.c.id).limit(1)).one_or_none()
    return None if row is None else Address.of(row.ip, row.port)


def count_on(connection: Connection, sled_id: str) -> tuple[int, int]:
    """How many physical disks and datasets are on a sled."""
    disks = select(func.count()).where(_DISK.c.sled_id == sled_id, _DISK.c.time_deleted.is_(None))
    datasets = (
        select(func.count(_DATASET.c.id))
        .join(_POOL, _POOL.c.id == _DATASET.c.pool_id)
        .where(_POOL.c.sled_id == sled_id, _POOL.c.time_deleted.is_(None), _DATASET.c.time_deleted.is_(None))
    )
    return connection.execute(disks).scalar_one(), connection.execute(datasets).scalar_one()


# -- giving up --------------------------------------------------------------------------------------------------------


def physical_disk_expunge(connection: Connection, disk_id: str, now: datetime) -> None:
    """The disk is lost; of one that is, it is done. Raises :class:`~nexus.saga.ActionFailed` (not_found)."""
    physical_disk_require(connection, disk_id)
    _expunge_disks(connection, _DISK.c.id == disk_id, now)


def sled_expunge(connection: Connection, sled_id: str, now: datetime) -> SledPolicy:
    """The sled is lost, with all that is on it; what its policy was. Raises :class:`~nexus.saga.ActionFailed`."""
    before = SledPolicy(sled_require(connection, sled_id).sled_policy)
    if before is not SledPolicy.EXPUNGED:
        lost = {"sled_policy": SledPolicy.EXPUNGED, "time_modified": now}
        connection.execute(update(_SLED).where(_SLED.c.id == sled_id).values(**lost))
    _expunge_disks(connection, _DISK.c.sled_id == sled_id, now)
    listed = (_PANTRY.c.sled_id == sled_id) & _PANTRY.c.time_deleted.is_(None)
    connection.execute(update(_PANTRY).where(listed).values(time_deleted=now, time_modified=now))
    return before


def _expunge_disks(connection: Connection, which: Any, now: datetime) -> None:
    in_service = which & _DISK.c.time_deleted.is_(None) & (_DISK.c.disk_policy == DiskPolicy.IN_SERVICE)
    lost = {"disk_policy": DiskPolicy.EXPUNGED, "time_modified": now}
    connection.execute(update(_DISK).where(in_service).values(**lost))


def sled_set_provisionable(connection: Connection, sled_id: str, wanted: SledPolicy, now: datetime) -> SledPolicy:
    """Whether the sled gets anything new; what its policy was. Raises :class:`~nexus.saga.ActionFailed`."""
    before = SledPolicy(sled_require(connection, sled_id).sled_policy)
    if before is SledPolicy.EXPUNGED:
        raise invalid_request(f"sled {sled_id} is expunged, and that is for ever")
    if before is not wanted:
        new = {"sled_policy": wanted, "time_modified": now}
        connection.execute(update(_SLED).where(_SLED.c.id == sled_id).values(**new))
    return before


# -- adding -----------------------------------------------------------------------------------------------------------


def sled_add(connection: Connection, new: NewSled, new_id: NewId, now: datetime) -> str:
    """The id of the sled, which has all this on it then. Raises :class:`~nexus.saga.ActionFailed` where an address or
    a physical disk is another sled's, or where the sled is expunged."""
    known = select(_SLED).where(
        _SLED.c.serial_number == new.serial, _SLED.c.part_number == new.part, _SLED.c.time_deleted.is_(None)
    )
    row = connection.execute(known).one_or_none()
    if row is None:
        sled_id = _insert(
            connection,
            _SLED,
            new_id,
            now,
            rack_id=RACK_ID,
            serial_number=new.serial,
            part_number=new.part,
            revision=0,
            ip=new.host.ip,
            port=new.host.port,
            sled_policy=SledPolicy.IN_SERVICE,
            sled_state=SledState.ACTIVE,
        )
    elif row.sled_policy == SledPolicy.EXPUNGED:
        raise invalid_request(f"sled {row.id} is expunged, and that is for ever")
    elif Address.of(row.ip, row.port) != new.host:
        raise invalid_request(f"sled {row.id} has its host at {Address.of(row.ip, row.port)}")
    else:
        sled_id = str(row.id)
    if new.pantry is not None:
        _add_pantry(connection, sled_id, new.pantry, new_id, now)
    for agent in new.agents:
        _add_agent(connection, sled_id, agent, new_id, now)
    return sled_id


def _add_pantry(connection: Connection, sled_id: str, address: Address, new_id: NewId, now: datetime) -> None:
    listed = select(_PANTRY.c.sled_id).where(
        _PANTRY.c.ip == address.ip, _PANTRY.c.port == address.port, _PANTRY.c.time_deleted.is_(None)
    )
    owner = connection.execute(listed).scalar_one_or_none()
    if owner is None:
        _insert(connection, _PANTRY, new_id, now, sled_id=sled_id, ip=address.ip, port=address.port)
    elif owner != sled_id:
        raise invalid_request(f"the pantry at {address} is on sled {owner}")


def _add_agent(connection: Connection, sled_id: str, agent: NewAgent, new_id: NewId, now: datetime) -> None:
    known = select(_DATASET.c.id).where(
        _DATASET.c.ip == agent.address.ip, _DATASET.c.port == agent.address.port, _DATASET.c.time_deleted.is_(None)
    )
    hardware = {"vendor": agent.vendor, "serial": agent.serial, "model": agent.model}
    disk = select(_DISK.c.id, _DISK.c.sled_id).where(
        *(_DISK.c[name] == value for name, value in hardware.items()),
        _DISK.c.time_deleted.is_(None),
        _DISK.c.disk_state != PhysicalDiskState.DECOMMISSIONED,
    )
    there = connection.execute(disk).one_or_none()
    dataset_id = connection.execute(known).scalar_one_or_none()
    if there is not None:
        if there.sled_id != sled_id:
            raise invalid_request(f"the physical disk {there.id} is in sled {there.sled_id}")
        if dataset_id not in {row.id for row in datasets_of(connection, there.id)}:
            raise invalid_request(f"the physical disk {there.id} has another agent than the one at {agent.address}")
        return
    if dataset_id is not None:
        raise invalid_request(f"the agent at {agent.address} has another physical disk")
    policy = {"disk_policy": DiskPolicy.IN_SERVICE, "disk_state": PhysicalDiskState.ACTIVE}
    disk_id = _insert(connection, _DISK, new_id, now, sled_id=sled_id, variant="u2", **hardware, **policy)
    on = {"sled_id": sled_id, "physical_disk_id": disk_id, "control_plane_storage_buffer": 0}
    pool_id = _insert(connection, _POOL, new_id, now, **on)
    seen = {"id": pool_id, "time_collected": now, "sled_id": sled_id, "total_size": agent.size_bytes}
    connection.execute(insert(_INVENTORY).values(**seen))
    at = {"ip": agent.address.ip, "port": agent.address.port}
    _insert(connection, _DATASET, new_id, now, pool_id=pool_id, size_used=0, no_provision=False, **at)


def _insert(connection: Connection, table: Table, new_id: NewId, now: datetime, **values: Any) -> str:
    identity = new_id()
    connection.execute(insert(table).values(id=identity, time_created=now, time_modified=now, **values))
    return identity
