"""What projects, silos and the fleet are charged for (nexus.md §1.3).

A disk or snapshot is charged at its full size, read-only or not, to its project, to the project's silo and to the
fleet. The row of ``virtual_provisioning_resource`` says that it is charged, how much and to whom; each collection holds
the sum over its resources.

Why it is safe to do twice (*safety*): row and sums change in one transaction, and the sums change only if the row came
or went in it. What was charged is what is refunded, whatever was said of the disk meanwhile.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection, bindparam, delete, select, update

from nexus.db import NotFound, schema
from nexus.db.schema.user_visible import CollectionType, ProvisionedType
from nexus.db.transitions import insert_if_absent

FLEET_ID = "001de000-1334-4000-8000-000000000000"
"""The one fleet; it has no row anywhere else."""

_RESOURCE = schema.virtual_provisioning_resource
_COLLECTION = schema.virtual_provisioning_collection
_PROJECT = schema.project


def charge_disk(connection: Connection, disk_id: str, project_id: str, size_bytes: int, now: datetime) -> None:
    """From now on the disk is paid for. Raises :class:`~nexus.db.NotFound` where there is no such project."""
    _charge(connection, ProvisionedType.DISK, disk_id, project_id, size_bytes, now)


def charge_snapshot(connection: Connection, snapshot_id: str, project_id: str, size_bytes: int, now: datetime) -> None:
    """As :func:`charge_disk`, of a snapshot."""
    _charge(connection, ProvisionedType.SNAPSHOT, snapshot_id, project_id, size_bytes, now)


_REFUND = (
    delete(_RESOURCE)
    .where(_RESOURCE.c.id == bindparam("resource"))
    .returning(_RESOURCE.c.project_id, _RESOURCE.c.virtual_disk_bytes_provisioned)
)


def refund(connection: Connection, resource_id: str, now: datetime) -> None:
    """The disk or snapshot is not paid for any more. Of what is not charged it is done."""
    gone = connection.execute(_REFUND, {"resource": resource_id}).one_or_none()
    if gone is not None:
        _add(connection, gone.project_id, -gone.virtual_disk_bytes_provisioned, now)


def provisioned_bytes(connection: Connection, collection_id: str) -> int:
    """What a project, silo or the fleet is charged for; nothing where it never was."""
    query = select(_COLLECTION.c.virtual_disk_bytes_provisioned).where(_COLLECTION.c.id == collection_id)
    return connection.execute(query).scalar_one_or_none() or 0


def _charge(
    connection: Connection, kind: ProvisionedType, resource_id: str, project_id: str, size_bytes: int, now: datetime
) -> None:
    row = {
        "id": resource_id,
        "time_modified": now,
        "resource_type": kind,
        "project_id": project_id,
        "virtual_disk_bytes_provisioned": size_bytes,
    }
    if insert_if_absent(connection, _RESOURCE, row):
        _add(connection, project_id, size_bytes, now)


_SILO_OF = select(_PROJECT.c.silo_id).where(_PROJECT.c.id == bindparam("project"))
_MORE = (
    update(_COLLECTION)
    .where(_COLLECTION.c.id == bindparam("collection"))
    .values(
        virtual_disk_bytes_provisioned=_COLLECTION.c.virtual_disk_bytes_provisioned + bindparam("more_bytes"),
        time_modified=bindparam("now"),
    )
)


def _add(connection: Connection, project_id: str, size_bytes: int, now: datetime) -> None:
    """Change the sums; a deleted project has its silo still."""
    silo_id = connection.execute(_SILO_OF, {"project": project_id}).scalar_one_or_none()
    if silo_id is None:
        raise NotFound("project", project_id)
    for collection_id, kind in (
        (project_id, CollectionType.PROJECT),
        (silo_id, CollectionType.SILO),
        (FLEET_ID, CollectionType.FLEET),
    ):
        empty = {"id": collection_id, "time_modified": now, "collection_type": kind}
        insert_if_absent(connection, _COLLECTION, empty | {"virtual_disk_bytes_provisioned": 0})
        connection.execute(_MORE, {"collection": collection_id, "more_bytes": size_bytes, "now": now})
