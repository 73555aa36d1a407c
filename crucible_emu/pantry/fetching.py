"""What an import reads: an HTTP server's content, length first, then piece by piece (apis-and-tools.md §2.7).

What it guarantees: a piece counts only if it is the range that was asked for, in its full length; a server that answers
with something else ends the import. A server that takes too long, or says that it is busy (429, 503), is asked again
:data:`ATTEMPTS_MAX` times, a second apart; anything else is final. Nothing of a URL is told that may be a secret.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import TypeVar

import httpx2
import trio

from crucible_emu import errors
from crucible_emu.volume.url import shown

CONNECT_TIMEOUT_S = 10.0
REQUEST_TIMEOUT_S = 70.0
ATTEMPTS_MAX = 60
PAUSE_S = 1.0
BUSY = frozenset({429, 503})
SUCCESS = frozenset({200, 206})
T = TypeVar("T")

# It tells every URL in full, secrets included.
logging.getLogger("httpx2").setLevel(logging.WARNING)


class _AskAgain(Exception):
    """Another attempt may go better."""


def http_client() -> httpx2.AsyncClient:
    """A client for imports; enter it."""
    return httpx2.AsyncClient(
        follow_redirects=True,
        timeout=httpx2.Timeout(REQUEST_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
        headers={"Accept-Encoding": "identity"},
    )


class Source:
    """The content at the URL ``text``. Raises :class:`errors.GenericError` where that is no URL of content."""

    def __init__(self, client: httpx2.AsyncClient, text: str) -> None:
        self._client = client
        try:
            self.url = httpx2.URL(text)
        except httpx2.InvalidURL as error:
            raise errors.GenericError(f"the url is none: {error}") from None
        if self.url.scheme not in ("http", "https") or not self.url.host:
            raise errors.GenericError("the url is none of content: give http or https, and a host")

    async def length(self) -> int:
        """How many bytes there are. Raises :class:`errors.GenericError`."""

        async def ask() -> int:
            async with self._answered("HEAD", {}) as response:
                return self._announced(response)

        return await self._persist(ask)

    async def piece(self, first: int, length: int, whole: int) -> bytes:
        """``length`` bytes from ``first`` on, out of ``whole``. Raises :class:`errors.GenericError`."""

        async def ask() -> bytes:
            wanted = {"Range": f"bytes={first}-{first + length - 1}"}
            async with self._answered("GET", wanted) as response:
                announced = self._announced(response)
                if announced != length:
                    raise self._failure(f"a range of {length} bytes was answered with {announced}")
                if response.status_code == 200 and length != whole:
                    raise self._failure("the server does not serve ranges")
                async with aclosing(response.aiter_raw()) as parts:
                    data = b"".join([part async for part in parts])
                if len(data) != length:
                    raise self._failure(f"the answer ended after {len(data)} of {length} bytes")
                return data

        return await self._persist(ask)

    def _failure(self, sentence: str) -> errors.GenericError:
        return errors.GenericError(f"{shown(self.url)}: {sentence}")

    def _announced(self, response: httpx2.Response) -> int:
        text = response.headers.get("content-length", "")
        if not (text.isascii() and text.isdigit()):
            raise self._failure("the server does not say how long it is")
        return int(text)

    @asynccontextmanager
    async def _answered(self, method: str, headers: dict[str, str]) -> AsyncIterator[httpx2.Response]:
        """A response of success; raises :class:`_AskAgain` or :class:`errors.GenericError` for others."""
        try:
            async with self._client.stream(method, self.url, headers=headers) as response:
                if response.status_code in BUSY:
                    raise _AskAgain(f"the server answered {response.status_code}")
                if response.status_code not in SUCCESS:
                    raise self._failure(f"the server answered {response.status_code}")
                yield response
        except httpx2.TimeoutException as error:
            raise _AskAgain("the server took too long") from error
        except httpx2.HTTPError as error:
            raise self._failure(str(error) or type(error).__name__) from error
        except UnicodeError as error:
            raise self._failure("the host cannot be a name: a part of it is empty or too long") from error

    async def _persist(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Try until there is an answer. Raises :class:`errors.GenericError` when there is none after all attempts."""
        for number in range(1, ATTEMPTS_MAX + 1):
            why = "the server took too long"
            with trio.move_on_after(REQUEST_TIMEOUT_S):
                try:
                    return await attempt()
                except _AskAgain as again:
                    why = str(again)
            if number < ATTEMPTS_MAX:
                await trio.sleep(PAUSE_S)
        raise self._failure(f"{why} ({ATTEMPTS_MAX} attempts)")
