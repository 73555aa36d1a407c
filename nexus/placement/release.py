"""Giving the place of destroyed regions back (nexus.md §7.2).

What it guarantees: rows and charges go in one transaction. What is reserved on a dataset is reckoned anew from the rows
that are left, so that nothing that was ever charged wrongly lasts (I10); other datasets are not touched, for each is a
row on which transactions meet.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

from sqlalchemy import Connection, delete, func, select, update

from nexus.db import schema
from nexus.placement.geometry import RESERVATION_PERCENT

_REGION = schema.region
_DATASET = schema.crucible_dataset


def regions_hard_delete(connection: Connection, region_ids: Collection[str], now: datetime) -> None:
    """Take the rows of regions away that their agents have no more. Of regions that are not there it is done."""
    datasets = select(_REGION.c.dataset_id).where(_REGION.c.id.in_(region_ids)).distinct()
    affected = sorted(connection.execute(datasets).scalars())
    connection.execute(delete(_REGION).where(_REGION.c.id.in_(region_ids)))
    for dataset_id in affected:
        recompute_size_used(connection, dataset_id, now)


def recompute_size_used(connection: Connection, dataset_id: str, now: datetime) -> None:
    """Set what is reserved on a dataset to the sum over its regions."""
    size = _REGION.c.block_size * _REGION.c.blocks_per_extent * _REGION.c.extent_count
    charged = size + size * RESERVATION_PERCENT // 100
    total = select(func.coalesce(func.sum(charged), 0)).where(_REGION.c.dataset_id == dataset_id)
    values = {"size_used": int(connection.execute(total).scalar_one()), "time_modified": now}
    connection.execute(update(_DATASET).where(_DATASET.c.id == dataset_id).values(**values))
