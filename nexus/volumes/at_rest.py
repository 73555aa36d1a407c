"""A volume at rest: hashes proved that its copies hold the same, and nobody could have written since (W54).

What it is for: when all copies of a volume but one are lost, the last one may have missed writes that the others had
acknowledged; two of three are enough for that. Whether it did, nobody can ask any more. But when the copies were
compared while nobody had the volume, and it was not handed out since, the last one has everything.

Why the generation says whether it was handed out (*safety*): nobody is given a document but by a checkout, which makes
the stored generation greater (I11). A swap of one region for another makes it greater too and gives it to nobody, so
:func:`rest_kept` carries the proof over. A volume whose document was never handed out has nothing in it to miss.

What is not said here is which copies are good: one that was put in by a replacement is blank until it is repaired,
whatever the volume is (:mod:`nexus.replacement`).
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection, bindparam, delete, insert, select

from crucible_emu.volume.vcr import RegionRequest, VolumeConstructionRequest, VolumeRequest
from nexus.db import schema
from nexus.volumes.rows import volume_get

_REST = schema.volume_at_rest
NEVER_HANDED_OUT = 1
"""The generation of a document that was never checked out."""
_PROVED = select(_REST.c.generation).where(_REST.c.volume_id == bindparam("volume"))
_FORGET = delete(_REST).where(_REST.c.volume_id == bindparam("volume"))
_INSERT = insert(_REST)


def generation_of(request: VolumeConstructionRequest) -> int:
    """The greatest of the volume's own regions; 0 where it has none."""
    if not isinstance(request, VolumeRequest):
        return 0
    return max((each.gen for each in request.sub_volumes if isinstance(each, RegionRequest)), default=0)


def rest_proved(connection: Connection, volume_id: str, generation: int, now: datetime) -> None:
    """The copies were compared while the document had this generation, and held the same. If it was handed out
    meanwhile that is worth nothing, and :func:`at_rest` will say so. Of a volume that is gone by now nothing is written
    down, for nobody would take it away."""
    if volume_get(connection, volume_id) is None:
        return
    connection.execute(_FORGET, {"volume": volume_id})
    connection.execute(_INSERT, {"volume_id": volume_id, "generation": generation, "time_proved": now})


def at_rest(connection: Connection, volume_id: str) -> bool:
    """Whether any one copy of the volume, but for new ones, has everything that was ever acknowledged."""
    volume = volume_get(connection, volume_id)
    if volume is None:
        return False
    generation = generation_of(volume.request)
    proved = connection.execute(_PROVED, {"volume": volume_id}).scalar_one_or_none()
    return generation in (NEVER_HANDED_OUT, proved)


def rest_kept(connection: Connection, volume_id: str, request: VolumeConstructionRequest, now: datetime) -> None:
    """The volume was at rest, and its document becomes ``request`` without being given to anybody: it still is."""
    rest_proved(connection, volume_id, generation_of(request), now)


def rest_forgotten(connection: Connection, volume_id: str) -> None:
    """The volume is gone."""
    connection.execute(_FORGET, {"volume": volume_id})
