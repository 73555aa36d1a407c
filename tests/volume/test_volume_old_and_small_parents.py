"""Parents that are not like their disks: of the old format, of one block over HTTP; and volumes made anew."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from uuid import UUID, uuid4

import numpy as np
import pytest
from disk_rig import do, everything, flush, pattern, read, region_set, write
from image_server import image_server
from region_builder import definition, save_region, save_sqlite_extent

from crucible_emu.blockio import Kind, Request
from crucible_emu.blockio_memory import MemoryDevice
from crucible_emu.region import layout
from crucible_emu.region.layout import ExtentMetadata
from crucible_emu.volume.attach import attach
from crucible_emu.volume.local_disk import region_path
from crucible_emu.volume.vcr import RegionRequest, UrlRequest, VolumeConstructionRequest, VolumeRequest
from crucible_emu.volume.volume import Volume

BLOCK = 512
Fresh = Callable[..., Path]


def volume_of(*parts: VolumeConstructionRequest, parent: VolumeConstructionRequest | None = None) -> VolumeRequest:
    return VolumeRequest(type="volume", id=uuid4(), block_size=BLOCK, sub_volumes=parts, read_only_parent=parent)


def as_another(request: RegionRequest) -> RegionRequest:
    """The request under the id of another Upstairs."""
    return request.model_copy(update={"opts": request.opts.model_copy(update={"id": UUID(int=77)})})


def old_regions(folder: Path, data: bytes) -> list[Path]:
    """Three regions of the format with databases, 4 extents of 8 blocks, all written with ``data``."""
    paths = []
    for client in range(3):
        path = save_region(folder / f"old-{client}", definition(BLOCK, 8, 4, uuid4()))
        for extent_id in range(4):
            rows = np.frombuffer(data, np.uint8).reshape(4, 8, BLOCK)[extent_id]
            contexts = [(block, row.tobytes(), None) for block, row in enumerate(rows)]
            save_sqlite_extent(layout.extent_path(path, extent_id), rows, contexts, ExtentMetadata(False, 1, 1))
        paths.append(path)
    return paths


async def test_a_parent_of_the_old_format_shows_through(fresh_disk: Fresh, tmp_path: Path) -> None:
    """The layer above is of the new format; the regions below stay as they are."""
    data = pattern(32 * BLOCK)
    below = old_regions(tmp_path, data)
    before = {path: path.read_bytes() for region in below for path in region.rglob("*") if path.is_file()}
    above = [region_path(fresh_disk(BLOCK), client) for client in range(3)]
    async with region_set(below, read_only=dict.fromkeys(range(3), True)) as old, region_set(above) as new:
        parent = volume_of(as_another(old.request(2, read_only=True)))
        async with attach(volume_of(new.request(2), parent=parent), timeout_s=30) as volume:
            assert await everything(volume) == data
            await write(volume, 3 * BLOCK, pattern(BLOCK, 2))
            await flush(volume)
            assert await everything(volume) == data[: 3 * BLOCK] + pattern(BLOCK, 2) + data[4 * BLOCK :]
    assert {path: path.read_bytes() for path in before} == before
    assert not list(above[0].rglob("*.db")), "what is written is of the new format"


async def test_a_disk_of_the_old_format_is_moved_and_keeps_its_data(tmp_path: Path) -> None:
    data = pattern(32 * BLOCK)
    paths = old_regions(tmp_path, data)
    async with region_set(paths) as servers, servers.disk(2) as disk:
        assert await everything(disk) == data
        await write(disk, 0, pattern(BLOCK, 2))
    assert not [found for path in paths for found in path.rglob("*.db*")]
    async with region_set(paths) as servers, servers.disk(3) as disk:
        assert await everything(disk) == pattern(BLOCK, 2) + data[BLOCK:]


async def test_a_parent_over_http_of_one_block_below_a_nested_volume(fresh_disk: Fresh) -> None:
    paths = [region_path(fresh_disk(BLOCK), client) for client in range(3)]
    async with image_server(b"\xff" * BLOCK) as image, region_set(paths) as servers:
        url = UrlRequest(type="url", id=uuid4(), block_size=BLOCK, url=image.url)
        request = volume_of(servers.request(), parent=volume_of(parent=volume_of(parent=url)))
        async with attach(request, timeout_s=30) as volume:
            assert await read(volume, 0, 2 * BLOCK) == b"\xff" * BLOCK + bytes(BLOCK)
            await write(volume, 0, b"\x01" * BLOCK)
            assert await read(volume, 0, 2 * BLOCK) == b"\x01" * BLOCK + bytes(BLOCK)


@pytest.mark.parametrize("parent_first", [False, True])
async def test_a_volume_made_anew_over_the_same_parts_holds_the_same(parent_first: bool) -> None:
    """A volume has no memory of its own; nor does it matter which part was made or written first."""
    parts, parent = [MemoryDevice(4 * BLOCK, BLOCK) for _ in range(2)], MemoryDevice(6 * BLOCK, BLOCK)

    async def fill_parent() -> None:
        await write(Volume(BLOCK, [parent]), 0, b"\x09" * 6 * BLOCK)

    if parent_first:
        await fill_parent()
    await write(Volume(BLOCK, parts, parent), 3 * BLOCK, b"\x05" * 2 * BLOCK)
    if not parent_first:
        await fill_parent()
    expected = [9, 9, 9, 5, 5, 9, 0, 0]
    for _ in range(2):
        volume = Volume(BLOCK, parts, parent)
        assert list((await everything(volume))[::BLOCK]) == expected
    await do(volume, Request(Kind.WRITE_UNWRITTEN, 0, 8 * BLOCK, memoryview(b"\x07" * 8 * BLOCK)))
    assert list((await everything(Volume(BLOCK, parts, parent)))[::BLOCK]) == [7, 7, 7, 5, 5, 7, 7, 7]
