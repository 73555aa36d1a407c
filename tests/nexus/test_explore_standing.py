"""A run that goes no further, for nothing changed, comes to what it comes to in full, to the last byte of its trace."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import chain
from types import SimpleNamespace

import pytest

from nexus.explore import plan
from nexus.explore.rack import Thing
from nexus.explore.results import Result
from nexus.explore.run import forget_states, run_case, run_cases
from nexus.explore.scenarios import SCENARIOS
from nexus.explore.state import digest_of


@pytest.mark.parametrize(("name", "every"), [("create-image", 9), ("delete-disk", 90)])
def test_a_run_that_goes_no_further_comes_to_what_it_comes_to_in_full(
    name: str, every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenario = SCENARIOS[name]
    singles = plan.every_nth(plan.one(scenario), every)
    cases = list(chain(singles, plan.every_nth(plan.pairs(scenario, 1, 5), every // 2)))
    cut_short: list[str] = []
    alike = Result.with_nothing_more

    def noted(self: Result, *arguments: object) -> Result:
        cut_short.append(self.case)
        return alike(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Result, "with_nothing_more", noted)
    short = run_cases(cases)
    forget_states()
    in_full = [run_case(case).result() for case in cases]
    assert short == in_full
    assert [each.trace for each in short] == [each.trace for each in in_full]
    assert cut_short or name != "create-image", "something was refused"


def test_states_with_the_same_bytes_and_other_promises_are_two() -> None:
    """Else a write that was told and lost would pass for one that nobody ever made."""
    rack = SimpleNamespace(
        now=lambda: datetime(2026, 1, 1, tzinfo=UTC),
        run=lambda body: [],
        fabric=SimpleNamespace(sleds=[], wrong_orders=[]),
        switchboard=SimpleNamespace(pantries={}, hosts={}),
        things={"disk": Thing("disk", "disk", "d", own={3: b"old"})},
    )
    before = digest_of(rack)  # type: ignore[arg-type]
    assert before == digest_of(rack)  # type: ignore[arg-type]
    rack.things["disk"].note(3, b"new")
    assert before != digest_of(rack)  # type: ignore[arg-type]
    rack.things["disk"].own[3] = b"old"
    assert before == digest_of(rack)  # type: ignore[arg-type]
    rack.things["disk"].either[3] = frozenset({b"new"})
    assert before != digest_of(rack)  # type: ignore[arg-type]
