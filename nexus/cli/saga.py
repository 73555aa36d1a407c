"""``nexus saga``: work that ends done or undone."""

from __future__ import annotations

from typing import Annotated

import typer

from nexus.api.emulator_documents import SagaDetail
from nexus.cli.session import AsJson, Rack, all_of, converse
from nexus.cli.showing import cell, print_table, show_many, show_one

app = typer.Typer(no_args_is_help=True)

Which = Annotated[str, typer.Argument(metavar="SAGA", help="The saga, by id.")]


@app.callback()
def group() -> None:
    """Sagas: what Nexus does in steps, each of which can be undone. For operators."""


@app.command("list")
def list_(rack: Rack = None, as_json: AsJson = False) -> None:
    """Show all sagas that Nexus remembers, the oldest first."""
    found = converse(lambda nexus: all_of(nexus.emulator.saga_list()), rack, operator=True)
    found.sort(key=lambda saga: saga.time_created)
    columns = {
        "name": lambda saga: saga.name,
        "state": lambda saga: saga.state,
        "since": lambda saga: saga.time_created,
        "nexus": lambda saga: saga.nexus_id,
        "id": lambda saga: saga.id,
    }
    show_many(found, columns, as_json=as_json)


@app.command()
def show(saga: Which, rack: Rack = None, as_json: AsJson = False) -> None:
    """Show one saga with all that has happened to its nodes."""
    _show(converse(lambda nexus: nexus.emulator.saga_view(saga), rack, operator=True), as_json)


@app.command()
def resume(saga: Which, rack: Rack = None, as_json: AsJson = False) -> None:
    """Try to undo the rest of a stuck saga once more, when a person has seen to what was in the way."""
    _show(converse(lambda nexus: nexus.emulator.saga_resume(saga), rack, operator=True), as_json)


def _show(found: SagaDetail, as_json: bool) -> None:
    show_one(found, as_json=as_json, but=("params", "events"))
    if as_json:
        return
    print()
    rows: list[tuple[str, ...]] = [
        (str(each.number), each.label, each.kind, cell(each.time), "" if each.data is None else cell(each.data))
        for each in found.events
    ]
    print_table(("step", "node", "what", "when", "with"), rows)
