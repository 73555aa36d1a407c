"""A service on a socket: Hypercorn on Trio, plain or with TLS.

What it guarantees: when the block begins, clients can connect; when it ends, requests that are being answered get
:data:`CLOSE_S_MAX` to end, and nobody listens any more.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import trio
from hypercorn.config import Config
from hypercorn.trio import serve
from starlette.types import ASGIApp

from crucible_emu.errors import UsageError
from crucible_emu.service.api import Api
from crucible_emu.service.application import application
from crucible_emu.service.exposure import Exposure

HEAD_BYTES_MAX = 16_384
CLOSE_S_MAX = 1.0
KEEP_ALIVE_S = 75.0
BACKLOG = 128

HTTP_LOG = logging.getLogger(f"{__name__}.http")
HTTP_LOG.setLevel(logging.WARNING)  # else it greets, and speaks of keys that do something else here


@asynccontextmanager
async def serving(api: Api | ASGIApp, exposure: Exposure) -> AsyncIterator[str]:
    """Serve while the block runs; yields the URL. An application is served as it is: its token is its own matter.

    Raises :class:`UsageError` for an address that is none, is taken, or is open to strangers.
    """
    exposure.check(knows_callers=isinstance(api, Api) and api.identify is not None)
    app = application(api, exposure.token) if isinstance(api, Api) else api
    listener = listen(exposure)
    host, port = listener.getsockname()[:2]
    config = _config(exposure, listener)
    leaving = trio.Event()
    async with trio.open_nursery() as nursery:
        run = partial(serve, app, config, shutdown_trigger=leaving.wait)  # type: ignore[arg-type]
        await nursery.start(run)
        try:
            scheme = "https" if exposure.tls else "http"
            yield f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
        finally:
            leaving.set()


def listen(exposure: Exposure) -> socket.socket:
    """A listening socket at the address of ``exposure``. Raises :class:`UsageError`."""
    listener = socket.socket(socket.AF_INET6 if ":" in exposure.host else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((exposure.host, exposure.port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        reason = (error.strerror or str(error)).lower()
        raise UsageError(f"cannot listen on {exposure.address}: {reason}") from None
    return listener


def _config(exposure: Exposure, listener: socket.socket) -> Config:
    config = Config()
    config.bind = [f"fd://{listener.detach()}"]  # bound here: hypercorn leaks what it cannot bind
    config.errorlog = HTTP_LOG  # by default, a handler and a format of its own
    config.graceful_timeout = CLOSE_S_MAX
    config.keep_alive_timeout = KEEP_ALIVE_S
    config.h11_max_incomplete_size = HEAD_BYTES_MAX
    if exposure.tls:
        config.certfile, config.keyfile = str(exposure.tls_certificate), str(exposure.tls_key)
    return config
