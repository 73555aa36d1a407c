"""What the commands of the services share: their options, the ready line, and an orderly end.

What it guarantees: the ready line appears when clients can connect, alone on standard output. SIGINT, SIGTERM and,
where it was asked for, the end of standard input end the service in order, with exit code 0.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import trio
import typer

from crucible_emu.errors import UsageError
from crucible_emu.service import Exposure
from crucible_emu.service.exposure import read_token

Listen = Annotated[str, typer.Option("--listen", metavar="ADDR", help="Where to serve HTTP, as ip:port; port 0: any.")]
TlsCertificate = Annotated[Path | None, typer.Option("--tls-cert", help="Certificate (PEM), to serve HTTPS.")]
TlsKey = Annotated[Path | None, typer.Option("--tls-key", help="Key (PEM) of that certificate.")]
TokenFile = Annotated[
    Path | None, typer.Option("--token-file", help="A file with the bearer token that clients have to send.")
]
Faithful = Annotated[
    bool, typer.Option("--faithful", help="Answer as oddly as the real program does, and tell as little.")
]
Lenient = Annotated[bool, typer.Option("--lenient", help="Take a missing api-version header for the newest version.")]
UntilEof = Annotated[bool, typer.Option("--until-eof", help="End as well when standard input ends: with its parent.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the ready line as JSON.")]


def exposure(listen: str, tls_cert: Path | None, tls_key: Path | None, token_file: Path | None) -> Exposure:
    """Checked. Raises :class:`UsageError`."""
    found = Exposure(listen, tls_cert, tls_key, read_token(token_file))
    found.check()
    return found


def announce(what: str, url: str, *, as_json: bool, **facts: Any) -> None:
    """The ready line."""
    if as_json:
        print(json.dumps({"ready": True, "url": url, "pid": os.getpid(), **facts}), flush=True)
    else:
        print(f"Ready: {what} at {url}", flush=True)


@asynccontextmanager
async def until_told(until_eof: bool) -> AsyncIterator[trio.Event]:
    """Watch for what ends a service while the block runs; the event says that it came.

    Raises :class:`UsageError` where there is no standard input to wait for.
    """
    if until_eof and sys.stdin is None:
        raise UsageError("--until-eof waits for the end of standard input, which is closed: leave it open")
    told = trio.Event()
    # The receiver outside: it must not be closed before the task that listens to it has ended.
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:

            async def watch_signals() -> None:
                await anext(signals)
                told.set()

            async def watch_input() -> None:
                await end_of_input()
                told.set()

            nursery.start_soon(watch_signals)
            if until_eof:
                nursery.start_soon(watch_input)
            yield told
            nursery.cancel_scope.cancel()


async def end_of_input() -> None:
    """Return when standard input ends. What comes in before that is thrown away."""
    descriptor = sys.stdin.fileno()
    while True:
        try:
            await trio.lowlevel.wait_readable(descriptor)
        except PermissionError:
            pass  # a file, /dev/null for one: always readable
        if not os.read(descriptor, 4096):
            return
        await trio.lowlevel.checkpoint()
