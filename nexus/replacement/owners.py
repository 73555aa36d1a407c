"""Whose a volume with read/write regions is, and who has it in hand now (nexus.md §3.2, W11).

What it is for: a repair is done by an Upstairs. If one has the volume, that one is asked, for a second would fence it;
if none has, a pantry makes one. :func:`owner_of` says which it is, in one word of :class:`Situation`.

What it guarantees (*safety*): a volume that somebody else may be about to construct is never called free. What is said
is true of the moment of the question; who acts on it asks again in the transaction in which it matters (R33).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy import Connection, bindparam, select

from nexus.db import schema
from nexus.db.schema import DiskState, VmmState
from nexus.objects.disks import Disk, disk_get
from nexus.objects.instances import ActiveVmm, active_vmm_of_disk
from nexus.services.gone import pantry_gone, sled_gone
from nexus.volumes import Address
from nexus.volumes.checkout import Attachment, attachment

_CRUCIBLE, _SNAPSHOT = schema.disk_type_crucible, schema.snapshot


class Situation(StrEnum):
    """Who has the volume."""

    RUNNING = "an instance runs with it"
    STARTING = "an instance is starting with it"
    UNSETTLED = "an instance is about to run with it, or to stop"
    MIGRATING = "the instance that has it is migrating"
    IMPORTING = "a pantry has it for an import"
    IN_HAND = "a saga has its disk in hand"
    STOPPED = "an instance that is stopped has it"
    DETACHED = "nobody has its disk"
    DESTINATION = "it is the empty volume beside a snapshot"
    UNKNOWN = "nobody knows what could own it"


SERVING = frozenset({VmmState.RUNNING, VmmState.REBOOTING})
"""A VM process in one of these states has its disks' Upstairs in service."""
CONSTRUCTED = frozenset(
    {Situation.RUNNING, Situation.STARTING, Situation.UNSETTLED, Situation.MIGRATING, Situation.IMPORTING}
)
"""Somebody has the volume's document, or is about to be given it."""
IN_NOBODYS_HANDS = frozenset({Situation.STOPPED, Situation.DETACHED, Situation.DESTINATION})
"""Nobody has the document, or is about to be given it without asking for a later one."""
SERVED = frozenset({Situation.RUNNING, Situation.IMPORTING})
"""An Upstairs is in service: what it has acknowledged, it knows."""


@dataclass(frozen=True, slots=True)
class Owner:
    """``disk``: whose volume it is, if a disk's. ``vmm``: in which the disk is used. ``pantry``: where it is attached
    for an import."""

    situation: Situation
    disk: Disk | None = None
    vmm: ActiveVmm | None = None
    pantry: Address | None = None


def owner_of(connection: Connection, volume_id: str) -> Owner:
    """Whose the volume is."""
    disk = _disk_of(connection, volume_id)
    if disk is None:
        query = select(_SNAPSHOT.c.id).where(_SNAPSHOT.c.destination_volume_id == volume_id)
        beside = connection.execute(query).first() is not None
        return Owner(Situation.DESTINATION if beside else Situation.UNKNOWN)
    attached = attachment(connection, volume_id)
    if attached is None:
        return _not_attached(connection, disk)
    vmm = active_vmm_of_disk(connection, disk.id)
    return Owner(_attached(connection, attached, vmm), disk, vmm)


_DISK_OF = select(_CRUCIBLE.c.disk_id).where(_CRUCIBLE.c.volume_id == bindparam("volume"))


def _disk_of(connection: Connection, volume_id: str) -> Disk | None:
    disk_id = connection.execute(_DISK_OF, {"volume": volume_id}).scalar_one_or_none()
    return None if disk_id is None else disk_get(connection, disk_id)


def _attached(connection: Connection, attached: Attachment, vmm: ActiveVmm | None) -> Situation:
    if not attached.instance_found:
        return Situation.UNKNOWN
    if attached.target_vmm_id is not None:
        return Situation.MIGRATING
    if attached.vmm_id is None:
        return Situation.STOPPED
    # What ran on a sled that is gone serves nothing, whatever its row says; somebody has to stop the instance.
    if vmm is None or sled_gone(connection, vmm.vmm.sled_id):
        return Situation.UNSETTLED
    if vmm.state in SERVING:
        return Situation.RUNNING
    return Situation.STARTING if vmm.state is VmmState.STARTING else Situation.UNSETTLED


def _not_attached(connection: Connection, disk: Disk) -> Owner:
    # *Liveness*: a pantry that is gone has nothing; who goes on with the import attaches the disk anew.
    if disk.pantry is not None and not pantry_gone(connection, disk.pantry):
        return Owner(Situation.IMPORTING, disk, pantry=disk.pantry)
    # One that is being made, or deleted, or in maintenance: whoever does that may be about to construct its volume.
    if disk.operating_saga_id is not None or disk.deleted or disk.state is DiskState.CREATING:
        return Owner(Situation.IN_HAND, disk)
    return Owner(Situation.DETACHED, disk)
