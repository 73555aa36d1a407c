"""``nexus token``: who may do what.

What it guarantees (*safety*): a new token goes into a file that only its owner can read, and is shown nowhere else.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from crucible_emu.errors import UsageError
from nexus.api.emulator_documents import TokenCreate, TokenCreated, TokenEntry
from nexus.cli.project import project_of
from nexus.cli.session import AsJson, Rack, Session, all_of, converse
from nexus.cli.showing import done, show_many, show_one

app = typer.Typer(no_args_is_help=True)


@app.callback()
def group() -> None:
    """Tokens: a tenant's opens one project, an operator's everything. For operators."""


@app.command()
def create(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where the token goes; only its owner can read it.")],
    project: Annotated[str | None, typer.Option("--project", metavar="NAME", help="A tenant's, for this one.")] = None,
    for_operator: Annotated[bool, typer.Option("--operator", help="An operator's.")] = False,
    rack: Rack = None,
    as_json: AsJson = False,
) -> None:
    """Give out a token, and put it into a new file. It is stored nowhere else, and cannot be shown again."""
    if for_operator == (project is not None):
        raise UsageError("a token opens a project, or all of them: give --project or --operator")
    if file.exists():
        raise UsageError(f"{file} exists: choose another name, or delete it first")

    async def work(nexus: Session) -> TokenCreated:
        opens = None if project is None else (await project_of(nexus, project)).id
        body = TokenCreate(role="operator" if for_operator else "tenant", project_id=opens)
        return await nexus.emulator.token_create(body)

    given = converse(work, rack, operator=True)
    write_private(file, given.token)
    show_one(TokenEntry.model_validate(given.model_dump(exclude={"token"})), as_json=as_json)


def write_private(path: Path, secret: str) -> None:
    """A new file with ``secret``, which nobody but its owner can read at any moment. Raises :class:`OSError`."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "w") as file:
        file.write(f"{secret}\n")
        file.flush()
        os.fsync(descriptor)


@app.command("list")
def list_(rack: Rack = None, as_json: AsJson = False) -> None:
    """Show all tokens, without what they are."""
    found = converse(lambda nexus: all_of(nexus.emulator.token_list()), rack, operator=True)
    columns = {
        "role": lambda token: token.role,
        "project id": lambda token: token.project_id,
        "given": lambda token: token.time_created,
        "ends": lambda token: token.time_expires,
        "taken back": lambda token: token.time_revoked,
        "id": lambda token: token.id,
    }
    show_many(found, columns, as_json=as_json)


@app.command()
def delete(
    token: Annotated[str, typer.Argument(metavar="TOKEN", help="The token, by its id.")],
    rack: Rack = None,
    as_json: AsJson = False,
) -> None:
    """Take a token back: it opens nothing any more."""
    converse(lambda nexus: nexus.emulator.token_delete(token), rack, operator=True)
    done(f"Token {token} is taken back.", {"deleted": token}, as_json=as_json)
