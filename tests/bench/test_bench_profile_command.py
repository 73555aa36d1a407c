"""``python -m bench profile``: what it says and writes, with made-up runs and once for real."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bench import fio, layers, profiling
from bench.__main__ import app
from bench.lines import MIB, QUICK
from bench.profiling import DISKS, Profile, ProfileError, Run, folded, headline, heaviest, interpreter_of, observed
from bench.sampled import MAIN_THREAD, OTHER_THREADS, SAMPLER
from bench.subjects import OURS, Absent, Place

PARSE, SYNC = "crucible_emu.nbd.transmission:Intake.parse", "crucible_emu.region.storage:OsStorage.sync_files"
STACKS = [
    ((MAIN_THREAD, "trio:run", PARSE), 4e9),
    ((MAIN_THREAD, "trio:run", PARSE, "[Request]"), 2e9),
    ((OTHER_THREADS, SYNC, "[os.fdatasync]"), 3e9),
    ((SAMPLER,), 1e9),
    ((MAIN_THREAD, "a:b"), 400.0),
]
PROFILE = Profile(
    OURS,
    "randwrite-4k-qd16",
    10.0,
    256,
    "a machine",
    Run(40_000.0, 400_000, 20.0, 0.3),
    Run(38_000.0, 500_000, 20.0, 0.25),
    Run(41_000.0, 410_000, 20.0, 0.3),
    2_500,
    STACKS,
)
ARGUMENTS = ["profile", "randwrite-4k-qd16", "--seconds", "1"]


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """No server and no fio: the profile above. Who was asked is noted."""
    asked: list[tuple[object, ...]] = []

    def run(subject, line, seconds, size_mib, folder, machine) -> Profile:
        asked.append((subject.name, line.name, seconds, size_mib))
        return PROFILE

    monkeypatch.setattr(profiling, "run", run)
    monkeypatch.setattr("bench.questions.find_program", lambda name: f"/usr/bin/{name}")
    return asked


def test_table_adds_up_and_cost_of_profiling_stands_beside_it() -> None:
    text = profiling.markdown(PROFILE)
    assert "| receive and parse | 12.00 | 60.0% | 0.00 | Larger batches; fewer objects for each request. |" in text
    assert "| kernel: sync files | 6.00 | 30.0% | 6.00 |" in text
    assert "| **all** | **20.00** | **100.0%** | **6.00** |" in text
    assert "region: write" not in text
    assert f"| `{PARSE} [Request]` | receive and parse | 4.00 |" in text
    assert "With profiling 38,000 operations a second and 20.00 µs each" in text
    assert "before and after it, 40,000 and 41,000" in text
    assert "0.94 of the rate, 1.00 of the CPU time" in text
    assert "2,500 samples account for 100% of that CPU time." in text
    assert "25% of it in the kernel" in text


def test_few_samples_are_called_few() -> None:
    fewer = Profile(**{name: getattr(PROFILE, name) for name in PROFILE.__dataclass_fields__} | {"samples": 80})
    assert any("--seconds 125 or more" in sentence for sentence in headline(fewer))
    assert not any("few" in sentence for sentence in headline(PROFILE))


def test_heaviest_function_comes_first_and_carries_its_call() -> None:
    assert heaviest(PROFILE, 2) == [
        (PARSE, layers.RECEIVE, pytest.approx(8.0)),
        (f"{SYNC} [os.fdatasync]", layers.K_SYNC, pytest.approx(6.0)),
    ]


def test_stacks_are_written_folded() -> None:
    assert folded(STACKS).splitlines() == [
        f"{MAIN_THREAD};trio:run;{PARSE} 4000000",
        f"{MAIN_THREAD};trio:run;{PARSE};[Request] 2000000",
        f"{OTHER_THREADS};{SYNC};[os.fdatasync] 3000000",
        f"{SAMPLER} 1000000",
    ]


def test_command_writes_what_it_says(made_up: list[tuple[object, ...]], tmp_path: Path) -> None:
    out = tmp_path / "new" / "folder"
    result = CliRunner().invoke(app, [*ARGUMENTS, "--out", str(out), "--size-mib", "32"])
    assert result.exit_code == 0, result.output
    assert made_up == [(OURS, "randwrite-4k-qd16", 1.0, 32)]
    assert "| receive and parse | 12.00 | 60.0% | 0.00 |" in result.output
    assert {path.name for path in out.iterdir()} == {"profile.json", "profile.md", "flame.svg", "stacks.txt"}
    record = json.loads((out / "profile.json").read_text())
    assert sum(row["cpu_us"] for row in record["layers"]) == pytest.approx(record["profiled"]["cpu_us"])
    assert (record["before"]["iops"], record["accounted"], record["samples"]) == (40_000, 1.0, 2_500)
    assert "stacks" not in record


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["profile", "swim"], "No line is called 'swim'; there are randwrite-4k-qd1,"),
        (["profile", "randread-4k-*"], "'randread-4k-*' names several lines: name one."),
        (["profile", "randread-512-qd1"], "does not serve blocks of 512 bytes: take --disk crucible-emu-512."),
        (["profile", "read-1m-qd4", "--disk", "ceph"], "--disk does not know 'ceph'; there are crucible-emu,"),
    ],
)
def test_wrong_question_is_refused(made_up, tmp_path: Path, arguments: list[str], sentence: str) -> None:
    result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path)])
    assert (result.exit_code, made_up) == (2, [])
    assert sentence in result.output


def test_folder_that_cannot_be_written_is_refused_first(made_up, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = CliRunner().invoke(app, [*ARGUMENTS, "--out", str(tmp_path / "file" / "out")])
    assert (result.exit_code, made_up) == (2, [])
    assert "nothing can be written there (not a directory)" in result.output


@pytest.mark.parametrize(
    "problem", [Absent("it did not start"), fio.FioError("fio failed"), ProfileError("no samples")]
)
def test_failed_run_is_a_sentence(made_up, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem: Exception) -> None:
    def fail(*_: object) -> Profile:
        raise problem

    monkeypatch.setattr(profiling, "run", fail)
    result = CliRunner().invoke(app, [*ARGUMENTS, "--out", str(tmp_path)])
    assert result.exit_code == 1
    assert f"bench: {problem}" in result.output


def test_sampler_takes_the_commands_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / OURS
    program.write_text("#!/opt/env/bin/python3.11\n")
    monkeypatch.setattr(profiling, "find_program", lambda name: str(program))
    place = Place(Path("/disk"), Path("/s"), 64 * MIB)
    plain, sampled = DISKS[OURS].command(place), observed(DISKS[OURS]).command(place)
    assert sampled[:2] == ["/opt/env/bin/python3.11", "-P"]
    assert sampled[3:5] == ["/disk/samples.json", str(program)]
    assert sampled[5:] == plain[1:]
    program.write_text("#!/bin/sh\n")
    with pytest.raises(ProfileError, match="is no Python program of an environment"):
        interpreter_of(program)
    monkeypatch.setattr(profiling, "find_program", lambda name: None)
    with pytest.raises(ProfileError, match="is not installed"):
        observed(DISKS[OURS])


@pytest.mark.real_client
def test_a_small_run(require_program: Callable[[str], str], tmp_path: Path) -> None:
    """A real disk for a moment: every layer of a read that cannot be missed, and nothing left behind."""
    require_program("fio")
    home, out = tmp_path / "home", tmp_path / "out"
    home.mkdir()
    out.mkdir()
    line = next(line for line in QUICK if line.name == "randread-4k-qd16")
    profile = profiling.run(DISKS[OURS], line, 0.3, 16, home, "a machine")
    assert list(home.iterdir()) == []
    assert profile.profiled.cpu_us > 0 and 0 < profile.profiled.kernel_share <= 1
    assert profile.accounted == pytest.approx(1, abs=0.25)
    costs = {cost.layer: cost.cpu_us for cost in layers.table(profile.stacks, profile.profiled.cpu_us)}
    assert sum(costs.values()) == pytest.approx(profile.profiled.cpu_us)
    assert costs[layers.OTHER] < profile.profiled.cpu_us / 4
    frames = {frame for stack, _ in profile.stacks for frame in stack}
    assert any(frame.startswith("crucible_emu.nbd.") for frame in frames)
    profiling.write(profile, out)
    assert (out / "flame.svg").read_text().startswith("<svg")
