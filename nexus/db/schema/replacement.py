"""Bookkeeping of replacements: which copies are lost, and how far each is with its successor (nexus.md §1.4, §1.6, §2).

A request or step is *at rest*, and then anybody may take it, or in an *intermediate* state, and then it belongs to the
saga named in ``operating_saga_id``, which is set exactly then. That, and which ids have to be known in which state, the
database checks.
"""

from __future__ import annotations

from enum import StrEnum

from nexus.db.schema.columns import (
    check,
    enumeration,
    identifier,
    index,
    ip,
    moment,
    one_of,
    port,
    table,
    text,
)


class RegionReplacementState(StrEnum):
    """How far the replacement of a read/write region is (§2.1)."""

    REQUESTED = "requested"
    ALLOCATING = "allocating"
    RUNNING = "running"
    DRIVING = "driving"
    REPLACEMENT_DONE = "replacement_done"
    COMPLETING = "completing"
    COMPLETE = "complete"


class RegionReplacementStepType(StrEnum):
    """Who was asked to repair."""

    PROPOLIS = "propolis"
    PANTRY = "pantry"


class RegionSnapshotReplacementState(StrEnum):
    """How far the replacement of a read-only target is (§2.2)."""

    REQUESTED = "requested"
    ALLOCATING = "allocating"
    REPLACEMENT_DONE = "replacement_done"
    DELETING_OLD_VOLUME = "deleting_old_volume"
    RUNNING = "running"
    COMPLETING = "completing"
    COMPLETE = "complete"


class ReadOnlyTargetType(StrEnum):
    """What a read-only target is."""

    REGION_SNAPSHOT = "region_snapshot"
    READ_ONLY_REGION = "read_only_region"


class RegionSnapshotReplacementStepState(StrEnum):
    """How far one affected volume is (§2.3)."""

    REQUESTED = "requested"
    RUNNING = "running"
    COMPLETE = "complete"
    VOLUME_DELETED = "volume_deleted"


_RR, _RSR, _STEP = RegionReplacementState, RegionSnapshotReplacementState, RegionSnapshotReplacementStepState
REGION_REPLACEMENT_INTERMEDIATE = (_RR.ALLOCATING, _RR.DRIVING, _RR.COMPLETING)
REGION_SNAPSHOT_REPLACEMENT_INTERMEDIATE = (_RSR.ALLOCATING, _RSR.DELETING_OLD_VOLUME, _RSR.COMPLETING)
STEP_INTERMEDIATE = (_STEP.RUNNING,)

_NOT_COMPLETE = "replacement_state <> 'complete'"
_OPERATED = "operating_saga_id IS NOT NULL"
_OPERATING_SAGA = "The saga that moves it; NULL while it is at rest (§1.6)."


def _held_while(states: tuple[StrEnum, ...]) -> str:
    return f"({one_of('replacement_state', states)}) = (operating_saga_id IS NOT NULL)"


region_replacement = table(
    "region_replacement",
    "A read/write region that is lost, and is to have a successor in its volume.",
    identifier("id", "Names the request; it holds the volume's lock under this id.", key=True),
    moment("request_time", "When it was asked for."),
    identifier("old_region_id", "The region that is replaced."),
    identifier("volume_id", "The volume whose region it was when this was asked for; never changed."),
    identifier("old_region_volume_id", "The stash volume that will own the old region.", nullable=True),
    identifier("new_region_id", "The successor.", nullable=True),
    enumeration("replacement_state", RegionReplacementState, "How far it is."),
    identifier("operating_saga_id", _OPERATING_SAGA, nullable=True),
    check("held_while_intermediate", _held_while(REGION_REPLACEMENT_INTERMEDIATE)),
    check(
        "nothing_new_while_requested",
        "replacement_state <> 'requested' OR (old_region_volume_id IS NULL AND new_region_id IS NULL)",
    ),
    # Complete from Requested has neither: there was nothing to replace any more (edge 12).
    check(
        "successor_known_from_running_on",
        f"NOT ({one_of('replacement_state', (_RR.RUNNING, _RR.DRIVING, _RR.REPLACEMENT_DONE, _RR.COMPLETING))})"
        " OR (old_region_volume_id IS NOT NULL AND new_region_id IS NOT NULL)",
    ),
    index("region_replacement_by_state", "replacement_state", "id"),
    index("region_replacement_by_old_region", "old_region_id"),
    index(
        "region_replacement_by_new_region",
        "new_region_id",
        where="new_region_id IS NOT NULL",
    ),
    index("region_replacement_by_volume", "volume_id"),
    # Safety: a region has one request at a time, whoever asks.
    index(
        "region_replacement_active_unique",
        "old_region_id",
        unique=True,
        where=_NOT_COMPLETE,
    ),
    index(
        "region_replacement_operated",
        "operating_saga_id",
        unique=True,
        where=_OPERATED,
    ),
    state="replacement_state",
)

