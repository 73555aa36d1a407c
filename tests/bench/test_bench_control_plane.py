"""``python -m bench control-plane``: its crowd is a sound database, and what it counts is the same on every run."""

from __future__ import annotations

import pytest

from bench.control_plane import FIRST_PAGE, PAGES, run, summary
from bench.crowd import Crowd
from nexus.db import Database
from nexus.volumes import invariants


def test_a_crowd_holds_every_invariant() -> None:
    with Database.open("sqlite://", inline=True) as database:
        Crowd(database).build(disks=40, snapshots=60, deleted=10, dependents=5)
        assert database.transact_blocking(lambda c: [str(each) for each in invariants.check(c, at_rest=True)]) == []


def test_what_an_operation_touches_does_not_grow_with_what_it_does_not_concern() -> None:
    """Steps of the database's machine: a count, not a time."""
    found = run(None, 400, 400, 3)
    assert set(found["operations"]) == {"disk create", "volume delete", *PAGES}
    assert len(summary(found)) == 6
    for name, costs in found["operations"].items():
        assert costs["ratio"]["touched"] < 1.5, f"{name}: {costs}"
        assert costs["ratio"]["statements"] == pytest.approx(1, abs=0.1)
    assert found["operations"][FIRST_PAGE]["crowded"]["touched"] > 0
