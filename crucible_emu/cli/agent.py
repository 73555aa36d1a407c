"""``crucible-emu agent run``: the agent of one pretended physical disk, for any control plane that speaks its API.

What it guarantees: the ready line appears when clients can connect and every Downstairs that shall run has been tried
once. SIGINT and SIGTERM end in order, with exit code 0; SIGKILL at any instant loses nothing that was answered.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crucible_emu.agent import AgentOptions, Failures, PortPool, agent_api, running_agent
from crucible_emu.cli import service, serving
from crucible_emu.cli.sizes import parse_size
from crucible_emu.errors import UsageError
from crucible_emu.service import serving as http_serving
from crucible_emu.wire.constants import REPAIR_PORT_OFFSET

app = typer.Typer(no_args_is_help=True)

PORT_MAX = 65_535


@app.callback()
def group() -> None:
    """Run a Crucible agent."""


@app.command()
def run(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="Where regions lie and crucible.json; made if absent.")
    ],
    listen: service.Listen = "[::1]:0",
    low_port: Annotated[int, typer.Option(help="First port of the Downstairs; repair ports are 4000 above.")] = 19000,
    ports: Annotated[int, typer.Option(help="How many ports there are.")] = 1000,
    capacity: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="For reservations, 1.25 x a region's size each. \\[no limit]"),
    ] = None,
    isolate: Annotated[
        bool, typer.Option("--isolate", help="Run each Downstairs as a process of its own, not in this one.")
    ] = False,
    fail: Annotated[
        list[str] | None, typer.Option(metavar="WHAT", help="Let every create, delete or run fail; may be repeated.")
    ] = None,
    slow: Annotated[float, typer.Option(metavar="SECONDS", help="Wait so long before each piece of work.")] = 0.0,
    faithful: service.Faithful = False,
    lenient: service.Lenient = False,
    until_eof: service.UntilEof = False,
    as_json: service.AsJson = False,
    tls_cert: service.TlsCertificate = None,
    tls_key: service.TlsKey = None,
    token_file: service.TokenFile = None,
) -> None:
    """Serve the agent's API over the regions in DIR until SIGINT or SIGTERM.

    [bold]Example[/bold]

      crucible-emu agent run /tmp/disk0 --listen '[::1]:17000'

      curl -H 'api-version: 1.0.0' 'http://[::1]:17000/crucible/0/regions'
    """
    exposure = service.exposure(listen, tls_cert, tls_key, token_file)
    options = AgentOptions(
        host=exposure.host,
        pool=port_pool(low_port, ports),
        capacity_bytes=None if capacity is None else parse_size(capacity),
        isolate=isolate,
        failures=Failures.named(fail or (), slow),
    )

    async def main() -> None:
        async with (
            service.until_told(until_eof) as told,
            running_agent(directory, options) as agent,
            http_serving(agent_api(agent, faithful=faithful, lenient=lenient), exposure) as url,
        ):
            service.announce("the agent", url, as_json=as_json, low_port=low_port, ports=ports)
            await told.wait()

    serving.run(main)


def port_pool(low: int, count: int) -> PortPool:
    """Raises :class:`UsageError` where data and repair ports do not fit or would overlap."""
    if not 1 <= count <= REPAIR_PORT_OFFSET:
        raise UsageError(f"--ports {count}: take 1 to {REPAIR_PORT_OFFSET}, the distance to the repair ports")
    if low < 1 or low + count - 1 + REPAIR_PORT_OFFSET > PORT_MAX:
        most = PORT_MAX - REPAIR_PORT_OFFSET - count + 1
        raise UsageError(f"--low-port {low}: take 1 to {most}, so that repair ports fit")
    return PortPool(low, count)
