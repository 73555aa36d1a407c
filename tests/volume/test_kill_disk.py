"""SIGKILL a process that writes a mirrored disk: a slice of the long run, and proof that its checker can fail."""

from __future__ import annotations

import struct
from pathlib import Path

import kill_disk
import pytest
import trio
from disk_rig import damage, flush, write
from kill_disk import FLUSHED, ISSUED, RECORD, History, check, stamp

from crucible_emu.volume import local_disk
from crucible_emu.volume.local_disk import open_disk, region_path

BLOCK = 512


@pytest.mark.long
def test_a_disk_survives_kills() -> None:
    """Three kills. In full: ``python tests/volume/kill_disk.py --rounds 100``."""
    assert kill_disk.run(3, seed=1) == []


def log_of(path: Path, *records: tuple[int, int, int]) -> History:
    path.write_bytes(b"".join(RECORD.pack(*record) for record in records))
    return History.read(path)


def test_the_history_says_what_a_block_may_hold(tmp_path: Path) -> None:
    history = log_of(
        tmp_path / "log",
        (ISSUED, 5, 1),
        (ISSUED, 5, 2),
        (ISSUED, 6, 3),
        (FLUSHED, 0, 2),
        (ISSUED, 5, 4),
        (ISSUED, 7, 5),
    )
    assert history.allowed(5) == {2, 4}, "what was flushed, or anything later"
    assert history.allowed(6) == {0, 3}, "issued and not flushed"
    assert history.allowed(7) == {0, 5}
    assert history.allowed(8) == {0}, "never written"
    assert history.last == 5


def test_a_record_cut_off_by_the_kill_is_left_out(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(RECORD.pack(ISSUED, 5, 1) + RECORD.pack(FLUSHED, 0, 1)[:-1])
    assert History.read(log).allowed(5) == {0, 1}
    assert History.read(tmp_path / "none").allowed(5) == {0}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A disk whose block 3 holds version 2, flushed."""
    local_disk.create(tmp_path / "disk", 16 * BLOCK, block_size=BLOCK, blocks_per_extent=4)

    async def fill() -> None:
        async with open_disk(tmp_path / "disk") as disk:
            await write(disk, 3 * BLOCK, stamp(3, 2, BLOCK))
            await flush(disk)

    trio.run(fill)
    return tmp_path / "disk"


TRUE = ((ISSUED, 3, 1), (FLUSHED, 0, 1), (ISSUED, 3, 2), (FLUSHED, 0, 2))
TAMPERED = {
    "a flushed version is missing": (*TRUE, (ISSUED, 3, 3), (FLUSHED, 0, 3)),
    "a flushed block is missing": (*TRUE, (ISSUED, 9, 3), (FLUSHED, 0, 3)),
    "a version that nobody issued": ((ISSUED, 3, 1), (FLUSHED, 0, 1)),
    "a block that nobody wrote": (),
}


async def test_a_true_history_passes(directory: Path, tmp_path: Path) -> None:
    assert await check(directory, log_of(tmp_path / "log", *TRUE)) == []


@pytest.mark.parametrize("name", TAMPERED)
async def test_a_tampered_history_is_found(directory: Path, tmp_path: Path, name: str) -> None:
    wrong = await check(directory, log_of(tmp_path / "log", *TAMPERED[name]))
    assert len(wrong) == 1
    assert wrong[0].startswith("block 9 " if name == "a flushed block is missing" else "block 3 ")


@pytest.mark.parametrize(
    "data",
    [
        stamp(3, 2, BLOCK)[: BLOCK // 2] + stamp(3, 1, BLOCK)[BLOCK // 2 :],
        stamp(4, 2, BLOCK),
        stamp(3, 2, BLOCK)[:-1] + b"\x01",
        struct.pack("<QQ", 3, 0) * (BLOCK // 16),
    ],
    ids=["torn", "misplaced", "one byte", "version 0 with a number"],
)
async def test_torn_and_misplaced_blocks_are_found(directory: Path, tmp_path: Path, data: bytes) -> None:
    async with open_disk(directory) as disk:
        await write(disk, 3 * BLOCK, data)
    assert len(await check(directory, log_of(tmp_path / "log", *TRUE))) == 1


def test_replicas_that_differ_are_found(directory: Path) -> None:
    assert len(set(kill_disk.region_digests(directory))) == 1
    damage(region_path(directory, 1), 3)
    assert len(set(kill_disk.region_digests(directory))) == 2
