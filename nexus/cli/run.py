"""``nexus run``: one Nexus, with its three servers.

What it guarantees: the ready line appears when all three can be reached, and what a dead Nexus has left is in hand by
then. SIGINT, SIGTERM and, where it was asked for, the end of standard input end it in order: sagas get a moment to end,
and what has not ended another Nexus, or the next start, goes on with. *Safety*: addresses beyond loopback want TLS.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path
from typing import Annotated
from uuid import UUID

import typer

from crucible_emu.cli import service, serving
from crucible_emu.cli.sizes import parse_size
from crucible_emu.errors import UsageError
from crucible_emu.service import serving as service_over_http
from crucible_emu.service.exposure import Exposure
from nexus.api.callers import Doors
from nexus.api.external import external_api
from nexus.api.internal import internal_api
from nexus.api.lockstep import lockstep_api
from nexus.cli.access import private_token
from nexus.db import DatabaseError
from nexus.objects.tenants import digest_of
from nexus.placement import Sizes
from nexus.running import Conduct, Settings, running_nexus

app = typer.Typer()

EXTERNAL, INTERNAL, LOCKSTEP = "[::1]:12220", "[::1]:12221", "[::1]:12232"
"""As in the real rack, but for the first, which is behind port 443 there."""


@app.command()
def run(
    database: Annotated[
        str | None, typer.Option(metavar="URL", help="sqlite:///FILE, or postgresql://... for several Nexus.")
    ] = None,
    database_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A file with that URL in it, which may hold a password.")
    ] = None,
    external: Annotated[str, typer.Option("--external", metavar="ADDR", help="Where users are answered.")] = EXTERNAL,
    internal: Annotated[str, typer.Option("--internal", metavar="ADDR", help="Where hosts are.")] = INTERNAL,
    lockstep: Annotated[str, typer.Option("--lockstep", metavar="ADDR", help="Where operators are.")] = LOCKSTEP,
    operator_token_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A token that opens everything, for the first to come.")
    ] = None,
    service_token_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What agents, pantries and hosts want to be told.")
    ] = None,
    service_ca: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Authorities (PEM) to trust for agents, pantries and hosts.")
    ] = None,
    extent_size: Annotated[str | None, typer.Option(help="Extents of disks, for small disks. [64MiB]")] = None,
    size_step: Annotated[str | None, typer.Option(help="Disks are multiples of this. [1GiB]")] = None,
    identity: Annotated[
        str | None, typer.Option("--id", metavar="UUID", help="Its name in the database. \\[a new one]")
    ] = None,
    faithful: service.Faithful = False,
    lenient: service.Lenient = False,
    until_eof: service.UntilEof = False,
    as_json: service.AsJson = False,
    tls_cert: service.TlsCertificate = None,
    tls_key: service.TlsKey = None,
) -> None:
    """Be a Nexus: answer users, hosts and operators, and look after the rack.

    [bold]Example[/bold]

      nexus run --database sqlite:////tmp/nexus.db --operator-token-file operator.token
    """
    exposures = [_exposure(address, tls_cert, tls_key) for address in (external, internal, lockstep)]
    token = private_token(operator_token_file)
    settings = Settings(
        _database(database, database_file),
        service_token=private_token(service_token_file),
        service_tls_ca=None if service_ca is None else str(service_ca),
        sizes=_sizes(extent_size, size_step),
        conduct=Conduct(nexus_id=None if identity is None else _identity(identity)),
    )

    async def main() -> None:
        async with AsyncExitStack() as stack:
            told = await stack.enter_async_context(service.until_told(until_eof))
            try:
                nexus = await stack.enter_async_context(running_nexus(settings))
            except (DatabaseError, ValueError) as error:
                raise UsageError(f"the database cannot be used: {error}") from None
            doors = Doors(nexus.world, None if token is None else digest_of(token))
            apis = (
                external_api(nexus, doors, faithful=faithful),
                internal_api(nexus, doors, faithful=faithful, lenient=lenient),
                lockstep_api(nexus, doors, faithful=faithful),
            )
            urls = [
                await stack.enter_async_context(service_over_http(api, exposure))
                for api, exposure in zip(apis, exposures, strict=True)
            ]
            facts = {"internal": urls[1], "lockstep": urls[2], "id": nexus.id}
            service.announce("a Nexus", urls[0], as_json=as_json, **facts)
            await told.wait()

    serving.run(main)


def _exposure(address: str, tls_cert: Path | None, tls_key: Path | None) -> Exposure:
    found = Exposure(address, tls_cert, tls_key)
    found.check(knows_callers=True)
    return found


def _database(url: str | None, file: Path | None) -> str:
    if (url is None) == (file is None):
        raise UsageError("where the database is, is to be said once: give --database or --database-file")
    if file is None:
        assert url is not None
        return url
    try:
        return file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the file {file} cannot be read: {error}") from None


def _sizes(extent: str | None, step: str | None) -> Sizes:
    usual = Sizes()
    extent_bytes = usual.extent_bytes if extent is None else parse_size(extent)
    step_bytes = usual.step_bytes if step is None else parse_size(step)
    return Sizes(extent_bytes, step_bytes, usual.most_bytes)


def _identity(text: str) -> str:
    try:
        return str(UUID(text))
    except ValueError:
        raise UsageError(f"--id {text} is no UUID") from None
