"""Write what is generated of the documents: ``python docs/generate.py``.

``state-machines.md`` comes from the tables that the code runs, ``conformance.md`` from ``conformance.toml``,
``nexus-database.md`` from the schema of Nexus. In ``replacement.md`` and ``profile.md``, which somebody wrote, the
diagrams and tables are made; they stand between two marks. Tests compare the files with what this program would write,
so that no diagram can differ from the code.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Callable, Mapping
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

from crucible_emu.agent.states import REGION_TRANSITIONS, RUN_TRANSITIONS
from crucible_emu.downstairs.promotion import ACCEPTED
from crucible_emu.downstairs.session import TRANSITIONS as SESSION_TRANSITIONS
from crucible_emu.downstairs.session import Row as SessionRow
from crucible_emu.downstairs.session import State as SessionState
from crucible_emu.host.states import TRANSITIONS as INSTANCE_TRANSITIONS
from crucible_emu.host.states import InstanceState
from crucible_emu.rack.states import TRANSITIONS as SERVICE_TRANSITIONS
from crucible_emu.rack.states import ServiceState
from crucible_emu.supervisor.states import TRANSITIONS as PROCESS_TRANSITIONS
from crucible_emu.supervisor.states import ProcessState
from crucible_emu.upstairs.rules import RULES
from crucible_emu.upstairs.states import (
    ANY_MODE,
    ANY_PHASE,
    ANY_UPSTAIRS,
    CLIENT_TRANSITIONS,
    CONNECTING,
    NOT_STOPPING,
    UPSTAIRS_TRANSITIONS,
    ClientTransition,
    Mode,
    Phase,
    UpstairsState,
)
from nexus.db.description import describe
from nexus.db.schema import DiskState
from nexus.objects.disks import MOVES as DISK_MOVES
from nexus.replacement.machine import Machine
from nexus.replacement.read_only import READ_ONLY_REPLACEMENT
from nexus.replacement.region import REGION_REPLACEMENT
from nexus.replacement.step import READ_ONLY_REPLACEMENT_STEP

DOCS = Path(__file__).parent


def _names(values: frozenset[Phase] | frozenset[Mode] | frozenset[UpstairsState]) -> str:
    for known, name in (
        (ANY_PHASE, "any"),
        (NOT_STOPPING, "any but Stopping"),
        (CONNECTING, "Connecting"),
        (ANY_MODE, "any"),
        (ANY_UPSTAIRS, "any"),
    ):
        if values == known:
            return name
    order = {member: index for index, member in enumerate(type(next(iter(values))))}
    return ", ".join(value.value for value in sorted(values, key=lambda value: order[value]))


def _client_row(row: ClientTransition) -> str:
    conditions = []
    if row.reasons is not None:
        conditions.append("stopped for " + " or ".join(sorted(reason.value for reason in row.reasons)))
    if row.replayable is not None:
        conditions.append("its jobs can be replayed" if row.replayable else "its jobs cannot be replayed")
    to_phase = "same" if row.to_phase is None else row.to_phase.value
    to_mode = "same" if row.to_mode is None else row.to_mode.value
    cells = (
        row.event.value,
        _names(row.phases),
        _names(row.modes),
        _names(row.upstairs),
        "; ".join(conditions),
        to_phase,
        to_mode,
    )
    return "| " + " | ".join(cells) + " |"


def _client_edges() -> list[str]:
    """Edges between phases, one per pair; the many ways out of any phase are drawn once, from ``Connected``."""
    edges: dict[tuple[str, str], list[str]] = {}
    for row in CLIENT_TRANSITIONS:
        if row.to_phase is None:
            continue
        if row.phases in (NOT_STOPPING, CONNECTING):
            sources = ["AnyPhase" if row.phases == NOT_STOPPING else "AnyConnecting"]
        else:
            sources = [phase.value for phase in Phase if phase in row.phases]
        for source in sources:
            edges.setdefault((source, row.to_phase.value), []).append(row.event.name.lower())
    return [
        f"    {source} --> {target} : {', '.join(dict.fromkeys(events))}" for (source, target), events in edges.items()
    ]


def _words(function: Callable[..., Any]) -> str:
    return function.__name__.strip("_").replace("_", " ")


def _session_row(row: SessionRow) -> str:
    cells = (
        row.before.value,
        row.message.__name__,
        ", ".join(map(_words, row.checks)),
        row.need.value if row.need is not None else "",
        _words(row.reply) if row.reply is not None else "",
        row.after.value,
    )
    return "| " + " | ".join(cells) + " |"


def _downstairs() -> list[str]:
    """The sections about a Downstairs."""
    promoting, promoted, closed = SessionState.PROMOTING, SessionState.PROMOTED, SessionState.CLOSED
    return [
        "## A connection to a Downstairs",
        "",
        "```mermaid",
        "stateDiagram-v2",
        f"    [*] --> {SessionState.OPEN.value}",
        *(f"    {row.before.value} --> {row.after.value} : {row.message.__name__}" for row in SESSION_TRANSITIONS),
        f"    {promoting.value} --> {promoted.value} : the region is ready",
        f"    {SessionState.RUNNING.value} --> {closed.value} : anything but a ping, a job or a reconciliation step",
        "```",
        "",
        "Out of order, or where a check fails, each of these messages closes the connection.",
        "",
        "| in | message | checks | needs | answer | then |",
        "|---|---|---|---|---|---|",
        *map(_session_row, SESSION_TRANSITIONS),
        "",
        "## Takeover of a Downstairs",
        "",
        "| situation | claim |",
        "|---|---|",
        *(f"| {rule.value} | {'granted' if granted else 'refused'} |" for rule, granted in ACCEPTED.items()),
        "",
    ]


def _started(title: str, first: Enum, transitions: Mapping[Any, Any]) -> list[str]:
    """The section about something that is started and ends: a table of states and events."""
    return [
        f"## {title}",
        "",
        "```mermaid",
        "stateDiagram-v2",
        f"    [*] --> {first.value}",
        *(
            f"    {before.value} --> {to.after.value} : {event.name.lower()}"
            for (before, event), to in transitions.items()
        ),
        "```",
        "",
        "| in | when | then | and |",
        "|---|---|---|---|",
        *(
            f"| {before.value} | {event.value} | {to.after.value} | {to.doing.value} |"
            for (before, event), to in transitions.items()
        ),
        "",
        "What is not listed changes nothing.",
        "",
    ]


def _instance() -> list[str]:
    """The section about an instance of a host."""
    return [
        "## An instance of a host",
        "",
        "```mermaid",
        "stateDiagram-v2",
        f"    [*] --> {InstanceState.CREATING}",
        f"    [*] --> {InstanceState.MIGRATING}",
        *(
            f"    {before} --> {to.after} : {event.name.lower()}"
            for (before, event), to in INSTANCE_TRANSITIONS.items()
            if to.after is not before
        ),
        "```",
        "",
        "| in | when | then | and |",
        "|---|---|---|---|",
        *(
            f"| {before} | {event.value} | {to.after} | {to.doing.value} |"
            for (before, event), to in INSTANCE_TRANSITIONS.items()
        ),
        "",
        "A request that is not listed is refused; a report that is not listed comes too late and changes nothing.",
        "",
    ]


def _disk() -> list[str]:
    """The section about a user's disk."""
    return [
        "## A disk of a user, in Nexus",
        "",
        "```mermaid",
        "stateDiagram-v2",
        f"    [*] --> {DiskState.CREATING}",
        *(
            f"    {before} --> {edge.after} : {move.value}"
            for move, edge in DISK_MOVES.items()
            for before in sorted(edge.before)
        ),
        "```",
        "",
        "| what | from | to |",
        "|---|---|---|",
        *(f"| {move.value} | {', '.join(sorted(edge.before))} | {edge.after} |" for move, edge in DISK_MOVES.items()),
        "",
        "A move from any other state is refused. One that was made already changes nothing.",
        "",
    ]


