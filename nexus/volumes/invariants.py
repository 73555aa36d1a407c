"""What must hold between the tables (nexus.md §1.7, §5.14): an fsck for the control plane.

What it is for: tests run :func:`check` at the end of every transaction, so that an operation which breaks a law is
undone and named; a person runs it on a live system. A finding is one sentence, with the ids of the rows that it is
about.

When they hold: most hold at the end of *every* transaction, whatever is under way. A few hold only *at rest*, while no
saga is between making a thing and giving it to its owner; :data:`INVARIANTS` says which.

What it costs: 0.4 ms for each volume, on a busy machine of two cores; all volumes are read.

One law is not about the tables: that a generation in the database is above all that were ever handed out (I11). Who
hands out tells :class:`HandedOut`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from sqlalchemy import Connection

from crucible_emu.volume.vcr import RegionRequest, VolumeConstructionRequest, VolumeRequest
from nexus.db.schema import DiskState
from nexus.volumes import census
from nexus.volumes.census import Census
from nexus.volumes.resolution import ReadOnlyRegion, RegionSnapshot
from nexus.volumes.rows import volume_get

RESERVED_QUARTERS = 5
"""A region is charged five quarters of its size (§7.2)."""
MAY_BE_WITHOUT_VOLUME = (DiskState.CREATING.value, DiskState.FAULTED.value)


@dataclass(frozen=True, slots=True)
class Finding:
    """A law that is broken, and by which rows."""

    invariant: str
    sentence: str
    ids: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.invariant}: {self.sentence}"


Sentences = Iterator[tuple[str, tuple[str, ...]]]
"""Each finding's sentence, and the ids in it."""


def readable(tables: Census) -> Sentences:
    """Every document can be read, and is not a bare region set."""
    for volume in tables.volumes.values():
        if volume.unreadable is not None:
            yield f"volume {volume.id} cannot be read: {volume.unreadable}", (volume.id,)
        elif volume.bare_region:
            yield f"volume {volume.id} is a bare region", (volume.id,)


def usage_rows_mirror_documents(tables: Census) -> Sentences:
    """I1, of a volume's targets: one usage row for every read-only resource that a live volume names, and no other."""
    named: Counter[object] = Counter()
    for volume in tables.live():
        for address in set(volume.reads):
            for resource in tables.readable_at(address)[:1]:
                named[volume.id, resource] += 1
                found = tables.usages[volume.id, resource]
                if found != 1:
                    yield (
                        f"volume {volume.id} names the {resource} at {address}, and has {found} usage rows of it",
                        (volume.id, resource.region_id),
                    )
    for volume_id, resource in tables.usages:
        if named[volume_id, resource]:
            continue
        row = tables.volumes.get(volume_id)
        if row is not None and row.unreadable is not None:
            continue
        what = "is not there" if row is None else "is deleted" if row.deleted else "does not name it"
        yield (
            f"a usage row says that volume {volume_id} uses the {resource}, but the volume {what}",
            (
                volume_id,
                resource.region_id,
            ),
        )


def used_or_going(tables: Census) -> Sentences:
    """I2, at rest: a read-only resource that nobody uses is being deleted."""
    used = {resource for _, resource in tables.usages}
    for region in tables.regions.values():
        if region.read_only and not region.deleting and ReadOnlyRegion(region.id) not in used:
            yield f"read-only region {region.id} is used by nobody and not being deleted", (region.id,)
    for snapshot, (_, deleting) in tables.snapshots.items():
        if not deleting and snapshot not in used:
            yield f"the {snapshot} is used by nobody and not being deleted", (snapshot.region_id, snapshot.snapshot_id)


def nothing_uses_what_is_going(tables: Census) -> Sentences:
    """I3: what is being deleted has no usage rows; and what a usage row is about is there."""
    for volume_id, resource in tables.usages:
        match resource:
            case ReadOnlyRegion(region_id):
                region = tables.regions.get(region_id)
                going, there = region is not None and region.deleting, region is not None and region.read_only
            case RegionSnapshot():
                found = tables.snapshots.get(resource)
                going, there = found is not None and found[1], found is not None
        if going:
            yield f"volume {volume_id} uses the {resource}, which is being deleted", (volume_id, resource.region_id)
        elif not there:
            yield f"volume {volume_id} uses the {resource}, which is not there", (volume_id, resource.region_id)


