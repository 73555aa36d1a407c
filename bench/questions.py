"""What the commands of the bench have in common: the options that all understand alike, and how a question is refused.

What it guarantees: a question that cannot be answered is refused with one sentence and exit code 2 before anything was
measured; nobody loses an hour to an option.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NoReturn

import typer

from bench.subjects import find_program

Against = Annotated[str | None, typer.Option(help="The peers to run, separated by commas; all by default.")]
Lines = Annotated[
    str | None, typer.Option(help="The lines to run, separated by commas; 'randread-*' and the like are allowed.")
]
Folder = Annotated[
    Path | None, typer.Option(exists=True, file_okay=False, writable=True, help="Where the disks' files go.")
]
SizeMib = Annotated[int, typer.Option(min=16, help="The size of every disk.")]
Records = Annotated[Path | None, typer.Option(help="Write the records to this file as well.")]


REPORT_COLUMNS = 120
"""A file or a pipe has no width of its own; a table needs more than the usual guess of 80."""


def refuse(sentence: str) -> NoReturn:
    """Say what is wrong with the question, and leave with 2."""
    typer.echo(f"bench: {sentence}", err=True)
    raise typer.Exit(2)


def words(given: str | None) -> list[str]:
    """The words of an option that takes several, separated by commas."""
    return [word.strip() for word in (given or "").split(",") if word.strip()]


def require_fio() -> None:
    """Refuse to go on without fio."""
    if find_program("fio") is None:
        refuse("fio is not installed (Debian package fio); nothing can be measured without it.")
