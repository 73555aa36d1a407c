"""From a volume construction request to the disk that it describes (upstairs-volume.md §12.2).

What it is for: :func:`construct` builds the tree of any request; :func:`build` one region set. Nothing connects to a
Downstairs until the disk is activated; files are opened and URLs are asked for their length, because a volume must know
how long its parts are.

What it guarantees: files and connections belong to the exit stack of the caller, so they are closed also when a later
part cannot be built. A request that cannot be built is refused with one sentence that shows no key.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from uuid import uuid4

from crucible_emu import errors
from crucible_emu.cipher_process import the_process
from crucible_emu.encryption import Cipher
from crucible_emu.errors import UsageError
from crucible_emu.geometry import GeometryError, RegionDefinition, check_block_size
from crucible_emu.upstairs.core import UpstairsCore
from crucible_emu.upstairs.driver import FLUSH_INTERVAL_S, RECONNECT_DELAY_S, Upstairs
from crucible_emu.upstairs.links import Connector
from crucible_emu.upstairs.members import Identity
from crucible_emu.upstairs.tcp_link import TcpAddress, TcpConnector
from crucible_emu.volume.backend import Backend
from crucible_emu.volume.in_service import Observe
from crucible_emu.volume.local_file import LocalFile
from crucible_emu.volume.region_set import RegionSet
from crucible_emu.volume.vcr import (
    CrucibleOpts,
    FileRequest,
    RegionRequest,
    UrlRequest,
    VolumeConstructionRequest,
    VolumeRequest,
    is_socket_path,
    parse_address,
)
from crucible_emu.volume.volume import Volume

BuildRegion = Callable[[RegionRequest], Upstairs]


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
        cipher = None if opts.key is None else Cipher.from_base64(opts.key.get_secret_value(), sharing=the_process)
        definition = RegionDefinition(
            request.block_size, request.blocks_per_extent, request.extent_count, opts.id, cipher is not None
        )
    except (ValueError, GeometryError) as error:
        raise UsageError(f"the VCR cannot be built: {error}") from None
    if len(set(opts.target)) < len(opts.target):
        raise UsageError(f"the VCR names a target twice ({', '.join(opts.target)}): a mirror needs three Downstairs")
    tls = tls_context(opts)

    def connector_for(client: int, target: str) -> Connector:
        if is_socket_path(target):  # the files' permissions guard it; nothing leaves this machine
            return TcpConnector(TcpAddress(path=target), opts.id, session_id)
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


async def construct(
    request: VolumeConstructionRequest,
    stack: AsyncExitStack,
    *,
    reconnect_delay_s: float = RECONNECT_DELAY_S,
    observe: Observe | None = None,
) -> Volume:
    """The disk that ``request`` describes, not yet running; ``stack`` gets what is to be closed after it.

    A request that is no volume is wrapped in one. Raises :class:`UsageError`, and :class:`errors.GenericError` where a
    URL is not reached.
    """
    _check_all(request)
    if not isinstance(request, VolumeRequest):
        request = VolumeRequest(type="volume", id=uuid4(), block_size=request.block_size, sub_volumes=(request,))
    build_region = partial(build, reconnect_delay_s=reconnect_delay_s, observe=observe)
    return await _volume(request, stack, build_region, below=False)


def _check_all(request: VolumeConstructionRequest) -> None:
    """Refuse, before anything is opened or asked for, what can be known to be wrong. Raises :class:`UsageError`."""
    try:
        check_block_size(request.block_size)
    except ValueError as error:
        raise UsageError(f"the VCR cannot be built: {error}") from None
    if isinstance(request, RegionRequest):
        build(request)
    elif isinstance(request, VolumeRequest):
        if not request.sub_volumes and request.read_only_parent is None:
            raise UsageError(f"the volume {request.id} has neither a sub-volume nor a read-only parent: give one")
        for part in (*request.sub_volumes, request.read_only_parent):
            if part is not None:
                if part.block_size != request.block_size:
                    raise UsageError(
                        f"the {part.type} in the volume {request.id} has blocks of {part.block_size} bytes, the volume "
                        f"{request.block_size}: {errors.BlockSizeMismatch()}"
                    )
                _check_all(part)


async def _volume(request: VolumeRequest, stack: AsyncExitStack, build_region: BuildRegion, *, below: bool) -> Volume:
    sub_volumes = [await _part(part, stack, build_region, below=below) for part in request.sub_volumes]
    parent = request.read_only_parent
    built = None if parent is None else await _part(parent, stack, build_region, below=True)
    return Volume(request.block_size, sub_volumes, built, volume_id=request.id)


async def _part(
    request: VolumeConstructionRequest, stack: AsyncExitStack, build_region: BuildRegion, *, below: bool
) -> Backend:
    """One part of a volume; ``below``: it is, or belongs to, a parent, which nobody writes."""
    if isinstance(request, VolumeRequest):
        return await _volume(request, stack, build_region, below=below)
    if isinstance(request, RegionRequest):
        return RegionSet(build_region(request))
    if isinstance(request, UrlRequest):
        from crucible_emu.volume.url import http_client, open_url  # an HTTP client, which few disks need

        client = await stack.enter_async_context(http_client())
        return await open_url(client, request.url, request.block_size, request.id)
    return _file(request, stack, below=below)


def _file(request: FileRequest, stack: AsyncExitStack, *, below: bool) -> LocalFile:
    found = LocalFile(Path(request.path), request.block_size, read_only=below, backend_id=request.id)
    stack.callback(found.close)
    return found