def _agent() -> list[str]:
    """The sections about an agent's records."""
    lines: list[str] = []
    for title, transitions in (
        ("A region of an agent", REGION_TRANSITIONS),
        ("A running snapshot of an agent", RUN_TRANSITIONS),
    ):
        lines += [
            f"## {title}",
            "",
            "```mermaid",
            "stateDiagram-v2",
            "    [*] --> requested : POST",
            *(
                f"    {before.value} --> {after.value} : {event.value}"  # type: ignore[attr-defined]
                for (before, event), after in transitions.items()  # type: ignore[attr-defined]
                if before is not after
            ),
            "```",
            "",
            "| in | when | then |",
            "|---|---|---|",
            *(
                f"| {before.value} | {event.value} | {after.value} |"  # type: ignore[attr-defined]
                for (before, event), after in transitions.items()  # type: ignore[attr-defined]
            ),
            "",
        ]
    return [*lines, "Clients see *creating* as *requested*. What is not listed is a defect, and raises.", ""]


def render() -> str:
    """``state-machines.md``."""
    lines = [
        "# State machines",
        "",
        "Made by `python docs/generate.py` from the tables that the code runs; edit those.",
        "",
        "## The Upstairs",
        "",
        "```mermaid",
        "stateDiagram-v2",
        f"    [*] --> {UpstairsState.INITIALIZING.value}",
        *(
            f"    {state.value} --> {after.value} : {event.value}"
            for (state, event), after in UPSTAIRS_TRANSITIONS.items()
        ),
        "```",
        "",
        "## One replica's connection",
        "",
        "`AnyConnecting` stands for every state of a connection that is being negotiated, `AnyPhase` for every state "
        "but Stopping.",
        "",
        "```mermaid",
        "stateDiagram-v2",
        f"    [*] --> {Phase.WAIT_CONNECT.value}",
        *_client_edges(),
        "```",
        "",
        "Every transition, first match first:",
        "",
        "| when | from | mode | Upstairs | only if | to | mode becomes |",
        "|---|---|---|---|---|---|---|",
        *(_client_row(row) for row in CLIENT_TRANSITIONS),
        "",
        "## When a job is answered",
        "",
        "| job | clients that must accept work | replicas done for the answer | fewer done at the end is failure |",
        "|---|---|---|---|",
        *(
            f"| {kind.value} | {rule.admit_min} | "
            f"{'at admission' if rule.done_for_ack is None else rule.done_for_ack} | {rule.done_min} |"
            for kind, rule in RULES.items()
        ),
        "",
        *_downstairs(),
        *_started("A Downstairs process under run-many", ProcessState.STOPPED, PROCESS_TRANSITIONS),
        *_agent(),
        *_instance(),
        *_started("A service of a rack", ServiceState.STOPPED, SERVICE_TRANSITIONS),
        *_disk(),
    ]
    return "\n".join(lines)


