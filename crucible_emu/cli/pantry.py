"""``crucible-emu pantry run``: volumes held for a control plane, over the real Pantry's HTTP API."""

from __future__ import annotations

import trio
import typer

from crucible_emu.cli import service, serving
from crucible_emu.pantry.driver import Pantry
from crucible_emu.pantry.operations import api
from crucible_emu.service import serving as http_serving

app = typer.Typer(no_args_is_help=True)

DEFAULT_LISTEN = "[::1]:17000"


@app.callback()
def group() -> None:
    """Hold volumes for a control plane."""


@app.command()
def run(
    listen: service.Listen = DEFAULT_LISTEN,
    tls_cert: service.TlsCertificate = None,
    tls_key: service.TlsKey = None,
    token_file: service.TokenFile = None,
    faithful: service.Faithful = False,
    lenient: service.Lenient = False,
    until_eof: service.UntilEof = False,
    as_json: service.AsJson = False,
) -> None:
    """Attach volumes, import into them, read and write them in bulk, snapshot, scrub and validate them.

    Nothing is kept for the next start. SIGINT and SIGTERM flush and deactivate every volume before the end.

    [bold]Example[/bold]

      crucible-emu pantry run --lenient

      curl 'http://[::1]:17000/crucible/pantry/0'
    """
    exposure = service.exposure(listen, tls_cert, tls_key, token_file)

    async def main() -> None:
        async with service.until_told(until_eof) as told, trio.open_nursery() as nursery:
            pantry = Pantry()
            await nursery.start(pantry.run)
            async with http_serving(api(pantry, faithful=faithful, lenient=lenient), exposure) as url:
                service.announce("a pantry", url, as_json=as_json)
                await told.wait()
            nursery.cancel_scope.cancel()

    serving.run(main)
