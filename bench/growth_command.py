"""``python -m bench growth`` and ``python -m bench services``: their options, what they print and write.

What it guarantees: whether there is room for the disks and a place for the results is found out before the first
measurement. Exit code 0: everything was measured, whatever the limits say of it; 1: a point or a rate could not be
measured, and is named; 2: the question is wrong.
"""

from __future__ import annotations

import importlib.util
import json
import os
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from bench import growth as growing
from bench import growth_report, services
from bench.questions import Folder, refuse, require_fio, words
from bench.report import conditions

Only = Annotated[str | None, typer.Option(help="What to measure, separated by commas; everything by default.")]
Quick = Annotated[bool, typer.Option("--quick", help="Fewer and smaller points, one round: a look, not a result.")]
Out = Annotated[Path | None, typer.Option(file_okay=False, help="Write the results into this directory as well.")]


def check_out(out: Path | None) -> None:
    """Make the directory of the results, or refuse."""
    if out is None:
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as problem:
        refuse(f"--out {out}: nothing can be written there ({(problem.strerror or str(problem)).lower()}).")


def say(sentence: str) -> None:
    """A line of what is known so far; whoever reads the results through a pipe does not get it."""
    typer.echo(sentence, err=True)


def growth(only: Only = None, quick: Quick = False, out: Out = None, folder: Folder = None) -> None:
    """Find out what gets dearer with the disk's size, its extents, its neighbours, un-flushed data and depth."""
    series: tuple[growing.Series, ...] = growing.SERIES
    try:
        series = growing.choose(words(only))
        growing.check_room(folder or Path(tempfile.gettempdir()), series, quick=quick)
    except ValueError as problem:
        refuse(str(problem))
    check_out(out)
    if out is not None and importlib.util.find_spec("matplotlib") is None:
        say(growth_report.WITHOUT_MATPLOTLIB)
    machine = conditions(os.getloadavg()[0], os.cpu_count() or 1)
    operations, rounds = growing.FULL_OPERATIONS, growing.FULL_ROUNDS
    if quick:
        operations, rounds = growing.QUICK_OPERATIONS, growing.QUICK_ROUNDS
    outcomes = growing.run(series, growing.Setting(folder, operations, rounds), quick=quick, tell=say)
    for line in growth_report.lines(outcomes, machine):
        typer.echo(line)
    typer.echo(growth_report.closing(outcomes))
    if out is not None:
        growth_report.write(out, outcomes, machine)
    if any(outcome.failures for outcome in outcomes):
        raise typer.Exit(1)


def rates(only: Only = None, quick: Quick = False, out: Out = None, folder: Folder = None) -> None:
    """Measure snapshots, clones and repair beside a plain copy; sagas of Nexus; cases of the explorer."""
    names: tuple[str, ...] = ()
    try:
        names = services.choose(words(only))
    except ValueError as problem:
        refuse(str(problem))
    if services.NEEDS_FIO & set(names):
        require_fio()
    check_out(out)
    machine = conditions(os.getloadavg()[0], os.cpu_count() or 1)
    outcome = services.run(names, services.QUICK if quick else services.FULL, folder, say)
    for rate in outcome.rates:
        typer.echo(rate.sentence())
    for sentence in outcome.failures:
        typer.echo(f"failed: {sentence}")
    typer.echo(machine)
    if out is not None:
        found = {
            "machine": machine,
            "rates": [rate.record() for rate in outcome.rates],
            "failures": outcome.failures,
        }
        (out / "services.json").write_text(json.dumps(found, indent=2) + "\n")
    if outcome.failures:
        raise typer.Exit(1)
