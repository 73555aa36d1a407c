"""Handing a VCR out (nexus.md §5.4, §5.5).

What it is for: whoever constructs a volume gets its VCR with generation g, and from then on the database holds g + 1
(I11, *safety*): the next that gets it wins over this one, because a Downstairs takes the writer with the higher
generation. A checkout therefore authorises a takeover, and :class:`Reason` says by what right. A document that is sent
to somebody who has the volume already is *not* checked out but read (R33, R41).

What differs from the real one: a deleted volume is not handed out (W50), and neither is one for a migration whose
target is not recorded (W12).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, bindparam, select

from crucible_emu.volume.vcr import VolumeConstructionRequest
from nexus.db import Conflict, schema
from nexus.volumes import walks
from nexus.volumes.at_rest import at_rest, rest_kept
from nexus.volumes.rows import Volume, require_live, volume_create, volume_get, write_request

_DISK = schema.disk
_CRUCIBLE = schema.disk_type_crucible
_INSTANCE = schema.instance


@dataclass(frozen=True, slots=True)
class ReadOnlyCopy:
    """To be copied as a parent, an image or a read-only disk: only what nobody writes to may be."""


@dataclass(frozen=True, slots=True)
class CopyAndModify:
    """To become something else (a snapshot). The caller guarantees that it is never constructed as it is."""


@dataclass(frozen=True, slots=True)
class InstanceStart:
    """For the VM process that is about to start."""

    vmm_id: str


@dataclass(frozen=True, slots=True)
class InstanceMigrate:
    """For the VM process that a guest is about to move to."""

    vmm_id: str
    target_vmm_id: str


@dataclass(frozen=True, slots=True)
class Pantry:
    """For maintenance, in a Pantry."""


@dataclass(frozen=True, slots=True)
class Repair:
    """For a pantry that makes the volume's copies alike, and writes nothing of its own."""


Reason = ReadOnlyCopy | CopyAndModify | InstanceStart | InstanceMigrate | Pantry | Repair
FOR_NO_WRITER = (CopyAndModify, Repair)
"""Who is given the document writes nothing to the volume: one that is at rest stays at rest."""


@dataclass(frozen=True, slots=True)
class Attachment:
    """Whose disk the volume is. ``instance_found``: whether the instance that the disk names exists."""

    instance_id: str
    instance_found: bool
    vmm_id: str | None = None
    target_vmm_id: str | None = None


_ATTACHED_TO = (
    select(_DISK.c.attach_instance_id)
    .join(_CRUCIBLE, _CRUCIBLE.c.disk_id == _DISK.c.id)
    .where(_CRUCIBLE.c.volume_id == bindparam("volume"), _DISK.c.time_deleted.is_(None))
)
_RUNS_IN = select(_INSTANCE.c.active_propolis_id, _INSTANCE.c.target_propolis_id).where(
    _INSTANCE.c.id == bindparam("instance"), _INSTANCE.c.time_deleted.is_(None)
)


def attachment(connection: Connection, volume_id: str) -> Attachment | None:
    """The instance that the volume's disk is attached to, if it has a disk and the disk is attached."""
    disk = connection.execute(_ATTACHED_TO, {"volume": volume_id}).one_or_none()
    if disk is None or disk.attach_instance_id is None:
        return None
    found = connection.execute(_RUNS_IN, {"instance": disk.attach_instance_id}).one_or_none()
    if found is None:
        return Attachment(disk.attach_instance_id, False)
    return Attachment(disk.attach_instance_id, True, found.active_propolis_id, found.target_propolis_id)


def refusal(reason: Reason, request: VolumeConstructionRequest, attached: Attachment | None) -> str | None:
    """Why ``reason`` gives no right to the volume now; ``None`` if it does. *Safety*: each rule keeps a writer that may
    be alive from being taken over by somebody who does not know of it."""
    match reason:
        case ReadOnlyCopy():
            return None if walks.is_read_only(request) else "it is written to, so it cannot be shared as a copy"
        case CopyAndModify():
            return None
        case InstanceStart(vmm_id):
            return _not_the_only_vmm(vmm_id, attached)
        case InstanceMigrate(vmm_id, target):
            return _not_this_migration(vmm_id, target, attached)
        case Pantry() | Repair():
            return _in_use(attached)


def _not_the_only_vmm(vmm_id: str, attached: Attachment | None) -> str | None:
    if attached is None or not attached.instance_found:
        return "its disk is attached to no instance that exists"
    if attached.target_vmm_id is not None:
        return f"instance {attached.instance_id} is migrating"
    if attached.vmm_id != vmm_id:
        return f"instance {attached.instance_id} does not run in {vmm_id}"
    return None


def _not_this_migration(vmm_id: str, target: str, attached: Attachment | None) -> str | None:
    if attached is None or not attached.instance_found:
        return "its disk is attached to no instance that exists"
    if (attached.vmm_id, attached.target_vmm_id) != (vmm_id, target):
        return f"instance {attached.instance_id} does not move from {vmm_id} to {target}"
    return None


def _in_use(attached: Attachment | None) -> str | None:
    if attached is None:
        return None
    if not attached.instance_found:
        return f"its disk is attached to instance {attached.instance_id}, which does not exist"
    if attached.vmm_id is not None:
        return f"instance {attached.instance_id} runs"
    return None


def volume_checkout(connection: Connection, volume_id: str, reason: Reason, now: datetime) -> Volume:
    """The volume as it was before; the database now holds one generation more in each direct region set. Raises
    :class:`~nexus.db.NotFound`, :class:`~nexus.db.Conflict`, and :class:`~nexus.volumes.recorded.MalformedVolume` for a
    bare region."""
    found = require_live(connection, volume_id)
    why = refusal(reason, found.request, attachment(connection, volume_id))
    if why is not None:
        raise Conflict(f"volume {volume_id} cannot be checked out for {type(reason).__name__}: {why}")
    resting = isinstance(reason, FOR_NO_WRITER) and at_rest(connection, volume_id)
    kept = walks.checked_out(found.request)
    if kept is not found.request:
        write_request(connection, volume_id, kept, now)
    if resting:
        rest_kept(connection, volume_id, kept, now)
    return found


def volume_checkout_randomize_ids(
    connection: Connection, source: str, dest: str, reason: Reason, now: datetime, new_id: walks.NewId
) -> Volume:
    """A read-only copy under the id ``dest``, which the caller has recorded (R43), so that it may be done again: a copy
    that exists is found and nothing is handed out. New ids, because an Upstairs' id must be unique among all that are
    constructed. Unlike in the real one it is one transaction, so that nothing is gone in between (R26).
    Raises as :func:`volume_checkout` and ``volume_create`` do."""
    made = _made_before(connection, dest)
    if made is not None:
        return made
    copied = walks.randomized_ids(volume_checkout(connection, source, reason, now).request, new_id)
    return volume_create(connection, dest, copied, now)


def _made_before(connection: Connection, dest: str) -> Volume | None:
    found = volume_get(connection, dest)
    if found is not None and found.deleted:
        raise Conflict(f"volume {dest} was made and is deleted")
    return found
