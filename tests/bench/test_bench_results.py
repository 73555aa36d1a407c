"""``results.json``: what is written is read back; what is none is refused in a sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.results import Noise, Results, ResultsError, read, write
from bench.rounds import Failure
from bench.subjects import OURS, PEER

LINE = "randwrite-4k-qd16"
RATES = {(LINE, OURS): [300.0, 360.0], (LINE, PEER): [100.0, 90.0]}


def test_all_of_it_comes_back(results_of: Callable[..., Results], tmp_path: Path) -> None:
    made = results_of(
        RATES,
        failures=(Failure("read-1m-qd4", OURS, 1, "it fell over"),),
        absent={"nbdkit-file": "nbdkit is not installed (Debian package nbdkit)"},
        disqualified={"nbdkit-memory": "verify: bad magic header"},
    )
    write(made, tmp_path)
    assert read(tmp_path) == made
    assert read(tmp_path / "results.json") == made
    assert made.measured == [OURS, PEER]


def test_noise_is_the_spread_of_rates_and_of_ratios(results_of: Callable[..., Results]) -> None:
    # Rates: 60 of 330 and 10 of 95; ratios: 3 and 4, median 3.5.
    assert results_of(RATES).noise == Noise(round((60 / 330 + 10 / 95) / 2, 3), round(1 / 3.5, 3))
    assert results_of({(LINE, OURS): [300.0]}).noise == Noise(None, None)


def test_the_command_asks_the_same_again(results_of: Callable[..., Results]) -> None:
    command = results_of(RATES).asked.command
    assert command.startswith("python -m bench run --rounds 2 --seconds 1 --size-mib 64 ")
    assert f"--subjects {OURS} --against {PEER} --lines randwrite-4k-qd1,{LINE}," in command


def test_complaints_are_cleaned(results_of: Callable[..., Results]) -> None:
    found = results_of(
        RATES,
        failures=(Failure(LINE, OURS, 0, "secret failure"),),
        absent={"nbdkit-file": "secret absence"},
        disqualified={"nbdkit-memory": "secret loss"},
        clean=lambda text: text.replace("secret", "…"),
    )
    assert [one.reason for one in found.failures] == ["… failure"]
    assert found.absent == {"nbdkit-file": "… absence"}
    assert found.disqualified == {"nbdkit-memory": "… loss"}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "holds no results of 'bench run' (Invalid JSON"),
        ("[1, 2]", "holds no results of 'bench run' ("),
        ('{"kind": "something else"}', "(kind: Input should be 'bench run')"),
        ("\xff", "holds no results of 'bench run' ("),
    ],
)
def test_what_holds_no_results_is_refused_by_name(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(ResultsError) as refused:
        read(path)
    assert str(path) in str(refused.value)
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)


def test_another_version_is_refused_and_so_is_what_is_not_there(
    results_of: Callable[..., Results], tmp_path: Path
) -> None:
    write(results_of(RATES), tmp_path)
    path = tmp_path / "results.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 2}))
    with pytest.raises(ResultsError, match=r"\(version: Input should be 1\)"):
        read(tmp_path)
    with pytest.raises(ResultsError, match=r"nowhere cannot be read \(no such file or directory\)"):
        read(tmp_path / "nowhere")
