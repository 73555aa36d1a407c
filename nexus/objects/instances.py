"""Rows of instances and of the processes that run them, and which disks they have (nexus.md §1.3, §5.4).

An instance is *stopped* while it names no vmm, and only then may its disks change: whoever starts it reads which disks
it has after it is known to run, so no disk comes or goes in between. :func:`vmm_activate` is that moment, and only one
vmm passes it (*safety*: an instance that ran twice would write to its disks twice).

What it guarantees: each function may run again and finds what it did. At most :data:`DISKS_MAX` disks, each in a slot
of its own. A disk does not leave its instance while a snapshot of it is being made: it could be deleted then, and its
regions with it, between the agents' snapshots and the rows that say so (W43).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, Connection, and_, func, select, update

from nexus.db import schema
from nexus.db.schema import DiskState, SledPolicy, SledState, VmmState
from nexus.db.transitions import insert_if_absent, update_and_check
from nexus.objects.disks import Disk, Move, disk_move, require_disk
from nexus.objects.refusals import (
    CAPACITY,
    CONFLICT,
    UNAVAILABLE,
    already_exists,
    invalid_request,
    not_found,
    told_to_users,
)
from nexus.objects.snapshots import snapshot_being_made
from nexus.saga import ActionFailed
from nexus.services.hosts import Vmm
from nexus.volumes import Address

_INSTANCE, _VMM, _SLED = schema.instance, schema.vmm, schema.sled
_DISK, _CRUCIBLE, _PROJECT = schema.disk, schema.disk_type_crucible, schema.project

DISKS_MAX = 12

VMM_TRANSITIONS: dict[VmmState, frozenset[VmmState]] = {
    VmmState.STARTING: frozenset({VmmState.CREATING}),
    VmmState.RUNNING: frozenset({VmmState.STARTING}),
    # Also one that broke, or that an earlier stop has begun with.
    VmmState.STOPPING: frozenset({VmmState.RUNNING, VmmState.FAILED}),
    VmmState.DESTROYED: frozenset({VmmState.STOPPING}),
    VmmState.SAGA_UNWOUND: frozenset({VmmState.CREATING, VmmState.STARTING, VmmState.RUNNING}),
}
"""From which states a vmm becomes the one named. What ends here is forgotten, too: see :data:`_ENDED`."""

_ENDED = frozenset({VmmState.DESTROYED, VmmState.SAGA_UNWOUND})


@dataclass(frozen=True, slots=True)
class Instance:
    """A row that is not deleted."""

    id: str
    project_id: str
    name: str
    description: str
    active_propolis_id: str | None
    target_propolis_id: str | None

    @property
    def stopped(self) -> bool:
        return self.active_propolis_id is None and self.target_propolis_id is None


@dataclass(frozen=True, slots=True)
class AttachedDisk:
    """A disk of an instance."""

    disk_id: str
    name: str
    slot: int
    volume_id: str
    read_only: bool


@dataclass(frozen=True, slots=True)
class ActiveVmm:
    """The vmm that an instance names, and how far it is."""

    vmm: Vmm
    state: VmmState


@dataclass(frozen=True, slots=True)
class SledOfInstance:
    """What a host is told about where it stands, and for whom."""

    sled_id: str
    part_number: str
    revision: int
    serial_number: str
    silo_id: str


# -- instances --------------------------------------------------------------------------------------------------------


def instance_get(connection: Connection, instance_id: str) -> Instance | None:
    columns = [_INSTANCE.c[name] for name in Instance.__dataclass_fields__]
    query = select(*columns).where(_INSTANCE.c.id == instance_id, _INSTANCE.c.time_deleted.is_(None))
    row = connection.execute(query).one_or_none()
    return None if row is None else Instance(*row)


def instance_require(connection: Connection, instance_id: str) -> Instance:
    """Raises :class:`~nexus.saga.ActionFailed` (not_found)."""
    found = instance_get(connection, instance_id)
    if found is None:
        raise not_found("instance", instance_id)
    return found


def instance_create(
    connection: Connection, instance_id: str, project_id: str, name: str, description: str, now: datetime
) -> Instance:
    """A stopped instance without disks, or the one that an earlier call made. Raises
    :class:`~nexus.saga.ActionFailed` (object_already_exists)."""
    values = {"id": instance_id, "project_id": project_id, "name": name, "description": description}
    insert_if_absent(connection, _INSTANCE, values | {"time_created": now, "time_modified": now, "state_generation": 1})
    found = instance_get(connection, instance_id)
    if found is None or (found.project_id, found.name) != (project_id, name):
        raise already_exists("instance", name)
    return found


def instance_delete(connection: Connection, instance_id: str, now: datetime) -> None:
    """Delete a stopped instance; its disks are detached. Raises :class:`~nexus.saga.ActionFailed`."""
    _require_stopped(connection, instance_id)
    for disk in disks_attached(connection, instance_id):
        disk_detach(connection, instance_id, disk.disk_id, now)
    values = {"time_deleted": now, "time_modified": now}
    connection.execute(update(_INSTANCE).where(_INSTANCE.c.id == instance_id).values(**values))


def _require_stopped(connection: Connection, instance_id: str) -> Instance:
    found = instance_require(connection, instance_id)
    if not found.stopped:
        raise ActionFailed(f"instance {instance_id} is not stopped", CONFLICT)
    return found


# -- disks of instances -----------------------------------------------------------------------------------------------


def disks_attached(connection: Connection, instance_id: str) -> list[AttachedDisk]:
    """The disks of an instance, by slot."""
    query = (
        select(_DISK.c.id, _DISK.c.name, _DISK.c.slot, _CRUCIBLE.c.volume_id, _CRUCIBLE.c.read_only)
        .join(_CRUCIBLE, _CRUCIBLE.c.disk_id == _DISK.c.id)
        .where(_DISK.c.attach_instance_id == instance_id, _DISK.c.time_deleted.is_(None))
        .order_by(_DISK.c.slot)
    )
    return [AttachedDisk(*row) for row in connection.execute(query)]


def disk_attach(connection: Connection, instance_id: str, disk_id: str, now: datetime) -> int:
    """Give a detached disk to a stopped instance; its slot. Raises :class:`~nexus.saga.ActionFailed`."""
    instance, disk = _both(connection, instance_id, disk_id)
    if disk.state is DiskState.ATTACHED and disk.attach_instance_id == instance_id:
        assert disk.slot is not None
        return disk.slot
    _require_stopped(connection, instance_id)
    if disk.state is not DiskState.DETACHED:
        raise invalid_request(f"cannot attach disk {disk.name!r}: it is {disk.state} and must be detached")
    query = select(_DISK.c.slot).where(_DISK.c.attach_instance_id == instance.id, _DISK.c.time_deleted.is_(None))
    taken = set(connection.execute(query).scalars())
    free = [slot for slot in range(DISKS_MAX) if slot not in taken]
    if not free:
        raise invalid_request(f"an instance has at most {DISKS_MAX} disks")
    where = {"attach_instance_id": instance_id, "slot": free[0]}
    with told_to_users():
        disk_move(connection, disk_id, Move.ATTACHED, now, also=where)
    return free[0]


def disk_detach(connection: Connection, instance_id: str, disk_id: str, now: datetime) -> None:
    """Take a disk from a stopped instance. Raises :class:`~nexus.saga.ActionFailed`."""
    instance, disk = _both(connection, instance_id, disk_id)
    if disk.state is DiskState.DETACHED:
        return
    if disk.attach_instance_id != instance_id:
        raise invalid_request(f"disk {disk.name!r} is not attached to instance {instance.name!r}")
    _require_stopped(connection, instance_id)
    snapshot_id = snapshot_being_made(connection, disk_id)
    if snapshot_id is not None:
        raise ActionFailed(f"disk {disk.name!r} cannot be detached: its snapshot {snapshot_id} is made", CONFLICT)
    with told_to_users():
        disk_move(connection, disk_id, Move.DETACHED, now, also={"attach_instance_id": None, "slot": None})


def _both(connection: Connection, instance_id: str, disk_id: str) -> tuple[Instance, Disk]:
    """Instance and disk of one project; a disk of another is none."""
    instance, disk = instance_require(connection, instance_id), require_disk(connection, disk_id)
    if disk.project_id != instance.project_id:
        raise not_found("disk", disk_id)
    return instance, disk


# -- the processes that run them --------------------------------------------------------------------------------------


def sled_for_instance(connection: Connection, seed: str) -> str:
    """A sled that is in service, the one with the fewest instances; ``seed`` draws among equals. Raises
    :class:`~nexus.saga.ActionFailed` (capacity)."""
    running = func.count(_VMM.c.id)
    query = (
        select(_SLED.c.id, running)
        .outerjoin(_VMM, and_(_VMM.c.sled_id == _SLED.c.id, _VMM.c.time_deleted.is_(None)))
        .where(
            _SLED.c.sled_policy == SledPolicy.IN_SERVICE,
            _SLED.c.sled_state == SledState.ACTIVE,
            _SLED.c.time_deleted.is_(None),
        )
        .group_by(_SLED.c.id)
        .order_by(running, _SLED.c.id)
    )
    rows = connection.execute(query).all()
    if not rows:
        raise ActionFailed("no sled is in service to run the instance on", CAPACITY)
    equal = [row[0] for row in rows if row[1] == rows[0][1]]
    return str(equal[sum(seed.encode()) % len(equal)])


def sled_of_instance(connection: Connection, instance: Instance, sled_id: str) -> SledOfInstance:
    """Raises :class:`~nexus.saga.ActionFailed` where the project is gone."""
    silo_id = connection.execute(select(_PROJECT.c.silo_id).where(_PROJECT.c.id == instance.project_id)).scalar()
    if silo_id is None:
        raise not_found("project", instance.project_id)
    row = connection.execute(select(_SLED).where(_SLED.c.id == sled_id)).one()
    return SledOfInstance(row.id, row.part_number, row.revision, row.serial_number, silo_id)


def vmm_insert(connection: Connection, vmm_id: str, instance_id: str, sled_id: str, now: datetime) -> None:
    """A process that is to run the instance, on the host of a sled that is in service. Raises
    :class:`~nexus.saga.ActionFailed`."""
    sled = connection.execute(
        select(_SLED.c.ip, _SLED.c.port).where(
            _SLED.c.id == sled_id, _SLED.c.sled_policy == SledPolicy.IN_SERVICE, _SLED.c.time_deleted.is_(None)
        )
    ).one_or_none()
    if sled is None:
        raise ActionFailed(f"sled {sled_id} is not in service", UNAVAILABLE)
    what = {"id": vmm_id, "instance_id": instance_id, "sled_id": sled_id, "state": VmmState.CREATING}
    where = {"propolis_ip": sled.ip, "propolis_port": sled.port, "state_generation": 1}
    insert_if_absent(connection, _VMM, what | where | {"time_created": now, "time_modified": now})
    query = select(_VMM.c.instance_id).where(_VMM.c.id == vmm_id, _VMM.c.time_deleted.is_(None))
    if connection.execute(query).scalar_one_or_none() != instance_id:
        raise ActionFailed(f"vmm {vmm_id} was of another instance, or is gone", CONFLICT)


def vmm_change(connection: Connection, vmm_id: str, after: VmmState, now: datetime) -> None:
    """What :data:`VMM_TRANSITIONS` says. Raises :class:`~nexus.saga.ActionFailed`."""
    new = {"state": after, "state_generation": _VMM.c.state_generation + 1, "time_modified": now}
    if after in _ENDED:
        new["time_deleted"] = now
    expected = {"state": VMM_TRANSITIONS[after]}
    with told_to_users():
        update_and_check(connection, _VMM, vmm_id, expected=expected, new=new, same={"state": after})


def vmm_activate(connection: Connection, instance_id: str, vmm_id: str, now: datetime) -> None:
    """From now on the instance runs in this vmm, and its disks stay. Raises :class:`~nexus.saga.ActionFailed` where it
    runs already."""
    instance = instance_require(connection, instance_id)
    if instance.active_propolis_id == vmm_id:
        return
    if not instance.stopped:
        raise ActionFailed(f"instance {instance_id} is not stopped", CONFLICT)
    _set_active(connection, instance_id, vmm_id, now)


def vmm_deactivate(connection: Connection, instance_id: str, vmm_id: str, now: datetime) -> None:
    """The instance does not run in this vmm any more; of one that does not it is done."""
    instance = instance_get(connection, instance_id)
    if instance is not None and instance.active_propolis_id == vmm_id:
        _set_active(connection, instance_id, None, now)


def _set_active(connection: Connection, instance_id: str, vmm_id: str | None, now: datetime) -> None:
    connection.execute(
        update(_INSTANCE)
        .where(_INSTANCE.c.id == instance_id)
        .values(active_propolis_id=vmm_id, state_generation=_INSTANCE.c.state_generation + 1, time_modified=now)
    )


def active_vmm(connection: Connection, instance_id: str) -> ActiveVmm | None:
    """The vmm that the instance runs in."""
    return _active(connection, _INSTANCE.c.id == instance_id)


def active_vmm_of_disk(connection: Connection, disk_id: str) -> ActiveVmm | None:
    """The vmm of the instance that the disk is attached to, if that runs: who has the disk's volume in hand."""
    attached = select(_DISK.c.attach_instance_id).where(_DISK.c.id == disk_id, _DISK.c.time_deleted.is_(None))
    return _active(connection, _INSTANCE.c.id.in_(attached))


def vmm_get(connection: Connection, vmm_id: str) -> ActiveVmm | None:
    """A vmm, whether or not its instance names it and whether or not it has ended."""
    return _vmm(connection, _VMM.c.id == vmm_id)


def _active(connection: Connection, which: ColumnElement[bool]) -> ActiveVmm | None:
    active = select(_INSTANCE.c.active_propolis_id).where(which, _INSTANCE.c.time_deleted.is_(None))
    return _vmm(connection, _VMM.c.id.in_(active))


def _vmm(connection: Connection, which: ColumnElement[bool]) -> ActiveVmm | None:
    row = connection.execute(select(_VMM).where(which)).one_or_none()
    if row is None:
        return None
    where = Address.of(row.propolis_ip, row.propolis_port)
    return ActiveVmm(Vmm(row.id, row.instance_id, row.sled_id, where), VmmState(row.state))
