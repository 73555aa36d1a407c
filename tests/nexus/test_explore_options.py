"""Wrong options of ``nexus explore`` are told in a sentence before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from nexus.cli import main as command
from nexus.explore import campaign


@pytest.fixture(autouse=True)
def nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: object, **__: object) -> None:
        raise AssertionError("it began, and the answer would be lost")

    monkeypatch.setattr(campaign, "run", run)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--replay", "delete-disk: something"], "'something' is no interference"),
        (["--replay", "delete-everything"], "there is no scenario 'delete-everything'"),
        (["--scenario", "delete-everything"], "there is no scenario 'delete-everything'"),
        (["--without", "R99"], "R99"),
        (["--processes", "0"], "--processes"),
        (["--every", "0"], "--every"),
        (["--random", "0"], "--random"),
        (["--pairs", "-1"], "--pairs"),
        (["--html", "nowhere/matrix.html"], "nowhere"),
        (["--png", "nowhere/matrix.png"], "nowhere"),
        (["--safeguards", "nowhere/table.md"], "nowhere"),
        (["--html", "."], "is a directory"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_wrong_options_are_told_before_anything_runs(
    options: list[str],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        command.main(["explore", *options])
    shown = capsys.readouterr()
    assert left.value.code in (1, 2)
    assert told in shown.err and "Traceback" not in shown.err
    assert shown.out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_fails_leaves_the_page_of_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "matrix.html"
    page.write_text("the one before")
    with pytest.raises(AssertionError, match="it began"):
        command.main(["explore", "--scenario", "verify", "--html", str(page)])
    assert page.read_text() == "the one before"
    assert list(tmp_path.iterdir()) == [page]
