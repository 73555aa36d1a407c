"""How an HTTP API of this project refuses: the envelope of the real programs' servers.

What it is for: every API of the data plane that is made with Starlette answers what cannot be done with a JSON object
of a sentence and the request's id, which is in a header as well (apis-and-tools.md). One place says how that looks, and
which paths mean the same: the real servers take no notice of empty segments, where Starlette sends the client
elsewhere, and have no HEAD where there is a GET.
"""

from __future__ import annotations

from collections.abc import Sequence
from uuid import uuid4

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from crucible_emu.http_body import drained


def error_response(status_code: int, message: str, error_code: str | None = None) -> Response:
    """The refusal with ``message``, a sentence for a person, and perhaps a word for machines."""
    request_id = str(uuid4())
    members = {"request_id": request_id, "message": message} | ({"error_code": error_code} if error_code else {})
    return JSONResponse(members, status_code=status_code, headers={"x-request-id": request_id})


async def refused(_request: Request, error: Exception) -> Response:
    """The handler of what Starlette refuses itself: an unknown path, another method."""
    assert isinstance(error, HTTPException)
    return error_response(error.status_code, error.detail)


async def failed(_request: Request, _error: Exception) -> Response:
    """The handler of what nobody meant to raise. Starlette raises it again afterwards, so that it is logged."""
    return error_response(500, "Internal Server Error", "Internal")


def application(routes: Sequence[Route]) -> ASGIApp:
    """An ASGI application of ``routes`` that refuses as the real servers do."""
    for route in routes:
        (route.methods or set()).discard("HEAD")
    starlette = Starlette(routes=routes, exception_handlers={HTTPException: refused, Exception: failed})
    starlette.router.redirect_slashes = False

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope = {**scope, "path": joined(scope["path"])}
        await starlette(scope, receive, send)

    return drained(answer)


def joined(path: str) -> str:
    """``path`` without its empty segments."""
    return "/" + "/".join(segment for segment in path.split("/") if segment)
