"""One service over HTTP: requests, answers, refusals and silence (apis-and-tools.md §0).

What it is for: the typed clients of agent, pantry, host and repair service say what they ask and what kind of answer
comes; everything else they have in common is here: ``api-version``, the token, TLS, the error envelope, limits. A
request is made once; :mod:`~crucible_emu.client.retry` knows when to make it again.

What it guarantees: a call returns a checked document, or raises one of four: :class:`ServiceError`, the service said
no; :class:`ServiceUnreachable`, nobody answered in time, so the request may or may not have been carried out;
:class:`~crucible_emu.errors.RemoteError`, the answer is none that the document allows; and
:class:`~crucible_emu.errors.UsageError` before anything is sent. No message holds a token or a body. Proxies of the
environment are not used: these services stand beside their clients.

It knows no loop of its own: under Trio and under asyncio it is the same.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from types import TracebackType
from typing import Any, ClassVar, Self, TypeVar, cast
from urllib.parse import quote, urlsplit

import httpx2
from pydantic import BaseModel, TypeAdapter, ValidationError

from crucible_emu.client.failures import ServiceError, ServiceUnreachable
from crucible_emu.client.tls import client_context
from crucible_emu.errors import RemoteError, UsageError

T = TypeVar("T")

TIMEOUT_S = 15.0
"""For an answer that does not wait for work; the few that do say so."""
CONNECT_TIMEOUT_S = 10.0
ANSWER_BYTES_MAX = 64 << 20
"""*Safety*: a listing of 100,000 regions has a quarter of that."""
REFUSAL_BYTES_MAX = 64 << 10
MESSAGE_CHARACTERS_MAX = 2000

BROKEN = (httpx2.TransportError, httpx2.StreamError, OSError)
"""How a conversation may end without an answer; time-outs are among them."""


def segment(name: object) -> str:
    """One segment of a path. Raises :class:`UsageError` for what would be none."""
    text = str(name)
    if text in ("", ".", ".."):
        raise UsageError(f"'{text}' cannot be part of an address: give a name or an id")
    return quote(text, safe="")


class ServiceClient:
    """The service at ``url`` (``http://[::1]:17000``); an asynchronous context manager.

    ``token`` is sent as a bearer token. ``tls_ca``: a PEM file of the authorities to trust in place of the system's.
    ``transport`` takes the place of the network, for one an ASGI application. ``timeout_s``: for each answer.
    """

    VERSION: ClassVar[str | None] = None
    """The ``api-version`` that is sent: that of the document that the client is written from."""

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        tls_ca: str | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise UsageError(f"'{url}' is not the address of a service: use http://host:port or https://host:port")
        if tls_ca is not None and parts.scheme == "http":
            raise UsageError(f"'{url}' goes without TLS: use https:// with certificates")
        headers = {} if self.VERSION is None else {"api-version": self.VERSION}
        if token is not None:
            headers["authorization"] = f"Bearer {token}"
        self.url = url.rstrip("/")
        self._timeout_s = timeout_s
        self._http = httpx2.AsyncClient(
            headers=headers,
            verify=client_context(tls_ca) if parts.scheme == "https" else False,
            transport=transport,
            trust_env=False,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    # --- for the typed clients ---

    async def _ask(
        self, method: str, path: str, answer: TypeAdapter[T], body: BaseModel | None = None, *, waits: bool = False
    ) -> T:
        """A request whose answer is a document. ``waits``: it comes when some work is done, however long that takes."""
        data = await self._exchange(method, path, body, waits=waits)
        try:
            return answer.validate_json(data)
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            place = ".".join(str(part) for part in first["loc"]) or "the document"
            problems = f"{place}: {first['msg']}"
            raise RemoteError(f"{self.url} answers {method} {path} with another document: {problems}") from None

    async def _tell(self, method: str, path: str, body: BaseModel | None = None) -> None:
        """A request whose answer says no more than that it was carried out."""
        await self._exchange(method, path, body, waits=False)

    async def _exchange(self, method: str, path: str, body: BaseModel | None, *, waits: bool) -> bytes:
        async with self._stream(method, path, body, waits=waits) as response:
            return await self._whole(response, ANSWER_BYTES_MAX)

    @asynccontextmanager
    async def _stream(
        self, method: str, path: str, body: BaseModel | None = None, *, waits: bool = False
    ) -> AsyncIterator[httpx2.Response]:
        """The head of a good answer, its body to be read. Raises :class:`ServiceError`, :class:`ServiceUnreachable`,
        also for what goes wrong while the body is read."""
        headers: Mapping[str, str] = {} if body is None else {"content-type": "application/json"}
        content = None if body is None else body.model_dump_json(by_alias=True)
        timeout = httpx2.Timeout(None if waits else self._timeout_s, connect=CONNECT_TIMEOUT_S)
        try:
            async with self._http.stream(
                method, self.url + path, content=content, headers=headers, timeout=timeout
            ) as response:
                if not 200 <= response.status_code < 300:
                    raise refusal(
                        response.status_code,
                        await self._whole(response, REFUSAL_BYTES_MAX),
                        response.headers.get("x-request-id"),
                    )
                yield response
        except BROKEN as error:
            raise ServiceUnreachable(self.url, _reason(error)) from error

    async def _whole(self, response: httpx2.Response, most: int) -> bytes:
        body = bytearray()
        # Closed here: a generator that is left in the middle is closed by nobody.
        async with aclosing(response.aiter_bytes()) as pieces:
            async for piece in pieces:
                body += piece
                if len(body) > most:
                    raise RemoteError(f"{self.url} answers with more than {most} bytes")
        return bytes(body)


def _reason(error: BaseException) -> str:
    """The first word on why: those who pass an error on often say nothing themselves."""
    if isinstance(error, httpx2.TimeoutException):
        return f"nothing came in time ({type(error).__name__})"
    deeper = error
    while not str(deeper) and (cause := deeper.__cause__ or deeper.__context__) is not None:
        deeper = cause
    return str(deeper) or type(error).__name__


def refusal(status: int, body: bytes, request_id: str | None) -> ServiceError:
    """The error in an envelope; of a body that is none, its beginning is the message."""
    try:
        members: Any = json.loads(body)
    except (ValueError, RecursionError):
        members = None
    if not isinstance(members, dict) or not isinstance(members.get("message"), str):
        text = body.decode(errors="replace").strip()[:200]
        return ServiceError(status, text or "refused without a word", None, request_id)
    found = cast("dict[str, Any]", members)
    code, named = found.get("error_code"), found.get("request_id")
    return ServiceError(
        status,
        found["message"][:MESSAGE_CHARACTERS_MAX],
        code if isinstance(code, str) else None,
        named if isinstance(named, str) else request_id,
    )
