"""What the explorer found and what was mended: each story ends well for ever."""

from __future__ import annotations

import pytest

from nexus.explore.cases import parse
from nexus.explore.run import run_case

FOUND = {
    "a snapshot of a disk with a lost copy waited for ever, with the lock that the replacement needs": (
        "lose-sled: region-snapshot-replacement-start#SET_SAGA_ID@before-node=snapshot-copy"
    ),
    "a snapshot at a pantry was tried for ever when a copy was lost, with the lock that the replacement needs": (
        "import-disk: finalize-disk-with-snapshot#SET_FINALIZING_STATE@after-effect=expunge-another;"
        " finalize-disk-with-snapshot#SET_FINALIZING_STATE@after-effect=crash"
    ),
    "a disk whose import lost its pantry and a copy at once was never repaired": (
        "import-disk: finalize-disk-with-snapshot#SNAPSHOT/GET_PANTRY_ADDRESS@after-effect=expunge-pantry;"
        " finalize-disk-with-snapshot#SNAPSHOT/GET_PANTRY_ADDRESS@after-effect=crash"
    ),
    "an instance that was stopped before its start was written down halted what it ran in next": (
        "start-guest: instance-start#RECORD_RUNNING@after-effect=restart-guest;"
        " instance-start#RECORD_RUNNING@after-effect=crash"
    ),
    "an image that was made between a swap and its undo names the clone, which was destroyed all the same": (
        "replace-snapshot: region-snapshot-replacement-start#UPDATE_REQUEST_RECORD@before-effect=error;"
        " region-snapshot-replacement-start#REPLACE_SNAPSHOT_IN_VOLUME@before-undo=make-image"
    ),
    "a Nexus that lost its saga before it attached a volume to a pantry attached it, and nobody detached it": (
        "verify: volume-verify#READ_VOLUME@before-effect=second-nexus"
    ),
    "a Nexus that lost its saga before it made a volume made it, and nobody counted on it": (
        "remove-parent: volume-remove-read-only-parent#CREATE_TEMP_VOLUME@before-effect=second-nexus"
    ),
    "a disk whose creation was being undone was taken for a phantom, and came back without being paid for": (
        "import-disk: disk-create-importing#FINALIZE_DISK_RECORD@before-effect=error;"
        " disk-create-importing#CREATE_CRUCIBLE_DISK_RECORD@after-undo-effect=all-tasks"
    ),
}


@pytest.mark.parametrize("case", FOUND.values(), ids=FOUND.keys())
def test_what_was_found_once_is_mended(case: str) -> None:
    outcome = run_case(parse(case))
    assert outcome.result().fired
    assert outcome.violations == [], "\n".join(outcome.story)
