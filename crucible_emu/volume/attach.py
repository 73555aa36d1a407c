"""A disk from a volume construction request: three Downstairs over the network become one block device.

What it is for: :func:`attach` builds an Upstairs for a region set, brings it into service, and takes it out again when
the block ends: with a last flush, so that nothing acknowledged is only in memory.

What it takes: a region, or a volume with exactly one region as sub-volume and no read-only parent. Other requests are
refused with a sentence; they are valid documents, but this version does not build them.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import trio

from crucible_emu.errors import UsageError
from crucible_emu.geometry import GeometryError, RegionDefinition
from crucible_emu.integrity import Cipher
from crucible_emu.upstairs.core import UpstairsCore
from crucible_emu.upstairs.dispatcher import Identity
from crucible_emu.upstairs.driver import FLUSH_INTERVAL_S, RECONNECT_DELAY_S, Upstairs
from crucible_emu.upstairs.guest import Guest
from crucible_emu.upstairs.links import Connector
from crucible_emu.upstairs.tcp_link import TcpAddress, TcpConnector
from crucible_emu.volume.vcr import CrucibleOpts, RegionRequest, VolumeConstructionRequest, VolumeRequest, parse_address

Observe = Callable[[Upstairs, str | None], None]
"""Told of each Upstairs that was built, before it runs, and of the control address that its request names."""

FAREWELL_TIMEOUT_S = 15.0
"""How long leaving a disk waits for replicas that are away, so that its last flush need not fail."""


def region_of(request: VolumeConstructionRequest) -> RegionRequest:
    """The one region set of ``request``. Raises :class:`UsageError` where it is more than that."""
    if isinstance(request, RegionRequest):
        return request
    if not isinstance(request, VolumeRequest):
        raise UsageError(f"a {request.type} cannot be attached by itself: this version attaches a region set")
    if request.read_only_parent is not None:
        raise UsageError("the volume has a read-only parent: this version attaches a single region set only")
    if len(request.sub_volumes) != 1:
        raise UsageError(f"the volume has {len(request.sub_volumes)} sub-volumes: this version attaches exactly one")
    return region_of(request.sub_volumes[0])


def tls_context(opts: CrucibleOpts) -> ssl.SSLContext | None:
    """Mutual TLS as the request asks for it (wire-protocol.md §6.7). Raises :class:`UsageError`."""
    if opts.cert_pem is None:
        return None
    if opts.key_pem is None or opts.root_cert_pem is None:
        raise UsageError("cert_pem is given without key_pem and root_cert_pem: TLS needs all three")
    for path in (opts.cert_pem, opts.key_pem, opts.root_cert_pem):
        if not Path(path).is_file():
            raise UsageError(f"the TLS file {path} does not exist")
    try:
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=opts.root_cert_pem)
        context.load_cert_chain(opts.cert_pem, opts.key_pem)
    except (OSError, ssl.SSLError) as error:
        raise UsageError(f"the TLS files cannot be used: {error}") from None
    return context


def build(
    request: RegionRequest, *, reconnect_delay_s: float = RECONNECT_DELAY_S, observe: Observe | None = None
) -> Upstairs:
    """An Upstairs for the region set, not yet running. Raises :class:`UsageError`."""
    opts = request.opts
    session_id = uuid4()
    try:
        cipher = None if opts.key is None else Cipher.from_base64(opts.key.get_secret_value())
        definition = RegionDefinition(
            request.block_size, request.blocks_per_extent, request.extent_count, opts.id, cipher is not None
        )
    except (ValueError, GeometryError) as error:
        raise UsageError(f"the VCR cannot be built: {error}") from None
    if len(set(opts.target)) < len(opts.target):
        raise UsageError(f"the VCR names a target twice ({', '.join(opts.target)}): a mirror needs three Downstairs")
    tls = tls_context(opts)

    def connector_for(client: int, target: str) -> Connector:
        address = TcpAddress(*parse_address(target))
        return TcpConnector(address, opts.id, session_id, tls=tls, server_name=f"downstairs{client}" if tls else None)

    identity = Identity(opts.id, session_id, cipher is not None, opts.read_only)
    upstairs = Upstairs(
        UpstairsCore(identity, request.gen, definition),
        [connector_for(client, target) for client, target in enumerate(opts.target)],
        cipher=cipher,
        flush_interval_s=opts.flush_timeout or FLUSH_INTERVAL_S,
        reconnect_delay_s=reconnect_delay_s,
        connector_for=connector_for,
    )
    if observe is not None:
        observe(upstairs, opts.control)
    return upstairs


@asynccontextmanager
async def in_service(
    upstairs: Upstairs, *, generation: int | None = None, timeout_s: float | None = None
) -> AsyncIterator[Guest]:
    """The disk of ``upstairs``, active inside the block. Leaving it flushes and deactivates, also when cancelled."""
    async with trio.open_nursery() as nursery:
        await nursery.start(upstairs.run)
        await upstairs.activate(generation, timeout_s)
        guest = Guest(upstairs)
        nursery.start_soon(guest.run)
        try:
            yield guest
        finally:
            with trio.CancelScope(shield=True):
                if upstairs.active:
                    await _leave(guest)
            nursery.cancel_scope.cancel()


async def _leave(guest: Guest) -> None:
    """Flush and deactivate. Raises what the flush failed with: it is the last chance to say so."""
    async with trio.open_nursery() as nursery:
        flushed = trio.Event()

        async def flush() -> None:
            try:
                await guest.flush()
            finally:
                flushed.set()

        nursery.start_soon(flush)
        with trio.move_on_after(FAREWELL_TIMEOUT_S):
            await flushed.wait()
        # *Liveness*: a flush that waits for replicas which do not come back is failed by this.
        with trio.CancelScope(shield=True):
            if guest.upstairs.active:
                await guest.upstairs.deactivate()


@asynccontextmanager
async def attach(
    request: VolumeConstructionRequest, *, timeout_s: float | None = None, observe: Observe | None = None
) -> AsyncIterator[Guest]:
    """The disk that ``request`` describes, active inside the block."""
    async with in_service(build(region_of(request), observe=observe), timeout_s=timeout_s) as guest:
        yield guest
