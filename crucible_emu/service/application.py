"""An :class:`Api` as an ASGI application.

What it is for: everything between the socket and a handler that the services have in common: who may come in, the
version, the path, the body's length and form, the answer's form, the id of the request. What it guarantees: no request,
whatever it holds, ends in anything but an answer with ``x-request-id``; what a handler did not mean to raise is logged
under that id and answered 500; of a body never more than its limit is held.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl
from uuid import uuid4

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from crucible_emu.errors import UsageError
from crucible_emu.http_body import body_of, drained
from crucible_emu.logs import get_logger
from crucible_emu.service.answers import Refusal, envelope
from crucible_emu.service.api import Api, Call, Knock, Operation
from crucible_emu.service.exposure import admit
from crucible_emu.service.versions import HEADER

JSON_TYPE = "application/json"
PROBLEMS_TOLD = 3

log = get_logger(__name__)


def application(api: Api, token: str | None = None) -> ASGIApp:
    """The ASGI application that answers for ``api``; with ``token``, to who has it, unless ``api`` knows callers."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            request_id = str(uuid4())
            response = await _response(api, token, Request(scope, receive), request_id)
            response.headers["x-request-id"] = request_id
            await response(scope, receive, send)
        elif scope["type"] == "lifespan":
            await _lifespan(receive, send)
        else:
            await send({"type": "websocket.close", "code": 1003})

    return drained(serve)


async def _lifespan(receive: Receive, send: Send) -> None:
    """A service begins and ends with whoever serves it: nothing to do at either end."""
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


async def _response(api: Api, token: str | None, request: Request, request_id: str) -> Response:
    told = {"service": api.name, "request_id": request_id, "method": request.method}
    try:
        return await _answer(api, token, request, request_id)
    except Refusal as refusal:
        log.info("request refused", **told, status=refusal.status, reason=str(refusal))
        return refused(refusal, request_id, faithful=api.faithful)
    except ClientDisconnect:
        return refused(Refusal(400, "the request ended before its body"), request_id, faithful=api.faithful)
    except Exception:
        log.exception("request failed", **told)
        return refused(Refusal(500, "Internal Server Error"), request_id, faithful=api.faithful)


def refused(refusal: Refusal, request_id: str, *, faithful: bool) -> Response:
    """The answer that ``refusal`` is."""
    return JSONResponse(
        envelope(refusal, request_id, faithful=faithful).as_json(),
        status_code=refusal.status,
        headers={"www-authenticate": "Bearer"} if refusal.status == 401 else None,
    )


async def _answer(api: Api, token: str | None, request: Request, request_id: str) -> Response:
    caller = await _caller(api, token, request)
    header = request.headers.get(HEADER)
    version = (0, 0, 0) if api.versions is None else api.versions.negotiate(header, lenient=api.lenient)
    operation, path = api.find(request.method, request.scope.get("raw_path") or request.url.path.encode(), version)
    body = None if operation.body is None else await _body(operation.body, request, api.body_bytes_max)
    query = dict(parse_qsl(request.url.query, keep_blank_values=True))
    value = await operation.handler(Call(operation, path, query, body, version, request_id, api.faithful, caller))
    return encoded(operation, value)


async def _caller(api: Api, token: str | None, request: Request) -> object:
    """Who asks. *Safety*: this comes before the body, so a stranger makes us hold nothing. Raises :class:`Refusal`."""
    authorization, origin = request.headers.get("authorization"), request.headers.get("origin")
    if api.identify is None:
        admit(request.method, authorization, origin, token)
        return None
    peer = None if request.client is None else request.client.host
    return await api.identify(Knock(request.method, authorization, origin, peer))


def encoded(operation: Operation, value: object) -> Response:
    """The answer of a handler; a response of its own making goes out as it is."""
    if isinstance(value, Response):
        return value
    if operation.success == 204:
        return Response(status_code=204)
    return JSONResponse(as_json(value), status_code=operation.success)


def as_json(value: object) -> Any:
    """Models, at any depth of lists and dicts, as what JSON knows."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", by_alias=True)
    if isinstance(value, dict):
        return {key: as_json(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(each) for each in value]
    return value


async def _body(model: type[BaseModel], request: Request, bytes_max: int) -> BaseModel:
    """Raises :class:`Refusal` (400)."""
    try:
        body = await body_of(request, bytes_max)
    except UsageError as error:
        raise Refusal(400, str(error)) from None
    content_type = request.headers.get("content-type", JSON_TYPE).partition(";")[0].strip().lower()
    if content_type != JSON_TYPE:
        raise Refusal(400, f'expected content type "{JSON_TYPE}", got "{content_type[:80]}"')
    return parse_body(model, body)


def parse_body(model: type[BaseModel], body: bytes) -> BaseModel:
    """``body`` as ``model``. Raises :class:`Refusal` (400), with a sentence that quotes nothing of the body: it may
    hold keys."""
    try:
        # Strict on JSON's terms: a number is not made out of text, but a UUID or an enumeration's word is text.
        return model.model_validate_json(body, strict=True)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        told = "; ".join(f"{_place(each['loc'])}: {_problem(each)}" for each in found[:PROBLEMS_TOLD])
        raise Refusal(400, f"unable to parse JSON body: {told}") from None


def _problem(problem: Mapping[str, Any]) -> str:
    """What is wrong, without those words of pydantic that quote the body."""
    return "its type is none of the known ones" if problem["type"] == "union_tag_invalid" else str(problem["msg"])


def _place(location: tuple[int | str, ...]) -> str:
    return ".".join(map(str, location)) or "the body"
