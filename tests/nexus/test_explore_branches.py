"""Cases that are run together come to what they come to alone, to the last byte of their traces."""

from __future__ import annotations

import os
from itertools import chain
from typing import Any

import pytest

from nexus.explore import plan, run
from nexus.explore.branches import Branches, NothingChanged
from nexus.explore.cases import Case
from nexus.explore.run import forget_states, run_case, run_cases
from nexus.explore.scenarios import SCENARIOS


@pytest.mark.parametrize(
    ("name", "every", "some_change_nothing"), [("create-image", 9, True), ("delete-disk", 90, False)]
)
def test_cases_run_together_come_to_what_they_come_to_alone(
    name: str, every: int, some_change_nothing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenario = SCENARIOS[name]
    singles = plan.every_nth(plan.one(scenario), every)
    cases = list(chain(singles, plan.every_nth(plan.pairs(scenario, 1, 5), every // 2)))
    told: list[Any] = []
    fork = Branches._fork

    def noted(self: Branches, *arguments: Any) -> Any:
        told.append(fork(self, *arguments))
        return told[-1]

    monkeypatch.setattr(Branches, "_fork", noted)
    forget_states()
    together = run_cases(cases)
    forget_states()
    alone = [run_case(case).result() for case in cases]
    assert together == alone
    assert [each.trace for each in together] == [each.trace for each in alone]
    assert any(isinstance(each, NothingChanged) for each in told) is some_change_nothing
    assert len(told) < len(cases), "some cases have a beginning in common"


def test_a_branch_that_dies_is_no_result(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    first, digest_of = os.getpid(), run.digest_of

    def dying(rack: Any) -> Any:
        if os.getpid() != first:
            raise SystemExit("out of memory")
        return digest_of(rack)

    monkeypatch.setattr(run, "digest_of", dying)
    cases = [Case("create-image"), *(each for each in plan.one(SCENARIOS["create-image"]) if "=crash" in str(each))][:2]
    with pytest.raises(BaseExceptionGroup) as caught:
        run_cases(cases)
    assert "BranchDied" in repr(caught.value)
    assert "out of memory" in capfd.readouterr().err
