"""Safeguards of the replacements: requests, steps, stashes, and the document of a volume."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, delete

from nexus.db import schema
from nexus.db.schema import RegionSnapshotReplacementState
from nexus.explore.removal import Removal
from nexus.explore.safeguards.instead import answers, does_nothing, without_results
from nexus.explore.safeguards.sagas import DRIVE, REGION_START, START, STEP
from nexus.volumes import LockResult
from nexus.volumes.resolution import Resource, drop_usage

_REGION, _DATASET, _VOLUME = schema.region, schema.crucible_dataset, schema.volume
_SNAPSHOT = schema.region_snapshot


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


REPLACEMENTS: tuple[Removal, ...] = (
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
        lambda original: does_nothing,
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
    ),
    Removal(
        "R10",
        "no step is made for another step's stash",
        ("nexus.replacement.step:is_stash",),
        answers(False),
        "a step for a step's stash, and so on",
        ("replace-snapshot",),
        (f"replace-snapshot: {STEP}#REPLACE_SNAPSHOT_IN_VOLUME@after-record=task-region-snapshot-replacement-step",),
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
        without_results("EXISTING"),
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
        "the Nexus dies after the swap, and who goes on takes it for one that never was",
        ("replace-region",),
        (f"replace-region: {REGION_START}#REPLACE_REGION_IN_VOLUME@after-effect=crash",),
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
)
