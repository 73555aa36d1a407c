"""Every behaviour that the real project's tests show has a test here that exists, or a reason why it has none."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SECTIONS = tomllib.loads((ROOT / "docs" / "conformance.toml").read_text(encoding="utf-8"))["section"]
ROWS = [row for section in SECTIONS for row in section["row"]]
TESTS = {
    name
    for path in (ROOT / "tests").rglob("test_*.py")
    for name in re.findall(r"def (test_\w+)", path.read_text(encoding="utf-8"))
}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["real"][0])
def test_each_behaviour_is_shown_by_tests_that_exist_or_has_a_reason(row: dict[str, Any]) -> None:
    assert set(row) <= {"real", "behaviour", "tests", "note", "reason"}
    assert row["real"] and row["behaviour"].endswith(".")
    assert ("tests" in row) != ("reason" in row), "either tests, or a reason why there are none"
    assert row.get("tests") or row.get("reason"), "empty"
    for name in row.get("tests", ()):
        assert name in TESTS, f"{name} does not exist"


def test_every_section_is_there_in_its_order() -> None:
    numbers = [section["number"] for section in SECTIONS]
    nexus = [f"nexus 9.{number}" for number in range(2, 9)]
    assert numbers == [*(f"17.{number}" for number in range(1, 15)), "agent", *nexus]


def test_no_behaviour_of_the_real_project_stands_in_two_rows_of_a_section() -> None:
    for section in SECTIONS:
        names = [name for row in section["row"] for name in row["real"]]
        assert len(names) == len(set(names)), section["number"]
