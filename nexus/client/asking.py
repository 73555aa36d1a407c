"""What the clients of Nexus have in common: queries, and listings that come in pages.

What it guarantees: a listing ends. A server that hands out the same page token twice would be asked for ever; that is
an answer that no document allows, and is said so (*liveness*).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, TypeVar
from urllib.parse import urlencode

from pydantic import TypeAdapter

from crucible_emu.client.service import ServiceClient
from crucible_emu.errors import RemoteError
from nexus.api.members import Page

T = TypeVar("T")

PAGE_ITEMS = 500
WORK_TIMEOUT_S = 600.0
"""For an answer that comes when a saga has run. It may wait for an agent that restarts; a caller that is not willing
to has a cancel scope."""


def asked_for(path: str, **query: object) -> str:
    """``path`` with what of ``query`` is not ``None``."""
    given = {name: value for name, value in query.items() if value is not None}
    return f"{path}?{urlencode(given)}" if given else path


class NexusClient(ServiceClient):
    """One of the servers of a Nexus, and what all of them can be asked."""

    async def _all(self, path: str, page: TypeAdapter[Any], of: type[T], **query: object) -> AsyncIterator[T]:
        """Every item of a listing, page after page; ``of`` says to the checker what they are."""
        token: str | None = None
        seen: set[str] = set()
        while True:
            # A page token holds all that the listing was asked with, but for the selector of the project.
            found: Page[T] = await self._ask("GET", asked_for(path, limit=PAGE_ITEMS, page_token=token, **query), page)
            for item in found.items:
                yield item
            token = found.next_page
            if token is None:
                return
            if token in seen:
                raise RemoteError(f"{self.url} answers GET {path} with the same page again and again")
            seen.add(token)
