"""A disk loses a copy while it is taken to a pantry: nobody waits for what does not come, however often Nexus dies."""

from __future__ import annotations

import math

import pytest

from nexus.explore.cases import parse
from nexus.explore.run import run_case
from nexus.services import pantries

CASE = (
    "create-snapshot: snapshot-create-detached#CALL_PANTRY_ATTACH@before-effect=expunge-another;"
    " snapshot-create-detached#CALL_PANTRY_ATTACH@before-effect=crash"
)


def test_a_snapshot_gives_the_lock_back_when_a_copy_was_lost_before_the_attach(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patience in one process says nothing where processes die: here it has no end."""
    monkeypatch.setattr(pantries, "ACTIVATION_TIMEOUT_S", math.inf)
    outcome = run_case(parse(CASE))
    assert outcome.result().fired
    assert outcome.violations == [], "\n".join(outcome.story)
