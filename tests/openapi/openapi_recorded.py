"""Any test's HTTP exchange, held to a document as it happens.

``validated(transport, document)`` goes between a client and its transport::

    async with httpx2.AsyncClient(transport=validated(transport, load("agent")), base_url=...) as http:
        ...                                          # a wrong answer raises AssertionError here

What it guarantees: every answer passes through once, unchanged; one that the document does not allow, and every 500,
fails the test at the request. ``seen`` says which operations were answered, and how, so that a test can ask for all of
them. Requests that the document does not know (extensions) are held to the envelope only.
"""

from __future__ import annotations

from collections import Counter

import httpx2
from openapi_document import Document


class Validated(httpx2.AsyncBaseTransport):
    """A transport that judges what comes through it. ``allowed``: statuses of 500 and above that are meant."""

    def __init__(
        self, transport: httpx2.AsyncBaseTransport, document: Document, allowed: frozenset[int] = frozenset()
    ) -> None:
        self._transport = transport
        self._document = document
        self._allowed = allowed
        self.seen: Counter[tuple[str, int]] = Counter()
        """Operation ids (or the path, for what the document does not know) and statuses."""

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        answer = await self._transport.handle_async_request(request)
        try:
            body = await answer.aread()
        finally:
            await answer.aclose()
        method, target = request.method, request.url.raw_path.decode()
        operation = self._document.find(method, target)
        self.seen[operation.operation_id if operation else target, answer.status_code] += 1
        wrong = self._document.violations(operation, answer.status_code, answer.headers, body)
        if answer.status_code >= 500 and answer.status_code not in self._allowed:
            wrong.append(f"status {answer.status_code}: {body[:200]!r}")
        assert not wrong, f"{method} {target} -> {answer.status_code}: {'; '.join(wrong)}"
        return httpx2.Response(
            answer.status_code,
            headers=[(key, value) for key, value in answer.headers.raw if key.lower() != b"content-encoding"],
            content=body,
            request=request,
            extensions=answer.extensions,
        )

    async def aclose(self) -> None:
        await self._transport.aclose()


def validated(
    transport: httpx2.AsyncBaseTransport, document: Document, *, allowed: frozenset[int] = frozenset()
) -> Validated:
    """``transport``, with every answer held to ``document``."""
    return Validated(transport, document, allowed)
