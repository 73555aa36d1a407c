"""``crucible-emu exercise`` end to end: real Downstairs under run-many, testers that are killed, refusals."""

from __future__ import annotations

import base64
import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from command_rig import COMMAND, Command, one_sentence, outcome, outcome_here, refusal, running
from many_rig import SMALL, free_base, wait_until

from crucible_emu.exercise.journal import COUNT_BYTES, HEAD_BYTES, IN_USE_AT
from crucible_emu.region.digest import region_digest
from crucible_emu.region.view import RegionView

BLOCKS = 64
KEY = base64.b64encode(bytes(range(32))).decode()


@contextmanager
def many(folder: Path, *options: object, count: int = 3) -> Iterator[tuple[Command, Path]]:
    """Downstairs, and the file that describes the disk of the first three."""
    file = folder / "disk.json"
    arguments = (folder / "ds", *SMALL, "--count", count, "--vcr", file, "--port-base", free_base(4), *options)
    with running("downstairs", "run-many", *arguments) as command:
        yield command, file


def exercise(*arguments: object, run: Callable[..., tuple[int, str, str]] = outcome_here) -> dict[str, Any]:
    """Run it to its end, which must be good; what its JSON says."""
    code, out, err = run("exercise", *arguments, "--json")
    assert code == 0, err
    facts: dict[str, Any] = json.loads(out)
    return facts


def counts(journal: Path) -> np.ndarray[tuple[int], np.dtype[np.uint32]]:
    """How often the blocks were written, as a journal says that may be in use."""
    return np.fromfile(journal, "<u4", BLOCKS, offset=HEAD_BYTES)


def test_tester_killed_with_sigkill_and_a_replica_too_then_verify(tmp_path: Path, expect_log: Any) -> None:
    expect_log("connection ended", at_least=0)  # while the replica returns
    with many(tmp_path) as (command, file):
        journal = tmp_path / "disk.json.journal"
        filled = exercise("fill", file, "--blank")
        assert (filled["ok"], filled["writes"], filled["checked_blocks"]) == (True, 1, BLOCKS)
        arguments = ["exercise", "rand-write", str(file), "--depth", "32", "--time", "60"]
        tester = subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        wait_until(lambda: int(counts(journal).sum()) > BLOCKS + 500)
        httpx2.post(f"{command.ready['control']}/stop/cid/0", trust_env=False)
        tester.kill()
        tester.communicate()
        httpx2.post(f"{command.ready['control']}/start/cid/0", trust_env=False)
        assert journal.read_bytes()[IN_USE_AT] == 1
        # The range from what a flush had reached is what verify accepts, block by block.
        found = exercise("verify", file)
        assert (found["ok"], found["checked_blocks"], found["doubtful_blocks"]) == (True, BLOCKS, 0)
        assert journal.read_bytes()[IN_USE_AT] == 0
        # SIGINT ends in order.
        tester = subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        before = int(counts(journal).sum())
        wait_until(lambda: int(counts(journal).sum()) > before + 500)
        tester.send_signal(signal.SIGINT)
        assert (tester.communicate(timeout=60)[1], tester.returncode) == (b"", 130)
        assert exercise("verify", file)["ok"]
        # Nothing is in doubt any more, so this is strict.
        assert exercise("rand-verify", file)["ok"]
        command.end_well()
    targets = json.loads(file.read_text())["sub_volumes"][0]["opts"]["target"]
    regions = [tmp_path / "ds" / target.rpartition(":")[2] for target in targets]
    assert len({region_digest(RegionView.open(region)).region for region in regions}) == 1


