"""volume-verify on real bytes, sound and damaged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from frozen_rig import regions_below, require_only, take, written
from guests_rig import make_instance
from nexus_rig import EXTENT_BYTES, Plant, plant
from saga_scaffold import (
    Trial,
    action_failure_can_unwind_idempotently,
    actions_succeed_idempotently,
    death_at_every_point,
)
from users_rig import SIZE_BYTES, make_disk, run

from nexus.db import Database
from nexus.placement import AllocatedRegion
from nexus.saga import MemoryStore, SagaFailed
from nexus.sagas import volume_verify
from nexus.sagas.volume_verify import VOLUME_VERIFY
from nexus.verification import Holding, Report, compared

SOMETHING = b"something" * 100 + bytes(124)
UNWRITTEN_BYTE = EXTENT_BYTES - 100
"""In a block of the first extent that nobody writes in these tests."""


async def verified(rack: Plant, volume_id: str) -> Report:
    return Report(**(await run(rack, VOLUME_VERIFY, volume_verify.Params(volume_id=volume_id)))["COMPARE"])


def flip(path: Path, offset: int) -> None:
    """Let a byte of a file rot, behind the back of whoever has it open."""
    with path.open("r+b") as file:
        file.seek(offset)
        found = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([found ^ 1]))


def first_extent(rack: Plant, region: AllocatedRegion, snapshot_id: str | None = None) -> Path:
    datasets = rack.agents[region.dataset_id].datasets
    path = datasets.path(region.region_id)
    if snapshot_id is not None:
        path = datasets.snapshot_path(region.region_id, snapshot_id)
    assert path is not None
    return path / "00" / "000" / "000"


async def test_sound_volumes_are_sound(tmp_path: Path, database: Database) -> None:
    """A disk, its snapshot and the empty volume beside that; a disk in use is looked at as far as it may be."""
    async with plant(tmp_path, database) as rack:
        disk = await make_disk(rack)
        await written(rack, disk, 0, SOMETHING)
        snapshot = await take(rack, disk)
        holds = SOMETHING + bytes(SIZE_BYTES - len(SOMETHING))
        for volume_id, ledgers in ((disk.volume_id, []), (snapshot.volume_id, [snapshot.id])):
            report = await verified(rack, volume_id)
            assert report.sound and report.ledgers == ledgers, report
            assert (report.copies_compared, report.bytes_read) == (3, SIZE_BYTES)
            assert report.digest == blake3(holds).hexdigest()
        report = await verified(rack, snapshot.destination_volume_id)
        assert report.sound and report.digest == blake3(bytes(SIZE_BYTES)).hexdigest()
        instance = await make_instance(rack, disk)
        report = await verified(rack, disk.volume_id)
        assert not report.findings and len(report.not_looked_at) == 3
        assert "attached" in report.not_looked_at[0]
        with pytest.raises(SagaFailed, match="no volume"):
            await verified(rack, instance)


async def test_rot_is_named_by_extent_and_region(tmp_path: Path, in_memory: Database) -> None:
    """One copy of a disk, then one of a snapshot: nobody who reads through an Upstairs would notice."""
    async with plant(tmp_path, in_memory) as rack:
        disk = await make_disk(rack)
        await written(rack, disk, 0, SOMETHING)
        snapshot = await take(rack, disk)
        rotten = regions_below(rack, disk)[1]
        flip(first_extent(rack, rotten, snapshot.id), UNWRITTEN_BYTE)
        report = await verified(rack, snapshot.volume_id)
        named = f"extent 0 of snapshot {snapshot.id} of region {rotten.region_id}"
        assert report.findings == [f"{named} differs from the ledger of snapshot {snapshot.id}"]
        assert report.bytes_read == SIZE_BYTES
        flip(first_extent(rack, rotten), UNWRITTEN_BYTE)
        report = await verified(rack, disk.volume_id)
        assert report.findings == [f"extent 0 of region {rotten.region_id} differs from what most copies hold"]


async def test_copies_of_a_snapshot_are_held_against_its_ledger(tmp_path: Path, in_memory: Database) -> None:
    """A disk that was made of a snapshot reads from its copies: rot there is named in the disk's report, too."""
    async with plant(tmp_path, in_memory) as rack:
        disk = await make_disk(rack)
        await written(rack, disk, 0, SOMETHING)
        snapshot = await take(rack, disk)
        copy = await make_disk(rack, snapshot)
        report = await verified(rack, copy.volume_id)
        assert report.sound and (report.copies_compared, report.ledgers) == (6, [snapshot.id])
        assert report.digest == blake3(SOMETHING + bytes(SIZE_BYTES - len(SOMETHING))).hexdigest()
        rotten = regions_below(rack, disk)[2]
        flip(first_extent(rack, rotten, snapshot.id), UNWRITTEN_BYTE)
        report = await verified(rack, copy.volume_id)
        assert [rotten.region_id in each and "the ledger" in each for each in report.findings] == [True]


