"""The command ``nexus``: finds the group that was asked for, and says in one sentence what went wrong.

What it guarantees is what :mod:`crucible_emu.cli.program` does. A group is a module ``nexus.cli.<name>`` with a Typer
app named ``app``, and one row in :data:`GROUPS`.
"""

from __future__ import annotations

import typer

from crucible_emu.cli import program

GROUPS: dict[str, str] = {
    "demo": "A sled dies, and nothing is lost: see it happen, with proof.",
    "rack": "Run a rack with a Nexus on this machine.",
    "run": "Run a Nexus.",
    "disk": "Make, fill, attach, read and delete disks.",
    "snapshot": "Keep what a disk holds at one moment.",
    "image": "Make images of snapshots, for many disks.",
    "project": "What disks, snapshots and images belong to.",
    "token": "Who may do what.",
    "sled": "The computers of the rack.",
    "physical-disk": "The disks in them.",
    "volume": "What a disk is made of, and whether that is sound.",
    "replacement": "Lost copies, and their successors.",
    "saga": "Work that ends done or undone.",
    "task": "What Nexus does by itself.",
    "check": "Whether all that Nexus knows fits together.",
}
"""Every group and the line that ``--help`` shows for it."""

PROGRAM = "nexus"


class Groups(program.LazyGroups):
    """The groups of this program."""

    PACKAGE = "nexus.cli"
    GROUPS = GROUPS


app = typer.Typer(cls=Groups, no_args_is_help=True, rich_markup_mode="rich", add_completion=True)


def _show_version(wanted: bool) -> None:
    program.show_version(PROGRAM, wanted)


@app.callback()
def root(
    version: bool = typer.Option(False, "--version", help="Show the version and leave.", callback=_show_version),
) -> None:
    """The control plane of the emulated rack: disks, snapshots and images, kept whole while hardware is lost.

    Start with [bold]nexus rack up /tmp/rack --sleds 5[/bold], then [bold]nexus disk create --help[/bold].
    """


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and leave with its exit code."""
    program.run(app, PROGRAM, arguments)
