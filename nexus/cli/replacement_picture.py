"""Replacements as people see them: how far each is, and what it waits for. Pure: from documents to what is printed.

What it guarantees: a bar is never further than what is known. The stages are those of the tables of states (nexus.md
§2) in the order in which a request that meets no trouble goes through them; a back edge takes the bar back.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from nexus.api.replacement_documents import LostCopy, Repair, Replacement, WaitingReport

KINDS = {"region": "region", "region_snapshot": "region snapshot", "read_only_region": "read-only region"}
STAGES = {
    "region": ("requested", "allocating", "running", "driving", "replacement_done", "completing", "complete"),
    "read-only": (
        *("requested", "allocating", "replacement_done", "deleting_old_volume", "running", "completing"),
        "complete",
    ),
}
BAR_CELLS = 12
DONE, LEFT = "█", "░"


def stages(kind: str) -> tuple[str, ...]:
    """The states of a request of this kind, in order."""
    return STAGES["region" if kind == "region" else "read-only"]


def bar(done: int, total: int, cells: int = BAR_CELLS) -> str:
    """So much of it; full only when all is done."""
    filled = cells if done >= total else min(cells - 1, done * cells // max(1, total))
    return DONE * filled + LEFT * (cells - filled)


def progress_of(request: Replacement) -> str:
    """A bar and a state."""
    known = stages(request.kind)
    return f"{bar(known.index(request.state), len(known) - 1)} {request.state.replace('_', ' ')}"


def repair_progress(repair: Repair) -> str:
    """A bar and how many of how many, as far as the Upstairs told."""
    if repair.total_items is None or repair.done_items is None:
        return repair.state
    done = repair.total_items if repair.state == "succeeded" else repair.done_items
    return f"{bar(done, repair.total_items)} {done} of {repair.total_items}, {repair.state}"


def since(moment: datetime, now: datetime) -> str:
    """How long ago, in the unit that says most."""
    seconds = max(0, int((now - moment).total_seconds()))
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"


def picture(
    requests: Sequence[Replacement], report: WaitingReport, unasked: Sequence[LostCopy], now: datetime
) -> RenderableType:
    """All that is followed: ``requests`` as they are now, with what those that are open wait for; ``unasked``: lost
    copies that nobody has asked a successor for yet."""
    waits = {each.request.id: each.reasons for each in report.requests}
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("what", "of", "how far", "waits for", "since"):
        table.add_column(title, overflow="fold")
    for request in sorted(requests, key=lambda each: (each.state == "complete", each.request_time, each.id)):
        reasons = waits.get(request.id, ())
        style = "green" if request.state == "complete" else "yellow" if request.note is not None else ""
        first = reasons[0] if reasons else None
        more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
        table.add_row(
            KINDS[request.kind],
            str(request.old_region_id)[:8],
            progress_of(request),
            "" if first is None else escape(first.sentence + more),
            "" if first is None else since(first.since, now),
            style=style,
        )
    done = sum(request.state == "complete" for request in requests)
    left = f"; {len(unasked)} lost copies have no request yet" if unasked else ""
    return Group(table, f"{done} of {len(requests)} replaced{left}")


def changes(before: dict[str, str], requests: Sequence[Replacement]) -> list[str]:
    """Where nobody looks at a terminal: a line for each request that came into another state; ``before`` is kept. A
    request that is driven goes back and forth between two states until its repair is over; they are told as one."""
    found = []
    for request in sorted(requests, key=lambda each: (each.request_time, each.id)):
        state = "running" if request.state == "driving" else request.state
        if before.get(str(request.id)) != state:
            before[str(request.id)] = state
            found.append(f"{KINDS[request.kind]} {request.old_region_id}: {state.replace('_', ' ')}")
    return found
