"""``python -m bench quick``: what it prints and writes, with fakes and once for real."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bench import __main__ as command
from bench import measuring, questions, report, subjects
from bench.flush import FlushError
from bench.lines import MIB, QUICK, SECTOR
from bench.subjects import MEMORY, OURS, PEER, SUBJECTS, Subject


@pytest.fixture
def quick(tmp_path: Path) -> Callable[..., tuple[int, str, list[dict]]]:
    """Run ``quick``: exit code, output, records by (line, subject)."""

    def run(*arguments: str) -> tuple[int, str, list[dict]]:
        path = tmp_path / "records.json"
        result = CliRunner().invoke(command.app, ["quick", "--json", str(path), *arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.output, json.loads(path.read_text()) if path.exists() else []

    return run


def only(records: list[dict], subject: str) -> list[dict]:
    return [record for record in records if record["subject"] == subject]


def test_everybody_is_measured_and_compared(fakes, quick) -> None:
    code, output, records = quick()
    assert code == 0
    assert fakes.up == []
    assert [record["line"] for record in only(records, OURS)] == [line.name for line in QUICK]
    for record in only(records, OURS):
        assert (record["iops"], record["ratio_to_quorum"], record["cpu_us"]) == (30_000, 2.0, 10.0)
    assert {record["ratio_to_quorum"] for record in only(records, PEER)} == {1.0}
    assert only(records, MEMORY)[0]["mib_s"] == pytest.approx(60_000 * 4096 / MIB, abs=0.01)
    assert "30.0k" in output
    assert "2.00" in output
    assert "missing" not in output


def test_disk_is_flushed_after_each_line_that_writes(fakes, quick, monkeypatch: pytest.MonkeyPatch) -> None:
    quick("--lines", "randread-4k-qd1,write-1m-qd4", "--rounds", "2", "--against", PEER)
    assert sorted(fakes.flushed) == sorted([OURS, PEER] * 2)

    def refuse(socket: Path) -> None:
        raise FlushError("flush: the server answered with error 28.")

    monkeypatch.setattr(measuring, "flush", refuse)
    code, output, records = quick("--lines", "randread-4k-qd1,write-1m-qd4", "--rounds", "1", "--against", PEER)
    assert code == 1
    assert f"failed: {OURS}, round 1: write-1m-qd4: flush: the server answered with error 28." in output
    assert [record["line"] for record in records if record["iops"] is None] == ["write-1m-qd4"] * 2


def test_busy_machine_is_called_busy() -> None:
    assert report.conditions(0.1, 2).endswith("2 cores, load 0.1 before the run")
    assert report.conditions(1.9, 2).endswith("the machine was busy, trust the ratios only")


def test_subject_slowed_on_purpose_shows(fakes, quick) -> None:
    fakes.speed[OURS] /= 10
    _, output, records = quick("--lines", "randread-4k-qd16")
    assert [record["ratio_to_quorum"] for record in only(records, OURS)] == [0.2]
    assert "0.20" in output


def test_missing_peer_is_named(fakes, quick) -> None:
    fakes.absent[PEER] = "qemu-storage-daemon is not installed (Debian package qemu-system-common)"
    code, output, records = quick("--lines", "randread-4k-qd1")
    assert code == 0
    assert f"missing: {PEER}: qemu-storage-daemon is not installed (Debian package qemu-system-common)" in output
    (record,) = only(records, PEER)
    assert (record["iops"], record["reason"]) == (None, fakes.absent[PEER])
    (ours,) = only(records, OURS)
    assert (ours["iops"], ours["ratio_to_quorum"]) == (30_000, None)


def test_own_absence_is_a_failure(fakes, quick) -> None:
    fakes.absent[OURS] = "it did not start: it ended with code 2"
    code, output, _ = quick("--lines", "randread-4k-qd1")
    assert code == 1
    assert f"missing: {OURS}: it did not start" in output


def test_failed_run_is_named_and_is_a_failure(fakes, quick) -> None:
    fakes.fails.add(("write-1m-qd4", "nbdkit-file"))
    code, output, records = quick("--rounds", "2")
    assert code == 1
    for turn in (1, 2):
        assert f"failed: nbdkit-file, round {turn}: write-1m-qd4: fio ended with error 5" in output
    failed = [record for record in records if record["iops"] is None]
    assert [(one["line"], one["subject"]) for one in failed] == [("write-1m-qd4", "nbdkit-file")]
    assert "error 5" in failed[0]["reason"]


def test_who_corrupts_data_is_disqualified_and_has_no_figures(fakes, quick) -> None:
    fakes.corrupts = {"nbdkit-file"}
    code, output, records = quick("--lines", "randread-4k-qd1")
    complaint = "verify-4096: fio ended with code 1: crc32c: verify failed"
    assert f"disqualified: nbdkit-file: {complaint}" in output
    (record,) = only(records, "nbdkit-file")
    assert (record["iops"], record["reason"]) == (None, f"disqualified: {complaint}")
    assert code == 0  # it says nothing about this disk
    fakes.corrupts = {OURS}
    code, output, _ = quick("--lines", "randread-4k-qd1")
    assert code == 1
    assert f"disqualified: {OURS}: {complaint}" in output


def test_who_corrupts_data_under_the_load_is_disqualified_afterwards(fakes, tmp_path: Path) -> None:
    peers = [subject for subject in SUBJECTS if subject.name in (PEER, OURS)]
    line = next(line for line in QUICK if line.name == "write-1m-qd4")
    outcome = measuring.run(
        peers, [line], 2, 1, 64 * MIB, tmp_path, lambda said: fakes.corrupts.add(PEER) if "round" in said else None
    )
    assert outcome.subjects == [OURS]
    assert outcome.disqualified[PEER].startswith("after the measurement: verify-1048576: ")
    assert [row.subject for row in outcome.rows] == [OURS]
    assert [row.ratios for row in outcome.rows] == [{}]
    assert {sample.subject for sample in outcome.samples} == {OURS}
    assert {sample.subject for sample in outcome.invalid} == {PEER}


def test_nobody_is_asked_for_smaller_blocks_than_it_serves(fakes, tmp_path: Path) -> None:
    peers = [subject for subject in SUBJECTS if subject.name in (PEER, OURS)]
    outcome = measuring.run(peers, [SECTOR[0], QUICK[0]], 1, 1, 64 * MIB, tmp_path)
    asked = {(sample.line, sample.subject) for sample in outcome.samples}
    assert asked == {(SECTOR[0].name, PEER), (QUICK[0].name, PEER), (QUICK[0].name, OURS)}
    assert outcome.failures == []


def test_against_picks_the_peers(fakes, quick) -> None:
    _, _, records = quick("--against", MEMORY, "--lines", "read-1m-qd4")
    assert [record["subject"] for record in records] == [OURS, MEMORY]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--against", "ceph"], "--against does not know 'ceph'; there are qemu-quorum, nbdkit-memory, nbdkit-file."),
        (["--lines", "swim"], "No line is called 'swim'; there are randwrite-4k-qd1,"),
        (["--json", "/no/such/folder/x"], "there is no folder /no/such/folder"),
    ],
)
def test_wrong_question_is_refused(fakes, quick, arguments: list[str], sentence: str) -> None:
    code, output, _ = quick(*arguments)
    assert code == 2
    assert sentence in output


def test_without_fio_nothing_is_claimed(fakes, quick, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "find_program", lambda name: None)
    code, output, records = quick()
    assert (code, records) == (2, [])
    assert "fio is not installed (Debian package fio)" in output


@pytest.mark.real_client
def test_delay_filter_shows_in_a_real_run(require_program, tmp_path: Path) -> None:
    """nbdkit against itself with 2 ms added to each read: the bench sees it, and leaves nothing behind."""
    require_program("fio")
    require_program("nbdkit")
    memory = next(subject for subject in SUBJECTS if subject.name == MEMORY)
    slow = Subject(
        "slow", "delayed reads", memory.programs, lambda place: [*memory.command(place), "--filter=delay", "rdelay=2ms"]
    )
    line = next(line for line in QUICK if line.name == "randread-4k-qd1")
    outcome = measuring.run((memory, slow), (line,), 1, 0.2, 16 * MIB, tmp_path)
    assert (outcome.absent, outcome.failures) == ({}, [])
    rows = {row.subject: row for row in outcome.rows}
    assert rows["slow"].iops <= 500
    assert rows["slow"].ratios[MEMORY].median < 0.5
    assert rows[MEMORY].ratios[MEMORY].median == 1.0
    assert rows[MEMORY].cpu_us is not None
    assert list(tmp_path.iterdir()) == []
    assert subjects.find_program("fio") is not None
