"""This disk over three Downstairs as one command: what it asks for, and that it never goes on with two."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from bench import fio, subjects
from bench.flush import flush
from bench.lines import MIB
from bench.subjects import FORMS, running
from bench.three_processes import volume_request

PROCESSES = next(subject for subject in FORMS if subject.name.endswith("-processes"))


def test_the_request_has_the_geometry_of_the_regions() -> None:
    definition = {"block_size": 4096, "extent_size": {"value": 1024, "shift": 12}, "extent_count": 4, "uuid": "x"}
    request = volume_request(definition, ["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"])
    assert {name: request[name] for name in ("type", "block_size", "blocks_per_extent", "extent_count")} == {
        "type": "region",
        "block_size": 4096,
        "blocks_per_extent": 1024,
        "extent_count": 4,
    }
    assert request["opts"]["target"] == ["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"]


def children(pid: int) -> dict[int, str]:
    """The processes that a process has started, with their command lines."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {int(child): Path(f"/proc/{child}/cmdline").read_text().replace("\0", " ") for child in found}


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="no /proc to find the processes in")
def test_four_processes_in_one_session_end_with_the_first_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fio, "fill", lambda uri, size_bytes, folder: None)
    with running(PROCESSES, tmp_path, 16 * MIB) as server:
        flush(server.place.socket)
        found = children(server.process.pid)
        assert len(found) == 4
        assert {os.getsid(child) for child in found} == {server.process.pid}
        replica = next(pid for pid, words in found.items() if " downstairs run " in words)
        os.kill(replica, signal.SIGKILL)
        server.process.wait()
        death = server.death()
        assert death is not None
        assert death.startswith("it ended with code 1: ")
        assert death.endswith("a Downstairs ended")
    assert [child for child in found if Path(f"/proc/{child}").exists()] == []
    assert list(tmp_path.iterdir()) == []
    assert subjects.cpu_seconds(server.process.pid) is None
