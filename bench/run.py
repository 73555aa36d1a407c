"""``python -m bench run``: the measurement whose report can be kept, and repeated by anyone.

What it guarantees: whatever can be found wrong with the question is found before the first disk is started: names,
programs, room for the disks, room for the report. What it writes names no host, no user and no folder.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from bench import charts, cipher, document, machine, measuring, page, report, results
from bench.lines import MIB, RUN, SECTOR, Line, choose
from bench.questions import Folder, Lines, SizeMib, refuse, require_fio, words
from bench.subjects import ALL, CIPHER, ENCRYPTED, OURS, Subject, is_ours

ROUNDS, ROUNDS_QUICK = 5, 3
SECONDS, SECONDS_QUICK = 3.0, 1.0
SECTOR_BYTES = 512
ROOM = 1.1
"""The files of a disk over its size: block contexts, logs, folders."""

Out = Annotated[Path, typer.Option(metavar="DIR", help="Where results.json, report.md, report.html and charts go.")]
Quick = Annotated[bool, typer.Option("--quick", help=f"{ROUNDS_QUICK} rounds of {SECONDS_QUICK:g} s.")]
Rounds = Annotated[int | None, typer.Option("--rounds", min=1, help=f"How many rounds. [default: {ROUNDS}]")]
Seconds = Annotated[float | None, typer.Option(min=0.1, help=f"How long each run measures. [default: {SECONDS:g}]")]
Subjects = Annotated[
    str, typer.Option("--subjects", help=f"The forms of this disk, separated by commas; '{OURS}*' for all of them.")
]
Against = Annotated[
    str | None,
    typer.Option(
        "--against", help="The peers, separated by commas; 'nbdkit-*' and the like are allowed; all by default."
    ),
]


def pick(option: str, given: str | None, table: Sequence[Subject]) -> list[Subject]:
    """The subjects of a table that an option names; all of them where it is absent."""
    patterns = words(given)
    if given is not None and not patterns:
        refuse(f"{option} names nobody; there are {', '.join(subject.name for subject in table)}.")
    for pattern in patterns:
        if not any(fnmatchcase(subject.name, pattern) for subject in table):
            refuse(f"{option} does not know '{pattern}'; there are {', '.join(subject.name for subject in table)}.")
    return [
        subject for subject in table if given is None or any(fnmatchcase(subject.name, pattern) for pattern in patterns)
    ]


def lines_for(given: str | None, own: Sequence[Subject]) -> tuple[Line, ...]:
    """The lines to run. By default those of the table of floors, and those in small blocks where a form of this disk
    was made for them."""
    with_sectors = any(subject.block_bytes == SECTOR_BYTES for subject in own)
    usual, more = (RUN + SECTOR, ()) if with_sectors else (RUN, SECTOR)
    try:
        return choose(words(given), usual, more)
    except ValueError as problem:
        refuse(str(problem))


def require_charts() -> None:
    if not charts.is_installed():
        refuse("the charts need matplotlib: pip install '.[bench]'.")


def require_out(out: Path) -> None:
    """Make the folder of the report; refuse where nothing can be written there."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    except OSError as problem:
        reason = (problem.strerror or str(problem)).lower()
        refuse(f"--out {out}: nothing can be written there ({reason}); give a folder that is yours.")


def require_room(folder: Path | None, subjects: Sequence[Subject], size_mib: int) -> None:
    """Refuse where the disks do not fit."""
    where = Path(tempfile.gettempdir()) if folder is None else folder
    wanted_mib = round(sum(subject.copies for subject in subjects) * size_mib * ROOM)
    free_mib = shutil.disk_usage(where).free // MIB
    if free_mib < wanted_mib:
        refuse(
            f"--folder {where}: the disks need {wanted_mib:,} MiB, {free_mib:,} are free; "
            "take another folder, a smaller --size-mib or fewer of --against."
        )


def write(found: results.Results, out: Path) -> None:
    """The document, the report in both forms, and the charts."""
    results.write(found, out)
    pictures = charts.draw(found)
    for name, data in pictures.items():
        (out / name).write_bytes(data)
    blocks = page.page(found)
    (out / "report.md").write_text(document.markdown(blocks))
    (out / "report.html").write_text(document.html(page.TITLE, blocks, pictures))


def run(
    out: Out,
    is_quick: Quick = False,
    turns: Rounds = None,
    seconds: Seconds = None,
    subjects: Subjects = OURS,
    against: Against = None,
    lines: Lines = None,
    folder: Folder = None,
    size_mib: SizeMib = 256,
) -> None:
    """Measure this disk and its peers thoroughly, and write a report that can be kept: some twenty minutes."""
    own = pick("--subjects", subjects, [subject for subject in ALL if is_ours(subject.name)])
    chosen = [*own, *pick("--against", against, [subject for subject in ALL if not is_ours(subject.name)])]
    with_cipher = any(subject.name == ENCRYPTED for subject in chosen)
    asked = results.Asked(
        rounds=turns or (ROUNDS_QUICK if is_quick else ROUNDS),
        seconds=seconds or (SECONDS_QUICK if is_quick else SECONDS),
        size_mib=size_mib,
        lines=lines_for(lines, own),
        subjects=(*map(results.describe, chosen), *([results.CIPHER_ALONE] if with_cipher else [])),
    )
    require_fio()
    require_charts()
    require_out(out)
    require_room(folder, chosen, size_mib)
    found, failed = measured(asked, chosen, folder)
    write(found, out)
    for sentence in [*page.verdict_lines(found), page.noise(found)]:
        typer.echo(sentence)
    for sentence in report.complaints(found.absent, found.disqualified, found.failures):
        typer.echo(sentence, err=True)
    typer.echo(f"written: {out / results.FILE}, {out / 'report.md'}, {out / 'report.html'}")
    if failed or any(subject.name in {**found.absent, **found.disqualified} for subject in own):
        raise typer.Exit(1)


def measured(asked: results.Asked, chosen: Sequence[Subject], folder: Path | None) -> tuple[results.Results, bool]:
    """Do it: what was found, and whether a run failed. A person at a terminal sees how far it is."""
    date = datetime.now(UTC).strftime("%Y-%m-%d")
    commit, programs = machine.commit_of(machine.measured_tree()), machine.versions(chosen)
    places, names = machine.private_places(), machine.private_names()
    with (
        tempfile.TemporaryDirectory(prefix="bench-", dir=folder) as home,
        Console(stderr=True).status("before the first round") as status,
    ):
        before = machine.observe(Path(home))
        outcome = measuring.run(
            chosen,
            asked.lines,
            asked.rounds,
            asked.seconds,
            asked.size_mib * MIB,
            Path(home),
            status.update,
            {CIPHER: cipher.measure} if results.CIPHER_ALONE in asked.subjects else {},
        )
        places = (home, *places)
    found = results.gather(
        outcome,
        asked,
        before,
        commit,
        programs,
        date,
        lambda text: machine.without_places(text, places, names),
    )
    return found, bool(outcome.failures)
