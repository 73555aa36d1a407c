"""``python -m bench compare A B``: what has changed from one run to another.

What it is for: two machines, two days or two commits. Rates of two runs say nothing about each other; ratios to the
same peer do, for the peer was measured in the same rounds on the same machine. So what is compared is each subject's
ratio to the peer in A and in B.

What it guarantees: a change is called one only where the ranges of the two ratios over their rounds do not touch; else
it is within the noise, whatever the medians say. All is computed anew from the samples in both files.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from json import dumps
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench import report
from bench.questions import REPORT_COLUMNS, Records, refuse
from bench.results import Results, ResultsError, read
from bench.rounds import Ratio, of, ratio
from bench.subjects import PEER

First = Annotated[Path, typer.Argument(metavar="A", help="A results.json of 'bench run', or the folder that has it.")]
Second = Annotated[Path, typer.Argument(metavar="B", help="Another one.")]
Peer = Annotated[str, typer.Option(help="Whose rate all others are taken relative to.")]


@dataclass(frozen=True, slots=True)
class Change:
    """One line of one subject: its rate over the peer's in both runs (``None``: not measured there), and how many times
    the one in A the one in B is, with the extremes that the ranges allow. ``within_noise`` is ``None`` where there is
    no change to judge, or a run of one round, which shows no noise."""

    line: str
    subject: str
    first: Ratio | None
    second: Ratio | None
    change: Ratio | None
    within_noise: bool | None

    @property
    def word(self) -> str:
        if self.change is None:
            missing = [name for name, found in (("A", self.first), ("B", self.second)) if found is None]
            return f"not measured in {' and '.join(missing)}"
        if self.within_noise is None:
            return "one round: noise unknown"
        if self.within_noise:
            return "within the noise"
        return "faster" if self.change.median > 1 else "slower"


def change(first: Ratio, second: Ratio) -> Ratio:
    """How many times the first ratio the second one is; the extremes pair the one's lowest with the other's highest."""
    return Ratio(second.median / first.median, second.low / first.high, second.high / first.low)


def compared(first: Results, second: Results, peer: str) -> list[Change]:
    """Every line and subject that either run measured, but the peer itself."""
    changes = []
    for line, subject in pairs(first, second):
        if subject == peer:
            continue
        ratios, noise_known = [], True
        for run in (first, second):
            own, reference = of(run.samples, line, subject), of(run.samples, line, peer)
            ratios.append(ratio(own, reference))
            noise_known = noise_known and len(own) > 1
        one, other = ratios
        if one is None and other is None:
            continue
        both = None if one is None or other is None else change(one, other)
        within = both.low <= 1 <= both.high if both is not None and noise_known else None
        changes.append(Change(line, subject, one, other, both, within))
    return changes


def pairs(first: Results, second: Results) -> list[tuple[str, str]]:
    """All (line, subject) that either run has, in the order of the first, then of the second."""
    found = {
        (line.name, subject.name): None
        for run in (first, second)
        for line in run.asked.lines
        for subject in run.asked.subjects
    }
    return list(found)


def differences(first: Results, second: Results) -> list[str]:
    """What is not the same in both runs, one sentence each."""
    said = []
    for what, one, other in (
        ("commit", first.commit or "unknown", second.commit or "unknown"),
        ("machine", machine(first), machine(second)),
        ("run", asked(first), asked(second)),
    ):
        if one != other:
            said.append(f"{what}: A {one}; B {other}")
    for name in {**first.programs, **second.programs}:
        versions = [run.programs.get(name, "none") for run in (first, second)]
        if versions[0] != versions[1]:
            said.append(f"{name}: A {versions[0]}; B {versions[1]}")
    for name, run in (("A", first), ("B", second)):
        said += [f"{name}: {sentence}" for sentence in report.complaints(run.absent, run.disqualified, run.failures)]
    return said


def machine(run: Results) -> str:
    found = run.machine
    return f"{found.cores} cores of {found.processor}, {found.system} {found.kernel}, {found.file_system}"


def asked(run: Results) -> str:
    return f"{run.asked.rounds} rounds of {run.asked.seconds:g} s, {run.asked.size_mib} MiB"


def shown(changes: Sequence[Change], peer: str) -> Table:
    """One row for each line and subject."""
    table = Table(title=f"rate over that of {peer}, below it its range over the rounds")
    for name in ("line", "subject"):
        table.add_column(name, no_wrap=True)
    for name in ("A", "B", "B / A"):
        table.add_column(name, justify="right")
    table.add_column("")
    for each in changes:
        table.add_row(each.line, each.subject, *map(report.times, (each.first, each.second, each.change)), each.word)
    return table


def compare(first: First, second: Second, peer: Peer = PEER, json: Records = None) -> None:
    """Compare two results of 'bench run': each subject's rate relative to the peer, in both.

    Exit code 0: compared. 1: they have nothing in common that could be. 2: a file holds no results.
    """
    if json is not None and not json.parent.is_dir():
        refuse(f"--json {json}: there is no folder {json.parent}.")
    try:
        one, other = read(first), read(second)
    except ResultsError as problem:
        refuse(f"{problem}.")
    changes = compared(one, other, peer)
    console = Console(width=None if sys.stdout.isatty() else REPORT_COLUMNS)
    console.print(shown(changes, peer))
    for sentence in differences(one, other):
        console.print(escape(sentence), soft_wrap=True, highlight=False)
    if json is not None:
        found = [asdict(each) | {"verdict": each.word} for each in changes]
        json.write_text(dumps(found, indent=2) + "\n")
    if not any(each.change is not None for each in changes):
        for name, run in (("A", one), ("B", other)):
            if peer not in run.measured:
                typer.echo(f"bench: {name} has no figures of {peer}; --peer names another one.", err=True)
        typer.echo("bench: the two runs have nothing in common that could be compared.", err=True)
        raise typer.Exit(1)