def write_targets_resolve(tables: Census) -> Sentences:
    """I4: a live volume writes to read/write regions that are there."""
    for volume in tables.live():
        for address in volume.writes:
            if len(tables.writable_at(address)) != 1:
                count = len(tables.writable_at(address))
                yield f"volume {volume.id} writes to {address}, where {count} read/write regions are", (volume.id,)


def read_targets_resolve(tables: Census) -> Sentences:
    """§5.14: a live volume reads from one resource that is there and is not being deleted."""
    for volume in tables.live():
        for address in volume.reads:
            if len(tables.readable_at(address)) != 1:
                count = len(tables.readable_at(address))
                yield f"volume {volume.id} reads from {address}, where {count} read-only resources are", (volume.id,)


def named_by_the_owner_alone(tables: Census) -> Sentences:
    """I5: a read/write region that a live volume names is owned by it, and named by no other live volume."""
    for volume in tables.live():
        for address in volume.writes:
            for region_id in tables.writable_at(address):
                owner = tables.regions[region_id].volume_id
                if owner != volume.id:
                    yield (
                        f"volume {volume.id} names region {region_id} at {address}, which volume {owner} owns",
                        (volume.id, region_id, owner),
                    )


def owners_are_there(tables: Census) -> Sentences:
    """I5, at rest: the owner of a read/write region is there and names it."""
    for region in tables.regions.values():
        if region.read_only:
            continue
        owner = tables.volumes.get(region.volume_id)
        if owner is None:
            yield (
                f"region {region.id} belongs to volume {region.volume_id}, which is not there",
                (
                    region.id,
                    region.volume_id,
                ),
            )
        elif region.address is not None and owner.unreadable is None and region.address not in owner.writes:
            yield (
                f"region {region.id} belongs to volume {owner.id}, which does not name {region.address}",
                (
                    region.id,
                    owner.id,
                ),
            )


def sets_have_distinct_targets(tables: Census) -> Sentences:
    """I6: no region set, of any volume, has one target twice."""
    for volume in tables.volumes.values():
        for targets in volume.sets:
            for address, count in Counter(targets).items():
                if count > 1:
                    yield f"volume {volume.id} has the target {address} {count} times in one region set", (volume.id,)


def read_only_regions_have_no_snapshots(tables: Census) -> Sentences:
    """I7: there is no snapshot of a read-only region, nor a usage row that speaks of one."""
    spoken_of = {resource for _, resource in tables.usages if isinstance(resource, RegionSnapshot)}
    for resource in sorted({*tables.snapshots, *spoken_of}):
        region = tables.regions.get(resource.region_id)
        if region is not None and region.read_only:
            yield (
                f"read-only region {region.id} has a region snapshot, of snapshot {resource.snapshot_id}",
                (
                    region.id,
                    resource.snapshot_id,
                ),
            )


def locks_have_living_holders(tables: Census) -> Sentences:
    """I8: who holds a volume's lock has not ended."""
    for volume_id, holder in tables.locks.items():
        if tables.holders.get(holder):
            yield f"the lock of volume {volume_id} is held by {holder}, which has ended", (volume_id, holder)


def locks_have_known_holders(tables: Census) -> Sentences:
    """I8, at rest: who holds a volume's lock is a request or step; a saga that makes a snapshot is under way."""
    for volume_id, holder in tables.locks.items():
        if holder not in tables.holders:
            yield f"the lock of volume {volume_id} is held by {holder}, which nobody knows", (volume_id, holder)


def read_targets_are_named_once(tables: Census) -> Sentences:
    """I9: a volume names each read-only target at most once, or its one usage row would be for two."""
    for volume in tables.live():
        for address, count in Counter(volume.reads).items():
            if count > 1:
                yield f"volume {volume.id} names the read-only target {address} {count} times", (volume.id,)


