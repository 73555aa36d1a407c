"""From an address to a disk.

What it is for: :func:`open_disk`, which users know as ``aio.open``: the scheme of the address says what stands there.
"""

from __future__ import annotations

import ssl

import httpx2

from crucible_emu.client.aio.disk import Disk
from crucible_emu.client.aio.nbd import open_nbd
from crucible_emu.client.aio.pantry import open_volume, split_address
from crucible_emu.client.pantry import PantryClient
from crucible_emu.client.tls import client_context
from crucible_emu.errors import UsageError
from crucible_emu.nbd.uri import parse

OPEN_TIMEOUT_S = 30.0


async def open_disk(
    address: str,
    *,
    tls_ca: str | None = None,
    tls_certificate: str | None = None,
    tls_key: str | None = None,
    token: str | None = None,
    size_bytes: int | None = None,
    timeout_s: float = OPEN_TIMEOUT_S,
    transport: httpx2.AsyncBaseTransport | None = None,
) -> Disk:
    """The disk at ``address``.

    ``nbd://host[:port]/NAME``, ``nbd+unix:///NAME?socket=PATH``; ``nbds://…`` and ``nbds+unix://…`` with TLS; or
    ``http(s)://host:port/crucible/pantry/0/volume/ID``, a volume that a pantry has attached.

    ``tls_ca``: a PEM file of the authorities to trust in place of the system's; ``tls_certificate`` and ``tls_key``
    name this client to an NBD server that asks. ``timeout_s`` bounds connecting and agreeing over NBD, and each answer
    of a pantry. For a pantry: ``token`` is the bearer token, ``size_bytes`` spares finding out how large the volume
    is, ``transport`` takes the place of the network.

    Raises :class:`UsageError` for an address that is none; :class:`OSError` or
    :class:`~crucible_emu.client.service.ServiceUnreachable` where it cannot be reached,
    :class:`~crucible_emu.client.failures.ExportRefused` or :class:`~crucible_emu.client.service.ServiceError` where it
    refuses, :class:`RemoteError` where it does not speak the protocol.
    """
    if address.startswith(("http://", "https://")):
        if tls_certificate or tls_key:
            raise UsageError("a pantry asks for a token and not for a certificate: give token")
        url, volume_id = split_address(address)
        client = PantryClient(url, token=token, tls_ca=tls_ca, timeout_s=timeout_s, transport=transport)
        try:
            return await open_volume(address, client, volume_id, size_bytes)
        except BaseException:
            await client.aclose()
            raise
    uri = parse(address)
    if token is not None or size_bytes is not None or transport is not None:
        raise UsageError(f"'{address}' is no pantry: token, size_bytes and transport have no meaning there")
    tls: ssl.SSLContext | None = None
    if uri.tls:
        tls = client_context(tls_ca, tls_certificate, tls_key)
    elif tls_ca or tls_certificate or tls_key:
        raise UsageError(f"'{address}' goes without TLS: use nbds:// with certificates")
    return await open_nbd(uri, tls, timeout_s)
