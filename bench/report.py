"""The table for a person and the records for a program.

What it guarantees: whoever could not take part is named with the reason, in the table's footing and in the records,
and so is every single run that failed. A ratio is printed with its extremes over the rounds; on a machine whose
ratios scatter, the reader sees it.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench.lines import Line
from bench.rounds import Failure, Ratio, Row, Sample

NOTHING = "–"
BUSY_SHARE = 0.25
"""The load per core before a run from which on others' work shows in the rates."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """All that a run found out. ``absent`` maps a subject's name to why it did not take part, ``disqualified`` to what
    it did to data; of those there are no rows. ``samples`` are what the rows were made of, ``invalid`` those of the
    disqualified."""

    lines: Sequence[Line]
    subjects: Sequence[str]
    rows: Sequence[Row]
    absent: Mapping[str, str]
    failures: Sequence[Failure]
    disqualified: Mapping[str, str] = field(default_factory=dict)
    samples: Sequence[Sample] = ()
    invalid: Sequence[Sample] = ()

    @property
    def without(self) -> dict[str, str]:
        """Those who have no figures, and why."""
        return {**self.absent, **{name: f"disqualified: {why}" for name, why in self.disqualified.items()}}

    def failed(self, own: Iterable[str]) -> bool:
        """Whether there is less than was asked for: a run without figures, or none of one of these subjects."""
        return bool(self.failures) or any(name in self.without for name in own)


def rate(line: Line, row: Row) -> str:
    """A rate per second in the line's unit: operations, or MiB where it is sequential."""
    if line.sequential:
        return f"{row.mib_s:,.0f} MiB"
    return f"{row.iops / 1000:,.1f}k" if row.iops >= 1000 else f"{row.iops:,.0f}"


def cpu(row: Row) -> str:
    """CPU time of the server per operation."""
    return NOTHING if row.cpu_us is None else f"{row.cpu_us:,.0f} µs"


def times(ratio: Ratio | None) -> str:
    """A ratio with its extremes."""
    if ratio is None:
        return NOTHING
    return f"{ratio.median:.2f}\n[dim]{ratio.low:.2f}–{ratio.high:.2f}[/dim]"


def table(outcome: Outcome, own: str, references: Sequence[str]) -> Table:
    """One row for each line: every subject's rate and CPU time, then ``own`` over each reference."""
    rows = {(row.line, row.subject): row for row in outcome.rows}
    shown = Table(title="rate per second, below it the server's CPU time per operation; ratio, below it its range")
    shown.add_column("line", no_wrap=True)
    for name in outcome.subjects:
        shown.add_column(name, justify="right")
    for name in references:
        shown.add_column(f"{own}\n/ {name}", justify="right")
    for line in outcome.lines:
        cells = [line.name]
        for name in outcome.subjects:
            row = rows.get((line.name, name))
            cells.append(NOTHING if row is None else f"{rate(line, row)}\n[dim]{cpu(row)}[/dim]")
        row = rows.get((line.name, own))
        cells += [times(None if row is None else row.ratios.get(name)) for name in references]
        shown.add_row(*cells)
    return shown


def complaints(absent: Mapping[str, str], disqualified: Mapping[str, str], failures: Iterable[Failure]) -> list[str]:
    """Who is missing, who is disqualified and what failed, one sentence each."""
    return [
        *(f"missing: {name}: {reason}" for name, reason in absent.items()),
        *(f"disqualified: {name}: {complaint}" for name, complaint in disqualified.items()),
        *(f"failed: {one.subject}, round {one.round + 1}: {one.line}: {one.reason}" for one in failures),
    ]


def footing(outcome: Outcome) -> list[str]:
    """Who is missing, who is disqualified and what failed."""
    return complaints(outcome.absent, outcome.disqualified, outcome.failures)


def conditions(load: float, cores: int, system: str = f"{platform.system()} {platform.release()}") -> str:
    """The machine in a sentence; ``load`` is its load average before the run. A busy machine is called busy."""
    sentence = f"{system}, {cores} cores, load {load:.1f} before the run"
    return f"{sentence}: the machine was busy, trust the ratios only" if load > cores * BUSY_SHARE else sentence


def show(console: Console, outcome: Outcome, own: str, references: Sequence[str], machine: str) -> None:
    """Print the table and its footing."""
    console.print(table(outcome, own, references))
    console.print(machine, highlight=False)
    for sentence in footing(outcome):
        console.print(escape(sentence), soft_wrap=True, highlight=False)


def records(outcome: Outcome, peer: str) -> list[dict[str, object]]:
    """``{line, subject, iops, mib_s, ratio_to_quorum}`` for each line and subject, in the order of the table.

    A subject that is absent or disqualified, or has no successful run of a line, keeps its record: its figures are
    ``None`` and ``reason`` says why. ``cpu_us`` and the latencies are there where they are known.
    """
    rows = {(row.line, row.subject): row for row in outcome.rows}
    found: list[dict[str, object]] = []
    for line in outcome.lines:
        for name in [*outcome.subjects, *outcome.without]:
            row = rows.get((line.name, name))
            record: dict[str, object] = {"line": line.name, "subject": name}
            if row is None:
                reasons = [one.reason for one in outcome.failures if (one.line, one.subject) == (line.name, name)]
                reason = outcome.without.get(name) or "; ".join(reasons)
                record |= {"iops": None, "mib_s": None, "ratio_to_quorum": None, "reason": reason}
            else:
                ratio = row.ratios.get(peer)
                record |= {
                    "iops": round(row.iops, 1),
                    "mib_s": round(row.mib_s, 2),
                    "ratio_to_quorum": None if ratio is None else round(ratio.median, 4),
                }
                for figure in ("cpu_us", "latency_us_p50", "latency_us_p99", "latency_us_p999"):
                    value = getattr(row, figure)
                    if value is not None:
                        record[figure] = round(value, 2)
            found.append(record)
    return found


def write_json(path: Path, found: Sequence[Mapping[str, object]]) -> None:
    """Write the records, one to a line."""
    path.write_text("[\n" + ",\n".join(json.dumps(record) for record in found) + "\n]\n")