region_replacement_step = table(
    "region_replacement_step",
    "Breadcrumbs: who was asked to repair, and when. The newest is the current one.",
    identifier("replacement_id", "The request.", key=True),
    moment("step_time", "When the step was taken.", key=True),
    enumeration("step_type", RegionReplacementStepType, "Who was asked.", key=True),
    identifier("step_associated_instance_id", "The instance that was asked.", nullable=True),
    identifier("step_associated_vmm_id", "The process that ran it then.", nullable=True),
    ip("step_associated_pantry_ip", "The pantry that was asked.", nullable=True),
    port("step_associated_pantry_port", "The pantry that was asked.", nullable=True),
    identifier("step_associated_pantry_job_id", "The job that it was given.", nullable=True),
    check(
        "a_step_says_who",
        "(step_type = 'propolis' AND step_associated_instance_id IS NOT NULL AND step_associated_vmm_id IS NOT NULL)"
        " OR (step_type = 'pantry' AND step_associated_pantry_ip IS NOT NULL"
        " AND step_associated_pantry_port IS NOT NULL AND step_associated_pantry_job_id IS NOT NULL)",
    ),
)

_ACTIVE_SNAPSHOT = f"replacement_type = 'region_snapshot' AND {_NOT_COMPLETE}"
_ACTIVE_REGION = f"replacement_type = 'read_only_region' AND {_NOT_COMPLETE}"
_FROM_DONE_ON = (_RSR.REPLACEMENT_DONE, _RSR.DELETING_OLD_VOLUME, _RSR.RUNNING, _RSR.COMPLETING)

region_snapshot_replacement = table(
    "region_snapshot_replacement",
    "A read-only target, region snapshot or read-only region, that is lost, and is to have a successor everywhere.",
    identifier("id", "Names the request; it holds the snapshot volume's lock under this id.", key=True),
    moment("request_time", "When it was asked for."),
    enumeration("replacement_type", ReadOnlyTargetType, "What is replaced."),
    identifier("old_dataset_id", "Where the region snapshot is, if it is one.", nullable=True),
    identifier("old_region_id", "The region under the snapshot, or the read-only region itself."),
    identifier("old_snapshot_id", "The snapshot, if it is a region snapshot.", nullable=True),
    identifier("old_snapshot_volume_id", "The stash volume of the start saga.", nullable=True),
    identifier("new_region_id", "The successor: a read-only region.", nullable=True),
    identifier("new_region_volume_id", "The holder volume, which keeps one reference to the successor.", nullable=True),
    enumeration("replacement_state", RegionSnapshotReplacementState, "How far it is."),
    identifier("operating_saga_id", _OPERATING_SAGA, nullable=True),
    check(
        "proper_replacement_fields",
        "(replacement_type = 'region_snapshot' AND old_dataset_id IS NOT NULL AND old_snapshot_id IS NOT NULL)"
        " OR (replacement_type = 'read_only_region' AND old_dataset_id IS NULL AND old_snapshot_id IS NULL)",
    ),
    check("held_while_intermediate", _held_while(REGION_SNAPSHOT_REPLACEMENT_INTERMEDIATE)),
    check(
        "nothing_new_while_requested",
        "replacement_state <> 'requested' OR (old_snapshot_volume_id IS NULL AND new_region_id IS NULL"
        " AND new_region_volume_id IS NULL)",
    ),
    check(
        "successor_known_from_done_on",
        f"NOT ({one_of('replacement_state', _FROM_DONE_ON)}) OR (old_snapshot_volume_id IS NOT NULL"
        " AND new_region_id IS NOT NULL AND new_region_volume_id IS NOT NULL)",
    ),
    index("region_snapshot_replacement_by_state", "replacement_state", "id"),
    index("region_snapshot_replacement_by_target", "old_region_id", "old_dataset_id", "old_snapshot_id"),
    index(
        "region_snapshot_replacement_by_new_region",
        "new_region_id",
        where="new_region_id IS NOT NULL",
    ),
    # Safety: a target has one request at a time, whoever asks. Two indexes, for NULLs are distinct from each other.
    index(
        "region_snapshot_replacement_snapshot_unique",
        "old_dataset_id",
        "old_region_id",
        "old_snapshot_id",
        unique=True,
        where=_ACTIVE_SNAPSHOT,
    ),
    index(
        "region_snapshot_replacement_region_unique",
        "old_region_id",
        unique=True,
        where=_ACTIVE_REGION,
    ),
    index(
        "region_snapshot_replacement_operated",
        "operating_saga_id",
        unique=True,
        where=_OPERATED,
    ),
    state="replacement_state",
)

