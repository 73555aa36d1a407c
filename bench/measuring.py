"""A run from beginning to end: all subjects served beside each other, measured in turns, ended.

What it guarantees: every subject is up while any is measured, so that all have the same neighbours. One that does not
come up is named with the reason, and a server that dies on the way fails its runs with its last words.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from bench import fio, report, rounds
from bench.flush import FlushError, flush
from bench.lines import Line
from bench.subjects import REFERENCES, Absent, Server, Subject, running


def sample(line: Line, server: Server, turn: int, seconds: float) -> rounds.Sample | rounds.Failure:
    """One run against a server that is up; one that writes is flushed afterwards, outside the measured time."""
    subject = server.subject.name
    reason = server.death()
    before = server.cpu_seconds()
    if reason is None:
        try:
            achieved = fio.measure(line, server.uri, server.place.size_bytes, seconds, server.place.folder)
            if line.writes:
                flush(server.place.socket)
        except (fio.FioError, FlushError) as problem:
            reason = server.death() or str(problem).removeprefix(f"{line.name}: ")
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


def run(
    subjects: Sequence[Subject], lines: Sequence[Line], turns: int, seconds: float, size_bytes: int, folder: Path
) -> report.Outcome:
    """Serve all subjects beside each other, measure them in turns, end them."""
    absent: dict[str, str] = {}
    with ExitStack() as stack:
        servers: dict[str, Server] = {}
        for subject in subjects:
            try:
                servers[subject.name] = stack.enter_context(running(subject, folder, size_bytes))
            except Absent as problem:
                absent[subject.name] = str(problem)
        names = list(servers)
        samples, failures = rounds.interleave(
            lines, names, turns, lambda line, name, turn: sample(line, servers[name], turn, seconds)
        )
    return report.Outcome(lines, names, rounds.summarise(lines, names, samples, REFERENCES), absent, failures)
