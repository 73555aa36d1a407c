"""The narrative of replacements leaves no safeguard out, and what it refers to is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NARRATIVE = (ROOT / "docs" / "replacement.md").read_text(encoding="utf-8")
FIDELITY = (ROOT / "docs" / "fidelity.md").read_text(encoding="utf-8")
SAFEGUARDS, WISHES, DEFECTS = range(1, 50), range(1, 25), range(30, 56)
TESTS = {
    name
    for path in (ROOT / "tests").rglob("*.py")
    for name in re.findall(r"def (test_\w+)", path.read_text(encoding="utf-8"))
}


def test_every_safeguard_has_its_story_and_says_what_kind_it_is() -> None:
    rows = re.findall(r"^\| R(\d+) \*([SLO])\* \| (.+) \| (.+) \|$", NARRATIVE, flags=re.MULTILINE)
    assert sorted(int(number) for number, *_ in rows) == list(SAFEGUARDS)
    assert all(len(safeguard) > 10 and len(story) > 10 for _, _, safeguard, story in rows)


def test_every_wish_and_defect_is_settled() -> None:
    """Built, with tests that exist; or refused, or not met here, with the reason."""
    rows = re.findall(r"^\| W(\d+) \| (.+) \| (.+) \| (.+) \|$", FIDELITY, flags=re.MULTILINE)
    assert [int(number) for number, *_ in rows] == [*WISHES, *DEFECTS]
    for number, _, here, shown in rows:
        named = re.findall(r"`(test_\w+)`", shown)
        assert set(named) <= TESTS, f"W{number}: {set(named) - TESTS}"
        assert here.startswith(("built", "refused", "does not arise")), f"W{number}"
        assert named or not here.startswith("built") or "nexus explore" in shown or "`docs/" in shown, f"W{number}"


@pytest.mark.parametrize("text", [NARRATIVE, FIDELITY], ids=["replacement.md", "fidelity.md"])
def test_files_that_are_named_exist(text: str) -> None:
    named = set(re.findall(r"`((?:nexus|docs|tests)/[\w/]+\.\w+)`", text))
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_links_within_the_narrative_lead_somewhere() -> None:
    titles = re.findall(r"^#+ (.+)$", NARRATIVE, flags=re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
    assert set(re.findall(r"\]\(#([\w-]+)\)", NARRATIVE.replace("\n", " "))) <= anchors
