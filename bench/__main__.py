"""``python -m bench``: the commands.

Exit code 0: measured, and this disk took part in every run. 1: this disk did not take part, or one of the runs
failed; what there is, is printed all the same. 2: the question is wrong, or fio is missing. A peer that is missing is
named and changes no exit code, for it says nothing about this disk.
"""

from __future__ import annotations

import os
import signal
import statistics
import sys
import tempfile
from dataclasses import asdict
from json import dumps
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import typer

from bench import copying, fio, report
from bench import repair as repairing
from bench.compare import compare
from bench.growth_command import growth, rates
from bench.profiling import profile
from bench.questions import Folder, Records, refuse, require_fio
from bench.quick import quick
from bench.run import run
from bench.subjects import find_program

app = typer.Typer(help="This disk and its peers under the same load.", no_args_is_help=True, add_completion=False)


@app.callback()
def commands() -> None:
    """This disk and its peers under the same load, side by side in one run."""


def leave(_number: int, _frame: FrameType | None) -> NoReturn:
    """End like an interrupted program does: through every ``with`` block, so that no server is left behind."""
    sys.exit(143)


app.command()(quick)
app.command()(run)
app.command()(compare)
app.command()(profile)
app.command()(growth)
app.command("services")(rates)


@app.command()
def repair(
    json: Records = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long the undisturbed run measures.")] = 3.0,
    turns: Annotated[int, typer.Option("--rounds", min=1, help="How many replacements, each on a new disk.")] = 3,
    folder: Folder = None,
    size_mib: Annotated[int, typer.Option(min=64, help="The size of the disk.")] = 512,
) -> None:
    """Replace a Downstairs under fio: what the repair costs the guest, and how fast it is beside a plain copy."""
    require_fio()
    done: list[repairing.Round] = []
    for number in range(turns):
        with tempfile.TemporaryDirectory(prefix="bench-", dir=folder) as home:
            try:
                found = repairing.run(Path(home), size_mib, seconds)
            except (repairing.RepairError, fio.FioError) as problem:
                typer.echo(f"bench: {problem}", err=True)
                raise typer.Exit(1) from None
        done.append(found)
        typer.echo(
            f"round {number + 1}: random write {found.write_iops:,.0f} a second, beside the repair "
            f"{found.write_iops_beside:,.0f} ({found.write_ratio:.2f}); repair {found.repair_mib_s:,.0f} MiB/s, copy "
            f"{found.copy_mib_s:,.0f} MiB/s ({found.repair_ratio:.2f})"
        )
    write, fetch = (statistics.median(values) for values in zip(*((r.write_ratio, r.repair_ratio) for r in done)))
    typer.echo(f"medians: the guest keeps {write:.2f} of its write rate, the repair has {fetch:.2f} of a copy's rate")
    if json is not None:
        json.write_text(dumps([asdict(found) for found in done], indent=2) + "\n")


@app.command()
def copy(
    json: Records = None,
    turns: Annotated[int, typer.Option("--rounds", min=1, help="How many rounds; figures are their medians.")] = 5,
    folder: Folder = None,
    size_mib: Annotated[int, typer.Option(min=16, help="The size of the disk and of the file.")] = 1024,
) -> None:
    """Copy a file to this disk and back, by the asyncio client and by nbdcopy, in turns."""
    if find_program("nbdcopy") is None:
        refuse("nbdcopy is not installed (Debian package libnbd-bin); there is nothing to compare with.")
    machine = report.conditions(os.getloadavg()[0], os.cpu_count() or 1)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=folder) as home:
        try:
            found = copying.run(Path(home), size_mib, turns)
        except copying.CopyError as problem:
            typer.echo(f"bench: {problem}", err=True)
            raise typer.Exit(1) from None
    for line in [*copying.summary(found, size_mib), machine]:
        typer.echo(line)
    if json is not None:
        json.write_text(dumps(copying.records(found), indent=2) + "\n")


@app.command("control-plane")
def control_plane(
    json: Annotated[Path | None, typer.Option(help="Write the figures to this file as well.")] = None,
    disks: Annotated[int, typer.Option(min=0, help="How many disks there are already.")] = 10_000,
    snapshots: Annotated[int, typer.Option(min=0, help="How many snapshots there are already.")] = 10_000,
    turns: Annotated[int, typer.Option("--rounds", min=1, help="How many rounds; figures are their medians.")] = 20,
    empty: Annotated[str | None, typer.Option(help="URL of a new database; SQLite in a file by default.")] = None,
    crowded: Annotated[str | None, typer.Option(help="URL of another new database, for those disks.")] = None,
) -> None:
    """Make and delete a disk on an empty database and on a crowded one: does the one cost more than the other?"""
    # Not above: the other commands measure programs, and do without the control plane and its database.
    from bench import control_plane as plane

    if (empty is None) != (crowded is None):
        refuse("--empty and --crowded belong together: give both, or none.")
    try:
        found = plane.run(None if empty is None else (empty, str(crowded)), disks, snapshots, turns)
    except plane.DatabaseError as problem:
        refuse(f"{problem}.")
    for line in [*plane.summary(found), report.conditions(os.getloadavg()[0], os.cpu_count() or 1)]:
        typer.echo(line)
    if json is not None:
        json.write_text(dumps(found, indent=2) + "\n")


@app.command()
def replacement(
    json: Annotated[Path | None, typer.Option(help="Write the figures to this file as well.")] = None,
    dependents: Annotated[int, typer.Option(min=1, help="How many disks were made of the snapshot.")] = 1_000,
    unrelated: Annotated[int, typer.Option(min=0, help="How many volumes there are beside them.")] = 10_000,
    turns: Annotated[int, typer.Option("--rounds", min=1, help="How many rounds; times are their medians.")] = 3,
) -> None:
    """Replace a lost copy of a snapshot in every disk made of it: does each cost the same, whatever else there is?"""
    from bench import replacement as replacing

    try:
        found = replacing.run(dependents, unrelated, turns)
    except replacing.Incomplete as problem:
        typer.echo(f"bench: {problem}", err=True)
        raise typer.Exit(1) from None
    for line in [*replacing.summary(found), report.conditions(os.getloadavg()[0], os.cpu_count() or 1)]:
        typer.echo(line)
    if json is not None:
        json.write_text(dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, leave)
    app()
