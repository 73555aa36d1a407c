"""The control API over HTTP: what the real Upstairs answers, and a few paths of ours (upstairs-volume.md §15.3).

What it is for: ``GET /info`` and ``GET /work`` are the real API, for the tools that know it. Ours are ``GET /trace``
(the tracing record), ``GET /metrics`` (Prometheus), ``GET /volume-info`` (§12.4) and ``POST /replace``, with which a
Downstairs is put in place of another while the disk is in use. A disk of several region sets answers for the first
one, or for the one that ``?upstairs=`` names.

What it guarantees: a body has at most 1024 bytes. What cannot be meant is answered 400 with a sentence in the real
servers' envelope (``message``, ``request_id``); nothing that a client sends here reaches the path of a block. There is
no authentication, as in the real one: the address is chosen by whoever starts the disk. Only a web page is refused,
which a browser on that machine may be made to load.
"""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from uuid import uuid4

import trio
from hypercorn.config import Config
from hypercorn.trio import serve
from pydantic import BaseModel
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from crucible_emu import http_errors
from crucible_emu.control import metrics
from crucible_emu.errors import CrucibleError, UsageError
from crucible_emu.http_body import body_of
from crucible_emu.http_errors import error_response
from crucible_emu.statistics import Snapshot
from crucible_emu.upstairs import status
from crucible_emu.upstairs.driver import Upstairs
from crucible_emu.volume.vcr import check_target

BODY_BYTES_MAX = 1024
HEAD_BYTES_MAX = 8192
CLOSE_S_MAX = 1.0
KEEP_ALIVE_S = 30.0

HTTP_LOG = logging.getLogger(f"{__name__}.http")
HTTP_LOG.setLevel(logging.WARNING)  # else it greets, and speaks of keys that do something else here


class Control:
    """What the API does, for all of ``upstairs`` (the list may grow). ``snapshots``: what else ``/metrics`` shows.
    ``volume_info``: answers what the disk is made of, or ``None`` while that is not known."""

    def __init__(
        self,
        upstairs: Sequence[Upstairs],
        snapshots: Sequence[Callable[[], Snapshot]] = (),
        volume_info: Callable[[], BaseModel | None] = lambda: None,
    ) -> None:
        self._upstairs = upstairs
        self._snapshots = snapshots
        self._volume_info = volume_info

    def info(self, request: Request, _body: bytes) -> Response:
        return JSONResponse(status.info(self._named(request).core))

    def work(self, request: Request, _body: bytes) -> Response:
        return JSONResponse(status.work(self._named(request).core))

    def trace(self, request: Request, _body: bytes) -> Response:
        upstairs = self._named(request)
        return JSONResponse(status.trace(upstairs.core, upstairs.delays_us))

    def metrics(self, request: Request, _body: bytes) -> Response:
        return Response(metrics.text(self._upstairs, self._snapshots), headers={"content-type": metrics.CONTENT_TYPE})

    def volume_info(self, request: Request, _body: bytes) -> Response:
        found = self._volume_info()
        if found is None:
            raise UsageError("nothing is known here of a volume: the disk is being attached yet, or is none")
        return JSONResponse(found.model_dump(mode="json"))

    def replace(self, request: Request, body: bytes) -> Response:
        """``{"old": address, "new": address}`` to ``{"result": ...}``, one of the five words of §9."""
        if "origin" in request.headers:
            raise UsageError("a web page may not replace a Downstairs: the request has an Origin")
        old, new = replacement(body)
        upstairs = self._named(request) if "upstairs" in request.query_params else self._with_target(old, new)
        return JSONResponse({"result": upstairs.replace_downstairs(old, new).value})

    def _named(self, request: Request) -> Upstairs:
        wanted = request.query_params.get("upstairs")
        for upstairs in self._upstairs:
            if wanted is None or str(upstairs.core.identity.upstairs_id) == wanted:
                return upstairs
        if wanted is None:
            raise UsageError("no disk is being attached yet: ask again")
        raise UsageError(f"no region set here is that of Upstairs {wanted[:40]!r}")

    def _with_target(self, old: str, new: str) -> Upstairs:
        """The region set that has the old Downstairs, or has the new one already; else the first, which says so."""
        for address in (old, new):
            for upstairs in self._upstairs:
                if any(client.target == address for client in upstairs.core.clients):
                    return upstairs
        if not self._upstairs:
            raise UsageError("no disk is being attached yet: ask again")
        return self._upstairs[0]


def replacement(body: bytes) -> tuple[str, str]:
    """The two addresses of a request to replace. Raises :class:`UsageError`."""
    try:
        members = json.loads(body)
    except (ValueError, RecursionError):
        members = None
    if not isinstance(members, dict):
        raise UsageError('the body is no JSON object: send {"old": "ip:port", "new": "ip:port"}')
    addresses = []
    for name in ("old", "new"):
        address = members.get(name)
        if not isinstance(address, str):
            raise UsageError(f'"{name}" is missing or no string: send {{"old": "ip:port", "new": "ip:port"}}')
        try:
            check_target(address)
        except ValueError as error:
            raise UsageError(f'"{name}": {error}') from None
        addresses.append(address)
    return addresses[0], addresses[1]


ROUTES: tuple[tuple[str, str, Callable[[Control, Request, bytes], Response]], ...] = (
    ("GET", "/info", Control.info),
    ("GET", "/work", Control.work),
    ("GET", "/trace", Control.trace),
    ("GET", "/metrics", Control.metrics),
    ("GET", "/volume-info", Control.volume_info),
    ("POST", "/replace", Control.replace),
)
"""The whole API; all but the first two are ours."""


def application(control: Control) -> ASGIApp:
    """The API as an ASGI application."""
    return http_errors.application(
        [Route(path, _endpoint(partial(answer, control)), methods=[method]) for method, path, answer in ROUTES]
    )


def _endpoint(answer: Callable[[Request, bytes], Response]) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        try:
            body = await body_of(request, BODY_BYTES_MAX)
            response = answer(request, body)
        except (UsageError, CrucibleError) as error:
            return error_response(400, str(error))
        except ClientDisconnect:
            return error_response(400, "the request ended before its body")
        response.headers["x-request-id"] = str(uuid4())
        return response

    return endpoint


async def serve_control(control: Control, listener: socket.socket) -> None:
    """Answer on ``listener``, which is taken over, until cancelled."""
    config = Config()
    with listener:
        await trio.lowlevel.checkpoint_if_cancelled()  # from here on it is hypercorn's to close
        config.bind = [f"fd://{listener.detach()}"]
    config.errorlog = HTTP_LOG  # by default, a handler and a format of its own
    config.graceful_timeout = CLOSE_S_MAX
    config.keep_alive_timeout = KEEP_ALIVE_S
    config.h11_max_incomplete_size = HEAD_BYTES_MAX
    await serve(application(control), config, shutdown_trigger=trio.sleep_forever)  # type: ignore[arg-type]
