"""A conversation of a command with a Nexus.

What it is for: a command says what it wants in a few lines; who answers, with which token, and what becomes of Ctrl-C
is here. Where a rack has several Nexus, the first that answers is spoken with: which one that is makes no difference,
for all of them work on one database.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

import trio
import typer
from pydantic import ValidationError

from crucible_emu import logs
from crucible_emu.client.failures import ServiceError, ServiceUnreachable
from crucible_emu.errors import RemoteError, UsageError
from nexus.api.members import is_id
from nexus.cli.access import OPERATOR_URL_VARIABLE, Access, here
from nexus.client.asking import NexusClient
from nexus.client.emulator import EmulatorClient
from nexus.client.external import ExternalClient
from nexus.client.lockstep import LockstepClient

T = TypeVar("T")
Client = TypeVar("Client", bound=NexusClient)

PING_TIMEOUT_S = 3.0
NOT_FOUND = 404

Rack = Annotated[
    Path | None,
    typer.Option("--rack", metavar="DIR", help="The rack's directory. \\[the one around you, or NEXUS_RACK]"),
]
Project = Annotated[
    str | None, typer.Option("--project", metavar="NAME", help="The project. \\[that of the rack, or NEXUS_PROJECT]")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print documents as JSON.")]


@dataclass(frozen=True, slots=True)
class Session:
    """``external`` is spoken with as a user, all others as an operator."""

    access: Access
    external: ExternalClient
    as_operator: ExternalClient
    emulator: EmulatorClient
    lockstep: LockstepClient
    project: str | None

    def within(self, thing: str) -> str | None:
        """The project in which ``thing`` is looked for; ``None`` for an id, which needs none."""
        return None if is_id(thing) else self.project


def converse(
    work: Callable[[Session], Awaitable[T]], rack: Path | None, project: str | None = None, *, operator: bool = False
) -> T:
    """Have ``work`` done with the Nexus of ``rack``, or the one that can be found without. ``operator``: it is only
    for operators. Raises what it raises, and :class:`UsageError` where no Nexus is known, or for what a person said
    and no document allows."""
    access = here(rack)
    if operator and not access.operator:
        raise UsageError(f"this is for operators, and where they are answered is not said: set {OPERATOR_URL_VARIABLE}")
    logs.configure(level=os.environ.get(logs.LEVEL_VARIABLE) or "warning")

    async def main() -> T:
        async with session(access, project) as found:
            return await work(found)

    try:
        return trio.run(main)
    except ValidationError as error:
        # Of what we were about to say: what is wrong with an answer the client has told already.
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise UsageError(f"{place}: {first['msg'].removeprefix('Value error, ')}") from None


@asynccontextmanager
async def session(access: Access, project: str | None = None) -> AsyncIterator[Session]:
    """While the block runs. Raises :class:`UsageError` for tokens that cannot be read."""
    tls_ca = None if access.authorities is None else str(access.authorities)
    # Where no operator is answered the clients are there all the same, and nobody asks them.
    operators = access.operator or access.external
    number = await _first_that_answers(operators, tls_ca)
    async with AsyncExitStack() as stack:

        def client(kind: type[Client], urls: Sequence[str], token: str | None) -> Client:
            url = urls[number]
            made = kind(url, token=token, tls_ca=tls_ca if url.startswith("https:") else None)
            stack.push_async_callback(made.aclose)
            return made

        token, operator_token = access.token(), access.operator_token()
        yield Session(
            access,
            client(ExternalClient, access.external, token),
            client(ExternalClient, access.external, operator_token),
            client(EmulatorClient, operators, operator_token),
            client(LockstepClient, operators, operator_token),
            project or access.project,
        )


async def _first_that_answers(urls: Sequence[str], tls_ca: str | None) -> int:
    """Its number; of the last it is not asked."""
    for number, url in enumerate(urls[:-1]):
        async with LockstepClient(url, tls_ca=tls_ca if url.startswith("https:") else None) as one:
            with trio.move_on_after(PING_TIMEOUT_S):
                try:
                    await one.ping()
                except ServiceUnreachable:
                    continue
                except (ServiceError, RemoteError):
                    pass  # a refusal is an answer
                return number
    return len(urls) - 1


async def all_of(items: AsyncIterator[T]) -> list[T]:
    """A whole listing."""
    return [item async for item in items]


async def or_none(work: Awaitable[T]) -> T | None:
    """Its result; ``None`` where there is no such thing."""
    try:
        return await work
    except ServiceError as error:
        if error.status != NOT_FOUND:
            raise
        return None
