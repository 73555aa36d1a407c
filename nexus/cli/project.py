"""``nexus project``: what disks, snapshots and images belong to."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

import typer

from crucible_emu.errors import UsageError
from nexus.api.emulator_documents import ProjectAdd, ProjectEntry
from nexus.cli.session import AsJson, Rack, Session, all_of, converse
from nexus.cli.showing import done, show_many, show_one

app = typer.Typer(no_args_is_help=True)

Which = Annotated[str, typer.Argument(metavar="PROJECT", help="The project, by name or id.")]


@app.callback()
def group() -> None:
    """Projects: each with disks, snapshots and images of its own. For operators."""


@app.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What the project is called.")],
    description: Annotated[str, typer.Option("--description", help="Words for people.")] = "",
    rack: Rack = None,
    as_json: AsJson = False,
) -> None:
    """Make a project; nexus token create makes a token that opens it."""

    async def work(nexus: Session) -> ProjectEntry:
        return await nexus.emulator.project_add(ProjectAdd(name=name, description=description))

    show_one(converse(work, rack, operator=True), as_json=as_json)


@app.command("list")
def list_(rack: Rack = None, as_json: AsJson = False) -> None:
    """Show all projects."""
    found = converse(lambda nexus: all_of(nexus.emulator.project_list()), rack, operator=True)
    columns = {
        "name": lambda project: project.name,
        "description": lambda project: project.description or None,
        "silo id": lambda project: project.silo_id,
        "id": lambda project: project.id,
    }
    show_many(found, columns, as_json=as_json)


@app.command()
def show(project: Which, rack: Rack = None, as_json: AsJson = False) -> None:
    """Show one project."""
    show_one(converse(lambda nexus: project_of(nexus, project), rack, operator=True), as_json=as_json)


@app.command()
def delete(project: Which, rack: Rack = None, as_json: AsJson = False) -> None:
    """Delete a project that holds nothing any more."""

    async def work(nexus: Session) -> UUID:
        found = await project_of(nexus, project)
        await nexus.as_operator.project_delete(str(found.id))
        return found.id

    gone = converse(work, rack, operator=True)
    done(f"Project {project} is deleted.", {"deleted": str(gone)}, as_json=as_json)


async def project_of(nexus: Session, wanted: str) -> ProjectEntry:
    """The project of this name or id. Raises :class:`UsageError` where there is none, or more than one."""
    found = [each for each in await all_of(nexus.emulator.project_list()) if wanted in (each.name, str(each.id))]
    if not found:
        raise UsageError(f"there is no project '{wanted}': nexus project list shows all")
    if len(found) > 1:
        raise UsageError(f"{len(found)} silos have a project '{wanted}': say it by its id")
    return found[0]
