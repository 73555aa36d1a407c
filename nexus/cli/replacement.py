"""``nexus replacement``: lost copies and their successors. For operators.

What it guarantees: looking changes nothing. ``request`` and ``believe`` return when what was said is written down; the
background tasks do the rest, and ``watch`` shows it.
"""

from __future__ import annotations

from typing import Annotated

import typer

from crucible_emu.errors import UsageError
from nexus.api.replacement_documents import (
    RegionSnapshotToReplace,
    RegionToReplace,
    Replacement,
    ReplacementDetail,
    ReplacementRequest,
    SurvivorDecided,
    SurvivorDecision,
    WaitingReport,
)
from nexus.cli.replacement_picture import KINDS, progress_of, repair_progress
from nexus.cli.session import AsJson, Rack, Session, all_of, converse
from nexus.cli.showing import cell, print_json, print_table, show_many, show_one

app = typer.Typer(no_args_is_help=True)

Which = Annotated[str, typer.Argument(metavar="ID", help="The request.")]


@app.callback()
def group() -> None:
    """Replacements: a copy that is lost gets a successor, whatever is deleted meanwhile. For operators."""


@app.command("list")
def list_(
    state: Annotated[str | None, typer.Option(metavar="STATE", help="Only those in this state.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Those that are complete, too.")] = False,
    rack: Rack = None,
    as_json: AsJson = False,
) -> None:
    """Show what is being replaced, the oldest request first."""
    found = converse(
        lambda nexus: all_of(nexus.emulator.replacement_list(state, everything=everything)), rack, operator=True
    )
    found.sort(key=lambda each: (each.request_time, each.id))
    columns = {
        "what": lambda each: KINDS[each.kind],
        "region": lambda each: each.old_region_id,
        "how far": progress_of,
        "asked": lambda each: each.request_time,
        "id": lambda each: each.id,
    }
    show_many(found, columns, as_json=as_json)


@app.command()
def show(request: Which, rack: Rack = None, as_json: AsJson = False) -> None:
    """Show one request with its steps and with how far repairs are."""
    found = converse(lambda nexus: nexus.emulator.replacement_view(request), rack, operator=True)
    parts = ("repair_steps", "repairs", "volume_steps", "refused_sources", "note")
    show_one(found, as_json=as_json, but=parts)
    if not as_json:
        _show_parts(found)


def _show_parts(found: ReplacementDetail) -> None:
    print(f"\n{progress_of(found)}")
    if found.note is not None:
        print(f"It does not go on since {cell(found.note.since)}: {found.note.reason}")
    if found.repair_steps:
        print()
        rows: list[tuple[str, ...]] = [
            (cell(each.time), each.who, cell(each.instance_id or each.pantry), cell(each.vmm_id or each.job_id))
            for each in found.repair_steps
        ]
        print_table(("asked", "whom", "which", "with"), rows)
    if found.repairs:
        print()
        told: list[tuple[str, ...]] = [
            (cell(each.time_started), each.type, repair_progress(each), cell(each.time_ended)) for each in found.repairs
        ]
        print_table(("repair since", "kind", "how far", "ended"), told)
    if found.volume_steps:
        print()
        steps: list[tuple[str, ...]] = [
            (
                str(each.volume_id),
                "-" if each.owner is None else f"{each.owner.kind.replace('_', ' ')} {cell(each.owner.name)}",
                each.state.replace("_", " "),
                cell(each.request_time),
                str(each.id),
            )
            for each in found.volume_steps
        ]
        print_table(("volume", "of", "step", "since", "id"), steps)
    for source in found.refused_sources:
        print(f"not cloned: {source.source}: {source.reason}")


@app.command()
def request(
    region: Annotated[
        str | None, typer.Option("--region", metavar="ID", help="A region, read/write or read-only.")
    ] = None,
    snapshot_region: Annotated[
        tuple[str, str, str] | None,
        typer.Option("--snapshot-region", metavar="DATASET REGION SNAPSHOT", help="The snapshot of a region."),
    ] = None,
    rack: Rack = None,
    as_json: AsJson = False,
) -> None:
    """Have a copy replaced that is not lost: a disk that is about to fail, say.

    [bold]Examples[/bold]

      nexus replacement request --region 5a1c3f0e-7a3b-4d52-9c55-3f3c1b6a9d10

      nexus replacement request --snapshot-region DATASET REGION SNAPSHOT
    """
    if (region is None) == (snapshot_region is None):
        raise UsageError("what is to be replaced is to be said once: give --region or --snapshot-region")

    async def work(nexus: Session) -> Replacement:
        body = _wish(region, snapshot_region)
        return await nexus.emulator.replacement_request(body)

    show_one(converse(work, rack, operator=True), as_json=as_json)


