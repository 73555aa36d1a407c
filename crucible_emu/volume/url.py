"""Blocks read from a URL (upstairs-volume.md §11.11).

What it is for: an image on an HTTP server as the parent of a disk. Every read is one ranged GET; eight are under way
at a time.

What it guarantees: an answer counts only if it is the range that was asked for, in its full length; a server that
answers with something else costs that read, with a sentence. Trouble that may pass (no connection, a broken one, 429,
5xx) is tried again, a bounded number of times with growing pauses. Nothing can be written. What a URL carries in front
of its host or behind its path may be a secret, so no message shows it.

All blocks count as written, so nothing shows through from a parent below.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import TypeVar
from uuid import UUID

import httpx2
import trio

from crucible_emu import errors
from crucible_emu.blockio import Allocation, Completed, Kind, Request
from crucible_emu.errors import UsageError
from crucible_emu.volume.backend import Backend
from crucible_emu.volume.image import digest

REQUESTS_AT_ONCE = 8
QUEUED_REQUESTS_MAX = 256
TIMEOUT_S = 15.0
ATTEMPTS_MAX = 5
FIRST_PAUSE_S = 0.1
"""Doubled after every attempt: a read that fails for good took 1.5 s and its timeouts."""
PIECE_BYTES = 1 << 18
T = TypeVar("T")


class _MayPass(Exception):
    """Trouble that another attempt may not meet."""


class Url(Backend):
    """The content at ``url`` as blocks. Made by :func:`open_url`, which asks for its length."""

    def __init__(
        self, client: httpx2.AsyncClient, url: httpx2.URL, size_bytes: int, block_size: int, backend_id: UUID | None
    ) -> None:
        super().__init__(self, backend_id)
        if size_bytes == 0 or size_bytes % block_size:
            raise UsageError(
                f"{shown(url)} has {size_bytes} bytes, which is not made of whole blocks of {block_size} bytes: pad it"
            )
        self.url = url
        self._client = client
        self._size_bytes = size_bytes
        self._block_size = block_size
        # Unbounded here: doors bound how many requests are outstanding, and ask for room.
        self._in, self._out = trio.open_memory_channel[tuple[Request, Completed]](math.inf)
        self._waiting = 0
        self._room = trio.Event()

    # -- what a door asks ---------------------------------------------------------------------------------------------

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    @property
    def block_size(self) -> int:
        return self._block_size

    @property
    def read_only(self) -> bool:
        return True

    def submit(self, requests: list[Request], completed: Completed) -> None:
        done: list[Request] = []
        for request in requests:
            request.error = self._refusal(request)
            if request.error is not None or request.kind is Kind.FLUSH or not request.length:
                done.append(request)
            else:
                self._waiting += 1
                self._in.send_nowait((request, completed))
        if done:
            completed(done)

    async def wait_for_room(self) -> None:
        while self._waiting >= QUEUED_REQUESTS_MAX:
            self._room = trio.Event()
            await self._room.wait()

    async def allocation(self, offset: int, length: int) -> list[Allocation]:
        """One run: every block counts as written."""
        await trio.lowlevel.checkpoint()
        return [Allocation(length, 1)]

    def _refusal(self, request: Request) -> errors.CrucibleError | None:
        if request.kind is Kind.FLUSH:
            return None
        if request.kind is not Kind.READ:
            return errors.Unsupported("a URL cannot be written")
        if request.offset % self._block_size:
            return errors.OffsetUnaligned()
        if request.length % self._block_size:
            return errors.DataLenUnaligned()
        if request.offset < 0 or request.offset + request.length > self._size_bytes:
            return errors.OffsetInvalid()
        return None

    # -- life ---------------------------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Fetch what was asked for, until cancelled."""
        async with trio.open_nursery() as nursery:
            for _ in range(REQUESTS_AT_ONCE):
                nursery.start_soon(self._fetch_in_turn)
            task_status.started()

    async def check_content(self, blake3_hex: str) -> None:
        """Read everything once. Raises :class:`errors.HashMismatch` where its BLAKE3 is another than ``blake3_hex``;
        the backend must run."""
        if await digest(self) != blake3_hex.lower():
            raise errors.HashMismatch()

    async def _fetch_in_turn(self) -> None:
        async for request, completed in self._out:
            try:
                await _persist(self.url, partial(self._get_range, request))
            except errors.CrucibleError as error:
                request.error = error
            else:
                if request.owned is not None:
                    request.owned[:] = True
            self._waiting -= 1
            if self._waiting < QUEUED_REQUESTS_MAX:
                self._room.set()
            completed([request])

    async def _get_range(self, request: Request) -> None:
        first, length = request.offset, request.length
        headers = {"Range": f"bytes={first}-{first + length - 1}"}
        async with _answered("GET", self._client, self.url, headers) as response:
            announced = response.headers.get("content-length")
            if announced != str(length):
                raise errors.IoError(f"{shown(self.url)} answered a range of {length} bytes with {announced}")
            if response.status_code == 200 and length != self._size_bytes:
                raise errors.IoError(f"{shown(self.url)} does not serve ranges")
            out, at = request.buffer, 0
            assert out is not None
            async with aclosing(response.aiter_raw(PIECE_BYTES)) as pieces:
                async for piece in pieces:
                    if at + len(piece) > length:
                        raise errors.IoError(f"{shown(self.url)} sent more than it announced")
                    out[at : at + len(piece)] = piece
                    at += len(piece)
            if at != length:
                raise _MayPass(f"the answer ended after {at} of {length} bytes")