_ACTIVE_STEP = one_of("replacement_state", (_STEP.REQUESTED, _STEP.RUNNING))
_STASHED = "old_snapshot_volume_id IS NOT NULL"

region_snapshot_replacement_step = table(
    "region_snapshot_replacement_step",
    "One volume that still refers to a read-only target that is lost.",
    identifier("id", "Names the step; it holds the volume's lock under this id.", key=True),
    identifier("request_id", "The request that it is part of."),
    moment("request_time", "When the volume was found."),
    identifier("volume_id", "The volume to mend."),
    identifier("old_snapshot_volume_id", "The step's stash volume; may be known before the swap (W45).", nullable=True),
    enumeration("replacement_state", RegionSnapshotReplacementStepState, "How far it is."),
    identifier("operating_saga_id", _OPERATING_SAGA, nullable=True),
    check("held_while_intermediate", _held_while(STEP_INTERMEDIATE)),
    check("no_stash_while_requested", "replacement_state <> 'requested' OR old_snapshot_volume_id IS NULL"),
    check("stash_known_when_complete", "replacement_state <> 'complete' OR old_snapshot_volume_id IS NOT NULL"),
    index("region_snapshot_replacement_step_by_state", "replacement_state", "id"),
    index("region_snapshot_replacement_step_by_request", "request_id", "replacement_state"),
    index("region_snapshot_replacement_step_by_volume", "volume_id"),
    # Safety (W37): the real one promises this and has no such index.
    index(
        "region_snapshot_replacement_step_active_unique",
        "volume_id",
        unique=True,
        where=_ACTIVE_STEP,
    ),
    index(
        "region_snapshot_replacement_step_stash_unique",
        "old_snapshot_volume_id",
        unique=True,
        where=_STASHED,
    ),
    index(
        "region_snapshot_replacement_step_operated",
        "operating_saga_id",
        unique=True,
        where=_OPERATED,
    ),
    state="replacement_state",
)

replacement_waiting = table(
    "replacement_waiting",
    "Why a request does not go on, for who has to know (W2, W54). The row goes when it does.",
    identifier("request_id", "The request.", key=True),
    text("reason", "One sentence."),
    moment("time_since", "Since when that is the reason."),
)

clone_source_refusal = table(
    "clone_source_refusal",
    "A copy that was to be cloned, and is not what its snapshot is: no clone of that request is made from it again.",
    identifier("request_id", "The request.", key=True),
    text("source", "The copy, in words: a region snapshot or a read-only region.", key=True),
    text("reason", "What was found, in one sentence."),
    moment("time_refused", "When."),
)

survivor_decision = table(
    "survivor_decision",
    "An operator's word that the last good copy of a volume is to be believed, although it may have missed writes.",
    identifier("volume_id", "The volume.", key=True),
    identifier("survivor_region_id", "The region that is believed.", key=True),
    moment("time_decided", "When."),
)
