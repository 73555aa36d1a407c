"""``crucible-emu downstairs run``: one region behind one address, for any Upstairs that speaks the protocol.

What it guarantees: the first line of standard output appears when the region can be reached, and says where; with
``--json`` it is one object for a supervisor to read. SIGINT and SIGTERM end in order (connections are cut, what was
written is moved into the files) with exit code 0. Whatever keeps it from starting is one sentence on standard error.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import trio
import typer

from crucible_emu.cli import service, serving, unflushed
from crucible_emu.cli.run_many import run_many
from crucible_emu.downstairs import tls
from crucible_emu.downstairs.faults import REAL_ERROR_PROBABILITY, Faults
from crucible_emu.downstairs.server import DownstairsServer, ServerOptions
from crucible_emu.errors import UsageError
from crucible_emu.region import Region, SyncPolicy
from crucible_emu.wire.constants import REPAIR_PORT_OFFSET

app = typer.Typer(no_args_is_help=True)

DEFAULT_PORT = 9000
MODES = {"rw": False, "ro": True}


@app.callback()
def group() -> None:
    """Run Downstairs."""


@app.command()
def run(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The region directory, or a snapshot of one.")],
    address: Annotated[
        str, typer.Option("--address", "-a", help="IP address to listen on; mirrors on other machines need a real one.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", "-p", help="Data port; 0: any that is free.")] = DEFAULT_PORT,
    repair_port: Annotated[
        int | None,
        typer.Option(help=f"Port of the repair service; 0: any; when absent: data port + {REPAIR_PORT_OFFSET}."),
    ] = None,
    unix: Annotated[Path | None, typer.Option(metavar="SOCKET", help="Listen on this unix socket as well.")] = None,
    shared_reads: Annotated[
        bool,
        typer.Option(help="Share memory with an Upstairs that comes by the unix socket: for reads and large writes."),
    ] = True,
    mode: Annotated[str, typer.Option(help="rw: one Upstairs at a time, which writes; ro: many, which read.")] = "rw",
    policy: Annotated[
        str, typer.Option(help=f"When writes reach the files: {', '.join(each.value for each in SyncPolicy)}.")
    ] = SyncPolicy.STAGED.value,
    unflushed_memory: Annotated[str | None, unflushed.OPTION] = None,
    cert_pem: Annotated[Path | None, typer.Option(help="Certificate (PEM); TLS needs all three files.")] = None,
    key_pem: Annotated[Path | None, typer.Option(help="Key (PEM, PKCS#1 or PKCS#8) of that certificate.")] = None,
    root_cert_pem: Annotated[
        Path | None, typer.Option(help="Root (PEM) that signs the Upstairs' certificates.")
    ] = None,
    lossy: Annotated[bool, typer.Option("--lossy", help="Delay and reorder jobs at random.")] = False,
    read_errors: Annotated[bool, typer.Option("--read-errors", help="Let a quarter of the reads fail.")] = False,
    write_errors: Annotated[bool, typer.Option("--write-errors", help="Let a quarter of the writes fail.")] = False,
    flush_errors: Annotated[bool, typer.Option("--flush-errors", help="Let a quarter of the flushes fail.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of all that happens at random.")] = 0,
    faithful: Annotated[
        bool, typer.Option("--faithful", help="Report a failed job and try again, as the real program does.")
    ] = False,
    until_eof: service.UntilEof = False,
    as_json: service.AsJson = False,
) -> None:
    """Serve the region in DIR until SIGINT or SIGTERM.

    [bold]Example[/bold]

      crucible-emu region create r0 --size 1GiB

      crucible-emu downstairs run r0 --port 3810
    """
    faults = Faults(
        lossy=REAL_ERROR_PROBABILITY * lossy,
        read_errors=REAL_ERROR_PROBABILITY * read_errors,
        write_errors=REAL_ERROR_PROBABILITY * write_errors,
        flush_errors=REAL_ERROR_PROBABILITY * flush_errors,
        seed=seed,
    )
    options = ServerOptions(
        host=address,
        port=port,
        repair_port=repair_port,
        unix_path=None if unix is None else str(unix),
        tls=_tls_context(cert_pem, key_pem, root_cert_pem),
        faults=faults,
        faithful=faithful,
    )
    read_only, sync_policy = _read_only(mode), _sync_policy(policy)
    staged_bytes_max = unflushed.staged_bytes_max(unflushed_memory)
    share = shared_reads and unix is not None and not faults.any

    async def main() -> None:
        async with service.until_told(until_eof) as told:
            with Region.open(
                directory, read_only=read_only, policy=sync_policy, staged_bytes_max=staged_bytes_max, share=share
            ) as region:
                await _serve(DownstairsServer(region, options), as_json, told)

    serving.run(main)


app.command()(run_many)


async def _serve(server: DownstairsServer, as_json: bool, told: trio.Event) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run)
        _announce(server, as_json)
        await told.wait()
        nursery.cancel_scope.cancel()


def _announce(server: DownstairsServer, as_json: bool) -> None:
    definition, data, repair = server.region.definition, server.address, server.repair_address
    if as_json:
        ready: dict[str, Any] = {
            "ready": True,
            "address": data.host,
            "port": data.port,
            "repair_address": repair.host,
            "repair_port": repair.port,
            "unix": server.options.unix_path,
            "region": str(server.region.path),
            "region_uuid": str(definition.uuid),
            "read_only": server.region.read_only,
            "encrypted": definition.encrypted,
            "tls": server.options.tls is not None,
            "pid": os.getpid(),
        }
        print(json.dumps(ready), flush=True)
        return
    kind = "read-only" if server.region.read_only else "read-write"
    print(f"Ready: region {definition.uuid} ({kind}) at {data}, repair service at {repair}", flush=True)


def _read_only(mode: str) -> bool:
    if mode not in MODES:
        raise UsageError(f"{mode!r} is no mode: take rw or ro")
    return MODES[mode]


def _sync_policy(name: str) -> SyncPolicy:
    try:
        return SyncPolicy(name)
    except ValueError:
        known = ", ".join(each.value for each in SyncPolicy)
        raise UsageError(f"{name!r} is no policy: take one of {known}") from None


def _tls_context(cert: Path | None, key: Path | None, root: Path | None) -> Any:
    given = [path for path in (cert, key, root) if path is not None]
    if not given:
        return None
    if cert is None or key is None or root is None:
        raise UsageError("TLS needs all three: --cert-pem, --key-pem and --root-cert-pem")
    return tls.server_context(cert, key, root)