@asynccontextmanager
async def _answered(
    method: str, client: httpx2.AsyncClient, url: httpx2.URL, headers: dict[str, str]
) -> AsyncIterator[httpx2.Response]:
    """A response of success; raises :class:`_MayPass` or :class:`errors.GenericError` for others."""
    try:
        async with client.stream(method, url, headers=headers) as response:
            status = response.status_code
            if status == 429 or status >= 500:
                raise _MayPass(f"the server answered {status}")
            if status not in (200, 206):
                raise errors.GenericError(f"{shown(url)}: the server answered {status}")
            yield response
    except httpx2.TransportError as error:
        raise _MayPass(str(error) or type(error).__name__) from error
    except httpx2.HTTPError as error:
        raise errors.GenericError(f"{shown(url)}: {error}") from error
    except UnicodeError as error:
        raise errors.GenericError(f"{shown(url)}: the host cannot be a name: a part is empty or too long") from error


def shown(url: httpx2.URL) -> str:
    """The URL without what may be a secret: user, password, query."""
    port = f":{url.port}" if url.port else ""
    host = f"[{url.host}]" if ":" in url.host else url.host
    return f"{url.scheme}://{host}{port}{url.path}"


def http_client() -> httpx2.AsyncClient:
    """A client for URLs; enter it, and leave it when the backends made with it are out of service."""
    return httpx2.AsyncClient(follow_redirects=True, timeout=TIMEOUT_S, headers={"Accept-Encoding": "identity"})


async def open_url(client: httpx2.AsyncClient, text: str, block_size: int, backend_id: UUID | None = None) -> Url:
    """The content at the URL ``text`` as blocks.

    Raises :class:`UsageError` for what is no URL of blocks, :class:`errors.GenericError` where it is not reached.
    """
    try:
        url = httpx2.URL(text)
    except httpx2.InvalidURL as error:
        raise UsageError(f"a url of the VCR is none: {error}") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise UsageError("a url of the VCR is none of blocks: give http or https, and a host")

    async def ask() -> int:
        async with _answered("HEAD", client, url, {}) as response:
            announced = response.headers.get("content-length", "")
            if not (announced.isascii() and announced.isdigit()):
                raise errors.GenericError(f"{shown(url)}: the server does not say how long it is")
            return int(announced)

    return Url(client, url, await _persist(url, ask), block_size, backend_id)


async def _persist(url: httpx2.URL, attempt: Callable[[], Awaitable[T]]) -> T:
    """Try until it works or is known not to. Raises :class:`errors.GenericError` when it has not after all attempts."""
    pause_s = FIRST_PAUSE_S
    for number in range(1, ATTEMPTS_MAX + 1):
        try:
            return await attempt()
        except _MayPass as error:
            if number == ATTEMPTS_MAX:
                raise errors.GenericError(f"{shown(url)}: {error} ({ATTEMPTS_MAX} attempts)") from None
        await trio.sleep(pause_s)
        pause_s *= 2
    raise AssertionError("the loop returns or raises")
