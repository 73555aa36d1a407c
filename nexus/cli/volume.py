"""``nexus volume``: what a disk is made of, and whether that is sound. For operators."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from typing import Annotated, TypeVar

import typer
from rich.console import Console

from crucible_emu.cli.program import FAILURE_EXIT
from crucible_emu.cli.sizes import format_size
from nexus.api.emulator_documents import CheckFinding, LockReport, VerifyReport, VolumeTree
from nexus.api.members import is_id
from nexus.cli.session import AsJson, Project, Rack, Session, converse
from nexus.cli.showing import print_json, show_one
from nexus.cli.volume_tree import drawn

T = TypeVar("T")

app = typer.Typer(no_args_is_help=True)

WIDTH = 240
"""Of a tree that goes into a file or a pipe."""

Which = Annotated[
    str, typer.Argument(metavar="VOLUME", help="A volume's id, a disk's, snapshot's or image's id, or a disk's name.")
]


@app.callback()
def group() -> None:
    """Volumes: what disks, snapshots and images are made of. For operators."""


def _asked(volume: str, rack: Rack, project: Project, ask: Callable[[Session, str], Awaitable[T]]) -> T:
    """The answer about the volume that is meant."""

    async def work(nexus: Session) -> T:
        wanted = volume
        if not is_id(volume):
            wanted = str((await nexus.external.disk_view(volume, nexus.project)).id)
        return await ask(nexus, wanted)

    return converse(work, rack, project, operator=True)


@app.command()
def show(volume: Which, project: Project = None, rack: Rack = None, as_json: AsJson = False) -> None:
    """Show whose a volume is, and since when."""

    async def ask(nexus: Session, wanted: str) -> VolumeTree:
        return await nexus.emulator.volume_view(wanted)

    found = _asked(volume, rack, project, ask)
    show_one(found, as_json=as_json, but=("tree", "owner"))
    if not as_json and found.owner is not None:
        print(f"of {found.owner.kind.replace('_', ' ')} {found.owner.name or ''}, {found.owner.id}", flush=True)


@app.command()
def tree(volume: Which, project: Project = None, rack: Rack = None, as_json: AsJson = False) -> None:
    """Draw what a volume is made of, with the state of each region."""

    async def ask(nexus: Session, wanted: str) -> VolumeTree:
        return await nexus.emulator.volume_view(wanted)

    found = _asked(volume, rack, project, ask)
    if as_json:
        print_json(found.model_dump(mode="json"))
        return
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=WIDTH)
    console.print(drawn(found))
    sys.stdout.flush()


@app.command()
def check(volume: Which, project: Project = None, rack: Rack = None, as_json: AsJson = False) -> None:
    """Say what Nexus finds wrong about a volume; exit code 1 where there is something."""

    async def ask(nexus: Session, wanted: str) -> list[CheckFinding]:
        found = await nexus.emulator.volume_view(wanted)
        names = {str(found.id), wanted}
        return [each for each in (await nexus.emulator.check()).findings if names & set(each.ids)]

    findings = _asked(volume, rack, project, ask)
    say_findings(findings, as_json=as_json)


def say_findings(findings: list[CheckFinding], *, as_json: bool) -> None:
    """Each on a line; leaves with exit code 1 where there are some."""
    if as_json:
        print_json({"findings": [each.model_dump(mode="json") for each in findings]})
    else:
        for each in findings:
            print(f"{each.rule}: {each.sentence}")
        print("Nothing is wrong." if not findings else f"{len(findings)} findings.", flush=True)
    if findings:
        raise typer.Exit(FAILURE_EXIT)


@app.command("lock-holder")
def lock_holder(volume: Which, project: Project = None, rack: Rack = None, as_json: AsJson = False) -> None:
    """Show who holds the lock of a volume: only one at a time may change what it is made of."""

    async def ask(nexus: Session, wanted: str) -> LockReport:
        return await nexus.emulator.volume_lock_holder(wanted)

    found = _asked(volume, rack, project, ask)
    if as_json:
        print_json(found.model_dump(mode="json"))
    elif found.holder is None:
        print("Nobody holds the lock.", flush=True)
    else:
        show_one(found.holder, as_json=False)


@app.command()
def verify(volume: Which, project: Project = None, rack: Rack = None, as_json: AsJson = False) -> None:
    """Read all of a volume and compare its replicas; exit code 1 where something is found.

    A disk in use is not read.
    """

    async def ask(nexus: Session, wanted: str) -> VerifyReport:
        return await nexus.emulator.volume_verify(wanted)

    found = _asked(volume, rack, project, ask)
    if as_json:
        print_json(found.model_dump(mode="json"))
    else:
        for sentence in (*found.findings, *(f"not looked at: {each}" for each in found.not_looked_at)):
            print(sentence)
        ledgers = f", {len(found.ledgers)} with the digests of its day" if found.ledgers else ""
        read = f"{format_size(found.bytes_read)} read, {found.copies_compared} copies compared{ledgers}"
        digest = "" if found.digest is None else f"; blake3 {found.digest}"
        print(f"{read}: {'no' if not found.findings else len(found.findings)} findings{digest}", flush=True)
    if found.findings:
        raise typer.Exit(FAILURE_EXIT)
