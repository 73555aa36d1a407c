"""Corrections of what the real control plane gets wrong: one row each, which puts the original rule back.

W20 to W55 in nexus.md §10; :mod:`nexus.explore.safeguards.originals` has the original rules. No row is for W46, W48 and
W49, which are about simulators and tests, and none for what is refused (``docs/fidelity.md``). W24, W30 to W33, W42 and
W54 stand beside the safeguards that they belong to.
"""

from __future__ import annotations

from nexus.explore.removal import Removal
from nexus.explore.safeguards import originals
from nexus.explore.safeguards.instead import answers, does_nothing, idle
from nexus.explore.safeguards.sagas import REGION_START, STEP, STEP_COLLECT
from nexus.volumes import TryLocks

STEP_TASK = "task-region-snapshot-replacement-step"

CORRECTIONS: tuple[Removal, ...] = (
    Removal(
        "W2",
        "who waits for a volume's lock gets it before who comes later",
        (
            "nexus.volumes.repair_lock:FairLocks.volume_repair_insert",
            "nexus.volumes.repair_lock:FairLocks.volume_repair_overtake",
        ),
        (lambda original: TryLocks.volume_repair_insert, lambda original: TryLocks.volume_repair_overtake),
        "a user takes one snapshot after another, and the replacement never gets the volume",
        ("busy-disk",),
        ("busy-disk",),
    ),
    Removal(
        "W20",
        "affected volumes are found by their references",
        ("nexus.replacement.affected:affected_volumes",),
        originals.scan,
        "every volume is read for every request, and one that cannot be read stops all replacements",
        ("stranger",),
        ("stranger",),
    ),
    Removal(
        "W34",
        "the node before undoes the making of a new read/write region",
        (f"{REGION_START}:NEW_REGION_ENSURE_UNDO",),
        answers(None),
        "an agent makes the region and says that it failed: it is left there",
        ("replace-region",),
        (f"replace-region: {REGION_START}#NEW_REGION_ENSURE@before-effect=refused-answers",),
    ),
    Removal(
        "W35",
        "an undo takes the region away whose id its saga has drawn",
        (
            "nexus.sagas.region_replacement_start:alloc_new_region",
            "nexus.sagas.region_replacement_start:forget_new_region",
        ),
        (originals.noting_what_was_there, originals.by_comparison),
        "another region of the volume changes meanwhile, two differ, and none is taken away",
        ("replace-region",),
        (
            f"replace-region: {REGION_START}#ALLOC_NEW_REGION@after-record=expunge-another;"
            f" {REGION_START}#ALLOC_NEW_REGION@after-record=task-region-replacement",
        ),
    ),
    Removal(
        "W36",
        "the database refuses a second reference of one volume to one resource",
        ("nexus.db.database:Database.fill",),
        originals.without_index("one_record_per_volume_and_region", "one_record_per_volume_and_snapshot"),
        "a resource is counted twice, and never counted down to none",
        ("create-read-only-disk",),
        covered="a reference is inserted only for a volume that has just been made, or after a look in the same"
        " transaction; and what is dropped or moved must be exactly one row (R14). The index is for code that is wrong:"
        " test_rows_that_may_or_may_not_stand_together",
    ),
    Removal(
        "W37",
        "a volume's active step is looked for, not any of its steps; and it has one",
        ("nexus.replacement.step:active_step", "nexus.db.database:Database.fill"),
        (originals.any_step, originals.without_index("region_snapshot_replacement_step_active_unique")),
        "an old step hides the one that is under way, and another is made beside it",
        ("replace-read-only-region",),
        covered="the step under way holds the volume's lock under its own id, so that another is refused that. What the"
        " original answers is in test_old_step_does_not_hide_the_one_that_is_under_way",
    ),
    Removal(
        "W38",
        "the port that was found by elimination is written down",
        ("nexus.sagas.region_replacement_start!region_record_port",),
        answers(None),
        "the old region can be replaced, and its stash never deleted",
        ("lose-region-without-port",),
        ("lose-region-without-port",),
    ),
    Removal(
        "W39",
        "an undo that deletes a volume destroys what that frees",
        (
            "nexus.sagas.disk_create!undo_volume",
            "nexus.sagas.snapshot_create!undo_volume",
            "nexus.sagas.image_create!undo_volume",
        ),
        originals.nothing_destroyed,
        "the source is deleted meanwhile, the copy is undone, and what both read is left",
        ("create-image", "create-disk"),
        (
            "create-image: image-create#GET_SOURCE_VOLUME@after-record=delete-everything;"
            " image-create#CREATE_IMAGE_RECORD@before-effect=error",
            "create-disk: disk-create#CREATE_VOLUME_RECORD@after-record=delete-everything;"
            " disk-create#FINALIZE_DISK_RECORD@before-effect=error",
        ),
    ),
    Removal(
        "W40",
        "a soft-deleted volume goes with its last region, clones included",
        (
            "nexus.sagas.volume_delete:_forget_regions",
            "nexus.tasks.resume_volume_deletion:ResumeVolumeDeletion.activate",
        ),
        (originals.owners_of_written_ones, idle),
        "the row of a snapshot's volume that owned a clone stays for ever; with W24 out as well, whose task finds it",
        ("replace-snapshot",),
        ("replace-snapshot",),
    ),
    Removal(
        "W41",
        "a request goes on with the successor of its successor",
        ("nexus.replacement.survivors:successor_replaced",),
        answers(None),
        "the new region is lost during the repair, and the request waits for it for ever",
        ("lose-region",),
        (f"lose-region: {REGION_START}#REPLACE_REGION_IN_VOLUME@after-record=expunge-successor",),
    ),
    Removal(
        "W43",
        "the row of a region's snapshot goes after the snapshot",
        ("nexus.sagas.frozen_regions!region_snapshot_give_up",),
        originals.row_first,
        "a region seems to be free of snapshots, and its agent refuses to delete it",
        ("create-snapshot", "create-snapshot-of-guest"),
        covered="nobody can delete the disk meanwhile: it is in maintenance, or kept by its instance, until the"
        " snapshot is whole; and an undo after that deletes the snapshot's volume first, which takes the snapshots away"
        " in the right order. Replacements are kept out by the volume's lock. The order is in"
        " test_rows_of_region_snapshots_go_last",
    ),
    Removal(
        "W44",
        "the node before undoes the asking of a guest's Upstairs for a snapshot",
        ("snapshot-create-attached:SNAPSHOT_REQUEST_UNDO",),
        answers(None),
        "the snapshot is made and the answer says that it failed: it is left with the agents",
        ("create-snapshot-of-guest",),
        (
            "create-snapshot-of-guest: snapshot-create-attached#SEND_SNAPSHOT_REQUEST_TO_SLED_AGENT@before-effect="
            "refused-answers",
        ),
    ),
    Removal(
        "W45",
        "a step's stash is written into the step before it names anything",
        (
            "nexus.sagas.region_snapshot_replacement_step:set_saga_id",
            "nexus.sagas.region_snapshot_replacement_step:update_step_record",
        ),
        (originals.stash_unknown, originals.stash_told_at_the_end),
        "a stash is taken for a volume that is to be mended",
        ("replace-snapshot",),
        (f"replace-snapshot: {STEP}#REPLACE_SNAPSHOT_IN_VOLUME@after-record={STEP_TASK}",),
    ),
    Removal(
        "W47",
        "who attaches a disk to a pantry lets go of it first",
        ("nexus.objects.imports:let_go_first",),
        lambda original: does_nothing,
        "the node runs again with a new document, and the pantry refuses it",
        ("create-snapshot", "import-disk"),
        ("create-snapshot: snapshot-create-detached#CALL_PANTRY_ATTACH@after-effect=crash",),
    ),
    Removal(
        "W50",
        "a dead or different volume is not taken for one's own, and not handed out",
        ("nexus.volumes.rows:volume_create", "nexus.volumes.checkout!require_live"),
        (originals.whatever_is_there, originals.deleted_or_not),
        "a saga goes on with a volume that is deleted",
        ("create-read-only-disk", "create-disk"),
        covered="ids of volumes are drawn by sagas, and who makes or copies a volume asks first, in the same"
        " transaction, whether it is there or its source deleted (R26, R43); a disk that is given to an Upstairs cannot"
        " be deleted. What is refused is in test_a_dead_or_different_volume_is_not_taken_for_ones_own",
    ),
    Removal(
        "W51",
        "a swap is refused where the volume names both targets",
        ("nexus.volumes.replacing:_decided",),
        originals.both_are_well,
        "a set has one member twice, and two good copies",
        ("replace-read-only-region",),
        covered="one successor for two members takes two requests of one snapshot at once, which its lock forbids"
        " (R3, R4), and a clone that both name, while each saga draws its own (W35). What is refused is in"
        " test_a_target_swap_is_refused_when_both_or_neither_are_there",
    ),
    Removal(
        "W52",
        "no request is made for a target that is being destroyed",
        ("nexus.tasks.region_snapshot_replacement_start:lost_region_snapshots",),
        originals.going_as_well,
        "a request for what nobody reads",
        ("lose-sled",),
        covered="such a request finds nothing to replace, waits until the row of its target is gone, and ends then"
        " (edge 11); it costs work. What is asked for is in test_target_that_is_being_destroyed_is_not_asked_for",
    ),
    Removal(
        "W53",
        "a request for a read/write region does not end while that is there",
        ("nexus.sagas.region_replacement_finish:require_old_region_left",),
        answers(None),
        "a region that is never asked for again",
        ("lose-region",),
        covered="the node before deletes the stash, and has destroyed the region or failed; it leaves only one under"
        " snapshots, to who takes the last of these away (R15, R47). What must not be left is in"
        " test_W53_a_request_does_not_end_while_its_region_is_there",
    ),
    Removal(
        "W55",
        "a target is known by what it is, not by its address",
        (
            "nexus.replacement.read_only:target_of",
            "nexus.replacement.affected!has_usage",
            "nexus.replacement.affected!volumes_using",
        ),
        (originals.by_address, originals.used_by_address, originals.used_by_address),
        "the port is given to another snapshot, which is replaced by a copy of something else",
        ("replace-older-snapshot",),
        (
            f"replace-older-snapshot: {STEP_COLLECT}#DELETE_STASH_VOLUME/DELETE_RUNNING_SNAPSHOTS@after-effect="
            f"snapshot-disk; {STEP_COLLECT}#DELETE_STASH_VOLUME/DELETE_RUNNING_SNAPSHOTS@after-effect={STEP_TASK}",
        ),
    ),
)