def _wish(region: str | None, snapshot_region: tuple[str, str, str] | None) -> ReplacementRequest:
    if snapshot_region is None:
        return ReplacementRequest(target=RegionToReplace.model_validate({"type": "region", "region_id": region}))
    dataset_id, region_id, snapshot_id = snapshot_region
    ids = {"dataset_id": dataset_id, "region_id": region_id, "snapshot_id": snapshot_id}
    return ReplacementRequest(target=RegionSnapshotToReplace.model_validate({"type": "region_snapshot"} | ids))


@app.command()
def waiting(rack: Rack = None, as_json: AsJson = False) -> None:
    """Show what every open request waits for and since when, and who holds everybody up."""
    found = converse(lambda nexus: nexus.emulator.replacement_waiting(), rack, operator=True)
    if as_json:
        print_json(found.model_dump(mode="json"))
    else:
        _tell_waiting(found)


def _tell_waiting(found: WaitingReport) -> None:
    if not found.requests:
        print("No replacement is open.", flush=True)
    for each in found.requests:
        print(f"{KINDS[each.request.kind]} {each.request.old_region_id}, request {each.request.id}:")
        for reason in each.reasons:
            print(f"  since {cell(reason.since)}: {reason.sentence}")
    for line in found.locks:
        holder = "nobody" if line.holder is None else f"{line.holder}, since {cell(line.held_since)}"
        print(f"The lock of volume {line.volume_id} has {holder}. In line:")
        for waiter in line.line:
            let_by = "" if not waiter.overtaken else f", overtaken {waiter.overtaken} times"
            print(f"  since {cell(waiter.since)}: {waiter.what}{let_by}")
    for blocker in found.blockers:
        print(f"Holds up {len(blocker.held_up)}: {blocker.what}")


@app.command()
def watch(
    timeout_s: Annotated[
        float | None, typer.Option("--timeout", metavar="SECONDS", help="Give up then, with exit code 1. [never]")
    ] = None,
    rack: Rack = None,
    as_json: AsJson = False,
) -> None:
    """Watch until all that is lost is replaced: a live picture in a terminal, a line for each change elsewhere."""
    from nexus.cli.replacement_watch import watch_all

    watch_all(rack, timeout_s, as_json=as_json)


@app.command("to-do")
def to_do(rack: Rack = None, as_json: AsJson = False) -> None:
    """Show everything on expunged disks that is not replaced yet."""
    found = converse(lambda nexus: nexus.emulator.replacement_to_do(), rack, operator=True).copies
    columns = {
        "what": lambda each: KINDS[each.kind],
        "region": lambda each: each.region_id,
        "snapshot": lambda each: each.snapshot_id,
        "volume": lambda each: each.volume_id,
        "state": lambda each: each.state or "nobody has asked",
        "request": lambda each: each.request_id,
    }
    show_many(found, columns, as_json=as_json)


@app.command()
def believe(
    volume: Annotated[str, typer.Argument(metavar="VOLUME", help="The volume, by id.")],
    region: Annotated[str, typer.Argument(metavar="REGION", help="Its last good region, by id.")],
    rack: Rack = None,
    as_json: AsJson = False,
) -> None:
    """Decide that the last good copy of a volume is what the volume is.

    Where two of three copies are lost at once, the third may have missed what the other two acknowledged. Nobody can
    find that out any more; so a replacement waits for this word, where neither a running machine nor hashes of a time
    at rest prove it.
    """

    async def work(nexus: Session) -> SurvivorDecided:
        body = SurvivorDecision.model_validate({"volume_id": volume, "region_id": region})
        return await nexus.emulator.replacement_believe(body)

    show_one(converse(work, rack, operator=True), as_json=as_json)
