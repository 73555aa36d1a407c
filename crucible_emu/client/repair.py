"""The repair service of a Downstairs over HTTP (apis-and-tools.md §3.1).

What it is for: one method for each operation of ``downstairs-repair-1.0.0.json``, for whoever wants to know a region's
geometry or fetch an extent. (A Downstairs that is repaired does not come through here: it has a faster way of its own.)
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from enum import Enum
from typing import Annotated
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from crucible_emu.client.service import ServiceClient


class FileType(Enum):
    """A file of an extent; all but the first belong to the old format."""

    DATA = "data"
    DB = "db"
    DB_SHM = "db_shm"
    DB_WAL = "db_wal"


Unsigned = Annotated[int, Field(ge=0)]


class Block(BaseModel):
    """A number of blocks of ``2 ** shift`` bytes."""

    model_config = ConfigDict(frozen=True)

    value: Unsigned
    shift: Unsigned


class RegionDefinition(BaseModel):
    """What a region is; ``extent_size`` in blocks."""

    model_config = ConfigDict(frozen=True)

    block_size: Unsigned
    extent_size: Block
    extent_count: Unsigned
    uuid: UUID
    encrypted: bool
    database_read_version: Unsigned
    database_write_version: Unsigned


_NAMES = TypeAdapter(list[str])
_BOOLEAN = TypeAdapter(bool)
_DEFINITION = TypeAdapter(RegionDefinition)


class RepairClient(ServiceClient):
    """The extents of one Downstairs, read-only; what each raises is in :mod:`crucible_emu.client.service`."""

    async def get_region_info(self) -> RegionDefinition:
        return await self._ask("GET", "/region-info", _DEFINITION)

    async def get_region_mode(self) -> bool:
        """Whether the region is read-only."""
        return await self._ask("GET", "/region-mode", _BOOLEAN)

    async def get_files_for_extent(self, extent_id: int) -> list[str]:
        return await self._ask("GET", f"/extent/{extent_id:d}/files", _NAMES)

    async def extent_repair_ready(self, extent_id: int) -> bool:
        """Whether the extent may be copied now: it is closed, or the region read-only."""
        return await self._ask("GET", f"/extent/{extent_id:d}/repair-ready", _BOOLEAN)

    @asynccontextmanager
    async def get_extent_file(self, extent_id: int, kind: FileType) -> AsyncIterator[AsyncIterator[bytes]]:
        """The bytes of one file, piece by piece as they arrive."""
        async with (
            self._stream("GET", f"/newextent/{extent_id:d}/{kind.value}") as response,
            aclosing(response.aiter_bytes()) as pieces,
        ):
            yield pieces

    async def get_work(self) -> bool:
        """Have the Downstairs print its work."""
        return await self._ask("GET", "/work", _BOOLEAN)
