"""What ``serve`` and ``attach`` share: put a disk behind NBD until somebody ends it, and say when it is ready.

What it guarantees: the ready line appears only when clients can connect. SIGINT and SIGTERM end in order: requests are
finished, the disk is flushed, sockets are removed, and the exit code is 0; whatever was acknowledged to a flush is on
disk before the process is gone.
"""

from __future__ import annotations

import json
import os
import signal
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio
import typer

from crucible_emu import nbd
from crucible_emu.blockio import BlockDevice
from crucible_emu.cli.sizes import format_size
from crucible_emu.control.observation import Observation
from crucible_emu.downstairs.listening import look_up
from crucible_emu.errors import UsageError

DEFAULT_URI = "nbd://[::1]:10809/"

CONTROL = typer.Option(
    "--control", metavar="ADDR", help="Answer /info, /work, /metrics and POST /replace over HTTP at ip:port."
)
NOTIFY = typer.Option("--notify", metavar="URL", help="Tell this control plane (http://host:port) how repairs go.")


@dataclass(slots=True)
class Door:
    """Where and how a disk is served. ``tls`` files are needed for ``nbds`` addresses."""

    uris: tuple[str, ...]
    read_only: bool = False
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    as_json: bool = False
    facts: dict[str, Any] = field(default_factory=dict)
    observation: Observation | None = None
    """Who looks at the disk, and is shown the door as well."""


def check(door: Door) -> None:
    """What can be known to be wrong before there is a disk. Raises :class:`UsageError`."""
    export_name(door)
    server_context(door)
    for uri in map(nbd.parse_uri, door.uris):
        if uri.socket is None:
            look_up(uri.host, uri.port, "NBD")


def export_name(door: Door) -> str:
    """The disk's name at all its addresses. Raises :class:`UsageError`."""
    names = {nbd.parse_uri(uri).export for uri in door.uris}
    if len(names) > 1:
        raise UsageError(f"one disk has one name, {len(names)} were given: {', '.join(sorted(names))}")
    return names.pop()


def server_context(door: Door) -> ssl.SSLContext | None:
    """The TLS settings of ``door``, ``None`` without. Raises :class:`UsageError`."""
    wanted = any(nbd.parse_uri(uri).tls for uri in door.uris)
    if door.tls_certificate is None or door.tls_key is None:
        if wanted or door.tls_certificate or door.tls_key:
            raise UsageError("TLS needs both files: give --tls-cert and --tls-key")
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(door.tls_certificate, door.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise UsageError(f"the TLS files {door.tls_certificate} and {door.tls_key} cannot be used: {error}") from None
    return context


async def _listen(door: Door) -> tuple[list[nbd.Listener], list[str]]:
    """All listening sockets, and the addresses that clients use; those of socket activation replace ``door.uris``."""
    name = export_name(door)
    inherited = nbd.inherited_listeners()
    if inherited:
        return inherited, [str(listener.uri(name)) for listener in inherited]
    listeners: list[nbd.Listener] = []
    try:
        for text in door.uris:
            uri = nbd.parse_uri(text)
            if uri.socket is not None:
                listeners.append(nbd.listen_on_unix(uri.socket))
            else:
                listeners.extend(await nbd.listen_on_tcp(uri.host, uri.port))
    except BaseException:
        for listener in listeners:
            listener.close()
        raise
    tls = any(nbd.parse_uri(uri).tls for uri in door.uris)
    return listeners, [str(listener.uri(name, tls=tls)) for listener in listeners]


def announce(door: Door, device: BlockDevice, uris: list[str]) -> None:
    """The ready line, and nothing else, on standard output."""
    controls = [] if door.observation is None else door.observation.urls
    if door.as_json:
        ready = {
            "ready": True,
            "uri": uris[0],
            "uris": uris,
            "size_bytes": device.size_bytes,
            "block_size": device.block_size,
            "read_only": device.read_only or door.read_only,
            "pid": os.getpid(),
            **({"control": controls} if controls else {}),
            **door.facts,
        }
        print(json.dumps(ready), flush=True)
        return
    print(f"Ready: a disk of {format_size(device.size_bytes)} at {uris[0]}", flush=True)
    for other in uris[1:]:
        print(f"       and at {other}", flush=True)
    for url in controls:
        print(f"Control API: {url}/info and {url}/metrics", flush=True)
    print("Ctrl-C flushes and leaves.", flush=True)


async def serve_until_told(device: BlockDevice, door: Door) -> None:
    """Serve ``device`` until SIGINT or SIGTERM."""
    tls = server_context(door)
    listeners, uris = await _listen(door)
    name = nbd.parse_uri(uris[0]).export
    export = nbd.Export(device, "a mirrored disk", read_only=door.read_only)
    server = nbd.Server({name: export}, tls=tls, require_tls=tls is not None)
    if door.observation is not None:
        door.observation.snapshots.append(server.statistics.snapshot)
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:

            async def serving(*, task_status: trio.TaskStatus[nbd.Server]) -> None:
                await server.serve(listeners, task_status=task_status)
                nursery.cancel_scope.cancel()

            await nursery.start(serving)
            announce(door, device, uris)
            await anext(signals)
            server.shut_down()
            # A second signal while the first is being obeyed cuts clients off; the disk is flushed all the same.
            await anext(signals)
            server.shut_down(grace_s=0)


@asynccontextmanager
async def tuned_process() -> AsyncIterator[None]:
    """Settings of a process that moves blocks: short thread switches, no collection over objects that never die, and
    what start-up does not need any more given back to the system (1 MiB)."""
    import ctypes
    import gc
    import sys

    interval = sys.getswitchinterval()
    # At the default of 5 ms a worker thread waits for the loop 100 times longer than its work takes.
    sys.setswitchinterval(5e-5)
    gc.collect()
    gc.freeze()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # the GNU library's
    if trim is not None:
        trim(0)
    try:
        yield
    finally:
        gc.unfreeze()
        sys.setswitchinterval(interval)


def run(main: Callable[[], Any], *, log_level: str = "warning") -> None:
    """Run an async main as a command. Logs go to standard error, from ``log_level`` on where the environment does not
    say otherwise: a person at a terminal wants to hear of trouble only."""
    from crucible_emu import logs

    logs.configure(level=os.environ.get(logs.LEVEL_VARIABLE) or log_level)

    async def tuned() -> None:
        async with tuned_process():
            if await interrupted(main):
                raise KeyboardInterrupt

    trio.run(tuned)


async def interrupted(main: Callable[[], Any]) -> bool:
    """Run ``main``; whether a signal ended it that nothing inside was waiting for.

    A signal arrives as a cancellation at a checkpoint. Python's own way raises KeyboardInterrupt at any instruction,
    also where a finalizer or a callback swallows it.
    """
    signalled = False

    async def watch(signals: AsyncIterator[int]) -> None:
        nonlocal signalled
        await anext(signals)
        signalled = True
        nursery.cancel_scope.cancel()

    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch, signals)
            await main()
            nursery.cancel_scope.cancel()
    return signalled
