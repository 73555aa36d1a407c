"""``python -m bench compare``: what changed, what is noise, and what cannot be compared."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bench import __main__ as command
from bench.compare import compared, differences
from bench.results import Results, write
from bench.rounds import Failure
from bench.subjects import MEMORY, OURS, PEER

LINE, OTHER = "randwrite-4k-qd16", "randread-4k-qd16"


def test_a_machine_twice_as_fast_changes_nothing(results_of: Callable[..., Results]) -> None:
    first = results_of({(LINE, OURS): [300.0, 330.0], (LINE, PEER): [100.0, 100.0]})
    second = results_of({(LINE, OURS): [600.0, 660.0], (LINE, PEER): [200.0, 200.0]})
    (found,) = compared(first, second, PEER)
    assert (found.line, found.subject) == (LINE, OURS)
    assert found.change is not None
    assert found.change.median == 1.0
    assert found.word == "within the noise"


@pytest.mark.parametrize(
    ("after", "word"),
    [([300.0, 310.0], "faster"), ([100.0, 110.0], "slower"), ([190.0, 400.0], "within the noise")],
)
def test_a_change_is_one_where_the_ranges_do_not_touch(
    results_of: Callable[..., Results], after: list[float], word: str
) -> None:
    first = results_of({(LINE, OURS): [180.0, 200.0], (LINE, PEER): [100.0, 100.0]})
    second = results_of({(LINE, OURS): after, (LINE, PEER): [100.0, 100.0]})
    (found,) = compared(first, second, PEER)
    assert found.word == word
    assert found.change is not None
    extremes = (found.change.low, found.change.high)
    assert (found.change.median, *extremes) == pytest.approx((sum(after) / 380, after[0] / 200, after[1] / 180))


def test_one_round_shows_no_noise(results_of: Callable[..., Results]) -> None:
    first = results_of({(LINE, OURS): [180.0], (LINE, PEER): [100.0]})
    (found,) = compared(first, first, PEER)
    assert found.word == "one round: noise unknown"


def test_what_only_one_run_has_is_named(results_of: Callable[..., Results]) -> None:
    first = results_of({(line, name): [9.0, 9.0] for line in (LINE, OTHER) for name in (OURS, PEER)})
    second = results_of({(LINE, name): [9.0, 9.0] for name in (OURS, PEER, MEMORY)})
    words = {(each.line, each.subject): each.word for each in compared(first, second, PEER)}
    assert words == {
        (LINE, OURS): "within the noise",
        (LINE, MEMORY): "not measured in A",
        (OTHER, OURS): "not measured in B",
    }


def test_differences_of_the_runs_are_told(results_of: Callable[..., Results]) -> None:
    first = results_of({(LINE, OURS): [9.0]}, failures=(Failure(LINE, OURS, 1, "it fell over"),))
    second = dataclasses.replace(results_of({(LINE, OURS): [9.0]}), commit=None, programs={"fio": "fio-4"})
    assert differences(first, second) == [
        f"commit: A {'a' * 40}; B unknown",
        "fio: A fio-3.33; B fio-4",
        f"A: failed: {OURS}, round 2: {LINE}: it fell over",
    ]
    assert differences(second, second) == []


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(command.app, ["compare", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def test_the_command(results_of: Callable[..., Results], tmp_path: Path) -> None:
    for name, rate in (("a", 100.0), ("b", 200.0)):
        (tmp_path / name).mkdir()
        write(results_of({(LINE, OURS): [rate, rate], (LINE, PEER): [100.0, 100.0]}), tmp_path / name)
    code, output = run(tmp_path / "a", tmp_path / "b" / "results.json", "--json", tmp_path / "changes.json")
    assert code == 0
    assert "faster" in output
    (change,) = json.loads((tmp_path / "changes.json").read_text())
    assert (change["subject"], change["change"]["median"], change["verdict"]) == (OURS, 2.0, "faster")
    code, output = run(tmp_path / "a", tmp_path / "b", "--peer", MEMORY)
    assert code == 1
    assert f"A has no figures of {MEMORY}; --peer names another one" in output


def test_wrong_files_are_refused(results_of: Callable[..., Results], tmp_path: Path) -> None:
    write(results_of({(LINE, OURS): [1.0]}), tmp_path)
    (tmp_path / "x").write_text("{}")
    code, output = run(tmp_path, tmp_path / "x")
    assert code == 2
    assert "holds no results of 'bench run'" in output
    assert run(tmp_path / "nowhere", tmp_path)[0] == 2
    code, output = run(tmp_path, tmp_path, "--json", tmp_path / "no" / "x")
    assert code == 2
    assert "there is no folder" in output
