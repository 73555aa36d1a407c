"""Whose business what is: the ids that running sagas have to do with.

What it is for: a saga that runs leaves things half made between its nodes. What is found of them is explained, and no
fault. :func:`business` says which ids that is true of.

Why that is neither too much nor too little: a saga names what it is about in its parameters, and its nodes record what
they found; from there the rows lead on, from a disk to its volume, and from a volume to its regions. Where things are
(datasets, sleds), and whose they are (projects, silos), is no saga's business: a fault there would be explained for as
long as anything goes on in the rack.
"""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import Column, Connection, Table, select

from nexus.db import schema
from nexus.db.saga_claims import claims
from nexus.objects.provisioning import FLEET_ID

PLACES: tuple[Table, ...] = (
    *(schema.crucible_dataset, schema.zpool, schema.physical_disk, schema.sled, schema.pantry),
    *(schema.project, schema.silo),
)

_DISK, _CRUCIBLE, _SNAPSHOT = schema.disk, schema.disk_type_crucible, schema.snapshot
LEADS: tuple[tuple[Column[str], Column[str | None]], ...] = (
    # What a saga destroyed last of a volume leads to that volume, whose row goes with it.
    (schema.region.c.id, schema.region.c.volume_id),
    (_DISK.c.attach_instance_id, _DISK.c.id),
    (_CRUCIBLE.c.disk_id, _CRUCIBLE.c.volume_id),
    (_CRUCIBLE.c.volume_id, _CRUCIBLE.c.disk_id),
    (_SNAPSHOT.c.id, _SNAPSHOT.c.volume_id),
    (_SNAPSHOT.c.id, _SNAPSHOT.c.destination_volume_id),
    (schema.image.c.id, schema.image.c.volume_id),
    (schema.region.c.volume_id, schema.region.c.id),
)
"""From what to what, in the order in which they are followed, once."""


def business(connection: Connection) -> frozenset[str]:
    """The ids that running sagas explain findings about."""
    found = set(claims(connection))
    if not found:
        return frozenset()
    found -= set(_places(connection))
    for source, target in LEADS:
        rows = connection.execute(select(source, target).where(source.is_not(None))).all()
        found |= {to for start, to in rows if start in found and to is not None}
    return frozenset(found)


def _places(connection: Connection) -> Iterator[str]:
    yield FLEET_ID
    for table in PLACES:
        yield from connection.execute(select(table.c.id)).scalars()
