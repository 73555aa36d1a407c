"""What the database alone tells: laws between its rows, and what somebody should have finished.

Beside the invariants of volumes: sagas that nobody runs, locks and records whose saga has ended, things half made or
half deleted that no saga is about, and charges that do not add up.

A :class:`Seen` says whether a running saga may be the reason. What holds at the end of *every* transaction, no running
saga explains; what holds only at rest is the saga's business whose ids it speaks of.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import Connection, bindparam, exists, select

from nexus.db import schema
from nexus.db.sagas import GOING_ON, database_clock
from nexus.db.schema import DiskState, SnapshotState
from nexus.db.schema.sagas import StoredEventKind, StoredSagaState
from nexus.objects.provisioning import FLEET_ID
from nexus.tasks.lease_reaper import held_by_ended
from nexus.tasks.phantom_disks import phantom_disks
from nexus.volumes import BrokenInvariant, census, deletions_to_finish
from nexus.volumes.invariants import INVARIANTS, Finding

_SAGA, _EVENT, _NEXUS = schema.saga, schema.saga_event, schema.nexus_instance
_DISK, _SNAPSHOT, _PROJECT = schema.disk, schema.snapshot, schema.project
_CHARGE, _COLLECTION = schema.virtual_provisioning_resource, schema.virtual_provisioning_collection
_REGION, _REGION_SNAPSHOT = schema.region, schema.region_snapshot

IN_A_SAGAS_HANDS = (DiskState.CREATING, DiskState.FINALIZING, DiskState.MAINTENANCE)
"""States in which a disk is only while a saga is about it."""

_UNDO_FAILED = (
    select(_EVENT.c.label)
    .where(_EVENT.c.saga_id == _SAGA.c.id, _EVENT.c.kind == StoredEventKind.UNDO_FAILED)
    .order_by(_EVENT.c.number.desc())
    .limit(1)
    .scalar_subquery()
)
_STUCK = (
    select(_SAGA.c.id, _SAGA.c.name, _UNDO_FAILED).where(_SAGA.c.state == StoredSagaState.STUCK).order_by(_SAGA.c.id)
)
_ALIVE = exists().where(_NEXUS.c.id == _SAGA.c.executor_id, _NEXUS.c.time_expires > bindparam("now"))
_LOST = select(_SAGA.c.id, _SAGA.c.name, _SAGA.c.executor_id).where(GOING_ON, ~_ALIVE).order_by(_SAGA.c.id)
_SILOS = select(_PROJECT.c.id, _PROJECT.c.silo_id)
_CHARGES = select(_CHARGE.c.id, _CHARGE.c.project_id, _CHARGE.c.virtual_disk_bytes_provisioned)
_SUMS = select(_COLLECTION.c.id, _COLLECTION.c.virtual_disk_bytes_provisioned)
_SIZES = {
    what: select(table.c.id, table.c.size_bytes).where(table.c.time_deleted.is_(None))
    for what, table in (("disk", _DISK), ("snapshot", _SNAPSHOT))
}
_DISKS_HALF_MADE = (
    select(_DISK.c.id, _DISK.c.disk_state)
    .where(_DISK.c.time_deleted.is_(None), _DISK.c.disk_state.in_(IN_A_SAGAS_HANDS))
    .order_by(_DISK.c.id)
)
_SNAPSHOTS_HALF_MADE = (
    select(_SNAPSHOT.c.id)
    .where(_SNAPSHOT.c.time_deleted.is_(None), _SNAPSHOT.c.state == SnapshotState.CREATING)
    .order_by(_SNAPSHOT.c.id)
)
_REGIONS_GOING = select(_REGION.c.id).where(_REGION.c.deleting).order_by(_REGION.c.id)
_SNAPSHOTS_GOING = (
    select(_REGION_SNAPSHOT.c.region_id, _REGION_SNAPSHOT.c.snapshot_id)
    .where(_REGION_SNAPSHOT.c.deleting)
    .order_by(_REGION_SNAPSHOT.c.region_id, _REGION_SNAPSHOT.c.snapshot_id)
)


@dataclass(frozen=True, slots=True)
class Seen:
    """A finding, and whether a running saga may be why."""

    finding: Finding
    explainable: bool


def look(connection: Connection) -> Iterator[Seen]:
    """All that is to be found in one moment."""
    tables = census.take(connection)
    for each in INVARIANTS:
        for sentence, ids in each.holds(tables):
            yield Seen(Finding(each.name, sentence, ids), each.at_rest)
    for finding in (*sagas(connection), *sums(connection)):
        yield Seen(finding, explainable=False)
    for held in held_by_ended(connection):
        yield Seen(Finding("leases", str(held), held.ids), explainable=False)
    for finding in (*charges(connection), *unfinished(connection), *undeleted(connection)):
        yield Seen(finding, explainable=True)


def sagas(connection: Connection) -> Iterator[Finding]:
    """Stuck ones, and those of a dead Nexus that nobody has taken over."""
    for saga_id, name, label in connection.execute(_STUCK):
        why = f"the undo of {label} failed" if label is not None else "its log does not fit its recipe"
        yield Finding("sagas", f"saga {saga_id}, {name}, is stuck: {why}", (saga_id,))
    for saga_id, name, executor_id in connection.execute(_LOST, {"now": database_clock(connection)}):
        sentence = f"saga {saga_id}, {name}, is not finished, and Nexus {executor_id}, whose it is, is dead"
        yield Finding("sagas", sentence, (saga_id,))


def sums(connection: Connection) -> Iterator[Finding]:
    """What a project, silo or the fleet is charged is the sum over its disks and snapshots, at the end of every
    transaction."""
    silo_of = {row.id: row.silo_id for row in connection.execute(_SILOS)}
    expected: Counter[str] = Counter()
    for charge in connection.execute(_CHARGES):
        for collection_id in (charge.project_id, silo_of.get(charge.project_id), FLEET_ID):
            if collection_id is not None:
                expected[collection_id] += charge.virtual_disk_bytes_provisioned
    recorded: Counter[str] = Counter()
    for row in connection.execute(_SUMS):
        recorded[row.id] = row.virtual_disk_bytes_provisioned
    for collection_id in sorted(expected.keys() | recorded.keys()):
        charged, found = recorded[collection_id], expected[collection_id]
        if charged != found:
            sentence = f"{collection_id} is charged {charged} bytes, its disks and snapshots come to {found}"
            yield Finding("charges", sentence, (collection_id,))


def charges(connection: Connection) -> Iterator[Finding]:
    """At rest: every disk and snapshot is charged at its size, and nothing else is."""
    charged = {row.id: row.virtual_disk_bytes_provisioned for row in connection.execute(_CHARGES)}
    sizes: dict[str, tuple[str, int]] = {}
    for what, query in _SIZES.items():
        for row in connection.execute(query):
            sizes[row.id] = (what, row.size_bytes)
    for identity, (what, size_bytes) in sorted(sizes.items()):
        found = charged.get(identity)
        if found != size_bytes:
            paid = "not charged" if found is None else f"charged {found} bytes"
            yield Finding("charges", f"{what} {identity} of {size_bytes} bytes is {paid}", (identity,))
    for identity in sorted(charged.keys() - sizes.keys()):
        sentence = f"{identity} is charged {charged[identity]} bytes, and is no disk or snapshot that is there"
        yield Finding("charges", sentence, (identity,))


def unfinished(connection: Connection) -> Iterator[Finding]:
    """At rest: nothing is half made."""
    for disk_id, state in connection.execute(_DISKS_HALF_MADE):
        yield Finding("unfinished", f"disk {disk_id} is {state}, and no saga is about it", (disk_id,))
    for snapshot_id in connection.execute(_SNAPSHOTS_HALF_MADE).scalars():
        yield Finding("unfinished", f"snapshot {snapshot_id} is being made, and no saga makes it", (snapshot_id,))


def undeleted(connection: Connection) -> Iterator[Finding]:
    """At rest: nothing is half deleted."""
    try:
        volumes = deletions_to_finish(connection)
    except BrokenInvariant as error:
        # One row that cannot be read must not hide all the rest.
        yield Finding("readable", f"what a deleted volume freed cannot be read: {error}", ())
        volumes = []
    for volume_id in volumes:
        sentence = f"volume {volume_id} is soft-deleted and could be destroyed, and no saga does it"
        yield Finding("deletion", sentence, (volume_id,))
    for region_id in connection.execute(_REGIONS_GOING).scalars():
        sentence = f"read-only region {region_id} is to be destroyed, and no saga does it"
        yield Finding("deletion", sentence, (region_id,))
    for region_id, snapshot_id in connection.execute(_SNAPSHOTS_GOING):
        sentence = f"the snapshot {snapshot_id} of region {region_id} is to be destroyed, and no saga does it"
        yield Finding("deletion", sentence, (region_id, snapshot_id))
    for disk_id in phantom_disks(connection):
        yield Finding("deletion", f"disk {disk_id} is deleted, and is charged still", (disk_id,))
