"""Who has to be told that a volume reads from another target now: the decision, without I/O (nexus.md §3.6).

What it is for: after a step has swapped a target in a volume's document, an Upstairs that was constructed from the old
one goes on reading from what is about to be destroyed, and whose port may become another's. It is sent the document;
there is nothing to repair, for both targets hold the same.

Why the table is complete: whoever constructs the volume *later* reads the new document, for it is committed. Who did
earlier is a guest, and then the instance of the volume's disk names its vmm until that has ended; an export, and then
its row says so; or a saga at a pantry, which holds the volume's lock, so that no step is under way.

*Liveness*: a vmm on a sled that is gone for good reads nothing any more, whatever its row says.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from sqlalchemy import Connection, select

from nexus.db import schema
from nexus.db.schema import VmmState
from nexus.db.schema.user_visible import ExportState
from nexus.objects.instances import active_vmm_of_disk, instance_get
from nexus.services.gone import sled_gone
from nexus.services.hosts import Vmm
from nexus.volumes import Address, VolumeReplaceResult

_DISK, _CRUCIBLE, _EXPORT = schema.disk, schema.disk_type_crucible, schema.user_data_export


class Reader(Enum):
    """Who has the volume constructed."""

    NOBODY = "nobody"
    GUEST = "a guest that runs"
    GUEST_ON_ITS_WAY = "a guest that starts, stops or moves"
    EXPORT = "an export at a pantry"


class Notice(Enum):
    """What is to be done about it."""

    NOTHING = "nothing"
    TELL_HOST = "tell the host"
    TELL_PANTRY = "tell the pantry"
    TRY_LATER = "try later"


SWAPPED = frozenset({VolumeReplaceResult.DONE, VolumeReplaceResult.ALREADY_HAPPENED})

NOTICES: dict[Reader, Notice] = {
    Reader.NOBODY: Notice.NOTHING,
    Reader.GUEST: Notice.TELL_HOST,
    # It may have been given the old document, and cannot be told yet, or has not ended yet.
    Reader.GUEST_ON_ITS_WAY: Notice.TRY_LATER,
    Reader.EXPORT: Notice.TELL_PANTRY,
}

RUNS = frozenset({VmmState.RUNNING, VmmState.REBOOTING})
ENDED = frozenset({VmmState.DESTROYED, VmmState.SAGA_UNWOUND})


@dataclass(frozen=True, slots=True)
class Reading:
    """Who reads the volume, and where it can be told: of a guest ``vmm`` and ``disk_id``, of an export ``pantry``."""

    reader: Reader
    vmm: Vmm | None = None
    disk_id: str | None = None
    pantry: Address | None = None
    vmm_state: VmmState | None = None


def notice(result: VolumeReplaceResult, reader: Reader) -> Notice:
    """What a swap that ended with ``result`` asks for. *Liveness* (R21): of a volume that is deleted, nothing: nobody
    reads it, and whoever looked for a reader would not find one and try for ever."""
    return NOTICES[reader] if result in SWAPPED else Notice.NOTHING


def reading_of(connection: Connection, volume_id: str) -> Reading:
    """Who has the volume constructed, as far as the tables say."""
    disk_id = connection.execute(
        select(_CRUCIBLE.c.disk_id)
        .join(_DISK, _DISK.c.id == _CRUCIBLE.c.disk_id)
        .where(_CRUCIBLE.c.volume_id == volume_id, _DISK.c.time_deleted.is_(None))
    ).scalar_one_or_none()
    if disk_id is not None:
        return _guest(connection, disk_id)
    return exported(connection, volume_id)


def _guest(connection: Connection, disk_id: str) -> Reading:
    active = active_vmm_of_disk(connection, disk_id)
    if active is None or active.state in ENDED or sled_gone(connection, active.vmm.sled_id):
        return Reading(Reader.NOBODY)
    instance = instance_get(connection, active.vmm.instance_id)
    moves = instance is not None and instance.target_propolis_id is not None
    reader = Reader.GUEST if active.state in RUNS and not moves else Reader.GUEST_ON_ITS_WAY
    return Reading(reader, vmm=active.vmm, disk_id=disk_id, vmm_state=active.state)


def exported(connection: Connection, volume_id: str) -> Reading:
    """An export at a pantry reads its copy until it ends (R45, *safety*)."""
    row = connection.execute(
        select(_EXPORT.c.pantry_ip, _EXPORT.c.pantry_port).where(
            _EXPORT.c.volume_id == volume_id, _EXPORT.c.state == ExportState.LIVE
        )
    ).first()
    if row is None:
        return Reading(Reader.NOBODY)
    return Reading(Reader.EXPORT, pantry=Address.of(row.pantry_ip, row.pantry_port))
