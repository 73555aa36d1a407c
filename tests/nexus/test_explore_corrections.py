"""Corrections of the real control plane, taken out: the original rule in the place of ours is found out, or shown to be
doubled by something else. What the explorer cannot show is tried on rows."""

from __future__ import annotations

import pytest
from volumes_rig import Rack, stash

from nexus.db import Database
from nexus.explore.cases import parse
from nexus.explore.run import prepare, run_case
from nexus.explore.safeguards.corrections import CORRECTIONS
from nexus.explore.without import removals, removed
from nexus.saga import ActionFailed
from nexus.sagas.region_replacement_finish import Params, require_old_region_left

FOUND = {
    "W20": "MalformedVolume",
    "W34": "of which there is no row",
    "W35": "I5",
    "W39": "is to be destroyed, and no saga does it",
    "W40": "left: 1 rows in volume",
    "W44": "there is no row of it",
    "W45": "which is a stash",
    "W47": "wrong order",
    "W55": "shows something else than was written",
}
"""What the first predicted case finds. Those that wait for ever (W33, W38, W41) take longer, and are tried with the
table of all safeguards."""


@pytest.fixture(scope="module", autouse=True)
def prepared() -> None:
    prepare()


@pytest.mark.parametrize("correction", FOUND)
def test_the_original_rule_is_found_out(correction: str) -> None:
    case = parse(removals()[correction].predicted[0])
    with removed(correction):
        without = run_case(case)
    assert any(FOUND[correction] in each for each in without.violations), without.violations
    assert run_case(case).violations == [], "it is back"


def test_each_correction_is_predicted_or_doubled() -> None:
    for each in CORRECTIONS:
        assert each.predicted or each.covered, each.safeguard


def test_W40_is_doubled_by_the_task_that_goes_on_with_deletions() -> None:
    """The row goes as soon as its last region does, or a while later: with W24 alone taken out, nothing is missing."""
    case = parse(removals()["W40"].predicted[0])
    with removed("W24"):
        assert run_case(case).violations == []


def test_W2_whoever_waits_has_its_turn() -> None:
    """A replacement is asked for while one snapshot after another is taken; under the original rule in vain. (Under
    ours the scenario ends well by itself, as all do.)"""
    with removed("W2"):
        (found, *_) = run_case(parse("busy-disk")).violations
    assert "a snapshot came first each time" in found


# -- what is doubled --------------------------------------------------------------------------------------------------


@pytest.fixture
def rack(in_memory: Database) -> Rack:
    made = Rack(in_memory, checked=False)
    for _ in range(5):
        made.add_sled()
    return made


def test_W53_a_request_does_not_end_while_its_region_is_there(rack: Rack) -> None:
    """It may stay with its stash, under a snapshot. The original looks at none of this."""
    disk = rack.disk()
    old = disk.regions[0]
    about = Params(request_id=rack.id(), volume_id=rack.id(), old_region_id=old, stash_id=disk.volume_id)
    snapshot = rack.snapshot(disk)

    with pytest.raises(ActionFailed, match="is still there"):
        rack.run(require_old_region_left, about)
    rack.delete(disk.volume_id)
    rack.run(require_old_region_left, about)
    elsewhere = about.model_copy(update={"stash_id": stash(rack)})
    with pytest.raises(ActionFailed, match="is still there"):
        rack.run(require_old_region_left, elsewhere)
    rack.finish_delete(snapshot.volume_id, rack.delete(snapshot.volume_id))
    rack.run(require_old_region_left, about)
