"""``python -m bench quick``: this disk and its peers in a few minutes, in one table on the terminal."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from bench import measuring, report
from bench.lines import MIB, choose
from bench.questions import REPORT_COLUMNS, Against, Folder, Lines, Records, SizeMib, refuse, require_fio, words
from bench.subjects import OURS, PEER, REFERENCES, SUBJECTS, Subject


def take_part(against: str | None) -> tuple[Subject, ...]:
    """This disk and the peers that ``--against`` names; all of them by default."""
    names = words(against)
    peers = [subject.name for subject in SUBJECTS if subject.name != OURS]
    for name in names:
        if name not in peers:
            refuse(f"--against does not know '{name}'; there are {', '.join(peers)}.")
    return tuple(subject for subject in SUBJECTS if subject.name == OURS or not names or subject.name in names)


def quick(
    json: Records = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long each run measures.")] = 1.0,
    turns: Annotated[int, typer.Option("--rounds", min=1, help="How many rounds; figures are their medians.")] = 3,
    against: Against = None,
    lines: Lines = None,
    folder: Folder = None,
    size_mib: SizeMib = 256,
) -> None:
    """Measure this disk and its peers in a few minutes: random 4 KiB and sequential 1 MiB, round by round."""
    try:
        chosen = choose(words(lines))
    except ValueError as problem:
        refuse(str(problem))
    subjects = take_part(against)
    require_fio()
    if json is not None and not json.parent.is_dir():
        refuse(f"--json {json}: there is no folder {json.parent}.")
    machine = report.conditions(os.getloadavg()[0], os.cpu_count() or 1)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=folder) as home:
        outcome = measuring.run(subjects, chosen, turns, seconds, size_mib * MIB, Path(home))
    console = Console(width=None if sys.stdout.isatty() else REPORT_COLUMNS)
    report.show(console, outcome, OURS, [name for name in REFERENCES if name in outcome.subjects], machine)
    if json is not None:
        report.write_json(json, report.records(outcome, PEER))
    if outcome.failed([OURS]):
        raise typer.Exit(1)
