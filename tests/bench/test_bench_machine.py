"""What a report says about its machine, and what it must not say."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import pytest

from bench import machine
from bench.machine import commit_of, file_system_of, first_line, processor_of, versions, without_places
from bench.subjects import Subject

MOUNTS = r"""/dev/vda / ext4 rw 0 0
tmpfs /tmp tmpfs rw 0 0
/dev/vdb /tmp/with\040blank xfs rw 0 0
/dev/vdc /tmp/twice btrfs rw 0 0
overlay /tmp/twice overlay rw 0 0
"""


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("/home/x", "ext4"),
        ("/tmp/x", "tmpfs"),
        ("/tmpx", "ext4"),
        ("/tmp/with blank/y", "xfs"),
        ("/tmp/twice", "overlay"),
    ],
)
def test_file_system_is_that_of_the_deepest_mount_and_of_the_last(folder: str, kind: str) -> None:
    assert file_system_of(MOUNTS, Path(folder)) == kind


def test_where_proc_says_nothing_it_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    assert file_system_of("", Path("/")) == "unknown"
    assert (
        processor_of("processor: 0\nmodel name\t: Some Processor\nmodel name\t: Some Processor\n") == "Some Processor"
    )
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert processor_of("hart : 0\n") == "riscv64"
    assert first_line(" \n") == "unknown"


def test_this_machine_can_be_observed(tmp_path: Path) -> None:
    found = machine.observe(tmp_path)
    assert found.cores >= 1
    assert found.memory_mib > 0
    assert found.file_system != ""


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("open /tmp/bench-x/r0: no such file", "open …/r0: no such file"),
        ("nbd+unix:///?socket=/tmp/bench-1/s refused", "nbd+unix:///?socket=…/s refused"),
        ("error 5 (Input/output error), 3 MiB/s and/or/else", "error 5 (Input/output error), 3 MiB/s and/or/else"),
        ("err=84/file:io_u.c:2190", "err=84/file:io_u.c:2190"),
        ("jdoe@box may not: jdoes, boxes", "USER@HOST may not: jdoes, boxes"),
        ("cd '/home/j doe/disks'", "cd '…/disks'"),
        ("cd '/home/j doe/disks/r0'", "cd '…/r0'"),
    ],
)
def test_places_and_names_are_taken_out_and_nothing_else(said: str, kept: str) -> None:
    assert without_places(said, ["/home/j doe"], {"jdoe": "USER", "box": "HOST"}) == kept


def test_versions_are_those_that_the_programs_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, script in (("good", "echo 'good 1.2 (x)'; echo more"), ("mute", "exit 3")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    programs = {"good": "somewhere", "mute": "somewhere", "gone": "nowhere"}
    found = versions([Subject("fake", "a program", programs, lambda place: [])])
    assert (found["good"], found["mute"]) == ("good 1.2 (x)", "unknown")
    assert "gone" not in found
    assert found["python"] == platform.python_version()
    assert found["numpy"][0].isdigit()


def test_a_commit_is_that_of_the_tree_itself(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        done = subprocess.run(["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    assert commit_of(tmp_path) == (None, False)
    git("init", "-q")
    assert commit_of(tmp_path) == (None, False)
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-q", "-m", "one")
    head = git("rev-parse", "HEAD")
    (tmp_path / "report.md").write_text("not of the tree")
    assert commit_of(tmp_path) == (head, False)
    (tmp_path / "file").write_text("2")
    assert commit_of(tmp_path) == (head, True)
    inner = tmp_path / "inner"
    inner.mkdir()
    assert commit_of(inner) == (None, False)
