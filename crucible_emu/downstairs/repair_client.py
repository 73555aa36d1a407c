"""Fetching an extent from another Downstairs (wire-protocol.md §10.2, on-disk-format.md §7.3).

What it is for: the procedure itself is :func:`crucible_emu.region.clone.copy_extent`; here is the source that it asks,
over HTTP. An extent of a region in this process is asked without.

What it guarantees: no request, body included, takes longer than 15 s, and no body may be longer than what was asked
for can be. What arrives is written as it comes and checked as a whole before it replaces anything; what goes wrong on
the way is one of the three repair errors and leaves the extent as it was.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import Any, Protocol

import h11
import trio

from crucible_emu import errors
from crucible_emu.downstairs.repair_connection import RepairConnection
from crucible_emu.geometry import RegionDefinition
from crucible_emu.region import Region
from crucible_emu.region.clone import RepairSource, copy_extent
from crucible_emu.region.layout import ExtentLayout
from crucible_emu.region.repair_files import FileType
from crucible_emu.wire.messages import SocketAddress

REQUEST_S_MAX = 15.0
ANSWER_BYTES_MAX = 1 << 20
"""No answer of the service other than a file is nearly as long."""
OTHER_FILE_BYTES_MAX = 1 << 30
"""No remnant of the old format is as big as this."""
BROKEN = (h11.RemoteProtocolError, OSError, trio.BrokenResourceError, trio.TooSlowError)
"""How a conversation with the service may end early."""


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

    def __init__(self, connection: RepairConnection, definition: RegionDefinition) -> None:
        self._connection = connection
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
        await self._asked(path, deadline)
        try:
            while (piece := await self._next_before(deadline)) is not None:
                arrived += len(piece)
                if arrived > most:
                    raise errors.RepairStreamError(f"{path} sends more than the {most} bytes of such a file")
                yield piece
        except BROKEN as error:
            raise errors.RepairStreamError(f"{path} broke off after {arrived} bytes: {_reason(error)}") from error

    async def json(self, path: str) -> Any:
        """The JSON that a route answers with. Raises :class:`errors.RepairRequestError`."""
        deadline = trio.current_time() + REQUEST_S_MAX
        await self._asked(path, deadline)
        try:
            return json.loads(await self._whole(deadline))
        except BROKEN as error:
            raise errors.RepairRequestError(f"{path}: {_reason(error)}") from error
        except ValueError as error:
            raise errors.RepairRequestError(f"{path} was answered with something that is no JSON") from error

    async def _asked(self, path: str, deadline: float) -> None:
        """Ask, up to the head of a good answer. Raises :class:`errors.RepairRequestError`."""
        try:
            with trio.fail_at(deadline):
                status = await self._connection.ask(path)
            if status != 200:
                refusal = (await self._whole(deadline))[:200].decode(errors="replace")
                raise errors.RepairRequestError(f"{path} was answered with {status}: {refusal}")
        except BROKEN as error:
            raise errors.RepairRequestError(f"{path}: {_reason(error)}") from error

    async def _next_before(self, deadline: float) -> bytes | None:
        with trio.fail_at(deadline):
            return await self._connection.next_piece()

    async def _whole(self, deadline: float) -> bytes:
        """A body that is no file; of one that is too long, as much as such an answer may have."""
        body = b""
        while len(body) < ANSWER_BYTES_MAX and (piece := await self._next_before(deadline)) is not None:
            body += piece
        return body


@asynccontextmanager
async def http_source(address: SocketAddress, definition: RegionDefinition) -> AsyncIterator[HttpSource]:
    """The repair service at ``address``, for extents of a region like ``definition``."""
    async with aclosing(RepairConnection(address)) as connection:
        yield HttpSource(connection, definition)


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
