"""The command ``crucible-emu``: finds the group that was asked for, and says in one sentence what went wrong.

What it guarantees is what :mod:`crucible_emu.cli.program` does. A group is a module ``crucible_emu.cli.<name>`` with a
Typer app named ``app``, and one row in :data:`GROUPS`.
"""

from __future__ import annotations

import typer

from crucible_emu.cli import program

GROUPS: dict[str, str] = {
    "demo": "See the whole thing work on this machine.",
    "serve": "Serve a disk over NBD.",
    "attach": "Serve the disk that a VCR describes.",
    "downstairs": "Run Downstairs, one or many.",
    "host": "Give instances their disks, as Propolis does.",
    "agent": "Run a Crucible agent over a directory of regions.",
    "exercise": "Write to a disk and check what comes back.",
    "rack": "Run a rack on this machine.",
    "pantry": "Hold volumes for a control plane, over HTTP.",
    "region": "Make, fill, look at and check region directories.",
}
"""Every group and the line that ``--help`` shows for it. What is not installed is not listed."""

PROGRAM = "crucible-emu"


class Groups(program.LazyGroups):
    """The groups of this program."""

    PACKAGE = "crucible_emu.cli"
    GROUPS = GROUPS


app = typer.Typer(cls=Groups, no_args_is_help=True, rich_markup_mode="rich", add_completion=True)


def _show_version(wanted: bool) -> None:
    program.show_version(PROGRAM, wanted)


@app.callback()
def root(
    version: bool = typer.Option(False, "--version", help="Show the version and leave.", callback=_show_version),
) -> None:
    """An emulator of the Crucible block storage, with real block I/O.

    Start with [bold]crucible-emu demo[/bold], then [bold]crucible-emu serve --help[/bold].
    """


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and leave with its exit code."""
    program.run(app, PROGRAM, arguments)
