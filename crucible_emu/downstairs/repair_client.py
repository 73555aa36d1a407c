"""Fetching an extent from another Downstairs (wire-protocol.md §10.2, on-disk-format.md §7.3).

What it is for: the procedure itself is :func:`crucible_emu.region.clone.copy_extent`; here is the source that it asks,
over HTTP. An extent of a region in this process is asked without.

What it guarantees: no request, body included, takes longer than 15 s, and no body may be longer than what was asked
for can be. What arrives is written as it comes and checked as a whole before it replaces anything; what goes wrong on
the way is one of the three repair errors and leaves the extent as it was.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import Any, Protocol

import httpx2
import trio

from crucible_emu import errors
from crucible_emu.geometry import RegionDefinition
from crucible_emu.region import Region
from crucible_emu.region.clone import RepairSource, copy_extent
from crucible_emu.region.layout import ExtentLayout
from crucible_emu.region.repair_files import FileType
from crucible_emu.wire.messages import SocketAddress

REQUEST_S_MAX = 15.0
PIECE_BYTES = 1 << 20
WITHOUT_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""*Optimisation*: the service has no TLS; left to itself each client would load all certificates of the machine, which
takes 74 ms of the loop per extent."""
OTHER_FILE_BYTES_MAX = 1 << 30
"""No remnant of the old format is as big as this."""


class Sources(Protocol):
    """Finds the repair service that a message names."""

    def open(self, address: SocketAddress, definition: RegionDefinition) -> AbstractAsyncContextManager[RepairSource]:
        """The source at ``address``, for extents of a region like ``definition``."""
        ...


class HttpSources:
    """Every address is that of a repair service on the network."""

    @asynccontextmanager
    async def open(self, address: SocketAddress, definition: RegionDefinition) -> AsyncIterator[RepairSource]:
        async with http_source(address, definition) as source:
            yield source


class HttpSource:
    """A repair service on the network, as a :class:`RepairSource`."""

    def __init__(self, client: httpx2.AsyncClient, definition: RegionDefinition) -> None:
        self._client = client
        self._data_bytes = ExtentLayout(definition.block_size, definition.blocks_per_extent).file_bytes

    async def files(self, extent_id: int) -> Sequence[str]:
        """Raises :class:`errors.RepairRequestError`, :class:`errors.RepairFilesInvalid`."""
        names = await self.json(f"/extent/{extent_id}/files")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise errors.RepairFilesInvalid(f"the source answered {names!r} instead of a list of names")
        return names

    async def ready(self, extent_id: int) -> bool:
        return await self.json(f"/extent/{extent_id}/repair-ready") is True

    async def stream(self, extent_id: int, kind: FileType) -> AsyncGenerator[bytes, None]:
        path = f"/newextent/{extent_id}/{kind.value}"
        most = self._data_bytes if kind is FileType.DATA else OTHER_FILE_BYTES_MAX
        deadline = trio.current_time() + REQUEST_S_MAX
        arrived = 0
        try:
            async with self._client.stream("GET", path) as response:
                if response.status_code != 200:
                    await response.aread()
                    raise errors.RepairRequestError(_refusal(path, response))
                async with aclosing(response.aiter_raw(PIECE_BYTES)) as pieces:
                    while (piece := await _next_before(deadline, pieces)) is not None:
                        arrived += len(piece)
                        if arrived > most:
                            raise errors.RepairStreamError(f"{path} sends more than the {most} bytes of such a file")
                        yield piece
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            raise errors.RepairRequestError(f"{path}: {_reason(error)}") from error
        except (httpx2.HTTPError, httpx2.StreamError, trio.TooSlowError) as error:
            raise errors.RepairStreamError(f"{path} broke off after {arrived} bytes: {_reason(error)}") from error

    async def json(self, path: str) -> Any:
        """The JSON that a route answers with. Raises :class:`errors.RepairRequestError`."""
        try:
            with trio.fail_after(REQUEST_S_MAX):
                response = await self._client.get(path)
            if response.status_code != 200:
                raise errors.RepairRequestError(_refusal(path, response))
            return response.json()
        except (httpx2.HTTPError, trio.TooSlowError) as error:
            raise errors.RepairRequestError(f"{path}: {_reason(error)}") from error
        except ValueError as error:
            raise errors.RepairRequestError(f"{path} was answered with something that is no JSON") from error


@asynccontextmanager
async def http_source(address: SocketAddress, definition: RegionDefinition) -> AsyncIterator[HttpSource]:
    """The repair service at ``address``, for extents of a region like ``definition``."""
    limits = httpx2.Limits(max_connections=1)
    # The proxies of the environment are for the world outside, not for the sled next door.
    client = httpx2.AsyncClient(
        base_url=f"http://{address}", timeout=REQUEST_S_MAX, limits=limits, trust_env=False, verify=WITHOUT_TLS
    )
    async with client:
        yield HttpSource(client, definition)


async def _next_before(deadline: float, pieces: AsyncGenerator[bytes, None]) -> bytes | None:
    """The next piece, ``None`` at the end. Raises :class:`trio.TooSlowError`."""
    with trio.fail_at(deadline):
        return await anext(pieces, None)


def _refusal(path: str, response: httpx2.Response) -> str:
    return f"{path} was answered with {response.status_code}: {response.text[:200]}"


def _reason(error: Exception) -> str:
    if isinstance(error, trio.TooSlowError):
        return f"no end within {REQUEST_S_MAX:.0f} s"
    return str(error) or type(error).__name__


async def fetch_extent(region: Region, extent_id: int, address: SocketAddress, sources: Sources) -> None:
    """Overwrite the closed extent with the copy that the repair service at ``address`` has.

    Raises :class:`errors.ModifyingReadOnlyRegion`, :class:`errors.GenericError` for an open extent, and what
    :func:`copy_extent` raises.
    """
    if region.read_only:
        raise errors.ModifyingReadOnlyRegion()
    if not region.extent_is_closed(extent_id):
        raise errors.GenericError(f"extent {extent_id} is open: close it before it is repaired")
    definition = region.definition
    geometry = ExtentLayout(definition.block_size, definition.blocks_per_extent)
    async with sources.open(address, definition) as source:
        await copy_extent(
            region.storage, region.path, extent_id, geometry, source, cloning=False, in_thread=trio.to_thread.run_sync
        )
