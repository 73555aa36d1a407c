"""What an agent said about its regions, written down: ports, and snapshots that run (nexus.md §1.2).

What it guarantees: each may be written again, and says the same. What was written is not changed: the address of a
region stands in documents, and one that moved under them would be another's. A running snapshot is written only of a
read/write region (I7), and only where no other one is in use at its address (R13).
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection, bindparam, insert, select, update

from nexus.db import Conflict, NotFound, schema
from nexus.volumes.recorded import Address
from nexus.volumes.resolution import RegionSnapshot, is_used

_REGION = schema.region
_SNAPSHOT = schema.region_snapshot


_PORT_OF = select(_REGION.c.port).where(_REGION.c.id == bindparam("region"))
_RECORD_PORT = (
    update(_REGION)
    .where(_REGION.c.id == bindparam("region"), _REGION.c.port.is_(None))
    .values(port=bindparam("found"), time_modified=bindparam("now"))
)


def region_record_port(connection: Connection, region_id: str, port: int, now: datetime) -> None:
    """The agent said where the region listens. Raises :class:`~nexus.db.NotFound`, and :class:`~nexus.db.Conflict` if
    it was said to be elsewhere."""
    row = connection.execute(_PORT_OF, {"region": region_id}).one_or_none()
    if row is None:
        raise NotFound("region", region_id)
    if row.port not in (None, port):
        raise Conflict(f"region {region_id} listens on port {row.port}, and not on {port}")
    connection.execute(_RECORD_PORT, {"region": region_id, "found": port, "now": now})


def region_snapshot_create(connection: Connection, snapshot: RegionSnapshot, address: Address) -> None:
    """The agent runs the snapshot at ``address``. Nobody uses it yet: the volume that does comes next. Raises
    :class:`~nexus.db.NotFound`, :class:`~nexus.db.Conflict`."""
    region = connection.execute(
        select(_REGION.c.read_only).where(
            _REGION.c.id == snapshot.region_id, _REGION.c.dataset_id == snapshot.dataset_id
        )
    ).one_or_none()
    if region is None:
        raise NotFound("region", snapshot.region_id)
    if region.read_only:
        raise Conflict(f"read-only region {snapshot.region_id} cannot have a snapshot")
    found = connection.execute(
        select(_SNAPSHOT.c.snapshot_addr, _SNAPSHOT.c.deleting).where(
            _SNAPSHOT.c.dataset_id == snapshot.dataset_id,
            _SNAPSHOT.c.region_id == snapshot.region_id,
            _SNAPSHOT.c.snapshot_id == snapshot.snapshot_id,
        )
    ).one_or_none()
    if found is not None:
        if found.deleting or found.snapshot_addr != str(address):
            raise Conflict(f"the {snapshot} is known at {found.snapshot_addr}, and not at {address}, or being deleted")
        return
    other = select(_SNAPSHOT.c.region_id).where(_SNAPSHOT.c.snapshot_addr == str(address), ~_SNAPSHOT.c.deleting)
    if connection.execute(other).first() is not None:
        raise Conflict(f"another region snapshot is in use at {address}")
    connection.execute(
        insert(_SNAPSHOT).values(
            dataset_id=snapshot.dataset_id,
            region_id=snapshot.region_id,
            snapshot_id=snapshot.snapshot_id,
            snapshot_addr=str(address),
            deleting=False,
        )
    )


def region_snapshot_give_up(connection: Connection, snapshot: RegionSnapshot) -> None:
    """Who made the region snapshot takes it away again: from now on nobody finds it at its address, which the agent
    may give to another as soon as it is told to stop it (R12, R13, *safety*). The row stays until the agent has it no
    more (W43). Of one that was never written, or is being deleted, it is done. Raises :class:`~nexus.db.Conflict`
    while a volume counts on it."""
    if is_used(connection, snapshot):
        raise Conflict(f"the {snapshot} is still used")
    connection.execute(
        update(_SNAPSHOT)
        .where(
            _SNAPSHOT.c.dataset_id == snapshot.dataset_id,
            _SNAPSHOT.c.region_id == snapshot.region_id,
            _SNAPSHOT.c.snapshot_id == snapshot.snapshot_id,
        )
        .values(deleting=True)
    )