async def test_bytes_that_nobody_can_prove_are_named(
    tmp_path: Path, in_memory: Database, expect_log: Callable[..., Any]
) -> None:
    """Rot in a block that was written: its own hash gives it away, to the agent and to an Upstairs."""
    async with plant(tmp_path, in_memory) as rack:
        disk = await make_disk(rack)
        await written(rack, disk, 0, SOMETHING)
        snapshot = await take(rack, disk)
        for region in regions_below(rack, disk):
            flip(first_extent(rack, region, snapshot.id), 0)
        expect_log("damaged block")
        expect_log("operation failed on a replica")
        report = await verified(rack, snapshot.volume_id)
        differing, unread = report.findings
        assert differing.startswith("extent 0 of") and differing.count("of region") == 3
        assert unread.startswith(f"{EXTENT_BYTES} bytes at 0 cannot be read") and "does not decrypt" in unread
        assert (report.digest, report.bytes_read) == (None, SIZE_BYTES - EXTENT_BYTES)


async def test_silent_agent_is_not_waited_for(tmp_path: Path, in_memory: Database) -> None:
    async with plant(tmp_path, in_memory) as rack:
        disk = await make_disk(rack)
        silent = regions_below(rack, disk)[0]
        rack.silence(silent.dataset_id)
        report = await verified(rack, disk.volume_id)
        assert report.not_looked_at == [f"region {silent.region_id}: its agent does not answer"]
        assert (report.findings, report.copies_compared) == ([], 2)


@pytest.mark.parametrize("way", ["twice", "unwind", "death"])
async def test_verify_scaffold(tmp_path: Path, in_memory: Database, way: str) -> None:
    """However it ends, the disk is detached, and at no pantry."""
    async with plant(tmp_path, in_memory) as rack:
        disk = await make_disk(rack)

        async def fresh() -> Trial:
            async def ended() -> None:
                await require_only(rack, disk)

            return Trial(rack.world, MemoryStore(), volume_verify.Params(volume_id=disk.volume_id), ended, ended)

        match way:
            case "twice":
                await actions_succeed_idempotently(VOLUME_VERIFY, fresh)
            case "unwind":
                await action_failure_can_unwind_idempotently(VOLUME_VERIFY, fresh)
            case "death":
                assert await death_at_every_point(VOLUME_VERIFY, fresh) == 3 * 8


@pytest.mark.parametrize(
    ("holds", "ledger", "wrong"),
    [
        (["aa", "aa", "aa"], None, []),
        (["aa", "ab", "aa"], None, [(1, ("B",))]),
        (["ab", "aa", "ac"], None, [(1, ("A", "B", "C"))]),
        (["ab", "ab"], "aa", [(1, ("A", "B"))]),
        (["a", "aa"], "aa", [(1, ("A",))]),
        ([], "aa", [(0, ()), (1, ())]),
    ],
)
def test_extents_are_judged_one_by_one(
    holds: list[str], ledger: str | None, wrong: list[tuple[int, tuple[str, ...]]]
) -> None:
    """With a ledger it is right; without one the majority is, and where there is none, nobody."""
    holdings = [Holding(name, tuple(each)) for name, each in zip("ABC", holds, strict=False)]
    found = [(each.extent, each.names) for each in compared(holdings, None if ledger is None else list(ledger))]
    assert found == [each for each in wrong if each[1]]
