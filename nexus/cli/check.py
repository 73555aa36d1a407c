"""``nexus check``: whether all that Nexus knows fits together, and fits what the rack holds."""

from __future__ import annotations

import typer

from nexus.cli.session import AsJson, Rack, converse
from nexus.cli.volume import say_findings

app = typer.Typer()


@app.command()
def check(rack: Rack = None, as_json: AsJson = False) -> None:
    """Look for what is not as it must be: in the database, and at the agents. Exit code 1 where something is found.

    For operators. What is under way may be found half done: a finding counts when it stays.
    """
    report = converse(lambda nexus: nexus.emulator.check(), rack, operator=True)
    say_findings(list(report.findings), as_json=as_json)
