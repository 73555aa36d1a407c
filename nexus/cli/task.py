"""``nexus task``: what Nexus does by itself, again and again."""

from __future__ import annotations

from typing import Annotated

import typer

from nexus.api.lockstep_documents import BackgroundTask, Completed
from nexus.cli.session import AsJson, Rack, converse
from nexus.cli.showing import cell, done, print_json, show_many

app = typer.Typer(no_args_is_help=True)


@app.callback()
def group() -> None:
    """Background tasks. For operators."""


@app.command("list")
def list_(rack: Rack = None, as_json: AsJson = False) -> None:
    """Show all background tasks, and what each did last."""
    found = converse(lambda nexus: nexus.lockstep.bgtask_list(), rack, operator=True)
    if as_json:
        print_json({"items": [each.model_dump(mode="json") for each in found.values()]})
        return
    columns = {
        "name": lambda task: task.name,
        "now": lambda task: task.current.current_status,
        "every": lambda task: f"{task.period.secs + task.period.nanos / 1e9:g} s",
        "times": lambda task: task.last.details.iteration if isinstance(task.last, Completed) else 0,
        "last": _last,
    }
    show_many([found[name] for name in sorted(found)], columns, as_json=False)


def _last(task: BackgroundTask) -> str:
    return cell(task.last.details.details) if isinstance(task.last, Completed) else "-"


@app.command()
def activate(
    names: Annotated[list[str], typer.Argument(metavar="TASK...", help="Tasks by name.")],
    rack: Rack = None,
    as_json: AsJson = False,
) -> None:
    """Have background tasks do their work now. Returns at once."""
    converse(lambda nexus: nexus.lockstep.bgtask_activate(names), rack, operator=True)
    done(f"Activated: {', '.join(names)}.", {"activated": names}, as_json=as_json)
