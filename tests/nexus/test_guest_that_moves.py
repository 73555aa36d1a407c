"""R30 on the tables alone: no saga knows yet of a guest that moves."""

from __future__ import annotations

from datetime import timedelta

from nexus.db.schema import VmmState
from nexus.explore.without import removed
from nexus.replacement import driving
from nexus.replacement.driving import Check, Prepared, VmmFacts
from nexus.replacement.owners import Situation


def test_a_guest_that_moves_is_not_told() -> None:
    moves = VmmFacts("asked", "asked", VmmState.RUNNING, True, timedelta(0))

    def told() -> tuple[Prepared, Check]:
        return driving.next_asked(Situation.MIGRATING, others_turn=False), driving.check_vmm(moves)

    assert told() == (Prepared.NOBODY, Check.WAIT)
    with removed("R30"):
        assert told() == (Prepared.PROPOLIS, Check.LAST_STEP_STILL_RUNNING)
