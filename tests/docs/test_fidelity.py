"""Every difference from the real system that is written down names a test, and the test exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ENTRIES = re.split(r"^### ", (ROOT / "docs" / "fidelity.md").read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
TESTS = {
    name
    for path in (ROOT / "tests").rglob("*.py")
    for name in re.findall(r"def (test_\w+)", path.read_text(encoding="utf-8"))
}


def test_each_suspected_defect_is_settled_and_the_tests_named_exist() -> None:
    text = (ROOT / "docs" / "fidelity.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \|(.*)$", text, flags=re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 21))
    named = {name for _, row in rows for name in re.findall(r"`(test_\w+)`", row)}
    assert named <= TESTS, named - TESTS
    titles = {entry.partition("\n")[0] for entry in ENTRIES}
    assert {title for _, row in rows for title in re.findall(r"\*([^*]+)\*", row)} <= titles


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.partition("\n")[0])
def test_each_entry_is_complete_and_its_tests_exist(entry: str) -> None:
    for line in ("Real system", "Here", "Why", "Seen by", "Test"):
        assert f"- **{line}**: " in entry, f"the line {line!r} is missing"
    (tests,) = re.findall(r"^- \*\*Test\*\*: (.*)$", entry, flags=re.MULTILINE)
    named = re.findall(r"`([^`]+)`", tests)
    assert named, "no test is named"
    for name in named:
        if name.startswith("test_"):
            assert name in TESTS, f"{name} does not exist"
        elif name.startswith("tests/"):
            assert (ROOT / name).exists(), f"{name} does not exist"