def _behaviour(row: dict[str, Any]) -> str:
    """One row of a table of ``conformance.md``."""
    shown = " ".join(f"`{name}`" for name in row.get("tests", ())) or f"none: {row['reason']}"
    words = " ".join(filter(None, (row["behaviour"], row.get("note"))))
    cells = (" ".join(f"`{name}`" for name in row["real"]), words, shown)
    return "| " + " | ".join(cells) + " |"


def render_conformance() -> str:
    """What the real project's tests show, and which tests show it here."""
    sections = tomllib.loads((DOCS / "conformance.toml").read_text(encoding="utf-8"))["section"]
    rows = [row for section in sections for row in section["row"]]
    shown = sum("tests" in row for row in rows)
    lines = [
        "# Conformance of the Upstairs, of volumes, of the agent and of Nexus",
        "",
        "Made by `python docs/generate.py` from `docs/conformance.toml`; edit that.",
        "",
        "What the tests of the real project show, and which tests show it here: "
        f"{len(rows)} behaviours, {shown} of them with tests, {len(rows) - shown} without, with the reason. "
        "`docs/fidelity.md` lists what is different on purpose.",
        "",
        "| section | behaviours | shown | without test |",
        "|---|---|---|---|",
    ]
    for section in sections:
        count, tested = len(section["row"]), sum("tests" in row for row in section["row"])
        lines.append(f"| {section['number']} {section['title']} | {count} | {tested} | {count - tested} |")
    for section in sections:
        lines += ["", f"## {section['number']} {section['title']}", ""]
        lines += ["| in the real project | behaviour | shown by |", "|---|---|---|", *map(_behaviour, section["row"])]
    return "\n".join([*lines, ""])


