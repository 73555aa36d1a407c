"""The rates of services: what is printed, what a failure is, and small runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bench import __main__ as command
from bench import region_rates, saga_rate, services
from bench.rate import Rate, RateError


def good(extent: services.Extent, folder: Path) -> list[Rate]:
    return [Rate("snapshots", "a second", 8.0, "a plain copy", 16.0, 0.5), Rate("sagas", "a second", 40.0)]


def bad(extent: services.Extent, folder: Path) -> list[Rate]:
    raise RateError("The explorer tried no case.")


@pytest.fixture
def measures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "MEASURES", {"bad": bad, "good": good})


def test_what_fails_is_named_and_the_rest_is_measured(measures: None, tmp_path: Path) -> None:
    result = CliRunner().invoke(command.app, ["services", "--out", str(tmp_path)])
    assert result.exit_code == 1
    assert "snapshots: 8 a second; a plain copy 16 (0.50)\nsagas: 40 a second\n" in result.output
    assert "failed: bad: The explorer tried no case." in result.output
    document = json.loads((tmp_path / "services.json").read_text())
    assert [rate["ratio"] for rate in document["rates"]] == [0.5, None]
    assert document["failures"] == ["bad: The explorer tried no case."]
    assert CliRunner().invoke(command.app, ["services", "--only", "good"]).exit_code == 0
    refused = CliRunner().invoke(command.app, ["services", "--only", "speed"])
    assert refused.exit_code == 2
    assert "--only does not know 'speed'; there are bad, good." in refused.output


def test_what_the_explorer_says() -> None:
    assert services.parse_explored('{"runs": 30, "seconds": 1.5}', "").value == 20
    for output, errors, sentence in (
        ("", "it broke", "cannot be read: it broke"),
        ('{"runs": 30}', "", "it wrote nothing"),
        ('{"runs": 0, "seconds": 1.0}', "", "tried no case"),
    ):
        with pytest.raises(RateError, match=sentence):
            services.parse_explored(output, errors)


def test_a_region_is_copied_three_ways_and_left_alone(tmp_path: Path) -> None:
    snapshots, clones = region_rates.rates(tmp_path, 16, 1)
    for rate in (snapshots, clones):
        assert rate.value > 0
        assert rate.ratio is not None
        assert rate.beside_value is not None
        assert rate.ratio == pytest.approx(rate.value / rate.beside_value)
    assert [path.name for path in tmp_path.iterdir()] == ["region"], "what was made is gone"
    with pytest.raises(RateError, match="take a multiple"):
        region_rates.rates(tmp_path, 15, 1)


def test_sagas_are_counted_in_memory_and_in_a_file(tmp_path: Path) -> None:
    in_memory, in_file = saga_rate.rates(tmp_path, 1, 1)
    assert in_memory.value > 0
    assert in_file.ratio is not None
    assert in_file.ratio > 0
    assert (tmp_path / "nexus.db").exists()
