"""``python -m bench repair``: what a live repair costs the guest, and how fast it is.

What it is for: a disk over three Downstairs processes; one of them is replaced by an empty region while fio writes at
random. Two ratios come out: the guest's write rate during the repair over its rate before, and the rate of the repair
over that of copying the region's files on the same file system.

What it guarantees: both halves of each ratio are measured in the same run, with the same processes up; the disk is
full, so that every extent has to be fetched.
"""

from __future__ import annotations

import json
import socket
import statistics
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from uuid import uuid4

from bench import fio
from bench.lines import KIB, MIB, Line
from bench.plain_copy import copy_seconds
from bench.subjects import OURS, end, find_program

LINE = Line("randwrite-4k-qd16", "randwrite", 4 * KIB, 16)
EXTENT_MIB = 16
REPAIRED_WITHIN_S = 300.0
ASK_EVERY_S = 0.1
"""To answer costs the Upstairs 2.4 ms: asked fifty times a second, an eighth of what it has for its guest."""


class RepairError(Exception):
    """The run could not be made; the message is the sentence that says why."""


@dataclass(frozen=True, slots=True)
class Round:
    """One replacement. ``write_iops`` before and during the repair; MiB/s of the repair and of a copy of the files."""

    write_iops: float
    write_iops_beside: float
    repair_mib_s: float
    copy_mib_s: float

    @property
    def write_ratio(self) -> float:
        return self.write_iops_beside / self.write_iops

    @property
    def repair_ratio(self) -> float:
        return self.repair_mib_s / self.copy_mib_s


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def command(*words: object) -> list[str]:
    return [find_program(OURS) or OURS, *map(str, words)]


@contextmanager
def started(words: list[str], log: Path) -> Iterator[dict[str, object]]:
    """A command with ``--json``, from its ready line to its end. Raises :class:`RepairError` where it is not ready."""
    with log.open("wb") as errors:
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, start_new_session=True
        )
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise RepairError(f"{' '.join(words[:3])} did not start: {log.read_text(errors='replace')[-300:]}")
            yield json.loads(line)
        finally:
            end(process)
            if process.stdout is not None:
                process.stdout.close()


def make_region(path: Path, size_mib: int) -> None:
    subprocess.run(
        command("region", "create", path, "--size", f"{size_mib}MiB", "--extent-size", f"{EXTENT_MIB}MiB"),
        check=True,
        stdout=subprocess.DEVNULL,
    )


def volume_request(targets: list[str], size_mib: int) -> dict[str, object]:
    """The volume construction request of a disk over these Downstairs."""
    opts = {"id": str(uuid4()), "target": targets, "lossy": False, "read_only": False}
    region = {"type": "region", "block_size": 4096, "blocks_per_extent": EXTENT_MIB * 256, "gen": 1, "opts": opts}
    return region | {"extent_count": size_mib // EXTENT_MIB}


def ask(control: str, path: str, body: dict[str, str] | None = None) -> dict[str, object]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://{control}{path}", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        found: dict[str, object] = json.load(answer)
        return found


class Writer(threading.Thread):
    """fio in short runs, one after the other, until told; the rates of the runs that ended."""

    def __init__(self, uri: str, size_bytes: int, folder: Path) -> None:
        super().__init__()
        self._given = (LINE, uri, size_bytes, 0.5, folder)
        self.enough = threading.Event()
        self.rates: list[float] = []
        self.problem: Exception | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """End the run that is under way. Raises what a run failed with, where nothing else went wrong."""
        self.enough.set()
        self.join()
        if kind is None and self.problem is not None:
            raise self.problem

    def run(self) -> None:
        try:
            while not self.enough.is_set():
                self.rates.append(fio.measure(*self._given).iops)
        except fio.FioError as problem:
            self.problem = problem


def undisturbed(uri: str, size_bytes: int, folder: Path, seconds: float) -> float:
    """The rate without a repair, measured as it is beside one: in short runs. Raises :class:`fio.FioError`."""
    with Writer(uri, size_bytes, folder) as writer:
        writer.enough.wait(seconds)
    return statistics.median(writer.rates)


def run(folder: Path, size_mib: int, seconds: float) -> Round:
    """One replacement under load. Raises :class:`RepairError`, :class:`fio.FioError`."""
    regions = [folder / f"r{number}" for number in range(4)]
    with ExitStack() as stack:
        targets = []
        for region in regions:
            make_region(region, size_mib)
            words = command("downstairs", "run", region, "--port", 0, "--repair-port", 0, "--json")
            ready = stack.enter_context(started(words, folder / f"{region.name}.log"))
            targets.append(f"{ready['address']}:{ready['port']}")
        request = folder / "disk.json"
        request.write_text(json.dumps(volume_request(targets[:3], size_mib)))
        door, control = folder / "s", f"127.0.0.1:{free_port()}"
        words = command("attach", request, "--nbd", fio.uri_of(door), "--control", control, "--json")
        stack.enter_context(started(words, folder / "attach.log"))
        uri, size_bytes = fio.uri_of(door), size_mib * MIB
        fio.fill(uri, size_bytes, folder)
        before = undisturbed(uri, size_bytes, folder, seconds)
        ask(control, "/replace", {"old": targets[0], "new": targets[3]})
        began = wait_for(lambda: "live_repair" in states(control), "the repair to begin")
        with Writer(uri, size_bytes, folder) as writer:
            took = wait_for(lambda: set(states(control)) == {"active"}, "the repair to end") - began
        # The last run may have ended after the repair.
        beside = statistics.median(writer.rates[:-1] or writer.rates)
        copied = size_mib / copy_seconds(regions[1], folder / "copy")
    return Round(before, beside, size_mib / took, copied)


def states(control: str) -> list[object]:
    found = ask(control, "/info")["ds_state"]
    assert isinstance(found, list)
    return [state["type"] for state in found]


def wait_for(condition: Callable[[], bool], what: str) -> float:
    """The time at which ``condition`` held. Raises :class:`RepairError` when it takes too long."""
    deadline = time.monotonic() + REPAIRED_WITHIN_S
    while not condition():
        if time.monotonic() > deadline:
            raise RepairError(f"waited {REPAIRED_WITHIN_S:.0f} s for {what}")
        time.sleep(ASK_EVERY_S)
    return time.monotonic()