def sizes_add_up(tables: Census) -> Sentences:
    """I10: what is reserved on a dataset is the sum over its regions."""
    sums: Counter[str] = Counter()
    for region in tables.regions.values():
        sums[region.dataset_id] += region.requested_bytes * RESERVED_QUARTERS // 4
    for dataset_id, size_used in tables.size_used.items():
        if sums[dataset_id] != size_used:
            yield (
                f"dataset {dataset_id} has {size_used} bytes reserved, its regions come to {sums[dataset_id]}",
                (dataset_id,),
            )


def deleted_volumes_have_no_disk_in_use(tables: Census) -> Sentences:
    """W4: a disk whose volume is deleted or gone is not attached, and is being created or is faulted."""
    for disk in tables.disks:
        volume = tables.volumes.get(disk.volume_id)
        if volume is not None and not volume.deleted:
            continue
        what = "gone" if volume is None else "deleted"
        if disk.attached or disk.state not in MAY_BE_WITHOUT_VOLUME:
            where = "attached" if disk.attached else disk.state
            yield f"disk {disk.id} is {where}, but its volume {disk.volume_id} is {what}", (disk.id, disk.volume_id)


@dataclass(frozen=True, slots=True)
class Invariant:
    """A law under the name that findings carry. ``at_rest``: it may be broken while a saga is under way."""

    name: str
    holds: Callable[[Census], Sentences]
    at_rest: bool = False


INVARIANTS = (
    Invariant("readable", readable),
    Invariant("I1", usage_rows_mirror_documents),
    Invariant("I2", used_or_going, at_rest=True),
    Invariant("I3", nothing_uses_what_is_going),
    Invariant("I4", write_targets_resolve),
    Invariant("read targets resolve", read_targets_resolve),
    Invariant("I5", named_by_the_owner_alone),
    Invariant("I5", owners_are_there, at_rest=True),
    Invariant("I6", sets_have_distinct_targets),
    Invariant("I7", read_only_regions_have_no_snapshots),
    Invariant("I8", locks_have_living_holders),
    Invariant("I8", locks_have_known_holders, at_rest=True),
    Invariant("I9", read_targets_are_named_once),
    Invariant("I10", sizes_add_up),
    Invariant("W4", deleted_volumes_have_no_disk_in_use),
)


class InvariantViolation(Exception):
    """A transaction would have broken a law; it is undone. ``findings`` says which."""

    def __init__(self, findings: list[Finding]) -> None:
        super().__init__("; ".join(map(str, findings)))
        self.findings = findings


def check(connection: Connection, *, at_rest: bool = False) -> list[Finding]:
    """Everything that is wrong, in the order of :data:`INVARIANTS`. ``at_rest``: no saga is under way."""
    tables = census.take(connection)
    return [
        Finding(each.name, sentence, ids)
        for each in INVARIANTS
        if at_rest or not each.at_rest
        for sentence, ids in each.holds(tables)
    ]


def require(connection: Connection) -> None:
    """For the hook of a database: raises :class:`InvariantViolation`."""
    findings = check(connection)
    if findings:
        raise InvariantViolation(findings)


class HandedOut:
    """The highest generations that were handed out, by volume (I11)."""

    def __init__(self) -> None:
        self._generations: dict[str, list[int]] = {}

    def note(self, volume_id: str, request: VolumeConstructionRequest) -> None:
        """``request`` was handed out to be constructed."""
        self._generations[volume_id] = _generations(request)

    def check(self, connection: Connection) -> list[Finding]:
        """Where the database is not ahead. A volume that is gone is nobody's any more."""
        findings = []
        for volume_id, given in self._generations.items():
            volume = volume_get(connection, volume_id)
            if volume is None:
                continue
            for handed, kept in zip(given, _generations(volume.request), strict=True):
                if kept <= handed:
                    sentence = f"volume {volume_id} was handed out with generation {handed}, and {kept} is recorded"
                    findings.append(Finding("I11", sentence, (volume_id,)))
        return findings


def _generations(request: VolumeConstructionRequest) -> list[int]:
    """Of the region sets that are direct sub-volumes."""
    if not isinstance(request, VolumeRequest):
        return []
    return [part.gen for part in request.sub_volumes if isinstance(part, RegionRequest)]
