"""The safeguards that can be taken out: one row each, with what nexus.md §11.4 says that breaks.

A row names the one place in production code where a safeguard lives. Rows are in the order of the specification.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection, delete, select

from nexus.db import schema
from nexus.db.schema import RegionSnapshotReplacementState
from nexus.explore.removal import Removal
from nexus.objects.disks import MOVES, disk_get
from nexus.volumes import LockResult, RegionSnapshot, volume_get, volume_hard_delete
from nexus.volumes.deletion import FreedRegions, has_snapshots
from nexus.volumes.freed import Dataset, FreedRegion
from nexus.volumes.recorded import Address
from nexus.volumes.resolution import ReadOnlyRegion, Resource, drop_usage

_REGION, _DATASET, _VOLUME = schema.region, schema.crucible_dataset, schema.volume
_SNAPSHOT = schema.region_snapshot


def answers(value: Any) -> Callable[[Any], Any]:
    """In its place stands what always gives ``value``."""
    return lambda original: lambda *args, **kwargs: value


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

    def found(connection: Connection) -> FreedRegions:
        before: FreedRegions = original(connection)
        query = (
            select(_DATASET.c.id, _DATASET.c.ip, _DATASET.c.port, _REGION.c.id)
            .join(_DATASET, _DATASET.c.id == _REGION.c.dataset_id)
            .where(_REGION.c.volume_id.not_in(select(_VOLUME.c.id)), ~_REGION.c.read_only)
        )
        rows = connection.execute(query.order_by(_REGION.c.id)).all()
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


def _idle(original: Any) -> Any:
    async def activate(self: Any) -> dict[str, Any]:
        return {}

    return activate


def _by_state_alone(original: Any) -> Any:
    """Moves a disk on whoever has it in hand."""

    def move_on(connection: Connection, disk_id: str, move: Any, now: Any, *, saga_id: str, also: Any = None) -> Any:
        found = disk_get(connection, disk_id)
        if found is None or found.state not in MOVES[move].before or found.operating_saga_id in (saga_id, None):
            return original(connection, disk_id, move, now, saga_id=saga_id, also=also)
        return original(connection, disk_id, move, now, saga_id=found.operating_saga_id, also=also)

    return move_on


def _whatever_it_was(original: Any) -> Any:
    """Changes the row whatever it is like."""

    def update(connection: Connection, table: Any, row_id: Any, *, expected: Any, new: Any, same: Any = None) -> Any:
        return original(connection, table, row_id, expected={}, new=new, same=same)

    return update


def _whatever_state(original: Any) -> Any:
    """The requests in every state in which there is a successor."""

    def found(connection: Connection, states: Any, *, at_rest: bool = False) -> Any:
        every = [each for each in RegionSnapshotReplacementState if each.value not in ("requested", "complete")]
        return [each for each in original(connection, every) if each.new_region_id is not None]

    return found


async def _nothing(saga: Any) -> None:
    """Does nothing."""


def _forget_only(original: Any) -> Any:
    """Takes the row of the stash away, and leaves what it counts on."""

    async def destroy(world: Any, stash_id: str) -> None:
        gone = delete(schema.volume).where(schema.volume.c.id == stash_id)
        await world.database.transact(lambda c: c.execute(gone) and None)

    return destroy


def _dropped_at_once(original: Any) -> Any:
    """The reference of the volume is dropped, and the stash gets none."""

    def drop(connection: Connection, source: str, dest: str, resource: Resource) -> None:
        drop_usage(connection, source, resource)

    return drop


def _always_given(original: Any) -> Any:
    """Everybody has the lock."""

    def overtake(self: Any, connection: Connection, volume_id: str, repair_id: str, now: Any) -> LockResult:
        return LockResult.TAKEN

    return overtake


def _without(name: str) -> Callable[[Any], Any]:
    """The set of results without those that begin so."""
    return lambda original: frozenset(each for each in original if not each.name.startswith(name))


START, STEP = "region-snapshot-replacement-start", "region-snapshot-replacement-step"
REGION_START, DRIVE = "region-replacement-start", "region-replacement-drive"

REMOVALS: tuple[Removal, ...] = (
    Removal(
        "R1",
        "a request moves on only from the state and out of the hand that the table names",
        ("nexus.replacement.machine!update_and_check",),
        _whatever_it_was,
        "two sagas for one request: two allocations, two swaps",
        ("replace-region", "replace-snapshot"),
        (
            f"replace-region: {REGION_START}#ALLOC_NEW_REGION@after-effect=competing-saga",
            f"replace-snapshot: {START}#CREATE_FAKE_VOLUME@after-effect=competing-saga",
        ),
    ),
    Removal(
        "R5",
        "the holder counts on the new region until the request is complete",
        ("nexus.sagas.region_snapshot_replacement_start:new_region_volume_create",),
        lambda original: _nothing,
        "the snapshot is deleted, the new region with it, and the copy can never be mended",
        ("replace-snapshot",),
        (f"replace-snapshot: {START}#UPDATE_REQUEST_RECORD@after-record=delete-snapshot",),
    ),
    Removal(
        "R7",
        "the stash takes over the old reference in the transaction of the swap",
        ("nexus.volumes.replacing!move_usage",),
        _dropped_at_once,
        "what the stash names is not counted",
        ("replace-snapshot",),
        ("replace-snapshot",),
    ),
    Removal(
        "R9",
        "steps are made only for a request that runs",
        (
            "nexus.replacement.affected:may_have_steps",
            "nexus.tasks.region_snapshot_replacement_step!read_only_replacements_in",
        ),
        (answers(True), _whatever_state),
        "a step for the start saga's stash, and a stash for that, without end",
        ("replace-snapshot",),
        (f"replace-snapshot: {START}#UPDATE_REQUEST_RECORD@after-record=task-region-snapshot-replacement-step",),
        covered="a stash that gets a step is mended like any volume and then deleted (R10, W45); it costs work",
    ),
    Removal(
        "R10",
        "no step is made for another step's stash",
        ("nexus.replacement.step:is_stash",),
        answers(False),
        "a step for a step's stash, and so on",
        ("replace-snapshot",),
        (f"replace-snapshot: {STEP}#REPLACE_SNAPSHOT_IN_VOLUME@after-record=task-region-snapshot-replacement-step",),
        covered="steps that are complete are cleaned up first, so the shuttle ends; it costs work (W45)",
    ),
    Removal(
        "R19",
        "no step is made for a volume that does not count on the target",
        ("nexus.replacement.affected:is_affected",),
        answers(True),
        "a step that does nothing",
        ("replace-snapshot",),
        covered="it is an optimisation; volumes that count on the target are all that are looked at",
    ),
    Removal(
        "R20",
        "a step whose volume is deleted is given up before its saga begins",
        ("nexus.replacement.affected:volume_is_deleted",),
        answers(False),
        "a saga that does nothing",
        ("replace-snapshot",),
        covered="it is an optimisation; the saga copes, and the next safeguard gives such steps up as well",
    ),
    Removal(
        "R22",
        "a swap that finds its volume deleted has ended well",
        ("nexus.sagas.target_swap:ACCEPTED",),
        _without("EXISTING"),
        "the swap is made, the Nexus dies, the volume is deleted, the node runs again and fails: its stash is lost",
        ("replace-snapshot",),
        (
            f"replace-snapshot: {START}#REPLACE_SNAPSHOT_IN_VOLUME@after-effect=delete-snapshot;"
            f" {START}#REPLACE_SNAPSHOT_IN_VOLUME@after-effect=crash",
        ),
    ),
    Removal(
        "R23",
        "a step whose volume has lost the target is given up",
        ("nexus.replacement.affected:target_is_taken_away",),
        answers(False),
        "the step fails for ever, and the volume's lock is held",
        ("replace-snapshot",),
        (f"replace-snapshot: {STEP}#SET_SAGA_ID@before-node=remove-parent",),
    ),
    Removal(
        "R24",
        "a request ends when its target is gone and no step is open",
        ("nexus.replacement.read_only:what_is_left",),
        answers(None),
        "the request ends right after it runs, and copies of the target are left",
        ("lose-sled",),
        (
            "lose-sled: region-snapshot-replacement-garbage-collect#UPDATE_REQUEST_RECORD@after-record="
            "task-region-snapshot-replacement-finish",
        ),
    ),
    Removal(
        "R32",
        "a snapshot is made under the lock of its disk's volume",
        ("nexus.volumes.repair_lock:FairLocks.volume_repair_overtake",),
        _always_given,
        "a replacement changes the regions of the disk while they are frozen",
        ("create-snapshot", "replace-region"),
        ("create-snapshot: snapshot-create-detached#CALL_PANTRY_SNAPSHOT@after-record=replace-regions",),
    ),
    Removal(
        "R33",
        "who gets a document has a right to take the volume over",
        ("nexus.volumes.checkout:refusal",),
        answers(None),
        "maintenance takes the disk of a guest that runs",
        ("lose-region-of-idle-guest",),
        (f"lose-region-of-idle-guest: {DRIVE}#PREPARE@after-record=start-guest",),
    ),
    Removal(
        "R41",
        "the stored generation is above all that were handed out",
        ("nexus.volumes.walks:checked_out",),
        lambda original: lambda request: request,
        "two writers have one generation, and neither wins",
        ("verify", "replace-region"),
        ("verify", "create-snapshot"),
    ),
    Removal(
        "R46",
        "a request whose volume is deleted comes to its end",
        (
            "nexus.tasks.region_replacement:completed_without_swap",
            "nexus.sagas.region_replacement_drive:nothing_to_repair",
        ),
        answers(False),
        "the disk is deleted, and the request waits for ever",
        ("replace-region",),
        (f"replace-region: {REGION_START}#REPLACE_REGION_IN_VOLUME@after-record=delete-disk",),
    ),
    Removal(
        "W30, W31",
        "undoing a stash lets go of what it counts on",
        ("nexus.sagas.target_swap:destroy_stash",),
        _forget_only,
        "the swap is undone, and a reference is left that belongs to nobody",
        ("replace-snapshot",),
        (f"replace-snapshot: {STEP}#UPDATE_STEP_RECORD@before-effect=error",),
    ),
    Removal(
        "W32",
        "a swap back that finds nothing to put back has ended well",
        ("nexus.sagas.target_swap:NOTHING_TO_PUT_BACK",),
        lambda original: (),
        "the parent is removed, the undo fails, and the saga is stuck",
        ("replace-snapshot",),
        (
            f"replace-snapshot: {STEP}#REPLACE_SNAPSHOT_IN_VOLUME@after-record=remove-parent;"
            f" {STEP}#UPDATE_STEP_RECORD@before-effect=error",
        ),
    ),
    Removal(
        "W33",
        "a swap that was made is recognised, also when the volume is deleted since",
        ("nexus.sagas.region_replacement_start:done_before",),
        answers(False),
        "the Nexus dies after the swap, the disk is deleted, and the swap is not brought to its end",
        ("replace-region",),
        (
            f"replace-region: {REGION_START}#REPLACE_REGION_IN_VOLUME@after-effect=delete-disk;"
            f" {REGION_START}#REPLACE_REGION_IN_VOLUME@after-effect=crash",
        ),
    ),
    Removal(
        "W54",
        "the last good copy is believed where it is known to have everything",
        ("nexus.replacement.survivors:may_be_believed",),
        answers(False),
        "two copies are lost at once, and the third is never copied",
        ("lose-region",),
        (f"lose-region: {REGION_START}#SET_SAGA_ID@before-node=expunge-another",),
    ),
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
        ("create-snapshot", "verify"),
    ),
    Removal(
        "W24",
        "deletions that stopped half-way are begun again",
        ("nexus.tasks.resume_volume_deletion:ResumeVolumeDeletion.activate",),
        _idle,
        "an agent refuses once, and the volume stays soft-deleted for ever",
        ("delete-snapshot", "delete-image"),
    ),
    Removal(
        "W42",
        "what an ended saga has locked is given back",
        ("nexus.tasks.lease_reaper:LeaseReaper.activate",),
        _idle,
        "a Nexus that stood still takes a disk or lock for a saga that another has ended",
        ("create-snapshot", "verify", "delete-disk"),
    ),
)
"""What can be taken out."""
