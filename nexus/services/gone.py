"""Who is known to be gone for good, as the database says (nexus.md §8.1).

*Liveness*: a saga waits for a service that is silent as long as that may come back, and not a moment longer than an
operator has said that it will not. Whoever is only silent is not gone: to give up on a living service leaks what it
holds.
"""

from __future__ import annotations

from sqlalchemy import Column, ColumnElement, Connection, bindparam, select

from nexus.db import schema
from nexus.db.schema.hardware import DiskPolicy, SledPolicy
from nexus.volumes import Address

_DATASET, _POOL, _DISK = schema.crucible_dataset, schema.zpool, schema.physical_disk
_SLED, _PANTRY = schema.sled, schema.pantry


_POLICY_OF_DATASET = (
    select(_DISK.c.disk_policy)
    .join(_POOL, _POOL.c.physical_disk_id == _DISK.c.id)
    .join(_DATASET, _DATASET.c.pool_id == _POOL.c.id)
    .where(_DATASET.c.id == bindparam("dataset"))
)


def dataset_gone(connection: Connection, dataset_id: str) -> bool:
    """Whether the dataset's agent will never answer: its physical disk is not in service, or it is forgotten."""
    policy = connection.execute(_POLICY_OF_DATASET, {"dataset": dataset_id}).scalar_one_or_none()
    return policy != DiskPolicy.IN_SERVICE


def on_expunged_disk(dataset_id: Column[str]) -> ColumnElement[bool]:
    """Of a row with the column ``dataset_id``: that it lies on a physical disk that is lost, its records still there
    (§4.1)."""
    expunged = (
        select(_DATASET.c.id)
        .join(_POOL, _POOL.c.id == _DATASET.c.pool_id)
        .join(_DISK, _DISK.c.id == _POOL.c.physical_disk_id)
        .where(
            _DISK.c.disk_policy == DiskPolicy.EXPUNGED,
            _DATASET.c.time_deleted.is_(None),
            _POOL.c.time_deleted.is_(None),
        )
    )
    return dataset_id.in_(expunged)


def sled_gone(connection: Connection, sled_id: str) -> bool:
    """Whether the sled, and the host on it, will never answer."""
    policy = connection.execute(
        select(_SLED.c.sled_policy).where(_SLED.c.id == sled_id, _SLED.c.time_deleted.is_(None))
    ).scalar_one_or_none()
    return policy is None or policy == SledPolicy.EXPUNGED


_PANTRY_AT = (
    select(_PANTRY.c.id)
    .join(_SLED, _SLED.c.id == _PANTRY.c.sled_id)
    .where(
        _PANTRY.c.ip == bindparam("ip"),
        _PANTRY.c.port == bindparam("port"),
        _PANTRY.c.time_deleted.is_(None),
        _SLED.c.sled_policy != SledPolicy.EXPUNGED,
    )
)


def pantry_gone(connection: Connection, address: Address) -> bool:
    """Whether the pantry that was at ``address`` will never answer: it is not listed any more."""
    return connection.execute(_PANTRY_AT, {"ip": address.ip, "port": address.port}).first() is None


def pantries_listed(connection: Connection) -> list[Address]:
    """Where pantries are, on sleds that are not gone; in the order of their ids."""
    rows = connection.execute(
        select(_PANTRY.c.ip, _PANTRY.c.port)
        .join(_SLED, _SLED.c.id == _PANTRY.c.sled_id)
        .where(_PANTRY.c.time_deleted.is_(None), _SLED.c.sled_policy != SledPolicy.EXPUNGED)
        .order_by(_PANTRY.c.id)
    )
    return [Address.of(row.ip, row.port) for row in rows]
