"""Safeguards of what deletes and makes: what was freed, by whom, and what is given back."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy import Connection, select

from nexus.db import schema
from nexus.explore.removal import Removal
from nexus.explore.safeguards.instead import answers, idle
from nexus.objects.disks import MOVES, disk_get
from nexus.volumes import RegionSnapshot, volume_get, volume_hard_delete
from nexus.volumes.deletion import FreedRegions, has_snapshots
from nexus.volumes.freed import Dataset, FreedRegion
from nexus.volumes.recorded import Address
from nexus.volumes.resolution import ReadOnlyRegion, Resource

_REGION, _DATASET, _VOLUME = schema.region, schema.crucible_dataset, schema.volume
_SNAPSHOT = schema.region_snapshot


def _any_at_address(original: Any) -> Any:
    """Finds what is being deleted, too."""

    def found(connection: Connection, address: Address) -> Resource | None:
        snapshots = connection.execute(
            select(_SNAPSHOT.c.dataset_id, _SNAPSHOT.c.region_id, _SNAPSHOT.c.snapshot_id)
            .where(_SNAPSHOT.c.snapshot_addr == str(address))
            .order_by(_SNAPSHOT.c.deleting.desc(), _SNAPSHOT.c.snapshot_id)
        ).all()
        if snapshots:
            return RegionSnapshot(*snapshots[0])
        regions = connection.execute(
            select(_REGION.c.id)
            .join(_DATASET, _DATASET.c.id == _REGION.c.dataset_id)
            .where(_DATASET.c.ip == address.ip, _REGION.c.port == address.port, _REGION.c.read_only)
            .order_by(_REGION.c.id)
        ).scalars()
        each = regions.first()
        return None if each is None else ReadOnlyRegion(each)

    return found


def _told_once(original: Any) -> Any:
    """What a deletion freed is told to whoever comes first, and then forgotten."""

    async def soft_delete(world: Any, volume_id: str) -> str | None:
        def body(connection: Connection) -> bool:
            volume = volume_get(connection, volume_id)
            return volume is not None and volume.deleted

        if await world.database.read(body):
            return None
        found: str | None = await original(world, volume_id)
        return found

    return soft_delete


def _with_ownerless(original: Any) -> Any:
    """Takes a region whose owner has no row for freed."""

    def found(connection: Connection, among: Collection[str] | None = None) -> FreedRegions:
        before: FreedRegions = original(connection, among)
        query = (
            select(_DATASET.c.id, _DATASET.c.ip, _DATASET.c.port, _REGION.c.id)
            .join(_DATASET, _DATASET.c.id == _REGION.c.dataset_id)
            .where(_REGION.c.volume_id.not_in(select(_VOLUME.c.id)), ~_REGION.c.read_only)
        )
        rows = connection.execute(query.order_by(_REGION.c.id)).all()
        rows = [row for row in rows if among is None or row[3] in among]
        more = tuple(FreedRegion(Dataset(*row[:3]), row[3]) for row in rows if not has_snapshots(connection, row[3]))
        return FreedRegions(before.regions + more, before.volumes)

    return found


def _at_once(original: Any) -> Any:
    """The row of a soft-deleted volume goes with its first deletion."""

    def hard_delete(connection: Connection, volume_id: str) -> bool:
        volume = volume_get(connection, volume_id)
        if volume is not None and volume.deleted:
            volume_hard_delete(connection, volume_id)
        return True

    return hard_delete


def _by_state_alone(original: Any) -> Any:
    """Moves a disk on whoever has it in hand."""

    def move_on(connection: Connection, disk_id: str, move: Any, now: Any, *, saga_id: str, also: Any = None) -> Any:
        found = disk_get(connection, disk_id)
        if found is None or found.state not in MOVES[move].before or found.operating_saga_id in (saga_id, None):
            return original(connection, disk_id, move, now, saga_id=saga_id, also=also)
        return original(connection, disk_id, move, now, saga_id=found.operating_saga_id, also=also)

    return move_on


def _unguarded(original: Any) -> Any:
    """Transactions of actions ask nobody."""
    return lambda self, record, world: world


DELETIONS: tuple[Removal, ...] = (
    Removal(
        "R13",
        "lookups by address pass over what is being deleted",
        ("nexus.volumes.resolution:read_only_target_to_resource",),
        _any_at_address,
        "an agent gives the port of a destroyed snapshot to a new one, and the wrong row is found",
        ("delete-snapshot", "create-snapshot"),
        (
            "delete-snapshot: snapshot-delete#DELETE_SNAPSHOT_RECORD@before-node=delete-copy;"
            " snapshot-delete#DELETE_VOLUME/DELETE_RUNNING_SNAPSHOTS@after-effect=snapshot-disk",
        ),
    ),
    Removal(
        "R14",
        "what a deletion freed is kept in the volume's row",
        ("nexus.sagas.volume_delete:_soft_delete",),
        _told_once,
        "the node runs again after a crash, is told of nothing, and what was freed is never destroyed",
        ("delete-snapshot", "delete-image"),
    ),
    Removal(
        "R15",
        "a region with any row of a snapshot is not freed",
        ("nexus.volumes.deletion:has_snapshots",),
        answers(False),
        "the agent refuses to delete the region below a snapshot, and the deletion fails",
        ("delete-disk",),
    ),
    Removal(
        "R16",
        "a region whose owner has no row is not freed",
        ("nexus.volumes.deletion:find_deleted_volume_regions",),
        _with_ownerless,
        "regions that a saga has just allocated are destroyed under it",
        ("create-disk", "create-snapshot"),
        covered="a deletion takes only its own regions, and those below snapshots that it took away",
    ),
    Removal(
        "R17, R18",
        "a volume's row stays while it owns regions or has something to destroy",
        ("nexus.volumes.deletion:volume_hard_delete_when_done",),
        _at_once,
        "regions that a snapshot keeps lose their owner, and nobody finds them any more",
        ("delete-disk", "delete-snapshot"),
    ),
    Removal(
        "R35",
        "the undo of making regions is a node before it",
        ("disk-create:REGIONS_ENSURE_UNDO",),
        answers(None),
        "an agent makes a region and says that it failed: the region is left",
        ("create-disk",),
    ),
    Removal(
        "R39",
        "nobody waits for an agent whose disk is gone for good",
        ("nexus.services.gone:dataset_gone",),
        answers(False),
        "a deletion waits for ever for an agent that is expunged",
        ("delete-disk",),
    ),
    Removal(
        "R44",
        "only the saga that has a disk in hand moves it on",
        ("nexus.objects.disks:disk_move_on",),
        _by_state_alone,
        "a saga that runs a node again gives back a disk that another has taken since",
        (),
        (
            "verify: volume-verify#GIVE_DISK_BACK@after-effect=snapshot-disk;"
            " snapshot-create-detached#CALL_PANTRY_ATTACH@after-record=crash",
        ),
        covered="the other goes on with what it has at its pantry, for all its nodes bear that, and takes no harm"
        " before a third takes the disk in the same moment. That it is not given back is held by"
        " `test_move_of_a_saga_is_its_own`",
    ),
    Removal(
        "W24",
        "deletions that stopped half-way are begun again",
        ("nexus.tasks.resume_volume_deletion:ResumeVolumeDeletion.activate",),
        idle,
        "an agent refuses once, and the volume stays soft-deleted for ever",
        ("delete-snapshot", "delete-image"),
    ),
    Removal(
        "W42",
        "a Nexus that has lost a saga changes no row for it, and what an ended saga has locked is given back",
        ("nexus.tasks.lease_reaper:LeaseReaper.activate", "nexus.db.sagas:SagaStore.world_of"),
        (idle, _unguarded),
        "a Nexus that stood still takes a disk or lock for a saga that another has ended",
        ("create-snapshot",),
        ("create-snapshot: snapshot-create-detached#TAKE_VOLUME_LOCK@before-effect=second-nexus",),
    ),
)
