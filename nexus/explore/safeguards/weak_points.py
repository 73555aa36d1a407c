"""What was mended of the weak points that authors of the real one name (W1 to W24), and can be taken out.

Of the others that are built, W1 is the explorer itself; W3 to W7, W22 and W23 are words, drawings and checks; W14 is
how a question is put; W21 is the engine, by which everything here waits. W2 and W20 are among the corrections, W24
among the deletions.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection

from nexus.explore.removal import Removal
from nexus.explore.safeguards.instead import answers
from nexus.objects.refusals import CONFLICT
from nexus.replacement.owners import Owner, Situation
from nexus.saga import ActionFailed
from nexus.services.refusals import REFUSED
from nexus.volumes import Address
from nexus.volumes.refusals import BrokenInvariant
from nexus.volumes.resolution import Resource


def _gone_is_an_error(original: Any) -> Any:
    def found(connection: Connection, address: Address) -> Resource:
        resource: Resource | None = original(connection, address)
        if resource is None:
            raise BrokenInvariant(f"there is nothing at {address}")
        return resource

    return found


def _no_import(original: Any) -> Any:
    """Nobody asks the pantry of an import."""

    async def asked(world: Any, pantry: Address, disk_id: str, volume_id: str, target: Address) -> Any:
        raise ActionFailed(f"disk {disk_id} is being imported", REFUSED)

    return asked


def _disks_alone(original: Any) -> Any:
    """What could own a volume but a disk is an error."""

    def owner(connection: Connection, volume_id: str) -> Owner:
        found: Owner = original(connection, volume_id)
        if found.situation in (Situation.DESTINATION, Situation.UNKNOWN):
            raise ActionFailed(f"nobody knows what owns volume {volume_id}", CONFLICT)
        return found

    return owner


WEAK_POINTS: tuple[Removal, ...] = (
    Removal(
        "W8",
        "a region of the other kind is refused when it is asked for",
        ("nexus.replacement.region:require_written_to",),
        answers(None),
        "a request that no saga can go on with",
        (),
        (
            "replace-read-only-region: region-snapshot-replacement-finish#UPDATE_REQUEST_RECORD@after-record="
            "ask-for-the-wrong-kind",
        ),
        covered="such a request ends at once, for its region is no member that the volume writes to (R46; with that"
        " taken out as well it waits for ever). What is lost is the operator's answer:"
        " `test_W8_who_asks_for_the_wrong_kind_is_told`",
    ),
    Removal(
        "W9",
        "a disk that is being imported is repaired by its pantry",
        ("nexus.sagas.upstairs_repair:import_asked",),
        _no_import,
        "the request waits until the import ends",
        ("import-disk",),
        (
            "import-disk: disk-create-importing#FINALIZE_DISK_RECORD@after-record=expunge-another;"
            " disk-create-importing#FINALIZE_DISK_RECORD@after-record=crash",
        ),
    ),
    Removal(
        "W10",
        "an instance that has told nothing for long is asked again",
        ("nexus.replacement.driving:too_long_silent",),
        answers(False),
        "its notification was lost, it serves for years, and the request with the volume's lock lasts as long",
        ("lose-notification",),
        ("lose-notification",),
    ),
    Removal(
        "W11",
        "whose a volume is is one of the words of a table",
        ("nexus.replacement.owners:owner_of",),
        _disks_alone,
        "the region of a volume that is no disk's is lost, and never replaced",
        ("create-snapshot",),
        ("create-snapshot: snapshot-create-detached#LOOK_AT_DISK@before-node=expunge-another",),
    ),
    Removal(
        "W12",
        "a volume is handed out for the migration that is recorded",
        ("nexus.volumes.checkout:_not_this_migration",),
        answers(None),
        "a takeover by a process of which its instance does not know",
        covered="guests of the light rack do not move: `test_who_may_check_out_what`",
    ),
    Removal(
        "W13",
        "a target that is gone with its reference does not keep a volume",
        ("nexus.volumes.deletion!read_only_target_to_resource",),
        _gone_is_an_error,
        "a volume that nobody can delete",
        (),
        ("delete-disk", "delete-snapshot"),
        covered="what a volume names has a reference, and what has a reference has a row (I1), so that only rows that"
        " were lost bring it about: `test_a_target_whose_resource_and_usage_are_gone_does_not_keep_a_volume`",
    ),
)
