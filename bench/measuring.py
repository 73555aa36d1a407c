"""A run from beginning to end: all subjects served beside each other, measured in turns, ended.

What it guarantees: every subject is up while any is measured, so that all have the same neighbours. One that does not
come up is named with the reason, and a server that dies on the way fails its runs with its last words. Before and
after the measurement every disk is verified in blocks of the sizes that it is measured with (crc32c, by fio): whoever
loses or corrupts data is disqualified with fio's complaint, and none of its figures is passed off as valid.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType

from bench import fio, report, rounds
from bench.flush import FlushError, flush
from bench.lines import WARM, Line, verifying
from bench.subjects import REFERENCES, Absent, Server, Subject, running


def sample(line: Line, server: Server, turn: int, seconds: float) -> rounds.Sample | rounds.Failure:
    """One run against a server that is up. Before one that reads the disk is read once, one that writes is flushed
    afterwards, both outside the measured time."""
    subject, place = server.subject.name, server.place
    reason = server.death()
    before: float | None = None
    if reason is None:
        try:
            if not line.writes:
                fio.warm(server.uri, place.size_bytes, place.folder)
            before = server.cpu_seconds()
            achieved = fio.measure(line, server.uri, place.size_bytes, seconds, place.folder)
            if line.writes:
                flush(place.socket)
        except (fio.FioError, FlushError) as problem:
            reason = server.death() or str(problem).removeprefix(f"{line.name}: ").removeprefix(f"{WARM.name}: ")
    if reason is not None:
        return rounds.Failure(line.name, subject, turn, reason)
    after = server.cpu_seconds()
    cpu_us = None if before is None or after is None else (after - before) * 1e6 / achieved.operations
    return rounds.Sample(
        line=line.name,
        subject=subject,
        round=turn,
        iops=achieved.iops,
        mib_s=achieved.mib_s,
        cpu_us=cpu_us,
        latency_us_p50=achieved.latency_us_p50,
        latency_us_p99=achieved.latency_us_p99,
        latency_us_p999=achieved.latency_us_p999,
    )


def objection(server: Server, lines: Sequence[Line]) -> str | None:
    """What is wrong with the data that a server gives back, in fio's words; ``None`` where nothing is.

    A server that is gone gives nothing back.
    """
    sizes = {line.block_bytes for line in lines if server.subject.serves(line)}
    for size in sorted(sizes):
        try:
            fio.verify(verifying(size), server.uri, server.place.size_bytes, server.place.folder)
        except fio.FioError as problem:
            return server.death() or str(problem)
    return None


Ceiling = Callable[[Line, float], fio.Achieved | None]
"""Something that is measured like a disk and is none; ``None`` for a line that is not asked of it."""


class Runner:
    """All that one run finds out, while it finds it out. ``tell`` is told how far it is."""

    def __init__(
        self, lines: Sequence[Line], seconds: float, tell: Callable[[str], None], ceilings: Mapping[str, Ceiling]
    ) -> None:
        self._ceilings = ceilings
        self._lines = lines
        self._seconds = seconds
        self._tell = tell
        self._servers: dict[str, Server] = {}
        self._absent: dict[str, str] = {}
        self._disqualified: dict[str, str] = {}

    def run(self, subjects: Sequence[Subject], turns: int, size_bytes: int, folder: Path) -> report.Outcome:
        with ExitStack() as stack:
            for subject in subjects:
                self._tell(f"{subject.name} is started, filled and verified")
                self._start(subject, folder, size_bytes, stack)
            asked = [*self._servers, *self._ceilings]
            samples, failures = rounds.interleave(self._lines, asked, turns, self._measure)
            for name, server in self._servers.items():
                self._tell(f"{name} is verified")
                complaint = objection(server, self._lines)
                if complaint is not None:
                    self._disqualified[name] = f"after the measurement: {complaint}"
        names = [name for name in asked if name not in self._disqualified]
        valid = [sample for sample in samples if sample.subject in names]
        return report.Outcome(
            lines=self._lines,
            subjects=names,
            rows=rounds.summarise(self._lines, names, valid, REFERENCES),
            absent=self._absent,
            failures=failures,
            disqualified=self._disqualified,
            samples=valid,
            invalid=[sample for sample in samples if sample.subject not in names],
        )

    def _start(self, subject: Subject, folder: Path, size_bytes: int, stack: ExitStack) -> None:
        """Start a subject until ``stack`` is left; one that cannot take part is ended at once."""
        with ExitStack() as trial:
            try:
                server = trial.enter_context(running(subject, folder, size_bytes))
            except Absent as problem:
                self._absent[subject.name] = str(problem)
                return
            complaint = objection(server, self._lines)
            if complaint is not None:
                self._disqualified[subject.name] = complaint
                return
            self._servers[subject.name] = server
            stack.push(trial.pop_all())

    def _measure(self, line: Line, name: str, turn: int) -> rounds.Sample | rounds.Failure | None:
        if name in self._ceilings:
            try:
                achieved = self._ceilings[name](line, self._seconds)
            except fio.FioError as problem:
                return rounds.Failure(line.name, name, turn, str(problem).removeprefix(f"{line.name}: "))
            return None if achieved is None else rounds.Sample(line.name, name, turn, achieved.iops, achieved.mib_s)
        server = self._servers[name]
        if not server.subject.serves(line):
            return None
        self._tell(f"round {turn + 1}: {line.name}: {name}")
        return sample(line, server, turn, self._seconds)


def run(
    subjects: Sequence[Subject],
    lines: Sequence[Line],
    turns: int,
    seconds: float,
    size_bytes: int,
    folder: Path,
    tell: Callable[[str], None] = lambda _: None,
    ceilings: Mapping[str, Ceiling] = MappingProxyType({}),
) -> report.Outcome:
    """Serve all subjects beside each other, verify them, measure them in turns, end them. ``ceilings`` are measured in
    the same rounds."""
    return Runner(lines, seconds, tell, ceilings).run(subjects, turns, size_bytes, folder)
