"""Giving the place of destroyed regions back (nexus.md §7.2).

What it guarantees: rows and charges go in one transaction, and a row goes once, so what it was charged is given back
once (I10). *Optimisation*: to reckon the sum over a dataset anew, as the real one does, costs the more the more regions
there are; that is for the invariants. Other datasets are not touched, for each is a row on which transactions meet.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from datetime import datetime

from sqlalchemy import Connection, bindparam, delete, update

from nexus.db import schema
from nexus.placement.geometry import reserved

_REGION = schema.region
_DATASET = schema.crucible_dataset


_FORGET = (
    delete(_REGION)
    .where(_REGION.c.id.in_(bindparam("regions", expanding=True)))
    .returning(_REGION.c.dataset_id, _REGION.c.block_size * _REGION.c.blocks_per_extent * _REGION.c.extent_count)
)
_FREE = (
    update(_DATASET)
    .where(_DATASET.c.id == bindparam("dataset"))
    .values(size_used=_DATASET.c.size_used - bindparam("freed_bytes"), time_modified=bindparam("now"))
)


def regions_hard_delete(connection: Connection, region_ids: Collection[str], now: datetime) -> None:
    """Take the rows of regions away that their agents have no more. Of regions that are not there it is done."""
    freed: Counter[str] = Counter()
    for dataset_id, requested_bytes in connection.execute(_FORGET, {"regions": list(region_ids)}):
        freed[dataset_id] += reserved(requested_bytes)
    for dataset_id, freed_bytes in sorted(freed.items()):
        connection.execute(_FREE, {"dataset": dataset_id, "freed_bytes": freed_bytes, "now": now})
