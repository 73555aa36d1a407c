"""``crucible-emu host``: disks of instances, as a control plane asks for them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crucible_emu.cli import service, serving
from crucible_emu.control.notifier import Notifier, check_url
from crucible_emu.errors import UsageError
from crucible_emu.host import Settings, api, hosting
from crucible_emu.host.machine import SCRUB_DELAY_S
from crucible_emu.service import serving as serve_http

app = typer.Typer(no_args_is_help=True)
NEVER = "never"


@app.callback()
def host() -> None:
    """A host of instances: what a control plane needs of Propolis, without a virtual machine."""


@app.command()
def run(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where the disks' sockets are; made when absent.")],
    listen: service.Listen = "[::1]:0",
    nexus: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Tell this control plane (http://host:port) of repairs and ended scrubs."),
    ] = None,
    scrub_after: Annotated[
        str, typer.Option(metavar="SECONDS", help=f"Copy a disk's parent after so long in service, or {NEVER}.")
    ] = f"{SCRUB_DELAY_S:g}",
    faithful: service.Faithful = False,
    lenient: service.Lenient = False,
    until_eof: service.UntilEof = False,
    as_json: service.AsJson = False,
    tls_cert: service.TlsCertificate = None,
    tls_key: service.TlsKey = None,
    token_file: service.TokenFile = None,
) -> None:
    """Serve the Propolis API: make an instance from a spec, run it, and use its disks over NBD.

    Each disk that runs is at DIR/NAME.sock, NAME being the key of its backend in the spec. With --faithful there is one
    instance; without, as many more as are wanted below /hosts/0/instances. Nothing runs again after a restart.

    [bold]Example[/bold]

      crucible-emu host run /tmp/host --listen '[::1]:12400'

      nbdinfo 'nbd+unix:///?socket=/tmp/host/NAME.sock'
    """
    exposure = service.exposure(listen, tls_cert, tls_key, token_file)
    settings = Settings(
        directory.absolute(),
        scrub_delay_s=scrub_delay(scrub_after),
        notifier=None if nexus is None else Notifier(check_url(nexus)),
        faithful=faithful,
    )

    async def main() -> None:
        async with (
            service.until_told(until_eof) as told,
            hosting(settings) as found,
            serve_http(api(found, faithful=faithful, lenient=lenient), exposure) as url,
        ):
            lost = [str(instance.id) for instance in found.lost]
            service.announce("a host of instances", url, as_json=as_json, directory=str(directory), lost=lost)
            await told.wait()

    serving.run(main)


def scrub_delay(text: str) -> float | None:
    """Seconds, ``None`` for never. Raises :class:`UsageError`."""
    if text == NEVER:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise UsageError(f"--scrub-after {text} is no time: take seconds, 0 or more, or {NEVER}")
    return seconds
