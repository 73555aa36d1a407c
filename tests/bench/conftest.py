"""What tests of the bench share: servers and an fio without processes, and results made from a table of rates."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench import fio, measuring, questions
from bench.lines import MIB, RUN, Line
from bench.machine import Machine
from bench.report import Outcome
from bench.results import Asked, Results, describe, gather
from bench.rounds import Failure, Sample, summarise
from bench.subjects import ALL, MEMORY, OURS, PEER, REFERENCES, Absent, Subject

SPEED = {subject.name: 10_000.0 for subject in ALL} | {
    OURS: 30_000.0,
    PEER: 15_000.0,
    MEMORY: 60_000.0,
    "nbdkit-file": 50_000.0,
}
MACHINE = Machine("Linux", "6.1.0", "Some Processor", 2, 4096, "ext4", 0.1)


class Fakes:
    """Servers and an fio without processes. ``absent``: who does not start; ``fails``: (line, subject) that fails."""

    def __init__(self) -> None:
        self.speed = dict(SPEED)
        self.absent: dict[str, str] = {}
        self.fails: set[tuple[str, str]] = set()
        self.corrupts: set[str] = set()
        self.up: list[str] = []
        self.flushed: list[str] = []
        self.measured: list[tuple[str, str]] = []

    @contextmanager
    def running(self, subject: Subject, folder: Path, size_bytes: int) -> Iterator[SimpleNamespace]:
        if subject.name in self.absent:
            raise Absent(self.absent[subject.name])
        self.up.append(subject.name)
        place = SimpleNamespace(size_bytes=size_bytes, folder=folder, socket=subject.name)
        clock = iter(range(10_000))
        yield SimpleNamespace(
            subject=subject,
            place=place,
            uri=subject.name,
            death=lambda: None,
            cpu_seconds=lambda: next(clock) / 1000,
        )
        self.up.remove(subject.name)

    def measure(self, line, uri: str, size_bytes: int, seconds: float, folder: Path) -> fio.Achieved:
        assert uri in self.up
        self.measured.append((line.name, uri))
        if (line.name, uri) in self.fails:
            raise fio.FioError(f"{line.name}: fio ended with error 5 (Input/output error).")
        return fio.Achieved(self.speed[uri], self.speed[uri] * line.block_bytes / MIB, 100, 50.0, 99.0, 999.0)

    def verify(self, line, uri: str, size_bytes: int, folder: Path) -> None:
        assert uri in self.up
        if uri in self.corrupts:
            raise fio.FioError(f"{line.name}: fio ended with code 1: crc32c: verify failed")


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> Fakes:
    fakes = Fakes()
    monkeypatch.setattr(measuring, "running", fakes.running)
    monkeypatch.setattr(questions, "find_program", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(fio, "measure", fakes.measure)
    monkeypatch.setattr(fio, "verify", fakes.verify)
    monkeypatch.setattr(measuring, "flush", fakes.flushed.append)
    return fakes


@pytest.fixture
def results_of() -> Callable[..., Results]:
    """Make results: of each (line, subject) the operations per second, round by round."""

    def make(
        rates: dict[tuple[str, str], list[float]],
        *,
        lines: tuple[Line, ...] = RUN,
        failures: tuple[Failure, ...] = (),
        absent: dict[str, str] | None = None,
        disqualified: dict[str, str] | None = None,
        clean: Callable[[str], str] = str,
    ) -> Results:
        samples = [
            Sample(line, subject, turn, iops, iops / 256, 5.0, 10.0, 1e6 / iops, 40.0)
            for (line, subject), each in rates.items()
            for turn, iops in enumerate(each)
        ]
        names = [subject.name for subject in ALL if any(subject.name == name for _, name in rates)]
        outcome = Outcome(
            lines=lines,
            subjects=names,
            rows=summarise(lines, names, samples, REFERENCES),
            absent=absent or {},
            failures=failures,
            disqualified=disqualified or {},
            samples=samples,
        )
        taking_part = {*names, *outcome.without}
        described = tuple(describe(subject) for subject in ALL if subject.name in taking_part)
        asked = Asked(rounds=2, seconds=1.0, size_mib=64, lines=lines, subjects=described)
        return gather(outcome, asked, MACHINE, ("a" * 40, False), {"fio": "fio-3.33"}, "2026-01-01", clean)

    return make