def test_the_first_wrong_block_is_one_sentence_and_exit_code_1(tmp_path: Path) -> None:
    with many(tmp_path) as (_, file):
        journal, out_file = tmp_path / "j", tmp_path / "out.json"
        exercise("fill", file, "--journal", journal, "--content", "stamped", "--verify-out", out_file)
        assert json.loads(out_file.read_text()) == {"count_cur": [1] * BLOCKS, "count_min": [1] * BLOCKS}
        code, _, err = outcome_here("exercise", "verify", file, "--journal", tmp_path / "another", "--gen", 9)
        assert (code, err.splitlines()[-1:]) == (
            0,
            ["Warning: the journal knows of no write to these blocks, so nothing could be checked"],
        )
        # A write that the journal knows of, flushed, and the disk does not.
        data = bytearray(journal.read_bytes())
        for first in (HEAD_BYTES, HEAD_BYTES + COUNT_BYTES * BLOCKS):
            data[first + 5 * COUNT_BYTES] = 2
        journal.write_bytes(bytes(data))
        code, out, err = outcome_here("exercise", "verify", file, "--journal", journal, "--gen", 20, "--json")
        assert code == 1
        assert one_sentence(err) == "block 5 is wrong: expected write 2, found write 1"
        facts = json.loads(out)
        assert facts["ok"] is False
        assert facts["wrong_block"] == {"block": 5, "minimum": 2, "current": 2, "found": "write 1"}
        # Counts from a file of the real tester's form say otherwise.
        assert exercise("verify", file, "--journal", journal, "--verify-in", out_file)["ok"]


def test_workloads_that_leave_at_once_and_scenarios_over_the_control_api(tmp_path: Path, expect_log: Any) -> None:
    expect_log("connection ended", at_least=0)  # scenarios stop replicas and start them again
    key = tmp_path / "key"
    key.write_text(KEY)
    with many(tmp_path, "--encrypt", key, count=4) as (command, _):
        disk = ("--control", command.ready["control"], "--key", key, "--journal", tmp_path / "j")
        assert exercise("fill", *disk)["ok"]
        for name in ("dirty", "repair"):
            assert exercise(name, *disk, "--seed", 3, run=outcome)["ok"]  # these leave without looking back
        rates = exercise("rand-read", *disk, "--time", 0.5, "--sample-time", 0.1, "--verify-at-start")["rates"]
        assert rates["samples"] >= 2
        assert exercise("replay", *disk)["ok"]
        code, out, err = outcome("exercise", "replace", *disk, "--count", 1, timeout=120)
        assert (code, err) == (0, "")
        assert "is being replaced by" in out and "all three active" in out and "0 errors" in out


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A disk that nobody serves."""
    targets = [f"127.0.0.1:{port}" for port in (1, 2, 3)]
    opts = {"id": "12345678-0000-0000-0001-000000008810", "target": targets, "lossy": False, "read_only": False}
    region = {"type": "region", "block_size": 512, "blocks_per_extent": 4, "extent_count": 2, "gen": 1, "opts": opts}
    path = tmp_path / "disk.json"
    path.write_text(json.dumps(region))
    return path


def test_refusals_of_exercise(file: Path, tmp_path: Path, capsys: Any) -> None:
    for arguments, words in (
        (("dance", file), "'dance' is no workload: take one of one, generic,"),
        (("fill",), "say which disk: give VCR.json, or the --control URL of run-many"),
        (("fill", tmp_path / "none"), "cannot read the VCR"),
        (("fill", file, "--content", "random"), "'random' is no content: take one of crutest, stamped"),
        (("rand-read", file, "--io-size", 9), "--io-size 9 is 9 blocks: take 1 to 8"),
        (("rand-read", file, "--io-size", "100B"), "not a whole number of blocks"),
        (("fill", file, "--count", 0), "Invalid value for '--count'"),
        (("verify", file, "--verify-in", tmp_path / "none"), "no such file"),
        (("fill", "--control", "nowhere"), "'nowhere' is no control API"),
        (("fill", "--control", "127.0.0.1:1"), "the control API does not answer"),
        (("replay", file), "give the --control URL"),
    ):
        code, sentence = refusal(capsys, "exercise", *arguments)
        assert code in (1, 2), arguments
        assert words in sentence


def test_a_disk_that_nobody_serves_is_given_up(file: Path) -> None:
    code, out, err = outcome("exercise", "fill", file, "--timeout", 0.5, "--json")
    assert code == 1
    facts = json.loads(out)
    assert (facts["ok"], facts["wrong_block"], facts["reads"]) == (False, None, 0)
    assert "no activation within 0.5 s" in facts["error"]
    assert "no activation within 0.5 s" in err.splitlines()[-1]
    assert (file.parent / "disk.json.journal").exists()
