"""A volume that a pantry has attached, as a disk for asyncio.

What it is for: the same copies as over NBD where there is no NBD: a pantry moves at most 512 KiB at once, as text, and
offers neither zeroing nor a map nor a flush. It is for small images, and for what the control plane itself would do.

What it guarantees: a request is split into pieces of what the pantry takes. The API does not tell how large a volume
is; where the caller does not say it either, it is found by reading single blocks, twice as far each time and then by
halves, some seventy small requests for the largest disk.
"""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

from crucible_emu.client.aio.disk import Disk
from crucible_emu.client.failures import ServiceError
from crucible_emu.client.pantry import BASE, CHUNK_BYTES_MAX, PantryClient
from crucible_emu.errors import UsageError
from crucible_emu.volume.info import UpstairsNode, VolumeInfo

SMALLEST_BLOCK_BYTES = 512
LARGEST_DISK_BYTES = 1 << 56
BEYOND = 400
"""The status of a read that ends beyond the volume (§2.4)."""


class PantryDisk(Disk):
    """One attached volume. Made by :func:`open_volume`."""

    read_only = False
    can_flush = can_zero = can_trim = can_map = False

    def __init__(self, client: PantryClient, address: str, volume_id: str, block_size: int, size_bytes: int) -> None:
        self.address = address
        self.block_size = block_size
        self.size_bytes = size_bytes
        self._client = client
        self._volume_id = volume_id

    async def close(self) -> None:
        await self._client.aclose()

    async def _read_into(self, offset: int, memory: memoryview) -> None:
        for start in range(0, len(memory), CHUNK_BYTES_MAX):
            piece = memory[start : start + CHUNK_BYTES_MAX]
            piece[:] = await self._client.bulk_read(self._volume_id, offset + start, len(piece))

    async def _write(self, offset: int, data: memoryview, fua: bool) -> None:
        if fua:
            raise UsageError(f"{self.address} cannot say when a write is durable: detach the volume for that")
        for start in range(0, len(data), CHUNK_BYTES_MAX):
            piece = data[start : start + CHUNK_BYTES_MAX]
            await self._client.bulk_write(self._volume_id, offset + start, piece)

    async def _zero(self, offset: int, length: int) -> None:
        zeros = memoryview(bytes(min(length, CHUNK_BYTES_MAX)))
        for start in range(0, length, CHUNK_BYTES_MAX):
            await self._write(offset + start, zeros[: length - start], fua=False)

    async def _trim(self, offset: int, length: int) -> None:
        raise UsageError(f"{self.address} does not offer trimming")

    async def _flush(self) -> None:
        raise UsageError(f"{self.address} does not offer a flush")

    async def _zeros(self, offset: int, length: int) -> list[tuple[int, bool]]:
        return [(length, False)]


async def open_volume(address: str, client: PantryClient, volume_id: str, size_bytes: int | None = None) -> PantryDisk:
    """The volume of that id, which must be attached and active. Raises what :class:`PantryClient` raises, and
    :class:`UsageError` where it is not active."""
    status = await client.volume_status(volume_id)
    if not status.active:
        raise UsageError(f"the volume {volume_id} is attached and not active: wait for its activation")
    block_size = _block_size(status.info)
    if block_size is None:
        block_size = await _found_block_size(client, volume_id)
    if size_bytes is None:
        size_bytes = await _found_size(client, volume_id, block_size)
    return PantryDisk(client, address, volume_id, block_size, size_bytes)


def split_address(address: str) -> tuple[str, str]:
    """``(address of the pantry, id of the volume)``. Raises :class:`UsageError`."""
    parts = urlsplit(address)
    prefix = f"{BASE}/volume/"
    name = parts.path.removeprefix(prefix)
    if not parts.path.startswith(prefix) or not name or "/" in name or parts.query or parts.fragment:
        raise UsageError(f"'{address}' is not the address of a volume: use http://host:port{prefix}ID")
    return f"{parts.scheme}://{parts.netloc}", unquote(name)


def _block_size(info: VolumeInfo) -> int | None:
    """The block size that some part of the volume tells; all parts have the same."""
    if isinstance(info, UpstairsNode):
        return info.upstairs.block_size
    parts = [*info.volume.sub_volumes, *([info.volume.read_only_parent] if info.volume.read_only_parent else [])]
    return next((size for part in parts if (size := _block_size(part)) is not None), None)


async def _readable(client: PantryClient, volume_id: str, offset: int, length: int) -> bool:
    try:
        await client.bulk_read(volume_id, offset, length)
    except ServiceError as error:
        if error.status == BEYOND:
            return False
        raise
    return True


async def _found_block_size(client: PantryClient, volume_id: str) -> int:
    size = SMALLEST_BLOCK_BYTES
    while not await _readable(client, volume_id, 0, size):
        size *= 2
        if size > CHUNK_BYTES_MAX:
            raise UsageError(f"the volume {volume_id} serves no block of any size")
    return size


async def _found_size(client: PantryClient, volume_id: str, block_size: int) -> int:
    """The number of bytes whose last block can be read and whose next one cannot."""
    below, above = 0, 1  # blocks: so many are there, so many are not
    while await _readable(client, volume_id, (above - 1) * block_size, block_size):
        below, above = above, above * 2
        if above * block_size > LARGEST_DISK_BYTES:
            raise UsageError(f"the volume {volume_id} seems to have no end: say how large it is")
    while above - below > 1:
        middle = (below + above) // 2
        if await _readable(client, volume_id, (middle - 1) * block_size, block_size):
            below = middle
        else:
            above = middle
    return below * block_size
