"""Disks for asyncio and notebooks.

    from crucible_emu.client import aio

    async with await aio.open("nbd+unix:///?socket=/run/disk.sock") as disk:
        await disk.copy_in("debian.img", progress=print)
        await disk.write(0, bytes(4096))
        await disk.flush()
        copied = await disk.copy_out("back.img")       # copied.blake3 is what b3sum says

``disk``      what every disk can do
``nbd``       an NBD export
``pantry``    a volume that a pantry has attached
``copying``   whole files in and out
``link``      sockets
"""

from __future__ import annotations

import ssl

from crucible_emu.client.aio.disk import Disk
from crucible_emu.client.aio.nbd import open_nbd
from crucible_emu.client.tls import client_context
from crucible_emu.errors import UsageError
from crucible_emu.nbd.uri import parse

__all__ = ["Disk", "open"]

OPEN_TIMEOUT_S = 30.0


async def open(
    address: str,
    *,
    tls_ca: str | None = None,
    tls_certificate: str | None = None,
    tls_key: str | None = None,
    timeout_s: float = OPEN_TIMEOUT_S,
) -> Disk:
    """The disk at ``address``.

    ``nbd://host[:port]/NAME``, ``nbd+unix:///NAME?socket=PATH``, and with TLS ``nbds://…``, ``nbds+unix://…``.

    ``tls_ca``: a PEM file of the authorities to trust in place of the system's; ``tls_certificate`` and ``tls_key``
    name this client to a server that asks. ``timeout_s`` bounds connecting and agreeing. Raises :class:`UsageError`
    for an address that is none, :class:`OSError` where it cannot be reached or refuses, :class:`RemoteError` where it
    does not speak the protocol.
    """
    uri = parse(address)
    tls: ssl.SSLContext | None = None
    if uri.tls:
        tls = client_context(tls_ca, tls_certificate, tls_key)
    elif tls_ca or tls_certificate or tls_key:
        raise UsageError(f"'{address}' goes without TLS: use nbds:// with certificates")
    return await open_nbd(uri, tls, timeout_s)
