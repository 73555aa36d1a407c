"""A disk in a directory: made, opened, closed; every way in which the directory can be wrong or half-made."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from disk_rig import KEY, OTHER_KEY, digests, do, everything, failures, flush, pattern, read, write, write_request
from hypothesis import example, given
from hypothesis import strategies as st

from crucible_emu.encryption import Cipher
from crucible_emu.errors import IoError, UsageError
from crucible_emu.geometry import EXTENT_BYTES_DEFAULT, EXTENT_DATA_BYTES_MAX, cut_into_extents, size_for
from crucible_emu.region import Region
from crucible_emu.volume import local_disk
from crucible_emu.volume.image import copy_in
from crucible_emu.volume.local_disk import DISK_FILE, open_disk, read_disk_file, region_path

SIZE = 64 * 512


def make(directory: Path, **options: Any) -> local_disk.DiskFile:
    """32 KiB in blocks of 512 bytes, extents of 16."""
    return local_disk.create(directory, SIZE, **{"block_size": 512, "blocks_per_extent": 16} | options)


def regions(directory: Path) -> list[Path]:
    return [region_path(directory, client) for client in range(3)]


async def refusal(directory: Path, **options: Any) -> str:
    """The sentence with which the disk is refused."""
    with pytest.raises((UsageError, IoError)) as refused:
        async with open_disk(directory, **options):
            raise AssertionError("it was opened")
    text = str(refused.value)
    assert "\n" not in text and len(text) < 500
    return text


# -- making, opening, closing -----------------------------------------------------------------------------------------


async def test_a_new_disk_is_zeros_and_keeps_what_is_written(tmp_path: Path) -> None:
    directory = tmp_path / "a" / "b" / "disk"
    found = make(directory)
    assert (found.generation, found.created, found.filling) == (0, True, None)
    data = pattern(SIZE)
    async with open_disk(directory) as disk:
        assert (disk.size_bytes, disk.block_size, disk.read_only) == (SIZE, 512, False)
        assert await everything(disk) == bytes(SIZE)
        await write(disk, 0, data)
    async with open_disk(directory) as disk:
        assert await everything(disk) == data
    assert len(digests(regions(directory))) == 1
    assert all(not failures(region) for region in regions(directory))


async def test_leaving_flushes_what_nobody_flushed(tmp_path: Path) -> None:
    make(tmp_path)
    async with open_disk(tmp_path) as disk:
        await write(disk, 512, pattern(1024))
    for region in regions(tmp_path):
        with Region.open(region, read_only=True) as stored:
            assert not stored.extent_versions()[2].any()


async def test_a_failure_inside_the_block_passes_and_flushes_all_the_same(tmp_path: Path) -> None:
    make(tmp_path)
    with pytest.RaisesGroup(ZeroDivisionError, flatten_subgroups=True, allow_unwrapped=True):
        async with open_disk(tmp_path) as disk:
            await write(disk, 512, pattern(512))
            raise ZeroDivisionError
    async with open_disk(tmp_path) as disk:
        assert await read(disk, 512, 512) == pattern(512)


async def test_the_generation_grows_with_every_opening(tmp_path: Path) -> None:
    make(tmp_path)
    for generation in (1, 2, 3):
        async with open_disk(tmp_path) as disk:
            found = read_disk_file(tmp_path)
            assert found is not None and found.generation == generation == disk.upstairs.core.generation
            await write(disk, 0, pattern(512, generation))


async def test_the_generation_is_above_what_the_regions_have_stored(tmp_path: Path) -> None:
    """Somebody served the regions elsewhere meanwhile, or an older disk.json was put back."""
    make(tmp_path)
    for region in regions(tmp_path):
        with Region.open(region) as stored:
            stored.flush(7, 41)  # an extent that is clean keeps its numbers
    async with open_disk(tmp_path) as disk:
        await write(disk, 0, pattern(512))
    older = (tmp_path / DISK_FILE).read_text()
    for _ in range(2):
        async with open_disk(tmp_path) as disk:
            await write(disk, 0, pattern(512))
    (tmp_path / DISK_FILE).write_text(older)
    async with open_disk(tmp_path) as disk:
        assert disk.upstairs.core.generation == 4
        assert await read(disk, 0, 512) == pattern(512)


async def test_two_openings_at_a_time_are_refused(tmp_path: Path) -> None:
    make(tmp_path)
    async with open_disk(tmp_path) as disk:
        assert "open read-write elsewhere" in await refusal(tmp_path)
        found = read_disk_file(tmp_path)
        assert found is not None and found.generation == 1, "the loser changes nothing"
        await write(disk, 0, pattern(512))


def test_a_disk_is_not_made_over_another(tmp_path: Path) -> None:
    before = make(tmp_path)
    with pytest.raises(UsageError, match="holds a disk already"):
        make(tmp_path)
    assert read_disk_file(tmp_path) == before


# -- sizes and extents ------------------------------------------------------------------------------------------------


@given(
    blocks=st.integers(1, 2**32) | st.integers(1, 2**20) | st.sampled_from([1 << n for n in range(33)]),
    shift=st.integers(9, 15),
)
@example(blocks=1, shift=9)
@example(blocks=2**20 + 1, shift=9)
def test_extents_cut_a_size_exactly_and_within_bounds(blocks: int, shift: int) -> None:
    block_size = 1 << shift
    size = blocks * block_size
    try:
        per_extent, count = cut_into_extents(size, block_size)
    except UsageError as error:
        # Refused with a size that would be right: less than one extent more.
        better = int("".join(filter(str.isdigit, str(error).partition("take ")[2])))
        per_extent, count = cut_into_extents(better, block_size)
        assert size < better < size + EXTENT_BYTES_DEFAULT and per_extent * count * block_size == better
        return
    assert per_extent * count == blocks and count >= 1
    assert per_extent * block_size <= EXTENT_DATA_BYTES_MAX


@given(length=st.integers(0, 2**41), shift=st.integers(9, 15), per_extent=st.none() | st.integers(1, 4096))
def test_an_image_always_finds_a_size_that_can_be_cut(length: int, shift: int, per_extent: int | None) -> None:
    block_size = 1 << shift
    size = size_for(length, block_size, per_extent)
    assert size >= max(length, 1) and size % block_size == 0
    if per_extent is None:
        cut_into_extents(size, block_size)
    else:
        assert size % (block_size * per_extent) == 0 and size - length <= block_size * per_extent


@pytest.mark.parametrize(
    ("size", "options", "sentence"),
    [
        (0, {}, "size 0"),
        (-512, {}, "size -512"),
        (1000, {}, "size 1000"),
        (4096, {"block_size": 500}, "block size 500"),
        (4096, {"block_size": 0}, "block size 0"),
        (4096, {"block_size": 0, "blocks_per_extent": 1}, "block size 0"),
        (1 << 20, {"block_size": 1 << 16}, "block size 65536"),
        (1 << 20, {"block_size": 1 << 16, "blocks_per_extent": 1}, "block size 65536"),
        (4096, {"block_size": 512, "blocks_per_extent": 0}, "extent size 0"),
        (4096, {"block_size": 512, "blocks_per_extent": -8}, "extent size -8"),
        (4096, {"block_size": 512, "blocks_per_extent": 3}, "multiple of 1536"),
        (0, {"block_size": 512, "blocks_per_extent": 8}, "size 0"),
        (1 << 40, {"block_size": 512, "blocks_per_extent": 1 << 30}, "extent size"),
    ],
)
def test_a_disk_that_cannot_be_is_refused_and_leaves_nothing(
    tmp_path: Path, size: int, options: dict[str, int], sentence: str
) -> None:
    with pytest.raises(UsageError, match=sentence):
        local_disk.create(tmp_path / "disk", size, **options)
    assert not (tmp_path / "disk").exists()


@pytest.mark.parametrize(("size", "block_size"), [(512, 512), (3 * 4096, 4096), (7 * 32768, 32768), (128 << 30, 4096)])
async def test_disks_of_every_shape_work_at_both_ends(tmp_path: Path, size: int, block_size: int) -> None:
    """The largest is 128 GiB, which is only a promise until it is written."""
    most = EXTENT_DATA_BYTES_MAX // block_size
    local_disk.create(tmp_path, size, block_size=block_size, blocks_per_extent=most if size > 1 << 30 else None)
    async with open_disk(tmp_path) as disk:
        assert disk.size_bytes == size
        await do(
            disk,
            write_request(0, pattern(block_size, 1)),
            write_request(size - block_size, pattern(block_size, 2)),
        )
        await flush(disk)
    async with open_disk(tmp_path) as disk:
        assert await read(disk, size - block_size, block_size) == pattern(block_size, 2)
        if size > block_size:
            assert await read(disk, 0, block_size) == pattern(block_size, 1)


# -- directories that were never finished -----------------------------------------------------------------------------


class PowerCut(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("regions_made", [0, 1, 2, 3])
async def test_a_half_made_disk_is_finished_by_the_next_opening(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, regions_made: int
) -> None:
    made = 0
    real_create, real_write = Region.create, local_disk._write_disk_file

    def create(*arguments: Any, **options: Any) -> Region:
        nonlocal made
        if made == regions_made:
            raise PowerCut
        made += 1
        return real_create(*arguments, **options)

    def write_disk_file(directory: Path, disk: local_disk.DiskFile) -> None:
        if disk.created:
            raise PowerCut
        real_write(directory, disk)

    with monkeypatch.context() as patch:
        patch.setattr(Region, "create", create)
        patch.setattr(local_disk, "_write_disk_file", write_disk_file)
        with pytest.raises(PowerCut):
            make(tmp_path)
    before = read_disk_file(tmp_path)
    assert before is not None and not before.created
    async with open_disk(tmp_path) as disk:
        assert await everything(disk) == bytes(SIZE)
        await write(disk, 0, pattern(512))
    after = read_disk_file(tmp_path)
    assert after is not None and after.created
    assert (after.id, after.definitions) == (before.id, before.definitions)


async def test_a_region_cut_off_while_it_was_made_is_made_again(tmp_path: Path) -> None:
    """Files of a region without its definition: what a power cut inside the making of one region leaves."""
    make(tmp_path)
    members = json.loads((tmp_path / DISK_FILE).read_text())
    (tmp_path / DISK_FILE).write_text(json.dumps(members | {"created": False}))
    unfinished = region_path(tmp_path, 1)
    (unfinished / "region.json").unlink()
    (unfinished / ".creating").write_bytes(b"")
    async with open_disk(tmp_path) as disk:
        await write(disk, 0, pattern(SIZE))
    assert len(digests(regions(tmp_path))) == 1


async def test_a_fresh_disk_file_cut_off_in_the_middle_leaves_the_old_one(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / f".{DISK_FILE}.new").write_text('{"id": ')
    async with open_disk(tmp_path) as disk:
        await write(disk, 0, pattern(512))
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".new")]


# -- directories that are wrong ---------------------------------------------------------------------------------------


async def test_a_directory_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    assert "not empty" in await refusal(tmp_path)
    with pytest.raises(UsageError, match="not empty"):
        make(tmp_path)
    assert os.listdir(tmp_path) == ["letter.txt"]


async def test_a_directory_that_is_not_there_or_no_directory(tmp_path: Path) -> None:
    assert "holds no disk" in await refusal(tmp_path / "none")
    (tmp_path / "file").write_text("")
    assert "file" in await refusal(tmp_path / "file")
    with pytest.raises(UsageError, match="file"):
        make(tmp_path / "file")
    with pytest.raises(UsageError, match="file"):
        make(tmp_path / "file" / "disk")


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "null", "{}", '{"id": "x"}', "\x00"),
        '{"id": "6a1f3c52-0c1e-4a57-9d55-0a2a6bb6f001", "generation": "many", "created": true, "regions": []}',
        '{"id": "6a1f3c52-0c1e-4a57-9d55-0a2a6bb6f001", "generation": 1, "created": true, "regions": [1, 2, 3]}',
        '{"id": "6a1f3c52-0c1e-4a57-9d55-0a2a6bb6f001", "generation": 1, "created": true, "regions": {}}',
        '{"id": "6a1f3c52-0c1e-4a57-9d55-0a2a6bb6f001", "generation": 1, "created": true, "regions": []}',
        pytest.param("[" * 100_000, id="deep"),
    ],
)
async def test_a_disk_file_that_is_none_is_named(tmp_path: Path, text: str) -> None:
    make(tmp_path)
    (tmp_path / DISK_FILE).write_text(text)
    assert str(tmp_path / DISK_FILE) in await refusal(tmp_path)


async def test_a_disk_file_that_is_not_text_is_named(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / DISK_FILE).write_bytes(b"\xff\xfe\x00")
    assert str(tmp_path / DISK_FILE) in await refusal(tmp_path)


async def test_swapped_region_directories_are_noticed(tmp_path: Path) -> None:
    make(tmp_path)
    one, two = regions(tmp_path)[:2]
    one.rename(tmp_path / "aside")
    two.rename(one)
    (tmp_path / "aside").rename(two)
    sentence = await refusal(tmp_path)
    assert "region-0" in sentence and "put the right directory back" in sentence


def test_a_file_in_the_place_of_the_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"file is no directory: give an empty or a new one"):
        read_disk_file(tmp_path / "file")


async def test_a_region_of_another_disk_is_noticed(tmp_path: Path) -> None:
    make(tmp_path / "ours")
    make(tmp_path / "theirs")
    shutil.rmtree(region_path(tmp_path / "ours", 2))
    shutil.copytree(region_path(tmp_path / "theirs", 2), region_path(tmp_path / "ours", 2))
    assert "region-2" in await refusal(tmp_path / "ours")


async def test_a_region_that_is_gone_is_named_and_not_made_anew(tmp_path: Path) -> None:
    make(tmp_path)
    async with open_disk(tmp_path) as disk:
        await write(disk, 0, pattern(512))
    shutil.rmtree(region_path(tmp_path, 1))
    assert "region-1" in await refusal(tmp_path)
    assert not region_path(tmp_path, 1).exists()


async def test_an_extent_that_is_gone_is_named(tmp_path: Path) -> None:
    make(tmp_path)
    (region_path(tmp_path, 1) / "00" / "000" / "002").unlink()
    assert "002" in await refusal(tmp_path)


# -- keys -------------------------------------------------------------------------------------------------------------


async def test_an_encrypted_disk_needs_its_key_and_a_plain_one_takes_none(tmp_path: Path) -> None:
    cipher = Cipher.from_base64(KEY)
    make(tmp_path / "sealed", encrypted=True)
    make(tmp_path / "plain")
    assert "give its key" in await refusal(tmp_path / "sealed")
    assert "leave the key out" in await refusal(tmp_path / "plain", cipher=cipher)
    async with open_disk(tmp_path / "sealed", cipher=cipher) as disk:
        await write(disk, 0, pattern(SIZE))
    async with open_disk(tmp_path / "sealed", cipher=cipher) as disk:
        assert await everything(disk) == pattern(SIZE)
    stored = b"".join(path.read_bytes() for path in (tmp_path / "sealed").rglob("*") if path.is_file())
    assert pattern(SIZE)[512:544] not in stored
    assert KEY.encode() not in stored


async def test_the_wrong_key_is_refused_before_anything_can_be_written_with_it(tmp_path: Path) -> None:
    make(tmp_path, encrypted=True)
    async with open_disk(tmp_path, cipher=Cipher.from_base64(KEY)) as disk:
        await write(disk, 0, pattern(512))
    sentence = await refusal(tmp_path, cipher=Cipher.from_base64(OTHER_KEY))
    assert "key" in sentence and OTHER_KEY not in sentence and KEY not in sentence
    async with open_disk(tmp_path, cipher=Cipher.from_base64(KEY)) as disk:
        assert await read(disk, 0, 512) == pattern(512)


@pytest.mark.parametrize("key_check", ["", "====", "AAAA", "A" * 1000, 7])
async def test_a_spoilt_key_check_refuses_every_key(tmp_path: Path, key_check: Any) -> None:
    make(tmp_path, encrypted=True)
    members = json.loads((tmp_path / DISK_FILE).read_text())
    (tmp_path / DISK_FILE).write_text(json.dumps(members | {"key_check": key_check}))
    assert "key" in await refusal(tmp_path, cipher=Cipher.from_base64(KEY))


# -- an image that is copied in ---------------------------------------------------------------------------------------


async def test_an_interrupted_fill_must_be_done_again(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(pattern(SIZE))
    make(tmp_path / "disk", fill_from=image)
    with pytest.RaisesGroup(PowerCut, flatten_subgroups=True, allow_unwrapped=True):
        async with open_disk(tmp_path / "disk", fill_from=image) as disk:
            await write(disk, 0, pattern(512))
            raise PowerCut
    sentence = await refusal(tmp_path / "disk")
    assert "interrupted" in sentence and str(image) in sentence
    async with open_disk(tmp_path / "disk", fill_from=image) as disk:
        await copy_in(disk, image, lambda _: None)
        local_disk.mark_filled(tmp_path / "disk")
        found = read_disk_file(tmp_path / "disk")
        assert found is not None and found.filling is None and found.generation == 2
    async with open_disk(tmp_path / "disk") as disk:
        assert await everything(disk) == pattern(SIZE)


async def test_a_fill_that_is_done_again_leaves_nothing_of_the_first(tmp_path: Path) -> None:
    """The image changed meanwhile: where it has holes now, the first try must not shine through."""
    image = tmp_path / "image"
    image.write_bytes(pattern(SIZE))
    make(tmp_path / "disk", fill_from=image)
    async with open_disk(tmp_path / "disk", fill_from=image) as disk:
        await copy_in(disk, image, lambda _: None)
    fresh = pattern(SIZE // 2, 2) + bytes(SIZE // 2)
    image.write_bytes(fresh)
    async with open_disk(tmp_path / "disk", fill_from=image) as disk:
        await copy_in(disk, image, lambda _: None)
        local_disk.mark_filled(tmp_path / "disk")
        assert await everything(disk) == fresh


async def test_an_image_whose_length_is_no_whole_block(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(pattern(1300))
    make(tmp_path / "disk", fill_from=image)
    told = 0

    def progress(done: int) -> None:
        nonlocal told
        told += done

    async with open_disk(tmp_path / "disk", fill_from=image) as disk:
        await copy_in(disk, image, progress)
        assert await everything(disk) == pattern(1300) + bytes(SIZE - 1300)
    assert told == 1300


async def test_holes_of_the_image_stay_unwritten(tmp_path: Path) -> None:
    image = tmp_path / "image"
    size = 8 << 20
    with image.open("wb") as file:
        file.write(pattern(1 << 20))
        file.truncate(size)
    local_disk.create(tmp_path / "disk", size, fill_from=image)
    async with open_disk(tmp_path / "disk", fill_from=image) as disk:
        await copy_in(disk, image, lambda _: None)
        found = [(run.length, run.depth) for run in await disk.allocation(0, size)]
        assert found == [(1 << 20, 1), (7 << 20, 0)]


async def test_an_image_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    make(tmp_path / "disk", fill_from=tmp_path / "none")
    with pytest.RaisesGroup(pytest.RaisesExc(UsageError, match="none"), flatten_subgroups=True, allow_unwrapped=True):
        async with open_disk(tmp_path / "disk", fill_from=tmp_path / "none") as disk:
            await copy_in(disk, tmp_path / "none", lambda _: None)