# -- parts of a document that somebody wrote --------------------------------------------------------------------------


def _edges(machine: Machine[Any]) -> list[str]:
    """A machine of replacements as a diagram; edges that undo another are dashed."""
    started = f'    begin(( )) -->|"1 {machine.created_by}"| {machine.created}'
    arrows = {False: "-->", True: "-.->"}
    return [
        "```mermaid",
        "flowchart TD",
        started,
        *(
            f'    {edge.source} {arrows[edge.back]}|"{edge.number} {edge.who}"| {edge.target}'
            for edge in machine.edges.values()
        ),
        "```",
    ]


def _rows(machine: Machine[Any]) -> list[str]:
    """The same as a table."""
    lines = ["| # | from | to | who | the lease | with it |", "|---|---|---|---|---|---|"]
    lines.append(f"| 1 | | {machine.created} | {machine.created_by} | | the row, and the volume's lock |")
    for edge in machine.edges.values():
        more = [f"records {', '.join(edge.records)}"] if edge.records else []
        more += [f"clears {', '.join(edge.clears)}"] if edge.clears else []
        more += [f"only while {', '.join(edge.expects_null)} is not set"] if edge.expects_null else []
        more += ["undoes"] if edge.back else []
        more += ["gives the volume's lock back"] if edge.ends else []
        cells = (str(edge.number), edge.source, edge.target, edge.who, edge.hold.value, "; ".join(more))
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _layers() -> list[str]:
    """The layers of ``bench profile``."""
    here = str(DOCS.resolve().parent)
    if here not in sys.path:  # the bench is not among the packages that are installed
        sys.path.append(here)
    from bench.layers import LAYERS

    lines = ["| layer | what it does | what would make it cheaper |", "|---|---|---|"]
    return [*lines, *(f"| {layer.name} | {layer.what} | {layer.cheaper} |" for layer in LAYERS)]


PARTS: dict[str, Callable[[], list[str]]] = {
    f"{name}, {what}": partial(made, machine)
    for name, machine in (
        ("region replacement", REGION_REPLACEMENT),
        ("read-only target replacement", READ_ONLY_REPLACEMENT),
        ("step", READ_ONLY_REPLACEMENT_STEP),
    )
    for what, made in (("diagram", _edges), ("table", _rows))
} | {"layers of a profile": _layers}
"""What stands between two marks in a document, and what makes it."""
MARK = re.compile(r"(<!-- made from the code: (.*?) -->\n).*?(<!-- end -->)", re.DOTALL)


def renew(name: str) -> str:
    """The document with its parts as the code has them now. A mark that nobody knows is an error."""

    def part(found: re.Match[str]) -> str:
        return f"{found[1]}\n{chr(10).join(PARTS[found[2]]())}\n\n{found[3]}"

    return MARK.sub(part, (DOCS / name).read_text(encoding="utf-8"))


DOCUMENTS: dict[str, Callable[[], str]] = {
    "replacement.md": lambda: renew("replacement.md"),
    "profile.md": lambda: renew("profile.md"),
    "state-machines.md": render,
    "conformance.md": render_conformance,
    "nexus-database.md": describe,
}
"""What is generated, and by what."""

if __name__ == "__main__":
    for name, rendered in DOCUMENTS.items():
        (DOCS / name).write_text(rendered(), encoding="utf-8")
