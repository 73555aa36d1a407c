"""``python -m bench run``: what it asks, refuses and writes, with fakes."""

from __future__ import annotations

import getpass
import re
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from bench import __main__ as command
from bench import charts, cipher, machine, results
from bench.fio import Achieved
from bench.lines import MIB, RUN, SECTOR, WARM, Line
from bench.subjects import ALL, BY_HAND, CIPHER, FORMS, MEMORY, OURS, PEER, SUBJECTS

ABSOLUTE_PATH = re.compile(r"(?<![\w.<])/(?:[\w.+@%~-]+/)+[\w.+@%~-]*")

Run = Callable[..., tuple[int, str, Path]]


@pytest.fixture
def run(fakes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run ``run``: exit code, output, the folder of the report."""
    monkeypatch.setattr(machine, "commit_of", lambda tree: ("a" * 40, False))
    monkeypatch.setattr(machine, "measured_tree", lambda: tmp_path)
    monkeypatch.setattr(machine, "versions", lambda subjects: {"fio": "fio-3.33"})
    monkeypatch.setattr(charts, "draw", lambda found: dict.fromkeys(PICTURES, b"\x89PNG"))
    monkeypatch.setattr(charts, "is_installed", lambda: True)
    monkeypatch.setattr(cipher, "measure", lambda line, seconds: achieved(line) if line.sequential else None)
    out = tmp_path / "out"

    def invoke(*arguments: str) -> tuple[int, str, Path]:
        result = CliRunner().invoke(command.app, ["run", "--out", str(out), *arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.output, out

    return invoke


def achieved(line: Line) -> Achieved:
    return Achieved(1000.0, 1000.0 * line.block_bytes / MIB, 100)


PICTURES = (charts.THROUGHPUT, charts.OPERATIONS, charts.LATENCY, charts.CPU)


def test_the_usual_run_asks_this_disk_and_all_peers_every_line_of_the_table(run: Run) -> None:
    code, output, out = run()
    assert code == 0
    found = results.read(out)
    assert found.measured == [subject.name for subject in SUBJECTS + BY_HAND]
    assert found.asked.lines == RUN
    assert (found.asked.rounds, found.asked.seconds) == (5, 3.0)
    assert len(found.samples) == len(found.measured) * len(RUN) * 5
    assert found.samples[0].latency_us_p999 == 999.0
    assert "floor 3: not met" in output
    assert "goal 1.5: not met" in output
    assert {path.name for path in out.iterdir()} == {"results.json", "report.md", "report.html", *PICTURES}
    assert "| randwrite-4k-qd16 | 3 | 2.00 (2.00–2.00) | not met |" in (out / "report.md").read_text(encoding="utf-8")
    assert "data:image/png;base64," in (out / "report.html").read_text(encoding="utf-8")


def test_a_disk_slowed_on_purpose_shows_in_the_verdict(run: Run, fakes) -> None:
    line = ("--quick", "--lines", "write-1m-qd4")
    assert "write-1m-qd4: 2.00 (2.00–2.00) × qemu-quorum, floor 1.2: met" in run(*line)[1]
    fakes.speed[OURS] /= 2
    assert "write-1m-qd4: 1.00 (1.00–1.00) × qemu-quorum, floor 1.2: not met" in run(*line)[1]


def test_every_disk_is_read_once_before_each_line_that_reads(run: Run, fakes) -> None:
    lines = "randwrite-4k-qd1,randread-4k-qd16,read-1m-qd4"
    code, _output, out = run("--lines", lines, "--rounds", "1", "--against", PEER)
    assert code == 0
    for subject in (OURS, PEER):
        asked = [line for line, whom in fakes.measured if whom == subject]
        assert asked == ["randwrite-4k-qd1", WARM.name, "randread-4k-qd16", WARM.name, "read-1m-qd4"]
    assert {sample.line for sample in results.read(out).samples} == set(lines.split(","))


def test_a_disk_that_cannot_be_read_before_its_line_has_failed_it(run: Run, fakes) -> None:
    fakes.fails.add((WARM.name, PEER))
    code, output, _out = run("--lines", "randread-4k-qd16,randwrite-4k-qd1", "--rounds", "1", "--against", PEER)
    assert (code, "fio ended with error 5" in output) == (1, True)


def test_quick_is_shorter_and_options_win_over_it(run: Run) -> None:
    asked = results.read(run("--quick")[2]).asked
    assert (asked.rounds, asked.seconds) == (3, 1.0)
    asked = results.read(run("--quick", "--rounds", "2", "--seconds", "0.5", "--size-mib", "32")[2]).asked
    assert (asked.rounds, asked.seconds, asked.size_mib) == (2, 0.5, 32)


def test_subjects_and_peers_are_picked(run: Run) -> None:
    found = results.read(run("--rounds", "1", "--subjects", f"{OURS}*", "--against", f"{PEER},nbdkit-p*")[2])
    assert found.measured == [OURS, *(subject.name for subject in FORMS), PEER, "nbdkit-python-mirror", CIPHER]
    assert CIPHER not in found.asked.command
    assert {sample.line for sample in found.samples if sample.subject == CIPHER} == {"write-1m-qd4", "read-1m-qd4"}
    judged = [each for each in found.verdicts if each.bound.over == CIPHER]
    assert [(each.bound.subject, each.met is not None) for each in judged] == [(f"{OURS}-encrypted", True)] * 2
    # A form with small blocks brings the lines for them; nobody who has larger blocks is asked those.
    assert found.asked.lines == RUN + SECTOR
    asked_small = {sample.subject for sample in found.samples if sample.line == SECTOR[0].name}
    assert asked_small == {PEER, "nbdkit-python-mirror", f"{OURS}-512"}
    found = results.read(run("--rounds", "1", "--against", MEMORY, "--lines", "*flush32,randread-512-qd1")[2])
    assert [line.name for line in found.asked.lines] == ["randwrite-4k-qd16-flush32", "randread-512-qd1"]


def test_missing_peer_is_named_and_changes_no_exit_code(run: Run, fakes) -> None:
    fakes.absent["nbdkit-python-mirror"] = "nbdkit's plugin python is not installed"
    code, output, out = run("--quick")
    assert code == 0
    assert "missing: nbdkit-python-mirror: nbdkit's plugin python is not installed" in output
    assert "missing: nbdkit-python-mirror: nbdkit's plugin python is not installed" in (out / "report.md").read_text(
        encoding="utf-8"
    )


def test_own_absence_disqualification_or_a_failed_run_is_exit_code_1(run: Run, fakes) -> None:
    fakes.absent[f"{OURS}-encrypted"] = "it did not start"
    assert run("--quick")[0] == 0
    assert run("--quick", "--subjects", f"{OURS}*")[0] == 1
    fakes.corrupts.add(OURS)
    code, output, out = run("--quick")
    assert code == 1
    assert f"disqualified: {OURS}: verify-4096" in output
    assert OURS not in results.read(out).measured
    fakes.corrupts.clear()
    fakes.fails.add(("write-1m-qd4", "nbdkit-file"))
    code, output, _ = run("--quick")
    assert code == 1
    assert "failed: nbdkit-file, round 1: write-1m-qd4: fio ended with error 5" in output


def test_nothing_that_is_written_names_a_person_or_a_place(
    run: Run, fakes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "secretbox.example.org")
    monkeypatch.setattr(getpass, "getuser", lambda: "jdoe")
    monkeypatch.setattr(Path, "home", lambda: Path("/srv/people/jdoe"))
    fakes.absent["nbdkit-file"] = f"it did not start: {tmp_path}/bench-1/r0: permission denied for jdoe@secretbox"
    fakes.absent["asyncio-aiofiles"] = "can't open '/srv/people/jdoe/bench/asyncio_mirror.py' on secretbox.example.org"
    fakes.corrupts.add(PEER)
    code, _, out = run("--quick")
    assert code == 0
    for path in out.iterdir():
        text = re.sub(r"data:image/png;base64,[\w+/=]+", "", path.read_bytes().decode("latin-1"))
        for secret in ("jdoe", "secretbox", str(tmp_path), socket.gethostname()):
            assert secret not in text, path
        assert ABSOLUTE_PATH.findall(text) == [], path
    missing = results.read(out).absent
    assert missing["nbdkit-file"] == "it did not start: …/r0: permission denied for USER@HOST"
    assert missing["asyncio-aiofiles"].endswith("asyncio_mirror.py' on HOST")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--against", "ceph"], "--against does not know 'ceph'; there are qemu-quorum, nbdkit-memory, nbdkit-file, "),
        (["--against", OURS], f"--against does not know '{OURS}'"),
        (["--subjects", "crucible"], f"--subjects does not know 'crucible'; there are {OURS}, {OURS}-processes, "),
        (["--subjects", ","], "--subjects names nobody"),
        (["--lines", "swim"], "No line is called 'swim'; there are randwrite-4k-qd1,"),
        (["--size-mib", "9000000"], "51,200 are free"),
    ],
)
def test_wrong_question_is_refused_before_anything_runs(
    run: Run, fakes, monkeypatch: pytest.MonkeyPatch, arguments: list[str], sentence: str
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=50 << 30))
    monkeypatch.setattr(fakes, "measure", lambda *_: pytest.fail("it was measured"))
    code, output, out = run(*arguments)
    assert code == 2
    assert sentence in " ".join(output.split())
    assert not (out / "results.json").exists()


def test_an_out_that_cannot_be_written_is_refused_before_anything_runs(run: Run, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    code, output, _ = run()
    assert code == 2
    assert "nothing can be written there (file exists); give a folder that is yours" in output


def test_a_report_that_cannot_be_written_is_a_sentence(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(found: results.Results, out: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(results, "write", full)
    code, output, _ = run("--quick")
    assert code == 1
    assert "the report could not be written: [Errno 28] No space left on device" in output


def test_without_matplotlib_it_says_what_to_install(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(charts, "is_installed", lambda: False)
    code, output, _ = run()
    assert code == 2
    assert "the charts need matplotlib: pip install '.[bench]'" in output


def test_every_subject_has_a_name_of_its_own() -> None:
    assert len({subject.name for subject in ALL}) == len(ALL)


@pytest.mark.real_client
def test_a_real_run_can_be_shown(require_program: Callable[[str], str], tmp_path: Path) -> None:
    """Real programs, real charts: complete, and nothing of this machine in it."""
    pytest.importorskip("matplotlib")
    for program in ("fio", "nbdkit"):
        require_program(program)
    words = "--against nbdkit-memory --lines read-1m-qd4 --rounds 1 --seconds 0.1 --size-mib 16"
    asked = ["run", "--out", str(tmp_path / "out"), "--folder", str(tmp_path), *words.split()]
    result = CliRunner().invoke(command.app, asked, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    found = results.read(tmp_path / "out")
    assert found.measured == [OURS, MEMORY]
    assert found.programs["fio"].startswith("fio-")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    written = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert set(written) == {"results.json", "report.md", "report.html", charts.THROUGHPUT, charts.LATENCY, charts.CPU}
    for name in ("results.json", "report.md"):
        text = written[name].decode()
        assert str(tmp_path) not in text
        assert ABSOLUTE_PATH.findall(text) == []
